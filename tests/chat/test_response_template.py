# SPDX-License-Identifier: Apache-2.0
"""`tokenizer.parse_response` with the saved response template agrees with `parse_tool_calls`."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tokenization.tool_calls import parse_tool_calls, render_tool_call
from tokenization.train_tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["some text"], 275).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def message(content, calls):
    parsed = {"role": "assistant", "content": content}
    return {**parsed, "tool_calls": calls} if calls else parsed


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)
awkward = st.sampled_from(
    ["3", " 3", "true", "", " ", "a\n", '"x"', "{}", "NaN", "</longcat_arg_value>", "<longcat_user>", "\ud800"]
)
keys = st.from_regex(r"[a-z_]\w{0,6}", fullmatch=True)


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(
    st.sampled_from(["", "On it. ", "a\n\n", "<b>"]),
    st.lists(st.dictionaries(keys, awkward | values, max_size=2), max_size=2),
)
def test_it_agrees_with_parse_tool_calls(tokenizer, content, drawn):
    text = content + "".join(render_tool_call("files.read", arguments) for arguments in drawn) + "</longcat_s>"
    found = tokenizer.parse_response(text, prefix="")
    # Equality alone would let 1 pass for True and for 1.0.
    assert json.dumps(found, sort_keys=True) == json.dumps(message(*parse_tool_calls(text)), sort_keys=True)
    assert found["content"] == content
    assert len(found.get("tool_calls", [])) == len(drawn)


LOOSE = (
    "Sure.\n<longcat_tool_call>\n f<longcat_arg_key> k </longcat_arg_key><longcat_arg_value>1</longcat_arg_value>"
    "</longcat_tool_call>\n"
)


@pytest.mark.parametrize(
    "text",
    [
        "Just text.",
        "Just text.</longcat_s><longcat_pad><longcat_pad>",
        LOOSE,
        LOOSE + "<longcat_tool_call>g</longcat_tool_call> and so on</longcat_s>",
    ],
)
def test_it_agrees_on_what_models_write(tokenizer, text):
    assert tokenizer.parse_response(text, prefix="") == message(*parse_tool_calls(text))


def test_token_ids_a_prompt_and_a_stream(tokenizer):
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "U"}], add_generation_prompt=True)["input_ids"]
    text = "Hi" + render_tool_call("f", {"city": "Paris", "zip": "75001"}) + "</longcat_s>"
    call = {"type": "function", "function": {"name": "f", "arguments": {"city": "Paris", "zip": "75001"}}}
    expected = message("Hi", [call])
    ids = tokenizer(text).input_ids
    assert tokenizer.parse_response(ids, prefix=prompt) == expected
    stream = tokenizer.get_response_parser(prefix=prompt)
    for character in text:
        stream.feed(character)
    assert stream.finalize()[0] == expected


def test_trl_reads_the_same(tokenizer):
    trl = pytest.importorskip("trl.chat_template_utils")
    text = "Hi" + render_tool_call("f", {"city": "Paris", "zip": "75001"}) + "</longcat_s>"
    assert trl.parse_response(tokenizer, tokenizer(text).input_ids, prefix=[]) == message(*parse_tool_calls(text))


def test_declared_types_are_kept(tokenizer):
    properties = {"zip": {"type": "string"}, "days": {"type": "integer"}}
    tools = [
        {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": properties}}}
    ]
    text = render_tool_call("f", {"zip": "75001", "days": 3})
    assert tokenizer.parse_response(text, prefix="", tools=tools) == message(*parse_tool_calls(text, tools))


def test_a_cut_off_call_is_an_error_only_for_parse_tool_calls(tokenizer):
    text = render_tool_call("f", {"a": 1, "b": 2}).split("<longcat_arg_key>b")[0]
    found = tokenizer.parse_response(text, prefix="")
    assert found["tool_calls"][0]["function"] == {"name": "f", "arguments": {"a": 1}}
    with pytest.raises(ValueError, match="found the end of the text"):
        parse_tool_calls(text)
