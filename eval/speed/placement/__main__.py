# SPDX-License-Identifier: Apache-2.0
"""What it costs to keep the n-gram tables resident, in host memory or on disk, with a cold and a warm page cache.

    python -m eval.speed.placement --work-dir FOLDER_ON_A_DRIVE
    python -m eval.speed.placement --quick --output outputs/placement

Makes a checkpoint with tables of `--gigabytes`, measures each case in a fresh process and writes the figures as JSON,
Markdown and PNG. Linux only; needs no privileges.
"""

import argparse
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from transformers.utils import logging

from eval.reports.files import write_report
from eval.reports.machine import describe_machine, load_average
from eval.speed.models import RELEASED_ROWS, Shape
from eval.speed.placement.cases import Workload, in_fresh_process, measure_case, measure_in_turns
from eval.speed.placement.large_tables import (
    BACKBONE,
    check_space,
    make_checkpoint,
    table_bytes,
    table_files,
    with_tables,
)
from eval.speed.placement.linux import MEMORY, available_memory, can_evict
from eval.speed.placement.report import as_markdown, draw, summary_table
from tokenization.command_line import CommandParser, run_command
from tokenization.number_options import check_counts, check_number

NAME = "table_placement"
GIGABYTES, QUICK_GIGABYTES = 8.0, 0.03
HARDLY_ANY = 10**6  # bytes of tables in the checkpoint that is taken for the backbone alone
SPARE = 2 * 10**9  # bytes of memory that the model and the rest may take
QUICK_SHAPE = replace(
    RELEASED_ROWS, vocab_size=512, hidden_size=768, num_attention_heads=2, q_lora_rank=64, kv_lora_rank=32
)
QUICK = Workload(decode_repeats=2, decode_tokens=4, context=16, prefill_repeats=2, prefill_tokens=128)


@dataclass(frozen=True)
class Measurement:
    """A process: tables `full`, `eighth` or `none`; one placement under a state, or several in turns."""

    tables: str
    placements: tuple[str, ...]
    state: str

    @property
    def name(self) -> str:
        return f"{', '.join(self.placements)}, {'in turns' if len(self.placements) > 1 else self.state}"

    def workload(self, base: Workload) -> Workload:
        """Fewer repeats where memory alone is wanted, or where time is shown for contrast only."""
        if self.tables != "full":
            return replace(base, decode_repeats=1, prefill_repeats=1)
        if (self.placements, self.state) == (("resident",), "cold"):
            # A page fault brings in what the kernel reads ahead, megabytes on some drives.
            return replace(
                base, decode_repeats=min(3, base.decode_repeats), prefill_repeats=min(2, base.prefill_repeats)
            )
        return base


MEASUREMENTS = (
    *(Measurement("full", (place,), state) for place in ("resident", "host", "disk") for state in ("cold", "warm")),
    Measurement("full", ("disk",), "evicted"),
    Measurement("eighth", ("disk",), "cold"),
    Measurement("none", ("resident",), "warm"),
    Measurement("full", ("resident", "disk", "host"), "warm"),
)


def choose_measurements(num_bytes: int, available: int) -> tuple[list[Measurement], list[str]]:
    """Those that memory allows with tables of `num_bytes`, and why others are left out.

    Raises:
        `ValueError`: if the page cache cannot hold the tables, so that nothing would be warm.
    """
    if available < num_bytes + SPARE:
        raise ValueError(
            f"{num_bytes / 1e9:.1f} GB of tables cannot be warm in {available / 1e9:.1f} GB of available memory, of "
            f"which the model takes up to {SPARE / 1e9:.0f} GB: choose fewer `--gigabytes`."
        )
    if available >= 2 * num_bytes + SPARE:
        return list(MEASUREMENTS), []
    kept = [replace(one, placements=tuple(name for name in one.placements if name != "host")) for one in MEASUREMENTS]
    reason = f"host tables, since {available / 1e9:.1f} GB of memory cannot hold them and a warm page cache."
    return [one for one in kept if one.placements], [reason]


@contextmanager
def working_folder(parent: Path | None, keep: bool) -> Iterator[Path]:
    """A folder for checkpoints, of a fixed name in `parent` or a fresh temporary one; deleted unless `keep`."""
    if parent is None:
        folder = Path(tempfile.mkdtemp(prefix=f"{NAME}-"))
    else:
        folder = parent / NAME
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    finally:
        if not keep:
            shutil.rmtree(folder)


def check_drive(work: Path, shapes: list[Shape]):
    """Raises a `ValueError` if checkpoints do not fit into `work`, or cannot leave memory there."""
    check_space(work, shapes)
    if not can_evict(work):
        raise ValueError(
            "Files of `--work-dir` stay in memory when they are evicted: its file system keeps them there (tmpfs?). "
            "Choose a folder on a drive."
        )


