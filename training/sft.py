# SPDX-License-Identifier: Apache-2.0
"""
# From a recipe
```bash
python -m training.sft --config training/recipes/demo.yaml
```

# LoRA on your own conversations, a JSON Lines file of {"messages": [...]} rows in a folder
```bash
python -m training.sft \
    --model_name_or_path outputs/demo/package \
    --dataset_name my-conversations \
    --chat_template_path tokenization/chat_template_training.jinja \
    --assistant_only_loss \
    --packing \
    --use_peft \
    --lora_target_modules q_a_proj q_b_proj kv_a_proj_with_mqa kv_b_proj o_proj \
    --output_dir outputs/my-adapter
```

# The draft head with the trunk, a model that has none gets a fresh one; then the head alone, behind the finished trunk
```bash
python -m training.sft --config training/recipes/demo.yaml --draft_loss_weight 0.5 --output_dir outputs/demo-joint
python -m training.sft --config training/recipes/demo.yaml --draft_loss_weight 0.5 --draft_head_only \
    --model_name_or_path outputs/demo-joint --output_dir outputs/demo-draft
```

An option on the command line overrides the recipe. `--resume_from_checkpoint last` goes on after an interruption;
`--push_to_hub` ships the weights with the model's code.
"""

import argparse
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any


@dataclass
class DraftArguments:
    """What this script adds to TRL's arguments."""

    draft_loss_weight: float = field(
        default=0.0, metadata={"help": "Weight of the draft head's loss beside the trunk's; 0 leaves the head frozen."}
    )
    draft_head_only: bool = field(
        default=False, metadata={"help": "Train the draft head alone; the trunk stays as it is."}
    )


def main(script_args, training_args, model_args, dataset_args, draft_args):
    from trl import get_peft_config, get_quantization_config

    # Registers the architecture with the Auto classes, through which the trainer loads the model.
    import modeling_longcat_lite  # noqa: F401
    from training.draft_loss import DraftHeadTrainer
    from training.resumable_trainer import ResumableSFTTrainer

    check_arguments(script_args, training_args, dataset_args)
    if draft_args.draft_head_only and not draft_args.draft_loss_weight:
        raise ValueError("`draft_head_only` trains nothing without a `draft_loss_weight`")
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "trust_remote_code": training_args.trust_remote_code,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }

    train_rows, test_rows = load_rows(script_args, training_args, dataset_args)

    # Train
    trainer_class: Any = ResumableSFTTrainer
    if draft_args.draft_loss_weight:
        trainer_class = partial(DraftHeadTrainer, **vars(draft_args))
    trainer = trainer_class(
        model=model_args.model_name_or_path,
        args=training_args,
        train_dataset=train_rows,
        eval_dataset=test_rows,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    trainer.train(resume_from_checkpoint=checkpoint_to_resume(training_args))

    # Save and push
    trainer.save_model(training_args.output_dir)
    trainer.save_state()
    trainer.accelerator.print(f"Model saved to {training_args.output_dir}")
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=script_args.dataset_name)
        trainer.accelerator.print(f"Model pushed to the Hub as {trainer.hub_model_id}")
    trainer.end()
    return trainer


def load_rows(script_args, training_args, dataset_args):
    """The checked rows to train on, and those to evaluate on or `None`."""
    from datasets import load_dataset
    from trl import get_dataset

    from training.chat_rows import check_chat_rows

    if dataset_args.datasets:
        dataset = get_dataset(dataset_args)
    else:
        dataset = load_dataset(
            script_args.dataset_name, name=script_args.dataset_config, streaming=script_args.dataset_streaming
        )
    evaluated = training_args.eval_strategy != "no" or training_args.eval_on_start
    splits = [script_args.dataset_train_split] + evaluated * [script_args.dataset_test_split]
    for split in splits:
        if split not in dataset:
            raise ValueError(f"the data set has no split `{split}`, it has {', '.join(dataset)}")
        check_chat_rows(dataset[split], split)
    return dataset[splits[0]], dataset[splits[-1]] if evaluated else None


def check_arguments(script_args, training_args, dataset_args):
    """Raise a `ValueError` for what would fail late, or not fail and train on the wrong thing."""
    if not dataset_args.datasets and not script_args.dataset_name:
        raise ValueError("`dataset_name` or `datasets` must be given")
    if dataset_args.datasets and script_args.dataset_name:
        raise ValueError("`dataset_name` and `datasets` are both given, choose one")
    if training_args.packing and training_args.packing_strategy == "wrapped":
        raise ValueError(
            "`packing_strategy: wrapped` tells the model nothing of where a document ends, so attention and n-grams "
            "would cross over; choose `bfd` or `bfd_split`"
        )


def checkpoint_to_resume(training_args):
    """The path to resume from; `last` is the newest checkpoint in the output folder."""
    from transformers.trainer_utils import get_last_checkpoint

    if training_args.resume_from_checkpoint != "last":
        return training_args.resume_from_checkpoint
    output = training_args.output_dir
    checkpoint = get_last_checkpoint(output) if Path(output).is_dir() else None
    if checkpoint is None:
        raise ValueError(f"`resume_from_checkpoint: last`: there is no checkpoint in {training_args.output_dir}")
    return checkpoint


def make_parser(subparsers: argparse._SubParsersAction | None = None, prog: str | None = None):
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, SFTConfig, TrlParser

    dataclass_types: Any = (ScriptArguments, SFTConfig, ModelConfig, DatasetMixtureConfig, DraftArguments)
    if subparsers is not None:
        return subparsers.add_parser("sft", help="Run the SFT training script", dataclass_types=dataclass_types)
    return TrlParser(dataclass_types, prog=prog)


if __name__ == "__main__":
    main(*make_parser().parse_args_and_config())
