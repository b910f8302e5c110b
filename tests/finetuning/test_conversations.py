# SPDX-License-Identifier: Apache-2.0
"""Conversations made from Python's documentation: the same each time, distinct, and split without overlap."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from training.data.documentation import (
    MAX_ANSWER_CHARS,
    Conversation,
    core_conversations,
    distinct,
    documentation_conversations,
    shorten,
    split,
    text_key,
    training_rounds,
)


@pytest.fixture(scope="module")
def conversations() -> list[Conversation]:
    return documentation_conversations()


def answers(side: list[Conversation]) -> list[str]:
    return [text_key(answer) for conversation in side for _, answer in conversation.turns]


def test_thousands_of_distinct_conversations(conversations):
    assert len(conversations) > 3000
    first_answers = [text_key(conversation.answer) for conversation in conversations]
    assert len(set(first_answers)) == len(first_answers)
    assert any(len(conversation.turns) > 1 for conversation in conversations)
    assert all(0 < len(answer) <= MAX_ANSWER_CHARS for c in conversations for _, answer in c.turns)


def test_questions_name_the_subject_as_a_user_would(conversations):
    by_question = {conversation.question: conversation.answer for conversation in conversations}
    assert by_question["What does str.join do?"].startswith("Concatenate any number of strings.")
    assert by_question["What is the json module for?"].startswith("JSON (JavaScript Object Notation)")


def test_nothing_stands_on_both_sides(conversations):
    train, held_out = split(conversations)
    assert len(train) + len(held_out) == len(conversations)
    assert 0.03 < len(held_out) / len(conversations) < 0.08
    assert not set(answers(train)) & set(answers(held_out))


def test_duplicates_fall_on_one_side_whatever_their_name_and_spacing():
    texts = [f"Return item {index} of the list." for index in range(200)]
    originals = [Conversation(f"a.{i}", (("What?", text),)) for i, text in enumerate(texts)]
    copies = [Conversation(f"b.{i}", (("Which?", text.replace(" ", "\n  ")),)) for i, text in enumerate(texts)]
    _, held_out = split([*originals, *copies])
    names = {conversation.name for conversation in held_out}
    assert names
    assert {name[2:] for name in names if name[0] == "a"} == {name[2:] for name in names if name[0] == "b"}


def test_of_duplicates_the_builtin_and_then_the_shortest_name_is_kept():
    turns = (("What?", "The same text."),)
    kept = distinct([Conversation(name, turns) for name in ("os.path.x", "a.b", "builtins.str.long_name")])
    assert [conversation.name for conversation in kept] == ["builtins.str.long_name"]
    kept = distinct([Conversation(name, turns) for name in ("os.path.x", "a.b")])
    assert [conversation.name for conversation in kept] == ["a.b"]


def test_another_process_makes_the_same_conversations(conversations):
    program = (
        "import hashlib, json; from training.data.documentation import documentation_conversations as d\n"
        "print(hashlib.sha256(json.dumps([c.row() for c in d()]).encode()).hexdigest())"
    )
    root = Path(__file__).parents[2]
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=root,
            env={"PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_core_is_a_few_hundred_builtins_from_the_training_side(conversations):
    train, _ = split(conversations)
    core = core_conversations(train)
    assert 200 <= len(core) <= 400
    assert set(core) <= set(train)
    assert all(len(conversation.answer) >= 40 for conversation in core)


def test_rounds_repeat_the_core_and_show_the_rest_once(conversations):
    train, _ = split(conversations)
    core = core_conversations(train)
    order = training_rounds(train, core, rounds=3, seed=1)
    assert len(order) == len(train) + 2 * len(core)
    assert order.count(core[0]) == 3
    assert set(order) == set(train)
    assert order == training_rounds(train, core, rounds=3, seed=1)
    assert order != training_rounds(train, core, rounds=3, seed=2)


def test_rows_are_chat_messages():
    conversation = Conversation("x", (("Q1", "A1"), ("Q2", "A2")))
    assert [message["role"] for message in conversation.row()["messages"]] == ["user", "assistant"] * 2
    assert json.loads(json.dumps(conversation.row())) == conversation.row()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Short.", "Short."),
        ("One paragraph here.\n\nAnother one that is too long.", "One paragraph here."),
        ("One sentence here. Another sentence that runs on.", "One sentence here."),
        ("word " * 20, "word word word word word word"),
        ("x" * 50, "x" * 30),
    ],
)
def test_shorten_cuts_at_the_largest_boundary(text, expected):
    assert shorten(text, limit=30) == expected
