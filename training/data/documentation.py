# SPDX-License-Identifier: Apache-2.0
"""Question-and-answer conversations made from the documentation of the running Python.

Every machine with Python has this text: the docstrings of the standard library and the topics of `pydoc`. The same
Python always gives the same conversations in the same order, and nothing is downloaded.

    "What does str.join do?"  ->  "Concatenate any number of strings. ..."

Conversations are distinct by answer text. A hash of that text alone decides which side (train or held-out) a
conversation belongs to, so no answer is on both sides.
"""

import hashlib
import importlib
import inspect
import random
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pydoc_data.topics import topics
from types import ModuleType

# Modules that do something when imported (a browser, a poem), need a display, or are not a library.
SKIPPED_MODULES = frozenset(
    {"__main__", "antigravity", "idlelib", "lib2to3", "test", "this", "tkinter", "turtle", "turtledemo"}
)
MAX_ANSWER_CHARS = 160
MAX_TOPIC_TURNS = 2
HELD_OUT_PERCENT = 5
MIN_CORE_ANSWER_CHARS = 40
# An address in a docstring (`<object at 0x7f..>`) differs from one process to the next.
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


@dataclass(frozen=True)
class Conversation:
    """One subject, asked about in one or more turns: `turns` holds (question, answer) pairs."""

    name: str
    turns: tuple[tuple[str, str], ...]

    @property
    def question(self) -> str:
        """The first question."""
        return self.turns[0][0]

    @property
    def answer(self) -> str:
        """The first answer."""
        return self.turns[0][1]

    @property
    def is_builtin(self) -> bool:
        """Whether the subject is a builtin: the core of the language, no import needed."""
        return self.name.startswith("builtins.")

    def row(self) -> dict[str, list[dict[str, str]]]:
        """The conversation as a row of a chat data set: `{"messages": [...]}`."""
        messages = []
        for question, answer in self.turns:
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return {"messages": messages}


def text_key(text: str) -> str:
    """Hash of a text up to white space and case; equal keys mean the same text."""
    return hashlib.sha256(" ".join(text.split()).casefold().encode()).hexdigest()


def shorten(text: str, limit: int = MAX_ANSWER_CHARS) -> str:
    """The leading paragraphs, sentences or words of `text` that fit in `limit` characters."""
    if len(text) <= limit:
        return text
    head = text[: limit + 1]
    for boundary in ("\n\n", ".\n", ". ", "\n", " "):
        end = head.rfind(boundary)
        if end >= limit // 4:
            return head[: end + (boundary[0] == ".")].rstrip()
    return text[:limit]


def public_members(module: ModuleType) -> Iterator[tuple[str, object]]:
    """Yield (dotted name, object) for a module, its public functions and classes, and what its classes define."""
    yield module.__name__, module
    # `__all__` lists what is public. Without it, names that the module imported are excluded.
    exported = vars(module).get("__all__")
    for name in sorted(exported or vars(module)):
        member = vars(module).get(name)
        if name.startswith("_") or not (inspect.isroutine(member) or inspect.isclass(member)):
            continue
        if exported is None and (member.__module__ or "").lstrip("_") not in ("", module.__name__):
            continue
        yield f"{module.__name__}.{name}", member
        if inspect.isclass(member):
            for attribute, value in sorted(vars(member).items()):
                if not attribute.startswith("_") and (inspect.isroutine(value) or inspect.isdatadescriptor(value)):
                    yield f"{module.__name__}.{name}.{attribute}", value


def question_about(name: str, subject: object) -> str:
    """The question whose answer is the docstring of `subject`."""
    if inspect.ismodule(subject):
        return f"What is the {name} module for?"
    shown = name.removeprefix("builtins.")
    return f"What does {shown} do?" if inspect.isroutine(subject) else f"What is {shown}?"


