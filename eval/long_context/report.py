# SPDX-License-Identifier: Apache-2.0
"""The report of a long-context run: tables and heat maps by task, length and depth, and loss by position."""

import math
from collections.abc import Iterable
from itertools import pairwise
from statistics import fmean, stdev
from textwrap import fill
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from eval.long_context.ruler.sample import RulerOptions
from eval.long_context.ruler.tasks import RULER_TASKS
from eval.reports.files import markdown_table

PANELS_A_ROW = 4
WIDTH = 115  # of a line of text


def distinct(values: Iterable[Any]) -> list:
    """Each value once, in order of appearance."""
    return list(dict.fromkeys(values))


def scores_by_length(cells: list[dict]) -> list[dict[str, Any]]:
    """Entries of a result file: one for each task, length and metric, over all depths.

    `stderr` is that of the mean over samples. The depths of one sample have the same needles and count as one.
    """
    results = []
    for task, length in distinct((cell["task"], cell["length"]) for cell in cells):
        of_task = [cell for cell in cells if (cell["task"], cell["length"]) == (task, length)]
        for metric in ("string_match_all", "string_match_part"):
            scores = [fmean(of_sample) for of_sample in zip(*(cell[metric] for cell in of_task), strict=True)]
            error = {"stderr": stdev(scores) / math.sqrt(len(scores))} if len(scores) > 1 else {}
            results.append(
                {
                    "task": task,
                    "metric": metric,
                    "value": fmean(scores),
                    **error,
                    "samples": len(scores) * len(of_task),
                    "higher_is_better": True,
                    "dataset": "RULER, generated",
                    "config": f"{length} tokens",
                }
            )
    return results


def grid(cells: list[dict], rows: str, names: list, lengths: list[int]) -> list[list[float]]:
    """Mean score for each name (a `task` or a `depth`) and length."""
    return [
        [
            fmean(cell["string_match_all"] for cell in cells if (cell[rows], cell["length"]) == (name, length))
            for length in lengths
        ]
        for name in names
    ]


def as_markdown(content: dict, name: str) -> str:
    """The report, which shows the figure `{name}.png`."""
    cells, settings, machine = content["cells"], content["settings"], content["machine"]
    lengths = distinct(cell["length"] for cell in cells)
    tasks = distinct(cell["task"] for cell in cells)
    by_task = grid(cells, "task", tasks, lengths)
    rows = [[f"`{task}`", *(f"{share:.0%}" for share in shares)] for task, shares in zip(tasks, by_task, strict=True)]
    rows.append(["mean", *(f"{fmean(column):.0%}" for column in zip(*by_task, strict=True))])
    header = [f"{length:,}" for length in lengths]
    asked = "through the chat template" if settings["chat"] else "as plain text"
    head = (
        f"{machine['date']}, torch {machine['torch']}, transformers {machine['transformers']}, {machine['cpu']}. In "
        f"{settings['dtype']} on {settings['device']}, seed {settings['seed']}; asked {asked}."
    )
    what = (
        "RULER's tasks, generated: share of the expected strings in the answers, mean of "
        f"{settings['samples']} samples for each length and depth. A length counts prompt and answer. "
        f"{easier(settings)}"
    )
    parts = [
        f"# Long context: {content['model']['name']}\n",
        f"{fill(head, WIDTH)}\n",
        f"{fill(what, WIDTH)}\n",
        markdown_table(["tokens", *header], rows),
    ]
    needles = [cell for cell in cells if cell["depth"] is not None]
    if needles:
        depths = distinct(cell["depth"] for cell in needles)
        shares = grid(needles, "depth", depths, lengths)
        by_depth = zip(depths, shares, strict=True)
        rows = [[f"{depth:.0%}", *(f"{share:.0%}" for share in line)] for depth, line in by_depth]
        parts += ["All needle tasks, by depth of the needle:\n", markdown_table(["depth", *header], rows)]
    parts += loss_lines(content["loss_by_position"]) + lm_eval_lines(content)
    parts += [
        "Answers to the first sample of each task at the shortest length:\n",
        quotes(content["first_answers"]),
    ]
    return "\n".join(parts) + f"\n![Scores by length, task and depth, and loss by position]({name}.png)\n"


def easier(settings: dict) -> str:
    """What makes the tasks different from RULER's, mostly easier."""
    changed = RulerOptions.unusual(settings)
    changed += [] if settings["new_tokens"] is None else [f"new tokens {settings['new_tokens']}"]
    haystack = "the given files" if settings["haystack"]["source"] == "files" else "Python's documentation"
    return f"The prose is from {haystack}. " + (
        f"Not RULER's defaults: {', '.join(changed)}." if changed else "Everything else has RULER's defaults."
    )


