# SPDX-License-Identifier: Apache-2.0
"""What a longer context is worth: loss by position, and needles found by length and depth.

Shapes: R rows, T tokens, D hidden.
"""

from typing import Any

import torch
from torch.nn.functional import cross_entropy

ROWS_AT_ONCE = 4
POSITIONS_AT_ONCE = 1024  # whose logits are held together: those of a long row would not fit


@torch.no_grad()
def losses_by_position(model: Any, rows: torch.Tensor, rows_at_once: int = ROWS_AT_ONCE) -> torch.Tensor:
    """Nats of token t + 1 behind tokens 0 to t, mean over the rows: `[T - 1]` float32 from `[R, T]` ids."""
    total = torch.zeros(rows.shape[1] - 1)
    for part in rows.split(rows_at_once):
        part = part.to(model.device)
        states = model.model(part, use_cache=False).last_hidden_state[:, :-1]  # [R, T - 1, D]
        pieces = zip(states.split(POSITIONS_AT_ONCE, 1), part[:, 1:].split(POSITIONS_AT_ONCE, 1), strict=True)
        losses = [cross_entropy(model.lm_head(x).float().mT, next_ids, reduction="none") for x, next_ids in pieces]
        total += torch.cat(losses, dim=1).sum(dim=0).cpu()
    return total / len(rows)


@torch.no_grad()
def found(model: Any, rows: torch.Tensor, answers: list[list[int]]) -> list[bool]:
    """For each of `[R, T]` rows, whether the model goes on with its answer, token by token and greedily."""
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


__all__ = ["found", "losses_by_position"]
