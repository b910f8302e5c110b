# SPDX-License-Identifier: Apache-2.0
"""Benchmarks of a model by lm-evaluation-harness, with the numbers that the paper publishes beside them.

    python -m eval.harness --model outputs/demo/model --suite smoke
    python -m eval.harness --model path/to/LongCat-Flash-Lite --suite base --batch-size 16 --ngram-tables host
    python -m eval.harness --model outputs/demo/model --suite smoke --ablation zeroed
    python -m eval.harness --model path/to/LongCat-Flash-Lite --suite chat --tasks gpqa_diamond mmlu --limit 100

`smoke` is made from Python's documentation and needs nothing else. `base` and `chat` are the paper's tables: what
needs data of the Hub, docker, a server or another program says so, with the commands to run where that is there;
scores of other programs join the report with `--record tau2_airline=0.58`. Finished benchmarks are kept: the same
command goes on after an interruption, and the report has all that is finished. The exit status is 0 if everything
that was asked for has a number, 1 otherwise.
"""

import argparse
import logging
import sys
from math import nan
from pathlib import Path
from typing import Any

import datasets
from lm_eval.tasks import TaskManager
from rich.console import Console

from eval.checkpoints.load import check_model_folder, tokenizer_hash
from eval.harness.external import ExternalBenchmark
from eval.harness.model import LongCatLiteLM, load_model, load_tokenizer
from eval.harness.needs import NotRun, external_needs, harness_command, load_or_need, needs_of_context
from eval.harness.report import as_markdown, draw
from eval.harness.run import FinishedBenchmarks, Settings, run_benchmark
from eval.harness.smoke import write_smoke_tasks
from eval.harness.suites import SUITES, Benchmark, chosen_benchmarks
from eval.ngrams.ablation.ablated import ABLATIONS, ablated, check_ablation
from eval.reports.files import spoken_path, write_report
from eval.reports.machine import describe_machine
from eval.reports.results import model_identity, result_file
from modeling_longcat_lite import LongCatLiteConfig
from tokenization.number_options import check_counts, check_number

KEPT_KEYS = ("num_fewshot", "seconds", "examples")  # of a finished benchmark, besides its results
RECORDED = "score, recorded"  # the metric of what `--record` gives


class Harness:
    """A run of the command: its tasks, its data, and the model, which is loaded when it is first needed."""

    def __init__(self, arguments: argparse.Namespace):
        check_model_folder(arguments.model)
        check_ablation(arguments.ablation, LongCatLiteConfig.from_pretrained(arguments.model))
        self.arguments = arguments
        self.benchmarks = chosen_benchmarks(arguments.suite, arguments.tasks)
        if any(isinstance(one, Benchmark) and one.as_chat for one in self.benchmarks) or arguments.suite == "smoke":
            require_chat_template(arguments.model)
        self.identity = model_identity(arguments.model)
        self.tokenizer_sha256 = tokenizer_hash(arguments.model)
        self.tasks = arguments.work / "smoke_tasks" / f"{self.tokenizer_sha256[:8]}-{arguments.seed}"
        self.settings = Settings(
            seed=arguments.seed,
            limit=arguments.limit,
            dtype=arguments.dtype,
            ablation=arguments.ablation,
            tokenizer_sha256=self.tokenizer_sha256,
            data_sha256=self.make_data(),
        )
        self.finished = FinishedBenchmarks(arguments.work, arguments.model, self.identity, self.settings)
        if not arguments.resume:
            for benchmark in self.benchmarks:
                self.finished.forget(benchmark)
        self._lm: LongCatLiteLM | None = None
        self._manager: TaskManager | None = None

    def make_data(self) -> str:
        """Write tasks and data of the smoke suite; returns their hash. Nothing for other suites."""
        if self.arguments.suite != "smoke":
            return ""
        return write_smoke_tasks(self.tasks, load_tokenizer(self.arguments.model), self.arguments.seed)

    @property
    def manager(self) -> TaskManager:
        """The tasks of lm-eval, or those of the smoke suite; made once, since reading them takes seconds."""
        if self._manager is None:
            smoke = self.arguments.suite == "smoke"
            self._manager = TaskManager(include_path=self.tasks if smoke else None, include_defaults=not smoke)
        return self._manager

    @property
    def lm(self) -> LongCatLiteLM:
        """The model."""
        if self._lm is None:
            chosen = self.arguments
            self._lm = load_model(chosen.model, chosen.batch_size, chosen.device, chosen.dtype, chosen.ngram_tables)
        return self._lm

    def record(self) -> None:
        """Keep the scores that `--record` gives; their metric says that they were not measured here."""
        for text in self.arguments.record or ():
            benchmark, value = recorded_score(text, self.arguments.suite)
            result = {"task": benchmark.name, "metric": RECORDED, "value": value, "higher_is_better": True}
            self.finished.write(benchmark, [{**result, "dataset": benchmark.repository}])

    def all_finished(self) -> dict[str, dict[str, Any]]:
        """Every benchmark of the suite that has a number, also of earlier commands."""
        entries = {one.name: self.finished.read(one) for one in SUITES[self.arguments.suite]}
        return {name: entry for name, entry in entries.items() if entry is not None}

    def run(self, benchmark: Benchmark | ExternalBenchmark) -> dict[str, Any] | NotRun:
        """The result file of a benchmark, kept or measured now, or why there is none."""
        chosen = self.arguments
        if kept := self.finished.read(benchmark):
            return kept
        if isinstance(benchmark, ExternalBenchmark):
            return external_needs(benchmark, chosen.model, self.identity["name"], chosen.server)
        loaded = load_or_need(self.manager, benchmark, chosen.suite, str(chosen.model), chosen.allow_code_execution)
        if isinstance(loaded, NotRun):
            return loaded
        command = harness_command(benchmark, chosen.suite, str(chosen.model))
        if need := needs_of_context(benchmark, loaded, self.lm, command):
            return need
        with ablated(self.lm.model, chosen.ablation, seed=chosen.seed):
            return run_benchmark(self.lm, loaded, benchmark, self.finished, chosen.allow_code_execution)


