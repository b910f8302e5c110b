# SPDX-License-Identifier: Apache-2.0
"""Scores a generated tool call; lm-eval calls this for `pydoc_tool_call`."""

from typing import Any

from tokenization.tool_calls import ToolCallError, parse_tool_calls


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, int]:
    """Whether the text has exactly one well-formed call, of the right tool, with the right arguments: 0 or 1 each.

    `doc["call"]` is the right call as the chat template writes it.
    """
    _, (expected,) = parse_tool_calls(doc["call"])
    try:
        _, calls = parse_tool_calls(results[0])
    except ToolCallError:
        calls = []
    one = len(calls) == 1
    return {
        "one_call": int(one),
        "right_tool": int(one and calls[0]["function"]["name"] == expected["function"]["name"]),
        "right_call": int(calls == [expected]),
    }


__all__ = ["process_results"]
