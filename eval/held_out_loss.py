# SPDX-License-Identifier: Apache-2.0
"""Loss of a model on the answers of held-out conversations, the questions given."""

import torch
from rich.progress import track
from torch.nn.functional import cross_entropy

from eval.chat_rows import prompt_ids


@torch.no_grad()
def losses_by_answer(model, tokenizer, rows: list[list[dict]]) -> list[torch.Tensor]:
    """Nats of every token of each answer, its end of turn included: `[tokens]` float32 on the host.

    A conversation at a time: padding could not change a figure, but neither could it save much.
    """
    losses = []
    for messages in track(rows, description="held-out answers", transient=True):
        ids = prompt_ids(tokenizer, messages).to(model.device)  # [1, T]
        begin = prompt_ids(tokenizer, messages[:1], add_generation_prompt=True).shape[1]
        logits = model(ids, use_cache=False).logits[0, begin - 1 : -1].float()
        losses.append(cross_entropy(logits, ids[0, begin:], reduction="none").cpu())
    return losses


def answer_losses(model, tokenizer, rows: list[list[dict]]) -> torch.Tensor:
    """Nats of every answer token, over all rows: `[tokens]` float32."""
    return torch.cat(losses_by_answer(model, tokenizer, rows))


__all__ = ["answer_losses", "losses_by_answer"]
