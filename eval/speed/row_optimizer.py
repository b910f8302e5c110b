# SPDX-License-Identifier: Apache-2.0
"""How long an optimizer step takes for n-gram tables of more and more rows.

    python -m eval.speed.row_optimizer

Times one step for tables of 100 thousand, 1 million and 10 million rows: `RowwiseAdamW`, torch's SparseAdam and fused
AdamW. Writes JSON, Markdown and a chart. The largest table takes 10 GB with AdamW.

The tables of an optimizer take turns, a step each, so that a busy moment of the machine affects all sizes alike; the
ratio of two sizes is the median over these turns. A step reads new random rows, and its gradient arrives uncoalesced.
Everything runs in one thread, since sparse operations wait for each other's threads. Times are processor times, which
leave out what other programs take in between.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from matplotlib.figure import Figure
from rich.progress import track
from torch import nn

from eval.reports.files import markdown_table, write_report
from eval.reports.machine import describe_machine, load_average, machine_sentence
from tokenization.command_line import CommandParser, run_command
from tokenization.number_options import check_counts
from training.tables.optimizer import RowwiseAdamW

WIDTH = 64
READS = 4096  # rows that a step reads, with repeats
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
        """Processor time of a lookup with its gradient, and of the step that follows."""
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


def measure(name: str, sizes: list[int], repeats: int) -> list[dict]:
    """One entry a size: median milliseconds, state, and the median ratio to the first size."""
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


def as_markdown(results: dict) -> str:
    """The report for people."""
    lines = [
        [
            entry["optimizer"],
            f"{entry['rows']:,}",
            *(f"{entry[name]:.2f}" for name in ("gradient_ms", "step_ms", "ratio_to_smallest")),
            f"{entry['state_bytes_per_row']:.0f}",
        ]
        for entry in results["measured"]
    ]
    header = ["optimizer", "rows", "gradient, ms", "step, ms", "step / smallest table's", "state, bytes a row"]
    return "\n".join(
        [
            "# Optimizer steps for n-gram tables\n",
            machine_sentence(results["machine"], results["load_average"]) + "\n",
            f"Tables of width {WIDTH} in float32; a step reads {READS} random rows. Medians of {results['repeats']} "
            "steps, processor time.\n",
            markdown_table(header, lines),
        ]
    )


def draw(measured: list[dict]) -> Figure:
    """Step time by rows, one line an optimizer."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name in OPTIMIZERS:
        entries = [entry for entry in measured if entry["optimizer"] == name]
        axes.plot([e["rows"] for e in entries], [e["step_ms"] for e in entries], marker="o", label=name)
    axes.set(xscale="log", yscale="log", xlabel="rows of the table", ylabel="ms a step", title="Optimizer step")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def make_parser() -> CommandParser:
    """Command-line arguments."""
    parser = CommandParser("eval.speed.row_optimizer", __doc__.split("\n")[0])
    parser.add_shared("--repeats", default=15, help="steps of every table; the median counts")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[10**5, 10**6, 10**7], help="rows of the tables, smallest first"
    )
    parser.add_shared("--name", default="row_optimizer_speed")
    parser.add_shared("--output", default=Path("eval/results"))
    return parser


def main(arguments: argparse.Namespace) -> None:
    """Measures, writes, prints."""
    check_counts(arguments, "repeats", "sizes")
    torch.set_num_threads(1)
    load = load_average()
    measured = []
    for name in track(OPTIMIZERS, "optimizers", transient=True):
        measured += measure(name, arguments.sizes, arguments.repeats)
    results = {
        "machine": describe_machine(),
        "load_average": load,
        "repeats": arguments.repeats,
        "measured": measured,
    }
    markdown = as_markdown(results)
    paths = write_report(arguments.output, arguments.name, results, markdown, draw(measured))
    print(markdown, *(f"Written: {path}" for path in paths), sep="\n")


if __name__ == "__main__":
    run_command(lambda: main(make_parser().parse_args()))
