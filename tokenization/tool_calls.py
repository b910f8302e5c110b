# SPDX-License-Identifier: Apache-2.0
r"""Tool calls as text: what the chat template writes, and the parser that reads it back.

```
<longcat_tool_call>get_weather
<longcat_arg_key>city</longcat_arg_key>
<longcat_arg_value>Paris</longcat_arg_value>
<longcat_arg_key>days</longcat_arg_key>
<longcat_arg_value>3</longcat_arg_value>
</longcat_tool_call>
```

The format writes strings as they are and everything else as JSON, so that the string `"3"` and the number `3` would
look the same. `chat_template.jinja` and this file follow one rule that tells them apart:

* A value that is not a string is JSON.
* A string is written as it is, whitespace and line breaks included, unless it could be read as JSON
  ([`looks_like_json`]) or contains a LongCat marker (`<longcat_` or `</longcat_`) or a lone surrogate. Then it is a
  JSON string in quotes: `"3"`.
* A key is written as it is, unless it has whitespace around it, begins and ends with a quote, or contains a marker or
  a lone surrogate. Then it is a JSON string.
* In JSON, the `<` of a marker is `\u003c`, so that no argument can contain a control token.

So prose, code, paths and dates stay unquoted, as other runtimes expect them, and every JSON value comes back equal
without a schema. A runtime that reads a string parameter word for word keeps the quotes of the rare quoted string.
Pass `tools` to the parser here, and it removes them, or keeps the text word for word if the model wrote no quotes.

Nothing here evaluates text as Python.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

from transformers.utils import get_json_schema

from tokenization.special_tokens import SPECIAL_TOKENS

CALL_OPEN, CALL_CLOSE = "<longcat_tool_call>", "</longcat_tool_call>"
KEY_OPEN, KEY_CLOSE = "<longcat_arg_key>", "</longcat_arg_key>"
VALUE_OPEN, VALUE_CLOSE = "<longcat_arg_value>", "</longcat_arg_value>"

_ANY_MARKER = re.compile("|".join(re.escape(token.content) for token in SPECIAL_TOKENS))
# Outside a call only these matter: the content may mention other markers.
_OUTER_MARKER = re.compile(r"</?longcat_(?:tool_call|arg_key|arg_value)>|</longcat_s>")
_AFTER_THE_TURN = re.compile(r"(?:</longcat_s>|<longcat_pad>|\s)*")
_SPACE = re.compile(r"\s*")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class Function(TypedDict):
    """The `function` entry of a [`ToolCall`]."""

    name: str
    arguments: dict[str, Any]


class ToolCall(TypedDict):
    """A tool call in the `tool_calls` of an assistant message."""

    type: str
    function: Function


class ToolCallError(ValueError):
    """Text that is not a tool call, or a tool call that cannot be written as text.

    Args:
        message (`str`): What is wrong, naming the call, argument or marker.
        position (`int`, *optional*): Where it is in the parsed text, in characters from the start.
    """

    def __init__(self, message: str, position: int | None = None):
        super().__init__(message if position is None else f"{message} (at character {position})")
        self.position = position


def looks_like_json(text: str) -> bool:
    """Whether `text` has the outer shape of a JSON value.

    True for every JSON text and few others, and simple enough for a chat template: `true`, `false` or `null`, anything
    that `float` reads, or a text between matching quotes, brackets or braces.
    """
    text = text.strip()
    if text in ("true", "false", "null"):
        return True
    if any(text.startswith(left) and text.endswith(right) for left, right in ('""', "[]", "{}")):
        return True
    try:
        float(text)
    except ValueError:
        return False
    return True


def render_tool_call(name: str, arguments: Mapping[str, Any]) -> str:
    """Write one tool call, exactly as the chat template does.

    Args:
        name (`str`): Name of the function: one line, without surrounding whitespace, `<` or `>`.
        arguments (`Mapping[str, Any]`): JSON values by parameter name.

    Raises:
        [`ToolCallError`]: the name cannot be written, a key is not a string, or a value is not JSON.
    """
    if problem := _name_problem(name):
        raise ToolCallError(f"tool call {name!r}: {problem}")
    if not isinstance(arguments, Mapping):
        raise ToolCallError(f"tool call {name!r}: arguments must be a dict, not {type(arguments).__name__}")
    lines = [f"{CALL_OPEN}{name}\n"]
    for key, value in arguments.items():
        if not isinstance(key, str):
            raise ToolCallError(f"tool call {name!r}: the argument name {key!r} is not a string")
        raw_key = key == key.strip() and not (key.startswith('"') and key.endswith('"')) and _is_plain(key)
        raw_value = isinstance(value, str) and not looks_like_json(value) and _is_plain(value)
        lines.append(f"{KEY_OPEN}{key if raw_key else _json_text(key, key)}{KEY_CLOSE}\n")
        lines.append(f"{VALUE_OPEN}{value if raw_value else _json_text(value, key)}{VALUE_CLOSE}\n")
    lines.append(CALL_CLOSE)
    return "".join(lines)


def parse_tool_calls(
    text: str, tools: Sequence[dict[str, Any] | Callable] | None = None
) -> tuple[str, list[ToolCall]]:
    """Split what an assistant wrote into its content and its tool calls.

    Args:
        text (`str`):
            The decoded turn without its `<longcat_assistant>` header; `</longcat_s>` and padding may follow it. Decode
            it without `skip_special_tokens`.
        tools (`Sequence[dict | Callable]`, *optional*):
            The tools as given to `apply_chat_template`. A parameter declared as a string then stays a string even if
            its text could be read as JSON. Nothing else changes: arguments are not checked against their schema.

    Returns:
        `tuple[str, list[ToolCall]]`: All text outside the calls, without the whitespace that follows a call, and the
        calls in order. Calls keep the message form: `{"type": "function", "function": {"name", "arguments"}}`.

    Raises:
        [`ToolCallError`]: a call is cut off or malformed; the message says what and where.

    Example:

    ```python
    >>> parse_tool_calls("On it.<longcat_tool_call>now\n</longcat_tool_call></longcat_s>")
    ('On it.', [{'type': 'function', 'function': {'name': 'now', 'arguments': {}}}])
    ```
    """
    types_of = _declared_types(tools or ())
    content: list[str] = []
    calls: list[ToolCall] = []
    position = 0
    while marker := _OUTER_MARKER.search(text, position):
        content.append(text[position : marker.start()])
        if marker.group() == "</longcat_s>":
            rest = _skip(_AFTER_THE_TURN, text, marker.end())
            if rest < len(text):
                raise ToolCallError(f"text after </longcat_s>: {_glimpse(text, rest)}", rest)
            return "".join(content), calls
        if marker.group() != CALL_OPEN:
            raise ToolCallError(f"{marker.group()} outside a tool call", marker.start())
        function, position = _parse_call(text, marker.end(), types_of)
        calls.append({"type": "function", "function": function})
        position = _skip(_SPACE, text, position)
    content.append(text[position:])
    return "".join(content), calls


def _parse_call(text: str, start: int, types_of: Mapping[str, Mapping[str, set[str]]]) -> tuple[Function, int]:
    """Parse from just after `<longcat_tool_call>` to just after its end marker."""
    start = _skip(_SPACE, text, start)
    marker = _ANY_MARKER.search(text, start)
    if marker is None:
        raise ToolCallError(f"{CALL_OPEN} is never closed", start)
    line_end = text.find("\n", start, marker.start())
    position = marker.start() if line_end < 0 else line_end
    name = text[start:position].strip()
    if problem := _name_problem(name):
        raise ToolCallError(f"tool call {name!r}: {problem}", start)
    arguments: dict[str, Any] = {}
    while True:
        position = _skip(_SPACE, text, position)
        if text.startswith(CALL_CLOSE, position):
            return {"name": name, "arguments": arguments}, position + len(CALL_CLOSE)
        key_text, after_key = _between(text, position, KEY_OPEN, KEY_CLOSE, f"{KEY_OPEN} or {CALL_CLOSE}")
        key = _decode_key(key_text.strip())
        if key in arguments:
            raise ToolCallError(f"tool call {name!r}: argument {key!r} is given twice", position)
        value_at = _skip(_SPACE, text, after_key)
        value_text, position = _between(text, value_at, VALUE_OPEN, VALUE_CLOSE, VALUE_OPEN)
        try:
            arguments[key] = _decode_value(value_text, types_of.get(name, {}).get(key, set()))
        except ToolCallError as error:
            raise ToolCallError(f"tool call {name!r}: argument {key!r}: {error}", value_at) from None


def _between(text: str, position: int, opening: str, closing: str, expected: str) -> tuple[str, int]:
    """The text between `opening`, expected at `position`, and `closing`, and the position after `closing`."""
    if not text.startswith(opening, position):
        found = _glimpse(text, position)
        raise ToolCallError(f"expected {expected}, found {found}", position)
    start = position + len(opening)
    marker = _ANY_MARKER.search(text, start)
    if marker is None:
        raise ToolCallError(f"{opening} is never closed", position)
    if marker.group() != closing:
        raise ToolCallError(f"{marker.group()} where {closing} is expected", marker.start())
    return text[start : marker.start()], marker.end()


def _decode_key(text: str) -> str:
    if text.startswith('"') and text.endswith('"'):
        try:
            return _strict_json(text)
        except ValueError:
            return text
    return text


def _decode_value(text: str, declared: set[str]) -> Any:
    """Undo the rule for values; `declared` has the JSON types of the schema, and is empty without one."""
    if not looks_like_json(text):
        return text
    try:
        value = _strict_json(text)
    except json.JSONDecodeError:
        return text
    except ToolCallError:
        if "string" in declared:
            return text
        raise
    if "string" in declared and declared.isdisjoint(_json_types(value)):
        return text
    return value


def _strict_json(text: str) -> Any:
    """Decode JSON and nothing else: `json.loads` also accepts NaN, Infinity and repeated keys."""
    problems: list[str] = []

    def number(digits: str) -> int | float:
        try:
            value = float(digits) if set(digits) & set(".eE") else int(digits)
        except ValueError:
            value = float("inf")
        if value in (float("inf"), float("-inf")):
            problems.append(f"the number {digits[:20]}... is out of range")
        return value

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(value := dict(pairs)) < len(pairs):
            problems.append("an object has a key twice")
        return value

    # Problems are noted, not raised, until the text is known to be JSON: "[NaN] in row 3" is prose.
    try:
        value = json.loads(
            text,
            parse_int=number,
            parse_float=number,
            parse_constant=lambda name: problems.append(f"{name} is not JSON"),
            object_pairs_hook=mapping,
        )
    except RecursionError:
        raise ToolCallError("the JSON is nested too deeply") from None
    if problems:
        raise ToolCallError(problems[0])
    return value


def _json_types(value: Any) -> set[str]:
    if value is None:
        return {"null"}
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, int):
        return {"integer", "number"}
    return {{float: "number", str: "string", list: "array", dict: "object"}[type(value)]}


def _declared_types(tools: Sequence[dict[str, Any] | Callable]) -> dict[str, dict[str, set[str]]]:
    """The JSON types that the schemas allow, by name of the function and of the parameter."""
    declared = {}
    for tool in tools:
        schema = tool if isinstance(tool, dict) else get_json_schema(tool)
        function = schema.get("function", schema)
        properties = (function.get("parameters") or {}).get("properties") or {}
        declared[function.get("name")] = {key: _schema_types(value) for key, value in properties.items()}
    return declared


def _schema_types(schema: Any) -> set[str]:
    if not isinstance(schema, dict):
        return set()
    types = schema.get("type") or ()
    found = {types} if isinstance(types, str) else set(types)
    for choice in [*(schema.get("anyOf") or ()), *(schema.get("oneOf") or ())]:
        found |= _schema_types(choice)
    return found | {"null"} if schema.get("nullable") else found


def _name_problem(name: str) -> str | None:
    if not name:
        return "the name is empty"
    if name.startswith("{"):
        return "the call is a JSON object; LongCat-Flash-Lite writes a name and arg_key/arg_value pairs"
    if name != name.strip() or len(name.splitlines()) > 1 or "<" in name or ">" in name:
        return "the name must be one line without surrounding whitespace, '<' or '>'"
    return None


def _is_plain(text: str) -> bool:
    return "<longcat_" not in text and "</longcat_" not in text and not _LONE_SURROGATE.search(text)


def _json_text(value: Any, key: str) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ToolCallError(f"argument {key!r} is not JSON: {error}") from error
    if _LONE_SURROGATE.search(text):
        text = json.dumps(value)
    return text.replace("</longcat_", "\\u003c/longcat_").replace("<longcat_", "\\u003clongcat_")


def _skip(pattern: re.Pattern[str], text: str, position: int) -> int:
    """Where the match of a pattern that may match nothing ends."""
    match = pattern.match(text, position)
    assert match is not None
    return match.end()


def _glimpse(text: str, position: int) -> str:
    return repr(text[position : position + 40]) if position < len(text) else "the end of the text"
