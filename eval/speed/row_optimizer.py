# SPDX-License-Identifier: Apache-2.0
"""What an optimizer step costs for n-gram tables of more and more rows.

    OMP_NUM_THREADS=1 python -m eval.speed.row_optimizer

Times one optimizer step for n-gram tables of 100 thousand, 1 million and 10 million rows: `RowwiseAdamW` beside
torch's SparseAdam and fused AdamW. Writes JSON, Markdown and a chart. The largest table takes 10 GB with AdamW.

One optimizer's tables take turns, a step each, so that a busy moment of the machine falls on all sizes alike. The
ratio of two sizes is the median over those turns. A step reads new random rows; its gradient arrives uncoalesced.
Sparse operations wait for each other's threads, so all runs in one thread. Its processor time counts: that of the
clock, less what other programs take in between.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from torch import nn

from eval.reports.files import markdown_table, save_figure, write_report
from eval.reports.machine import describe_machine, load_average
from tokenization.number_options import check_counts
from training.tables.optimizer import RowwiseAdamW

NAME = "row_optimizer_speed"
SIZES = (100_000, 1_000_000, 10_000_000)
WIDTH = 64
READS = 4096  # a step's rows, with repeats
# A step of a larger table may take so many times that of the smallest one.
TARGETS = {1_000_000: 1.5, 10_000_000: 2.0}
ROWWISE = "row-wise AdamW"

OPTIMIZERS: dict[str, Callable[[nn.Embedding], torch.optim.Optimizer]] = {
    ROWWISE: lambda table: RowwiseAdamW([{"params": table.parameters(), "rowwise": True}]),
    "SparseAdam": lambda table: torch.optim.SparseAdam(list(table.parameters())),
    "fused AdamW": lambda table: torch.optim.AdamW(table.parameters(), fused=True),
}


class Case:
    """One table with its optimizer."""

    def __init__(self, name: str, rows: int):
        # Any values do; drawing 640 million of them would take longer than the steps.
        weights = torch.full((rows, WIDTH), 0.02)
        self.table = nn.Embedding(rows, WIDTH, _weight=weights, sparse=name != "fused AdamW")
        self.optimizer = OPTIMIZERS[name](self.table)
        self.generator = torch.Generator().manual_seed(rows)
        self.upstream = torch.randn(READS, WIDTH, generator=self.generator)

    def seconds(self) -> tuple[float, float]:
        """Processor time of a lookup with its gradient, and of the step after."""
        ids = torch.randint(self.table.num_embeddings, (READS,), generator=self.generator)
        begin = time.thread_time()
        self.table(ids).backward(self.upstream)
        middle = time.thread_time()
        self.optimizer.step()
        end = time.thread_time()
        self.optimizer.zero_grad()
        return middle - begin, end - middle

    def state_bytes_per_row(self) -> float:
        tensors = [x for state in self.optimizer.state.values() for x in state.values() if torch.is_tensor(x)]
        return sum(x.nbytes for x in tensors if x.dim()) / self.table.num_embeddings


def measure(name: str, sizes: tuple[int, ...], repeats: int) -> list[dict]:
    """One entry a size: median milliseconds, state, and the median ratio to the smallest size."""
    cases = [Case(name, rows) for rows in sizes]
    for _ in range(3):  # the first step makes the state
        for case in cases:
            case.seconds()
    times = [[case.seconds() for case in cases] for _ in range(repeats)]  # [repeats][sizes]
    return [
        {
            "optimizer": name,
            "rows": case.table.num_embeddings,
            "gradient_ms": 1000 * median(turn[i][0] for turn in times),
            "step_ms": 1000 * median(turn[i][1] for turn in times),
            "ratio_to_smallest": median(turn[i][1] / turn[0][1] for turn in times),
            "state_bytes_per_row": case.state_bytes_per_row(),
        }
        for i, case in enumerate(cases)
    ]


def judged(measured: list[dict]) -> list[dict]:
    """Each target beside what was seen."""
    verdicts = [
        {
            "target": f"a step at {entry['rows']:,} rows: at most {TARGETS[entry['rows']]} x that at {SIZES[0]:,}",
            "seen": round(entry["ratio_to_smallest"], 2),
            "met": entry["ratio_to_smallest"] <= TARGETS[entry["rows"]],
        }
        for entry in measured
        if entry["optimizer"] == ROWWISE and entry["rows"] in TARGETS
    ]
    state = max(entry["state_bytes_per_row"] for entry in measured if entry["optimizer"] == ROWWISE)
    return [*verdicts, {"target": "at most 8 bytes of state a row", "seen": state, "met": state <= 8}]


def as_markdown(results: dict) -> str:
    """Times and verdicts."""
    machine = results["machine"]
    times = [
        [
            e["optimizer"],
            f"{e['rows']:,}",
            *(f"{e[name]:.2f}" for name in ("gradient_ms", "step_ms", "ratio_to_smallest")),
            f"{e['state_bytes_per_row']:.0f}",
        ]
        for e in results["measured"]
    ]
    header = ["optimizer", "rows", "gradient, ms", "step, ms", "x smallest", "state, bytes a row"]
    verdicts = [[v["target"], f"{v['seen']:g}", "met" if v["met"] else "MISSED"] for v in results["verdicts"]]
    return "\n".join(
        [
            "# Optimizer steps for n-gram tables\n",
            f"{machine['date']}, torch {machine['torch']}, {machine['cpu']}, {machine['threads']} thread. "
            f"Load average {results['load_average']}. Tables of width {WIDTH} in float32; a step reads {READS} "
            f"random rows. Medians of {results['repeats']} steps, processor time.\n",
            markdown_table(header, times),
            markdown_table(["target", "seen", "verdict"], verdicts),
        ]
    )


def draw(measured: list[dict], path: Path) -> None:
    """Step time by rows, one line an optimizer."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name in OPTIMIZERS:
        entries = [entry for entry in measured if entry["optimizer"] == name]
        axes.plot([e["rows"] for e in entries], [e["step_ms"] for e in entries], marker="o", label=name)
    axes.set(xscale="log", yscale="log", xlabel="rows of the table", ylabel="ms a step", title="Optimizer step")
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)


def make_parser() -> argparse.ArgumentParser:
    """Command-line arguments."""
    parser = argparse.ArgumentParser(description="Times optimizer steps for n-gram tables.")
    parser.add_argument("--repeats", type=int, default=15, help="Steps of every table; the median counts.")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="Rows of the tables, smallest first.")
    parser.add_argument("--output", type=Path, default=Path("eval/results"), help="Folder for JSON, Markdown and PNG.")
    return parser


def main(arguments: argparse.Namespace):
    """Measures, writes, prints."""
    check_counts(arguments, "repeats", "sizes")
    torch.set_num_threads(1)
    load = load_average()
    measured = []
    for name in track(OPTIMIZERS, "optimizers", transient=True):
        measured += measure(name, tuple(arguments.sizes), arguments.repeats)
    results = {
        "machine": describe_machine(),
        "load_average": load,
        "repeats": arguments.repeats,
        "measured": measured,
        "verdicts": judged(measured),
    }
    paths = write_report(arguments.output, NAME, results, as_markdown(results))
    paths.append(arguments.output / f"{NAME}.png")
    draw(measured, paths[-1])
    Console().print("Written: " + ", ".join(map(str, paths)), soft_wrap=True)


if __name__ == "__main__":
    main(make_parser().parse_args())
