# SPDX-License-Identifier: Apache-2.0
"""Train a small LongCat-Lite on Python's own documentation, package it, and ask it questions.

    python -m training.demo

Stages: conversations, tokenizer, an untrained model, fine-tuning by the recipe, held-out loss, the Hub folder, and
questions in a new process that has only that folder. Everything is seeded and written to outputs/demo.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tokenization.command_line import CommandParser, run_command
from training.demo.model import MODEL, run_module, save_untrained, set_environment, stage

OUTPUT = Path("outputs/demo")
RECIPE = Path("training/recipes/demo.yaml")
FACTS = Path("model_cards/facts/demo.yaml")
SEED = 0
VOCABULARY = 2048
CORE_ROUNDS = 18  # how often each core conversation is trained on; all others are trained on once
CORE_QUESTIONS = 10
HELD_OUT_QUESTIONS = 5


def make_parser() -> CommandParser:
    return CommandParser("training.demo", "Train, package and ask a small model. Writes outputs/demo.")


def main(arguments: argparse.Namespace) -> int:
    set_environment(OUTPUT)
    from training.demo.report import print_answers, print_summary, write_report

    shutil.rmtree(OUTPUT, ignore_errors=True)
    seconds: dict[str, float] = {}
    with stage("conversations", seconds):
        train, questions = write_conversations()
    with stage("tokenizer and untrained model", seconds):
        write_untrained_model(train)
    with stage("fine-tuning", seconds):
        fine_tune()
    with stage("held-out answers", seconds):
        measure()
    write_report(OUTPUT, SEED, questions, seconds)
    with stage("packaging", seconds):
        package()
    with stage("questions in a fresh process", seconds):
        ask(questions)
    report = write_report(OUTPUT, SEED, questions, seconds)
    write_card()
    print_answers(report)
    print_summary(report, OUTPUT)
    return 0 if report["passed"] else 1


def write_conversations():
    """Write both sides and draw questions; returns the training side, and the questions with their answers."""
    from training.data.documentation import core_conversations, documentation_conversations, split, training_rounds

    train, held_out = split(documentation_conversations())
    core = core_conversations(train)
    data = OUTPUT / "data"
    data.mkdir(parents=True)
    for name, side in (("train", training_rounds(train, core, CORE_ROUNDS, SEED)), ("test", held_out)):
        lines = [json.dumps(conversation.row(), ensure_ascii=False) + "\n" for conversation in side]
        (data / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    draw = random.Random(SEED)
    drawn = {"core": draw.sample(core, CORE_QUESTIONS), "held-out": draw.sample(held_out, HELD_OUT_QUESTIONS)}
    questions = [
        {"from": source, "question": conversation.question, "expected": conversation.answer}
        for source, conversations in drawn.items()
        for conversation in conversations
    ]
    (OUTPUT / "questions.json").write_text(json.dumps([q["question"] for q in questions], indent=2), encoding="utf-8")
    print(
        f"{len(train)} conversations to train on, {len(held_out)} held out; the core of the former, {len(core)} about "
        f"builtins, is seen {CORE_ROUNDS} times"
    )
    return train, questions


def write_untrained_model(train):
    """Train the tokenizer on the training side and save it with an untrained model."""
    from tokenization.train_tokenizer import train_tokenizer

    texts = (text for conversation in train for turn in conversation.turns for text in turn)
    tokenizer = train_tokenizer(texts, VOCABULARY, model_max_length=MODEL["max_position_embeddings"])
    save_untrained(OUTPUT / "untrained", tokenizer, MODEL, SEED)


def fine_tune():
    """`python -m training.sft --config training/recipes/demo.yaml`, in this process."""
    from training import sft

    sft.main(*sft.make_parser().parse_args_and_config(["--config", str(RECIPE)]))


def measure():
    """Write the loss on the held-out answers as a result file."""
    rows = OUTPUT / "data" / "test.jsonl"
    run_module("eval.losses", "--model", OUTPUT / "model", "--rows", rows, "--output", OUTPUT)


def package():
    """Build the Hub folder; the card takes its numbers from the result file and the files of the run."""
    run_module(
        "model_cards.build_hub_repo", "--model", OUTPUT / "model", "--output", OUTPUT / "package", *card_sources()
    )


def write_card():
    """Write the card again, now with the answers of the package."""
    run_module("model_cards.write_card", "--folder", OUTPUT / "package", *card_sources())


def card_sources() -> list[str | Path]:
    """Options of both commands that write the card: its sources."""
    results = OUTPUT / "held_out_answers.json"
    return ["--facts", FACTS, "--results", results, "--report", OUTPUT / "report.json"]


def ask(questions):
    """Ask in a process that starts in another folder and cannot import the package."""
    output = OUTPUT.resolve()
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "training.demo.ask",
        "--isolated",
        "--model",
        output / "package",
    ]
    command += ["--questions-file", output / "questions.json", "--output", output / "answers.json"]
    with tempfile.TemporaryDirectory() as elsewhere:
        # An empty folder for the code that transformers copies from the package, so that it uses no older copy.
        modules = str(Path(elsewhere) / "modules")
        environment = os.environ | {"HF_MODULES_CACHE": modules, "PYTHONPATH": str(Path.cwd())}
        subprocess.run(command, check=True, cwd=elsewhere, env=environment)


if __name__ == "__main__":
    run_command(lambda: main(make_parser().parse_args()))
