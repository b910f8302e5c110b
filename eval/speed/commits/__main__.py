# SPDX-License-Identifier: Apache-2.0
"""Speed and memory of this checkout next to those of an earlier commit: loading, saving, generating, a training step.

    python -m eval.speed.commits --base 6a3c861

Each repeat runs one process of either commit, one after the other, so that both see the same load of the machine. The
earlier commit is checked out into a temporary folder.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from rich.progress import track

from eval.reports.files import markdown_table, write_report
from eval.reports.machine import describe_machine, load_average, machine_sentence
from tokenization.command_line import CommandParser, run_command
from tokenization.number_options import check_counts

ROOT = Path(__file__).parents[3]
WORKERS = Path(__file__).parent  # the folder of `worker.py`


@contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """The files of a commit in a temporary folder.

    Raises:
        `ValueError`: if git does not know the commit.
    """
    git = ["git", "-C", str(ROOT)]
    known = subprocess.run([*git, "rev-parse", "--quiet", "--verify", f"{revision}^{{commit}}"], capture_output=True)
    if known.returncode:
        raise ValueError(f"`--base` is {revision}, which is not a commit of this checkout")
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "base"
        subprocess.run([*git, "worktree", "add", "--quiet", "--detach", str(folder), revision], check=True)
        try:
            yield folder
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", str(folder)], check=True)


def run_worker(package: Path, function: str, model: str) -> str:
    """What a function of `worker.py` prints for the folder of a model, with the package in the folder `package`."""
    python_path = os.pathsep.join(map(str, (package, WORKERS)))
    environment = {**os.environ, "PYTHONPATH": python_path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-c", f"import sys, worker; worker.{function}(sys.argv[1])", model]
    return subprocess.run(command, env=environment, cwd=package, capture_output=True, text=True, check=True).stdout


def compare(base: Path, repeats: int) -> dict[str, dict]:
    """Per case: the values of either side, in the order of the repeats, and the median of `now / before`."""
    values: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as model:
        run_worker(base, "make", model)
        sides = [("before", base), ("now", ROOT)]
        for repeat in track(range(repeats), "pairs"):
            for side, package in sides if repeat % 2 else sides[::-1]:
                for case, value in json.loads(run_worker(package, "measure", model).splitlines()[-1]).items():
                    values.setdefault(case, {"before": [], "now": []})[side].append(value)
    for by_side in values.values():
        pairs = zip(by_side["now"], by_side["before"], strict=True)
        by_side["ratio"] = median(now / before for now, before in pairs)
    return values


def as_markdown(results: dict) -> str:
    """The report for people."""
    rows = [
        [case, *(f"{median(values[side]):.3f}" for side in ("before", "now")), f"{values['ratio']:.3f}"]
        for case, values in results["cases"].items()
    ]
    repeats = len(next(iter(results["cases"].values()))["now"])
    return "\n".join(
        [
            f"# This commit compared with {results['base']}\n",
            machine_sentence(results["machine"], results["load_average"]) + "\n",
            f"Seconds (memory in MB), medians of {repeats} pairs of processes. The ratio is the median of the pairs' "
            "ratios: below 1, the newer commit is faster or smaller.\n",
            markdown_table(["case", "before", "now", "now / before"], rows),
        ]
    )


def make_parser() -> CommandParser:
    """Command-line arguments."""
    parser = CommandParser("eval.speed.commits", __doc__.split("\n")[0])
    parser.add_argument("--base", required=True, metavar="COMMIT", help="the earlier commit")
    parser.add_shared("--repeats", default=7, help="pairs of processes; the median counts")
    parser.add_shared("--name", default="commit_speed")
    parser.add_shared("--output", default=Path("eval/results"))
    return parser


def main(arguments: argparse.Namespace) -> None:
    """Measures, writes, prints."""
    check_counts(arguments, "repeats")
    with checked_out(arguments.base) as base:
        cases = compare(base, arguments.repeats)
    machine = describe_machine() | {"threads": 1}  # of each process
    results = {"base": arguments.base, "machine": machine, "load_average": load_average(), "cases": cases}
    markdown = as_markdown(results)
    paths = write_report(arguments.output, arguments.name, results, markdown)
    print(markdown, *(f"Written: {path}" for path in paths), sep="\n")


if __name__ == "__main__":
    run_command(lambda: main(make_parser().parse_args()))
