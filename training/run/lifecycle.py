# SPDX-License-Identifier: Apache-2.0
"""What all training scripts do before, around and after their trainer: options, resuming, saving, merging, pushing."""

from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import get_peft_config, get_quantization_config

from modeling_longcat_lite.ngram_row_files import ROW_DELTA_FILE
from modeling_longcat_lite.whole_files import replaced_folder
from tokenization.number_options import check_finite, check_number
from training.data.rows import load_rows
from training.routers.arguments import refuse_auxiliary_loss
from training.run import curves as training_curves
from training.run.arguments import OutputArguments
from training.run.run_record import write_run_record


def check_hub_token(training_args: Any) -> None:
    """Raise a `ValueError` for a token among the arguments, because trainers save their arguments."""
    if training_args.hub_token is not None:
        raise ValueError(
            "`hub_token` would be stored in training_args.bin, next to the model and in every checkpoint; run "
            "`hf auth login`, or set HF_TOKEN"
        )


def check_options(script_args: Any, training_args: Any, model_args: Any, dataset_args: Any) -> None:
    """Raise a `ValueError` that names an option of TRL with which training would fail late, or train NaN or uphill."""
    check_hub_token(training_args)
    check_finite(script_args, training_args, model_args, dataset_args)
    # `beta` of DPO and GRPO is the weight of the distance to the reference model.
    for name in ("learning_rate", "weight_decay", "adam_epsilon", "max_grad_norm", "beta", "temperature"):
        check_number(name, vars(training_args).get(name), least=0)
    for name in ("adam_beta1", "adam_beta2"):
        check_number(name, vars(training_args).get(name), least=0, below=1)
    check_number("lora_dropout", model_args.lora_dropout, least=0, below=1)
    refuse_auxiliary_loss(vars(training_args), "the options")
    refuse_auxiliary_loss(training_args.model_init_kwargs or {}, "`model_init_kwargs`")


def set_model_options(training_args: Any, model_args: Any) -> None:
    """Complete `model_init_kwargs`, which take precedence, with [`~trl.ModelConfig`], as TRL's scripts do."""
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "trust_remote_code": training_args.trust_remote_code,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }


def trainer_options(
    script_args: Any, training_args: Any, model_args: Any, dataset_args: Any, task: str
) -> dict[str, Any]:
    """The arguments of every trainer: model, checked rows, adapter and curves.

    Args:
        task (`str`): Key of [`~training.data.rows.FORMS`].
    """
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


def newest_checkpoint(folder: Path) -> str | None:
    """The newest whole checkpoint in a folder, if there is one.

    The trainer writes `trainer_state.json` last: a checkpoint without it is incomplete, for example because the disk
    was full.
    """
    folders = folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    whole = [path for path in folders if path.suffix == "" and (path / TRAINER_STATE_NAME).is_file()]
    return str(max(whole, key=lambda path: int(path.name.rpartition("-")[2]))) if whole else None


def checkpoint_to_resume(training_args: Any) -> str | None:
    """The path to resume from; `last` is the newest whole checkpoint in the output folder."""
    if training_args.resume_from_checkpoint != "last":
        return training_args.resume_from_checkpoint
    newest = newest_checkpoint(Path(training_args.output_dir))
    if newest is None:
        raise ValueError(f"`resume_from_checkpoint: last`: there is no checkpoint in {training_args.output_dir}")
    return newest


def write_merged(
    adapter: Path, output: Path, tokenizer: PreTrainedTokenizerBase | None = None, **model_options: Any
) -> None:
    """Write the model with an adapter, and the n-gram rows next to it, merged into it.

    Args:
        adapter (`Path`): Folder of a saved adapter, which names its base.
        output (`Path`): Folder to write; an older one is replaced once the new one is complete.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): To save with the model.
        model_options: For `from_pretrained` of the base: `dtype`, `trust_remote_code`, `ngram_tables`, ...
    """
    base = PeftConfig.from_pretrained(str(adapter)).base_model_name_or_path
    model: Any = AutoModelForCausalLM.from_pretrained(base, **model_options)
    if (adapter / ROW_DELTA_FILE).is_file():
        model.load_ngram_rows(adapter)
    merged: Any = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    with replaced_folder(output) as folder:
        merged.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)


def push_and_end(trainer: Any, script_args: Any) -> None:
    """Push the saved model if asked to, and end the trainer."""
    if trainer.args.push_to_hub:
        trainer.push_to_hub(dataset_name=script_args.dataset_name)
        trainer.accelerator.print(f"Model pushed to the Hub as {trainer.hub_model_id}")
    trainer.end()


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
    push_and_end(trainer, script_args)
    return trainer


__all__ = [
    "check_options",
    "checkpoint_to_resume",
    "newest_checkpoint",
    "push_and_end",
    "train_and_save",
    "trainer_options",
    "write_merged",
]
