# SPDX-License-Identifier: Apache-2.0
"""What router control does while a small model trains: routed experts per token, spread of their load, loss.

    python -m eval.studies.router_balance

Trains a model on the standard library's sources for a while without control, and continues from there four times:
without control, with the selection bias, with the balance loss, and with both (`training/routers/control.py`). Seeded;
three minutes on one core.
"""

import argparse
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from transformers import Trainer, set_seed

from eval.reports.files import format_table, write_report
from eval.reports.machine import describe_machine
from eval.studies.small_training import rows_as_batch, trainer_arguments
from modeling_longcat_lite import LongCatLiteConfig, LongCatLiteForCausalLM
from tokenization.command_line import CommandParser, run_command
from tokenization.number_options import check_counts
from training.data.token_rows import TextSettings, load_side, prepare_text
from training.routers.arguments import RouterArguments
from training.routers.control import with_router_control

NAME = "router_balance"
SEED = 0
TEXT = TextSettings(vocabulary=1024, length=128, held_out_rows=32)
MODEL: dict[str, Any] = {
    "hidden_size": 72,
    "num_layers": 2,
    "num_attention_heads": 4,
    "ffn_hidden_size": 128,
    "expert_ffn_hidden_size": 64,
    "q_lora_rank": 48,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 8,
    "zero_expert_num": 4,
    "moe_topk": 3,
    "routed_scaling_factor": 3.0,
    "ngram_vocab_size_ratio": 5.37,
    "embedding_amplification": "layer_norm",
    "num_nextn_predict_layers": 0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "max_position_embeddings": 128,
}
CONTROLS = {
    "watched": RouterArguments(),
    "selection bias": RouterArguments(router_bias_rate=0.1),
    "balance loss": RouterArguments(balance_loss_weight=0.01),
    "both": RouterArguments(router_bias_rate=0.1, balance_loss_weight=0.01),
}
COLUMNS = (
    ("control", "{control}"),
    ("routed experts per token", "{experts/mean:.3f}"),
    ("furthest from target", "{furthest_from_target:.1%}"),
    ("load spread", "{experts/load_spread:.3f}"),
    ("gradient share", "{share}"),
    ("loss", "{loss:.3f}"),
)
LOGGED = ("loss", "experts/mean", "experts/load_spread", "balance_loss", "balance_gradient_share")


def measure(folder: Path, text: TextSettings, begin: int, steps: int, every: int) -> dict[str, list[dict[str, float]]]:
    """The log of each control, from the same beginning on the same rows.

    Args:
        folder (`Path`): Folder of the tokenized text, which is prepared if need be.
        text (`TextSettings`): What the text is made of.
        begin, steps (`int`): Optimizer steps without control before all controls, and under each.
        every (`int`): Steps between two entries of the log.
    """
    facts = prepare_text(folder, text)
    rows = load_side(folder, "train")
    with tempfile.TemporaryDirectory() as models:
        fresh, begun = Path(models) / "fresh", Path(models) / "begun"
        set_seed(SEED)
        size = {"vocab_size": facts["vocabulary"], "ngram_base_vocab_size": facts["vocabulary"]}
        LongCatLiteForCausalLM(LongCatLiteConfig(**MODEL, **size)).save_pretrained(fresh)
        train(fresh, rows, CONTROLS["watched"], begin, every, begun)
        return {name: train(begun, rows, control, steps, every) for name, control in CONTROLS.items()}


def train(model_folder: Path, rows, control: RouterArguments, steps: int, every: int, output: Path | None = None):
    """Trains the model in a folder and returns the entries of its log; saves it to `output` if given."""
    set_seed(SEED)
    model = LongCatLiteForCausalLM.from_pretrained(model_folder)
    with tempfile.TemporaryDirectory() as folder:
        schedule = {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 20}
        arguments = trainer_arguments(folder, steps, every, 8, 3e-3, SEED, **schedule)
        trainer = with_router_control(Trainer, control)(
            model=model, args=arguments, train_dataset=rows, data_collator=rows_as_batch
        )
        trainer.train()
    if output is not None:
        model.save_pretrained(output)
    return [entry for entry in trainer.state.log_history if "experts/mean" in entry]


