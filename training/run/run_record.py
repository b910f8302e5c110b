# SPDX-License-Identifier: Apache-2.0
"""The record of a run, `training_run.json` in the output folder: method, devices, settings and versions.

Model cards read it. It holds no paths.
"""

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from modeling_longcat_lite.whole_files import write_whole

RUN_RECORD = "training_run.json"
LIBRARIES = ("torch", "transformers", "trl", "peft", "datasets", "tokenizers")
# Settings of all trainers, then those of SFT, DPO and GRPO alone.
SETTINGS = (
    *("per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate", "lr_scheduler_type"),
    *("warmup_steps", "optim", "adam_beta1", "adam_beta2", "weight_decay", "max_grad_norm", "bf16", "seed"),
    *("max_length", "packing", "assistant_only_loss"),
    *("beta", "loss_type", "num_generations", "max_completion_length"),
)


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that train."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


def write_run_record(trainer: Any) -> None:
    """Write the record of one of the trainers in `training/run/trainers.py` to its output folder."""
    if not trainer.is_world_process_zero():
        return
    length = "max_steps" if trainer.args.max_steps > 0 else "num_train_epochs"
    arguments = vars(trainer.args)
    stated = {name: arguments[name] for name in (length, *SETTINGS) if arguments.get(name) is not None}
    record = {
        "method": trainer.method,
        "devices": trainer.accelerator.num_processes,
        "settings": {name: getattr(value, "value", value) for name, value in stated.items()},  # of enumerations
        "versions": versions(),
    }
    write_whole(Path(trainer.args.output_dir) / RUN_RECORD, json.dumps(record, indent=2) + "\n")


__all__ = ["versions", "write_run_record"]
