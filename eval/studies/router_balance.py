# SPDX-License-Identifier: Apache-2.0
"""What router control does while a small model trains: routed experts a token, spread of their load, loss.

    python -m eval.studies.router_balance

Trains a model on the standard library's sources for a while with its routers only watched, and goes on from there four
times: watched, with the selection bias, with the balance loss, with both (`training/routers/control.py`). Seeded;
three minutes of one core. Writes eval/results/router_balance.{json,md,png}.
"""

import argparse
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from transformers import Trainer, TrainingArguments, set_seed

from eval.reports.files import markdown_table, save_figure, write_report
from eval.reports.machine import describe_machine
from eval.studies.scaling.run import rows_as_batch
from modeling_longcat_lite import LongCatLiteConfig, LongCatLiteForCausalLM
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
WITHIN = 0.05  # of the target, over the second half of the training
LARGEST_SHARE = 0.1  # of the gradient
LOGGED = ("loss", "experts/mean", "experts/load_spread", "balance_loss", "balance_gradient_share")


def train(folder: Path, rows, control: RouterArguments, steps: int, every: int, output: Path | None = None):
    """Trains the model in `folder` and returns what was logged every so many steps; saves it to `output` if given."""
    set_seed(SEED)
    model = LongCatLiteForCausalLM.from_pretrained(folder)
    with tempfile.TemporaryDirectory() as elsewhere:
        arguments = TrainingArguments(
            output_dir=elsewhere,
            max_steps=steps,
            per_device_train_batch_size=8,
            learning_rate=3e-3,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=20,
            weight_decay=0.0,
            logging_steps=every,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            dataloader_pin_memory=False,
            disable_tqdm=True,
            seed=SEED,
        )
        trainer = with_router_control(Trainer, control)(
            model=model, args=arguments, train_dataset=rows, data_collator=rows_as_batch
        )
        trainer.train()
    if output is not None:
        model.save_pretrained(output)
    return [entry for entry in trainer.state.log_history if "experts/mean" in entry]


def measure(text: Path, begin: int, steps: int, every: int) -> dict[str, list[dict[str, float]]]:
    """What each control logged, from the same beginning on the same rows."""
    facts = prepare_text(text, TEXT)
    rows = load_side(text, "train")
    with tempfile.TemporaryDirectory() as folder:
        fresh, begun = Path(folder) / "fresh", Path(folder) / "begun"
        set_seed(SEED)
        size = {"vocab_size": facts["vocabulary"], "ngram_base_vocab_size": facts["vocabulary"]}
        LongCatLiteForCausalLM(LongCatLiteConfig(**MODEL, **size)).save_pretrained(fresh)
        train(fresh, rows, CONTROLS["watched"], begin, every, begun)
        return {name: train(begun, rows, control, steps, every) for name, control in CONTROLS.items()}