def summarize(logged: dict[str, list[dict[str, float]]], target: float) -> dict[str, dict[str, float]]:
    """Means over the second half of the training for each control, and its extremes."""
    table = {}
    for name, entries in logged.items():
        half = entries[len(entries) // 2 :]
        table[name] = {key: sum(entry[key] for entry in half) / len(half) for key in LOGGED if key in half[0]}
        table[name]["furthest_from_target"] = max(abs(entry["experts/mean"] / target - 1) for entry in half)
        shares = [entry["balance_gradient_share"] for entry in entries if "balance_gradient_share" in entry]
        if shares:
            table[name]["largest_gradient_share"] = max(shares)
    return table


def as_markdown(results: dict) -> str:
    """The report for people."""
    machine = results["machine"]
    rows = [{"control": name, "share": "", **row} for name, row in results["second_half"].items()]
    for row in rows:
        if "largest_gradient_share" in row:
            row["share"] = f"{row['largest_gradient_share']:.3f}"
    return f"""# Router control

{machine["date"]}, torch {machine["torch"]}, transformers {machine["transformers"]}. A model with {MODEL["num_layers"]}
layers of {MODEL["n_routed_experts"]} routed and {MODEL["zero_expert_num"]} zero experts, of which a token selects
{MODEL["moe_topk"]}; {results["begin"]} steps without control (*watched*), then {results["steps"]} steps under each
control from there. Target: {results["target_experts"]:g} routed experts per token. Values are means over the second
half. *Furthest from target*: the largest deviation among the entries of the log, one every {results["every"]} steps.
*Load spread*: standard deviation of the tokens per routed expert, divided by their mean. *Gradient share*: the largest
share of the balance loss in the gradient at the routers.

{format_table(COLUMNS, rows)}
![Routed experts and spread by step]({NAME}.png)
"""


def draw(results: dict) -> Figure:
    """Routed experts per token and spread of their load, by step."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, entries in results["logged"].items():
        steps = [entry["step"] for entry in entries]
        left.plot(steps, [entry["experts/mean"] for entry in entries], marker=".", label=name)
        right.plot(steps, [entry["experts/load_spread"] for entry in entries], marker=".", label=name)
    left.axhline(results["target_experts"], color="grey", linestyle=":", label="target")
    left.set_ylabel("routed experts per token")
    right.set_ylabel("spread of their load")
    for axes in (left, right):
        axes.set_xlabel("step")
        axes.legend(fontsize=8)
    return figure


def make_parser() -> CommandParser:
    """Command-line arguments."""
    parser = CommandParser("eval.studies.router_balance", __doc__.split("\n")[0])
    parser.add_argument("--begin", type=int, default=150, help="steps without control, before all controls")
    parser.add_argument("--steps", type=int, default=400, help="steps under each control")
    parser.add_argument("--every", type=int, default=20, help="steps between two entries of the log")
    parser.add_argument(
        "--text",
        type=Path,
        metavar="DIR",
        default=Path("outputs/router_balance/text"),
        help="folder of the tokenized text",
    )
    parser.add_shared("--output", default=Path("eval/results"))
    return parser


def main(arguments: argparse.Namespace, text: TextSettings = TEXT):
    """Trains, writes, prints."""
    check_counts(arguments, "begin", "steps", "every")
    torch.set_num_threads(1)  # a second thread does not speed up steps this small
    logged = measure(arguments.text, text, arguments.begin, arguments.steps, arguments.every)
    target = CONTROLS["watched"].target_for(LongCatLiteConfig(**MODEL))
    results = {
        "machine": describe_machine(),
        "seed": SEED,
        "begin": arguments.begin,
        "steps": arguments.steps,
        "every": arguments.every,
        "model": MODEL,
        "controls": {name: asdict(control) for name, control in CONTROLS.items()},
        "target_experts": target,
        "second_half": summarize(logged, target),
        "logged": {
            name: [{key: entry[key] for key in ("step", *LOGGED) if key in entry} for entry in entries]
            for name, entries in logged.items()
        },
    }
    paths = write_report(arguments.output, NAME, results, as_markdown(results), draw(results))
    print("Written: " + ", ".join(map(str, paths)))


if __name__ == "__main__":
    run_command(lambda: main(make_parser().parse_args()))
