# SPDX-License-Identifier: Apache-2.0
"""What a longer context is worth: loss by position, and whether the model continues rows with the right answer.

Shapes: B batch rows, T tokens, D hidden size.
"""

import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from eval.losses.text import plain_tokens
from training.data.local_text import documents

ROWS_AT_ONCE = 4
POSITIONS_AT_ONCE = 1024  # the logits of a whole long row would not fit into memory


@torch.no_grad()
def losses_by_position(model: Any, rows: torch.Tensor, rows_at_once: int = ROWS_AT_ONCE) -> torch.Tensor:
    """Loss of token t + 1 after tokens 0 to t in nats, mean over the rows: `[T - 1]`, float32, from `[B, T]` ids."""
    total = torch.zeros(rows.shape[1] - 1)
    for part in rows.split(rows_at_once):
        part = part.to(model.device)
        states = model.model(part, use_cache=False).last_hidden_state[:, :-1]  # [B, T - 1, D]
        pieces = zip(states.split(POSITIONS_AT_ONCE, 1), part[:, 1:].split(POSITIONS_AT_ONCE, 1), strict=True)
        losses = [cross_entropy(model.lm_head(x).float().mT, next_ids, reduction="none") for x, next_ids in pieces]
        total += torch.cat(losses, dim=1).sum(dim=0).cpu()
    return total / len(rows)


@torch.no_grad()
def found(model: Any, rows: torch.Tensor, answers: list[list[int]]) -> list[bool]:
    """For each row of `[B, T]` ids, whether greedy decoding continues it with exactly its answer."""
    right = []
    for part, wanted in zip(rows.split(ROWS_AT_ONCE), batched(answers, ROWS_AT_ONCE), strict=True):
        steps = max(map(len, wanted))
        options = {"do_sample": False, "max_new_tokens": steps, "eos_token_id": None}
        mask = torch.ones_like(part)
        said = model.generate(part, attention_mask=mask, **options)[:, part.shape[1] :].tolist()
        right += [tokens[: len(answer)] == answer for tokens, answer in zip(said, wanted, strict=True)]
    return right


def batched(values: list, size: int) -> list[list]:
    """Consecutive parts of at most `size`."""
    return [values[begin : begin + size] for begin in range(0, len(values), size)]


def document_rows(tokenizer, files: list[Path] | None, length: int, count: int) -> tuple[torch.Tensor, list[str]]:
    """The first `length` tokens of up to `count` documents that are long enough: `[B, T]` ids, and their names.

    Documents are drawn in the same random order every time.

    Raises:
        `ValueError`: if no document is long enough.
    """
    rows: list[list[int]] = []
    names: list[str] = []
    longest = 0
    # A token has about one character or more, so that much shorter texts need not be tokenized.
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
    """0, 16, 23, 32, 45, ..., `positions`: steps of half an octave."""
    edges = [0]
    while (edge := round(16 * 2 ** ((len(edges) - 1) / 2))) < positions:
        edges.append(edge)
    return [*edges, positions]


def loss_by_position(
    model, tokenizer, files: list[Path] | None, length: int, count: int, rows_at_once: int
) -> dict[str, Any]:
    """Mean loss in bins: bin i has the tokens that follow `edges[i] + 1` to `edges[i + 1]` other tokens."""
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


__all__ = ["bin_edges", "document_rows", "found", "loss_by_position", "losses_by_position"]
