# SPDX-License-Identifier: Apache-2.0
"""
# A longer context in stages, by YaRN: a small model on a CPU; `python -m eval.studies.yarn` writes what it needs
```bash
python -m training.extend_context \
    --config training/recipes/yarn_demo.yaml --stages training/recipes/yarn_demo.stages.yaml
```

# LongCat-Flash-Lite from its 32k stage to 256k, on 64 GPUs
```bash
accelerate launch --config_file training/accelerate_configs/context_parallel.yaml -m training.extend_context \
    --config training/recipes/yarn_256k.yaml --stages training/recipes/yarn_256k.stages.yaml
```

The recipe holds TRL's keys; the stages file holds what TRL does not have (see `training/context/stages.py`). Data sets
are documents, in a column `text` or `input_ids`, with a training split to learn from and a test split for the loss at
the original length. That loss is measured before the first stage, under the checkpoint's own RoPE, and after each
stage. If it has risen by more than `short_loss_tolerance`, the run stops after that stage is saved.

Each stage is saved as `stage-1-MAX_LENGTH` and so on, with what it logged as JSON and as a plot. The last one is also
saved in the output folder itself, with `stages.json`.
`--resume_from_checkpoint last` skips finished stages and resumes inside the one that was interrupted.
"""

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenization.command_line import run_command
from training.run.tested_versions import warn_of_untested_versions

RECORD = "stages.json"


@dataclass
class StageArguments:
    """What this script adds to TRL's arguments."""

    stages: str | None = field(
        default=None, metadata={"help": "YAML file with the stages, see training/context/stages.py."}
    )


def main(script_args, training_args, model_args, dataset_args, stage_args):
    from transformers import AutoTokenizer

    from modeling_longcat_lite import LongCatLiteConfig
    from training.context.stages import check_original_length, read_stages
    from training.run.lifecycle import check_options

    check_options(script_args, training_args, model_args, dataset_args)
    check_arguments(script_args, training_args, model_args, dataset_args, stage_args)
    stages = read_stages(stage_args.stages)
    config = LongCatLiteConfig.from_pretrained(model_args.model_name_or_path, revision=model_args.model_revision)
    check_original_length(config, stages.original_length)
    tokenizer = AutoTokenizer.from_pretrained(model_args.model_name_or_path, revision=model_args.model_revision)
    run = ContextExtension(stages, config, tokenizer, script_args, training_args, model_args)
    run.load_documents(dataset_args)
    return run.train()


