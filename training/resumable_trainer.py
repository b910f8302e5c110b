# SPDX-License-Identifier: Apache-2.0
"""TRL's trainers with checkpoints that give back every weight.

A LongCat checkpoint stores each expert by itself, as the released one does, while the model stacks them. The Trainer
resumes by handing the file to `load_state_dict`, which knows nothing of that: the experts would silently keep what
the model object held (transformers issue 48805). Here a checkpoint is read the way `from_pretrained` reads it.
"""

from typing import Any

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, Trainer
from trl import DPOTrainer, GRPOTrainer, SFTTrainer


class ResumableTrainer(Trainer):
    """Resumes, and loads the best model, through `from_pretrained`. Adapters and sharded runs stay as they are.

    Stands before a trainer of TRL in the bases of a class.
    """

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        target = self.model if model is None else model
        if isinstance(target, PeftModel) or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, target)
            return
        assert isinstance(target, PreTrainedModel)
        embedding: Any = target.base_model.ngram_embeddings
        placement = "resident" if embedding is None else embedding.placement
        saved: Any = type(target).from_pretrained(resume_from_checkpoint, dtype=target.dtype, ngram_tables=placement)
        target.load_state_dict(saved.state_dict(), strict=True)

    def _load_best_model(self) -> None:
        if isinstance(self.model, PeftModel) or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
            return
        assert self.state.best_model_checkpoint is not None
        self._load_from_checkpoint(self.state.best_model_checkpoint)


class ResumableSFTTrainer(ResumableTrainer, SFTTrainer):
    """Supervised fine-tuning."""


class ResumableDPOTrainer(ResumableTrainer, DPOTrainer):
    """Preferences (arXiv 2305.18290)."""


class ResumableGRPOTrainer(ResumableTrainer, GRPOTrainer):
    """Rewards (arXiv 2402.03300)."""


__all__ = ["ResumableDPOTrainer", "ResumableGRPOTrainer", "ResumableSFTTrainer", "ResumableTrainer"]
