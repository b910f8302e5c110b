# SPDX-License-Identifier: Apache-2.0
"""What the tests of cards share: facts, result files, the record of a run, the parts of a card, its commands."""

import json
import re
from pathlib import Path
from types import ModuleType

import yaml

from eval.reports.results import result_file
from training.run.curves import write_curves

FACTS = {
    "name": "Tiny",
    "license": "apache-2.0",
    "language": ["en"],
    "summary": "A model for tests.",
    "training_data": "A few rows.",
    "intended_use": "Tests.",
    "limits": ["It knows nothing.", "It says so."],
    "question": 'What does "function 1" do, & isn\'t it 3 < 4 — é?',
    "citation": "@misc{tiny}",
    "evaluation": "Tasks of one answer in four.",
}
ON_THE_HUB = [
    {
        "task": "gsm8k",
        "metric": "exact_match",
        "value": 0.50493,
        "stderr": 0.01377,
        "samples": 1319,
        "higher_is_better": True,
        "dataset": "openai/gsm8k",
        "config": "main",
        "split": "test",
    },
    {"task": "gsm8k", "metric": "flexible", "value": 0.61, "dataset": "openai/gsm8k"},
    {"task": "gsm8k_cot", "metric": "flexible", "value": 0.72, "dataset": "openai/gsm8k"},
]
OF_OUR_OWN = [
    {"task": "held-out", "metric": "loss", "value": 3.747325, "higher_is_better": False, "samples": 189},
    {"task": "choice", "metric": "acc", "value": 0.996, "dataset": "Python's documentation"},
    {"task": "choice_hard", "metric": "acc", "value": 0.28, "dataset": "Python's documentation"},
]
STATE = {
    "global_step": 1298,
    "log_history": [
        {"step": 0, "eval_loss": 7.66334},
        {"step": 1, "loss": 6.38055, "learning_rate": 0.00199, "num_tokens": 12598.0},
        {"step": 1298, "loss": 1.71139, "learning_rate": 7e-06, "num_tokens": 315520.0, "experts/mean": 0.612854},
        {"step": 1298, "eval_loss": 3.79017},
        {"step": 1298, "train_runtime": 180.4568},
    ],
}
RUN = {
    "method": "SFT",
    "devices": 1,
    "settings": {"learning_rate": 0.002, "packing": True},
    "versions": {"torch": "2.13.0"},
}
ANSWERS = [{"from": "core", "question": "Q?", "expected": "A ```", "answer": "A ```", "right": True}]
REPORT = {"training_steps": 1298, "heldout_loss_before": 7.66334, "heldout_loss_after": 3.79017, "answers": ANSWERS}
PNG = b"\x89PNG of an evaluation"


def run_command(module: ModuleType, *arguments: str) -> None:
    """Run a command in this process, as `python -m` would."""
    module.main(module.make_parser().parse_args(arguments))


def write_facts(path: Path, **changes) -> Path:
    """A facts file; a change of `None` leaves the key out."""
    facts = {key: value for key, value in (FACTS | changes).items() if value is not None}
    path.write_text(yaml.safe_dump(facts, allow_unicode=True), encoding="utf-8")
    return path


def write_results(path: Path, model: Path, results: list[dict], **more) -> Path:
    """A result file of the model in the folder `model`."""
    path.write_text(json.dumps(result_file(model, path.stem, results, **more)), encoding="utf-8")
    return path


def write_run(folder: Path) -> Path:
    """What a training run leaves in its folder."""
    folder.mkdir(exist_ok=True)
    write_curves(STATE["log_history"], folder)
    (folder / "training_run.json").write_text(json.dumps(RUN), encoding="utf-8")
    (folder / "training_curves.png").write_bytes(PNG)
    return folder


def code_blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language, in their order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def section(text: str, title: str) -> str:
    """The text under a heading of the second level."""
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def numbers_in_tables(text: str) -> list[str]:
    """Every number in the rows of Markdown tables, as written."""
    rows = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("|---")]
    return [n for row in rows for n in re.findall(r"(?<![\w.-])\d[\d,]*(?:\.\d+)?(?:e-?\d+)?(?![\w-])", row)]


def numbers_of(content) -> list[float]:
    """Every number in a JSON value."""
    if isinstance(content, dict | list):
        inner = content.values() if isinstance(content, dict) else content
        return [number for value in inner for number in numbers_of(value)]
    return [content] if isinstance(content, int | float) else []


def is_rounded(written: str, numbers: list[float]) -> bool:
    """Whether a number on the page is one of `numbers`, exactly or to two digits after the point or four in all."""
    value = float(written.replace(",", ""))
    return any(value in (number, round(number, 2), float(f"{number:.4g}")) for number in numbers)
