# SPDX-License-Identifier: Apache-2.0
"""How fast prefill and decode are, against transformers' `longcat_flash` and against the floor, in one run.

    python -m eval.speed.generation
    python -m eval.speed.generation --quick --output outputs/speed

Random weights at a small shape (`--shape hidden_size=768 num_layers=2` changes it), on the CPU. Writes a table, the
targets met or missed, operation counts of the experts layer and profiles as JSON and Markdown, and a chart as PNG.
"""

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from transformers.utils import logging

from eval.reports.files import write_report
from eval.reports.machine import describe_machine, load_average
from eval.speed.generation.cases import (
    fastest_experts,
    measure_decode,
    measure_generation,
    measure_ngram_layer,
    measure_prefill,
    profile_cases,
)
from eval.speed.generation.expert_work import measure_expert_work
from eval.speed.generation.report import as_markdown, draw, speed_table, target_table
from eval.speed.generation.targets import judge_all
from eval.speed.models import COMPILABLE_EXPERTS, DTYPES, Models, build_models, no_compiler_reason, parse_shape
from tokenization.number_options import check_counts

NAME = "generation_speed"


@dataclass(frozen=True)
class Plan:
    """Which cases are timed, and how often. Pairs are (batch, tokens), for each batch the shortest context first."""

    repeats: int = 7
    prefill: tuple[tuple[int, int], ...] = ((1, 512), (8, 512), (1, 4096))
    decode: tuple[tuple[int, int], ...] = ((1, 128), (1, 8192), (1, 16384), (8, 128), (8, 8192))
    decode_calls: int = 4
    generation: tuple[int, int] = (4096, 1024)
    generation_repeats: int = 3
    ngram_lengths: tuple[int, ...] = (1, 512, 4096)
    expert_tokens: tuple[int, ...] = (1, 512)
    profiled: tuple[int, int] = (128, 512)  # context of the decode steps, length of the prefill


QUICK = Plan(
    repeats=2,
    prefill=((1, 64), (2, 64)),
    decode=((1, 32), (1, 256), (2, 32)),
    decode_calls=2,
    generation=(64, 8),
    generation_repeats=1,
    ngram_lengths=(1, 64),
    expert_tokens=(1, 32),
    profiled=(32, 64),
)


@dataclass
class Results:
    """What the cases of all dtypes add to."""

    rows: list[dict]
    experts: list[dict]
    profiles: dict[str, dict]

    def first(self, section: str, dtype: str, batch: int) -> dict:
        """The first row of a section: the short context, on which the experts implementation is chosen."""
        return next(
            row for row in self.rows if (row["section"], row["dtype"], row["batch"]) == (section, dtype, batch)
        )


def add_decode(results: Results, models: Models, plan: Plan, batch: int, context: int, compiled: bool):
    """Compiles every experts implementation at a batch's short context, at longer ones only the one that won there."""
    experts: tuple[str, ...] = ()
    if compiled:
        is_short = (batch, context) == next(case for case in plan.decode if case[0] == batch)
        experts = COMPILABLE_EXPERTS
        if not is_short:
            experts = (fastest_experts(results.first("decode", models.dtype, batch), "compiled"),)
    results.rows.append(measure_decode(models, batch, context, plan.repeats, plan.decode_calls, experts))


def add_generation(results: Results, models: Models, plan: Plan, compiled: bool):
    short = results.first("decode", models.dtype, 1)
    # Not `batched_mm`, which copies the weights of an expert for every token of the prompt that selects it.
    dynamic_experts = fastest_experts(short, "dynamic", among=("grouped_mm", "eager"))
    chosen = (dynamic_experts, "grouped_mm" if compiled else None)
    results.rows.append(measure_generation(models, *plan.generation, plan.generation_repeats, *chosen))


