# SPDX-License-Identifier: Apache-2.0
"""
# From a recipe, on questions of the demo whose answers are known
```bash
python -m training.data.preferences --conversations outputs/demo/data --output outputs/preferences
python -m training.grpo --config training/recipes/grpo.yaml
```

# With your own rewards: functions by their import path, or by their name in `trl.rewards`
```bash
python -m training.grpo --config training/recipes/grpo.yaml --dataset_name my-prompts \
    --reward_funcs my_package.rewards.right_answer think_format_reward --output_dir outputs/my-model
```

Group relative policy optimization (arXiv 2402.03300). A reward function gets the completions and every column of the
rows except `prompt`. Options as in `training.sft`: the command line overrides the recipe,
`--resume_from_checkpoint last`, `--merge_adapter`, `--push_to_hub`.
"""

import importlib
from collections.abc import Callable
from typing import Any

from tokenization.command_line import run_command
from training.run.tested_versions import warn_of_untested_versions


def main(script_args, training_args, model_args, dataset_args, output_args):
    # Registers the architecture with the Auto classes, through which the trainer loads the model.
    import modeling_longcat_lite  # noqa: F401
    from training.run.lifecycle import train_and_save, trainer_options
    from training.run.trainers import ResumableGRPOTrainer

    rewards: list[Any] = [reward_function(name) for name in script_args.reward_funcs or []]
    if script_args.reward_model_name_or_path:
        rewards.append(script_args.reward_model_name_or_path)
    if not rewards:
        raise ValueError("`reward_funcs` or `reward_model_name_or_path` must be given")
    options = trainer_options(script_args, training_args, model_args, dataset_args, "grpo")
    trainer = ResumableGRPOTrainer(reward_funcs=rewards, **options)
    return train_and_save(trainer, script_args, output_args)


def reward_function(name: str) -> Callable:
    """A function by its import path, or by its name in `trl.rewards`.

    Raises:
        `ValueError`: if there is no such function.
    """
    module, _, function = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module or "trl.rewards"), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"`reward_funcs`: there is no function `{name}` ({error})") from error


def make_parser():
    warn_of_untested_versions()
    from trl import GRPOConfig
    from trl.scripts.grpo import GRPOScriptArguments

    from training.run.arguments import OutputArguments, training_parser

    about = "Train a model by rewards for its answers."
    return training_parser("training.grpo", about, GRPOScriptArguments, GRPOConfig, OutputArguments)


if __name__ == "__main__":
    run_command(lambda: main(*make_parser().parse_args_and_config()) and 0)  # `main` returns the trainer
