# SPDX-License-Identifier: Apache-2.0
"""Figures of a suite: its own scores, or its scores next to published ones."""

from typing import Any

from matplotlib.figure import Figure

from eval.harness.suite import Suite


def draw_scores(suite: Suite, results: dict[str, Any]) -> Figure:
    """Metrics for which less is better on the left; shares on the right, with standard errors and guessing."""
    ours = suite.main_results(results)
    losses = {name: one for name, one in ours.items() if not one["higher_is_better"]}
    shares = {name: one for name, one in ours.items() if one["higher_is_better"]}
    panels = [(one, draw) for one, draw in ((losses, draw_losses), (shares, draw_shares)) if one]
    figure = Figure(figsize=(10, 4), layout="constrained")
    all_axes = figure.subplots(1, len(panels), squeeze=False, width_ratios=[len(one) for one, _ in panels])[0]
    for axes, (one, draw) in zip(all_axes, panels, strict=True):
        draw(axes, suite, one)
        axes.tick_params(axis="x", labelsize=8)
    figure.suptitle(f"{suite.title}, {results['model_folder']}")
    return figure


def draw_losses(axes, suite: Suite, losses: dict[str, dict[str, Any]]) -> None:
    """One bar for each benchmark."""
    names = [short_name(suite, name) for name in losses]
    bars = axes.bar(names, [one["value"] for one in losses.values()], 0.6, color="tab:gray")
    axes.bar_label(bars, fmt="%.2f", padding=2)
    metrics = dict.fromkeys(one["metric"].replace("_", " ") for one in losses.values())
    axes.set_ylabel(f"{', '.join(metrics)}, less is better")
    axes.margins(y=0.12)


def draw_shares(axes, suite: Suite, shares: dict[str, dict[str, Any]]) -> None:
    """One bar for each benchmark, and a dashed line at what guessing gives."""
    names = [f"{short_name(suite, name)}\n({one['metric']})" for name, one in shares.items()]
    errors = [100 * one.get("stderr", 0.0) for one in shares.values()]
    bars = axes.bar(names, [100 * one["value"] for one in shares.values()], 0.6, yerr=errors, capsize=3)
    axes.bar_label(bars, fmt="%.1f", padding=2)
    guessing = [(place, 100 * suite.chance[name]) for place, name in enumerate(shares) if name in suite.chance]
    if guessing:
        places, levels = zip(*guessing, strict=True)
        ends = [place - 0.4 for place in places], [place + 0.4 for place in places]
        axes.hlines(levels, *ends, colors="black", linestyles="dashed", label="guessing")
        axes.legend()
    axes.set(ylabel="right, %", ylim=(0, 112))


def short_name(suite: Suite, name: str) -> str:
    """A benchmark's name in two lines, without its first word if all names of the suite begin with it."""
    first = name.partition("_")[0] + "_"
    if all(benchmark.name.startswith(first) for benchmark in suite.benchmarks):
        name = name.removeprefix(first)
    return name.replace("_", " ").replace(" ", "\n", 1)


def draw_published(suite: Suite, results: dict[str, Any]) -> Figure:
    """A group of bars for each benchmark that has a number: ours, and that of each published model."""
    ours, published = suite.main_results(results), suite.published
    if published is None:
        raise ValueError(f"suite {suite.name} has no published numbers: give `published`, or draw it with draw_scores")
    columns = {results["model"]["name"]: {name: 100 * one["value"] for name, one in ours.items()}}
    for model in published.models:
        columns[f"{model}, published"] = {
            name: float(published.scores[name][model].rstrip("*")) for name in ours if model in published.scores[name]
        }
    figure = Figure(figsize=(9, 1.4 + 0.7 * len(ours)), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(columns)
    for number, (label, values) in enumerate(columns.items()):
        shift = (number - (len(columns) - 1) / 2) * height
        places = [place + shift for place, name in enumerate(ours) if name in values]
        bars = axes.barh(places, list(values.values()), height, label=label)
        axes.bar_label(bars, fmt="%.1f", fontsize=7, padding=2)
    axes.set_yticks(range(len(ours)), [published.names[name] for name in ours])
    axes.invert_yaxis()
    axes.set(xlabel="score, %", xlim=(0, 105))
    axes.margins(y=0.02)
    figure.legend(fontsize=8, loc="outside lower center", ncols=3)
    return figure


__all__ = ["draw_published", "draw_scores"]
