# SPDX-License-Identifier: Apache-2.0
"""Data of the smoke suite: rows made from Python's documentation, as JSON Lines, with tasks that read them.

A task is a file of `smoke_tasks/` and where its rows are; `lm_eval run --include_path FOLDER` takes the folder too.

The split is that of `training.demo`: `core` is what the demo repeats in training, builtins with an answer long enough
to be told from others; `held_out` it never sees. The same Python and seed give the same files.
"""

import hashlib
import json
import random
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from modeling_longcat_lite.whole_files import write_whole
from tokenization.tool_calls import render_tool_call
from training.data.documentation import Conversation, core_conversations, split

SMOKE_TASKS = Path(__file__).parent / "smoke_tasks"
ROOT = Path(__file__).parents[2]
CONVERSATIONS = """
import json
from training.data.documentation import documentation_conversations
print(json.dumps([(conversation.name, conversation.turns) for conversation in documentation_conversations()]))
"""
WRONG_CHOICES = 3
GENERATED_ANSWERS = 64  # of the core: decoding takes longer than scoring
TOOL_REQUESTS = 40
Row = dict[str, Any]


# What the model may call. Templates read name, arguments and description off the functions; nobody runs them.
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
    """[`documentation_conversations`] of a process of its own.

    Libraries add methods of theirs to classes of the standard library, and their docstrings with them.
    """
    run = subprocess.run([sys.executable, "-c", CONVERSATIONS], cwd=ROOT, check=True, capture_output=True, text=True)
    return [Conversation(name, tuple(map(tuple, turns))) for name, turns in json.loads(run.stdout)]


def text_rows(conversations: list[Conversation]) -> list[Row]:
    """Answers as plain text."""
    return [{"text": conversation.answer} for conversation in conversations]


def choice_rows(conversations: list[Conversation], draw: random.Random) -> list[Row]:
    """Each question with its answer among three answers to others of `conversations`."""
    rows = []
    for conversation in conversations:
        others = draw.sample([c.answer for c in conversations if c is not conversation], WRONG_CHOICES)
        answer = draw.randrange(WRONG_CHOICES + 1)
        choices = [*others[:answer], conversation.answer, *others[answer:]]
        rows.append({"question": conversation.question, "choices": choices, "answer": answer})
    return rows


def answer_rows(conversations: list[Conversation], draw: random.Random) -> list[Row]:
    """Questions to be answered by writing, not by choosing."""
    drawn = draw.sample(conversations, min(GENERATED_ANSWERS, len(conversations)))
    return [{"question": conversation.question, "answer": conversation.answer} for conversation in drawn]


def tool_rows(tokenizer, conversations: list[Conversation], draw: random.Random) -> list[Row]:
    """Requests that one of `TOOLS` answers, as rendered prompts, with the right call among three wrong ones.

    The wrong ones: another tool for the same subject, the same tool for another subject, and both wrong.
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
    """The rows of every task of the smoke suite, by the task's name."""
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


def write_smoke_tasks(folder: Path, tokenizer, seed: int) -> str:
    """Write rows and tasks of the smoke suite.

    Args:
        folder (`Path`): Where to; made if it is not there.
        tokenizer: With a chat template, which renders the prompts of the tool tasks.
        seed (`int`): Of what is drawn: wrong answers, their order, subjects of tool calls.

    Returns:
        `str`: SHA-256 of all rows and of the files that say how they are scored, in hexadecimal.
    """
    folder, digest = folder.resolve(), hashlib.sha256()
    for file in sorted(SMOKE_TASKS.glob("*y*")):
        if file.is_file():
            digest.update(file.read_bytes())
    for task, rows in smoke_rows(tokenizer, seed).items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        digest.update(text.encode())
        data = folder / f"{task}.jsonl"
        if not data.exists() or data.read_text(encoding="utf-8") != text:  # a new file would be cached anew
            write_whole(data, text)
        kwargs = {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")}
        config = {"include": str(SMOKE_TASKS / f"{task}.yaml"), "dataset_kwargs": kwargs}
        write_whole(folder / f"{task}.yaml", yaml.safe_dump(config))
    return digest.hexdigest()


__all__ = ["fresh_conversations", "smoke_rows", "write_smoke_tasks"]