def add_ngram_layer(results: Results, models: Models, plan: Plan, length: int, compiled: bool):
    calls = max(1, 64 // length)
    # Compiled only at one token: `generate` compiles decoding, not prefill.
    row = measure_ngram_layer(models, length, 3 * plan.repeats, calls, compiled and length == 1)
    results.rows.append(row)


def make_cases(results: Results, models: Models, plan: Plan, compiled: bool) -> list[tuple[str, Callable[[], None]]]:
    """Name and function of every case of a dtype; what they measure goes to `results`."""

    def prefill(batch: int, length: int):
        results.rows.append(measure_prefill(models, batch, length, plan.repeats))

    def experts(tokens: int):
        results.experts.append(measure_expert_work(models, tokens, 3 * plan.repeats))

    def profile():
        results.profiles[models.dtype] = profile_cases(models, *plan.profiled, compiled)

    cases: list[tuple[str, Callable[[], None]]] = []
    for length in plan.ngram_lengths:
        cases.append((f"n-gram layer, {length}", partial(add_ngram_layer, results, models, plan, length, compiled)))
    for tokens in plan.expert_tokens:
        cases.append((f"experts, {tokens}", partial(experts, tokens)))
    for batch, length in plan.prefill:
        cases.append((f"prefill, {batch} x {length}", partial(prefill, batch, length)))
    for batch, context in plan.decode:
        decode = partial(add_decode, results, models, plan, batch, context, compiled)
        cases.append((f"decode, {batch} x {context}", decode))
    cases.append(("generation", partial(add_generation, results, models, plan, compiled)))
    return [*cases, ("profile", profile)]


def measure(results: Results, models: Models, plan: Plan, compiled: bool, console: Console):
    """All cases of one dtype, behind a progress bar."""
    cases = make_cases(results, models, plan, compiled)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(models.dtype, total=len(cases))
        for name, case in cases:
            progress.update(task, description=f"{models.dtype}: {name}")
            case()
            progress.advance(task)


def show(console: Console, title: str, header: list[str], lines: list[list[str]]):
    table = Table(*header, title=title)
    for line in lines:
        table.add_row(*line)
    console.print(table)


def make_parser() -> argparse.ArgumentParser:
    """Command-line arguments."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="Few repeats and short contexts: to see that it works.")
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--no-compile", action="store_true", help="Leave compiled decoding out.")
    parser.add_argument("--repeats", type=int, help="Paired runs per case, instead of the plan's.")
    parser.add_argument("--threads", type=int, help="Threads of torch; its own choice (the cores) by default.")
    parser.add_argument("--shape", nargs="+", default=[], metavar="FIELD=VALUE", help="Changes to the model's shape.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default=NAME, help="Of the files.")
    parser.add_argument("--output", type=Path, default=Path("eval/results"), help="Folder for JSON, Markdown and PNG.")
    return parser


def main(arguments: argparse.Namespace):
    """Measures, prints, writes."""
    check_counts(arguments, "repeats", "threads")
    console = Console()
    logging.disable_progress_bar()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    shape, plan = parse_shape(arguments.shape), QUICK if arguments.quick else Plan()
    if arguments.repeats:
        plan = replace(plan, repeats=arguments.repeats, generation_repeats=arguments.repeats)
    not_compiled = "`--no-compile` was given" if arguments.no_compile else no_compiler_reason()
    setting = {
        "machine": describe_machine(),
        "seed": arguments.seed,
        "shape": asdict(shape),
        "plan": asdict(plan),
        "not_compiled": not_compiled,
    }
    load_at_start, measured = load_average(), Results([], [], {})
    # Written after each dtype: a run takes the better part of an hour.
    for dtype in arguments.dtypes:
        measure(measured, build_models(shape, dtype, arguments.seed), plan, not not_compiled, console)
        load = {"start": load_at_start, "end": load_average()}
        results = {**setting, "load_average": load, "targets": judge_all(measured.rows), **asdict(measured)}
        write_report(arguments.output, arguments.name, results, as_markdown(results, f"{arguments.name}.png"))
        draw(measured.rows, arguments.output / f"{arguments.name}.png")
    show(console, "Generation speed", *speed_table(measured.rows))
    show(console, "Targets", *target_table(results["targets"]))
    console.print(f"Written: {arguments.output}/{arguments.name}.json, .md and .png")


if __name__ == "__main__":
    main(make_parser().parse_args())
