# SPDX-License-Identifier: Apache-2.0
"""Trains a small LongCat-Lite to use two tools, and asks it questions whose arguments it has never seen.

    python -m eval.studies.tools

Stages: conversations, tokenizer and an untrained model, fine-tuning by training/recipes/tools_demo.yaml, and questions
to the model through the agent loop of `tokenization.tool_loop`, which runs the tools. The model is fine-tuned twice:
it learns to copy in a few hundred steps while the text to copy is close, and then keeps that ability when the long
declaration of the tools comes in between. Everything is seeded; it takes about six minutes on one core.
"""

import argparse
import json
import random
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenization.command_line import CommandParser, run_command
from training.demo.model import MODEL as DEMO_MODEL
from training.demo.model import save_untrained, set_environment, stage

RECIPE = Path("training/recipes/tools_demo.yaml")
SEED = 0
VOCABULARY = 2048
TEST_CONVERSATIONS = 40
TOKENIZER_CONVERSATIONS = 1000
# About hidden_size ** -0.5, so that attention contributes from the start: copying is all attention.
MODEL: dict[str, Any] = DEMO_MODEL | {"initializer_range": 0.07}


@dataclass(frozen=True)
class Lesson:
    """One of the two fine-tunings: its conversations, the share that declares the tools, and its models."""

    name: str
    conversations: int
    declared_share: float
    begins_with: str
    ends_as: str
    learning_rate: float


LESSONS = (
    Lesson("undeclared", 9000, 0.0, begins_with="untrained", ends_as="undeclared", learning_rate=4e-3),
    Lesson("declared", 4200, 0.5, begins_with="undeclared", ends_as="model", learning_rate=3e-3),
)


def write_conversations(folder: Path, lesson: Lesson) -> list[dict[str, Any]]:
    """Writes both sides of a lesson as JSON Lines; returns the rows to train on."""
    from training.data.tool_conversations import rows

    train = list(rows(lesson.conversations, "train", SEED, lesson.declared_share))
    test = list(rows(TEST_CONVERSATIONS, "held-out", SEED, float(lesson.declared_share > 0)))
    data = folder / "data" / lesson.name
    data.mkdir(parents=True)
    for name, side in (("train", train), ("test", test)):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in side)
        (data / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    print(f"{lesson.name}: {len(train)} conversations to train on, {len(test)} held out")
    return train


def write_untrained_model(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Trains the tokenizer on rendered conversations and saves it with a freshly initialised model."""
    from tokenization.train_tokenizer import train_tokenizer

    texts = texts_without_digits(random.Random(SEED).sample(rows, min(len(rows), TOKENIZER_CONVERSATIONS)))
    tokenizer = train_tokenizer(texts, VOCABULARY, model_max_length=MODEL["max_position_embeddings"])
    save_untrained(folder / "untrained", tokenizer, MODEL, SEED)


def texts_without_digits(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The rows as rendered by the chat template, without digits, so that the tokenizer merges no digits.

    A number is then a sequence of single digits, and an unseen number consists of known tokens.
    """
    from tokenization.train_tokenizer import train_tokenizer

    byte_tokenizer: Any = train_tokenizer((), 275)
    for row in rows:
        text = byte_tokenizer.apply_chat_template(row["messages"], tools=row["tools"], tokenize=False)
        yield re.sub(r"\d+", "", text)


def fine_tune(folder: Path, lesson: Lesson):
    """Runs `python -m training.sft --config training/recipes/tools_demo.yaml` for one lesson, in this process."""
    from training import sft

    options = ["--config", str(RECIPE), "--dataset_name", str(folder / "data" / lesson.name)]
    options += ["--model_name_or_path", str(folder / lesson.begins_with), "--output_dir", str(folder / lesson.ends_as)]
    options += ["--learning_rate", str(lesson.learning_rate)]
    sft.main(*sft.make_parser().parse_args_and_config(options))


def make_parser() -> CommandParser:
    """Command-line arguments."""
    parser = CommandParser("eval.studies.tools", __doc__.split("\n")[0])
    parser.add_argument(
        "--models", type=Path, metavar="DIR", default=Path("outputs/tool_demo"), help="folder for models and data"
    )
    parser.add_shared("--output", default=Path("eval/results"))
    return parser


def main(arguments: argparse.Namespace, lessons: tuple[Lesson, ...] = LESSONS):
    """Trains, asks, writes."""
    folder = arguments.models
    set_environment(folder)
    from eval.studies.tools.questions import ask, summarize, training_figures, write_results

    for made in ("data", "cache", "untrained", *(lesson.ends_as for lesson in lessons)):
        shutil.rmtree(folder / made, ignore_errors=True)
    seconds: dict[str, float] = {}
    with stage("conversations", seconds):
        rows = [row for lesson in lessons for row in write_conversations(folder, lesson)]
    with stage("tokenizer and untrained model", seconds):
        write_untrained_model(folder, rows)
    with stage("fine-tuning", seconds):
        for lesson in lessons:
            fine_tune(folder, lesson)
    with stage("questions", seconds):
        asked = ask(folder / "model", SEED)
    trained = training_figures([folder / lesson.ends_as for lesson in lessons])
    write_results(arguments.output, {"seed": SEED, "seconds": seconds, **trained, **summarize(asked)})


if __name__ == "__main__":
    run_command(lambda: main(make_parser().parse_args()))
