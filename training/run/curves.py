# SPDX-License-Identifier: Apache-2.0
"""What a training run logged: tokens per second while it runs, a JSON file and a plot when it ends."""

import json
import math
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from modeling_longcat_lite.whole_files import whole_file, write_whole

Series = dict[str, list[tuple[int, float]]]
METRICS, PLOT = "training_metrics.json", "training_curves.png"
# Panels from top to bottom, each with its metrics. Panels without metrics are left out.
PANELS = {
    "loss": ("loss", "draft_loss", "eval_loss"),
    "reward": ("reward", "eval_reward"),
    "activated experts": ("experts/mean",),
    "learning rate": ("learning_rate",),
}


class TrainingCurves(TrainerCallback):
    """Adds `tokens_per_second` to what is logged; writes `training_metrics.json` and `training_curves.png` at the end.

    Only the time of the training steps counts, not that of evaluations and saving. Pass the callback to the trainer's
    constructor, so that it runs before the callback of the progress bar, which shows the figure.
    """

    def __init__(self):
        self._tokens = 0.0
        self._seconds = 0.0
        self._step_began = 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        # After an interruption GRPO continues from the state's number; other trainers of TRL start at 0 again.
        self._tokens, self._seconds = float(state.num_input_tokens_seen), 0.0

    def on_step_begin(self, args, state, control, **kwargs):
        self._step_began = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self._seconds += time.perf_counter() - self._step_began

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not logs or "loss" not in logs or "num_tokens" not in logs:
            return
        tokens = logs["num_tokens"] - self._tokens
        if tokens > 0 and self._seconds > 0:
            logs["tokens_per_second"] = round(tokens / self._seconds, 1)
            state.log_history[-1]["tokens_per_second"] = logs["tokens_per_second"]
        self._tokens, self._seconds = logs["num_tokens"], 0.0

    def on_train_end(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            write_curves(state.log_history, Path(args.output_dir))


def write_curves(history: list[dict[str, Any]], output: Path) -> None:
    """Write both files to `output`.

    Args:
        history (`list[dict]`): `log_history` of a trainer's state.
        output (`Path`): The folder, which is made if it does not exist.
    """
    series = series_of(history)
    finite = {  # JSON has no NaN
        name: [(step, value if math.isfinite(value) else None) for step, value in points]
        for name, points in series.items()
    }
    write_whole(output / METRICS, json.dumps(finite, indent=1) + "\n")
    plot(series, output / PLOT)


def series_of(history: list[dict[str, Any]]) -> Series:
    """Every number that was logged: name to pairs of (step, value), in the order of logging."""
    series: Series = {}
    for entry in history:
        for name, value in entry.items():
            if name not in ("step", "epoch") and isinstance(value, int | float) and not isinstance(value, bool):
                series.setdefault(name, []).append((entry["step"], float(value)))
    return series


def plot(series: Series, path: Path) -> None:
    """Draw a PNG with one panel above the other over the training steps, unless nothing was logged."""
    logged = {title: [name for name in names if name in series] for title, names in PANELS.items()}
    panels = {title: names for title, names in logged.items() if names}
    if not panels:
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.4 * len(panels)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (title, names) in zip(axes, panels.items(), strict=True):
        for name in names:
            steps, values = zip(*series[name], strict=True)
            axis.plot(steps, values, label=name, marker="o" if len(steps) < 30 else None, markersize=3)
        axis.set_ylabel(title)
        axis.grid(alpha=0.3)
        if len(names) > 1:
            axis.legend()
    axes[-1].set_xlabel("step")
    with whole_file(path) as beside:
        figure.savefig(beside, dpi=120, format="png")


__all__ = ["TrainingCurves", "write_curves"]
