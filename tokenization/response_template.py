# SPDX-License-Identifier: Apache-2.0
"""The response template that lets `tokenizer.parse_response` read tool calls.

transformers 5.13 and later keep it in `tokenizer_config.json` as `response_template`; the `response_schema` of
earlier versions is dropped on load. `parse_response` also wants the prompt, or `prefix=""`.

It agrees with [`~tool_calls.parse_tool_calls`] on every well-formed call whose keys are written raw. It cannot say
the rest, so prefer `parse_tool_calls` before a tool is run:

* It reports no mistake: a cut-off call is returned as far as it goes, a malformed pair is left out, of a repeated
  key the last value counts, NaN and Infinity pass.
* A key that had to be quoted keeps its quotes and escapes.
* With `tools=`, a string argument is cast to a declared type that is no string; a parameter declared as a string whose
  text the model wrote without quotes, such as `3`, is still read as JSON.
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
