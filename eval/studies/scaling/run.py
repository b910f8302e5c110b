# SPDX-License-Identifier: Apache-2.0
"""One run of the scaling study: a model trained from scratch on the study's text, and what came of it as JSON.

    python -m eval.studies.scaling.run RUN.json OUTPUT.json

The study starts it in a process of its own, so that several run side by side, and one that fails takes none along.
Everything is seeded: the same run gives the same losses.
"""

import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import EarlyStoppingCallback, Trainer, TrainingArguments, set_seed

from modeling_longcat_lite import LongCatLiteConfig, LongCatLiteForCausalLM
from modeling_longcat_lite.whole_files import write_whole
from tokenization.number_options import check_number
from training.data.token_rows import load_side
from training.routers.arguments import RouterArguments
from training.routers.control import RouterControlMixin


@dataclass(frozen=True)
class RunSettings:
    """How every run of a study is trained.

    Args:
        rows_per_step (`int`): Rows of a step; a row has the text's `length`.
        learning_rate (`float`): Its peak, behind `warmup_share` of the steps; a cosine falls to a tenth of it.
        router_bias_rate (`float`): Rate mu that evens the load of the experts, see `training/routers/control.py`.
        evaluations (`int`): Of the held-out rows, evenly spaced; the last one behind the last step.
        patience (`int`): Evaluations in a row without a lower held-out loss that end the run.
        max_epochs (`float`): The text may be read so often; a token budget above it is refused.
        dtype (`str`): `"float32"`, or `"bfloat16"` for autocast.
        compile (`bool`): Whether the model is compiled.
    """

    rows_per_step: int = 16
    learning_rate: float = 3e-3
    warmup_share: float = 0.05
    router_bias_rate: float = 0.1
    evaluations: int = 8
    patience: int = 3
    max_epochs: float = 2.0
    dtype: str = "float32"
    compile: bool = False

    def __post_init__(self):
        for name in ("rows_per_step", "evaluations", "patience"):
            check_number(name, getattr(self, name), least=1)
        check_number("learning_rate", self.learning_rate, least=0)
        check_number("warmup_share", self.warmup_share, least=0, most=1)
        check_number("router_bias_rate", self.router_bias_rate, least=0)
        check_number("max_epochs", self.max_epochs, above=0)


class StudyTrainer(RouterControlMixin, Trainer):
    """Trainer whose experts get an even load."""


def rows_as_batch(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Rows of `input_ids` to a batch with labels."""
    ids = torch.tensor([row["input_ids"] for row in rows])
    return {"input_ids": ids, "labels": ids}


def steps_for(tokens: int, length: int, settings: RunSettings) -> int:
    """Optimizer steps of a token budget, rounded to a multiple of the evaluations, at least one each."""
    steps = tokens / (length * settings.rows_per_step)
    return max(round(steps / settings.evaluations), 1) * settings.evaluations


def train(run: dict[str, Any]) -> dict[str, Any]:
    """Train by `run`: `text` (folder), `config`, `training`, `tokens`, `length`, `seed`.

    Returns:
        `held_out`: (tokens seen, held-out loss in nats a token) of every evaluation; `last_loss`, `best_loss`;
        `tokens`; `stopped_early`; `load_spread`, of the experts, over the last logged steps; `tokens_per_second`.
    """
    settings = RunSettings(**run["training"])
    rows, steps = load_side(Path(run["text"]), "train"), steps_for(run["tokens"], run["length"], settings)
    set_seed(run["seed"])
    model = LongCatLiteForCausalLM(LongCatLiteConfig(**run["config"]))
    with tempfile.TemporaryDirectory() as folder:
        trainer = StudyTrainer(
            model=model,
            args=arguments(settings, steps, run["seed"], folder),
            train_dataset=rows,
            eval_dataset=load_side(Path(run["text"]), "held_out"),
            data_collator=rows_as_batch,
            callbacks=[EarlyStoppingCallback(settings.patience)],
            router_args=RouterArguments(router_bias_rate=settings.router_bias_rate),
        )
        begin = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - begin
    history, per_step = trainer.state.log_history, run["length"] * settings.rows_per_step
    held_out = [(entry["step"] * per_step, entry["eval_loss"]) for entry in history if "eval_loss" in entry]
    spreads = [entry["experts/load_spread"] for entry in history if "experts/load_spread" in entry]
    seen = trainer.state.global_step * per_step
    return {
        "held_out": held_out,
        "last_loss": held_out[-1][1],
        "best_loss": min(loss for _, loss in held_out),
        "tokens": seen,
        "stopped_early": trainer.state.global_step < steps,
        "load_spread": spreads[-1],
        "tokens_per_second": round(seen / seconds, 1),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def arguments(settings: RunSettings, steps: int, seed: int, folder: str) -> TrainingArguments:
    """The trainer's own. The order of the rows hangs on `seed` alone, not on what a model draws for its weights."""
    each = steps // settings.evaluations
    return TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=settings.rows_per_step,
        per_device_eval_batch_size=settings.rows_per_step,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        warmup_steps=round(settings.warmup_share * steps),
        adam_beta2=0.98,
        weight_decay=0.0,  # tables want none, and one rule for all weights keeps the comparison plain
        optim="adamw_torch_fused",
        bf16=settings.dtype == "bfloat16",
        torch_compile=settings.compile,
        eval_strategy="steps",
        eval_steps=each,
        logging_steps=each,
        save_strategy="no",
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        seed=seed,
        data_seed=seed,
        dataloader_pin_memory=False,
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
        report_to="none",
    )


def main(source: str, target: str) -> None:
    """Reads a run, trains by it, and writes what came of it."""
    run = json.loads(Path(source).read_text(encoding="utf-8"))
    result = {**run, "result": train(run)}
    write_whole(Path(target), (json.dumps(result, indent=1) + "\n").encode())


__all__ = ["RunSettings", "steps_for", "train"]

if __name__ == "__main__":
    main(*sys.argv[1:])
