# SPDX-License-Identifier: Apache-2.0
"""Turn messages in OpenAI's format into what LongCat's chat template reads.

    {"role": "developer", ...}                          {"role": "system", ...}
    "function": {"name": "f", "arguments": '{"a": 1}'}  "function": {"name": "f", "arguments": {"a": 1}}

Jinja cannot decode JSON, and the template accepts `developer` for `system` only where a conversation begins.
"""

import json
from collections.abc import Sequence
from typing import Any

from tokenization.tool_calls import ToolCallError, render_tool_call


def normalized_messages(messages: Sequence[dict[str, Any]], name: str = "messages") -> list[dict[str, Any]]:
    """The messages with `developer` replaced by `system` and the arguments of tool calls decoded; the originals do not
    change.

    Args:
        messages (`Sequence[dict]`): A conversation.
        name (`str`, *optional*, defaults to `"messages"`): What errors call the list.

    Raises:
        `ValueError`: naming the tool call that the template could not write, and why.
    """
    return [normalized_message(message, f"{name}[{index}]") for index, message in enumerate(messages)]


def normalized_message(message: dict[str, Any], where: str) -> dict[str, Any]:
    """One message, which errors call `where`."""
    if not isinstance(message, dict):
        raise ValueError(f"`{where}` must have `role` and `content`, found {type(message).__name__}")
    changes: dict[str, Any] = {}
    if message.get("role") == "developer":
        changes["role"] = "system"
    calls = message.get("tool_calls")
    if calls:
        if not isinstance(calls, list):
            raise ValueError(f"`{where}.tool_calls` must be a list, found {type(calls).__name__}")
        changes["tool_calls"] = [normalized_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)]
    return {**message, **changes} if changes else message


def normalized_call(call: Any, where: str) -> dict[str, Any]:
    """One tool call with its arguments as a dictionary, with or without `function` around it, as given."""
    function = (call.get("function") or call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError(f"`{where}` must have a `function` with `name` and `arguments`, found {call!r}")
    given = function.get("arguments")
    arguments = decoded_arguments(given, where)
    try:
        render_tool_call(function["name"], arguments)
    except ToolCallError as error:
        raise ValueError(f"`{where}`: {error}") from error
    if not isinstance(given, str):
        return call
    decoded = {**function, "arguments": arguments}
    return {**call, "function": decoded} if call.get("function") else decoded


def decoded_arguments(arguments: Any, where: str) -> dict[str, Any]:
    """Arguments as a dictionary; `None` and an empty text mean no arguments."""
    if arguments is None or arguments == "":
        return {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"`{where}.function.arguments` is text that is not JSON: {error}") from error
    if not isinstance(arguments, dict):
        raise ValueError(
            f"`{where}.function.arguments` must be an object or the JSON text of one, found {type(arguments).__name__}"
        )
    return arguments


__all__ = ["normalized_messages"]
