# SPDX-License-Identifier: Apache-2.0
"""Loss of a model on the answers of held-out conversations, the questions given."""

import json
from pathlib import Path

import torch
from rich.progress import track
from torch.nn.functional import cross_entropy

from tokenization.chat_messages import normalized_messages


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


def read_rows(path: Path, count: int | None = None) -> list[list[dict]]:
    """The question and answer that begin each of the first `count` conversations of a JSON Lines file.

    Raises:
        `ValueError`: naming the line that has no question and answer, or a tool call that cannot be written.
    """
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()[:count], start=1):
        messages = json.loads(line).get("messages") or []
        if [message["role"] for message in messages[:2]] != ["user", "assistant"]:
            raise ValueError(f"{path}, line {number}: `messages` must begin with a user and an assistant turn")
        try:
            rows.append(normalized_messages(messages[:2]))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    return rows


def prompt_ids(tokenizer, messages: list[dict], **options) -> torch.Tensor:
    """`[1, T]` tokens of a rendered conversation."""
    return tokenizer.apply_chat_template(messages, return_dict=True, return_tensors="pt", **options)["input_ids"]


__all__ = ["answer_losses", "losses_by_answer", "prompt_ids", "read_rows"]
