# SPDX-License-Identifier: Apache-2.0
"""The written form of tool calls, what the parser accepts and refuses, and what other runtimes read."""

import ast
import contextlib
import json
import re
from pathlib import Path

import pytest

import tokenization
from tokenization.tool_calls import ToolCallError, parse_tool_calls, render_tool_call


def call(name, arguments):
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def test_ordinary_strings_are_written_raw():
    ordinary = [
        *(
            "Paris",
            "2024-01-31",
            "10 Downing Street",
            "/tmp/a.txt",
            "a\n  b\n",
            "print('<b>')\n",
            "",
            "True",
            "[a](b)",
        ),
        *('"Yes," she said.', "x = {}", "def f():\n    return {'a': 1}\n", "天气 😀", "select 1;", "-v --all"),
    ]
    for value in ordinary:
        assert f"<longcat_arg_value>{value}</longcat_arg_value>" in render_tool_call("f", {"k": value})


def test_the_documented_form():
    rendered = render_tool_call(
        "get_weather", {"city": "Paris", "days": 3, "units": None, "tags": ["a"], "zip": "75001"}
    )
    assert rendered == (
        "<longcat_tool_call>get_weather\n"
        "<longcat_arg_key>city</longcat_arg_key>\n<longcat_arg_value>Paris</longcat_arg_value>\n"
        "<longcat_arg_key>days</longcat_arg_key>\n<longcat_arg_value>3</longcat_arg_value>\n"
        "<longcat_arg_key>units</longcat_arg_key>\n<longcat_arg_value>null</longcat_arg_value>\n"
        '<longcat_arg_key>tags</longcat_arg_key>\n<longcat_arg_value>["a"]</longcat_arg_value>\n'
        '<longcat_arg_key>zip</longcat_arg_key>\n<longcat_arg_value>"75001"</longcat_arg_value>\n'
        "</longcat_tool_call>"
    )


def test_what_models_write_beyond_our_own_rendering():
    loose = (
        "Sure.\n<longcat_tool_call>\n f <longcat_arg_key> k </longcat_arg_key><longcat_arg_value>1</longcat_arg_value>"
        "\n\n</longcat_tool_call>\n<longcat_tool_call>g</longcat_tool_call>\nDone.</longcat_s><longcat_pad><longcat_pad>"
    )
    assert parse_tool_calls(loose) == ("Sure.\nDone.", [call("f", {"k": 1}), call("g", {})])
    assert parse_tool_calls("No call, just <b>text</b>.") == ("No call, just <b>text</b>.", [])
    assert parse_tool_calls("</longcat_s>") == ("", [])


def value_of(text, tools=None):
    written = f"<longcat_arg_key>k</longcat_arg_key><longcat_arg_value>{text}</longcat_arg_value>"
    return parse_tool_calls(f"<longcat_tool_call>f\n{written}</longcat_tool_call>", tools)[1][0]["function"][
        "arguments"
    ]["k"]


def tool(schema):
    parameters = {"type": "object", "properties": {"k": schema}}
    return {"type": "function", "function": {"name": "f", "parameters": parameters}}


@pytest.mark.parametrize(
    "schema, text, expected",
    [
        ({"type": "string"}, "3", "3"),
        ({"type": "string"}, '"3"', "3"),
        ({"type": "string"}, '{"a": NaN}', '{"a": NaN}'),
        ({"type": ["string", "null"]}, "null", None),
        ({"type": ["string", "null"]}, "3", "3"),
        ({"anyOf": [{"type": "string"}, {"type": "integer"}]}, "3", 3),
        ({"anyOf": [{"type": "string"}, {"type": "integer"}]}, "3.5", "3.5"),
        ({"type": "string", "nullable": True}, "null", None),
        ({"type": "integer"}, "3", 3),
        ({"type": "integer"}, "three", "three"),
        ({}, "true", True),
    ],
)
def test_a_declared_string_stays_a_string(schema, text, expected):
    for tools in ([tool(schema)], [tool(schema)["function"]]):
        value = value_of(text, tools)
        assert value == expected
        assert type(value) is type(expected)


def test_tools_may_be_functions():
    def f(k: str):
        """Do it.

        Args:
            k: A text.
        """

    assert value_of("3", [f]) == "3"
    assert value_of("3") == 3


@pytest.mark.parametrize(
    "payload", ["__import__('os').getcwd()", "(1, 2)", "0x10", "'x'", "{1: 2}", "[1, 2,]", "b'x'"]
)
def test_python_is_never_evaluated(payload):
    assert value_of(payload) == payload


