# SPDX-License-Identifier: Apache-2.0
"""The record of a training run in its folder, as a card shows it.

    training_metrics.json    by `training.sft`, `training.dpo`, `training.grpo`: everything that was logged, by step
    training_run.json        by the same: method, settings, versions
    training_curves.png      by the same
    trainer_state.json       by any other trainer; read if there is no training_metrics.json
    report.json              by `make demo`, or written by you: `training_steps`, `heldout_loss_before`,
                             `heldout_loss_after`, and optionally `versions` and `answers`

The first three go into the Hub folder with the card: they hold its numbers, and no path on a machine.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

METRICS, RUN, CURVES = "training_metrics.json", "training_run.json", "training_curves.png"
STATE = "trainer_state.json"
REPORTED = ("training_steps", "heldout_loss_before", "heldout_loss_after")

# Name of what was logged to its (step, value) pairs.
Series = dict[str, list[tuple[int, float]]]


@dataclass(frozen=True)
class TrainingRecord:
    """Rows of the card's table (name, value), library versions, sample answers, and files to put next to the card."""

    rows: list[tuple[str, str]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    answers: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)

    @property
    def curves(self) -> str | None:
        """The plot, if there is one."""
        return CURVES if CURVES in self.files else None


def read_training(run: Path, report: Path | None = None) -> TrainingRecord:
    """Read the record in the folder `run`, which may have none, and the report, if there is one.

    Raises:
        `ValueError`: naming the file that cannot be read or lacks a key, or the report if it is of another run.
    """
    files = {name: run / name for name in (METRICS, RUN, CURVES) if (run / name).is_file()}
    series = read_series(run)
    recorded = read_json(files[RUN], "method", "devices", "settings", "versions") if RUN in files else {}
    reported = {} if report is None else read_json(report, *REPORTED)
    if report is not None and series:
        check_same_run(report, reported, series)
    rows: list[tuple[str, str]] = []
    if recorded:
        rows += [("method", recorded["method"]), ("devices", formatted(recorded["devices"]))]
    if series:
        rows += series_rows(series, with_rate="learning_rate" not in recorded.get("settings", {}))
    elif reported:
        before, after = (formatted(reported[f"heldout_loss_{when}"]) for when in ("before", "after"))
        rows.append(("steps", formatted(reported["training_steps"])))
        rows.append(("held-out loss in training, first and last", f"{before}, {after}"))
    rows += [(f"`{name}`", formatted(value)) for name, value in recorded.get("settings", {}).items()]
    answers: dict[str, list[dict[str, Any]]] = {}
    for answer in reported.get("answers", []):
        answers.setdefault(answer["from"], []).append(answer)
    return TrainingRecord(rows, {**recorded.get("versions", {}), **reported.get("versions", {})}, answers, files)


def read_series(run: Path) -> Series:
    """What the run logged; empty if its folder has no log."""
    if (run / METRICS).is_file():
        logged = read_json(run / METRICS)
        finite = {name: [(step, n) for step, n in pairs if n is not None] for name, pairs in logged.items()}
        return {name: pairs for name, pairs in finite.items() if pairs}
    series: Series = {}
    if (run / STATE).is_file():
        for entry in read_json(run / STATE, "log_history")["log_history"]:
            for name, value in entry.items():
                if name not in ("step", "epoch") and isinstance(value, int | float):
                    series.setdefault(name, []).append((entry["step"], value))
    return series


def last_step(series: Series) -> int:
    return max(step for pairs in series.values() for step, _ in pairs)


def series_rows(series: Series, with_rate: bool) -> list[tuple[str, str]]:
    """Rows of the card's table from the log; `with_rate` adds the learning rate, if no settings were recorded."""

    def values(name: str) -> list[float]:
        return [value for _, value in series.get(name, [])]

    rows = [("steps", formatted(last_step(series)))]
    if with_rate and (rates := values("learning_rate")):
        rows.append(("learning rate, largest logged", formatted(max(rates))))
    if tokens := values("num_tokens"):
        rows.append(("tokens read, as last logged", formatted(tokens[-1])))
    for name, label in (
        ("loss", "training loss"),
        ("draft_loss", "loss of the draft head"),
        ("reward", "reward"),
        ("eval_loss", "held-out loss in training"),
    ):
        if logged := values(name):
            rows.append((f"{label}, first and last", f"{formatted(logged[0])}, {formatted(logged[-1])}"))
    if experts := values("experts/mean"):
        rows.append(("routed experts per token, as last logged", formatted(experts[-1])))
    if runtimes := values("train_runtime"):
        rows.append(("time", f"{formatted(runtimes[-1])} s"))
    return rows


def check_same_run(report: Path, reported: dict[str, Any], series: Series) -> None:
    """Raise a `ValueError` if the report's numbers are not those that were logged."""
    expected: dict[str, float] = {"training_steps": last_step(series)}
    if losses := series.get("eval_loss"):
        expected |= {"heldout_loss_before": losses[0][1], "heldout_loss_after": losses[-1][1]}
    for key, value in expected.items():
        if reported[key] != value:
            raise ValueError(
                f"`report` {report} is of another run: its {key} is {reported[key]}, but {value} was logged"
            )


def read_json(path: Path, *needed: str) -> dict[str, Any]:
    """The JSON object in a file, which must have the `needed` keys."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a JSON object")
    missing = [key for key in needed if key not in content]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}")
    return content


def formatted(value: Any) -> str:
    """Whole numbers in full, others with four significant digits, booleans as in JSON, text unchanged."""
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, int | float):
        return str(value)
    return f"{int(value):,}" if value == int(value) else f"{value:.4g}"


__all__ = ["TrainingRecord", "formatted", "read_training"]
