# SPDX-License-Identifier: Apache-2.0
"""N-gram ids written as loops over Python integers, straight from the definition: the reference of the tests."""

from collections.abc import Collection, Sequence


def naive_lookback(
    tokens: Sequence[int],
    t: int,
    eos: Collection[int],
    positions: Sequence[int] | None = None,
    visible: Sequence[bool] | None = None,
) -> int:
    """How many tokens before `tokens[t]` its n-grams may read."""
    if visible is not None and not visible[t]:
        return 0
    reach = 0
    while reach < t:
        later, earlier = t - reach, t - reach - 1
        starts_document = positions is not None and (
            positions[later] == 0 or positions[later] != positions[earlier] + 1
        )
        is_padding = visible is not None and not visible[earlier]
        if starts_document or is_padding or tokens[earlier] in eos:
            break
        reach += 1
    return reach


def naive_ngram_ids(
    tokens: Sequence[int],
    sizes: Sequence[int],
    base: int,
    order: int,
    eos: Collection[int],
    positions: Sequence[int] | None = None,
    visible: Sequence[bool] | None = None,
) -> list[list[int]]:
    """Ids of one row of tokens, `[sub-table][token]`; sub-tables order-major, 2-grams first."""
    tables_per_order = len(sizes) // (order - 1)
    ids = []
    for i, rows in enumerate(sizes):
        n = 2 + i // tables_per_order
        column = []
        for t, token in enumerate(tokens):
            total = token if visible is None or visible[t] else 0
            for d in range(1, min(n - 1, naive_lookback(tokens, t, eos, positions, visible)) + 1):
                total += tokens[t - d] * pow(base, d)
            column.append(total % rows)
        ids.append(column)
    return ids
