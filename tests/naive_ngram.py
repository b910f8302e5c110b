# SPDX-License-Identifier: Apache-2.0
"""N-gram ids written as loops over Python integers, straight from the definition: the reference of the tests."""

from collections.abc import Collection, Sequence


def naive_lookback(
    tokens: Sequence[int],
    t: int,
    eos: Collection[int],
    positions: Sequence[int] | None = None,
    visible: Sequence[bool] | None = None,
) -> list[int]:
    """The tokens before `tokens[t]` that its n-grams may read, nearest first. Hidden ones are passed over."""
    if visible is not None and not visible[t]:
        return []
    seen, later = [], t
    for earlier in reversed(range(t)):
        if visible is not None and not visible[earlier]:
            continue
        if positions is not None:
            step = positions[later] - positions[earlier]
            # A mask says which tokens belong together: only positions that do not grow begin a document then.
            if positions[later] == 0 or (step != 1 if visible is None else step <= 0):
                break
        if tokens[earlier] in eos:
            break
        seen.append(tokens[earlier])
        later = earlier
    return seen


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
            for d, earlier in enumerate(naive_lookback(tokens, t, eos, positions, visible)[: n - 1], start=1):
                total += earlier * pow(base, d)
            column.append(total % rows)
        ids.append(column)
    return ids