def test_the_source_calls_no_evaluator():
    forbidden = {"eval", "exec", "compile", "literal_eval", "pickle"}
    for path in Path(tokenization.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                assert called not in forbidden or (called == "compile" and node.func.value.id == "re"), path
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert not {alias.name for alias in node.names} & forbidden, path


@pytest.mark.parametrize(
    "text, message, position",
    [
        ("hi <longcat_tool_call>f\n", "<longcat_tool_call> is never closed", 22),
        ("</longcat_tool_call>", "</longcat_tool_call> outside a tool call", 0),
        ("<longcat_tool_call>\n</longcat_tool_call>", "the name is empty", 20),
        ('<longcat_tool_call>{"name": "f"}</longcat_tool_call>', "the call is a JSON object", 19),
        ("<longcat_tool_call>f\njunk</longcat_tool_call>", "found 'junk</longcat_tool_call>'", 21),
        ("<longcat_tool_call>f\n<longcat_arg_key>k</longcat_tool_call>", "</longcat_arg_key> is expected", 39),
        ("a</longcat_s>b", "text after </longcat_s>: 'b'", 13),
    ],
)
def test_errors_say_what_and_where(text, message, position):
    with pytest.raises(ToolCallError, match=re.escape(message)) as caught:
        parse_tool_calls(text)
    assert caught.value.position == position
    assert f"(at character {position})" in str(caught.value)


@pytest.mark.parametrize(
    "text, message",
    [
        ("NaN", "NaN is not JSON"),
        ('{"a": [-Infinity]}', "-Infinity is not JSON"),
        ("1e999", "out of range"),
        ("9" * 5000, "out of range"),
        ('{"a": 1, "a": 2}', "an object has a key twice"),
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
    ],
)
def test_what_is_nearly_json_is_refused_by_name(text, message):
    with pytest.raises(ToolCallError, match=f"tool call 'f': argument 'k': .*{message}"):
        value_of(text)


def test_a_repeated_argument_is_refused():
    pair = "<longcat_arg_key>k</longcat_arg_key><longcat_arg_value>1</longcat_arg_value>"
    with pytest.raises(ToolCallError, match="'k' is given twice"):
        parse_tool_calls(f"<longcat_tool_call>f\n{pair}{pair}</longcat_tool_call>")


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        ("", {}, "the name is empty"),
        ("a\nb", {}, "one line"),
        (" f", {}, "one line"),
        ("<f>", {}, "one line"),
        ("{f}", {}, "JSON object"),
        ("f", '{"k": 1}', "arguments must be a dict, not str"),
        ("f", {1: 2}, "the argument name 1 is not a string"),
        ("f", {"k": [float("nan")]}, "argument 'k' is not JSON"),
        ("f", {"k": float("inf")}, "argument 'k' is not JSON"),
        ("f", {"k": {1, 2}}, "argument 'k' is not JSON"),
        ("f", {"k": nested(100_000)}, "argument 'k' is not JSON"),
    ],
)
def test_what_cannot_be_written_is_refused(name, arguments, message):
    with pytest.raises(ToolCallError, match=message):
        render_tool_call(name, arguments)


def test_deep_but_sane_nesting_survives():
    assert value_of(json.dumps(nested(200))) == nested(200)


def read_as_other_runtimes_do(text, declared_string):
    """mlx-lm and FluentLLM, in essence: strip, then JSON unless the parameter is declared as a string."""
    pattern = r"<longcat_arg_key>(.*?)</longcat_arg_key>\s*<longcat_arg_value>(.*?)</longcat_arg_value>"
    found = {}
    for key, value in re.findall(pattern, text, re.DOTALL):
        value = value.strip()
        if not declared_string:
            with contextlib.suppress(ValueError):
                value = json.loads(value)
        found[key.strip()] = value
    return found


@pytest.mark.parametrize("declared_string", [True, False])
def test_other_runtimes_read_ordinary_arguments(declared_string):
    texts = {
        "path": "/tmp/a b.txt",
        "code": "if a < b:\n    print('<hi>')",
        "城市": "巴黎",
        "day": "2024-01-31",
        "empty": "",
    }
    assert read_as_other_runtimes_do(render_tool_call("f", texts), declared_string) == texts
    if not declared_string:
        rest = {"n": 3, "x": -1.5, "flag": True, "none": None, "deep": {"a": ["<b>", {"c": 1}]}, "zip": "75001"}
        assert read_as_other_runtimes_do(render_tool_call("f", rest), declared_string) == rest