def docstring_conversations(module_names: Iterable[str]) -> Iterator[Conversation]:
    """Yield one conversation for each documented public object of the modules, repeats included."""
    for module_name in module_names:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # deprecated modules are documented too
                module = importlib.import_module(module_name)
        except ImportError:  # of another operating system
            continue
        for name, subject in public_members(module):
            docstring = inspect.cleandoc(subject.__doc__).strip() if isinstance(subject.__doc__, str) else ""
            if docstring and not ADDRESS.search(docstring):
                yield Conversation(name, ((question_about(name, subject), shorten(docstring)),))


def topic_conversations() -> Iterator[Conversation]:
    """Yield one conversation of a few turns for each `pydoc` topic; no paragraph is repeated."""
    seen: set[str] = set()
    for topic in sorted(topics):
        paragraphs = []
        for paragraph in inspect.cleandoc(topics[topic]).split("\n\n"):
            if text_key(paragraph) not in seen and paragraph.strip("\n *=-~"):
                seen.add(text_key(paragraph))
                paragraphs.append(paragraph.strip("\n"))
        turns = []
        for turn, answer in enumerate(passages(paragraphs)[:MAX_TOPIC_TURNS]):
            turns.append((f"Explain the Python topic {topic}." if turn == 0 else "Go on.", answer))
        if turns:
            yield Conversation(f"topics.{topic}", tuple(turns))


def passages(paragraphs: list[str]) -> list[str]:
    """Join neighbouring paragraphs into passages of at most `MAX_ANSWER_CHARS`; longer paragraphs are shortened."""
    joined: list[str] = []
    for paragraph in map(shorten, paragraphs):
        if joined and len(joined[-1]) + 2 + len(paragraph) <= MAX_ANSWER_CHARS:
            joined[-1] += "\n\n" + paragraph
        else:
            joined.append(paragraph)
    return joined


def documentation_conversations() -> list[Conversation]:
    """All conversations of the running Python, distinct by answer text and sorted by name."""
    modules = sorted(name for name in sys.stdlib_module_names - SKIPPED_MODULES if not name.startswith("_"))
    return distinct([*docstring_conversations(modules), *topic_conversations()])


def distinct(conversations: Iterable[Conversation]) -> list[Conversation]:
    """Keep one conversation per answer text: builtins first, then the shortest name. Sorted by name."""
    kept: dict[str, Conversation] = {}
    for conversation in sorted(conversations, key=lambda c: (not c.is_builtin, len(c.name), c.name)):
        kept.setdefault(text_key(conversation.answer), conversation)
    return sorted(kept.values(), key=lambda c: c.name)


def is_held_out(conversation: Conversation) -> bool:
    """Whether the answer text hashes into the held-out part; the subject's name does not matter."""
    return int(text_key(conversation.answer), 16) % 100 < HELD_OUT_PERCENT


def split(conversations: Iterable[Conversation]) -> tuple[list[Conversation], list[Conversation]]:
    """Divide into (train, held-out) by the hash of the answer text."""
    train: list[Conversation] = []
    held_out: list[Conversation] = []
    for conversation in conversations:
        (held_out if is_held_out(conversation) else train).append(conversation)
    return train, held_out


def core_conversations(conversations: Iterable[Conversation]) -> list[Conversation]:
    """Conversations about builtins, with answers that are long enough to tell apart."""
    return [c for c in conversations if c.is_builtin and len(c.answer) >= MIN_CORE_ANSWER_CHARS]


def training_rounds(
    conversations: list[Conversation], core: list[Conversation], rounds: int, seed: int
) -> list[Conversation]:
    """A training order: every conversation once, for breadth, and the core ones once in each round.

    A round is the core and its share of the rest, shuffled.

    Args:
        conversations (`list[Conversation]`): The training side.
        core (`list[Conversation]`): The part of it to repeat.
        rounds (`int`): How often the core is seen.
        seed (`int`): Seed of the shuffling.
    """
    shuffle = random.Random(seed).shuffle
    repeated = set(core)
    rest = [conversation for conversation in conversations if conversation not in repeated]
    shuffle(rest)
    order: list[Conversation] = []
    for start in range(rounds):
        part = rest[start::rounds] + core
        shuffle(part)
        order += part
    return order