class ContextExtension:
    """The stages of one run, one after the other; each starts from the folder of the one before."""

    def __init__(self, stages, config, tokenizer, script_args, training_args, model_args):
        self.stages, self.config, self.tokenizer = stages, config, tokenizer
        self.script_args, self.training_args, self.model_args = script_args, training_args, model_args
        self.output = Path(training_args.output_dir)

    def load_documents(self, dataset_args):
        """Read, tokenize and cut. Raises before training if no document is long enough for a stage."""
        from datasets import load_dataset

        from training.context.rows import check_rows, long_rows, short_rows, tokenized
        from training.data.rows import read_dataset

        train, test = self.script_args.dataset_train_split, self.script_args.dataset_test_split
        field_name = self.training_args.dataset_text_field
        documents = short = read_dataset(self.script_args, dataset_args)
        if self.stages.short_dataset_name:
            short = load_dataset(self.stages.short_dataset_name)
        for name, splits, wanted in (("dataset_name", documents, [train]), ("short data", short, [train, test])):
            for split in wanted:
                if split not in splits:
                    raise ValueError(f"`{name}` has no split `{split}`, it has {', '.join(splits)}")
        original = self.stages.original_length
        long_documents = tokenized(documents[train], self.tokenizer, field_name, train)
        self.long = []
        for index, stage in enumerate(self.stages.stages):
            rows = long_rows(long_documents, stage.max_length)
            if stage.long_share > 0:
                check_rows(rows, long_documents, stage.max_length, f"stages[{index}].max_length")
            self.long.append(rows)
        short_documents = {
            split: tokenized(short[split], self.tokenizer, field_name, split) for split in (train, test)
        }
        self.short, self.short_test = (short_rows(short_documents[split], original) for split in (train, test))
        for split, rows in ((train, self.short), (test, self.short_test)):
            check_rows(rows, short_documents[split], original, "original_length")

    def train(self):
        """Run the stages; returns the last trainer, whose `stage_records` say what was measured."""
        from training.context.stages import stage_config
        from training.run.lifecycle import newest_checkpoint, push_and_end

        path = self.output / RECORD
        resuming = self.training_args.resume_from_checkpoint == "last"
        records = json.loads(path.read_text(encoding="utf-8")) if resuming and path.is_file() else []
        if not records:
            records.append({"stage": "before", "short_loss": self._short_loss_before()})
        source = self.model_args.model_name_or_path
        trainer = None
        for index, stage in enumerate(self.stages.stages):
            folder = self._folder(index)
            if index + 1 >= len(records):
                trainer = None  # its memory is free before the next model is loaded
                trainer = self._trainer(source, stage_config(self.config, self.stages, stage), index)
                trainer.train(resume_from_checkpoint=newest_checkpoint(folder) if resuming else None)
                self._finish(trainer, index, records)
            source = str(folder)
        if trainer is None:
            raise ValueError(f"{path}: every stage has been trained; give another `output_dir` to train again")
        trainer.save_model(str(self.output))
        push_and_end(trainer, self.script_args)
        return trainer

    def _short_loss_before(self) -> float:
        """The loss at the original length of the checkpoint as it is, under its own RoPE.

        Sharded models cannot be evaluated without an optimizer, so this is the evaluation before one training step,
        whose result is discarded.
        """
        from training.run.curves import TrainingCurves

        trainer = self._trainer(self.model_args.model_name_or_path, self.config, 0)
        trainer.remove_callback(TrainingCurves)
        trainer.args.eval_on_start, trainer.args.max_steps, trainer.args.save_strategy = True, 1, "no"
        trainer.args.gradient_accumulation_steps = 1
        trainer.train()
        return next(entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry)

    def _folder(self, index: int) -> Path:
        return self.output / f"stage-{index + 1}-{self.stages.stages[index].max_length}"

    def _trainer(self, source: str, config, index: int) -> Any:
        """A trainer of one stage, with the model loaded under `config`."""
        from modeling_longcat_lite import LongCatLiteForCausalLM
        from training.context.rows import collate_block, evaluation_blocks, stage_blocks
        from training.context.shards import ShardedRowsSFTTrainer
        from training.run.curves import TrainingCurves

        stage, original = self.stages.stages[index], self.stages.original_length
        args = copy.deepcopy(self.training_args)
        options = args.model_init_kwargs or {}
        args.model_init_kwargs, args.resume_from_checkpoint = None, None
        args.output_dir, args.max_steps, args.max_length = str(self._folder(index)), stage.steps, stage.max_length
        args.dataset_kwargs = {"skip_prepare_dataset": True}
        args.remove_unused_columns = False
        model = LongCatLiteForCausalLM.from_pretrained(
            source,
            config=config,
            dtype=self.model_args.dtype or "float32",
            attn_implementation=self.model_args.attn_implementation,
            **options,
        )
        count = stage.steps * args.gradient_accumulation_steps * args.world_size
        trainer = ShardedRowsSFTTrainer(
            model=model,
            args=args,
            train_dataset=stage_blocks(self.long[index], self.short, stage, original, count, args.seed + index),
            eval_dataset=evaluation_blocks(self.short_test, max(1, stage.max_length // original)),
            data_collator=collate_block,
            processing_class=self.tokenizer,
            callbacks=[TrainingCurves()],
        )
        check_parallelism(trainer.accelerator.parallelism_config, original)
        return trainer

    def _finish(self, trainer: Any, index: int, records: list[dict]):
        """Measure, save and record a stage, and stop if the short loss has risen too far."""
        from modeling_longcat_lite.whole_files import write_whole

        stage, first = self.stages.stages[index], records[0]["short_loss"]
        loss = trainer.evaluate()["eval_loss"]
        trainer.save_model(str(self._folder(index)))
        trainer.save_state()
        records.append({"stage": index + 1, **vars(stage), "short_loss": loss, "short_loss_ratio": loss / first})
        trainer.stage_records = records
        if trainer.is_world_process_zero():
            write_whole(self.output / RECORD, json.dumps(records, indent=2) + "\n")
        trainer.accelerator.print(
            f"stage {index + 1}: rows of {stage.max_length} tokens, factor {stage.factor}; short loss {loss:.4f}, "
            f"{loss / first:.4f} of before"
        )
        if self.stages.stop_when_short_loss_rises and loss > first * (1 + self.stages.short_loss_tolerance):
            raise RuntimeError(
                f"stage {index + 1}: the loss on rows of {self.stages.original_length} tokens rose from {first:.4f} "
                f"to {loss:.4f}, by more than `short_loss_tolerance` {self.stages.short_loss_tolerance}. The stage is "
                f"saved in {self._folder(index)}; lower `long_share` or the learning rate"
            )


def check_arguments(script_args, training_args, model_args, dataset_args, stage_args):
    """Raise a `ValueError` for options that this script cannot honour."""
    if not stage_args.stages:
        raise ValueError("`stages` must be given: a YAML file such as training/recipes/yarn_demo.stages.yaml")
    if bool(dataset_args.datasets) == bool(script_args.dataset_name):
        raise ValueError("give one of `dataset_name` and `datasets`")
    if script_args.dataset_streaming:
        raise ValueError("`dataset_streaming`: rows are drawn from the whole data set; turn it off")
    if training_args.packing or training_args.padding_free:
        raise ValueError(
            "`packing` and `padding_free` start every document at position 0, so short ones never train a long "
            "position; turn both off, because this script fills the rows itself"
        )
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size"):
        if getattr(training_args, name) != 1:
            raise ValueError(f"`{name}` must be 1: a batch is a block of `max_length` tokens; accumulate instead")
    if model_args.use_peft:
        raise ValueError("`use_peft`: each stage starts from the weights of the one before; merge adapters instead")
    if training_args.resume_from_checkpoint not in (None, "last"):
        raise ValueError(
            f"`resume_from_checkpoint` is {training_args.resume_from_checkpoint!r}, but must be `last`: the output "
            "folder says which stage to resume, and where"
        )
    if training_args.load_best_model_at_end or training_args.eval_strategy != "no":
        raise ValueError("`eval_strategy` and `load_best_model_at_end`: each stage is evaluated once, at its end")


def check_parallelism(parallelism, original_length: int):
    """Raise a `ValueError` if context parallelism cannot split rows of the original length evenly."""
    size = 1 if parallelism is None else parallelism.cp_size
    if size > 1 and original_length % (2 * size):
        raise ValueError(
            f"`original_length` {original_length} must be a multiple of twice `parallelism_config_cp_size` ({size}): "
            "a process gets two chunks of every row"
        )


def make_parser():
    warn_of_untested_versions()
    from trl import ScriptArguments, SFTConfig

    from training.run.arguments import training_parser

    about = "Extend the context of a model in stages, by YaRN."
    return training_parser("training.extend_context", about, ScriptArguments, SFTConfig, StageArguments)


if __name__ == "__main__":
    run_command(lambda: main(*make_parser().parse_args_and_config()) and 0)  # `main` returns the trainer
