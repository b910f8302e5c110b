# SPDX-License-Identifier: Apache-2.0
"""A memory plan for a reader: a table, a sentence whether it fits, and files."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from eval.fit.training.memory import ASSUMPTIONS, PARTS, Plan
from eval.fit.training.recipe import PROMPT_LENGTH
from eval.reports.files import save_figure

NAME = "memory_plan"


def gigabytes(size: float) -> str:
    """Decimal, as accelerators are sold."""
    return f"{size / 1e9:,.2f} GB" if size < 100e9 else f"{size / 1e9:,.0f} GB"


def describe(plan: Plan) -> str:
    """The run in one sentence."""
    setup = plan.setup
    devices = "1 GPU" if setup.gpus == 1 else f"{setup.gpus} GPUs, {'FSDP2' if setup.shard == 'fsdp2' else 'DDP'}"
    words = [
        f"{setup.trainer}, {devices}",
        f"{setup.rows} rows of {setup.length:,} tokens a GPU"
        + (f", each the part of one of {setup.context_parallel}" if setup.context_parallel > 1 else ""),
        f"{plan.trained:,} values trained with {setup.optimizer}",
        f"{setup.dtype}{', computed in bfloat16' if setup.bf16 and setup.dtype != 'bfloat16' else ''}",
        f"tables {setup.tables}, {'frozen' if setup.train_tables == 'none' else 'trained'}",
        "checkpointing" if setup.checkpointing else "no checkpointing",
    ]
    return "; ".join(words)


def verdict(plan: Plan, limit: float) -> str:
    if plan.total <= limit:
        return f"It fits: {gigabytes(limit - plan.total)} of {gigabytes(limit)} are left."
    return f"It does not fit: {gigabytes(plan.total - limit)} more than {gigabytes(limit)}."


def notes(plan: Plan) -> list[str]:
    lines = list(ASSUMPTIONS)
    if plan.setup.trainer == "grpo":
        lines.append(f"prompts of {PROMPT_LENGTH} tokens before the completion")
    if plan.host:
        all_of_them = f", {gigabytes(plan.host * plan.setup.gpus)} together; on disk they share pages"
        lines.append(
            f"host memory: {gigabytes(plan.host)} of tables for each process{all_of_them * (plan.setup.gpus > 1)}"
        )
    return lines


def rows_of(plan: Plan, limit: float) -> list[tuple[str, str, str]]:
    rows = [(part, gigabytes(plan.parts[part]), f"{100 * plan.parts[part] / limit:.1f} %") for part in PARTS]
    return [*rows, ("total", gigabytes(plan.total), f"{100 * plan.total / limit:.1f} %")]


def show(console: Console, title: str, plan: Plan, limit: float, changes: Sequence[tuple[str, Plan]]) -> None:
    table = Table(title=f"Memory of a GPU: {title}", caption=f"at its fullest: {plan.moment}")
    table.add_column("")
    for heading in ("memory", f"of {gigabytes(limit)}"):
        table.add_column(heading, justify="right")
    for row in rows_of(plan, limit):
        table.add_row(*row, style="bold" if row[0] == "total" else None)
    console.print(describe(plan))
    console.print(table)
    console.print(verdict(plan, limit), style="green" if plan.total <= limit else "red")
    for text, other in changes:
        console.print(f"  {escape(text)}: {gigabytes(other.total)}")
    for note in notes(plan):
        console.print(f"  {escape(note)}", style="dim")


def as_markdown(title: str, plan: Plan, limit: float, changes: Sequence[tuple[str, Plan]]) -> str:
    lines = [f"# Memory of a GPU: {title}", "", describe(plan), "", f"| | memory | of {gigabytes(limit)} |"]
    lines += ["|---|---:|---:|", *("| " + " | ".join(row) + " |" for row in rows_of(plan, limit)), ""]
    lines += [f"At its fullest: {plan.moment}. {verdict(plan, limit)}", ""]
    if changes:
        lines += ["It would fit with:", "", *(f"* {text}: {gigabytes(other.total)}" for text, other in changes), ""]
    return "\n".join([*lines, "Assumed or worth knowing:", "", *(f"* {note}" for note in notes(plan)), ""])


def write(output: Path, title: str, plan: Plan, limit: float, changes: Sequence[tuple[str, Plan]]) -> list[Path]:
    """JSON, Markdown and a picture in the folder `output`; each is whole or not there."""
    output.mkdir(parents=True, exist_ok=True)
    results = {
        "recipe": title,
        "gpu_memory": limit,
        "fits": plan.total <= limit,
        "total": plan.total,
        "parts": plan.parts,
        "moment": plan.moment,
        "host_memory_of_tables": plan.host,
        "trained_values": plan.trained,
        "changes": [{"change": text, "total": other.total} for text, other in changes],
    }
    paths = [output / f"{NAME}.{kind}" for kind in ("json", "md", "png")]
    beside = [path.with_name(f".{path.name}") for path in paths]
    beside[0].write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    beside[1].write_text(as_markdown(title, plan, limit, changes), encoding="utf-8")
    draw(plan, limit, changes, beside[2])
    return [source.replace(path) for source, path in zip(beside, paths, strict=True)]


def draw(plan: Plan, limit: float, changes: Sequence[tuple[str, Plan]], path: Path) -> None:
    """One bar for the plan and one for each change, stacked by part, with the limit as a line."""
    from matplotlib.figure import Figure

    bars = [("as planned", plan), *changes]
    figure = Figure(figsize=(10, 1.5 + 0.6 * len(bars)), layout="constrained")
    panel = figure.subplots()
    places, left = range(len(bars)), [0.0] * len(bars)
    for part in PARTS:
        sizes = [bar.parts[part] / 1e9 for _, bar in bars]
        panel.barh(places, sizes, left=left, label=part)
        left = [start + size for start, size in zip(left, sizes, strict=True)]
    panel.axvline(limit / 1e9, color="black", linestyle="--", label=gigabytes(limit))
    panel.set_yticks(places, [text for text, _ in bars], fontsize=7)
    panel.invert_yaxis()
    panel.set_xlabel("GB a GPU")
    panel.legend(fontsize=7, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.25))
    save_figure(figure, path)


__all__ = ["show", "write"]
