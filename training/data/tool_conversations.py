# SPDX-License-Identifier: Apache-2.0
"""Conversations with two tools, made from the documentation of the running Python and from sums.

    user       What does `str.join` do?             What is 482 plus 17?
    assistant  lookup(name="str.join")              add(a=482, b=17)
    tool       Concatenate any number of strings.   499
    assistant  Python says:                         That is 499.
               Concatenate any number of strings.

Some questions in between need no tool. Conversations may omit the declaration of the tools, which is three times as
long as everything else: the tools are always the same two, and what has to be copied is then close by. Names are
methods of builtin types. A hash of a name or a sum decides which side (train or held-out) it belongs to, so every
held-out call is new to the model, and its arguments have to be copied. The type and the method of a held-out name
occur in other names, and the numbers of a held-out sum in other sums. What is copied is written in the same way where
it is read and where it is repeated (names in backticks, the tool's text on its own line), so its tokens are the same.
The same seed gives the same conversations.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from transformers.utils import get_json_schema

from tokenization.tool_calls import ToolCall
from training.data.documentation import docstring_conversations, shorten, text_key

Side = Literal["train", "held-out"]
MAX_SUMMARY_CHARS = 40
UNKNOWN = "There is no such method."
NUMBERS = range(10, 100)
HELD_OUT_PERCENT = 20
PLAIN_SHARE = 0.1  # of questions that need no tool
LOOKUP_FORMS = ("What does `{name}` do?", "Look up `{name}`.", "Explain `{name}` to me.")
ADD_FORMS = ("What is {a} plus {b}?", "Add {a} and {b}.", "How much is {a} plus {b}?")
PLAIN_QUESTIONS = (
    ("Hello!", "Hello! Ask me about Python, or for a sum."),
    ("Good morning.", "Good morning! Ask me about Python, or for a sum."),
    ("Thank you.", "You are welcome."),
    ("Thanks for your help.", "You are welcome."),
    ("Who are you?", "I look up Python and do sums."),
    ("What can you do?", "I look up Python and do sums."),
)


def lookup(name: str) -> str:
    """Look up a method of Python.

    Args:
        name: Type and method.
    """
    return documentation().get(name, UNKNOWN)


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: First number.
        b: Second number.
    """
    return a + b


TOOLS: tuple[Callable, ...] = (lookup, add)


@dataclass(frozen=True)
class Exchange:
    """A question, the call that answers it (`None` if none is needed), what the tool returns, and the answer."""

    question: str
    call: ToolCall | None
    result: str | None
    answer: str

    def messages(self) -> list[dict[str, Any]]:
        """The exchange as messages of a chat."""
        asked = {"role": "user", "content": self.question}
        answered = {"role": "assistant", "content": self.answer}
        if self.call is None:
            return [asked, answered]
        called = {"role": "assistant", "content": "", "tool_calls": [self.call]}
        return [asked, called, {"role": "tool", "content": self.result}, answered]


@cache
def documentation() -> dict[str, str]:
    """The first words of the docstring of every method that at least two builtin types have, by dotted name."""
    found = {}
    for conversation in docstring_conversations(["builtins"]):
        _, _, name = conversation.name.partition(".")
        if name.count(".") == 1 and name.replace(".", "").isalpha():
            # On one line the tool's text and what the assistant repeats have the same tokens.
            found[name] = shorten(" ".join(conversation.answer.split()), MAX_SUMMARY_CHARS)
    types_with = Counter(method_of(name) for name in found)
    return {name: text for name, text in found.items() if types_with[method_of(name)] > 1}


def method_of(name: str) -> str:
    """`join` of `str.join`."""
    return name.rpartition(".")[2]


def side_of(argument: str) -> Side:
    """The side that a name or a sum belongs to, by its hash."""
    return "held-out" if int(text_key(argument), 16) % 100 < HELD_OUT_PERCENT else "train"


@cache
def names(side: Side) -> list[str]:
    """The names of one side: to train on, every type with every method; held out, the documented names.

    Few types have most of the methods, but a model would memorize the few documented names instead of copying.
    """
    if side == "held-out":
        return [name for name in documentation() if side_of(name) == side]
    types = dict.fromkeys(name.partition(".")[0] for name in documentation())
    methods = dict.fromkeys(map(method_of, documentation()))
    return [name for kind in types for method in methods if side_of(name := f"{kind}.{method}") == side]


@cache
def sums(side: Side) -> list[tuple[int, int]]:
    """The pairs of numbers of one side."""
    return [(a, b) for a in NUMBERS for b in NUMBERS if side_of(f"{a} + {b}") == side]


def lookup_exchange(side: Side, draw: random.Random) -> Exchange:
    """A question about a name of `side`."""
    name = draw.choice(names(side))
    call: ToolCall = {"type": "function", "function": {"name": "lookup", "arguments": {"name": name}}}
    result = lookup(name)
    return Exchange(draw.choice(LOOKUP_FORMS).format(name=name), call, result, f"Python says:\n{result}")


def add_exchange(side: Side, draw: random.Random) -> Exchange:
    """A sum of `side`."""
    a, b = draw.choice(sums(side))
    call: ToolCall = {"type": "function", "function": {"name": "add", "arguments": {"a": a, "b": b}}}
    result = str(add(a, b))
    return Exchange(draw.choice(ADD_FORMS).format(a=a, b=b), call, result, f"That is {result}.")


def plain_exchange(draw: random.Random) -> Exchange:
    """A question that needs no tool."""
    question, answer = draw.choice(PLAIN_QUESTIONS)
    return Exchange(question, None, None, answer)


def drawn_exchange(side: Side, draw: random.Random) -> Exchange:
    """An exchange of any kind."""
    if draw.random() < PLAIN_SHARE:
        return plain_exchange(draw)
    return draw.choice((lookup_exchange, add_exchange))(side, draw)


def row(exchange: Exchange, declared: bool = True) -> dict[str, Any]:
    """An exchange as a row of a chat data set: `{"messages": [...], "tools": [...]}`; no tools unless `declared`."""
    return {"messages": exchange.messages(), "tools": [get_json_schema(tool) for tool in TOOLS] if declared else None}


def rows(count: int, side: Side, seed: int, declared_share: float = 1.0) -> Iterator[dict[str, Any]]:
    """`count` rows of one side, of which about `declared_share` declare the tools."""
    draw = random.Random(f"{side} {seed} {declared_share}")
    for _ in range(count):
        yield row(drawn_exchange(side, draw), declared=draw.random() < declared_share)
