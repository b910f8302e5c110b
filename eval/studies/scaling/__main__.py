# SPDX-License-Identifier: Apache-2.0
"""Do embeddings scale better than experts? The paper's experiments (arXiv 2601.21204, section 3), small enough to run.

    python -m eval.studies.scaling --config training/recipes/study_cpu.yaml
    python -m eval.studies.scaling --config training/recipes/study_cpu.yaml --report-only

Trains a grid of models that have the same total and the same activated parameters and spend them on experts or on
n-gram tables; then writes tables, intervals over the seeds and plots. Each run leaves a JSON file in the folder of
runs and is not trained again: an interrupted study goes on where it was, and `--report-only` makes every table and
figure from what is there. A point that cannot be matched, a text too small for a budget, a run that fails: each is
named, and the rest goes on.
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

from eval.studies.scaling import report as study_report
from eval.studies.scaling.grid import Point, fingerprint, grid, match
from eval.studies.scaling.run import RunSettings
from modeling_longcat_lite.whole_files import write_whole
from tokenization.number_options import check_number
from training.data.token_rows import TextSettings, prepare_text

NAME = "scaling_study"
KEYS = {"text", "model", "training", "point", "experiments", "workers", "threads"}
NEEDED, OPTIONAL = {"vary", "tokens", "seeds"}, {"model", "training"}  # keys of an experiment; `quick` replaces some


def read_study(path: Path, quick: bool) -> dict[str, Any]:
    """The config, with the values of `quick` in each experiment if asked for.

    Raises:
        `ValueError`: a key that no study has, or one that is missing.
    """
    study = yaml.safe_load(path.read_text(encoding="utf-8"))
    for key in study.keys() ^ KEYS:
        raise ValueError(f"{path}: `{key}` is {'no key of a study' if key in study else 'missing'}")
    for name, experiment in study["experiments"].items():
        short = experiment.pop("quick", {})
        if quick:
            experiment.update(short)
        for key in sorted(NEEDED - experiment.keys()):
            raise ValueError(f"{path}: experiment `{name}` lacks `{key}`")
        for key in sorted(experiment.keys() - NEEDED - OPTIONAL):
            raise ValueError(f"{path}: experiment `{name}` has `{key}`, which is no key of an experiment")
        check_number(f"experiments.{name}.tokens", experiment["tokens"], least=1)
    for key in ("workers", "threads"):
        check_number(key, study[key], least=1)
    return study


def make_plan(study: dict[str, Any], text: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Experiments, points and runs. A run that several experiments ask for is one run.

    Every run has a `name` that stands for all it depends on; points that cannot be are listed by their problem.
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
    """Raise a `ValueError` where the text would be read too often."""
    epochs = tokens / text["train"]["tokens"]
    if epochs > settings.max_epochs:
        raise ValueError(
            f"{tokens:,} tokens are {epochs:.1f} times the text of {text['train']['tokens']:,}, above `max_epochs` = "
            f"{settings.max_epochs:g}: give more `files`, or ask for fewer `tokens`"
        )


def train_all(runs: list[dict[str, Any]], folder: Path, workers: int, threads: int) -> list[str]:
    """Trains what is not there yet, `workers` runs side by side; returns the problems of those that failed."""
    waiting = [run for run in runs if not (folder / f"{run['name']}.json").is_file()]
    problems: list[str] = []
    columns = (TextColumn("runs"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress, ThreadPoolExecutor(workers) as pool:
        task = progress.add_task("runs", total=len(runs), completed=len(runs) - len(waiting))

        def do(run: dict[str, Any]) -> None:
            problem = train_one(run, folder / f"{run['name']}.json", threads)
            if problem:
                problems.append(problem)
                progress.console.print(f"[red]{problem}")
            progress.advance(task)

        list(pool.map(do, waiting))
    return problems


def train_one(run: dict[str, Any], target: Path, threads: int) -> str | None:
    """One run in a process of its own; returns what went wrong, with the last line that it wrote."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory() as elsewhere:
        source = Path(elsewhere) / "run.json"
        source.write_text(json.dumps(run), encoding="utf-8")
        command: list[str | Path] = [sys.executable, "-m", "eval.studies.scaling.run", source, target]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return f"run {run['name']} failed: {last}"
    return None


def read_runs(plan: dict[str, Any], folder: Path) -> dict[str, dict]:
    """The kept JSON of the runs that the plan asks for."""
    paths = {name: folder / f"{name}.json" for name in plan["runs"]}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.is_file()}


def plan_file(folder: Path, quick: bool) -> Path:
    """Where the plan lies beside its runs. A quick study has its own, and leaves the other one alone."""
    return folder / ("plan_quick.json" if quick else "plan.json")


