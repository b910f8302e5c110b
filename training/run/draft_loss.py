# SPDX-License-Identifier: Apache-2.0
"""Training the draft head together with the trunk.

TRL computes its loss from the trunk's states and the language-model head; `LongCatLiteForCausalLM.forward` is never
run. The draft loss therefore takes the same states, through a hook on the trunk, and the trainer adds it.

Step k of drafting reads token t + k together with the head's state of step k - 1 (the trunk's for k = 1) and predicts
token t + k + 1, for every t of a row at once:

    step 1    (x1, h0) -> x2    (x2, h1) -> x3    (x3, h2) -> x4
    step 2    (x2, s0) -> x3    (x3, s1) -> x4

Each t is a drafting cycle that begins there. As in drafting, it attends to the trunk's states up to t and then to its
own states: step 2 at t = 1 sees (x1, h0), (x2, h1) and itself, but not (x2, s0), which belongs to another cycle.

While the trunk is trained too, both learn the text. After a finished trunk, the head learns the trunk's own
prediction, softmax(lm_head(h[t + k])), because a draft is accepted when the trunk agrees, right or wrong
(distillation, as in arXiv 2401.15077). Distilling from an untrained trunk would teach the head noise.

Shapes: B batch, T tokens, D hidden, V vocabulary.
"""

from collections.abc import Iterator
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import DynamicCache

from modeling_longcat_lite import LongCatLiteForCausalLM
from tokenization.number_options import check_number
from training.run.trainers import ResumableSFTTrainer

# Rows of logits in memory at a time: with a vocabulary of 131072, 4096 of them take 2 GiB in float32.
ROWS_OF_LOGITS = 4096


def draft_loss(
    model: LongCatLiteForCausalLM,
    states: torch.Tensor,
    input_ids: torch.Tensor,
    labels: torch.Tensor,
    position_ids: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    num_items: torch.Tensor | int | None = None,
    token_embeds: torch.Tensor | None = None,
    distill: bool = False,
) -> torch.Tensor:
    """Mean cross-entropy of the drafts, averaged over the drafting steps: a scalar.

    Args:
        states (`torch.Tensor` of shape `[B, T, D]`): The trunk's final-norm states.
        input_ids, labels (`torch.Tensor` of shape `[B, T]`): As for the trunk; labels of -100 are not learned.
        position_ids (`torch.Tensor` of shape `[B, T]`, *optional*): For packed rows. No draft crosses a document.
        num_items (*optional*): Divisor instead of the number of labels, as the trainer counts it.
        token_embeds (`torch.Tensor` of shape `[B, T, D]`, *optional*): As in [`drafted_states`].
        distill (`bool`, *optional*, defaults to `False`): Learn the trunk's distribution instead of the labels.
    """
    length, steps = input_ids.shape[1], model.config.num_draft_tokens
    if position_ids is None:
        position_ids = torch.arange(length, device=input_ids.device).expand_as(input_ids)
    total = states.new_zeros((), dtype=torch.float32)
    drafts = drafted_states(model.model.mtp, states, input_ids, position_ids, attention_mask, token_embeds)
    for step, drafted in zip(range(1, min(steps, length - 2) + 1), drafts, strict=False):
        kept = drafted.shape[1]
        in_document = position_ids[:, step + 1 :] == position_ids[:, :kept] + step + 1
        targets = labels[:, step + 1 :].masked_fill(~in_document, -100)
        learned = targets != -100
        wanted = states[:, step:-1][learned].detach() if distill else targets[learned]
        divisor = learned.sum().clamp(min=1) if num_items is None else num_items
        total = total + summed_cross_entropy(model.lm_head, drafted[learned], wanted) / divisor
    return total / steps


