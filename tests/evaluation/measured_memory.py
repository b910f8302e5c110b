# SPDX-License-Identifier: Apache-2.0
"""The bytes that a run holds at its peak, as torch's allocator reports them.

Not the size of the process: that counts libraries, and memory that the C library keeps for later.
"""

import gc
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile


def peak_growth(run: Callable[[], object]) -> int:
    """The most bytes that were allocated at a time beyond those before `run`."""
    gc.collect()  # what an earlier run left would be freed on the account of this one
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def held_by(model: torch.nn.Module) -> int:
    """Bytes of a model's parameters and buffers."""
    return sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
