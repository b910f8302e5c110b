# SPDX-License-Identifier: Apache-2.0
"""A memory plan for a reader: a table, a sentence that says whether it fits, and files."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from eval.fit.report import draw_bars, rich_table
from eval.fit.training.memory import ASSUMPTIONS, PARTS, MemoryPlan
from eval.fit.training.recipe import PROMPT_LENGTH
from eval.reports.files import markdown_table, write_report
from eval.reports.units import format_size

NAME = "memory_plan"
Changes = Sequence[tuple[str, MemoryPlan]]


def describe(plan: MemoryPlan) -> str:
    """The run in one sentence."""
    setup = plan.setup
    parallel = f", each a {setup.context_parallel}th of a row" if setup.context_parallel > 1 else ""
    computed = ", computed in bfloat16" if setup.bf16 and setup.dtype != "bfloat16" else ""
    words = [
        setup.trainer + ", " + ("1 GPU" if setup.gpus == 1 else f"{setup.gpus} GPUs, {setup.sharding}"),
        f"{setup.rows} rows of {setup.length:,} tokens per GPU{parallel}",
        f"{plan.trained:,} values trained with {setup.optimizer}",
        f"{setup.dtype}{computed}",
        f"tables {setup.tables}, {'frozen' if setup.train_tables == 'none' else 'trained'}",
        "checkpointing" if setup.checkpointing else "no checkpointing",
    ]
    return "; ".join(words)


def verdict(plan: MemoryPlan, limit: float) -> str:
    if plan.total <= limit:
        return f"It fits: {format_size(limit - plan.total)} of {format_size(limit)} are left."
    return f"It does not fit: {format_size(plan.total - limit)} more than {format_size(limit)}."


def notes(plan: MemoryPlan) -> list[str]:
    """What is assumed, and what a reader should know."""
    lines = list(ASSUMPTIONS)
    if plan.setup.trainer == "grpo":
        lines.append(f"prompts of {PROMPT_LENGTH} tokens before the completion")
    if plan.host:
        together = f", {format_size(plan.host * plan.setup.gpus)} together; processes share pages of tables on disk"
        all_processes = together if plan.setup.gpus > 1 else ""
        lines.append(f"host memory: {format_size(plan.host)} of tables for each process{all_processes}")
    return lines


def part_rows(plan: MemoryPlan, limit: float) -> list[list[str]]:
    """One row per part, with its share of the GPU; the sum last."""
    sizes = {**plan.parts, "total": plan.total}
    return [[part, format_size(sizes[part]), f"{100 * sizes[part] / limit:.1f} %"] for part in (*PARTS, "total")]


def show(console: Console, title: str, plan: MemoryPlan, limit: float, changes: Changes) -> None:
    """The plan on the terminal."""
    header = ["", "memory", f"of {format_size(limit)}"]
    console.print(describe(plan))
    console.print(rich_table(f"Memory of a GPU: {title}", header, part_rows(plan, limit), numbers=True))
    console.print(f"At the fullest moment: {plan.moment}.")
    console.print(verdict(plan, limit), style="green" if plan.total <= limit else "red")
    for text, other in changes:
        console.print(f"  {escape(text)}: {format_size(other.total)}")
    for note in notes(plan):
        console.print(f"  {escape(note)}", style="dim")


def as_markdown(title: str, plan: MemoryPlan, limit: float, changes: Changes) -> str:
    """The plan as a report."""
    table = markdown_table(["", "memory", f"of {format_size(limit)}"], part_rows(plan, limit))
    lines = [f"# Memory of a GPU: {title}", "", describe(plan), "", table]
    lines += [f"At the fullest moment: {plan.moment}. {verdict(plan, limit)}", ""]
    if changes:
        lines += ["It would fit with:", "", *(f"* {text}: {format_size(other.total)}" for text, other in changes), ""]
    return "\n".join([*lines, "Assumed, or worth knowing:", "", *(f"* {note}" for note in notes(plan)), ""])


def write(output: Path, title: str, plan: MemoryPlan, limit: float, changes: Changes) -> list[Path]:
    """Writes JSON, Markdown and a picture into the folder `output`; returns their paths."""
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
    bars = [(text, each.parts, limit) for text, each in (("as planned", plan), *changes)]
    figure = draw_bars("Memory of a GPU", bars, dict.fromkeys(PARTS))
    return write_report(output, NAME, results, as_markdown(title, plan, limit, changes), figure)


__all__ = ["show", "write"]
