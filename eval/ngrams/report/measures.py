# SPDX-License-Identifier: Apache-2.0
"""The figures of the n-gram report: hit rates and collisions, the most used rows as text, norms in a model.

Shapes: B batch rows, T tokens, D hidden size, S sub-tables, G distinct n-grams of an order.
"""

from typing import Any

import numpy as np
import torch
from rich.progress import track

from eval.ngrams.cache_hits import NEVER, frequency_order, previous_reads
from eval.ngrams.collisions import DistinctNgrams, count_collisions
from eval.ngrams.token_rows import curve_points
from modeling_longcat_lite import LongCatLiteConfig, LongCatLiteForCausalLM

SUMMED = ("collisions", "expected_collisions", "sharing", "expected_sharing")


def table_figures(config: LongCatLiteConfig, rows: np.ndarray, orders: list[DistinctNgrams]) -> list[dict]:
    """Hit rate and collisions of every table, from the rows `[T, S]` that the tokens read."""
    points = np.array(curve_points(len(rows))) - 1
    tables = []
    for table, size in enumerate(config.subtable_sizes):
        ngrams = orders[table // config.num_subtables_per_order]
        seen = np.cumsum(previous_reads(rows[:, table]) == NEVER)  # [T] distinct rows so far
        tables.append(
            {
                "table": table,
                "order": ngrams.order,
                "size_ratio": size / config.ngram_base_vocab_size,
                **count_collisions(rows[ngrams.first, table], size),
                "hit_rate_by_tokens": (seen[points] / size).tolist(),
            }
        )
    return tables


def order_figures(tables: list[dict]) -> dict[str, dict]:
    """`table_figures` of each order together, `"2-grams"` and so on; `ngrams` and collisions are means per table."""
    orders = {}
    for order in sorted({table["order"] for table in tables}):
        parts = [table for table in tables if table["order"] == order]
        rows = sum(part["rows"] for part in parts)
        curves = [[rate * part["rows"] for rate in part["hit_rate_by_tokens"]] for part in parts]
        orders[f"{order}-grams"] = {
            "tables": len(parts),
            "rows": rows,
            "ngrams": parts[0]["ngrams"],
            "hit_rate": sum(part["occupied"] for part in parts) / rows,
            **{key: sum(part[key] for part in parts) / len(parts) for key in SUMMED},
            "hit_rate_by_tokens": [sum(point) / rows for point in zip(*curves, strict=True)],
        }
    return orders


def ngram_texts(
    rows: np.ndarray, orders: list[DistinctNgrams], tokenizer, count: int, ngrams_per_row: int
) -> dict[str, list[dict]]:
    """The `count` most read rows of the first table of each order, with the text of the n-grams that read them.

    Args:
        rows (`np.ndarray` of shape `[T, S]`): The row that each token reads from each table.
        orders (`list[DistinctNgrams]`): The n-grams of the same tokens, order by order.
        tokenizer: Decodes them.
        count, ngrams_per_row (`int`): Rows per order, and n-grams per row; the most read first.
    """
    per_order = rows.shape[1] // len(orders)
    used = {}
    for place, ngrams in enumerate(orders):
        table = place * per_order
        row_of_ngram = rows[ngrams.first, table]  # [G]
        most_read, reads = (each[:count].tolist() for each in frequency_order(rows[:, table]))
        entries = []
        for row, row_reads in zip(most_read, reads, strict=True):
            readers = np.flatnonzero(row_of_ngram == row)
            readers = readers[np.argsort(-ngrams.reads[readers], kind="stable")]
            texts = []
            for one in readers[:ngrams_per_row]:
                tokens = ngrams.tokens[one].tolist()
                texts.append({"tokens": tokens, "text": decode(tokenizer, tokens), "reads": int(ngrams.reads[one])})
            entries.append({"table": table, "row": row, "reads": row_reads, "distinct": len(readers), "ngrams": texts})
        used[f"{ngrams.order}-grams"] = entries
    return used


def decode(tokenizer, tokens: list[int]) -> str:
    """The text of an n-gram, without the leading zeros that mean no token."""
    begin = next((place for place, token in enumerate(tokens) if token), len(tokens) - 1)
    return tokenizer.decode(tokens[begin:], clean_up_tokenization_spaces=False)


@torch.no_grad()
def branch_norms(model: LongCatLiteForCausalLM, tokens: torch.Tensor, window: int) -> dict[str, float]:
    """Mean L2 norms of the embedding and of the first attention (arXiv 2601.21204, section 3.2.4 and figure 5).

    The first attention adds its output to the embedding. In the paper's models without amplification that output was
    ten times as large as the embedding and drowned it; `config.embedding_amplification` prevents that.

    Args:
        model (`LongCatLiteForCausalLM`): With n-gram tables.
        tokens (`torch.Tensor` of shape `[T]`): Read in windows of `window` tokens.
        window (`int`): Tokens that the model reads at once.

    Returns:
        `dict`: `embedding`, after amplification; `attention`, which is added to it; `ratio` of the second to the
        first; and `word_term` and `ngram_terms`, the two parts of the embedding before amplification.
    """
    trunk: Any = model.base_model
    embedding, first = trunk.ngram_embeddings, trunk.layers[0]
    sums: dict[str, float] = {}

    def add(name: str, states: torch.Tensor) -> None:
        sums[name] = sums.get(name, 0.0) + states.float().norm(dim=-1).sum().item()

    def add_terms(module, inputs: tuple, output: torch.Tensor) -> None:
        words = inputs[0] * embedding.word_scale  # [B, T, D]
        add("word_term", words)
        add("ngram_terms", output - words)

    hooks = [
        embedding.register_forward_hook(add_terms),
        first.register_forward_pre_hook(lambda _, inputs: add("embedding", inputs[0])),
        first.self_attn[0].register_forward_hook(lambda _, inputs, output: add("attention", output[0])),
    ]
    try:
        for part in track(tokens.split(window), description="norms", transient=True):
            model(part[None].to(model.device), use_cache=False, logits_to_keep=1)
    finally:
        for hook in hooks:
            hook.remove()
    means = {name: total / len(tokens) for name, total in sums.items()}
    return {**means, "ratio": means["attention"] / means["embedding"]}


__all__ = ["branch_norms", "ngram_texts", "order_figures", "table_figures"]
