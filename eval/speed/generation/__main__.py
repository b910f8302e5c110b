# SPDX-License-Identifier: Apache-2.0
"""How fast prefill and decoding are, compared with transformers' `longcat_flash` and with the machine's roofline.

    python -m eval.speed.generation
    python -m eval.speed.generation --quick --output outputs/speed

Random weights of a small shape (`--shape hidden_size=768 num_layers=2` changes it), on the CPU. Writes times,
operation counts of the experts layer and profiles as JSON and Markdown, and a chart as PNG.
"""

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from rich.progress import track
from transformers.utils import logging

from eval.reports.files import write_report
from eval.reports.machine import describe_machine, load_average
from eval.speed.generation.cases import (
    NOT_BATCHED,
    fastest_experts,
    measure_decode,
    measure_generation,
    measure_ngram_layer,
    measure_prefill,
    profile_cases,
)
from eval.speed.generation.moe_flops import measure_moe_flops
from eval.speed.generation.report import as_markdown, draw, time_table
from eval.speed.models import (
    COMPILABLE_EXPERTS,
    DTYPES,
    SHAPE_OPTION,
    Models,
    Shape,
    build_models,
    no_compiler_reason,
    parse_shape,
)
from tokenization.command_line import CommandParser, run_command
from tokenization.number_options import check_counts


@dataclass(frozen=True)
class Cases:
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

    def __len__(self) -> int:
        lists = (self.prefill, self.decode, self.ngram_lengths, self.expert_tokens)
        return sum(map(len, lists)) + 2  # generation, profiles


QUICK = Cases(
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


def measure(models: Models, cases: Cases, compiled: bool) -> Iterator[tuple[str, dict]]:
    """Every case of one dtype: `"rows"`, `"experts"` or `"profiles"`, and what was measured."""
    for length in cases.ngram_lengths:
        # Compiled at one token only: `generate` compiles decoding, not prefill.
        yield "rows", measure_ngram_layer(models, length, 3 * cases.repeats, compiled and length == 1)
    for tokens in cases.expert_tokens:
        yield "experts", measure_moe_flops(models, tokens, 3 * cases.repeats)
    for batch, length in cases.prefill:
        yield "rows", measure_prefill(models, batch, length, cases.repeats)
    shortest: dict[int, dict] = {}  # by batch
    for batch, context in cases.decode:
        # At a batch's shortest context every implementation is compiled, at longer ones the one that won there.
        experts: tuple[str, ...] = COMPILABLE_EXPERTS if compiled else ()
        if compiled and batch in shortest:
            experts = (fastest_experts(shortest[batch], "compiled"),)
        row = measure_decode(models, batch, context, cases.repeats, cases.decode_calls, experts)
        shortest.setdefault(batch, row)
        yield "rows", row
    chosen = (fastest_experts(shortest[1], "dynamic", NOT_BATCHED), "grouped_mm" if compiled else None)
    yield "rows", measure_generation(models, *cases.generation, cases.generation_repeats, *chosen)
    yield "profiles", profile_cases(models, *cases.profiled, compiled)


def make_parser() -> CommandParser:
    """Command-line arguments."""
    parser = CommandParser("eval.speed.generation", __doc__.split("\n")[0])
    parser.add_shared("--quick", "--threads", "--seed")
    parser.add_shared("--repeats", default=None, help="paired runs of each case; the median counts, 7 if left out")
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES), help="dtypes to measure")
    parser.add_argument("--no-compile", action="store_true", help="leave compiled decoding out")
    parser.add_argument("--shape", **SHAPE_OPTION)
    parser.add_shared("--name", default="generation_speed")
    parser.add_shared("--output", default=Path("eval/results"))
    return parser


def main(arguments: argparse.Namespace) -> None:
    """Measures, prints, writes."""
    check_counts(arguments, "repeats", "threads")
    shape, cases = parse_shape(arguments.shape, Shape()), QUICK if arguments.quick else Cases()
    logging.disable_progress_bar()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.repeats:
        cases = replace(cases, repeats=arguments.repeats, generation_repeats=arguments.repeats)
    not_compiled = "`--no-compile` was given" if arguments.no_compile else no_compiler_reason()
    results: dict = {
        "machine": describe_machine(),
        "load_average": {"start": load_average()},
        "seed": arguments.seed,
        "shape": asdict(shape),
        "cases": asdict(cases),
        "not_compiled": not_compiled,
        "rows": [],
        "experts": [],
        "profiles": {},
    }
    for dtype in arguments.dtypes:
        models = build_models(shape, dtype, arguments.seed)
        for section, measured in track(measure(models, cases, not not_compiled), dtype, len(cases)):
            if section == "profiles":
                results[section][dtype] = measured
            else:
                results[section].append(measured)
        # Written after each dtype: a run takes most of an hour.
        results["load_average"]["end"] = load_average()
        markdown = as_markdown(results, f"{arguments.name}.png")
        paths = write_report(arguments.output, arguments.name, results, markdown, draw(results["rows"]))
    print(time_table(results["rows"]), *(f"Written: {path}" for path in paths), sep="\n")


if __name__ == "__main__":
    run_command(lambda: main(make_parser().parse_args()))
