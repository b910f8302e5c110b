# SPDX-License-Identifier: Apache-2.0
"""The measures of the YaRN study, and its report: one table, one plot, and the figures as JSON."""

import json
import platform
import random
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from matplotlib.figure import Figure
from transformers import AutoTokenizer

from eval.losses.positions import found, losses_by_position
from eval.reports.files import save_figure
from eval.studies.yarn import __main__ as study
from modeling_longcat_lite import LongCatLiteConfig, LongCatLiteForCausalLM
from training.context.rows import long_rows, short_rows, tokenized
from training.data.recall_documents import needle_row

BIN = 128  # positions that a point of the plot is the mean of
LIBRARIES = ("torch", "transformers", "trl")


def measure(name: str, folder: Path, extended: Path) -> dict[str, Any]:
    """All figures of one model; `YaRN, not trained` is the base model under the configuration in `extended`."""
    config = LongCatLiteConfig.from_pretrained(extended if name == "YaRN, not trained" else folder)
    model = LongCatLiteForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(study.OUTPUT / "base")
    positions = losses_by_position(model, long_test_rows(tokenizer))
    return {
        "needles": needles(model, tokenizer),
        "short_loss": short_loss(model, tokenizer),
        "loss_by_position": [round(float(part.mean()), 4) for part in positions.split(BIN)],
        "last_quarter_loss": float(positions[-study.LONGEST // 4 :].mean()),
    }


def needles(model, tokenizer) -> dict[str, list[float]]:
    """Share of needles found, per length and depth; the rows are the same for every model."""
    shares: dict[str, list[float]] = {}
    for length in study.LENGTHS:
        shares[str(length)] = []
        for depth in study.DEPTHS:
            draw = random.Random(f"{length} {depth}")
            options = (length, depth, study.DISTRACTORS, draw)
            drawn = [needle_row(tokenizer, *options) for _ in range(study.NEEDLES)]
            right = found(model, torch.tensor([row for row, _ in drawn]), [answer for _, answer in drawn])
            shares[str(length)].append(sum(right) / len(right))
    return shares


def long_test_rows(tokenizer) -> torch.Tensor:
    """Held-out rows of the longest length: `[R, T]`."""
    documents = load_dataset(str(study.OUTPUT / "long"))["test"]
    return long_rows(tokenized(documents, tokenizer, "text", "test"), study.LONGEST).with_format("torch")["input_ids"][
        :
    ]


def short_loss(model, tokenizer) -> float:
    """Mean loss on held-out rows of the original length, as `extend_context` measures it."""
    documents = load_dataset(str(study.OUTPUT / "short"))["test"]
    rows = short_rows(tokenized(documents, tokenizer, "text", "test"), study.ORIGINAL)
    return float(losses_by_position(model, rows.with_format("torch")["input_ids"][:]).mean())


def write_results(output: Path, rows: dict[str, dict], stages: dict, seconds: dict[str, float]) -> None:
    """Write `yarn_demo.json`, `.md` and `.png` into `output`."""
    results = {
        "date": datetime.now().isoformat(timespec="minutes"),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        "threads": torch.get_num_threads(),
        "training_seconds": seconds,
        "base": {"length_and_steps": study.CURRICULUM, "tokens_a_step": study.BASE_TOKENS},
        "stages": stages,
        "depths": study.DEPTHS,
        "needles_per_point": study.NEEDLES,
        "distractors": study.DISTRACTORS,
        "positions_per_bin": BIN,
        "models": rows,
    }
    output.mkdir(parents=True, exist_ok=True)
    (output / "yarn_demo.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    (output / "yarn_demo.md").write_text(as_markdown(results), encoding="utf-8")
    plot(results, output / "yarn_demo.png")
    print(f"{output / 'yarn_demo.md'}:\n{as_markdown(results)}")


def as_markdown(results: dict) -> str:
    """The report for people."""
    before = results["models"]["before"]["short_loss"]
    header = ["", *(f"needles, {length}" for length in study.LENGTHS)]
    header += [f"loss, last quarter of {study.LONGEST:,}", f"loss, {study.ORIGINAL}", "of before"]
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    for name, row in results["models"].items():
        shares = [f"{mean(row['needles'][str(length)]):.0%}" for length in study.LENGTHS]
        losses = [f"{row['last_quarter_loss']:.3f}", f"{row['short_loss']:.3f}", f"{row['short_loss'] / before:.3f}"]
        lines.append("| " + " | ".join([name, *shares, *losses]) + " |")
    count = results["needles_per_point"] * len(results["depths"])
    tolerance = results["stages"]["short_loss_tolerance"]
    within = results["models"]["YaRN"]["short_loss"] <= before * (1 + tolerance)
    stages = ", then ".join(
        f"{stage['steps']} steps at {stage['max_length']:,} with factor {stage['factor']}"
        for stage in results["stages"]["stages"]
    )
    base_steps = sum(steps for _, steps in results["base"]["length_and_steps"])
    return f"""# Context extension of a small model: {study.ORIGINAL} to {study.LONGEST:,} tokens

`python -m eval.studies.yarn`, {results["date"]}. A model trained on rows of up to {study.ORIGINAL} tokens for
{base_steps} steps, extended by `training/recipes/yarn_demo.yaml`: {stages}. {len(study.LENGTHS)} lengths of {count}
needles each, over {len(results["depths"])} depths; {results["distractors"]} other pairs stand in each row, so that any
of the values at hand is right {1 / (results["distractors"] + 1):.1%} of the time. Losses are nats a token on held-out
documents, which are generated (`training/data/recall_documents.py`): filler words with two successors each, and pairs
that come back. They stand for no real text. The short loss of YaRN is {"" if within else "not "}within
{tolerance:.0%} of before.

{chr(10).join(lines)}

![needles and loss](yarn_demo.png)
"""


def mean(values: list[float]) -> float:
    """Arithmetic mean."""
    return sum(values) / len(values)


def plot(results: dict, path: Path) -> None:
    """Needles by length and depth, one panel a model, over the loss by position of all."""
    models = results["models"]
    figure = Figure(figsize=(3 * len(models), 6), layout="constrained")
    grid = figure.add_gridspec(2, len(models))
    depths, lengths = list(study.DEPTHS), list(study.LENGTHS)
    image: Any = None
    for column, (name, row) in enumerate(models.items()):
        axes = figure.add_subplot(grid[0, column])
        shares = [[row["needles"][str(length)][i] for length in lengths] for i in range(len(depths))]
        image = axes.imshow(shares, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        axes.set_title(name)
        axes.set_xticks(range(len(lengths)), [str(length) for length in lengths])
        axes.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
        axes.set_xlabel("tokens")
        if column == 0:
            axes.set_ylabel("depth of the needle")
    figure.colorbar(image, ax=figure.axes, label="found")
    axes = figure.add_subplot(grid[1, :])
    for name, row in models.items():
        bins = row["loss_by_position"]
        axes.plot([BIN * (i + 0.5) for i in range(len(bins))], bins, marker=".", label=name)
    axes.axvline(study.ORIGINAL, color="grey", linestyle=":")
    axes.set_xlabel(f"position; dotted: the original length, {study.ORIGINAL}")
    axes.set_ylabel("loss, nats a token")
    axes.legend()
    save_figure(figure, path)


__all__ = ["measure", "write_results"]
