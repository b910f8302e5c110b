# SPDX-License-Identifier: Apache-2.0
"""Checks on the rows of a chat data set, made before training starts so that a mistake is named and not trained on."""

from typing import Any

from datasets import Dataset, IterableDataset

ROLES = ("system", "user", "assistant", "tool")


def check_chat_rows(rows: Dataset | IterableDataset, split: str) -> None:
    """Raise a `ValueError` that names the first row of `rows` whose `messages` cannot be trained on.

    Data sets without a `messages` column (plain text, prompt and completion) are left to TRL, and so are streams.

    Args:
        rows (`Dataset` or `IterableDataset`): The data set.
        split (`str`): Its name, for the error message.
    """
    if not isinstance(rows, Dataset) or "messages" not in rows.column_names:
        return
    for index, messages in enumerate(rows["messages"]):
        problem = problem_of(messages)
        if problem:
            raise ValueError(f"row {index} of `{split}`: {problem}")


def problem_of(messages: Any) -> str | None:
    """What keeps a conversation from being trained on, or `None`."""
    if not isinstance(messages, list) or not messages:
        return "`messages` must be a list with at least one message"
    for turn, message in enumerate(messages):
        role = message.get("role")
        if role not in ROLES:
            return f"`messages[{turn}].role` is {role!r}, choose from {', '.join(ROLES)}"
        # An assistant turn may consist of tool calls alone.
        if message.get("content") is None and not message.get("tool_calls"):
            return f"`messages[{turn}].content` is missing"
    if all(message["role"] != "assistant" for message in messages):
        return "`messages` has no assistant turn, so nothing in it would be learned"
    return None
