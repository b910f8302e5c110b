# SPDX-License-Identifier: Apache-2.0
"""What fits where, on the terminal, as Markdown and as a chart; all from the results as they are in the JSON file."""

from collections.abc import Iterator
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from eval.fit.speed import FORMULA
from eval.reports.files import markdown_table, save_figure
from eval.reports.units import format_size

ASSUMPTIONS = """\
Counted: weights from the config (and dtypes from the headers of the files), the cache of latents with its token
history, the largest stage of a prefill (`sdpa` attention; the grouped experts of transformers, which keep two float32
outputs for every selected expert), and the largest module that passes through a GPU if layers stay in host memory.

Assumed: a reserve of 0.5 GiB on every GPU (context, kernels, fragmentation) and of 2 GiB on the host (system, Python,
libraries); `device_map="auto"` filling modules in their order; no page cache for what is on disk. Without GPUs,
weights that stay mapped to the files count in full. Tests compare these sums with live tensors and, in float32, with
processes on a CPU, within 5 %; not with a GPU's. What kernels take for themselves is not counted: a CPU without
bfloat16 arithmetic computes in float32 and takes more.
Left out: what loading takes for a moment while experts are stacked, and the cache of drafts (`use_mtp=True`).
Tables of 8 or 4 bits have one float32 scale a row; `eval.checkpoints.quantize` writes them.
"""

# Weights in the order of the model, then what runs beside them.
PART_ORDER = [
    "n-gram tables",
    "n-gram projections",
    "word embedding",
    "attention",
    "dense MLP",
    "routed experts",
    "router",
    "norms",
    "language-model head",
    "draft head",
    "buffers",
    "KV cache",
    "activations",
    "layer in transit",
    "row staging",
    "reserve",
]
COLOURS = [
    *("#aa3377", "#dd88bb", "#66ccee", "#4477aa", "#ccbb44", "#228833", "#88cc88", "#004488"),
    *("#bb5566", "#ddaa33", "#000000", "#ee7733", "#ee6677", "#997700", "#aaaa00", "#bbbbbb"),
]


def columns(results: dict) -> Iterator[tuple[str, str, dict[str, int]]]:
    """Placement, place and bytes by part of every place that holds something; all GPUs of a placement are one."""
    for placement, plan in results["placements"].items():
        gpus: dict[str, int] = {}
        for gpu in plan["gpus"]:
            for part, size in gpu.items():
                gpus[part] = gpus.get(part, 0) + size
        name = "GPU" if len(plan["gpus"]) == 1 else f"{len(plan['gpus'])} GPUs"
        for place, parts in ((name, gpus), ("host", plan["host"]), ("disk", plan["disk"])):
            if any(parts.values()):
                yield placement, place, parts


def part_rows(results: dict) -> list[list[str]]:
    """One row a part, one column a place; the sums last."""
    held = [parts for _, _, parts in columns(results)]
    shown = [part for part in PART_ORDER if any(parts.get(part) for parts in held)]
    rows = [[part, *(format_size(parts[part]) if parts.get(part) else "" for parts in held)] for part in shown]
    return [*rows, ["all", *(format_size(sum(parts.values())) for parts in held)]]


def verdict_rows(results: dict) -> list[list[str]]:
    """One row a placement: whether it fits, what is missing, what passes through the link, how fast it can be."""
    rows = []
    for placement, plan in results["placements"].items():
        missing = ", ".join(f"{format_size(size)} on {place}" for place, size in plan["missing"].items())
        fullest = max((sum(gpu.values()) for gpu in plan["gpus"]), default=0)
        fits = plan["missing"] == {}
        rows.append(
            [
                placement,
                "yes" if fits else f"no: {missing} missing",
                format_size(fullest) if plan["gpus"] else "",
                format_size(plan["offloaded"]) if plan["offloaded"] else "",
                f"{plan['speed']['decode_tokens_per_second']:.3g}" if fits else "",
                f"{plan['speed']['prefill_tokens_per_second']:,.0f}" if fits else "",
            ]
        )
    return rows


VERDICT_HEADER = [
    "`ngram_tables`",
    "fits",
    "fullest GPU",
    "sent a forward",
    "decoded / s, at most",
    "read / s, at most",
]


def question(results: dict) -> str:
    """The machine and the run in one sentence."""
    machine, run, model = results["machine"], results["run"], results["model"]
    gpus = f"{machine['gpus']} x {format_size(machine['gpu_memory'])} of GPU memory" if machine["gpus"] else "no GPU"
    tables = f"{run['bits']} bits" if run["bits"] else model["tables"]
    rows = "1 row" if run["batch"] == 1 else f"{run['batch']} rows"
    return (
        f"{model['name']} in {model['dtype']}, n-gram tables in {tables}, on {gpus} and "
        f"{format_size(machine['host_memory'])} of host memory; {rows} of {run['context']:,} tokens, "
        f"{run['chunk']:,} in a forward of the prefill."
    )


