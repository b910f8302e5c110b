# SPDX-License-Identifier: Apache-2.0
"""Loss by position on long documents: a model that uses its context predicts better the further it has read.

Shapes: R rows, T tokens.
"""

import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from eval.long_context_cells import plain_tokens
from training.context_measures import losses_by_position
from training.local_text import documents


def document_rows(tokenizer, files: list[Path] | None, length: int, count: int) -> tuple[torch.Tensor, list[str]]:
    """The first `length` tokens of up to `count` documents that have so many: `[R, T]` ids, and their names.

    Documents are looked at in an order of its own, the same every time.

    Raises:
        `ValueError`: no document is so long.
    """
    rows: list[list[int]] = []
    names: list[str] = []
    longest = 0
    # A token has a character at least, or nearly so: what is shorter need not be tokenized.
    candidates = list(documents(files))
    random.Random(0).shuffle(candidates)
    for name, text in candidates:
        if len(rows) == count:
            break
        ids = plain_tokens(tokenizer, text) if len(text) >= length // 2 else []
        longest = max(longest, len(ids))
        if len(ids) >= length:
            rows.append(ids[:length])
            names.append(name)
    if not rows:
        raise ValueError(
            f"`--loss-length` is {length}, but the longest of the documents has {longest} tokens: give longer "
            "--documents, or a smaller --loss-length (0 for no loss)"
        )
    return torch.tensor(rows), names


def bin_edges(positions: int) -> list[int]:
    """0, 16, 23, 32, 45, ...: half octaves up to `positions`."""
    edges = [0]
    while (edge := round(16 * 2 ** ((len(edges) - 1) / 2))) < positions:
        edges.append(edge)
    return [*edges, positions]


def loss_by_position(
    model, tokenizer, files: list[Path] | None, length: int, count: int, rows_at_once: int
) -> dict[str, Any]:
    """Mean loss in bins of positions: bin b has the tokens that follow `edges[b]` + 1 to `edges[b + 1]` others."""
    rows, names = document_rows(tokenizer, files, length, count)
    losses = losses_by_position(model, rows, rows_at_once)  # [T - 1]
    edges = bin_edges(len(losses))
    return {
        "length": length,
        "rows": len(rows),
        "documents": names,
        "mean": losses.double().mean().item(),
        "edges": edges,
        "losses": [losses[begin:end].double().mean().item() for begin, end in pairwise(edges)],
    }


__all__ = ["bin_edges", "document_rows", "loss_by_position"]
