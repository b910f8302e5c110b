# SPDX-License-Identifier: Apache-2.0
"""Design rules for n-gram tables, held against measured figures: those of arXiv 2601.21204, section 3.2, and one more.

A rule is `{"rule": ..., "value": ..., "limit": ..., "kept": ..., "text": ...}`; the text says what was found.
"""

import math

MOST_NGRAM_SHARE = 0.5  # section 3.2.1
# Section 3.2.2 asks for a size that "significantly deviates" from an integer multiple of the vocabulary. The spike of
# `eval.ngrams.report --ratios` is over at a distance of 0.01 vocabularies; this is twice that.
NEAREST_INTEGER = 0.02
LOUDEST_ATTENTION = 5.0  # half of the ratio that the paper found to drown the embedding (section 3.2.4)
FEWEST_OCCUPIED = 0.95  # of the rows that as many n-grams would occupy at random


def share_rule(ngram_share: float) -> dict:
    """How much of a model its n-gram parameters are."""
    return {
        "rule": "3.2.1, n-gram share",
        "value": ngram_share,
        "limit": MOST_NGRAM_SHARE,
        "kept": ngram_share <= MOST_NGRAM_SHARE,
        "text": f"{100 * ngram_share:.1f} % of all parameters are n-gram tables and projections; above "
        f"{100 * MOST_NGRAM_SHARE:.0f} % the paper found experts the better use of them.",
    }


def size_rule(tables: list[dict]) -> dict:
    """How near the size of a table is to an integer multiple of the base vocabulary."""

    def distance(table: dict) -> float:
        return abs(table["size_ratio"] - round(table["size_ratio"]))

    closest = min(tables, key=distance)
    return {
        "rule": "3.2.2, table size",
        "value": distance(closest),
        "limit": NEAREST_INTEGER,
        "kept": distance(closest) > NEAREST_INTEGER,
        "text": f"Table {closest['table']} has {closest['size_ratio']:.4f} rows for each token of the base vocabulary,"
        f" {distance(closest):.4f} from an integer; near one, 2-grams collide more often.",
    }


def norm_rule(norms: dict[str, float]) -> dict:
    """How loud the first attention is beside the embedding."""
    return {
        "rule": "3.2.4, embedding norm",
        "value": norms["ratio"],
        "limit": LOUDEST_ATTENTION,
        "kept": norms["ratio"] < LOUDEST_ATTENTION,
        "text": f"The first attention adds {norms['ratio']:.2f} times the norm of the embedding; in the paper's models"
        " it was about 10 times, and drowned it, until `embedding_amplification` was added.",
    }


def occupied_rule(tables: list[dict], base: int) -> dict:
    """How many rows the n-grams occupy of the table that uses its rows worst; not from the paper."""

    def share(table: dict) -> float:
        return table["occupied"] / (table["ngrams"] - table["expected_collisions"])

    worst = min(tables, key=share)
    factor = math.gcd(worst["rows"], base)
    reason = f"; its {worst['rows']:,} rows and the base vocabulary, {base:,}, have the factor {factor} in common"
    return {
        "rule": "occupied rows",
        "value": share(worst),
        "limit": FEWEST_OCCUPIED,
        "kept": share(worst) >= FEWEST_OCCUPIED,
        "text": f"The n-grams of this text occupy {100 * share(worst):.1f} % of the rows of table {worst['table']} "
        f"that they would at random{reason if factor > 1 else ''}.",
    }


__all__ = ["norm_rule", "occupied_rule", "share_rule", "size_rule"]
