# SPDX-License-Identifier: Apache-2.0
"""Training the draft head together with the trunk.

TRL computes its loss from the trunk's states and the language-model head; `LongCatLiteForCausalLM.forward` is never
run. The draft loss therefore takes the same states, with a hook on the trunk, and joins in the trainer.

Step k of drafting reads token t + k behind its own state of step k - 1 (the trunk's for k = 1) and predicts token
t + k + 1, for every t of a row at once:

    step 1    (x1, h0) -> x2    (x2, h1) -> x3    (x3, h2) -> x4
    step 2    (x2, s0) -> x3    (x3, s1) -> x4

What it learns to predict is what the trunk would say there, softmax(lm_head(h[t + k])), rather than the text: a draft
is accepted when the trunk agrees, right or wrong (distillation, as in arXiv 2401.15077).

Shapes: B batch, T tokens, D hidden.
"""

from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch.utils.checkpoint import checkpoint

from modeling_longcat_lite import LongCatLiteForCausalLM
from training.resumable_trainer import ResumableSFTTrainer

# Rows of logits that exist at a time: at a vocabulary of 131072, 4096 of them take 2 GiB in float32.
ROWS_OF_LOGITS = 4096


def draft_loss(
    model: LongCatLiteForCausalLM,
    states: torch.Tensor,
    input_ids: torch.Tensor,
    labels: torch.Tensor,
    position_ids: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    num_items: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Mean cross-entropy of the drafts against the trunk's distribution, averaged over the drafting steps: a scalar.

    Args:
        states (`torch.Tensor` of shape `[B, T, D]`): The trunk's final-norm states.
        input_ids, labels (`torch.Tensor` of shape `[B, T]`): As for the trunk; nothing is learned where it is -100.
        position_ids (`torch.Tensor` of shape `[B, T]`, *optional*): Of packed rows. No draft crosses a document.
        num_items (*optional*): Divisor in place of the number of labels, as the trainer counts it.
    """
    length, steps = input_ids.shape[1], model.config.num_draft_tokens
    if position_ids is None:
        position_ids = torch.arange(length, device=input_ids.device).expand_as(input_ids)
    trunk_states, total = states.detach(), states.new_zeros((), dtype=torch.float32)
    for step in range(1, min(steps, length - 2) + 1):
        kept = length - 1 - step
        states = model.model.mtp(
            input_ids[:, step:-1],
            states[:, :kept],
            position_ids[:, :kept],
            attention_mask=None if attention_mask is None else attention_mask[:, step:-1],
        )
        in_document = position_ids[:, step + 1 :] == position_ids[:, :kept] + step + 1
        targets = labels[:, step + 1 :].masked_fill(~in_document, -100)
        learned = targets != -100
        divisor = learned.sum().clamp(min=1) if num_items is None else num_items
        total = (
            total + summed_distillation(model.lm_head, states[learned], trunk_states[:, step:-1][learned]) / divisor
        )
    return total / steps


def summed_distillation(lm_head: nn.Module, states: torch.Tensor, trunk_states: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of `[M, D]` states against what the trunk's say, without ever holding `M` rows of logits."""

    def of_rows(rows, trunk_rows):
        with torch.no_grad():
            wanted = lm_head(trunk_rows).float().softmax(dim=-1)  # [rows, V]
        return nn.functional.cross_entropy(lm_head(rows).float(), wanted, reduction="sum")

    pieces = zip(states.split(ROWS_OF_LOGITS), trunk_states.split(ROWS_OF_LOGITS), strict=True)
    losses = [checkpoint(of_rows, rows, trunk_rows, use_reentrant=False) for rows, trunk_rows in pieces]
    return torch.stack(losses).sum()


class DraftHeadTrainer(ResumableSFTTrainer):
    """Adds `draft_loss_weight` times the draft loss in training; evaluation reports the trunk's loss alone.

    A model without a draft head gets a fresh one. With `draft_head_only` nothing else is trained: the head follows a
    finished trunk, whose answers stay as they are.
    """

    def __init__(self, *args, draft_loss_weight: float, draft_head_only: bool = False, **kwargs):
        super().__init__(*args, **kwargs)
        self.draft_loss_weight = draft_loss_weight
        self._states: Any = None
        if isinstance(self.model, PeftModel):
            raise ValueError(
                "`draft_loss_weight` trains the draft head itself, which no adapter would carry: drop PEFT"
            )
        causal: Any = self.accelerator.unwrap_model(self.model)
        if causal.model.mtp is None:
            causal.add_draft_head()
        if draft_head_only:
            causal.requires_grad_(False)
        trunk = causal.model
        trunk.mtp.requires_grad_(True)
        trunk.register_forward_hook(self._keep_states)

    def _keep_states(self, module, inputs, output):
        self._states = output.last_hidden_state

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if not model.training:
            return loss
        draft = draft_loss(
            self.accelerator.unwrap_model(model),
            self._states,
            inputs["input_ids"],
            inputs["labels"],
            inputs.get("position_ids"),
            inputs.get("attention_mask"),
            num_items_in_batch,
        )
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            # The count is that of all processes, over which gradients are then averaged; TRL does the same.
            draft = draft * self.accelerator.num_processes
        self._metrics["train"]["draft_loss"].append(draft.item())
        return loss + self.draft_loss_weight * draft


__all__ = ["DraftHeadTrainer", "draft_loss"]
