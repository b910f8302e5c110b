# SPDX-License-Identifier: Apache-2.0
"""The ablation of n-gram tables as Markdown and as a chart."""

from pathlib import Path

from matplotlib import colormaps
from matplotlib.figure import Figure

from eval.ngrams.working_set.report import TOTAL_COLOUR
from eval.reports.files import markdown_table, save_figure
from eval.reports.units import format_size

WHAT = """\
*zeroed*: every row is 0. *shuffled*: every row is another row of its table. *int8*, *int4*: rows as
`eval.checkpoints.quantize` would store them. Added is the paired difference to *on*, token by token, with its standard
error as if tokens were independent.
"""


def places(bucket: dict) -> str:
    """The positions of a bucket, for a reader."""
    return str(bucket["first"]) if bucket["first"] == bucket["last"] else f"{bucket['first']} to {bucket['last']}"


def as_markdown(results: dict, name: str) -> str:
    """The whole report; its chart is `{name}.png`."""
    machine, scored, ablations = results["machine"], results["scored"], results["ablations"]
    lines = [
        [
            label,
            f"{one['loss']:.4f}",
            f"{one['bits_per_byte']:.4f}",
            "" if label == "on" else f"{one['added_loss']:+.4f} ± {one['added_loss_standard_error']:.4f}",
        ]
        for label, one in ablations.items()
    ]
    buckets = ablations["on"]["by_position"]
    by_position = [
        [
            places(bucket),
            f"{bucket['tokens']:,}",
            *(f"{one['by_position'][i]['loss']:.3f}" for one in ablations.values()),
        ]
        for i, bucket in enumerate(buckets)
    ]
    where = "its answer" if scored["unit"] == "answers" else f"a window of {scored['window']:,} tokens"
    return "\n".join(
        [
            "# What the n-gram tables are worth\n",
            f"{machine['date']}, torch {machine['torch']}, transformers {machine['transformers']}, {machine['cpu']}.",
            f"Model `{results['path']}` in {results['dtype']}, tables {results['placement']}, "
            f"{format_size(results['table_bytes'])}. Scored: {scored['parts']:,} {scored['unit']} of "
            f"{scored['source']}, {scored['tokens']:,} tokens, {scored['bytes']:,} bytes. Seed {results['seed']}.\n",
            WHAT,
            markdown_table(["n-gram tables", "nats a token", "bits a byte", "added, nats a token"], lines),
            f"![Loss added, and by position]({name}.png)\n",
            f"## By position\n\nNats a token by the position of the token in {where}, from 0.\n",
            markdown_table(["position", "tokens", *ablations], by_position),
        ]
    )


def draw(results: dict, path: Path):
    """Loss added by each ablation, and loss by position."""
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    added, positions = figure.subplots(1, 2)
    ablations = results["ablations"]
    labels = [label for label in ablations if label != "on"]
    palette = colormaps["tab10"]
    colours: dict = {label: palette(i % palette.N) for i, label in enumerate(labels)} | {"on": TOTAL_COLOUR}
    bars = added.barh(
        labels,
        [ablations[label]["added_loss"] for label in labels],
        xerr=[ablations[label]["added_loss_standard_error"] for label in labels],
        color=[colours[label] for label in labels],
    )
    added.bar_label(bars, fmt="%+.4f", padding=4)
    added.margins(x=0.2)
    added.invert_yaxis()
    added.set(xlabel="nats a token", title=f"Loss added to {ablations['on']['loss']:.3f}")
    for label in (*labels, "on"):  # the one that the others are compared with lies on top
        losses = [bucket["loss"] for bucket in ablations[label]["by_position"]]
        positions.plot(losses, "o--" if "-grams" in label else "o-", ms=3, color=colours[label], label=label)
    buckets = ablations["on"]["by_position"]
    positions.set_xticks(range(len(buckets)), [places(bucket) for bucket in buckets], rotation=30)
    where = "answer" if results["scored"]["unit"] == "answers" else "window"
    positions.set(xlabel=f"position in the {where}", ylabel="nats a token", title="By position")
    positions.grid(alpha=0.3)
    figure.legend(*positions.get_legend_handles_labels(), loc="outside right center", fontsize=9)
    save_figure(figure, path)


__all__ = ["as_markdown", "draw"]
