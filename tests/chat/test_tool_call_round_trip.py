# SPDX-License-Identifier: Apache-2.0
"""Random tool calls survive the chat template, the tokenizer and the parser; mutilated ones give an error."""

import json
import re
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenization.special_tokens import SPECIAL_TOKENS
from tokenization.tool_calls import ToolCallError, parse_tool_calls, render_tool_call
from tokenization.train_tokenizer import train_tokenizer

TOKENIZER = train_tokenizer(["The weather in Paris: 3 days, {'a': [1, 2]}. <html> 天气 été\n"] * 4, 320)
MARKERS = [token.content for token in SPECIAL_TOKENS]

CONFUSABLE = [
    *("3", "-0", "1e5", "1E400", " 3 ", "3.0", "007", "1_000", "٣", "true", "null", "\ttrue\n", "True", "None"),
    *("NaN", "-Infinity", "inf", '"', '""', '"quoted"', '"open', "'x'", "{}", "[]", "[", "{,}", '{"a": 1}', "[NaN]"),
    *("\\", "\\u003c", "\\ud800", "\ufeff{}", "<", "</"),
    *("<longcat_", "</longcat_arg_value", "a</longcat_arg_value>b", "<longcat_tool_call>f\n</longcat_tool_call>"),
    *("\\<longcat_user>", "</longcat_s>", "", " ", "\n", "\r\n", "\x00", "\x85", "a\n"),
    *("\u2028", "\ud800", "x\udfffy"),
]
LONG = ["[" * 5000, "[" * 5000 + "]", "9" * 5000, "[" + "9" * 5000, "{" * 5000 + "}", "a\n" * 5000]
fragments = st.sampled_from([*MARKERS, *CONFUSABLE, "<b>", "天", "😀"])
text = st.text(max_size=8) | st.sampled_from(CONFUSABLE) | st.tuples(fragments, fragments).map("".join)
numbers = st.integers() | st.sampled_from([10**60, -(2**63)]) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | text,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(text, inner, max_size=2),
    max_leaves=4,
)
names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.:/-]{0,12}", fullmatch=True) | st.sampled_from(["得到天气", "a b"])
arguments = st.dictionaries(text, values, max_size=3)
contents = st.text(max_size=8)


def call(name, arguments):
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def assert_same(found, expected):
    # Equality alone would let 1 pass for True and for 1.0.
    assert json.dumps(found) == json.dumps(expected)


def through_tokens(content, calls):
    message = {"role": "assistant", "content": content, "tool_calls": calls}
    ids = TOKENIZER.apply_chat_template([message], return_dict=False)
    return TOKENIZER.decode(ids).removeprefix(" <longcat_assistant>")


def random_text(rng):
    kind = rng.randrange(3)
    if kind == 0:
        return rng.choice(CONFUSABLE)
    if kind == 1:
        return "".join(rng.choices([*MARKERS, *CONFUSABLE, "<b>", "天", "😀", "&lt;", " and "], k=rng.randrange(1, 5)))
    return "".join(
        chr(rng.choice([rng.randrange(128), rng.randrange(0xD800), rng.randrange(0x10000, 0x11000)])) for _ in range(8)
    )


def random_value(rng, depth=3):
    kind = rng.randrange(8 if depth else 6)
    if kind < 3:
        return random_text(rng)
    if kind == 3:
        return rng.choice([None, True, False, 10**60, -(2**63), 0, 1, -0.0, 1e-7, 1e300])
    if kind == 4:
        return rng.randrange(-1000, 1000)
    if kind == 5:
        return rng.uniform(-1, 1) * 10 ** rng.randrange(-20, 20)
    if kind == 6:
        return [random_value(rng, depth - 1) for _ in range(rng.randrange(4))]
    return {random_text(rng): random_value(rng, depth - 1) for _ in range(rng.randrange(4))}


