# SPDX-License-Identifier: Apache-2.0
"""Rows for `training.dpo` and `training.grpo`, made from conversations, for instance those of the demo.

    python -m training.data.preferences --conversations outputs/demo/data --output outputs/preferences

    conversation      Q1 -> A1                                    first question and answer of each
    pairs/            prompt Q1, chosen A1, rejected A7           A7 answers another question
    prompts/          prompt Q1, answer A1                        for a reward that compares

Nothing is downloaded. The same conversations and seed give the same rows.
"""

import argparse
import json
import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenization.command_line import CommandParser, run_command
from tokenization.number_options import check_counts

SPLITS = ("train", "test")


def first_turns(rows: Iterable[dict[str, Any]]) -> dict[str, str]:
    """First question to first answer of `{"messages": [...]}` rows, without repeats.

    If some rows are repeated, as the demo's core is, only the most frequent ones are kept: a model that was trained on
    them is sometimes right, which preferences and rewards need.
    """
    turns: Counter[tuple[str, str]] = Counter()
    for row in rows:
        texts = {message["role"]: message["content"] for message in reversed(row["messages"])}
        turns[texts["user"], texts["assistant"]] += 1
    most = max(turns.values(), default=0)
    return {question: answer for (question, answer), count in turns.items() if count == most}


def preference_pairs(turns: dict[str, str]) -> list[dict[str, Any]]:
    """`prompt`, `chosen` and `rejected` messages; the rejected answer is the next conversation's."""
    answers = list(turns.values())
    return [
        {
            "prompt": turn("user", question),
            "chosen": turn("assistant", answer),
            "rejected": turn("assistant", other),
        }
        for (question, answer), other in zip(turns.items(), answers[1:] + answers[:1], strict=True)
        if answer != other
    ]


def answered_prompts(turns: dict[str, str]) -> list[dict[str, Any]]:
    """`prompt` messages and the `answer` as text."""
    return [{"prompt": turn("user", question), "answer": answer} for question, answer in turns.items()]


def turn(role: str, text: str) -> list[dict[str, str]]:
    """One message."""
    return [{"role": role, "content": text}]


def write_preferences(conversations: Path, output: Path, rows: int, seed: int) -> None:
    """Write `pairs` and `prompts` in `output`, each with a file for every split.

    Args:
        conversations (`Path`): Folder with `train.jsonl` and `test.jsonl`.
        output (`Path`): Folder to write.
        rows (`int`): Largest number of rows of a split, drawn at random.
        seed (`int`): Seed of the draw.
    """
    from modeling_longcat_lite.whole_files import write_whole  # imports torch

    for split in SPLITS:
        source = conversations / f"{split}.jsonl"
        if not source.is_file():
            raise ValueError(f"`conversations` {conversations} has no {source.name}; `make demo` writes such a folder")
        with source.open(encoding="utf-8") as lines:
            turns = first_turns(json.loads(line) for line in lines)
        drawn = random.Random(seed).sample(sorted(turns), min(rows, len(turns)))
        chosen = {question: turns[question] for question in drawn}
        for folder, made in (("pairs", preference_pairs(chosen)), ("prompts", answered_prompts(chosen))):
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made)
            write_whole(output / folder / f"{split}.jsonl", text)


def main(arguments: argparse.Namespace) -> None:
    check_counts(arguments, "rows")
    write_preferences(arguments.conversations, arguments.output, arguments.rows, arguments.seed)
    print(f"pairs and prompts written to {arguments.output}")


def make_parser() -> CommandParser:
    parser = CommandParser("training.data.preferences", "Make rows for training.dpo and training.grpo.")
    parser.add_argument(
        "--conversations", type=Path, metavar="DIR", required=True, help="folder with train.jsonl and test.jsonl"
    )
    parser.add_shared("--output", required=True)
    parser.add_argument("--rows", type=int, default=1000, help="largest number of rows of a split")
    parser.add_shared("--seed")
    return parser


if __name__ == "__main__":
    run_command(lambda: main(make_parser().parse_args()))