def describe(folder: Path, shape: Shape) -> dict:
    """What was measured: the model's shape, and its bytes."""
    tables = table_files(folder)
    return {
        "shape": asdict(shape),
        "backbone_bytes": (folder / BACKBONE).stat().st_size,
        "tables": {
            "number": len(tables),
            "rows": sum(table.rows for table in tables),
            "row_bytes": tables[0].row_bytes,
            "bytes": sum(table.rows * table.row_bytes for table in tables),
        },
    }


def measure(
    work: Path, shapes: dict[str, Shape], chosen: list[Measurement], base: Workload, seed: int, threads: int | None
) -> dict:
    """Makes the checkpoints and measures: `cases`, `in_turns`, and what [`describe`] says."""
    cases, in_turns = [], {}
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("Writing tables", total=sum(map(table_bytes, shapes.values())))
        folders = {
            name: make_checkpoint(work, shape, seed, lambda num_bytes: progress.advance(task, num_bytes))
            for name, shape in shapes.items()
        }
        measuring = progress.add_task("Measuring", total=len(chosen))
        for one in chosen:
            progress.update(measuring, description=one.name)
            folder, workload = folders[one.tables], one.workload(base)
            if len(one.placements) > 1:
                in_turns = in_fresh_process(threads, measure_in_turns, folder, one.placements, workload, seed)
            else:
                case = (folder, one.placements[0], one.state, workload, seed)
                cases.append({"tables": one.tables, **in_fresh_process(threads, measure_case, *case)})
            progress.advance(measuring)
    return {**describe(folders["full"], shapes["full"]), "cases": cases, "in_turns": in_turns}


def make_parser() -> CommandParser:
    """Command-line arguments."""
    parser = CommandParser("eval.speed.placement", __doc__.split("\n")[0])
    parser.add_shared("--quick", help="small tables and few repeats, to see that the command works")
    parser.add_argument(
        "--gigabytes",
        type=float,
        help=f"size of all tables, {GIGABYTES} or with --quick {QUICK_GIGABYTES} if left out",
    )
    parser.add_shared("--repeats", default=None, help="decode and prefill runs of each case, 9 and 7 if left out")
    parser.add_argument(
        "--work-dir", type=Path, metavar="DIR", help="folder for the checkpoints; a temporary one if left out"
    )
    parser.add_argument("--keep", action="store_true", help="keep the checkpoints; in --work-dir they are used again")
    parser.add_shared("--threads", "--seed")
    parser.add_shared("--name", default=NAME)
    parser.add_shared("--output", default=Path("eval/results"))
    return parser


def main(arguments: argparse.Namespace) -> None:
    """Makes checkpoints, measures, prints, writes."""
    check_counts(arguments, "repeats", "threads")
    check_number("--gigabytes", arguments.gigabytes, above=0)
    if not MEMORY.exists():
        raise ValueError("`eval.speed.placement` needs Linux: it reads /proc, which does not exist here.")
    logging.disable_progress_bar()
    base, workload = (QUICK_SHAPE, QUICK) if arguments.quick else (RELEASED_ROWS, Workload())
    if arguments.repeats:
        workload = replace(workload, decode_repeats=arguments.repeats, prefill_repeats=arguments.repeats)
    num_bytes = 1e9 * (arguments.gigabytes or (QUICK_GIGABYTES if arguments.quick else GIGABYTES))
    sizes = {"full": int(num_bytes), "eighth": int(num_bytes / 8), "none": HARDLY_ANY}
    shapes = {name: with_tables(base, size) for name, size in sizes.items()}
    chosen, left_out = choose_measurements(sizes["full"], available_memory())
    results = {
        "machine": describe_machine() | ({"threads": arguments.threads} if arguments.threads else {}),
        "load_average": {"start": load_average()},
        "quick": arguments.quick,
        "seed": arguments.seed,
        "workload": asdict(workload),
        "left_out": left_out,
    }
    with working_folder(arguments.work_dir, arguments.keep) as work:
        check_drive(work, list(shapes.values()))
        results |= measure(work, shapes, chosen, workload, arguments.seed, arguments.threads)
    results["load_average"]["end"] = load_average()
    markdown = as_markdown(results, f"{arguments.name}.png")
    paths = write_report(arguments.output, arguments.name, results, markdown, draw(results))
    print(summary_table(results), *(f"Written: {path}" for path in paths), sep="\n")


if __name__ == "__main__":
    run_command(lambda: main(make_parser().parse_args()))
