# SPDX-License-Identifier: Apache-2.0
"""What studies that train small models from scratch share: batches of token rows, and the trainer's arguments.

Shapes: B batch rows, T tokens.
"""

from typing import Any

import torch
from transformers import TrainingArguments


def rows_as_batch(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Rows of `input_ids` as `input_ids` and `labels`, `[B, T]` each."""
    ids = torch.tensor([row["input_ids"] for row in rows])
    return {"input_ids": ids, "labels": ids}


def trainer_arguments(
    folder: str, steps: int, log_every: int, batch_size: int, learning_rate: float, seed: int, **others: Any
) -> TrainingArguments:
    """Arguments of a seeded run that saves and reports nothing.

    Args:
        folder (`str`): A temporary folder.
        steps, log_every (`int`): Optimizer steps of the run, and between two entries of the log.
        batch_size (`int`): Rows per step.
        learning_rate (`float`): Its peak.
        seed (`int`): Seed of the trainer.
        others: Further fields of `TrainingArguments`, such as the schedule.
    """
    return TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        logging_steps=log_every,
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        weight_decay=0.0,  # tables want none, and one rule for all weights keeps comparisons simple
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        use_cpu=not torch.cuda.is_available(),
        **others,
    )


__all__ = ["rows_as_batch", "trainer_arguments"]
