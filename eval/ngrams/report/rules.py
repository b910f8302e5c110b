# SPDX-License-Identifier: Apache-2.0
"""Design rules for n-gram tables, applied to measured figures: those of arXiv 2601.21204, section 3.2, and one more.

A rule is `{"rule": ..., "value": ..., "limit": ..., "kept": ..., "text": ...}`; the text says what was found.
"""

import math

MOST_NGRAM_SHARE = 0.5  # section 3.2.1
# Section 3.2.2 asks for a size that "significantly deviates" from an integer multiple of the vocabulary. The spike of
# `eval.ngrams.report --ratios` has ended at a distance of 0.01 vocabularies; this is twice that.
NEAREST_INTEGER = 0.02
LOUDEST_ATTENTION = 5.0  # half of the ratio at which the embedding was drowned in the paper (section 3.2.4)
FEWEST_OCCUPIED = 0.95  # of the rows that as many n-grams would occupy at random


def _rule(name: str, value: float, limit: float, kept: bool, text: str) -> dict:
    return {"rule": name, "value": value, "limit": limit, "kept": kept, "text": text}


def share_rule(ngram_share: float) -> dict:
    """The share of n-gram parameters in a model."""
    text = (
        f"{100 * ngram_share:.1f} % of all parameters are in n-gram tables and projections. Above "
        f"{100 * MOST_NGRAM_SHARE:.0f} %, the paper found that experts are a better use of parameters."
    )
    return _rule("3.2.1, n-gram share", ngram_share, MOST_NGRAM_SHARE, ngram_share <= MOST_NGRAM_SHARE, text)


def size_rule(tables: list[dict]) -> dict:
    """How close the size of a table is to an integer multiple of the base vocabulary."""
    away, closest = min(
        ((abs(table["size_ratio"] - round(table["size_ratio"])), table) for table in tables), key=lambda pair: pair[0]
    )
    text = (
        f"Table {closest['table']} has {closest['size_ratio']:.4f} rows for each token of the base vocabulary, "
        f"{away:.4f} from an integer; close to an integer, 2-grams collide more often."
    )
    return _rule("3.2.2, table size", away, NEAREST_INTEGER, away > NEAREST_INTEGER, text)


def norm_rule(norms: dict[str, float]) -> dict:
    """How large the output of the first attention is compared with the embedding."""
    text = (
        f"The output of the first attention has {norms['ratio']:.2f} times the norm of the embedding. In the paper's "
        "models it had about 10 times the norm, and drowned the embedding, until `embedding_amplification` was added."
    )
    return _rule("3.2.4, embedding norm", norms["ratio"], LOUDEST_ATTENTION, norms["ratio"] < LOUDEST_ATTENTION, text)


def occupied_rule(tables: list[dict], base: int) -> dict:
    """How many rows the n-grams occupy in the table with the fewest occupied rows; not a rule of the paper."""
    share, worst = min(
        ((table["occupied"] / (table["ngrams"] - table["expected_collisions"]), table) for table in tables),
        key=lambda pair: pair[0],
    )
    factor = math.gcd(worst["rows"], base)
    reason = f"; its {worst['rows']:,} rows and the base vocabulary, {base:,}, have the common factor {factor}"
    text = (
        f"In table {worst['table']}, the n-grams of this text occupy {100 * share:.1f} % of the rows that they would "
        f"occupy at random{reason if factor > 1 else ''}."
    )
    return _rule("occupied rows", share, FEWEST_OCCUPIED, share >= FEWEST_OCCUPIED, text)


__all__ = ["norm_rule", "occupied_rule", "share_rule", "size_rule"]
