# SPDX-License-Identifier: Apache-2.0
"""Loss of a model on the answers of held-out conversations, after their questions.

Shapes: T tokens.
"""

import json
from pathlib import Path

import torch
from rich.progress import track
from torch.nn.functional import cross_entropy

from tokenization.chat_messages import normalized_messages


@torch.no_grad()
def losses_by_answer(model, tokenizer, rows: list[list[dict]]) -> list[torch.Tensor]:
    """Loss of every token of each answer, its end of turn included, in nats: float32 on the CPU.

    Conversations are scored one at a time, since padding would save little.
    """
    losses = []
    for messages in track(rows, description="held-out answers", transient=True):
        ids = prompt_ids(tokenizer, messages).to(model.device)  # [1, T]
        begin = prompt_ids(tokenizer, messages[:1], add_generation_prompt=True).shape[1]
        logits = model(ids, use_cache=False).logits[0, begin - 1 : -1].float()
        losses.append(cross_entropy(logits, ids[0, begin:], reduction="none").cpu())
    return losses


def answer_losses(model, tokenizer, rows: list[list[dict]]) -> torch.Tensor:
    """Loss of every answer token of all rows in nats: `[answer tokens]`, float32 on the CPU."""
    return torch.cat(losses_by_answer(model, tokenizer, rows))


def read_rows(path: Path, count: int | None = None) -> list[list[dict]]:
    """The first question and answer of each of the first `count` conversations in a JSON Lines file.

    Raises:
        `ValueError`: naming the line without a question and an answer, or with a tool call that cannot be rendered.
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
    """Tokens of a rendered conversation: `[1, T]`."""
    return tokenizer.apply_chat_template(messages, return_dict=True, return_tensors="pt", **options)["input_ids"]


__all__ = ["answer_losses", "losses_by_answer", "prompt_ids", "read_rows"]
