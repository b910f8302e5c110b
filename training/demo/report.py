# SPDX-License-Identifier: Apache-2.0
"""What the demo measured: a JSON report, a plot of the loss, and tables for the terminal."""

import json
import resource
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from modeling_longcat_lite.whole_files import whole_file, write_whole
from training.run.run_record import versions

# What the demo has to show; it ends with status 1 otherwise.
LARGEST_LOSS_RATIO = 0.6
FEWEST_RIGHT_ANSWERS = 7
PREFIX_CHARS = 40


def write_report(
    output: Path, seed: int, questions: list[dict[str, str]], seconds: dict[str, float]
) -> dict[str, Any]:
    """Write `report.json` from what the stages wrote to `output`, with the answers if there are any yet.

    Args:
        output (`Path`): The demo's folder.
        seed (`int`): Seed of the run.
        questions (`list`): Dictionaries with `from` (`"core"` or `"held-out"`), `question` and `expected`.
        seconds (`dict`): Wall-clock seconds of each finished stage.
    """
    state = json.loads((output / "model" / "trainer_state.json").read_text(encoding="utf-8"))
    history = state["log_history"]
    evaluations = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    training = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    report = {
        "training_data": "conversations made from the docstrings and topics of Python's documentation",
        "training_steps": state["global_step"],
        "training_tokens": max((int(entry.get("num_tokens", 0)) for entry in history), default=0),
        "heldout_loss_before": evaluations[0],
        "heldout_loss_after": evaluations[-1],
        "heldout_loss_ratio": round(evaluations[-1] / evaluations[0], 4),
        "training_loss": training,
        "seed": seed,
        "seconds": seconds,
        "peak_memory_mb": peak_memory_mb(),
        "versions": versions(),
    }
    if (output / "answers.json").is_file():
        report |= judged(questions, json.loads((output / "answers.json").read_text(encoding="utf-8")))
        report["passed"] = (
            report["heldout_loss_ratio"] <= LARGEST_LOSS_RATIO
            and report["right_answers"] >= FEWEST_RIGHT_ANSWERS
            and report["distinct_answers"] == report["core_questions"]
        )
    write_whole(output / "report.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    plot_loss(training, evaluations, output / "loss.png")
    return report


def judged(questions: list[dict[str, str]], answered: dict[str, Any]) -> dict[str, Any]:
    """Each answer with the expected one; an answer is right if its first 40 characters are."""
    answers = [
        {**question, "answer": answer["answer"], "right": begins_alike(answer["answer"], question["expected"])}
        for question, answer in zip(questions, answered["answers"], strict=True)
    ]
    core = [answer for answer in answers if answer["from"] == "core"]
    return {
        "answers": answers,
        "answered_by": answered["model_class"],
        "core_questions": len(core),
        "right_answers": sum(answer["right"] for answer in core),
        "distinct_answers": len({answer["answer"] for answer in core}),
    }


def begins_alike(answer: str, expected: str) -> bool:
    """Whether an answer starts with the first 40 characters of the expected one."""
    return answer.startswith(expected[:PREFIX_CHARS])


def peak_memory_mb() -> int:
    """Largest resident memory, in MB, of this process or of one that it has waited for."""
    usages = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return max(usages) // 1024


def plot_loss(training: list[tuple[int, float]], evaluations: list[float], path: Path) -> None:
    """Plot the training loss by step, with the held-out loss before and after."""
    from matplotlib.figure import Figure

    axes = (figure := Figure(figsize=(7, 4), layout="constrained")).subplots()
    axes.plot(*zip(*training, strict=True), label="training")
    axes.plot([0, training[-1][0]], [evaluations[0], evaluations[-1]], "o--", label="held-out")
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per answer token)")
    axes.legend()
    with whole_file(path) as beside:
        figure.savefig(beside, dpi=120, format="png")


def print_answers(report: dict[str, Any]) -> None:
    """Print the beginnings of each answer and of the expected one; the whole answers were streamed before."""
    table = Table(title=f"First {PREFIX_CHARS} characters of the answers", show_lines=True)
    for column in ("from", "question", "answer", "expected", ""):
        table.add_column(column)
    for answer in report["answers"]:
        mark = "[green]right" if answer["right"] else "[red]wrong" if answer["from"] == "core" else ""
        beginnings = (" ".join(answer[key][:PREFIX_CHARS].split()) for key in ("answer", "expected"))
        table.add_row(answer["from"], *map(escape, (answer["question"], *beginnings)), mark)
    Console().print(table)


def print_summary(report: dict[str, Any], output: Path) -> None:
    """Print the losses, the score, the time of each stage, and where everything was written."""
    table = Table(title="Summary", show_header=False)
    before, after = report["heldout_loss_before"], report["heldout_loss_after"]
    table.add_row(
        "held-out loss before, after", f"{before:.3f}, {after:.3f} ({report['heldout_loss_ratio']:.2f} of it)"
    )
    table.add_row("core answers that begin right", f"{report['right_answers']} of {report['core_questions']}")
    table.add_row("distinct core answers", str(report["distinct_answers"]))
    table.add_row("training", f"{report['training_steps']} steps, {report['training_tokens']} tokens")
    for name, duration in report["seconds"].items():
        table.add_row(f"time: {name}", f"{duration:.0f} s")
    table.add_row("time: all", f"{sum(report['seconds'].values()):.0f} s")
    table.add_row("peak memory", f"{report['peak_memory_mb']} MB")
    for name, what in (
        ("data", "conversations"),
        ("untrained", "untrained model and tokenizer"),
        ("model", "trained model, checkpoint, trainer state"),
        ("package", "folder for the Hub"),
        ("report.json", "every number and answer"),
        ("loss.png", "loss by step"),
    ):
        table.add_row(f"written: {what}", str(output / name))
    Console().print(table)
    if not report["passed"]:
        Console().print(
            f"[red]Short of the mark: held-out loss at most {LARGEST_LOSS_RATIO} of the start, at least "
            f"{FEWEST_RIGHT_ANSWERS} core answers right, all core answers different."
        )
