# SPDX-License-Identifier: Apache-2.0
"""Conversations with two tools, made from the documentation of the running Python and from sums.

    user       What does `str.join` do?                    Multiply 482 by 17.
    assistant  look_up(name="str.join")                    calculate(operation="multiply", a=482, b=17)
    tool       Concatenate any number of strings.          8194
    assistant  From the documentation: Concatenate ...     That is 8194.

Between them stand questions that need no tool. A conversation asks a few questions, each answered before the next.
The side that a name or a number falls on (train or held-out) depends on its hash alone, so every argument of a
held-out question is new to the model: it has to be copied. What is copied is written alike where it is read and where
it is said (names stand in backticks, answers begin on a line of their own), and so are its tokens. The same seed gives
the same conversations.
"""

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from transformers.utils import get_json_schema

from tokenization.tool_calls import ToolCall
from training.conversations import documentation_conversations, shorten, text_key

Side = Literal["train", "held-out"]
MAX_NAME_CHARS = 24
MAX_SUMMARY_CHARS = 48
LARGEST_NUMBER = 999
HELD_OUT_PERCENT = 10
MOST_QUESTIONS = 4  # of a conversation
PLAIN_SHARE = 0.15  # of questions that need no tool
SPOKEN_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.]*[A-Za-z0-9]")
LOOK_UP_FORMS = (
    "What does `{name}` do?",
    "What is `{name}`?",
    "Look up `{name}`.",
    "Explain `{name}` to me.",
    "I read `{name}` somewhere. What is that?",
)
CALCULATE_FORMS = (
    ("add", "What is {a} plus {b}?"),
    ("add", "Add {a} and {b}."),
    ("subtract", "What is {a} minus {b}?"),
    ("subtract", "How much is {a} less {b}?"),
    ("multiply", "What is {a} times {b}?"),
    ("multiply", "Multiply {a} by {b}."),
)
PLAIN_QUESTIONS = (
    ("Hello!", "Hello! Ask me about a name of Python, or for a sum."),
    ("Good morning.", "Good morning! Ask me about a name of Python, or for a sum."),
    ("Thank you.", "You are welcome."),
    ("Thanks for your help.", "You are welcome."),
    ("Who are you?", "I look up names of Python and do sums."),
    ("What can you do?", "I look up names of Python and do sums."),
)


def look_up(name: str) -> str:
    """Say what a name of Python does.

    Args:
        name: The dotted name.
    """
    try:
        return documentation()[name]
    except KeyError:
        raise ValueError(f"there is no documentation of {name}") from None


def calculate(operation: Literal["add", "subtract", "multiply"], a: int, b: int) -> int:
    """Compute with two integers.

    Args:
        operation: What to do.
        a: The first number.
        b: The second number.
    """
    return {"add": a + b, "subtract": a - b, "multiply": a * b}[operation]


TOOLS: tuple[Callable, ...] = (look_up, calculate)


@dataclass(frozen=True)
class Exchange:
    """A question, the call that answers it (`None` where none is needed), what the tool returns, and the answer."""

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
    """The first words of the documentation of each name that is short enough to ask for."""
    found = {}
    for conversation in documentation_conversations():
        name = conversation.name.removeprefix("builtins.")
        if len(name) <= MAX_NAME_CHARS and not name.startswith("topics.") and SPOKEN_NAME.fullmatch(name):
            # One line: what the tool says and what the assistant repeats then have the same tokens.
            found[name] = " ".join(shorten(" ".join(conversation.answer.split()), MAX_SUMMARY_CHARS).split())
    return found


def side_of(argument: str | int) -> Side:
    """The side that an argument of a call falls on, by its hash."""
    return "held-out" if int(text_key(str(argument)), 16) % 100 < HELD_OUT_PERCENT else "train"


@cache
def names(side: Side) -> list[str]:
    """The names of one side."""
    return [name for name in documentation() if side_of(name) == side]


@cache
def numbers(side: Side) -> list[int]:
    """The numbers of one side."""
    return [number for number in range(1, LARGEST_NUMBER + 1) if side_of(number) == side]


def look_up_exchange(side: Side, draw: random.Random) -> Exchange:
    """A question about a name of `side`."""
    name = draw.choice(names(side))
    call: ToolCall = {"type": "function", "function": {"name": "look_up", "arguments": {"name": name}}}
    result = look_up(name)
    return Exchange(draw.choice(LOOK_UP_FORMS).format(name=name), call, result, f"From the documentation:\n{result}")


def calculate_exchange(side: Side, draw: random.Random) -> Exchange:
    """A sum of two numbers of `side`."""
    operation, form = draw.choice(CALCULATE_FORMS)
    a, b = draw.choices(numbers(side), k=2)
    arguments = {"operation": operation, "a": a, "b": b}
    call: ToolCall = {"type": "function", "function": {"name": "calculate", "arguments": arguments}}
    result = str(calculate(**arguments))  # type: ignore[arg-type]
    return Exchange(form.format(a=a, b=b), call, result, f"That is {result}.")


def plain_exchange(draw: random.Random) -> Exchange:
    """A question that needs no tool."""
    question, answer = draw.choice(PLAIN_QUESTIONS)
    return Exchange(question, None, None, answer)


def conversations(count: int, side: Side, seed: int) -> Iterator[list[Exchange]]:
    """`count` conversations of one to `MOST_QUESTIONS` questions each."""
    draw = random.Random(f"{side} {seed}")
    for _ in range(count):
        yield [drawn_exchange(side, draw) for _ in range(draw.randint(1, MOST_QUESTIONS))]


def drawn_exchange(side: Side, draw: random.Random) -> Exchange:
    """An exchange of any kind."""
    if draw.random() < PLAIN_SHARE:
        return plain_exchange(draw)
    return draw.choice((look_up_exchange, calculate_exchange))(side, draw)


def row(exchanges: list[Exchange]) -> dict[str, Any]:
    """A conversation as a row of a chat data set: `{"messages": [...], "tools": [...]}`."""
    messages = [message for exchange in exchanges for message in exchange.messages()]
    return {"messages": messages, "tools": [get_json_schema(tool) for tool in TOOLS]}
