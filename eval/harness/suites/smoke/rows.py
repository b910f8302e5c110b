# SPDX-License-Identifier: Apache-2.0
"""Documents of the smoke suite's tasks, made from Python's documentation.

The split is that of `training.demo`: `core` is what the demo repeats in training, builtins whose answers are long
enough to be told from others; `held_out` it never sees. The same Python and seed give the same documents.
"""

import json
import random
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

from tokenization.tool_calls import render_tool_call
from training.data.documentation import Conversation, core_conversations, documentation_conversations, split

ROOT = Path(__file__).parents[4]
CONVERSATIONS = f"""
import json
from {documentation_conversations.__module__} import {documentation_conversations.__name__}
print(json.dumps([(one.name, one.turns) for one in {documentation_conversations.__name__}()]))
"""
WRONG_CHOICES = 3
GENERATED_ANSWERS = 64  # questions: decoding takes longer than scoring
TOOL_REQUESTS = 40
Row = dict[str, Any]


# What the model may call. The chat template reads names, arguments and descriptions; nothing calls the functions.
def read_documentation(subject: str):
    """Show the documentation of a Python object.

    Args:
        subject: Dotted name, such as str.join
    """


def list_members(subject: str):
    """List the public members of a Python object.

    Args:
        subject: Dotted name, such as str.join
    """


def find_examples(subject: str):
    """Find programs that use a Python object.

    Args:
        subject: Dotted name, such as str.join
    """


TOOLS = [read_documentation, list_members, find_examples]
REQUESTS = {
    "read_documentation": "Show me the documentation of {}.",
    "list_members": "Which members does {} have?",
    "find_examples": "Find me examples that use {}.",
}


@cache
def fresh_conversations() -> list[Conversation]:
    """[`documentation_conversations`] of a new process: imported libraries add methods to Python's classes."""
    run = subprocess.run([sys.executable, "-c", CONVERSATIONS], cwd=ROOT, check=True, capture_output=True, text=True)
    return [Conversation(name, tuple(map(tuple, turns))) for name, turns in json.loads(run.stdout)]


def text_rows(conversations: list[Conversation]) -> list[Row]:
    """Answers as plain text."""
    return [{"text": conversation.answer} for conversation in conversations]


def choice_rows(conversations: list[Conversation], draw: random.Random) -> list[Row]:
    """Each question with its answer and three answers to other questions."""
    rows = []
    for conversation in conversations:
        others = draw.sample([c.answer for c in conversations if c is not conversation], WRONG_CHOICES)
        answer = draw.randrange(WRONG_CHOICES + 1)
        choices = [*others[:answer], conversation.answer, *others[answer:]]
        rows.append({"question": conversation.question, "choices": choices, "answer": answer})
    return rows


def answer_rows(conversations: list[Conversation], draw: random.Random) -> list[Row]:
    """Questions that the model answers by writing."""
    drawn = draw.sample(conversations, min(GENERATED_ANSWERS, len(conversations)))
    return [{"question": conversation.question, "answer": conversation.answer} for conversation in drawn]


def tool_rows(tokenizer, conversations: list[Conversation], draw: random.Random) -> list[Row]:
    """Requests for one of `TOOLS`, as rendered prompts, with the right call and three wrong ones.

    Wrong are: another tool for the same subject, the same tool for another subject, another tool and another subject.
    """
    subjects = [c.name.removeprefix("builtins.") for c in conversations if not c.name.startswith("topics.")]
    rows = []
    for number, subject in enumerate(draw.sample(subjects, min(TOOL_REQUESTS, len(subjects)))):
        tool = list(REQUESTS)[number % len(REQUESTS)]
        other_tool = draw.choice([name for name in REQUESTS if name != tool])
        other_subject = draw.choice([name for name in subjects if name != subject])
        pairs = [(other_tool, subject), (tool, other_subject), (other_tool, other_subject)]
        draw.shuffle(pairs)
        answer = draw.randrange(WRONG_CHOICES + 1)
        pairs.insert(answer, (tool, subject))
        messages = [{"role": "user", "content": REQUESTS[tool].format(subject)}]
        prompt = tokenizer.apply_chat_template(messages, tools=TOOLS, add_generation_prompt=True, tokenize=False)
        choices = [render_tool_call(name, {"subject": value}) for name, value in pairs]
        rows.append({"prompt": prompt, "choices": choices, "answer": answer, "call": choices[answer]})
    return rows


def smoke_rows(tokenizer, seed: int) -> dict[str, list[Row]]:
    """The documents of every task. `seed` decides on wrong answers, their order, and the subjects of tool calls."""
    train, held_out = split(fresh_conversations())
    core = core_conversations(train)
    tools = tool_rows(tokenizer, core + held_out, random.Random(f"{seed} tools"))
    return {
        "pydoc_text_core": text_rows(core),
        "pydoc_text_held_out": text_rows(held_out),
        "pydoc_choice_core": choice_rows(core, random.Random(f"{seed} core")),
        "pydoc_choice_held_out": choice_rows(held_out, random.Random(f"{seed} held-out")),
        "pydoc_answer_core": answer_rows(core, random.Random(f"{seed} answers")),
        "pydoc_tool_choice": tools,
        "pydoc_tool_call": [{"prompt": row["prompt"], "call": row["call"]} for row in tools],
    }


__all__ = ["REQUESTS", "fresh_conversations", "smoke_rows"]
