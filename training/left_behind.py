# SPDX-License-Identifier: Apache-2.0
"""What training leaves in its folder that does not belong on the Hub, and trainers that leave it here.

`Trainer.push_to_hub` uploads its output folder whole, but for checkpoints: with `training_args.bin`, a pickle, which
runs code when it is read, and with a merged model beside its adapter.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import transformers.trainer
from transformers import Trainer

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.distcp", "*.pyc", "__pycache__")
# Names of files and of folders, at any depth.
LEFT_BEHIND = ("checkpoint-*", "global_step*", "optimizer_[0-9]*", "merged", "runs", "wandb", "*.partial", *PICKLES)


@contextmanager
def leftovers_stay() -> Iterator[None]:
    """Within it, the trainer uploads its output folder without what is left behind.

    It fixes its patterns where it calls `upload_folder`, and has no hook there. A checkpoint to resume from, which
    `hub_strategy` may add, is uploaded without patterns, and stays whole.
    """
    hf_api = transformers.trainer.hf_api
    patterns = [form for name in LEFT_BEHIND for form in (name, f"{name}/*", f"*/{name}", f"*/{name}/*")]

    def upload_folder(ignore_patterns: list[str] | None = None, **options: Any) -> Any:
        if ignore_patterns is not None:
            ignore_patterns = [*ignore_patterns, *patterns]
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


class CleanPushTrainer(Trainer):
    """Stands before a trainer of TRL in the bases of a class."""

    def push_to_hub(self, *args, **kwargs):
        with leftovers_stay():
            return super().push_to_hub(*args, **kwargs)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        with leftovers_stay():
            super()._push_from_checkpoint(checkpoint_folder)


__all__ = ["LEFT_BEHIND", "CleanPushTrainer"]
