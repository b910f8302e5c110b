# SPDX-License-Identifier: Apache-2.0
"""The measures of the YaRN study, and its report: one table, one plot, and the figures as JSON.

Shapes: B batch rows, T tokens.
"""

import random
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import yaml
from datasets import load_dataset
from matplotlib.figure import Figure
from rich.console import Console
from rich.markdown import Markdown
from transformers import AutoTokenizer

from eval.losses.positions import found, losses_by_position
from eval.reports.files import markdown_table, write_report
from eval.reports.machine import describe_machine
from eval.studies.yarn.settings import YarnSettings
from modeling_longcat_lite import LongCatLiteConfig, LongCatLiteForCausalLM
from training.context.rows import long_rows, short_rows, tokenized
from training.data.recall_documents import needle_row

NAME = "yarn_demo"
BIN = 128  # positions whose mean is a point of the plot


def measure(weights: Path, config_folder: Path, folder: Path, settings: YarnSettings) -> dict[str, Any]:
    """All figures of one model.

    Args:
        weights, config_folder (`Path`): Folders with the weights of the model and with its configuration.
        folder (`Path`): The study's folder, with documents and the base model.
        settings (`YarnSettings`): What is measured.
    """
    config = LongCatLiteConfig.from_pretrained(config_folder)
    model = LongCatLiteForCausalLM.from_pretrained(weights, config=config, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    long, short = (
        cut(tokenized(load_dataset(str(folder / name))["test"], tokenizer, "text", "test"), length)
        for name, cut, length in (("long", long_rows, settings.longest), ("short", short_rows, settings.original))
    )
    positions = losses_by_position(model, long.with_format("torch")["input_ids"][:])  # [T - 1]
    return {
        "needles": needles(model, tokenizer, settings),
        "short_loss": float(losses_by_position(model, short.with_format("torch")["input_ids"][:]).mean()),
        "loss_by_position": [round(float(part.mean()), 4) for part in positions.split(BIN)],
        "last_quarter_loss": float(positions[-settings.longest // 4 :].mean()),
    }


def needles(model, tokenizer, settings: YarnSettings) -> dict[str, list[float]]:
    """Share of needles found, per length and depth; the rows are the same for every model."""
    shares: dict[str, list[float]] = {}
    for length in settings.lengths:
        shares[str(length)] = []
        for depth in settings.depths:
            draw = random.Random(f"{length} {depth}")
            options = (length, depth, settings.distractors, draw)
            drawn = [needle_row(tokenizer, *options) for _ in range(settings.needles)]
            right = found(model, torch.tensor([row for row, _ in drawn]), [answer for _, answer in drawn])
            shares[str(length)].append(sum(right) / len(right))
    return shares


def write_results(output: Path, rows: dict[str, dict], settings: YarnSettings, seconds: dict[str, float]) -> None:
    """Writes `yarn_demo.json`, `.md` and `.png` into `output`, and prints the report."""
    results = {
        "machine": {**describe_machine(), "trl": version("trl")},
        "training_seconds": seconds,
        "base": {"length_and_steps": settings.curriculum, "tokens_per_step": settings.tokens_per_step},
        "stages": yaml.safe_load(settings.stages.read_text(encoding="utf-8")),
        "depths": settings.depths,
        "needles_per_point": settings.needles,
        "distractors": settings.distractors,
        "positions_per_bin": BIN,
        "models": rows,
    }
    paths = write_report(output, NAME, results, as_markdown(results), draw(results))
    Console().print(Markdown(as_markdown(results)))
    print("Written: " + ", ".join(map(str, paths)))


def as_markdown(results: dict) -> str:
    """The report for people."""
    models, extension = results["models"], results["stages"]
    original, longest = extension["original_length"], extension["stages"][-1]["max_length"]
    lengths = list(models["before"]["needles"])
    header = ["", *(f"needles, {length}" for length in lengths)]
    header += [f"loss, last quarter of {longest:,}", f"loss, {original}", "ratio to before"]
    before = models["before"]["short_loss"]
    lines = []
    for name, row in models.items():
        shares = [f"{mean(row['needles'][length]):.0%}" for length in lengths]
        losses = [f"{row['last_quarter_loss']:.3f}", f"{row['short_loss']:.3f}", f"{row['short_loss'] / before:.3f}"]
        lines.append([name, *shares, *losses])
    count = results["needles_per_point"] * len(results["depths"])
    stages = ", then ".join(
        f"{stage['steps']} steps at {stage['max_length']:,} with factor {stage['factor']}"
        for stage in extension["stages"]
    )
    by_chance = 1 / (results["distractors"] + 1)
    base_steps = sum(steps for _, steps in results["base"]["length_and_steps"])
    return f"""# Context extension of a small model: {original} to {longest:,} tokens

`python -m eval.studies.yarn`, {results["machine"]["date"]}. A model trained on rows of up to {original} tokens for
{base_steps} steps is extended by `training/recipes/yarn_demo.yaml`: {stages}.
It is asked for {count} needles at each of {len(lengths)} lengths, over {len(results["depths"])} depths. Each row has
{results["distractors"]} other pairs, so a value drawn from the row is right in {by_chance:.1%} of cases.
Losses are in nats per token on held-out documents. The documents are generated (`training/data/recall_documents.py`):
filler words with two successors each, and pairs that recur. They do not represent real text.

{markdown_table(header, lines)}
![needles and loss](yarn_demo.png)
"""


def draw(results: dict) -> Figure:
    """Needles by length and depth, one panel per model, above the loss by position of all models."""
    models, depths, width = results["models"], results["depths"], results["positions_per_bin"]
    original = results["stages"]["original_length"]
    figure = Figure(figsize=(3 * len(models), 6), layout="constrained")
    grid = figure.add_gridspec(2, len(models))
    image: Any = None
    for column, (name, row) in enumerate(models.items()):
        axes = figure.add_subplot(grid[0, column])
        shares = [list(at_depth) for at_depth in zip(*row["needles"].values(), strict=True)]
        image = axes.imshow(shares, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        axes.set_title(name)
        axes.set_xticks(range(len(row["needles"])), list(row["needles"]))
        axes.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
        axes.set_xlabel("tokens")
        if column == 0:
            axes.set_ylabel("depth of the needle")
    figure.colorbar(image, ax=figure.axes, label="found")
    axes = figure.add_subplot(grid[1, :])
    for name, row in models.items():
        bins = row["loss_by_position"]
        axes.plot([width * (i + 0.5) for i in range(len(bins))], bins, marker=".", label=name)
    axes.axvline(original, color="grey", linestyle=":")
    axes.set_xlabel(f"position; dotted: the original length, {original}")
    axes.set_ylabel("loss, nats per token")
    axes.legend()
    return figure


__all__ = ["as_markdown", "draw", "measure", "write_results"]