def drafted_states(
    head: nn.Module,
    states: torch.Tensor,
    input_ids: torch.Tensor,
    position_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    token_embeds: torch.Tensor | None = None,
) -> Iterator[torch.Tensor]:
    """The head's states of step 1, 2, ...: `[B, T - 1 - step, D]`, for a cycle that begins at each position.

    Attention is dense over `[T, step * T]`: for rows of some thousand tokens, with eager or sdpa attention.

    Args:
        token_embeds (`torch.Tensor` of shape `[B, T, D]`, *optional*):
            The trunk's embedding of the tokens, for a head that drafts from n-grams.
    """
    rows = input_ids.shape[1] - 2  # cycles: each needs a first token and one to predict
    index = torch.arange(rows, device=input_ids.device)
    restarts = (position_ids[:, 1:-1] != position_ids[:, :-2] + 1).cumsum(dim=1)[:, : rows - 1]
    documents = nn.functional.pad(restarts, (1, 0))  # [B, rows]: the document of each state
    on_trunk = (index[:, None] >= index) & (documents[:, :, None] == documents[:, None])  # [B, rows, rows]
    if attention_mask is not None:
        on_trunk = on_trunk & (attention_mask[:, None, :-2] * attention_mask[:, None, 1:-1]).bool()
    on_trunk = on_trunk | torch.eye(rows, dtype=torch.bool, device=index.device)  # padding sees itself: no empty row
    cache, seen = DynamicCache(), []
    for step in range(1, rows + 1):
        kept = rows + 1 - step
        own = torch.eye(kept, rows, dtype=torch.bool, device=index.device)
        seen.append(on_trunk[:, :kept] if step == 1 else own[:, :kept].expand(len(input_ids), -1, -1))
        mask = torch.cat([of_step[:, :kept] for of_step in seen], dim=-1)[:, None]  # [B, 1, kept, keys]
        states = head(
            input_ids[:, step:-1],
            states[:, :kept],
            position_ids[:, :kept] + step - 1,
            mask,
            cache,
            None if token_embeds is None else token_embeds[:, step:-1],
        )
        yield states


def summed_cross_entropy(lm_head: nn.Module, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of `[M, D]` states, summed, without ever holding `M` rows of logits.

    Args:
        targets (`torch.Tensor`): Labels of shape `[M]`, or states of shape `[M, D]` whose predictions are the target.
    """

    def of_rows(rows, targets):
        if targets.is_floating_point():
            with torch.no_grad():
                targets = lm_head(targets).float().softmax(dim=-1)  # [rows, V]
        return nn.functional.cross_entropy(lm_head(rows).float(), targets, reduction="sum")

    pieces = zip(states.split(ROWS_OF_LOGITS), targets.split(ROWS_OF_LOGITS), strict=True)
    return torch.stack([checkpoint(of_rows, *piece, use_reentrant=False) for piece in pieces]).sum()


class DraftHeadTrainer(ResumableSFTTrainer):
    """Adds `draft_loss_weight` times the draft loss in training; evaluation reports the trunk's loss alone.

    A model without a draft head gets a new one. With `draft_head_only` nothing else is trained: the head learns to
    follow a finished trunk, whose answers do not change.
    """

    def __init__(self, *args, draft_loss_weight: float, draft_head_only: bool = False, **kwargs):
        check_number("draft_loss_weight", draft_loss_weight, least=0)
        super().__init__(*args, **kwargs)
        self.draft_loss_weight, self.draft_head_only = draft_loss_weight, draft_head_only
        self._draft_losses: list[float] = []  # since the last log
        self._states: Any = None
        self._token_embeds: Any = None
        if isinstance(self.model, PeftModel):
            raise ValueError(
                "`draft_loss_weight` trains the draft head itself, which an adapter does not include: drop PEFT"
            )
        causal: Any = self.accelerator.unwrap_model(self.model)
        if causal.model.mtp is None:
            causal.add_draft_head()
        if draft_head_only:
            causal.requires_grad_(False)
        trunk = causal.model
        trunk.mtp.requires_grad_(True)
        trunk.register_forward_hook(self._keep_states)
        if causal.config.mtp_use_ngram_embedding:
            trunk.embedding_amplification.register_forward_hook(self._keep_token_embeds)

    def _keep_states(self, module, inputs, output):
        self._states = output.last_hidden_state

    def _keep_token_embeds(self, module, inputs, output):
        self._token_embeds = output

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
            self._token_embeds,
            distill=self.draft_head_only,
        )
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            # The count covers all processes, over which gradients are then averaged; TRL does the same.
            draft = draft * self.accelerator.num_processes
        self._draft_losses.append(draft.item())
        return loss + self.draft_loss_weight * draft

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        model: Any = self.model
        if model.training and self._draft_losses:
            logs["draft_loss"] = sum(self._draft_losses) / len(self._draft_losses)
            self._draft_losses.clear()
        super().log(logs, start_time)


__all__ = ["DraftHeadTrainer", "draft_loss"]
