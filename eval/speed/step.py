# SPDX-License-Identifier: Apache-2.0
"""How long a training step takes, against transformers' `longcat_flash` at the same shape, in one run.

    python -m eval.speed.step
    python -m eval.speed.step --shape n_routed_experts=64 zero_expert_num=32 moe_topk=6 --name step_time_64_experts

A step is forward, loss, backward, clipping and AdamW on one packed row, at the shape of the demo's model. The model of
transformers has no n-gram embedding and one implementation of its experts; this one computes n-grams on top. *Dense*
updates the tables as any other weight, *row-sparse* the rows that the step read (`training/tables/optimizer.py`),
*frozen* none of them. *Compiled* is the trunk under `torch.compile`, as `torch_compile: true` of a recipe has it; the
loop over experts in transformers' model is no graph. Both models' attention is sdpa.
"""

import argparse
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from matplotlib.figure import Figure
from rich.console import Console
from torch import nn
from torch.nn.functional import cross_entropy

from eval.reports.files import markdown_table, save_figure, write_report
from eval.reports.machine import describe_machine, load_average
from eval.speed.models import Shape, build_models, no_compiler_reason, parse_shape, random_tokens
from eval.speed.paired_timing import PairedTimes, time_paired
from tokenization.number_options import check_counts
from training.tables.optimizer import RowwiseAdamW

NAME = "step_time"
THEIRS = "in-tree"
AT_LEAST = 1.3  # times faster than in-tree
DEMO = Shape(
    vocab_size=2048,
    hidden_size=192,
    num_layers=2,
    num_attention_heads=4,
    ffn_hidden_size=384,
    expert_ffn_hidden_size=96,
    q_lora_rank=96,
    kv_lora_rank=64,
    qk_nope_head_dim=16,
    qk_rope_head_dim=16,
    v_head_dim=32,
    n_routed_experts=4,
    zero_expert_num=2,
    moe_topk=2,
    max_position_embeddings=2048,
    emb_neighbor_num=4,
    emb_split_num=2,
    ngram_vocab_size_ratio=5.37,
)


def training_step(model: nn.Module, optimizer: torch.optim.Optimizer, tokens: torch.Tensor) -> Callable[[], float]:
    """One step on `tokens` `[B, T]`, whose loss it returns. As in TRL, the trunk runs first, then its head."""
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
    """A step of this model with its tables `"dense"`, `"row-sparse"` or `"frozen"`."""
    model.train()
    embedders = model.model.ngram_embeddings.embedders
    of_tables = [table.weight for table in embedders]
    others = [p for p in model.parameters() if all(p is not table for table in of_tables)]
    if tables == "dense":
        return training_step(model, torch.optim.AdamW(model.parameters(), fused=True), tokens)
    if tables == "frozen":
        embedders.requires_grad_(False)
        return training_step(model, torch.optim.AdamW(others, fused=True), tokens)
    for table in embedders:
        table.sparse = True
    groups = [{"params": others}, {"params": of_tables, "rowwise": True}]
    return training_step(model, RowwiseAdamW(groups, fused=True), tokens)


def compiled_step(shape: Shape, tables: str, tokens: torch.Tensor, seed: int) -> Callable[[], float]:
    """[`our_step`] with the trunk compiled; the first call compiles."""
    model = build_models(shape, "fp32", seed).ours["grouped_mm"]
    step = our_step(model, tables, tokens)
    model.model.compile(dynamic=False)
    return step


def measure(shape: Shape, tokens: int, repeats: int, seed: int, compiled: bool) -> PairedTimes:
    """Paired seconds of all alternatives, each with weights of its own."""
    row = random_tokens(shape, 1, tokens)
    steps: dict[str, Callable[[], float]] = {}
    for tables in ("dense", "row-sparse", "frozen"):
        models = build_models(shape, "fp32", seed)
        for experts in ("grouped_mm", "eager"):
            steps[f"{experts}, tables {tables}"] = our_step(models.ours[experts], tables, row)
        if not steps.get(THEIRS):
            theirs = models.theirs.train()
            steps[THEIRS] = training_step(theirs, torch.optim.AdamW(theirs.parameters(), fused=True), row)
    if compiled:
        torch._dynamo.reset()
        for tables in ("dense", "row-sparse", "frozen"):
            steps[f"compiled, tables {tables}"] = compiled_step(shape, tables, row, seed)
    return time_paired(steps, repeats, calls=2, warm_up=3)


def summarize(times: PairedTimes) -> dict:
    """Medians, ratios and the verdict on the fastest alternative that trains all weights."""
    names = [name for name in times.seconds if name != THEIRS]
    ratios = {name: times.ratio(THEIRS, name) for name in names}
    best = max((name for name in names if "frozen" not in name), key=lambda name: ratios[name])
    return {
        "ms": {name: times.median_ms(name) for name in times.seconds},
        "in_tree_over": ratios,
        "verdict": {"alternative": best, "at_least": AT_LEAST, "seen": ratios[best], "met": ratios[best] >= AT_LEAST},
        "seconds": times.seconds,
    }


def as_markdown(results: dict) -> str:
    """Table and verdict."""
    machine, verdict = results["machine"], results["verdict"]
    rows = [
        [name, f"{ms:.1f}", f"{results['in_tree_over'][name]:.2f}" if name != THEIRS else ""]
        for name, ms in results["ms"].items()
    ]
    return "\n".join(
        [
            "# Time of a training step\n",
            f"{machine['date']}, torch {machine['torch']}, transformers {machine['transformers']}, {machine['cpu']}, "
            f"{machine['cores']} cores, {machine['threads']} threads. Load average {results['load_average']}.\n",
            f"One row of {results['tokens']} tokens in float32. Medians over {results['repeats']} paired runs.",
            "Shape: " + ", ".join(f"{name} {value}" for name, value in results["shape"].items()) + ".\n",
            markdown_table(["model", "ms", "in-tree / it"], rows),
            f"Target: at least {AT_LEAST} times faster than in-tree, all weights trained. Seen: "
            f"{verdict['seen']:.2f} ({verdict['alternative']}), {'met' if verdict['met'] else 'missed'}.\n",
        ]
    )


def draw(results: dict, path: Path):
    """A bar per alternative."""
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(list(results["ms"]), list(results["ms"].values()))
    axes.bar_label(bars, fmt=" %.1f")
    axes.invert_yaxis()
    axes.set_xlabel("ms a step (median)")
    save_figure(figure, path)


def make_parser() -> argparse.ArgumentParser:
    """Command-line arguments."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=256, help="Of the row.")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, help="Threads of torch; its own choice (the cores) by default.")
    parser.add_argument("--shape", nargs="+", default=[], metavar="FIELD=VALUE", help="Changes to the demo's shape.")
    parser.add_argument("--no-compile", action="store_true", help="Leave the compiled trunk out.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default=NAME, help="Of the files, default: %(default)s.")
    parser.add_argument("--output", type=Path, default=Path("eval/results"), help="Folder for JSON, Markdown and PNG.")
    return parser


def main(arguments: argparse.Namespace):
    """Measures, writes, prints."""
    check_counts(arguments, "tokens", "repeats", "threads")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    shape, load = parse_shape(arguments.shape, DEMO), load_average()
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
        **summarize(times),
    }
    paths = write_report(arguments.output, arguments.name, results, as_markdown(results))
    paths.append(arguments.output / f"{arguments.name}.png")
    draw(results, paths[-1])
    Console().print("Written: " + ", ".join(map(str, paths)), soft_wrap=True)


if __name__ == "__main__":
    main(make_parser().parse_args())
