# SPDX-License-Identifier: Apache-2.0
"""`training_run.json`: with which method, settings and versions a run was made, for its card.

    {"method": "SFT", "settings": {"learning_rate": 0.002, ...}, "versions": {"torch": "2.13.0", ...}}

Settings have TRL's names. Folders of the machine are not among them, so that the file can be published.
"""

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from training.folder_replacement import write_beside

RUN_RECORD = "training_run.json"
LIBRARIES = ("torch", "transformers", "trl", "peft", "datasets", "tokenizers")
# Those of all trainers, then of SFT, DPO and GRPO; each has some of them.
SETTINGS = (
    *("per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate", "lr_scheduler_type"),
    *("warmup_steps", "optim", "adam_beta1", "adam_beta2", "weight_decay", "max_grad_norm", "bf16", "seed"),
    *("max_length", "packing", "assistant_only_loss"),
    *("beta", "loss_type", "num_generations", "max_completion_length"),
)


def versions() -> dict[str, str]:
    """Of Python and the libraries that train."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


def write_run_record(trainer: Any) -> Path | None:
    """Write the record of a trainer of TRL into its output folder; returns its path, of the main process only."""
    if not trainer.is_world_process_zero():
        return None
    lasts = "max_steps" if trainer.args.max_steps > 0 else "num_train_epochs"
    stated = {name: getattr(trainer.args, name) for name in (lasts, *SETTINGS) if name in vars(trainer.args)}
    settings = {name: getattr(value, "value", value) for name, value in stated.items() if value is not None}
    record = {
        "method": trainer._name,
        "devices": trainer.accelerator.num_processes,
        "settings": settings,
        "versions": versions(),
    }
    path = Path(trainer.args.output_dir) / RUN_RECORD
    write_beside(path, (json.dumps(record, indent=2) + "\n").encode())
    return path


__all__ = ["write_run_record"]