def recorded_score(text: str, suite: str) -> tuple[ExternalBenchmark, float]:
    """A benchmark of another program and its score, from `tau2_airline=0.58`.

    Raises:
        `ValueError`: saying what is wrong with the text.
    """
    name, _, digits = text.partition("=")
    external = {one.name: one for one in SUITES[suite] if isinstance(one, ExternalBenchmark)}
    if name not in external:
        known = ", ".join(external) or "none"
        raise ValueError(f"`--record` has {name!r}, but other programs measure of suite {suite}: {known}")
    try:
        value = float(digits)
    except ValueError:
        value = nan
    if not 0 <= value <= 1:
        raise ValueError(f"`--record` has {text!r}: write the score as a share from 0 to 1, such as {name}=0.58")
    return external[name], value


def require_chat_template(model: Path) -> None:
    """Refuse a tokenizer that cannot render a conversation.

    Raises:
        `ValueError`: naming the folder.
    """
    if load_tokenizer(model).chat_template is None:
        raise ValueError(
            f"the tokenizer in `--model` {model} has no chat template, which this suite needs: assemble one with "
            "`python -m tokenization.assemble_tokenizer`."
        )


def make_parser() -> argparse.ArgumentParser:
    """Command-line arguments."""
    parser = argparse.ArgumentParser(prog="python -m eval.harness", description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of a saved model with its tokenizer")
    parser.add_argument("--suite", required=True, help=f"one of {', '.join(SUITES)}")
    parser.add_argument("--tasks", nargs="+", help="only these benchmarks of the suite")
    parser.add_argument("--limit", type=int, help="only so many questions of each task")
    parser.add_argument("--batch-size", type=int, default=8, help="sequences a forward, default: %(default)s")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...; default: all accelerators there are")
    parser.add_argument("--dtype", default="auto", choices=("auto", "bfloat16", "float32"), help="of the computation")
    parser.add_argument("--ngram-tables", default="resident", choices=("resident", "host", "disk"))
    parser.add_argument(
        "--ablation",
        default="on",
        choices=ABLATIONS,
        help="n-gram tables as they are (default), zeroed, shuffled, or in few bits",
    )
    parser.add_argument("--seed", type=int, default=0, help="of data and of examples in prompts, default: %(default)s")
    parser.add_argument("--output", type=Path, default=Path("eval/results"), help="folder for JSON, Markdown and PNG")
    parser.add_argument("--work", type=Path, default=Path("outputs/harness"), help="folder for finished benchmarks")
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep what is finished (default), or measure the chosen tasks anew",
    )
    parser.add_argument("--allow-code-execution", action="store_true", help="run code that the model writes")
    parser.add_argument("--record", nargs="+", metavar="TASK=SHARE", help="scores of other programs, for the report")
    parser.add_argument("--server", default="http://127.0.0.1:30000/v1", help="of the model, for other programs")
    return parser


def check_numbers(arguments: argparse.Namespace) -> None:
    """Refuse numbers below 1, seeds that numpy does not take, and an address of no server.

    Raises:
        `ValueError`: naming the option.
    """
    check_counts(arguments, "limit", "batch_size")
    check_number("--seed", arguments.seed, least=0, most=2**32 - 1)
    if not arguments.server.startswith(("http://", "https://")):
        raise ValueError(f"`--server` is {arguments.server!r}: give an address that begins with http:// or https://")


def main(arguments: argparse.Namespace) -> int:
    """Runs what can be run here, says what the rest needs, and writes the report if there is a number in it."""
    check_numbers(arguments)
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
    results = collect(harness, entries, not_run)
    name = f"harness_{arguments.suite}" + ("" if arguments.ablation == "on" else f"_{arguments.ablation}")
    paths = write_report(arguments.output, name, results, as_markdown(results, arguments.suite, name))
    paths.append(arguments.output / f"{name}.png")
    draw(results, arguments.suite, paths[-1])
    console.print("Written: " + ", ".join(map(str, paths)), soft_wrap=True)
    return 1 if not_run else 0


def collect(harness: Harness, entries: dict[str, dict], not_run: list[NotRun]) -> dict[str, Any]:
    """The result file of the suite: all metrics of all benchmarks."""
    model = harness.arguments.model
    return result_file(
        model,
        "harness",
        [result for entry in entries.values() for result in entry["results"]],
        suite=harness.arguments.suite,
        model_folder=spoken_path(str(model)),
        settings=harness.settings.as_dict(),
        machine=describe_machine(),
        benchmarks={name: {key: entry[key] for key in KEPT_KEYS} for name, entry in entries.items()},
        # What is pasted needs the path; what is kept should not depend on the machine.
        not_run=[
            {
                "task": one.task,
                "needs": one.needs,
                "commands": [command.replace(str(model.resolve()), model.resolve().name) for command in one.commands],
            }
            for one in not_run
        ],
    )


if __name__ == "__main__":
    try:
        sys.exit(main(make_parser().parse_args()))
    except ValueError as error:
        sys.exit(f"error: {error}")
