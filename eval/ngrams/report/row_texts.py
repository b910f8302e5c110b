# SPDX-License-Identifier: Apache-2.0
"""Table rows as the text that stands behind them: the most used rows, and the n-grams that read each.

Shapes: T tokens, S tables, G distinct n-grams of an order.
"""

import numpy as np

from eval.ngrams.cache_hits import frequency_order
from eval.ngrams.collisions import DistinctNgrams


def ngram_text(tokenizer, tokens: list[int]) -> str:
    """The text of an n-gram, less the 0 that stands in front for what does not exist."""
    begin = next((place for place, token in enumerate(tokens) if token), len(tokens) - 1)
    return tokenizer.decode(tokens[begin:], clean_up_tokenization_spaces=False)


def most_used_rows(
    rows: np.ndarray, orders: list[DistinctNgrams], tokenizer, count: int, ngrams_per_row: int
) -> dict[str, list[dict]]:
    """The `count` rows that are read most, of the first table of each order, with the n-grams that read them.

    Args:
        rows (`np.ndarray` of shape `[T, S]`): The row that each token reads of each table.
        orders (`list[DistinctNgrams]`): The n-grams of the same tokens, order by order.
        tokenizer: Decodes them.
        count, ngrams_per_row (`int`): Rows an order, and n-grams a row; the most read first.
    """
    per_order = rows.shape[1] // len(orders)
    used = {}
    for place, ngrams in enumerate(orders):
        table = place * per_order
        row_of = rows[ngrams.first, table]  # [G]
        entries: list[dict] = []
        for row, reads in zip(*frequency_order(rows[:, table]), strict=True):
            if len(entries) == count:
                break
            behind = np.flatnonzero(row_of == row)
            behind = behind[np.argsort(-ngrams.reads[behind], kind="stable")]
            texts = [
                {
                    "tokens": ngrams.tokens[one].tolist(),
                    "text": ngram_text(tokenizer, ngrams.tokens[one].tolist()),
                    "reads": int(ngrams.reads[one]),
                }
                for one in behind[:ngrams_per_row]
            ]
            entries.append(
                {"table": table, "row": int(row), "reads": int(reads), "distinct": len(behind), "ngrams": texts}
            )
        used[f"{ngrams.order}-grams"] = entries
    return used


__all__ = ["most_used_rows", "ngram_text"]
