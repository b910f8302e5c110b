# SPDX-License-Identifier: Apache-2.0
"""Held-out conversations for evaluation: rows of `{"messages": [...]}`, rendered with a tokenizer's template."""

import json
from pathlib import Path

import torch

from tokenization.chat_messages import normalized_messages


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


__all__ = ["prompt_ids", "read_rows"]
