# SPDX-License-Identifier: Apache-2.0
"""What fits where, on the terminal, as Markdown and as a chart, all from the results as they are in the JSON file.

[`rich_table`] and [`draw_bars`] also serve `eval.fit.training`.
"""

from collections.abc import Iterator, Mapping, Sequence

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from eval.fit.speed import FORMULA
from eval.reports.files import markdown_table
from eval.reports.units import format_size

ASSUMPTIONS = """\
Counted: weights from the config (and dtypes from the headers of the files), the cache of latents with its token
history, the largest stage of a prefill (`sdpa` attention; the grouped experts of transformers, which keep two float32
outputs for every selected expert), and the largest module that passes through a GPU if layers stay in host memory.

Assumed: a reserve of 0.5 GiB on every GPU (context, kernels, fragmentation) and of 2 GiB on the host (system, Python,
libraries); `device_map="auto"` filling modules in their order; no page cache for what is on disk. Without GPUs,
weights that stay mapped to the files count in full. Tests compare these sums with live tensors and, in float32, with
processes on a CPU, within 5 %, but not with a GPU. Memory that kernels allocate for themselves is not counted: a CPU
without bfloat16 arithmetic computes in float32 and takes more.

Not counted: memory that loading takes while it stacks experts, and the cache of drafts (`use_mtp=True`). Tables of 8
or 4 bits have one float32 scale per row; `eval.checkpoints.quantize` writes them.
"""

# Weights in the order of the model, then everything else; each part with its colour in the chart.
PARTS = {
    "n-gram tables": "#aa3377",
    "n-gram projections": "#dd88bb",
    "word embedding": "#66ccee",
    "attention": "#4477aa",
    "dense MLP": "#ccbb44",
    "routed experts": "#228833",
    "router": "#88cc88",
    "norms": "#004488",
    "language-model head": "#bb5566",
    "draft head": "#ddaa33",
    "buffers": "#000000",
    "KV cache": "#ee7733",
    "activations": "#ee6677",
    "layer in transit": "#997700",
    "row staging": "#aaaa00",
    "reserve": "#bbbbbb",
}
CAUSES = ("memory", "arithmetic", "link", "rows")
VERDICT_HEADER = [
    "`ngram_tables`",
    "fits",
    "fullest GPU",
    "sent a forward",
    "decoded / s, at most",
    "read / s, at most",
]
CHANGE_TITLE = "What to change, one of them at a time"


def rich_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool = False) -> Table:
    """A table for the terminal; with `numbers`, all columns but the first are aligned to the right."""
    table = Table(title=title)
    for i, name in enumerate(header):
        table.add_column(name.replace("`", ""), justify="right" if numbers and i else "left")
    for row in rows:
        table.add_row(*(text.replace("`", "") for text in row))
    return table


def draw_bars(title: str, bars: Sequence[tuple[str, Mapping, float | None]], parts: Mapping) -> Figure:
    """Horizontal bars, stacked by part.

    Args:
        bars (`Sequence[tuple[str, Mapping[str, float], float | None]]`):
            For each its label, bytes by part, and the memory there is, which is drawn as a dashed line.
        parts (`Mapping[str, str | None]`): Parts in their order, with their colours.
    """
    figure = Figure(figsize=(11, 1.5 + 0.6 * len(bars)), layout="constrained")
    axis = figure.subplots()
    ends = [0.0] * len(bars)
    for part, colour in parts.items():
        sizes = [held.get(part, 0) / 1e9 for _, held, _ in bars]
        if any(sizes):
            axis.barh(range(len(bars)), sizes, 0.6, ends, color=colour, label=part)
            ends = [end + size for end, size in zip(ends, sizes, strict=True)]
    for i, (_, _, there) in enumerate(bars):
        if there is not None:
            axis.vlines(there / 1e9, i - 0.4, i + 0.4, colors="#cc0000", linestyles="--")
    axis.set_yticks(range(len(bars)), [label for label, _, _ in bars], fontsize=8)
    axis.invert_yaxis()
    axis.set(xlabel="GB", title=f"{title} (dashed: what there is)")
    axis.grid(axis="x", alpha=0.3)
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def places(results: dict) -> Iterator[tuple[str, str, dict[str, int]]]:
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
    """One row per part, one column per place; the sums last."""
    held = [parts for _, _, parts in places(results)]
    shown = [part for part in PARTS if any(parts.get(part) for parts in held)]
    rows = [[part, *(format_size(parts[part]) if parts.get(part) else "" for parts in held)] for part in shown]
    return [*rows, ["all", *(format_size(sum(parts.values())) for parts in held)]]