def loss_lines(loss: dict | None) -> list[str]:
    """Loss by position."""
    if loss is None:
        return []
    edges = loss["edges"]
    rows = [
        [f"{begin + 1:,} to {end:,}", f"{value:.3f}"]
        for (begin, end), value in zip(pairwise(edges), loss["losses"], strict=True)
    ]
    head = (
        f"Loss on {loss['rows']} documents of {loss['length']:,} tokens, by the tokens read before; mean "
        f"{loss['mean']:.3f}:\n"
    )
    return [head, markdown_table(["tokens read", "nats a token"], rows)]


def lm_eval_lines(content: dict) -> list[str]:
    """lm-eval's own scores, and its missing tasks."""
    theirs = content["lm_eval_ruler"]
    if theirs is None:
        return []
    rows = [
        [f"`{result['task']}`, {result['config']}", f"{result['value']:.0%}"]
        for result in content["results"]
        if result["metric"] == "string_match"
    ]
    lines = [f"lm-eval {theirs['version']}, its `ruler`:\n", markdown_table(["task", "score"], rows)]
    left_out = "".join(f"* `{task}` is left out. {reason}\n" for task, reason in theirs["missing"].items())
    return [*lines, left_out] if left_out else lines


def quotes(first: dict[str, dict]) -> str:
    """One answer for each task."""
    lines = ["| task | wanted | written |", "|---|---|---|"]
    for task, quote in sorted(first.items(), key=lambda item: list(RULER_TASKS).index(item[0])):
        lines.append(f"| `{task}` | {code(', '.join(quote['wanted']))} | {code(quote['written'])} |")
    return "\n".join(lines) + "\n"


def code(text: str) -> str:
    """A model's text as code in a table cell, in one line."""
    return f"`{' '.join(text.replace('`', chr(39)).split()).replace('|', '/') or ' '}`"


def heat_map(axes, shares: list[list[float]], names: list[str], lengths: list[int], title: str, size: float) -> Any:
    """One panel: a row for each name, a column for each length, and the percentage in each field."""
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    for row, line in enumerate(shares):
        for column, share in enumerate(line):
            shade = "black" if share > 0.6 else "white"
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=size, color=shade)
    axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths], fontsize=size)
    axes.set_yticks(range(len(names)), names, fontsize=size)
    axes.set_title(title, fontsize=size + 1)
    return image


def draw(content: dict) -> Figure:
    """Heat maps of all tasks, of the needle tasks by depth, together and one by one, and loss by position."""
    cells, loss = content["cells"], content["loss_by_position"]
    lengths, tasks = distinct(cell["length"] for cell in cells), distinct(cell["task"] for cell in cells)
    needles = [cell for cell in cells if cell["depth"] is not None]
    depths, needle_tasks = distinct(cell["depth"] for cell in needles), distinct(cell["task"] for cell in needles)
    depth_names = [f"{depth:.0%}" for depth in depths]
    small_rows = -(-len(needle_tasks) // PANELS_A_ROW) if len(needle_tasks) > 1 else 0
    figure = Figure(figsize=(13, 4.4 + 2.3 * small_rows), layout="constrained")
    parts = figure.subfigures(1 + small_rows, 1, height_ratios=[4.4] + [2.3] * small_rows, squeeze=False)[:, 0]
    panels = iter(parts[0].subplots(1, 1 + bool(needles) + bool(loss), squeeze=False)[0])
    axes = next(panels)
    image = heat_map(axes, grid(cells, "task", tasks, lengths), tasks, lengths, "all depths, %", 8)
    axes.set_xlabel("tokens of prompt and answer")
    if needles:
        axes = next(panels)
        heat_map(axes, grid(needles, "depth", depths, lengths), depth_names, lengths, "all needle tasks, %", 8)
        axes.set(xlabel="tokens of prompt and answer", ylabel="depth of the needle")
    parts[0].colorbar(image, ax=parts[0].axes, label="expected strings found", shrink=0.8)
    if loss:
        axes = next(panels)
        middles = [(begin + end) / 2 for begin, end in pairwise(loss["edges"])]
        axes.plot(middles, loss["losses"], marker=".")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.set(xlabel="tokens read before", ylabel="loss, nats a token", title="loss by position")
        axes.grid(alpha=0.3)
    for number, part in enumerate(parts[1:]):
        shown = needle_tasks[number * PANELS_A_ROW : (number + 1) * PANELS_A_ROW]
        for axes, task in zip(part.subplots(1, PANELS_A_ROW, squeeze=False)[0], shown + [None] * 3, strict=False):
            if task is None:
                axes.set_visible(False)
                continue
            of_task = [cell for cell in needles if cell["task"] == task]
            heat_map(axes, grid(of_task, "depth", depths, lengths), depth_names, lengths, task, 7)
    figure.suptitle(f"RULER's tasks, generated: {content['model']['name']}")
    return figure


__all__ = ["as_markdown", "draw", "scores_by_length"]
