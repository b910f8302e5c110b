# SPDX-License-Identifier: Apache-2.0
"""What a trainer uploads: the model that it saved, with its code and card, and nothing else that training wrote.

The Trainer chooses the files inside its own methods and has no hook there. So both of its pushes, the one at the end
and the one with each checkpoint, are written out here with the public `HfApi.upload_folder`.
"""

import glob
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils import PushInProgress

from modeling_longcat_lite.checkpoint_saving import superseded
from modeling_longcat_lite.ngram_row_files import ROW_DELTA_FILE
from modeling_longcat_lite.whole_files import whole_file

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.distcp", "*.pyc", "__pycache__")
# Names of files and folders, at any depth.
NOT_UPLOADED = ("checkpoint-*", "global_step*", "optimizer_[0-9]*", "merged", "runs", "wandb", "*.partial", *PICKLES)
STAYS_IN_CHECKPOINT = (TRAINER_STATE_NAME, "README.md")  # PEFT writes a draft of a card to each checkpoint


def upload_model(folder: Path, repo_id: str, **options: Any) -> Any:
    """Uploads a folder without what training left in it, and deletes files of an earlier save from the repository.

    Args:
        folder (`Path`): An output folder.
        repo_id (`str`): Name of the repository.
        options: For `HfApi.upload_folder`.
    """
    saved = [path.name for path in folder.iterdir() if path.is_file()]
    stale = superseded(saved, HfApi().list_repo_files(repo_id, revision=options.get("revision")))
    patterns = [form for name in NOT_UPLOADED for form in (name, f"{name}/*", f"*/{name}", f"*/{name}/*")]
    return HfApi().upload_folder(
        repo_id=repo_id,
        folder_path=str(folder),
        ignore_patterns=["_*", *patterns],
        delete_patterns=[glob.escape(name) for name in stale] or None,
        **options,
    )


def copy_model(checkpoint: Path, output: Path) -> None:
    """Copies a checkpoint's model to the output folder and removes what would be loaded instead of it.

    The upload runs while training goes on, and a later checkpoint may remove this one.
    """
    saved = [path.name for path in checkpoint.iterdir() if path.is_file()]
    for name in superseded(saved, [path.name for path in output.iterdir()]):
        (output / name).unlink()
    if ROW_DELTA_FILE not in saved:
        for name in (ROW_DELTA_FILE, Path(ROW_DELTA_FILE).with_suffix(".md").name):
            (output / name).unlink(missing_ok=True)
    for name in saved:
        if not any(fnmatch(name, pattern) for pattern in (*NOT_UPLOADED, *STAYS_IN_CHECKPOINT)):
            with whole_file(output / name) as beside:
                shutil.copyfile(checkpoint / name, beside)


class HubPushMixin(Trainer):
    """Comes before a trainer of TRL in the bases of a class."""

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **card: Any,
    ) -> Any:
        """As the Trainer's; `card` holds arguments of `create_model_card`."""
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        model_name = card.pop("model_name", None) or Path(self.args.hub_model_id or str(self.args.output_dir)).name
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        model: Any = self.model
        tags = card.pop("tags", None) or []
        tags = [tags] if isinstance(tags, str) else tags
        self.create_model_card(model_name=model_name, tags=[*tags, *(model.model_tags or ())], **card)
        self._wait_for_push()
        return self._upload(commit_message, run_as_future=not blocking, token=token, revision=revision)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if Path(output_dir or str(self.args.output_dir)) == Path(str(self.args.output_dir)):
            self._wait_for_push()  # it reads the files that are about to be written
        super().save_model(output_dir, _internal_call)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        strategy = self.args.hub_strategy
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        push = vars(self).get("push_in_progress")
        if push is not None and not push.is_done() and not self.args.hub_always_push:
            return
        self._wait_for_push()
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        checkpoint = Path(checkpoint_folder)
        copy_model(checkpoint, Path(str(self.args.output_dir)))
        by_steps = self.args.save_strategy == SaveStrategy.STEPS
        when = f"step {self.state.global_step}" if by_steps else f"epoch {int(self.state.epoch or 0)}"
        jobs: Any = [self._upload(f"Training in progress, {when}", run_as_future=True)]
        if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            job = HfApi().upload_folder(  # whole, since it is for resuming
                repo_id=str(self.hub_model_id),
                folder_path=checkpoint_folder,
                path_in_repo="last-checkpoint" if strategy == HubStrategy.CHECKPOINT else checkpoint.name,
                commit_message=f"Training in progress, {when}, checkpoint",
                token=self.args.hub_token,
                run_as_future=True,
                revision=self.args.hub_revision,
            )
            jobs.append(job)
        self.push_in_progress: Any = PushInProgress(jobs)

    def _upload(self, message: str | None, run_as_future: bool, token: str | None = None, revision=None) -> Any:
        return upload_model(
            Path(str(self.args.output_dir)),
            str(self.hub_model_id),
            commit_message=message,
            run_as_future=run_as_future,
            token=token or self.args.hub_token,
            revision=revision or self.args.hub_revision,
        )

    def _wait_for_push(self) -> None:
        push = vars(self).get("push_in_progress")
        if push is not None:
            push.wait_until_done()


__all__ = ["NOT_UPLOADED", "HubPushMixin", "upload_model"]
