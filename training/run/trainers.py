# SPDX-License-Identifier: Apache-2.0
"""TRL's trainers, with what all training of this repository needs.

* Resuming restores every weight. A checkpoint stores each expert separately, as the released one does, while the model
  stacks them. The Trainer passes the file to `load_state_dict`, so the experts would silently keep the values that the
  model object held (transformers issue 48805). Here a checkpoint is read as `from_pretrained` reads it.
* A card that somebody wrote is kept (`card_guard.py`), and pushes leave out what training wrote (`hub_pushes.py`).
* Parameters that FSDP was told to ignore are not trained: each process would change its own copy.
"""

import re
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, Trainer
from trl import DPOTrainer, GRPOTrainer, SFTTrainer

from training.routers.arguments import refuse_auxiliary_loss
from training.run.card_guard import CardGuardMixin
from training.run.hub_pushes import HubPushMixin

# Fields that set the shapes of a model. Others may differ between a checkpoint and the model that resumes from it.
SHAPE = (
    *("vocab_size", "hidden_size", "num_layers", "num_attention_heads", "ffn_hidden_size", "expert_ffn_hidden_size"),
    *("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"),
    *("n_routed_experts", "zero_expert_num", "moe_topk"),
    *("use_ngram_embedding", "emb_neighbor_num", "emb_split_num", "ngram_vocab_size_ratio", "ngram_base_vocab_size"),
    *("ngram_table_bits", "num_nextn_predict_layers"),
)


def check_same_shape(saved: Any, config: Any, checkpoint: str) -> None:
    """Raise a `ValueError` that names the field in which the config of a checkpoint differs from the model's."""
    for field in SHAPE:
        if getattr(saved, field) != getattr(config, field):
            raise ValueError(
                f"{checkpoint} is of another model: its `{field}` is {getattr(saved, field)}, "
                f"that of the model to train {getattr(config, field)}"
            )


def check_ignored_modules(model: nn.Module, ignored: Any) -> None:
    """Raise a `ValueError` that names the first trainable parameter in the modules that FSDP ignores.

    Args:
        ignored: `ignored_modules` of accelerate's plugin: modules, or an expression for their whole names.
    """
    if isinstance(ignored, str):
        ignored = [module for name, module in model.named_modules() if re.fullmatch(ignored, name)]
    not_sharded = {id(parameter) for module in ignored or () for parameter in module.parameters()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) in not_sharded:
            raise ValueError(
                f"`{name}` is trained, but it is in `fsdp_ignored_modules`, whose gradients are not averaged over "
                "the processes: freeze the tables (`--tables frozen` of training.sft), keep them off the device "
                "(`ngram_tables: disk`), or shard them (training/accelerate_configs/fsdp2_tables_sharded.yaml)"
            )


class ResumableMixin(Trainer):
    """Resumes, and loads the best model, through `from_pretrained`. Adapters and sharded runs use the Trainer's way.

    Comes before a trainer of TRL in the bases of a class.

    Raises:
        `ValueError`: for TRL's auxiliary loss, which does not know zero experts.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        model: Any = self.model
        refuse_auxiliary_loss(vars(self.args), "the training arguments")
        refuse_auxiliary_loss(model.config.to_dict(), "the model's config")

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        plugin, target = getattr(self.accelerator.state, "fsdp_plugin", None), model or self.model
        if plugin is not None:
            assert target is not None
            check_ignored_modules(target, plugin.ignored_modules)
        return super().create_optimizer(model)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        target = self.model if model is None else model
        if isinstance(target, PeftModel) or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, target)
            return
        assert isinstance(target, PreTrainedModel)
        embedding: Any = target.base_model.ngram_embeddings
        placement = "resident" if embedding is None else embedding.placement
        saved: Any = type(target).from_pretrained(resume_from_checkpoint, dtype=target.dtype, ngram_tables=placement)
        check_same_shape(saved.config, target.config, resume_from_checkpoint)
        target.load_state_dict(saved.state_dict(), strict=True)

    def _load_best_model(self) -> None:
        if isinstance(self.model, PeftModel) or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
            return
        assert self.state.best_model_checkpoint is not None
        self._load_from_checkpoint(self.state.best_model_checkpoint)


class ResumableSFTTrainer(CardGuardMixin, HubPushMixin, ResumableMixin, SFTTrainer):
    """Supervised fine-tuning."""

    method = "SFT"  # in the record of the run


class ResumableDPOTrainer(CardGuardMixin, HubPushMixin, ResumableMixin, DPOTrainer):
    """Preferences (arXiv 2305.18290)."""

    method = "DPO"


class ResumableGRPOTrainer(CardGuardMixin, HubPushMixin, ResumableMixin, GRPOTrainer):
    """Rewards (arXiv 2402.03300)."""

    method = "GRPO"


__all__ = ["ResumableDPOTrainer", "ResumableGRPOTrainer", "ResumableSFTTrainer"]
