# SPDX-License-Identifier: Apache-2.0
"""The response template with which `tokenizer.parse_response` reads tool calls.

transformers 5.13 and later keep it in `tokenizer_config.json` as `response_template`, and ignore the `response_schema`
of earlier versions. `parse_response` also needs the prompt, or `prefix=""`.

It agrees with [`~tool_calls.parse_tool_calls`] on every well-formed call whose keys are written without quotes. Use
`parse_tool_calls` before you run a tool, since a response template cannot express the rest:

* It reports no mistakes. It returns the beginning of a call that is cut off, skips a malformed pair, takes the last
  value of a repeated key, and accepts NaN and Infinity.
* A key that had to be quoted keeps its quotes and escapes.
* With `tools=`, it casts a string argument to a declared type other than string. If the parameter is a string and the
  model wrote its text without quotes, such as `3`, it still reads the text as JSON.
"""

from typing import Any

from tokenization.tool_calls import CALL_CLOSE, CALL_OPEN, KEY_CLOSE, KEY_OPEN, VALUE_CLOSE, VALUE_OPEN

RESPONSE_TEMPLATE: dict[str, Any] = {
    "defaults": {"role": "assistant", "content": ""},
    "start_anchor": "<longcat_assistant>",
    "fields": {
        "tool_calls": {
            "open_pattern": rf"{CALL_OPEN}\s*(?P<name>[^\n]+?)\s*(?:\n|(?={KEY_OPEN}|{CALL_CLOSE}))",
            "close_pattern": rf"{CALL_CLOSE}\s*",
            "repeats": True,
            "content": "xml-inline",
            "content_args": {
                "tag_pattern": (rf"{KEY_OPEN}\s*(?P<key>.*?)\s*{KEY_CLOSE}\s*{VALUE_OPEN}(?P<value>.*?){VALUE_CLOSE}"),
                "value_parser": {"name": "json", "args": {"allow_non_json": True, "strip": False}},
            },
            "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
        },
        # Text before and after a call is one content, as in `parse_tool_calls`.
        "content": {
            "close_pattern": r"</longcat_s>(?:</longcat_s>|<longcat_pad>|\s)*",
            "repeats": True,
            "join": "",
            "content": "text",
            "content_args": {"strip": False},
        },
    },
}
