# SPDX-License-Identifier: Apache-2.0
"""The report of the scaling study, from its kept runs: tables, intervals over seeds, plots.

An interval is Student's t at 95 % over the seeds. A point is compared with its vanilla twin if the experiment varies
the share of n-grams, otherwise with the study's base point. Both have the same seeds and so the same order of rows:
differences are taken seed by seed, and their interval says whether one of the two is better at this size.
"""

from collections import Counter
from dataclasses import dataclass
from math import sqrt
from statistics import mean, stdev
from typing import Any

from matplotlib.figure import Figure
from scipy.stats import t as student

from eval.reports.files import format_table

CONFIDENCE = 0.95
MEASURE = "best_loss"  # held-out; early stopping would keep this one

POINT_COLUMNS = (
    ("point", "{label}"),
    ("total", "{total:,}"),
    ("activated", "{activated:,}"),
    ("n-grams", "{ngram_share:.0%}"),
    ("experts", "{n_routed_experts}"),
    ("dense width", "{ffn_hidden_size}"),
    ("table ratio", "{table_ratio}"),
    ("load spread", "{load_spread:.1%}"),
    ("seeds", "{count}"),
    ("held-out loss", "{interval}"),
    ("at the end", "{last_loss:.4f}"),
)
PAIR_COLUMNS = (
    ("point", "{label}"),
    ("reference", "{reference}"),
    ("total differs by", "{total_gap:+.2%}"),
    ("activated", "{activated_gap:+.2%}"),
    ("difference of losses", "{interval}"),
    ("", "{sign}"),
    ("at the end", "{last}"),
)


