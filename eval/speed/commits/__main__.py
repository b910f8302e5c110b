# SPDX-License-Identifier: Apache-2.0
"""Is this checkout as fast as an earlier commit? Loading, saving, generating and a training step, in pairs.

    python -m eval.speed.commits --base 6a3c861

Each repeat runs a process of either commit, one after the other, so that both see the same load of the machine. The
earlier commit is checked out into a folder of its own, which is removed afterwards.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from tqdm import tqdm

from eval.reports.files import markdown_table, write_report
from eval.reports.machine import describe_machine, load_average

ROOT = Path(__file__).parents[3]
WORKER = Path(__file__).with_name("worker.py")


@contextlib.contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """The files of a commit in a folder of their own."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "base"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(folder), revision], check=True)
        try:
            yield folder
        finally:
            subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def run_worker(package: Path, *arguments: str) -> str:
    """What the worker prints with the package that lies in the folder `package`."""
    environment = {**os.environ, "PYTHONPATH": str(package), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", str(WORKER), *arguments]
    return subprocess.run(command, env=environment, cwd=package, capture_output=True, text=True, check=True).stdout


def compare(base: Path, repeats: int) -> dict[str, dict]:
    """Per case: the values of either side, in the order of the repeats, and the median of `now / before`."""
    values: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as folder:
        run_worker(base, "--make", folder)
        sides = [("before", base), ("now", ROOT)]
        for repeat in tqdm(range(repeats), desc="pairs"):
            for side, package in sides if repeat % 2 else sides[::-1]:
                for case, value in json.loads(run_worker(package, folder).splitlines()[-1]).items():
                    values.setdefault(case, {"before": [], "now": []})[side].append(value)
    for sides_of_case in values.values():
        pairs = zip(sides_of_case["now"], sides_of_case["before"], strict=True)
        sides_of_case["ratio"] = median(now / before for now, before in pairs)
    return values


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="the earlier commit")
    parser.add_argument("--repeats", type=int, default=7, help="pairs of processes (default: 7)")
    parser.add_argument("--output", type=Path, default=ROOT / "eval" / "results", help="folder of the report")
    arguments = parser.parse_args()
    if arguments.repeats < 1:
        parser.error("--repeats must be at least 1")
    with checked_out(arguments.base) as base:
        cases = compare(base, arguments.repeats)
    results = {"base": arguments.base, "machine": describe_machine(), "load": load_average(), "cases": cases}
    rows = [
        [case, *(f"{median(found[side]):.3f}" for side in ("before", "now")), f"{found['ratio']:.3f}"]
        for case, found in cases.items()
    ]
    markdown = (
        f"# This commit against {arguments.base}\n\n"
        f"Seconds (memory in MB), medians of {arguments.repeats} pairs of processes on one thread; the ratio is the "
        f"median of the pairs' ratios, below 1 is faster now. Load average {results['load']}, "
        f"{results['machine']['date']}, torch {results['machine']['torch']}, transformers "
        f"{results['machine']['transformers']}, {results['machine']['cpu']}.\n\n"
        + markdown_table(["case", "before", "now", "now / before"], rows)
    )
    for path in write_report(arguments.output, "commit_speed", results, markdown):
        print(path)
    print(markdown)


if __name__ == "__main__":
    main()
