# SPDX-License-Identifier: Apache-2.0
"""One run of the scaling study, a model trained from scratch on the study's text; and the file that keeps all runs.

    python -m eval.studies.scaling.run RUN.json OUTPUT.json

The study starts each run in its own process, so that several run at once and a failure stops no other run. Everything
is seeded: the same run gives the same losses.
"""

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import EarlyStoppingCallback, Trainer, set_seed

from eval.studies.small_training import rows_as_batch, trainer_arguments
from modeling_longcat_lite import LongCatLiteConfig, LongCatLiteForCausalLM
from modeling_longcat_lite.whole_files import write_whole
from tokenization.command_line import CommandParser, run_command
from tokenization.number_options import check_number
from training.data.token_rows import load_side
from training.routers.arguments import RouterArguments
from training.routers.control import RouterControlMixin


@dataclass(frozen=True)
class RunSettings:
    """How every run of a study is trained.

    Args:
        rows_per_step (`int`): Rows per optimizer step; a row has the text's `length` tokens.
        learning_rate (`float`): Peak, after a warm-up of `warmup_share` of the steps; a cosine lowers it to a tenth.
        router_bias_rate (`float`): Rate mu that evens the load of the experts, see `training/routers/control.py`.
        evaluations (`int`): Number of evaluations on the held-out rows, evenly spaced; the last is at the end.
        patience (`int`): Consecutive evaluations without a lower held-out loss that end the run.
        max_epochs (`float`): Most times that the text may be read; a larger token budget is refused.
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
    """A trainer that evens the load of the experts."""


def steps_for(tokens: int, length: int, settings: RunSettings) -> int:
    """Optimizer steps for a token budget, rounded to a multiple of the evaluations, at least one step for each."""
    steps = tokens / (length * settings.rows_per_step)
    return max(round(steps / settings.evaluations), 1) * settings.evaluations


def train(run: dict[str, Any], as_batch: Callable[[list[dict]], dict] = rows_as_batch) -> dict[str, Any]:
    """Trains one run.

    Args:
        run (`dict`): `text` (folder), `config`, `training`, `tokens`, `length` and `seed`.
        as_batch (`Callable`, *optional*): Makes a batch of rows.

    Returns:
        `held_out`: (tokens read, held-out loss in nats per token) of every evaluation; `last_loss`, `best_loss`;
        `tokens`; `stopped_early`; `load_spread` of the experts over the last logged steps; `tokens_per_second`;
        `threads`, `torch`.
    """
    settings = RunSettings(**run["training"])
    text, steps = Path(run["text"]), steps_for(run["tokens"], run["length"], settings)
    set_seed(run["seed"])
    model = LongCatLiteForCausalLM(LongCatLiteConfig(**run["config"]))
    every = steps // settings.evaluations
    with tempfile.TemporaryDirectory() as folder:
        arguments = trainer_arguments(
            folder,
            steps,
            every,
            settings.rows_per_step,
            settings.learning_rate,
            run["seed"],
            data_seed=run["seed"],  # the order of the rows does not depend on the random numbers of a model's weights
            per_device_eval_batch_size=settings.rows_per_step,
            lr_scheduler_type="cosine_with_min_lr",
            lr_scheduler_kwargs={"min_lr_rate": 0.1},
            warmup_steps=round(settings.warmup_share * steps),
            adam_beta2=0.98,
            optim="adamw_torch_fused",
            bf16=settings.dtype == "bfloat16",
            torch_compile=settings.compile,
            eval_strategy="steps",
            eval_steps=every,
            metric_for_best_model="eval_loss",
            greater_is_better=False,
        )
        trainer = StudyTrainer(
            model=model,
            args=arguments,
            train_dataset=load_side(text, "train"),
            eval_dataset=load_side(text, "held_out"),
            data_collator=as_batch,
            callbacks=[EarlyStoppingCallback(settings.patience)],
            router_args=RouterArguments(router_bias_rate=settings.router_bias_rate),
        )
        begin = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - begin
    history, per_step = trainer.state.log_history, run["length"] * settings.rows_per_step
    held_out = [(entry["step"] * per_step, entry["eval_loss"]) for entry in history if "eval_loss" in entry]
    spreads = [entry["experts/load_spread"] for entry in history if "experts/load_spread" in entry]
    tokens = trainer.state.global_step * per_step
    return {
        "held_out": held_out,
        "last_loss": held_out[-1][1],
        "best_loss": min(loss for _, loss in held_out),
        "tokens": tokens,
        "stopped_early": trainer.state.global_step < steps,
        "load_spread": spreads[-1],
        "tokens_per_second": round(tokens / seconds, 1),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


class KeptRuns:
    """The file of plans and finished runs: `{"plans": {REPORT: plan}, "runs": {NAME: run}}`, one run per line.

    A run has what it was asked for (`config`, `training`, `tokens`, `length`, `text_sha256`, `seed`) and its `result`;
    its name is a hash of the former, with the seed.

    Args:
        path (`Path`): The file, which may not exist yet.

    Raises:
        `ValueError`: naming the file, if it is something else.
    """

    def __init__(self, path: Path):
        self.path = path
        self.plans: dict[str, dict] = {}
        self.runs: dict[str, dict] = {}
        self.lock = threading.Lock()
        if path.is_dir():
            raise ValueError(f"`--runs` {path} is a folder: give a JSON file, which keeps all runs")
        if path.is_file():
            try:
                kept = json.loads(path.read_text(encoding="utf-8"))
                self.plans, self.runs = kept["plans"], kept["runs"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"`--runs` {path} does not hold the runs of a study: {error!r}") from error

    def add_plan(self, report: str, plan: dict[str, Any]) -> None:
        """Keeps the plan of a report, except for what its runs are asked for, which each run has."""
        self.plans[report] = {key: value for key, value in plan.items() if key != "runs"}
        self._write()

    def add_run(self, run: dict[str, Any], result: dict[str, Any]) -> None:
        """Keeps a finished run; several threads may call this at once."""
        asked = {key: value for key, value in run.items() if key not in ("name", "text")}
        with self.lock:
            self.runs[run["name"]] = {**asked, "result": result}
            self._write()

    def _write(self) -> None:
        lines = [f"{json.dumps(name)}: {json.dumps(run)}" for name, run in sorted(self.runs.items())]
        write_whole(self.path, f'{{"plans": {json.dumps(self.plans)},\n"runs": {{\n' + ",\n".join(lines) + "\n}}\n")


def make_parser() -> CommandParser:
    """Command-line arguments."""
    parser = CommandParser("eval.studies.scaling.run", "Trains one run of the scaling study.")
    parser.add_argument("source", type=Path, help="JSON file with what the run is asked for")
    parser.add_argument("target", type=Path, help="JSON file for its result")
    return parser


def main(arguments: argparse.Namespace) -> None:
    """Reads what a run is asked for, trains it, and writes its result."""
    write_whole(arguments.target, json.dumps(train(json.loads(arguments.source.read_text(encoding="utf-8")))))


__all__ = ["KeptRuns", "RunSettings", "steps_for", "train"]

if __name__ == "__main__":
    run_command(lambda: main(make_parser().parse_args()))