@dataclass(frozen=True)
class Interval:
    """Mean and half width; no half width for a single value."""

    middle: float
    half: float | None

    @classmethod
    def of(cls, values: list[float]) -> "Interval":
        if len(values) < 2:
            return cls(values[0], None)
        quantile = float(student.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
        return cls(mean(values), quantile * stdev(values) / sqrt(len(values)))

    def __str__(self) -> str:
        return f"{self.middle:.4f}" + ("" if self.half is None else f" ± {self.half:.4f}")

    @property
    def sign(self) -> str:
        """What this difference of losses shows."""
        if self.half is None:
            return "one seed"
        if abs(self.middle) <= self.half:
            return "no difference seen"
        return "lower" if self.middle < 0 else "higher"


def references(points: list[dict[str, Any]], varied: list[str], base: dict[str, Any]) -> list[tuple[int, int]]:
    """(place of a point, place of its reference) for every point that has a reference.

    It is the vanilla twin if the experiment varies the share of n-grams, otherwise the point equal to `base`.
    """
    values = [point["point"] for point in points]
    found = []
    for place, value in enumerate(values):
        reference = value | {"ngram_share": 0} if "ngram_share" in varied else base
        if reference in values and reference != value:
            found.append((place, values.index(reference)))
    return found


def rows_of(experiment: dict[str, Any], runs: dict[str, dict]) -> list[dict[str, Any]]:
    """One row per point of an experiment, with the results of its seeds, by seed, and the seeds without a result."""
    rows = []
    for point in experiment["points"]:
        results = {run["seed"]: runs[run["name"]]["result"] for run in point["runs"] if run["name"] in runs}
        rows.append(
            {**point, "results": results, "missing": [r["seed"] for r in point["runs"] if r["name"] not in runs]}
        )
    return rows


def summarize(plan: dict[str, Any], runs: dict[str, dict]) -> dict[str, Any]:
    """All figures of the report as JSON."""
    experiments = {}
    for name, experiment in plan["experiments"].items():
        rows = rows_of(experiment, runs)
        table = [summary_of(row) for row in rows if row["results"]]
        experiments[name] = {
            "varied": experiment["varied"],
            "tokens": experiment["tokens"],
            "changed": experiment["changed"],
            "rows": table,
            "pairs": pairs_of(rows, experiment["varied"], plan["base"]),
            "missing": [{"point": row["label"], "seeds": row["missing"]} for row in rows if row["missing"]],
            "not_matched": experiment["not_matched"],
        }
    versions = sorted({run["result"]["torch"] for run in runs.values()})
    return {"command": plan["command"], "text": plan["text"], "training": plan["training"], "torch": versions} | {
        "experiments": experiments
    }


def summary_of(row: dict[str, Any]) -> dict[str, Any]:
    """A point's figures over its seeds."""
    results = list(row["results"].values())
    loss = Interval.of([result[MEASURE] for result in results])
    return {
        "label": row["label"],
        "point": row["point"],
        **row["facts"],
        "seeds": sorted(row["results"]),
        "losses": [row["results"][seed][MEASURE] for seed in sorted(row["results"])],
        "loss": loss.middle,
        "half": loss.half,
        "last_loss": mean(result["last_loss"] for result in results),
        "over_training": mean_curve([result["held_out"] for result in results]),
        "stopped_early": sum(result["stopped_early"] for result in results),
        "load_spread": mean(result["load_spread"] for result in results),
    }


def gaps(point: dict[str, Any], reference: dict[str, Any]) -> dict[str, float]:
    """Relative differences between the total and activated parameters of a point and of its reference."""
    return {f"{key}_gap": point["facts"][key] / reference["facts"][key] - 1 for key in ("total", "activated")}


def pairs_of(rows: list[dict[str, Any]], varied: list[str], base: dict[str, Any]) -> list[dict[str, Any]]:
    """Differences of losses between points and their references, over the seeds that both have."""
    pairs = []
    for place, other in references(rows, varied, base):
        row, reference = rows[place], rows[other]
        seeds = sorted(row["results"].keys() & reference["results"].keys())
        if not seeds:
            continue
        differences = seed_differences(row, reference, seeds, MEASURE)
        difference = Interval.of(differences)
        last = Interval.of(seed_differences(row, reference, seeds, "last_loss"))
        pairs.append(
            {"label": row["label"], "reference": reference["label"], **gaps(row, reference)}
            | {"differences": differences, "difference": difference.middle, "half": difference.half}
            | {"last_difference": last.middle, "last_half": last.half, "sign": difference.sign}
            | {"over_training": difference_over_training(row, reference, seeds)}
        )
    return pairs


def seed_differences(row: dict[str, Any], reference: dict[str, Any], seeds: list[int], measure: str) -> list[float]:
    """The value of a point minus that of its reference, for each seed."""
    return [row["results"][seed][measure] - reference["results"][seed][measure] for seed in seeds]


def difference_over_training(row: dict[str, Any], reference: dict[str, Any], seeds: list[int]) -> list[list[float]]:
    """Mean difference of held-out losses over the training, as a `mean_curve`."""
    pairs = [(row["results"][seed]["held_out"], reference["results"][seed]["held_out"]) for seed in seeds]
    return mean_curve(
        [[[tokens, loss - other] for (tokens, loss), (_, other) in zip(*pair, strict=False)] for pair in pairs]
    )


def mean_curve(curves: list[list[list[float]]]) -> list[list[float]]:
    """[tokens, mean] at every evaluation that all curves have; a run that stopped early has fewer."""
    return [[same[0][0], mean(value for _, value in same)] for same in zip(*curves, strict=False)]


def as_markdown(summary: dict[str, Any], report: str) -> str:
    """The report for people; `report` is how the names of its figures begin."""
    text = summary["text"]
    train, held_out = text["train"], text["held_out"]
    lines = [
        "# Scaling study: n-gram embeddings compared with experts\n",
        f"`{summary['command']}`. Text: {train['files']} files, {train['tokens']:,} tokens to train on; "
        f"{held_out['files']} files held out, of which {held_out['tokens']:,} tokens are measured. Losses are in nats "
        "per token, the lowest of a run's evaluations; ± is Student's t at 95 % over the seeds. Differences are taken "
        f"seed by seed. Trained with torch {', '.join(summary['torch'])}.\n",
        "| experiment | comparisons |",
        "|---|---|",
    ]
    for name, experiment in summary["experiments"].items():
        counts = Counter(pair["sign"] for pair in experiment["pairs"])
        if counts:
            lines.append(f"| {name} | {', '.join(f'{count} {sign}' for sign, count in counts.items())} |")
    lines.append("")
    for name, experiment in summary["experiments"].items():
        lines += experiment_lines(name, experiment, f"{report}_{name}.png")
    return "\n".join(lines) + "\n"


def experiment_lines(name: str, experiment: dict[str, Any], figure: str) -> list[str]:
    """Tables of one experiment."""
    changed = {key: value for fields in experiment["changed"].values() for key, value in fields.items()}
    changes = "".join(f" `{key}` is {value}." for key, value in changed.items())
    lines = [f"## {name}\n", f"{experiment['tokens']:,} tokens per run.{changes}\n"]
    ratios = [row["ngram_vocab_size_ratio"] for row in experiment["rows"]]
    points = [
        {
            **row,
            "table_ratio": "" if ratio is None else f"{ratio:g}",
            "count": len(row["seeds"]),
            "interval": str(Interval(row["loss"], row["half"])),
        }
        for row, ratio in zip(experiment["rows"], ratios, strict=True)
    ]
    lines.append(format_table(POINT_COLUMNS, points))
    if experiment["pairs"]:
        pairs = [
            {
                **pair,
                "interval": str(Interval(pair["difference"], pair["half"])),
                "last": str(Interval(pair["last_difference"], pair["last_half"])),
            }
            for pair in experiment["pairs"]
        ]
        lines.append(format_table(PAIR_COLUMNS, pairs))
    lines += [f"Missing: {gap['point']}, seeds {gap['seeds']}.\n" for gap in experiment["missing"]]
    lines += [f"Not matched: {problem}.\n" for problem in experiment["not_matched"]]
    if experiment["rows"]:
        lines.append(f"![{name}]({figure})\n")
    return lines


def draw(name: str, experiment: dict[str, Any]) -> Figure:
    """Losses of the points and their differences from their references, at the end and over the training."""
    figure = Figure(figsize=(13, 9), layout="constrained")
    (losses, differences), (curves, over_training) = figure.subplots(2, 2)
    if experiment["varied"] == ["total_ratio", "ngram_share"]:
        draw_ratios(losses, experiment)
    else:
        draw_points(losses, experiment)
    losses.set_ylabel("held-out loss, nats per token")
    draw_differences(differences, experiment["pairs"])
    draw_curves(curves, experiment["rows"])
    curves.set_ylabel(losses.get_ylabel())
    draw_curves(over_training, experiment["pairs"])
    over_training.axhline(0, color="black", linewidth=0.8)
    over_training.set_ylabel(differences.get_ylabel())
    figure.suptitle(name.replace("_", " "))
    return figure


def draw_curves(axes: Any, entries: list[dict[str, Any]]) -> None:
    """The curve of each point or pair over its training."""
    for entry in entries:
        axes.plot(*zip(*entry["over_training"], strict=True), marker=".", label=entry["label"])
    axes.set_xlabel("tokens")
    if entries:
        axes.legend(fontsize=7)


def draw_ratios(axes: Any, experiment: dict[str, Any]) -> None:
    """A line of losses over the ratio for each share of n-grams."""
    for share in sorted({row["point"]["ngram_share"] for row in experiment["rows"]}):
        rows = [row for row in experiment["rows"] if row["point"]["ngram_share"] == share]
        axes.errorbar(
            [row["point"]["total_ratio"] for row in rows],
            [row["loss"] for row in rows],
            yerr=[row["half"] or 0 for row in rows],
            marker="o",
            capsize=3,
            label=f"{share:.0%} n-grams" if share else "experts alone",
        )
    axes.set_xscale("log")
    ratios = sorted({row["point"]["total_ratio"] for row in experiment["rows"]})
    axes.set_xticks(ratios, [f"{ratio:g}" for ratio in ratios])
    axes.minorticks_off()
    axes.set_xlabel("total / activated parameters")
    axes.legend()


def draw_points(axes: Any, experiment: dict[str, Any]) -> None:
    """A point with its interval for each row, and the values of its seeds."""
    for place, row in enumerate(experiment["rows"]):
        axes.errorbar([place], [row["loss"]], yerr=[row["half"] or 0], marker="o", capsize=4, color="C0")
        axes.plot([place] * len(row["losses"]), row["losses"], ".", color="grey", alpha=0.6)
    labels = [row["label"].replace(", ", "\n") for row in experiment["rows"]]
    axes.set_xticks(range(len(labels)), labels, fontsize=7)


def draw_differences(axes: Any, pairs: list[dict[str, Any]]) -> None:
    """Differences of the lowest losses and of the last ones, with intervals, and those of each seed."""
    for place, pair in enumerate(pairs):
        axes.plot([place] * len(pair["differences"]), pair["differences"], ".", color="grey", alpha=0.6)
    for shift, key, half, style in (
        (0, "difference", "half", {"marker": "o", "color": "C3", "label": "lowest of each run"}),
        (0.12, "last_difference", "last_half", {"marker": "s", "color": "C7", "label": "at the end"}),
    ):
        places, middles = [place + shift for place in range(len(pairs))], [pair[key] for pair in pairs]
        halves = [pair[half] or 0 for pair in pairs]
        axes.errorbar(places, middles, yerr=halves, linestyle="", capsize=4, **style)
    axes.axhline(0, color="black", linewidth=0.8)
    labels = [f"{pair['label']}\nversus\n{pair['reference']}".replace(", ", "\n") for pair in pairs]
    axes.set_xticks(range(len(labels)), labels, fontsize=7)
    axes.set_ylabel("difference of held-out losses (below 0: better)")
    axes.legend(fontsize=7)


__all__ = ["Interval", "as_markdown", "draw", "gaps", "references", "summarize"]
