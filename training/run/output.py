# SPDX-License-Identifier: Apache-2.0
"""A README.md that somebody wrote stays, whatever the trainer would write in its place.

TRL writes a card into the output folder with every checkpoint and every push, and PEFT edits the one that it finds in
the folder of an adapter. Both are drafts. A card of `model_cards.write_card`, or one written by hand, is none: the
trainer leaves it as it is, and pushes it.
"""

import copy
import glob
import json
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import transformers.trainer
from huggingface_hub import ModelCard
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase, Trainer
from transformers.utils import logging

from modeling_longcat_lite.checkpoint_saving import superseded
from modeling_longcat_lite.ngram_row_files import ROW_DELTA_FILE
from modeling_longcat_lite.whole_files import replaced_folder, whole_file, write_whole

logger = logging.get_logger(__name__)

CARD = "README.md"
DRAFT_TAG = "generated_from_trainer"  # of transformers and TRL; PEFT takes it out again
DRAFT_TEXTS = (
    "It has been trained using [TRL](https://github.com/huggingface/trl).",
    "[More Information Needed]",  # the gaps of the Hub's template, which is PEFT's
)


def is_draft(card: Path) -> bool:
    """Whether a library wrote this card, and nobody has gone over it."""
    read = ModelCard.load(card, ignore_metadata_errors=True)
    return DRAFT_TAG in (read.data.tags or []) or any(text in read.text for text in DRAFT_TEXTS)


@contextmanager
def card_kept(folder: Path) -> Iterator[None]:
    """Gives back the card in `folder` as it was before, if it is no draft."""
    card = folder / CARD
    before = card.read_bytes() if card.is_file() and not is_draft(card) else None
    yield
    if before is not None and card.read_bytes() != before:
        write_whole(card, before)


class KeptCardTrainer(Trainer):
    """Stands before a trainer of TRL in the bases of a class."""

    def create_model_card(self, *args, **kwargs) -> None:
        """As the trainer's own, where the output folder has no card but a draft."""
        card = Path(str(self.args.output_dir)) / CARD
        if not card.is_file() or is_draft(card):
            super().create_model_card(*args, **kwargs)
        elif self.is_world_process_zero():
            logger.warning_once(
                f"{card} is kept. If these weights are new to it, its figures are not theirs: evaluate them and write "
                "it again with `python -m model_cards.write_card`."
            )

    def _save(self, output_dir=None, state_dict=None) -> None:
        with card_kept(Path(str(output_dir or self.args.output_dir))):
            super()._save(output_dir, state_dict)


PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.distcp", "*.pyc", "__pycache__")

# Names of files and of folders, at any depth.
CHANGED_ROWS = (ROW_DELTA_FILE, ROW_DELTA_FILE.replace(".safetensors", ".md"))

LEFT_BEHIND = ("checkpoint-*", "global_step*", "optimizer_[0-9]*", "merged", "runs", "wandb", "*.partial", *PICKLES)


@contextmanager
def leftovers_stay(prepare: Callable[[Path], None] = lambda folder: None) -> Iterator[None]:
    """Within it, the trainer uploads its output folder without what is left behind.

    It fixes its patterns where it calls `upload_folder`, and has no hook there. A checkpoint to resume from, which
    `hub_strategy` may add, is uploaded without patterns, and stays whole.

    Args:
        prepare (`Callable`): Called with the output folder right before it is uploaded.
    """
    hf_api = transformers.trainer.hf_api
    patterns = [form for name in LEFT_BEHIND for form in (name, f"{name}/*", f"*/{name}", f"*/{name}/*")]

    def upload_folder(ignore_patterns: list[str] | None = None, **options: Any) -> Any:
        if ignore_patterns is not None:
            ignore_patterns = [*ignore_patterns, *patterns]
            prepare(Path(options["folder_path"]))
            # What an earlier push left in the repository and would be loaded with the new weights.
            there = hf_api().list_repo_files(options["repo_id"], revision=options.get("revision"))
            saved = [path.name for path in Path(options["folder_path"]).iterdir() if path.is_file()]
            stale = [glob.escape(name) for name in superseded(saved, there)]
            options["delete_patterns"] = [*(options.get("delete_patterns") or []), *stale] or None
        return hf_api().upload_folder(ignore_patterns=ignore_patterns, **options)

    def without_leftovers() -> Any:
        api: Any = copy.copy(hf_api())  # the library shares one
        api.upload_folder = upload_folder
        return api

    transformers.trainer.hf_api = without_leftovers
    try:
        yield
    finally:
        transformers.trainer.hf_api = hf_api


def bring_rows(checkpoint: Path, output: Path) -> None:
    """Completes the output folder, into which the trainer has copied the weights of a checkpoint to push them: takes
    away what would be loaded instead of them, and brings the changed rows that belong to them, of which it knows
    nothing."""
    saved = [path.name for path in checkpoint.iterdir()]
    for name in superseded(saved, [path.name for path in output.iterdir()]):
        (output / name).unlink()
    for name in CHANGED_ROWS:
        if name in saved:
            with whole_file(output / name) as beside:
                shutil.copyfile(checkpoint / name, beside)
        elif ROW_DELTA_FILE not in saved:
            (output / name).unlink(missing_ok=True)


class CleanPushTrainer(Trainer):
    """Stands before a trainer of TRL in the bases of a class."""

    def push_to_hub(self, *args, **kwargs):
        with leftovers_stay():
            return super().push_to_hub(*args, **kwargs)

    def _save(self, output_dir=None, state_dict=None) -> None:
        if Path(str(output_dir or self.args.output_dir)) == Path(str(self.args.output_dir)):
            self._finish_current_push()  # which reads the files that are about to be written
        super()._save(output_dir, state_dict)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self.args.hub_always_push:
            self._finish_current_push()
        with leftovers_stay(lambda output: bring_rows(Path(checkpoint_folder), output)):
            super()._push_from_checkpoint(checkpoint_folder)


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
    write_whole(path, (json.dumps(record, indent=2) + "\n").encode())
    return path


@dataclass
class OutputArguments:
    """What is written beside TRL's output."""

    merge_adapter: bool = field(
        default=False,
        metadata={"help": "Also write the model with the adapter merged into it, to `merged` in the output folder."},
    )


def write_merged(
    adapter: Path, output: Path, tokenizer: PreTrainedTokenizerBase | None = None, **model_options: Any
) -> None:
    """Write `output` beside itself and rename it, so that never half a model stands there; an older one is replaced.

    Args:
        adapter (`Path`): Folder of a saved adapter, which names its base.
        output (`Path`): Folder to write.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): To save with the model.
        model_options: As for `from_pretrained` of the base: `dtype`, `trust_remote_code`, `ngram_tables`, ...
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


__all__ = [
    "LEFT_BEHIND",
    "CleanPushTrainer",
    "KeptCardTrainer",
    "OutputArguments",
    "is_draft",
    "write_merged",
    "write_run_record",
]