def write_report(plan: dict[str, Any], runs: dict[str, dict], output: Path, name: str) -> list[Path]:
    """JSON, Markdown, and a plot for each experiment that has a result."""
    summary = study_report.summarize(plan, runs)
    output.mkdir(parents=True, exist_ok=True)
    paths = [output / f"{name}.json", output / f"{name}.md"]
    write_whole(paths[0], (json.dumps(summary, indent=1) + "\n").encode())
    write_whole(paths[1], study_report.as_markdown(summary, name).encode())
    for title, experiment in summary["experiments"].items():
        if experiment["rows"]:
            paths.append(output / f"{name}_{title}.png")
            study_report.draw(title, experiment, paths[-1])
    return paths


def make_parser() -> argparse.ArgumentParser:
    """Command-line arguments."""
    parser = argparse.ArgumentParser(prog="python -m eval.studies.scaling", description=__doc__.split("\n")[0])
    parser.add_argument("--config", type=Path, required=True, help="study as YAML, such as recipes/study_cpu.yaml")
    parser.add_argument("--quick", action="store_true", help="each experiment with the values of its `quick`")
    parser.add_argument("--only", nargs="+", metavar="EXPERIMENT", help="experiments to train; all by default")
    parser.add_argument("--text", type=Path, default=Path("outputs/study/text"), help="folder of the tokenized text")
    parser.add_argument(
        "--runs", type=Path, default=Path("eval/results/scaling_study_runs"), help="folder of the runs"
    )
    parser.add_argument("--output", type=Path, default=Path("eval/results"), help="folder of the report")
    parser.add_argument("--report-only", action="store_true", help="train nothing, report what is there")
    return parser


def main(arguments: argparse.Namespace) -> int:
    """Plan, train, report; the exit status is 1 where a run failed."""
    problems = [] if arguments.report_only else plan_and_train(arguments)
    kept = plan_file(arguments.runs, arguments.quick)
    if not kept.is_file():
        raise ValueError(f"`runs` {arguments.runs} has no {kept.name}: leave `--report-only` out to train first")
    plan = json.loads(kept.read_text(encoding="utf-8"))
    paths = write_report(plan, read_runs(plan, arguments.runs), arguments.output, NAME + "_quick" * arguments.quick)
    Console().print("Written: " + ", ".join(map(str, paths)), soft_wrap=True)
    return 1 if problems else 0


def plan_and_train(arguments: argparse.Namespace) -> list[str]:
    """Writes the plan into the folder of runs and trains what is missing; returns the problems of runs."""
    study = read_study(arguments.config, arguments.quick)
    unknown = set(arguments.only or []) - study["experiments"].keys()
    if unknown:
        raise ValueError(f"`only`: no experiment {', '.join(sorted(unknown))} in {arguments.config}")
    text = prepare_text(arguments.text, TextSettings(**study["text"]))
    kept = plan_file(arguments.runs, arguments.quick)
    check_same_text(kept, text)
    plan = make_plan(study, text, arguments.text)
    plan["command"] = f"python -m eval.studies.scaling --config {arguments.config}" + " --quick" * arguments.quick
    print_plan(plan)
    arguments.runs.mkdir(parents=True, exist_ok=True)
    write_whole(kept, (json.dumps(plan, indent=1) + "\n").encode())
    chosen = arguments.only or list(plan["experiments"])
    names = {run["name"] for name in chosen for point in plan["experiments"][name]["points"] for run in point["runs"]}
    runs = [run for name, run in plan["runs"].items() if name in names]
    return train_all(runs, arguments.runs, study["workers"], study["threads"])


def check_same_text(kept: Path, text: dict[str, Any]) -> None:
    """Raise a `ValueError` where the kept plan is of another text: another Python has another standard library."""
    if kept.is_file() and json.loads(kept.read_text(encoding="utf-8"))["text"]["sha256"] != text["sha256"]:
        raise ValueError(
            f"`runs` {kept.parent} holds a study of another text than {text['train']['files']} files of this Python "
            "and `files`: choose another folder with `--runs`, and one for the report with `--output`"
        )


def print_plan(plan: dict[str, Any]) -> None:
    """What each point has of parameters, how far it is from what it is compared with, and which cannot be."""
    console = Console()
    for name, experiment in plan["experiments"].items():
        for point in experiment["points"]:
            facts = ", ".join(f"{key} {value}" for key, value in point["facts"].items() if value is not None)
            console.print(f"{name}: {point['label']}: {facts}", highlight=False, soft_wrap=True)
        points = experiment["points"]
        for place, other in study_report.references(points, experiment["varied"], plan["base"]):
            gaps = study_report.gaps(points[place], points[other])
            console.print(
                f"{name}: {points[place]['label']} against {points[other]['label']}: total {gaps['total_gap']:+.2%}, "
                f"activated {gaps['activated_gap']:+.2%}",
                highlight=False,
                soft_wrap=True,
            )
        for problem in experiment["not_matched"]:
            console.print(f"[red]{name}: {problem}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main(make_parser().parse_args()))
