# SPDX-License-Identifier: Apache-2.0
"""Where a forward's time goes: its operations by the time that they take themselves."""

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


def profile_operations(function: Callable[[], object], calls: int = 5, top: int = 10) -> dict:
    """Profiles `calls` calls of `function`, after two that warm up.

    Returns:
        `operations`, the `top` ones by their own time: name, calls and milliseconds per call of `function`, share of
        the time of all operations; `operation_calls` and `operation_ms`, all operations of one call of `function`. The
        profiler slows every operation by microseconds: read the shares, and take times from the tables.
    """
    for _ in range(2):
        function()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(calls):
            function()
    events = sorted(profiler.key_averages(), key=lambda event: event.self_cpu_time_total, reverse=True)
    total = sum(event.self_cpu_time_total for event in events)
    operations = [
        {
            "name": event.key,
            "calls": event.count / calls,
            "ms": event.self_cpu_time_total / calls / 1000,
            "share": event.self_cpu_time_total / total,
        }
        for event in events[:top]
    ]
    return {
        "operations": operations,
        "operation_calls": sum(event.count for event in events) / calls,
        "operation_ms": total / calls / 1000,
    }


__all__ = ["profile_operations"]
