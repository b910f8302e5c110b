# SPDX-License-Identifier: Apache-2.0
"""Train a small LongCat-Lite to use two tools, and ask it questions whose arguments it has never seen.

    python -m eval.studies.tools

Stages: conversations, tokenizer and an untrained model, fine-tuning by training/recipes/tools_demo.yaml, and questions
put to the model through the agent loop of `tokenization.tool_loop`, which runs the tools. It is fine-tuned twice:
copying is learned in a few hundred steps where what is copied stands near, and then holds behind the long declaration
of the tools. Everything is seeded and written under outputs/tool_demo; the figures go to
eval/results/tool_demo.{json,md} too. The exit status says whether enough of the calls were right.
"""

import json
import random
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.demo.model import MODEL as DEMO_MODEL
from training.demo.model import save_untrained, set_environment, stage

OUTPUT = Path("outputs/tool_demo")
RESULTS = Path("eval/results")
RECIPE = Path("training/recipes/tools_demo.yaml")
SEED = 0
VOCABULARY = 2048
TEST_CONVERSATIONS = 40
TOKENIZER_CONVERSATIONS = 1000
# About hidden_size ** -0.5, so that attention weighs in from the start: copying is all attention.
MODEL: dict[str, Any] = DEMO_MODEL | {"initializer_range": 0.07}


@dataclass(frozen=True)
class Stage:
    """Conversations of one stage, how many of them declare the tools, and what it trains from and to."""

    name: str
    conversations: int
    declared_share: float
    begins_with: str
    ends_as: str
    learning_rate: float


STAGES = (
    Stage("undeclared", 9000, 0.0, begins_with="untrained", ends_as="undeclared", learning_rate=4e-3),
    Stage("declared", 4200, 0.5, begins_with="undeclared", ends_as="model", learning_rate=3e-3),
)


def main():
    set_environment(OUTPUT)
    from eval.studies.tools.questions import ask, print_report, write_report

    shutil.rmtree(OUTPUT, ignore_errors=True)
    seconds: dict[str, float] = {}
    with stage("conversations", seconds):
        rows = [row for part in STAGES for row in write_conversations(part)]
    with stage("tokenizer and untrained model", seconds):
        write_untrained_model(rows)
    with stage("fine-tuning", seconds):
        for part in STAGES:
            fine_tune(part)
    with stage("questions", seconds):
        asked = ask(OUTPUT / "model", SEED)
    report = write_report(OUTPUT, [part.ends_as for part in STAGES], RESULTS, asked, SEED, seconds)
    print_report(report)
    return 0 if report["passed"] else 1


def write_conversations(part: Stage) -> list[dict[str, Any]]:
    """Write both sides of a stage as JSON Lines; returns the rows to train on."""
    from training.data.tool_conversations import rows

    train = list(rows(part.conversations, "train", SEED, part.declared_share))
    test = list(rows(TEST_CONVERSATIONS, "held-out", SEED, float(part.declared_share > 0)))
    folder = OUTPUT / "data" / part.name
    folder.mkdir(parents=True)
    for name, side in (("train", train), ("test", test)):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in side)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    print(f"{part.name}: {len(train)} conversations to train on, {len(test)} held out")
    return train


def write_untrained_model(rows: list[dict[str, Any]]) -> None:
    """Train the tokenizer on rendered conversations and save it with a freshly initialised model."""
    from tokenization.train_tokenizer import train_tokenizer

    texts = texts_without_digits(random.Random(SEED).sample(rows, min(len(rows), TOKENIZER_CONVERSATIONS)))
    tokenizer = train_tokenizer(texts, VOCABULARY, model_max_length=MODEL["max_position_embeddings"])
    save_untrained(OUTPUT / "untrained", tokenizer, MODEL, SEED)


def texts_without_digits(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The rows as the chat template writes them, less the digits, so that no two digits become one token.

    A number is then its digits, and a number that was never seen is made of tokens that were.
    """
    from tokenization.train_tokenizer import train_tokenizer

    of_bytes: Any = train_tokenizer((), 275)
    for row in rows:
        text = of_bytes.apply_chat_template(row["messages"], tools=row["tools"], tokenize=False)
        yield re.sub(r"\d+", "", text)


def fine_tune(part: Stage):
    """`python -m training.sft --config training/recipes/tools_demo.yaml` for one stage, in this process."""
    from training import sft

    options = ["--config", str(RECIPE), "--dataset_name", str(OUTPUT / "data" / part.name)]
    options += ["--model_name_or_path", str(OUTPUT / part.begins_with), "--output_dir", str(OUTPUT / part.ends_as)]
    options += ["--learning_rate", str(part.learning_rate)]
    sft.main(*sft.make_parser().parse_args_and_config(options))


if __name__ == "__main__":
    sys.exit(main())