def verdict_rows(results: dict) -> list[list[str]]:
    """One row per placement: whether it fits, what is missing, what passes through the link, how fast it can be."""
    rows = []
    for placement, plan in results["placements"].items():
        missing = ", ".join(f"{format_size(size)} on {place}" for place, size in plan["missing"].items())
        fullest = max((sum(gpu.values()) for gpu in plan["gpus"]), default=0)
        rows.append(
            [
                placement,
                f"no: {missing} missing" if missing else "yes",
                format_size(fullest) if plan["gpus"] else "",
                format_size(plan["offloaded"]) if plan["offloaded"] else "",
                "" if missing else f"{plan['speed']['decode_tokens_per_second']:.3g}",
                "" if missing else f"{plan['speed']['prefill_tokens_per_second']:,.0f}",
            ]
        )
    return rows


def question(results: dict) -> str:
    """The machine and the workload in one sentence."""
    machine, run, model = results["machine"], results["run"], results["model"]
    gpus = f"{machine['gpus']} x {format_size(machine['gpu_memory'])} of GPU memory" if machine["gpus"] else "no GPU"
    rows = "1 row" if run["batch"] == 1 else f"{run['batch']} rows"
    experts = f", routed experts in {model['experts']}" if model["experts"] != model["dtype"] else ""
    return (
        f"{model['name']} in {model['dtype']}{experts}, n-gram tables in {model['tables']}, on {gpus} and "
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
    """One row per change: placement and goal, options, why."""
    return [[f"{c['placement']} {c['goal']}", f"`{c['options']}`", c["why"]] for c in results["changes"]]


def show(results: dict, console: Console) -> None:
    """The report on the terminal."""
    console.print(question(results))
    header = ["", *(f"{placement}\n{place}" for placement, place, _ in places(results))]
    console.print(rich_table("What goes where", header, part_rows(results), numbers=True))
    console.print(rich_table("Does it fit?", VERDICT_HEADER, verdict_rows(results)))
    console.print(answer(results).replace("`", ""), markup=False)
    for line in results["arguments"]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if results["changes"]:
        console.print(rich_table(CHANGE_TITLE, ["then", "change", ""], change_rows(results)))
    console.print("Reserves of 0.5 GiB per GPU and 2 GiB on the host are assumptions; speeds are upper bounds.")


def as_markdown(results: dict) -> str:
    """The whole report."""
    head = ["", *(f"{placement}: {place}" for placement, place, _ in places(results))]
    sections = [
        f"# Will it fit?\n\n{results['date']}. Computed, not measured.\n\n{question(results)}\n\n{answer(results)}\n"
    ]
    if results["arguments"]:
        sections.append("```python\n" + "\n".join(results["arguments"]) + "\n```\n")
    sections.append(markdown_table(VERDICT_HEADER, verdict_rows(results)))
    if results["changes"]:
        sections.append(f"{CHANGE_TITLE}:\n\n" + markdown_table(["then", "change", ""], change_rows(results)))
    sections.append("![Bytes by part](fit.png)\n\n## What goes where\n\n" + markdown_table(head, part_rows(results)))
    stages = [[stage, format_size(size)] for stage, size in results["stages"].items()]
    sections.append(
        "Stages of a prefill, of which the largest counts:\n\n" + markdown_table(["stage", "bytes"], stages)
    )
    seconds = [
        [f"{placement}, {what}", *(f"{1000 * plan['speed'][what].get(cause, 0):,.2f}" for cause in CAUSES)]
        for placement, plan in results["placements"].items()
        if not plan["missing"]
        for what in ("decode", "prefill")
    ]
    if seconds:
        sections.append("## Speed\n\n" + markdown_table(["ms", *CAUSES], seconds))
    rates = {name: value for name, value in results["machine"].items() if name.endswith("_bandwidth")}
    given = ", ".join(f"{name.split('_')[0]} {format_size(value)}/s" for name, value in rates.items())
    sections.append(f"Rates: {given}; {results['machine']['tflops']:g} TFLOP/s.\n\n{FORMULA}")
    sections.append(f"## Assumptions\n\n{ASSUMPTIONS}")
    return "\n".join(sections)


def draw(results: dict) -> Figure:
    """A bar for every place."""
    machine = results["machine"]
    memory = {"host": machine["host_memory"], "disk": None}
    gpus = machine["gpus"] * machine["gpu_memory"]
    bars = [(f"{placement}: {place}", held, memory.get(place, gpus)) for placement, place, held in places(results)]
    return draw_bars("Bytes by part", bars, PARTS)


__all__ = ["as_markdown", "draw", "draw_bars", "rich_table", "show"]
