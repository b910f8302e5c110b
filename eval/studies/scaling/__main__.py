# SPDX-License-Identifier: Apache-2.0
"""Do embeddings scale better than experts? The experiments of arXiv 2601.21204, section 3, at a small size.

    python -m eval.studies.scaling --config training/recipes/study_cpu.yaml
    python -m eval.studies.scaling --config training/recipes/study_cpu.yaml --report-only

Trains a grid of models that have the same total and the same activated parameters and spend them on experts or on
n-gram tables; then writes tables, intervals over the seeds and plots. Each finished run is added to the file of runs
and is not trained again: an interrupted study continues, and `--report-only` makes every table and figure from that
file. A point that cannot be matched, a text too small for a budget, a run that fails: each is reported by name, and
the others continue.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from eval.reports.files import save_figure, write_report
from eval.studies.scaling.grid import Point, fingerprint, grid, match
from eval.studies.scaling.report import as_markdown, draw, gaps, references, summarize
from eval.studies.scaling.run import KeptRuns, RunSettings
from tokenization.command_line import CommandParser, run_command
from tokenization.number_options import check_number
from training.data.token_rows import TextSettings, prepare_text

NAME = "scaling_study"
KEYS = {"text", "model", "training", "point", "experiments", "workers", "threads"}
# Keys of an experiment; its `quick` has other values for some of them.
NEEDED, OPTIONAL = {"vary", "tokens", "seeds"}, {"model", "training"}


def read_study(path: Path, quick: bool) -> dict[str, Any]:
    """The study, with the values of `quick` in each experiment if asked for.

    Raises:
        `ValueError`: naming the unknown or missing key.
    """
    study = yaml.safe_load(path.read_text(encoding="utf-8"))
    for key in study.keys() ^ KEYS:
        raise ValueError(f"{path}: `{key}` is {'not a key of a study' if key in study else 'missing'}")
    for name, experiment in study["experiments"].items():
        short = experiment.pop("quick", {})
        if quick:
            experiment.update(short)
        for key in sorted(NEEDED - experiment.keys()):
            raise ValueError(f"{path}: experiment `{name}` lacks `{key}`")
        for key in sorted(experiment.keys() - NEEDED - OPTIONAL):
            raise ValueError(f"{path}: experiment `{name}` has `{key}`, which is not a key of an experiment")
        check_number(f"experiments.{name}.tokens", experiment["tokens"], least=1)
    for key in ("workers", "threads"):
        check_number(key, study[key], least=1)
    return study


def make_plan(study: dict[str, Any], text: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Experiments, points and runs. A run that several experiments need is trained once.

    The `name` of a run is a hash of everything that it depends on; for a point that cannot be matched, the plan has
    the reason.
    """
    vocabulary = {"vocab_size": text["vocabulary"], "ngram_base_vocab_size": text["vocabulary"]}
    plan: dict[str, Any] = {"text": text, "training": asdict(RunSettings(**study["training"]))}
    plan |= {"base": asdict(Point(**study["point"])), "experiments": {}, "runs": {}}
    for name, experiment in study["experiments"].items():
        changed = {key: value for key, value in experiment.items() if key in OPTIONAL}
        settings = RunSettings(**study["training"] | changed.get("training", {}))
        model = study["model"] | vocabulary | changed.get("model", {})
        varied = [field for key in experiment["vary"] for field in key.split()]
        points, problems = [], []
        for point in grid(study["point"], experiment["vary"]):
            try:
                check_budget(experiment["tokens"], text, settings)
                matched = match(model, point)
            except ValueError as error:
                problems.append(str(error))
                continue
            runs = []
            for seed in experiment["seeds"]:
                run = {
                    "config": matched.fields,
                    "training": asdict(settings),
                    "tokens": experiment["tokens"],
                    "length": text["settings"]["length"],
                    "text_sha256": text["sha256"],
                    "seed": seed,
                }
                run["name"] = f"{fingerprint(run)}-seed{seed}"
                plan["runs"][run["name"]] = {**run, "text": str(folder)}
                runs.append({"name": run["name"], "seed": seed})
            label = point.label(varied)
            points.append({"label": label, "point": asdict(point), "facts": matched.facts(), "runs": runs})
        plan["experiments"][name] = {
            "varied": varied,
            "tokens": experiment["tokens"],
            "changed": changed,
            "points": points,
            "not_matched": problems,
        }
    return plan


def check_budget(tokens: int, text: dict[str, Any], settings: RunSettings) -> None:
    """Raises a `ValueError` if the text would be read too often."""
    epochs = tokens / text["train"]["tokens"]
    if epochs > settings.max_epochs:
        raise ValueError(
            f"{tokens:,} tokens are {epochs:.1f} times the text of {text['train']['tokens']:,}, above `max_epochs` = "
            f"{settings.max_epochs:g}: give more `files`, or ask for fewer `tokens`"
        )