def random_call(rng, fewest=0):
    name = rng.choice(["get_weather", "files.read", "a-b", "ns/tool:v1", "得到天气", "with space", "f"])
    return call(name, {random_text(rng): random_value(rng) for _ in range(rng.randrange(fewest, 5))})


def check_round_trip(content, calls):
    decoded = through_tokens(content, calls)
    assert decoded == content + "".join(render_tool_call(**c["function"]) for c in calls) + "</longcat_s>"
    assert_same(parse_tool_calls(decoded), (content, calls))


def test_1000_random_calls_come_back_equal_through_template_and_tokens():
    rng = Random(0)
    for _ in range(500):
        check_round_trip(rng.choice(["", "On it.", "a\n\n", "<b>天</b>"]), [random_call(rng), random_call(rng)])


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(contents, st.lists(st.builds(call, names, arguments), min_size=1, max_size=2))
def test_drawn_calls_come_back_equal_through_template_and_tokens(content, calls):
    check_round_trip(content, calls)


@pytest.mark.parametrize("value", LONG, ids=lambda value: f"{value[:2]!r}...")
def test_long_strings_come_back_equal(value):
    calls = [call("f", {"k": value, "nested": [value]})]
    assert parse_tool_calls(through_tokens("", calls)) == ("", calls)


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(arguments)
def test_arguments_hold_no_control_token(arguments):
    ids = TOKENIZER(render_tool_call("f", arguments)).input_ids
    controls = [token for token in TOKENIZER.convert_ids_to_tokens(ids) if token in MARKERS]
    pair = ["<longcat_arg_key>", "</longcat_arg_key>", "<longcat_arg_value>", "</longcat_arg_value>"]
    assert controls == ["<longcat_tool_call>", *pair * len(arguments), "</longcat_tool_call>"]


def mutilate(rng, whole):
    """Damage the structure of a call: cut it, drop, break, swap or add a marker, or repeat an argument."""
    spans = [match.span() for match in re.finditer(r"</?longcat_\w+>", whole)]
    start, end = rng.choice(spans)
    kind = rng.choice(["cut", "drop", "break", "swap", "insert", "repeat"])
    if kind == "cut":
        return whole[: rng.randrange(len(whole))]
    if kind == "break":
        at = rng.randrange(start, end)
        return whole[:at] + rng.choice(["", "x", " ", "\n"]) + whole[at + 1 :]
    if kind == "insert":
        at = rng.randrange(1, len(whole))
        return whole[:at] + rng.choice(MARKERS) + whole[at:]
    if kind == "repeat":
        pair = whole[spans[1][0] : spans[4][1]]
        return whole.replace(pair, pair + "\n" + pair, 1)
    (start, end), (other_start, other_end) = sorted([(start, end), rng.choice(spans)])
    marker, other = whole[start:end], whole[other_start:other_end]
    if kind == "drop" or marker == other:
        return whole[:start] + whole[end:]
    return whole[:start] + other + whole[end:other_start] + marker + whole[other_end:]


def test_1000_mutilated_calls_give_an_error_or_no_call():
    rng = Random(1)
    refused = 0
    for _ in range(1000):
        damaged = mutilate(rng, render_tool_call(**random_call(rng, fewest=1)["function"]))
        try:
            assert parse_tool_calls(damaged)[1] == [], damaged
        except ToolCallError:
            refused += 1
    assert refused > 900  # the others were cut before the first marker was complete


@settings(max_examples=500, derandomize=True, deadline=None, database=None)
@given(
    st.lists(st.sampled_from([*MARKERS[9:], *CONFUSABLE, "f\n", "<longcat_arg_key>k</longcat_arg_key>"]), max_size=10)
)
def test_any_text_gives_calls_or_an_error(pieces):
    try:
        content, calls = parse_tool_calls("".join(pieces))
    except ToolCallError:
        return
    for parsed in calls:
        assert_same(parse_tool_calls(render_tool_call(**parsed["function"])), ("", [parsed]))
    assert isinstance(content, str)
