# SPDX-License-Identifier: Apache-2.0
"""Exact hit rates of caches of every size for a sequence of reads, in one pass each.

A read finds its row in a least-recently-used cache of C rows if fewer than C distinct other rows were read since the
last read of the same row. That number, the stack distance, does not depend on C (Mattson et al. 1970). For a static
cache of the C most frequent rows, one ranking of the rows is enough.

All arrays are int64 and have one element per read; a key identifies a row.
"""

import numpy as np

NEVER = -1


def previous_reads(keys: np.ndarray) -> np.ndarray:
    """For each read, the place of the last read of the same key; `NEVER` for a first read."""
    order = np.argsort(keys, kind="stable")
    previous = np.full(len(keys), NEVER, dtype=np.int64)
    again = keys[order[1:]] == keys[order[:-1]]
    previous[order[1:][again]] = order[:-1][again]
    return previous


def count_smaller_before(permutation: np.ndarray) -> np.ndarray:
    """For each element of a permutation of 0, 1, 2, ..., the number of smaller elements before it.

    Bit by bit from the highest: a smaller element first differs from a larger one in a bit that is 0 and 1. Before
    bit b, elements are grouped by their higher bits, each group in the order of the sequence; the group of an element
    begins at the element with the lower bits cleared, because a permutation has every value.
    """
    counts = np.zeros(len(permutation), dtype=np.int64)  # by value
    values = permutation
    places = np.arange(len(permutation))
    zeros_before = np.zeros(len(permutation) + 1, dtype=np.int64)
    for bit in reversed(range(max(1, len(permutation) - 1).bit_length())):
        is_one = (values >> bit) & 1
        np.cumsum(1 - is_one, out=zeros_before[1:])
        group = values >> (bit + 1) << (bit + 1)
        zeros = zeros_before[:-1] - zeros_before[group]  # before this element, inside its group
        counts[values] += is_one * zeros
        moved = np.where(is_one == 1, group + (1 << bit) + (places - group - zeros), group + zeros)
        regrouped = np.empty_like(values)
        regrouped[moved] = values
        values = regrouped
    return counts[permutation]


def stack_distances(previous: np.ndarray) -> np.ndarray:
    """For each read, the distinct other keys read since the last read of its own key; `NEVER` for a first read.

    Between p and i, the distinct keys are the reads j whose own previous read is at p or earlier. All reads up to p
    meet that condition too, so the answer is the count of j before i with previous[j] <= p, minus p + 1.
    """
    by_previous = np.argsort(previous, kind="stable")
    ranks = np.empty_like(previous)
    ranks[by_previous] = np.arange(len(previous))
    return np.where(previous == NEVER, NEVER, count_smaller_before(ranks) - (previous + 1))


def lru_hit_rates(distances: np.ndarray, sizes: list[int]) -> list[float]:
    """Share of the reads with these stack distances that hit a least-recently-used cache, for each size in rows."""
    return [float(np.mean((distances != NEVER) & (distances < size))) for size in sizes]


def frequency_order(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct keys, most read first, ties by key; and the number of reads of each."""
    distinct, counts = np.unique(keys, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return distinct[order], counts[order]


def static_hit_rates(first: np.ndarray, second: np.ndarray, sizes: list[int]) -> list[float]:
    """Share of the reads of `second` whose key is among the most frequent of `first`, for each number of keys."""
    ordered, _ = frequency_order(first)
    by_key = np.argsort(ordered)
    places = np.searchsorted(ordered, second, sorter=by_key).clip(max=len(ordered) - 1)
    ranks = np.where(ordered[by_key[places]] == second, by_key[places], len(ordered) + max(sizes))
    return [float(np.mean(ranks < size)) for size in sizes]


__all__ = ["NEVER", "frequency_order", "lru_hit_rates", "previous_reads", "stack_distances", "static_hit_rates"]
