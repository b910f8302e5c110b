# SPDX-License-Identifier: Apache-2.0
"""Benchmarks of a model by lm-evaluation-harness, next to the numbers that the paper publishes.

    python -m eval.harness --model outputs/demo/model --suite smoke
    python -m eval.harness --model path/to/LongCat-Flash-Lite --suite base --batch-size 16 --ngram-tables host
    python -m eval.harness --model outputs/demo/model --suite smoke --ablation zeroed
    python -m eval.harness --model path/to/LongCat-Flash-Lite --suite chat --tasks gpqa_diamond mmlu --limit 100

`smoke` is made from Python's documentation and needs nothing else. `base` and `chat` are the paper's tables. Where a
benchmark needs data from the Hub, docker, a server or another program, the command says so and prints the commands to
run there; scores of other programs join the report with `--record tau2_airline=0.58`. Finished benchmarks are kept, so
that the same command continues after an interruption, and the report shows all of them. The exit status is 0 if every
chosen benchmark has a score, and 1 otherwise.
"""

import argparse
import logging
import shlex
from functools import cached_property
from math import nan
from pathlib import Path
from typing import Any

import datasets
from lm_eval.tasks import TaskManager
from rich.console import Console

from eval.checkpoints.load import ModelFolder
from eval.harness.needs import NotRun, external_needs, load_or_need, needs_of_context
from eval.harness.report import as_markdown
from eval.harness.run import FinishedBenchmarks, LongCatLiteLM, Settings, load_model, run_benchmark
from eval.harness.suite import Benchmark, ExternalBenchmark, Suite, suite_named, suites
from eval.ngrams.ablation.ablated import ABLATIONS, ablated, check_ablation
from eval.reports.files import write_report
from eval.reports.machine import describe_machine
from tokenization.command_line import CommandParser, run_command
from tokenization.number_options import check_counts, check_number

KEPT_KEYS = ("num_fewshot", "seconds", "examples")  # of a finished benchmark, apart from its results
RECORDED = "score, recorded"  # the metric of what `--record` gives


class Harness:
    """One run of the command: the suite, its data, and the model, which is loaded when it is first needed."""

    def __init__(self, arguments: argparse.Namespace):
        self.arguments = arguments
        self.model = ModelFolder(arguments.model)
        self.model.check()
        check_ablation(arguments.ablation, self.model.config)
        self.suite = suite_named(arguments.suite)
        self.benchmarks = self.suite.chosen(arguments.tasks)
        if any(isinstance(one, Benchmark) and one.as_chat for one in self.benchmarks):
            self.model.check_chat_template()
        tokenizer_sha256 = self.model.tokenizer_sha256
        self.tasks = arguments.work / f"{self.suite.name}_tasks" / f"{tokenizer_sha256[:8]}-{arguments.seed}"
        self.settings = Settings(
            seed=arguments.seed,
            limit=arguments.limit,
            dtype=arguments.dtype,
            ablation=arguments.ablation,
            tokenizer_sha256=tokenizer_sha256,
            data_sha256=self.suite.prepare(self.tasks, self.model, arguments.seed) if self.suite.prepare else "",
        )
        self.finished = FinishedBenchmarks(arguments.work, self.model, self.settings)
        if not arguments.resume:
            for benchmark in self.benchmarks:
                self.finished.forget(benchmark)

    @cached_property
    def manager(self) -> TaskManager:
        """The suite's own tasks, and lm-eval's, which take seconds to read, if it uses any."""
        tasks = [one.task for one in self.suite.benchmarks if isinstance(one, Benchmark)]
        return TaskManager(
            include_path=self.tasks if self.suite.prepare else None,
            include_defaults=not all((self.tasks / f"{task}.yaml").exists() for task in tasks),
        )

    @cached_property
    def lm(self) -> LongCatLiteLM:
        """The model."""
        chosen = self.arguments
        return load_model(self.model, chosen.batch_size, chosen.device, chosen.dtype, chosen.ngram_tables)

    def record(self) -> None:
        """Keep the scores that `--record` gives; their metric says that they were not measured here."""
        for text in self.arguments.record or ():
            benchmark, value = recorded_score(text, self.suite)
            result = {"task": benchmark.name, "metric": RECORDED, "value": value, "higher_is_better": True}
            self.finished.write(benchmark, [{**result, "dataset": benchmark.repository}])

    def all_finished(self) -> dict[str, dict[str, Any]]:
        """Every benchmark of the suite that has a score, also from earlier commands."""
        entries = {one.name: self.finished.read(one) for one in self.suite.benchmarks}
        return {name: entry for name, entry in entries.items() if entry is not None}

    def run(self, benchmark: Benchmark | ExternalBenchmark) -> dict[str, Any] | NotRun:
        """The result file of a benchmark, kept or measured now, or why there is none."""
        chosen = self.arguments
        if kept := self.finished.read(benchmark):
            return kept
        if isinstance(benchmark, ExternalBenchmark):
            return external_needs(benchmark, self.model, chosen.server)
        command = f"python -m eval.harness --model {shlex.quote(str(chosen.model))} --suite {self.suite.name} "
        command += f"--tasks {benchmark.name}{' --allow-code-execution' if benchmark.runs_code else ''}"
        loaded = load_or_need(self.manager, benchmark, command, chosen.allow_code_execution)
        if isinstance(loaded, NotRun):
            return loaded
        if need := needs_of_context(benchmark, loaded, self.lm, command):
            return need
        with ablated(self.lm.model, chosen.ablation, seed=chosen.seed):
            return run_benchmark(self.lm, loaded, benchmark, self.finished, chosen.allow_code_execution)

    def results(self, entries: dict[str, dict], not_run: list[NotRun]) -> dict[str, Any]:
        """The result file of the suite: all metrics of all benchmarks."""
        path, name = str(self.model.path.resolve()), self.model.identity["name"]
        return self.model.result_file(
            "harness",
            [result for entry in entries.values() for result in entry["results"]],
            suite=self.suite.name,
            model_folder=self.model.shown,
            settings=self.settings.as_dict(),
            machine=describe_machine(),
            benchmarks={benchmark: {key: entry[key] for key in KEPT_KEYS} for benchmark, entry in entries.items()},
            # A command to paste needs the path; a file to keep must not depend on the machine.
            not_run=[
                {"task": one.task, "needs": one.needs, "commands": [text.replace(path, name) for text in one.commands]}
                for one in not_run
            ],
        )


