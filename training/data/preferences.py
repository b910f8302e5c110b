# SPDX-License-Identifier: Apache-2.0
"""Rows for `training.dpo` and `training.grpo`, made from conversations, for instance those of the demo.

    python -m training.data.preferences --conversations outputs/demo/data --output outputs/preferences

    conversation      Q1 -> A1                                    first question and answer of each
    pairs/            prompt Q1, chosen A1, rejected A7           the answer to another question
    prompts/          prompt Q1, answer A1                        for a reward that compares

Nothing is downloaded and everything is seeded: the same conversations give the same rows.
"""

import argparse
import json
import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenization.number_options import check_counts

SPLITS = ("train", "test")


def first_turns(rows: Iterable[dict[str, Any]]) -> dict[str, str]:
    """First question to first answer of `{"messages": [...]}` rows, each once.

    Where some are repeated, as the core of the demo is, only those that are most often: a model knows them well enough
    to be right now and then, which is what preferences and rewards build on.
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
        {"prompt": said("user", question), "chosen": said("assistant", answer), "rejected": said("assistant", other)}
        for (question, answer), other in zip(turns.items(), answers[1:] + answers[:1], strict=True)
        if answer != other
    ]


def answered_prompts(turns: dict[str, str]) -> list[dict[str, Any]]:
    """`prompt` messages and the `answer` as text."""
    return [{"prompt": said("user", question), "answer": answer} for question, answer in turns.items()]


def said(role: str, text: str) -> list[dict[str, str]]:
    """One message."""
    return [{"role": role, "content": text}]


def write_preferences(conversations: Path, output: Path, rows: int, seed: int) -> None:
    """Write `pairs` and `prompts` below `output`, each with a file for every split.

    Args:
        conversations (`Path`): Folder with `train.jsonl` and `test.jsonl`.
        output (`Path`): Folder to write.
        rows (`int`): Most rows of a split, drawn at random.
        seed (`int`): Seed of the drawing.
    """
    for split in SPLITS:
        source = conversations / f"{split}.jsonl"
        if not source.is_file():
            raise ValueError(f"`conversations` {conversations} has no {source.name}; `make demo` writes such a folder")
        with source.open(encoding="utf-8") as lines:
            turns = first_turns(json.loads(line) for line in lines)
        drawn = random.Random(seed).sample(sorted(turns), min(rows, len(turns)))
        chosen = {question: turns[question] for question in drawn}
        for folder, made in (("pairs", preference_pairs(chosen)), ("prompts", answered_prompts(chosen))):
            path = output / folder / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made)
            beside = path.with_name(f".{path.name}")
            beside.write_text(text, encoding="utf-8")
            beside.replace(path)


def main(arguments: list[str] | None = None) -> None:
    args = make_parser().parse_args(arguments)
    check_counts(args, "rows")
    write_preferences(args.conversations, args.output, args.rows, args.seed)
    print(f"pairs and prompts written to {args.output}")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.data.preferences", description="Rows for DPO and GRPO.")
    parser.add_argument("--conversations", type=Path, required=True, help="folder with train.jsonl and test.jsonl")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--rows", type=int, default=1000, help="most rows of a split, default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="seed of the drawing, default: %(default)s")
    return parser


if __name__ == "__main__":
    main()
