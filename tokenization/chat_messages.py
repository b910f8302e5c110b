# SPDX-License-Identifier: Apache-2.0
"""Messages in OpenAI's format as LongCat's chat template reads them.

    {"role": "developer", ...}                          {"role": "system", ...}
    "function": {"name": "f", "arguments": '{"a": 1}'}  "function": {"name": "f", "arguments": {"a": 1}}

The template itself decodes no JSON, since Jinja cannot; it takes `developer` for `system` where a conversation begins.
"""

import json
from collections.abc import Sequence
from typing import Any

from tokenization.tool_calls import ToolCallError, render_tool_call


def normalized_messages(messages: Sequence[dict[str, Any]], name: str = "messages") -> list[dict[str, Any]]:
    """The messages with `developer` written as `system` and the arguments of tool calls decoded; none is changed in
    place.

    Args:
        messages (`Sequence[dict]`): A conversation.
        name (`str`, *optional*, defaults to `"messages"`): What errors call it.

    Raises:
        `ValueError`: naming the tool call that the template could not write, and why.
    """
    return [normalized_message(message, f"{name}[{index}]") for index, message in enumerate(messages)]


def normalized_message(message: dict[str, Any], where: str) -> dict[str, Any]:
    """One message, called `where` in errors."""
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
    """One tool call with its arguments as a dictionary, in the form that it came in."""
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
    """Arguments as a dictionary; `None` and an empty text are a call without any."""
    if arguments is None or arguments == "":
        return {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"`{where}.function.arguments` is text that is not JSON: {error}") from error
    if not isinstance(arguments, dict):
        raise ValueError(
            f"`{where}.function.arguments` must be an object, or one as JSON text, found {type(arguments).__name__}"
        )
    return arguments


__all__ = ["normalized_messages"]
