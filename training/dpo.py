# SPDX-License-Identifier: Apache-2.0
"""
# From a recipe, on pairs made from the demo's conversations
```bash
python -m training.data.preferences --conversations outputs/demo/data --output outputs/preferences
python -m training.dpo --config training/recipes/dpo.yaml
```

# LoRA on your own preferences, a folder of JSON Lines files with {"prompt": ..., "chosen": ..., "rejected": ...} rows
```bash
python -m training.dpo --config training/recipes/dpo.yaml --dataset_name my-preferences \
    --use_peft --lora_target_modules q_a_proj q_b_proj o_proj --output_dir outputs/my-adapter
```

Direct preference optimization (arXiv 2305.18290). Options as in `training.sft`: the command line overrides the recipe,
`--resume_from_checkpoint last`, `--merge_adapter`, `--push_to_hub`.
"""

from tokenization.command_line import run_command
from training.run.tested_versions import warn_of_untested_versions


def main(script_args, training_args, model_args, dataset_args, output_args):
    # Registers the architecture with the Auto classes, through which the trainer loads the model.
    import modeling_longcat_lite  # noqa: F401
    from training.run.lifecycle import train_and_save, trainer_options
    from training.run.trainers import ResumableDPOTrainer

    trainer = ResumableDPOTrainer(**trainer_options(script_args, training_args, model_args, dataset_args, "dpo"))
    return train_and_save(trainer, script_args, output_args)


def make_parser():
    warn_of_untested_versions()
    from trl import DPOConfig, ScriptArguments

    from training.run.arguments import OutputArguments, training_parser

    about = "Train a model on preferences."
    return training_parser("training.dpo", about, ScriptArguments, DPOConfig, OutputArguments)


if __name__ == "__main__":
    run_command(lambda: main(*make_parser().parse_args_and_config()) and 0)  # `main` returns the trainer