def answer(results: dict) -> str:
    """The recommendation, in a sentence."""
    name = results["recommended"]
    if name is None:
        return "It does not fit."
    sent = results["placements"][name]["offloaded"]
    through = f"; {format_size(sent)} of weights pass through the link in every forward" if sent else ""
    return f'It fits, fastest with `ngram_tables="{name}"`{through}.'


def change_rows(results: dict) -> list[list[str]]:
    """One row a change: placement and goal, options, why."""
    return [[f"{c['placement']} {c['goal']}", c["options"], c["why"]] for c in results["changes"]]


CHANGE_TITLE = "What to change, one of them at a time"


def show(results: dict, console: Console):
    """The report on the terminal."""
    console.print(question(results))
    table = Table(title="What goes where")
    table.add_column("")
    for placement, place, _ in columns(results):
        table.add_column(f"{placement}\n{place}", justify="right")
    for row in part_rows(results):
        table.add_row(*row, end_section=row[0] == "reserve")
    console.print(table)
    verdicts = Table(*(title.replace("`", "") for title in VERDICT_HEADER), title="Does it fit?")
    for row in verdict_rows(results):
        verdicts.add_row(*row)
    console.print(verdicts)
    console.print(answer(results).replace("`", ""), markup=False)
    for line in results["arguments"]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if results["changes"]:
        changes = Table("then", "change", "", title=CHANGE_TITLE)
        for row in change_rows(results):
            changes.add_row(*(text.replace("`", "") for text in row))
        console.print(changes)
    console.print("Reserves of 0.5 GiB a GPU and 2 GiB on the host are assumptions; speeds are upper bounds.")


def as_markdown(results: dict) -> str:
    """The whole report."""
    head = ["", *(f"{placement}: {place}" for placement, place, _ in columns(results))]
    sections = [
        f"# Will it fit?\n\n{results['date']}. Computed, not measured.\n\n{question(results)}\n\n{answer(results)}\n"
    ]
    if results["arguments"]:
        sections.append("```python\n" + "\n".join(results["arguments"]) + "\n```\n")
    sections.append(markdown_table(VERDICT_HEADER, verdict_rows(results)))
    if results["changes"]:
        rows = [[then, f"`{options}`", why] for then, options, why in change_rows(results)]
        sections.append(f"{CHANGE_TITLE}:\n\n" + markdown_table(["then", "change", ""], rows))
    sections.append("![Bytes by part](fit.png)\n\n## What goes where\n\n" + markdown_table(head, part_rows(results)))
    stages = [[stage, format_size(size)] for stage, size in results["stages"].items()]
    sections.append(
        "Stages of a prefill, of which the largest counts:\n\n" + markdown_table(["stage", "bytes"], stages)
    )
    seconds = [
        [f"{placement}, {what}", *(f"{1000 * plan['speed'][what].get(cause, 0):,.2f}" for cause in CAUSES)]
        for placement, plan in results["placements"].items()
        if plan["missing"] == {}
        for what in ("decode", "prefill")
    ]
    if seconds:
        sections.append("## Speed\n\n" + markdown_table(["ms", *CAUSES], seconds))
    rates = {name: value for name, value in results["machine"].items() if name.endswith("_bandwidth")}
    given = ", ".join(f"{name.split('_')[0]} {format_size(value)}/s" for name, value in rates.items())
    sections.append(f"Rates: {given}; {results['machine']['tflops']:g} TFLOP/s.\n\n{FORMULA}")
    sections.append(f"## Assumptions\n\n{ASSUMPTIONS}")
    return "\n".join(sections)


CAUSES = ("memory", "arithmetic", "link", "rows")


def draw(results: dict, path: Path):
    """A bar for every place, stacked by part, with the memory there is as a line."""
    figure = Figure(figsize=(11, 5), layout="constrained")
    axis = figure.subplots()
    machine, bars = results["machine"], list(columns(results))
    capacity = {"host": machine["host_memory"], "disk": None}
    bottoms = [0.0] * len(bars)
    for part, colour in zip(PART_ORDER, COLOURS, strict=True):
        heights = [parts.get(part, 0) / 1e9 for _, _, parts in bars]
        if any(heights):
            axis.bar(range(len(bars)), heights, 0.6, bottoms, color=colour, label=part)
            bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
    for i, (_, place, _) in enumerate(bars):
        there = capacity.get(place, machine["gpus"] * machine["gpu_memory"])
        if there is not None:
            axis.hlines(there / 1e9, i - 0.4, i + 0.4, colors="#cc0000", linestyles="--")
    axis.set_xticks(range(len(bars)), [f"{placement}\n{place}" for placement, place, _ in bars])
    axis.set(ylabel="GB", title="Bytes by part (dashed: what there is)")
    axis.grid(axis="y", alpha=0.3)
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    save_figure(figure, path)


__all__ = ["as_markdown", "draw", "show"]
