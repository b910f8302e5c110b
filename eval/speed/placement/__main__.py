# SPDX-License-Identifier: Apache-2.0
"""What it costs to keep the n-gram tables resident, in host memory or on disk, with a cold and a warm page cache.

    python -m eval.speed.placement --work-dir FOLDER_ON_A_DRIVE
    python -m eval.speed.placement --quick --output outputs/placement

Makes a checkpoint with tables of `--gigabytes`, measures each case in a process of its own
(`eval.speed.placement.run`) and writes verdicts and figures as JSON, Markdown and PNG. Linux only; needs no
privileges.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from transformers.utils import logging

from eval.reports.files import write_report
from eval.reports.machine import describe_machine, load_average
from eval.speed.models import Shape
from eval.speed.placement.large_tables import check_space, make_checkpoint, stored_tables, table_bytes, with_tables
from eval.speed.placement.linux import can_evict
from eval.speed.placement.report import as_markdown, draw, verdict_lines
from eval.speed.placement.run import Plan
from eval.speed.placement.verdicts import judge_all
from tokenization.number_options import check_counts, check_number

NAME = "table_placement"
ROOT = Path(__file__).parents[3]
MEMORY = Path("/proc/meminfo")
HARDLY_ANY = 10**6  # bytes of tables of the checkpoint that stands for the backbone alone

# Rows of 512 bytes in 12 tables, as released, behind a backbone of one layer.
SHAPE = Shape(
    hidden_size=3072,
    num_layers=1,
    ffn_hidden_size=1024,
    expert_ffn_hidden_size=256,
    q_lora_rank=256,
    kv_lora_rank=128,
    qk_nope_head_dim=64,
    qk_rope_head_dim=32,
    v_head_dim=64,
    n_routed_experts=8,
    zero_expert_num=4,
)
QUICK_SHAPE = replace(SHAPE, vocab_size=512, hidden_size=768, num_attention_heads=2, q_lora_rank=64, kv_lora_rank=32)
QUICK_PLAN = Plan(decode_repeats=2, decode_tokens=4, context=16, prefill_repeats=2, prefill_tokens=128)
QUICK_GIGABYTES = 0.03


@dataclass(frozen=True)
class Run:
    """A process: tables `full`, `eighth` or `none`; one placement under a state, or several in turns."""

    tables: str
    placements: tuple[str, ...]
    state: str

    @property
    def name(self) -> str:
        return f"{', '.join(self.placements)}, {'in turns' if len(self.placements) > 1 else self.state}"


RUNS = (
    *(Run("full", (placement,), state) for placement in ("resident", "host", "disk") for state in ("cold", "warm")),
    Run("full", ("disk",), "evicted"),
    Run("eighth", ("disk",), "cold"),
    Run("none", ("resident",), "warm"),
    Run("full", ("resident", "disk", "host"), "warm"),
)


def available_memory() -> int:
    """Bytes that the kernel could give to a process."""
    lines = dict(line.split(":", 1) for line in MEMORY.read_text().splitlines())
    return 1024 * int(lines["MemAvailable"].split()[0])


def choose_runs(num_bytes: int, available: int) -> tuple[list[Run], list[str]]:
    """The runs that memory allows with tables of `num_bytes`, and why others are left out.

    Raises:
        `ValueError`: if the page cache cannot hold the tables, without which nothing is warm.
    """
    spare = 2 * 10**9
    if available < num_bytes + spare:
        raise ValueError(
            f"{num_bytes / 1e9:.1f} GB of tables cannot be warm in {available / 1e9:.1f} GB of available memory, of "
            f"which the model takes up to {spare / 1e9:.0f} GB: choose fewer `--gigabytes`."
        )
    if available >= 2 * num_bytes + spare:
        return list(RUNS), []
    kept = [replace(run, placements=tuple(name for name in run.placements if name != "host")) for run in RUNS]
    reason = f"host tables, for which {available / 1e9:.1f} GB of memory are too few beside a warm page cache."
    return [run for run in kept if run.placements], [reason]


def launch(arguments: list[str]) -> dict:
    """What `eval.speed.placement.run` measures in a fresh process.

    Raises:
        `RuntimeError`: with the end of what it wrote, if it failed.
    """
    command = [sys.executable, "-m", "eval.speed.placement.run", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"eval.speed.placement.run ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def run_arguments(run: Run, folder: Path, plan: Plan, seed: int, threads: int | None) -> list[str]:
    """The command line of a run: with fewer repeats where memory alone is wanted, or time for contrast."""
    if run.tables != "full":
        plan = replace(plan, decode_repeats=1, prefill_repeats=1)
    elif (run.placements, run.state) == (("resident",), "cold"):
        # A page fault there brings in what the kernel reads ahead, megabytes on some drives.
        plan = replace(plan, decode_repeats=min(3, plan.decode_repeats), prefill_repeats=min(2, plan.prefill_repeats))
    command = [str(folder), "--placements", *run.placements, "--state", run.state, "--seed", str(seed)]
    for name, value in asdict(plan).items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    return [*command, "--threads", str(threads)] if threads else command


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
    """Raises a `ValueError` if checkpoints do not fit into `work`, or stay in memory there, before any is written."""
    check_space(work, shapes)
    if not can_evict(work):
        raise ValueError(
            "Files of `--work-dir` stay in memory when they are evicted: its file system keeps them there (tmpfs?). "
            "Choose a folder on a drive."
        )


def make_checkpoints(work: Path, shapes: dict[str, Shape], seed: int, progress: Progress) -> dict[str, Path]:
    """The checkpoint of each shape, by the same name."""
    task = progress.add_task("Writing tables", total=sum(map(table_bytes, shapes.values())))
    return {
        name: make_checkpoint(work, shape, seed, lambda num_bytes: progress.advance(task, num_bytes))
        for name, shape in shapes.items()
    }


def make_parser() -> argparse.ArgumentParser:
    """Command-line arguments."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="Small tables, few repeats: to see that it works.")
    parser.add_argument("--gigabytes", type=float, help=f"Of all tables; 8, or {QUICK_GIGABYTES} with --quick.")
    parser.add_argument("--repeats", type=int, help="Runs per case, instead of the plan's.")
    parser.add_argument("--work-dir", type=Path, help="Where the checkpoints are made; a temporary folder by default.")
    parser.add_argument("--keep", action="store_true", help="Keep the checkpoints; in --work-dir they are used again.")
    parser.add_argument("--threads", type=int, help="Threads of torch; its own choice (the cores) by default.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("eval/results"), help="Folder for JSON, Markdown and PNG.")
    return parser


def describe(folder: Path, shape: Shape, arguments: argparse.Namespace, plan: Plan) -> dict:
    """What was measured on what."""
    tables = stored_tables(folder)
    return {
        "machine": describe_machine() | ({"threads": arguments.threads} if arguments.threads else {}),
        "quick": arguments.quick,
        "seed": arguments.seed,
        "shape": asdict(shape),
        "plan": asdict(plan),
        "backbone_bytes": (folder / "model-backbone.safetensors").stat().st_size,
        "tables": {
            "number": len(tables),
            "rows": sum(table.rows for table in tables),
            "row_bytes": tables[0].row_bytes,
            "bytes": sum(table.rows * table.row_bytes for table in tables),
        },
    }


def main(arguments: argparse.Namespace):
    """Makes checkpoints, measures, prints, writes."""
    check_counts(arguments, "repeats", "threads")
    check_number("--gigabytes", arguments.gigabytes, above=0)
    console = Console()
    logging.disable_progress_bar()
    if not MEMORY.exists():
        raise ValueError("`eval.speed.placement` reads Linux's /proc, which is not there.")
    base, plan = (QUICK_SHAPE, QUICK_PLAN) if arguments.quick else (SHAPE, Plan())
    if arguments.repeats:
        plan = replace(plan, decode_repeats=arguments.repeats, prefill_repeats=arguments.repeats)
    gigabytes = arguments.gigabytes or (QUICK_GIGABYTES if arguments.quick else 8.0)
    sizes = {"full": int(gigabytes * 1e9), "eighth": int(gigabytes * 1e9 / 8), "none": HARDLY_ANY}
    shapes = {name: with_tables(base, size) for name, size in sizes.items()}
    runs, left_out = choose_runs(sizes["full"], available_memory())
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    load, cases, in_turns = {"start": load_average()}, [], {}
    with working_folder(arguments.work_dir, arguments.keep) as work, Progress(*columns, console=console) as progress:
        check_drive(work, list(shapes.values()))
        folders = make_checkpoints(work, shapes, arguments.seed, progress)
        task = progress.add_task("Measuring", total=len(runs))
        for run in runs:
            progress.update(task, description=run.name)
            measured = launch(run_arguments(run, folders[run.tables], plan, arguments.seed, arguments.threads))
            if len(run.placements) > 1:
                in_turns = measured
            else:
                cases.append({"tables": run.tables, **measured})
            progress.advance(task)
        described = describe(folders["full"], shapes["full"], arguments, plan)
    load["end"] = load_average()
    results = {**described, "load_average": load, "left_out": left_out, "cases": cases, "in_turns": in_turns}
    results["verdicts"] = judge_all(results)
    write_report(arguments.output, NAME, results, as_markdown(results))
    draw(results, arguments.output / f"{NAME}.png")
    header, lines = verdict_lines(results["verdicts"])
    table = Table(*header, title="Placement of the n-gram tables")
    for line in lines:
        table.add_row(*line)
    console.print(table)
    console.print(f"Written: {arguments.output}/{NAME}.json, .md and .png")


if __name__ == "__main__":
    main(make_parser().parse_args())
