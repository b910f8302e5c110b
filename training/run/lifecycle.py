# SPDX-License-Identifier: Apache-2.0
"""What `training.sft`, `training.dpo` and `training.grpo` do alike around their trainer."""

from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import get_peft_config, get_quantization_config

from tokenization.number_options import check_finite, check_number
from training.data.rows import load_rows
from training.routers.arguments import refuse_auxiliary_loss
from training.run import curves as training_curves
from training.run.output import OutputArguments, write_merged, write_run_record


def trainer_options(
    script_args: Any, training_args: Any, model_args: Any, dataset_args: Any, task: str
) -> dict[str, Any]:
    """What every trainer is made with: model, checked rows of `task` (see `row_loading`), adapter, curves."""
    check_options(script_args, training_args, model_args, dataset_args)
    train_rows, test_rows = load_rows(script_args, training_args, dataset_args, task)
    set_model_options(training_args, model_args)
    return {
        "model": model_args.model_name_or_path,
        "args": training_args,
        "train_dataset": train_rows,
        "eval_dataset": test_rows,
        "quantization_config": get_quantization_config(model_args),
        "peft_config": get_peft_config(model_args),
        "callbacks": [training_curves.TrainingCurves()],
    }


def check_options(script_args: Any, training_args: Any, model_args: Any, dataset_args: Any) -> None:
    """Raise a `ValueError` that names an option of TRL with which training would fail late, or train NaN or uphill."""
    check_hub_token(training_args)
    check_finite(script_args, training_args, model_args, dataset_args)
    # `beta` of DPO and GRPO weighs the distance to the reference model.
    for name in ("learning_rate", "weight_decay", "adam_epsilon", "max_grad_norm", "beta", "temperature"):
        check_number(name, vars(training_args).get(name), least=0)
    for name in ("adam_beta1", "adam_beta2"):
        check_number(name, vars(training_args).get(name), least=0, below=1)
    check_number("lora_dropout", model_args.lora_dropout, least=0, below=1)
    refuse_auxiliary_loss(vars(training_args), "the options")
    refuse_auxiliary_loss(training_args.model_init_kwargs or {}, "`model_init_kwargs`")


def check_hub_token(training_args: Any) -> None:
    """Raise a `ValueError` for a token among the arguments: trainers save those."""
    if training_args.hub_token is not None:
        raise ValueError(
            "`hub_token` would be stored in training_args.bin, beside the model and in every checkpoint; run "
            "`hf auth login`, or set HF_TOKEN"
        )


def set_model_options(training_args: Any, model_args: Any) -> None:
    """Put what [`~trl.ModelConfig`] says of loading into `model_init_kwargs`, which win, as TRL's scripts do."""
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "trust_remote_code": training_args.trust_remote_code,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }


def checkpoint_to_resume(training_args: Any) -> str | None:
    """The path to resume from; `last` is the newest whole checkpoint in the output folder."""
    if training_args.resume_from_checkpoint != "last":
        return training_args.resume_from_checkpoint
    newest = newest_checkpoint(Path(training_args.output_dir))
    if newest is None:
        raise ValueError(f"`resume_from_checkpoint: last`: there is no checkpoint in {training_args.output_dir}")
    return newest


def newest_checkpoint(folder: Path) -> str | None:
    """The newest whole checkpoint in a folder, if there is one.

    The trainer writes `trainer_state.json` behind everything else: a checkpoint without it was cut off, for want of
    space for example.
    """
    folders = folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    whole = [path for path in folders if path.suffix == "" and (path / TRAINER_STATE_NAME).is_file()]
    return str(max(whole, key=lambda path: int(path.name.rpartition("-")[2]))) if whole else None


def train_and_save(trainer: Any, script_args: Any, output_args: OutputArguments) -> Any:
    """Train, save, merge and push as asked; returns the trainer."""
    if output_args.merge_adapter and not isinstance(trainer.model, PeftModel):
        raise ValueError("`merge_adapter` merges an adapter, and none is trained: add `use_peft` or leave it out")
    trainer.train(resume_from_checkpoint=checkpoint_to_resume(trainer.args))
    output = Path(trainer.args.output_dir)
    trainer.save_model(str(output))
    trainer.save_state()
    write_run_record(trainer)
    trainer.accelerator.print(f"Model saved to {output}")
    if output_args.merge_adapter:
        if trainer.accelerator.is_main_process:
            write_merged(output, output / "merged", trainer.processing_class, **trainer.args.model_init_kwargs)
        trainer.accelerator.wait_for_everyone()
        trainer.accelerator.print(f"Merged model saved to {output / 'merged'}")
    if trainer.args.push_to_hub:
        trainer.push_to_hub(dataset_name=script_args.dataset_name)
        trainer.accelerator.print(f"Model pushed to the Hub as {trainer.hub_model_id}")
    trainer.end()
    return trainer


__all__ = ["check_options", "checkpoint_to_resume", "newest_checkpoint", "train_and_save", "trainer_options"]
