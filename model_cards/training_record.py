# SPDX-License-Identifier: Apache-2.0
"""What a training run left about itself in its folder, as a card shows it.

trainer_state.json       of every trainer: steps, losses, learning rate, time
training_run.json        of `training.sft`, `training.dpo`, `training.grpo`: method, settings, versions
training_curves.png      of these too
report.json              of `make demo`, or your own: `training_steps`, `heldout_loss_before`,
                         `heldout_loss_after`, and where they mean something `versions` and `answers`
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STATE, RUN, CURVES = "trainer_state.json", "training_run.json", "training_curves.png"
REPORTED = ("training_steps", "heldout_loss_before", "heldout_loss_after")


@dataclass(frozen=True)
class TrainingRecord:
    """Rows of the card's table (name, value), library versions, sample answers, and the plot if there is one."""

    rows: list[tuple[str, str]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    answers: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    curves: Path | None = None


def read_training(run: Path, report: Path | None = None) -> TrainingRecord:
    """Read the record of the run in the folder `run`, which may have left none, and of a report.

    Raises:
        `ValueError`: naming the file that cannot be read or lacks a key, or the report of another run.
    """
    state = read_json(run / STATE, "log_history", "global_step") if (run / STATE).is_file() else None
    settings = read_json(run / RUN, "method", "devices", "settings", "versions") if (run / RUN).is_file() else {}
    told = {} if report is None else read_json(report, *REPORTED)
    versions = {**settings.get("versions", {}), **told.get("versions", {})}
    curves = run / CURVES if (run / CURVES).is_file() else None
    rows: list[tuple[str, str]] = []
    if state is not None:
        if report is not None:
            check_same_run(report, told, state)
        rows = state_rows(state, with_rate="learning_rate" not in settings.get("settings", {}))
    elif told:
        before, after = (formatted(told[f"heldout_loss_{when}"]) for when in ("before", "after"))
        rows += [
            ("steps", formatted(told["training_steps"])),
            ("held-out loss, before and after", f"{before}, {after}"),
        ]
    if settings:
        rows = [("method", settings["method"]), ("devices", formatted(settings["devices"])), *rows]
        rows += [(f"`{name}`", formatted(value)) for name, value in settings["settings"].items()]
    answers: dict[str, list[dict[str, Any]]] = {}
    for answer in told.get("answers", []):
        answers.setdefault(answer["from"], []).append(answer)
    return TrainingRecord(rows, versions, answers, curves)


def state_rows(state: dict[str, Any], with_rate: bool) -> list[tuple[str, str]]:
    """Rows of a trainer's `trainer_state.json`; the learning rate where nothing else tells it."""
    history = state["log_history"]

    def logged(name: str) -> list[float]:
        return [entry[name] for entry in history if isinstance(entry.get(name), int | float)]

    rows = [("steps", formatted(state["global_step"]))]
    if state.get("epoch"):
        rows.append(("epochs", formatted(round(state["epoch"], 2))))
    if with_rate and (rates := logged("learning_rate")):
        rows.append(("learning rate, largest logged", formatted(max(rates))))
    if tokens := logged("num_tokens"):
        rows.append(("tokens read, as last logged", formatted(int(tokens[-1]))))
    for name, label in (
        ("loss", "training loss, first and last logged"),
        ("draft_loss", "loss of the draft head, first and last logged"),
        ("reward", "reward, first and last logged"),
        ("eval_loss", "held-out loss in training, first and last"),
    ):
        if values := logged(name):
            rows.append((label, ", ".join(formatted(value) for value in dict.fromkeys((values[0], values[-1])))))
    if experts := logged("experts/mean"):
        rows.append(("routed experts a token, as last logged", formatted(experts[-1])))
    if runtimes := logged("train_runtime"):
        rows.append(("time", f"{formatted(runtimes[-1])} s"))
    return rows


def check_same_run(report: Path, told: dict[str, Any], state: dict[str, Any]) -> None:
    """Raise a `ValueError` where a report and the trainer's state tell of different runs."""
    losses = [entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry]
    expected = {"training_steps": state["global_step"]}
    if losses:
        expected |= {"heldout_loss_before": losses[0], "heldout_loss_after": losses[-1]}
    for key, value in expected.items():
        if told[key] != value:
            raise ValueError(f"`report` {report} is of another run: its {key} is {told[key]}, that of {STATE} {value}")


def read_json(path: Path, *needed: str) -> dict[str, Any]:
    """An object with these keys."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    missing = [key for key in needed if not isinstance(content, dict) or key not in content]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}")
    return content


def formatted(value: Any) -> str:
    """Whole numbers in full, others with four significant digits, truth as in JSON, text as it is."""
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, int | float):
        return str(value)
    return f"{int(value):,}" if value == int(value) else f"{value:.4g}"


__all__ = ["CURVES", "TrainingRecord", "formatted", "read_training"]
