# SPDX-License-Identifier: Apache-2.0
"""How long a training step takes, compared with transformers' `longcat_flash` of the same shape.

    python -m eval.speed.step
    python -m eval.speed.step --shape n_routed_experts=64 zero_expert_num=32 moe_topk=6 --name step_time_64_experts

A step is forward, loss, backward, clipping and AdamW on one packed row, at the shape of the demo's model. The model in
transformers has one implementation of its experts, and no n-gram embedding, which ours computes as well. *Dense*
updates the tables like any other weight, *row-sparse* the rows that the step read (`training/tables/optimizer.py`),
*frozen* none of them. *Compiled* is the trunk under `torch.compile`, as a recipe's `torch_compile: true` does it; the
loop over experts in transformers' model does not compile as one graph. Attention is sdpa in both models.

Shapes: B batch rows, T tokens.
"""

import argparse
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn.functional import cross_entropy

from eval.reports.files import markdown_table, write_report
from eval.reports.machine import describe_machine, load_average, machine_sentence
from eval.speed.models import (
    DEMO,
    SHAPE_OPTION,
    Shape,
    build_models,
    no_compiler_reason,
    parse_shape,
    random_tokens,
)
from eval.speed.paired_timing import PairedTimes, time_paired
from tokenization.command_line import CommandParser, run_command
from tokenization.number_options import check_counts
from training.tables.optimizer import RowwiseAdamW

THEIRS = "in-tree"
TABLES = ("dense", "row-sparse", "frozen")


def training_step(model: nn.Module, optimizer: torch.optim.Optimizer, tokens: torch.Tensor) -> Callable[[], float]:
    """One step on `tokens` `[B, T]`, which returns the loss. As in TRL, the trunk runs first, then its head."""
    dense = [p for p in model.parameters() if p.requires_grad]

    def step() -> float:
        states = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state  # type: ignore[operator]
        logits = model.lm_head(states[:, :-1])  # type: ignore[operator]
        loss = cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_([p for p in dense if p.grad is not None and not p.grad.is_sparse], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def our_step(model, tables: str, tokens: torch.Tensor) -> Callable[[], float]:
    """A step of our model with its tables `"dense"`, `"row-sparse"` or `"frozen"`."""
    model.train()
    embedders = model.model.ngram_embeddings.embedders
    in_tables = [table.weight for table in embedders]
    others = [p for p in model.parameters() if all(p is not table for table in in_tables)]
    if tables == "dense":
        return training_step(model, torch.optim.AdamW(model.parameters(), fused=True), tokens)
    if tables == "frozen":
        embedders.requires_grad_(False)
        return training_step(model, torch.optim.AdamW(others, fused=True), tokens)
    for table in embedders:
        table.sparse = True
    groups = [{"params": others}, {"params": in_tables, "rowwise": True}]
    return training_step(model, RowwiseAdamW(groups, fused=True), tokens)


def measure(shape: Shape, tokens: int, repeats: int, seed: int, compiled: bool) -> PairedTimes:
    """Paired seconds of all alternatives, each with its own weights."""
    row = random_tokens(shape.vocab_size, 1, tokens)
    steps: dict[str, Callable[[], float]] = {}
    for tables in TABLES:
        models = build_models(shape, "fp32", seed)
        for experts in ("grouped_mm", "eager"):
            steps[f"{experts}, tables {tables}"] = our_step(models.ours[experts], tables, row)
        if THEIRS not in steps:
            theirs = models.theirs.train()
            steps[THEIRS] = training_step(theirs, torch.optim.AdamW(theirs.parameters(), fused=True), row)
    if compiled:
        torch._dynamo.reset()
        for tables in TABLES:
            model = build_models(shape, "fp32", seed).ours["grouped_mm"]
            steps[f"compiled, tables {tables}"] = our_step(model, tables, row)
            model.model.compile(dynamic=False)  # compiled by the first call
    return time_paired(steps, repeats, calls=2, warm_up=3)


def as_markdown(results: dict) -> str:
    """The report for people."""
    ratios = results["in_tree_over"]
    rows = [[name, f"{ms:.1f}", f"{ratios[name]:.2f}" if name != THEIRS else ""] for name, ms in results["ms"].items()]
    fastest = max((name for name in ratios if "frozen" not in name), key=ratios.__getitem__)
    return "\n".join(
        [
            "# Time of a training step\n",
            machine_sentence(results["machine"], results["load_average"]) + "\n",
            f"One row of {results['tokens']} tokens in float32. Medians over {results['repeats']} paired runs. "
            f"Shape: {Shape(**results['shape'])}.\n",
            *([f"Not compiled: {results['not_compiled']}.\n"] if results["not_compiled"] else []),
            markdown_table(["model", "ms", "in-tree / it"], rows),
            f"With all weights trained, the fastest alternative is {fastest}: in-tree takes {ratios[fastest]:.2f} "
            "times as long.\n",
        ]
    )


def draw(results: dict) -> Figure:
    """A bar per alternative."""
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(list(results["ms"]), list(results["ms"].values()))
    axes.bar_label(bars, fmt=" %.1f")
    axes.invert_yaxis()
    axes.set_xlabel("ms a step (median)")
    return figure


def make_parser() -> CommandParser:
    """Command-line arguments."""
    parser = CommandParser("eval.speed.step", __doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=256, help="tokens of the row")
    parser.add_shared("--repeats", default=15, help="paired runs; the median counts")
    parser.add_argument("--shape", **SHAPE_OPTION)
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled trunk out")
    parser.add_shared("--threads", "--seed")
    parser.add_shared("--name", default="step_time")
    parser.add_shared("--output", default=Path("eval/results"))
    return parser


def main(arguments: argparse.Namespace) -> None:
    """Measures, writes, prints."""
    check_counts(arguments, "tokens", "repeats", "threads")
    shape, load = parse_shape(arguments.shape, DEMO), load_average()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    not_compiled = "`--no-compile` was given" if arguments.no_compile else no_compiler_reason()
    times = measure(shape, arguments.tokens, arguments.repeats, arguments.seed, not not_compiled)
    results = {
        "machine": describe_machine(),
        "load_average": load,
        "seed": arguments.seed,
        "tokens": arguments.tokens,
        "repeats": arguments.repeats,
        "shape": asdict(shape),
        "not_compiled": not_compiled,
        "ms": {name: times.median_ms(name) for name in times.seconds},
        "in_tree_over": {name: times.ratio(THEIRS, name) for name in times.seconds if name != THEIRS},
        "seconds": times.seconds,
    }
    markdown = as_markdown(results)
    paths = write_report(arguments.output, arguments.name, results, markdown, draw(results))
    print(markdown, *(f"Written: {path}" for path in paths), sep="\n")


if __name__ == "__main__":
    run_command(lambda: main(make_parser().parse_args()))
