# SPDX-License-Identifier: Apache-2.0
"""What training leaves in its folder that does not belong on the Hub, and trainers that leave it here.

`Trainer.push_to_hub` uploads its output folder whole, but for checkpoints: with `training_args.bin`, a pickle, which
runs code when it is read, and with a merged model beside its adapter.
"""

import copy
import glob
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers.trainer
from transformers import Trainer

from modeling_longcat_lite import ROW_DELTA_FILE, superseded, whole_file

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


__all__ = ["LEFT_BEHIND", "CleanPushTrainer"]