def train_all(runs: list[dict[str, Any]], kept: KeptRuns, workers: int, threads: int) -> list[str]:
    """Trains the runs that are not kept yet, `workers` at a time; returns one line for each run that failed."""
    waiting = [run for run in runs if run["name"] not in kept.runs]
    problems: list[str] = []
    columns = (TextColumn("runs"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress, ThreadPoolExecutor(workers) as pool:
        task = progress.add_task("runs", total=len(runs), completed=len(runs) - len(waiting))

        def do(run: dict[str, Any]) -> None:
            problem = train_one(run, kept, threads)
            if problem:
                problems.append(problem)
                progress.console.print(f"[red]{problem}")
            progress.advance(task)

        list(pool.map(do, waiting))
    return problems


def train_one(run: dict[str, Any], kept: KeptRuns, threads: int) -> str | None:
    """Trains a run in its own process and keeps it; if it failed, returns its name and the last line it wrote."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "run.json", Path(folder) / "result.json"
        source.write_text(json.dumps(run), encoding="utf-8")
        command: list[str | Path] = [sys.executable, "-m", "eval.studies.scaling.run", source, target]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if not done.returncode:
            kept.add_run(run, json.loads(target.read_text(encoding="utf-8")))
            return None
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return f"run {run['name']} failed: {last}"


def make_parser() -> CommandParser:
    """Command-line arguments."""
    parser = CommandParser("eval.studies.scaling", __doc__.split("\n")[0])
    parser.add_argument(
        "--config", type=Path, required=True, metavar="FILE", help="study as YAML, as training/recipes/study_cpu.yaml"
    )
    parser.add_shared("--quick", help="use the values of `quick` in each experiment")
    parser.add_argument("--only", nargs="+", metavar="EXPERIMENT", help="experiments to train; all if left out")
    parser.add_argument(
        "--text", type=Path, metavar="DIR", default=Path("outputs/study/text"), help="folder of the tokenized text"
    )
    parser.add_argument(
        "--runs",
        type=Path,
        metavar="FILE",
        default=Path("eval/results/scaling_study_runs.json"),
        help="JSON file that keeps the runs; finished ones are added to it",
    )
    parser.add_shared("--output", default=Path("eval/results"), help="folder for the report")
    parser.add_argument("--report-only", action="store_true", help="train nothing, report the kept runs")
    return parser


def main(arguments: argparse.Namespace) -> int:
    """Plans, trains, reports; the exit status is 1 if a run failed."""
    name, kept = NAME + "_quick" * arguments.quick, KeptRuns(arguments.runs)
    problems = [] if arguments.report_only else plan_and_train(arguments, name, kept)
    if name not in kept.plans:
        raise ValueError(f"`--runs` {arguments.runs} has no plan of {name}: leave out `--report-only` to train first")
    summary = summarize(kept.plans[name], kept.runs)
    paths = write_report(arguments.output, name, summary, as_markdown(summary, name))
    for title, experiment in summary["experiments"].items():
        if experiment["rows"]:
            paths.append(arguments.output / f"{name}_{title}.png")
            save_figure(draw(title, experiment), paths[-1])
    print("Written: " + ", ".join(map(str, paths)))
    return 1 if problems else 0


def plan_and_train(arguments: argparse.Namespace, name: str, kept: KeptRuns) -> list[str]:
    """Keeps the plan and trains the missing runs; returns one line for each run that failed."""
    study = read_study(arguments.config, arguments.quick)
    unknown = set(arguments.only or []) - study["experiments"].keys()
    if unknown:
        raise ValueError(f"`--only`: {arguments.config} has no experiment {', '.join(sorted(unknown))}")
    text = prepare_text(arguments.text, TextSettings(**study["text"]))
    if name in kept.plans and kept.plans[name]["text"]["sha256"] != text["sha256"]:
        raise ValueError(  # another Python has another standard library
            f"`--runs` {arguments.runs} holds a study of another text than {text['train']['files']} files of this "
            "Python and `files`: choose another file with `--runs`, and a folder for the report with `--output`"
        )
    plan = make_plan(study, text, arguments.text)
    plan["command"] = f"python -m eval.studies.scaling --config {arguments.config}" + " --quick" * arguments.quick
    print_plan(plan)
    kept.add_plan(name, plan)
    chosen = arguments.only or list(plan["experiments"])
    names = {run["name"] for one in chosen for point in plan["experiments"][one]["points"] for run in point["runs"]}
    runs = [run for run_name, run in plan["runs"].items() if run_name in names]
    return train_all(runs, kept, study["workers"], study["threads"])


def print_plan(plan: dict[str, Any]) -> None:
    """Prints the parameters of each point, the gaps to its reference, and the points that cannot be matched."""
    console = Console()
    for name, experiment in plan["experiments"].items():
        for point in experiment["points"]:
            facts = ", ".join(f"{key} {value}" for key, value in point["facts"].items() if value is not None)
            console.print(f"{name}: {point['label']}: {facts}", highlight=False, soft_wrap=True)
        points = experiment["points"]
        for place, other in references(points, experiment["varied"], plan["base"]):
            differences = gaps(points[place], points[other])
            pair = f"{points[place]['label']} against {points[other]['label']}"
            both = f"total {differences['total_gap']:+.2%}, activated {differences['activated_gap']:+.2%}"
            console.print(f"{name}: {pair}: {both}", highlight=False, soft_wrap=True)
        for problem in experiment["not_matched"]:
            console.print(f"[red]{name}: {problem}", soft_wrap=True)


if __name__ == "__main__":
    run_command(lambda: main(make_parser().parse_args()))
