# SPDX-License-Identifier: Apache-2.0
"""A tiny chat model trained with its tables frozen, by rows, or as any other weight."""

from pathlib import Path

import torch
from datasets import load_dataset
from peft import LoraConfig
from trl import SFTConfig

from modeling_longcat_lite import LongCatLiteForCausalLM
from training.run.trainers import ResumableSFTTrainer
from training.tables.trainer import TableTrainerMixin


class TableTrainer(TableTrainerMixin, ResumableSFTTrainer):
    pass


def made(chat: Path, output: Path, peft_config=None, init=None, tables: dict | None = None, **options):
    arguments = {
        "max_steps": 4,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "max_length": 64,
        "chat_template_path": "tokenization/chat_template_training.jinja",
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "disable_tqdm": True,
        "max_grad_norm": 0.1,
        **options,
    }
    return TableTrainer(
        model=LongCatLiteForCausalLM.from_pretrained(chat / "model", **{"dtype": torch.float32, **(init or {})}),
        args=SFTConfig(output_dir=str(output), **arguments),
        train_dataset=load_dataset("json", data_files=str(chat / "data" / "train.jsonl"), split="train"),
        eval_dataset=load_dataset("json", data_files=str(chat / "data" / "test.jsonl"), split="train"),
        peft_config=peft_config,
        **(tables or {}),
    )


def trained(*args, resume=None, **kwargs):
    trainer = made(*args, **kwargs)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def logged(trainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


LORA = LoraConfig(target_modules=["q_a_proj", "o_proj"])
BY_ROWS = {"tables": "row_sparse", "table_learning_rate": 1e-2}