def recorded_score(text: str, suite: Suite) -> tuple[ExternalBenchmark, float]:
    """A benchmark of another program and its score, from `tau2_airline=0.58`.

    Raises:
        `ValueError`: saying what is wrong with the text.
    """
    name, _, digits = text.partition("=")
    external = {one.name: one for one in suite.benchmarks if isinstance(one, ExternalBenchmark)}
    if name not in external:
        known = ", ".join(external) or "none"
        raise ValueError(
            f"`--record` has {name!r}, but the benchmarks of suite {suite.name} that other programs run are: {known}"
        )
    try:
        value = float(digits)
    except ValueError:
        value = nan
    if not 0 <= value <= 1:
        raise ValueError(f"`--record` has {text!r}: write the score as a share from 0 to 1, such as {name}=0.58")
    return external[name], value


def make_parser() -> CommandParser:
    """Command-line arguments."""
    parser = CommandParser("eval.harness", __doc__.split("\n")[0])
    parser.add_shared("--model", type=Path, required=True, help="folder of a saved model with its tokenizer")
    parser.add_argument("--suite", required=True, help=f"one of {', '.join(suites())}")
    parser.add_argument("--tasks", nargs="+", help="run only these benchmarks of the suite")
    parser.add_argument("--limit", type=int, help="questions of each task; all if left out")
    parser.add_shared("--batch-size", default=8)
    parser.add_shared("--device")
    parser.add_shared("--dtype", choices=("auto", "bfloat16", "float32"))
    parser.add_shared("--ngram-tables")
    parser.add_argument(
        "--ablation",
        default="on",
        choices=ABLATIONS,
        help="the n-gram tables as they are, zeroed, shuffled, or in few bits",
    )
    parser.add_shared("--seed", help="seed of the suite's data and of the examples in prompts")
    parser.add_shared("--output", default=Path("eval/results"), help="folder for JSON, Markdown and PNG")
    parser.add_argument("--work", type=Path, default=Path("outputs/harness"), help="folder for finished benchmarks")
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep what is finished, or measure the chosen benchmarks again",
    )
    parser.add_argument("--allow-code-execution", action="store_true", help="run code that the model writes")
    parser.add_argument("--record", nargs="+", metavar="TASK=SHARE", help="scores of other programs, for the report")
    parser.add_argument("--server", default="http://127.0.0.1:30000/v1", help="address of the model's server")
    return parser


def main(arguments: argparse.Namespace) -> int:
    """Runs what can be run here, says what the rest needs, and writes the report if it has a score.

    Returns:
        `int`: 0 if every chosen benchmark has a score, else 1.

    Raises:
        `ValueError`: naming an option with a wrong value.
    """
    check_counts(arguments, "limit", "batch_size")
    check_number("--seed", arguments.seed, least=0, most=2**32 - 1)  # numpy takes no others
    if not arguments.server.startswith(("http://", "https://")):
        raise ValueError(f"`--server` is {arguments.server!r}: give an address that begins with http:// or https://")
    datasets.disable_progress_bars()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    harness, console, not_run = Harness(arguments), Console(), []
    harness.record()
    for benchmark in harness.benchmarks:
        console.rule(f"[bold]{benchmark.name}", align="left")
        outcome = harness.run(benchmark)
        if isinstance(outcome, NotRun):
            not_run.append(outcome)
            console.print(outcome.as_text(), markup=False, highlight=False, soft_wrap=True)
        else:
            for result in outcome["results"]:
                console.print(f"{result['metric']}: {result['value']:.4f}", highlight=False)
    entries = harness.all_finished()
    if not entries:
        console.print("Nothing was run, nothing was written.")
        return 1
    suite, results = harness.suite, harness.results(entries, not_run)
    name = f"harness_{suite.name}" + ("" if arguments.ablation == "on" else f"_{arguments.ablation}")
    markdown, figure = as_markdown(results, suite, name), suite.draw(suite, results)
    paths = write_report(arguments.output, name, results, markdown, figure)
    print(f"Written: {', '.join(map(str, paths))}")
    return 1 if not_run else 0


if __name__ == "__main__":
    run_command(lambda: main(make_parser().parse_args()))
