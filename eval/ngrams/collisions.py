# SPDX-License-Identifier: Apache-2.0
"""The distinct n-grams of a text, and how many of them share a table row with another one because of the hash.

If G distinct n-grams read a table of R rows, there are `G - occupied rows` collisions: each row keeps one n-gram, and
every further one collides. Spread evenly at random, they would occupy `R (1 - (1 - 1/R)**G)` rows (balls in bins). The
n-gram ids are not such a hash, which is what the comparison shows (arXiv 2601.21204, section 3.2.2).

Shapes: T tokens, N highest n-gram order, R rows of a table, G distinct n-grams of an order.
"""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class DistinctNgrams:
    """The distinct n-grams of one order.

    Args:
        order (`int`): Tokens of an n-gram.
        first (`np.ndarray` of shape `[G]`): Place of the last token of its first occurrence.
        reads (`np.ndarray` of shape `[G]`): Number of its occurrences.
        tokens (`np.ndarray` of shape `[G, order]`): In the order of the text; 0 for a token before the document.
    """

    order: int
    first: np.ndarray
    reads: np.ndarray
    tokens: np.ndarray


def distinct_ngrams(contexts: np.ndarray) -> list[DistinctNgrams]:
    """The n-grams of each order from 2 up, from contexts `[N, T]`: farthest token first, the token itself last."""
    found = []
    base = int(contexts.max()) + 1
    shorter = contexts[-1]  # [T] a number for the n-gram without its farthest token
    for order in range(2, len(contexts) + 1):
        keys = shorter * base + contexts[-order]
        _, first, shorter, reads = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
        found.append(DistinctNgrams(order, first, reads, contexts[-order:, first].T))
    return found


def expected_collisions(ngrams: int, rows: int) -> float:
    """Expected collisions if each distinct n-gram reads one of `rows` rows at random."""
    return ngrams + rows * math.expm1(ngrams * math.log1p(-1 / rows))


def expected_sharing(ngrams: int, rows: int) -> float:
    """Expected number of n-grams that share their row with another one, at random."""
    return -ngrams * math.expm1((ngrams - 1) * math.log1p(-1 / rows))


def count_collisions(row_ids: np.ndarray, rows: int) -> dict:
    """Occupied rows, collisions and shared rows of distinct n-grams that read `row_ids` `[G]` of a table of `rows`."""
    ngrams = len(row_ids)
    _, each = np.unique(row_ids, return_counts=True)
    return {
        "rows": rows,
        "ngrams": ngrams,
        "occupied": len(each),
        "hit_rate": len(each) / rows,
        "collisions": ngrams - len(each),
        "expected_collisions": expected_collisions(ngrams, rows),
        "sharing": int(each[each > 1].sum()),
        "expected_sharing": expected_sharing(ngrams, rows),
    }


__all__ = ["DistinctNgrams", "count_collisions", "distinct_ngrams", "expected_collisions", "expected_sharing"]