def summarize(logged: dict[str, list[dict[str, float]]], target: float) -> dict[str, Any]:
    """Means over the second half of the training, and verdicts."""
    table = {}
    for name, entries in logged.items():
        half = entries[len(entries) // 2 :]
        table[name] = {key: sum(entry[key] for entry in half) / len(half) for key in LOGGED if key in half[0]}
        table[name]["furthest_from_target"] = max(abs(entry["experts/mean"] / target - 1) for entry in half)
        shares = [entry["balance_gradient_share"] for entry in entries if "balance_gradient_share" in entry]
        if shares:
            table[name]["largest_gradient_share"] = max(shares)
    spread = {name: row["experts/load_spread"] for name, row in table.items()}
    verdicts = {
        "selection bias keeps the target": table["selection bias"]["furthest_from_target"] <= WITHIN,
        "balance loss lowers the spread": spread["balance loss"] < spread["watched"],
        "gradient share of the balance loss": table["balance loss"]["largest_gradient_share"] < LARGEST_SHARE,
    }
    return {"target_experts": target, "second_half": table, "verdicts": verdicts}


def as_markdown(results: dict) -> str:
    """The report for people."""
    machine, rows = results["machine"], []
    for name, row in results["second_half"].items():
        share = row.get("largest_gradient_share")
        rows.append(
            [
                name,
                f"{row['experts/mean']:.3f}",
                f"{row['furthest_from_target']:.1%}",
                f"{row['experts/load_spread']:.3f}",
                "" if share is None else f"{share:.3f}",
                f"{row['loss']:.3f}",
            ]
        )
    header = ["control", "routed experts a token", "furthest from target", "load spread", "gradient share", "loss"]
    verdicts = "\n".join(f"* {name}: {'met' if met else 'missed'}" for name, met in results["verdicts"].items())
    return f"""# Router control

{machine["date"]}, torch {machine["torch"]}, transformers {machine["transformers"]}. A model of {MODEL["num_layers"]}
layers with {MODEL["n_routed_experts"]} routed and {MODEL["zero_expert_num"]} zero experts, top
{MODEL["moe_topk"]}; {results["begin"]} steps watched, then {results["steps"]} steps under each control from there.
Target: {results["target_experts"]:g} routed experts a token. Means over the second half; *furthest*: the entry of the
log, every {results["every"]} steps, that is furthest from the target. *Load spread*: standard deviation of the tokens
of routed experts over their mean. *Gradient share*: the largest, of the balance loss at the routers.

{markdown_table(header, rows)}
{verdicts}

![Routed experts and spread by step]({NAME}.png)
"""


def draw(results: dict, path: Path) -> None:
    """Routed experts a token and spread of their load, by step."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, entries in results["logged"].items():
        steps = [entry["step"] for entry in entries]
        left.plot(steps, [entry["experts/mean"] for entry in entries], marker=".", label=name)
        right.plot(steps, [entry["experts/load_spread"] for entry in entries], marker=".", label=name)
    target = results["target_experts"]
    left.axhspan(target * (1 - WITHIN), target * (1 + WITHIN), color="grey", alpha=0.2)
    left.set_ylabel("routed experts a token; grey: target")
    right.set_ylabel("spread of their load")
    for axes in (left, right):
        axes.set_xlabel("step")
        axes.legend(fontsize=8)
    save_figure(figure, path)


def make_parser() -> argparse.ArgumentParser:
    """Command-line arguments."""
    parser = argparse.ArgumentParser(prog="python -m eval.studies.router_balance", description=__doc__.split("\n")[0])
    parser.add_argument("--begin", type=int, default=150, help="steps with routers watched, before all controls")
    parser.add_argument("--steps", type=int, default=400, help="steps under each control")
    parser.add_argument("--every", type=int, default=20, help="steps between two entries of the log")
    parser.add_argument("--text", type=Path, default=Path("outputs/router_balance/text"), help="tokenized text")
    parser.add_argument("--output", type=Path, default=Path("eval/results"), help="folder for JSON, Markdown and PNG")
    return parser


def main(arguments: argparse.Namespace):
    """Trains, writes, prints."""
    check_counts(arguments, "begin", "steps", "every")
    torch.set_num_threads(1)  # steps this small gain nothing from a second thread
    logged = measure(arguments.text, arguments.begin, arguments.steps, arguments.every)
    target = CONTROLS["watched"].target_for(LongCatLiteConfig(**MODEL))
    results = {
        "machine": describe_machine(),
        "seed": SEED,
        "begin": arguments.begin,
        "steps": arguments.steps,
        "every": arguments.every,
        "model": MODEL,
        "controls": {name: asdict(control) for name, control in CONTROLS.items()},
        **summarize(logged, target),
        "logged": {
            name: [{key: e[key] for key in ("step", *LOGGED) if key in e} for e in entries]
            for name, entries in logged.items()
        },
    }
    paths = write_report(arguments.output, NAME, results, as_markdown(results))
    paths.append(arguments.output / f"{NAME}.png")
    draw(results, paths[-1])
    Console().print("Written: " + ", ".join(map(str, paths)), soft_wrap=True)


if __name__ == "__main__":
    main(make_parser().parse_args())
