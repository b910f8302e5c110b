# SPDX-License-Identifier: Apache-2.0
"""A reward that is easy to check by eye: how much of the known answer a completion begins with."""

from itertools import takewhile
from typing import Any

# The first characters show whether the question was understood; more would only measure memorization.
PREFIX_CHARS = 40


def answer_reward(completions: list[Any], answer: list[str], **kwargs: Any) -> list[float]:
    """Half for the share of the answer's first 40 characters that the completion begins with, half for all of it.

    Args:
        completions (`list`): Texts, or lists of messages, whose first message counts.
        answer (`list[str]`): The column `answer` of the rows.

    Returns:
        One number from 0 to 1 for each completion.
    """
    texts = [completion if isinstance(completion, str) else completion[0]["content"] for completion in completions]
    return [reward_of(text.strip(), expected.strip()) for text, expected in zip(texts, answer, strict=True)]


def reward_of(text: str, expected: str) -> float:
    """The reward of one text."""
    prefix = expected[:PREFIX_CHARS]
    alike = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(text, prefix, strict=False)))
    return 0.5 * alike / max(len(prefix), 1) + 0.5 * (text == expected)


__all__ = ["answer_reward"]
