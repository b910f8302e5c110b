# SPDX-License-Identifier: Apache-2.0
"""Timing of alternatives in pairs: each repeat runs every alternative once, one after the other.

On a shared machine the load changes from second to second. Both members of a pair see the same load, so the median of
the pairs' ratios says more than the ratio of two medians taken minutes apart.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class PairedTimes:
    """Seconds of every alternative, one entry a repeat; entries with the same index were taken together."""

    seconds: dict[str, list[float]]

    def median_ms(self, name: str) -> float:
        return 1000 * median(self.seconds[name])

    def ratio(self, slower: str, faster: str) -> float:
        """Median over the repeats of `slower / faster`."""
        pairs = zip(self.seconds[slower], self.seconds[faster], strict=True)
        return median(a / b for a, b in pairs)


def time_paired(
    alternatives: Mapping[str, Callable[[], object]], repeats: int, calls: int = 1, warm_up: int = 1
) -> PairedTimes:
    """Times every alternative `repeats` times, `calls` calls each, after `warm_up` calls that do not count.

    An entry is in seconds per call. The order rotates by one place each repeat, so that none always comes first.
    """
    for function in alternatives.values():
        for _ in range(warm_up):
            function()
    seconds: dict[str, list[float]] = {name: [] for name in alternatives}
    names = list(alternatives)
    for repeat in range(repeats):
        turn = repeat % len(names)
        for name in names[turn:] + names[:turn]:
            function = alternatives[name]
            begin = time.perf_counter()
            for _ in range(calls):
                function()
            seconds[name].append((time.perf_counter() - begin) / calls)
    return PairedTimes(seconds)


__all__ = ["PairedTimes", "time_paired"]
