# SPDX-License-Identifier: Apache-2.0
"""Context parallelism: rows are split over processes, n-grams are not.

Torch's context parallelism cuts a row of T tokens into 2 P chunks and gives process p the chunks p and 2 P - 1 - p, so
that causal attention costs every process the same. The model then sees parts of a row, with the wrong tokens before
each part. So the collator computes the table rows of each token on the whole row, and they are split like `input_ids`:
`[B, T, S]` int64, sequence second.

Attention is the only operation that reaches across parts. Torch replaces causal attention by a ring. For that,
accelerate drops the masks of modules whose name ends in `self_attn`, but a LongCat layer has two attentions,
`self_attn.0` and `self_attn.1`, whose masks are dropped here.

Shapes: B batch, T tokens of a row, S sub-tables.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from modeling_longcat_lite import LongCatLiteConfig, ngram_row_ids
from training.run.trainers import ResumableSFTTrainer

ATTENTION = re.compile(r"self_attn\.\d+$")
SPLIT = ("input_ids", "labels", "shift_labels", "position_ids", "ngram_row_ids")  # sequence second


class WholeRowNgrams:
    """A collator that adds `ngram_row_ids`, `[B, T, S]`, to the batches of another one."""

    def __init__(self, collator: Callable[[list], dict], config: LongCatLiteConfig):
        self.collator, self.config = collator, config

    def __call__(self, rows: list) -> dict:
        batch = self.collator(rows)
        row_ids = ngram_row_ids(self.config, batch["input_ids"], batch.get("position_ids"))  # [S, B, T]
        # Contiguous: context parallelism cuts buffers in place.
        return batch | {"ngram_row_ids": row_ids.movedim(0, -1).contiguous()}


class ShardedRowsSFTTrainer(ResumableSFTTrainer):
    """Trains on parts of rows if `cp_size` is above 1, and else exactly as [`ResumableSFTTrainer`]."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        parallelism = self.accelerator.parallelism_config
        if parallelism is None:
            return
        if parallelism.sp_enabled:
            raise ValueError(
                f"`parallelism_config_sp_size` is {parallelism.sp_size}: DeepSpeed's data loader only splits "
                "tensors of two dimensions and would lose the n-grams; use `parallelism_config_cp_size`"
            )
        if parallelism.cp_enabled:
            model: Any = self.accelerator.unwrap_model(self.model)
            if model.config.use_ngram_embedding:
                self.data_collator = WholeRowNgrams(self.data_collator, model.config)
            drop_masks(model)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if model.training and "attention_mask" not in inputs:
            # Without a mask TRL counts the tokens of one row, but a block may have several rows.
            uncounted = inputs["input_ids"][1:].numel()
            counts = self.accelerator.gather_for_metrics(torch.tensor(uncounted, device=inputs["input_ids"].device))
            self._total_train_tokens += counts.sum().item()
            self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        return loss

    def _prepare_context_parallel_inputs(self, model: nn.Module, inputs: dict) -> tuple[Callable, dict]:
        # The Trainer adds labels and positions, but does not split `ngram_row_ids`.
        context, inputs = super()._prepare_context_parallel_inputs(model, inputs)
        if "ngram_row_ids" not in inputs:
            return context, inputs
        buffers = [inputs[name] for name in SPLIT if name in inputs]
        split = partial(
            self.accelerator.maybe_context_parallel,
            buffers=buffers,
            buffer_seq_dims=[1] * len(buffers),
            no_restore_buffers=set(buffers),
        )
        return split, inputs


def drop_masks(model: nn.Module):
    """Makes every attention causal over the tokens that it gets, without a mask, as a ring of processes does."""

    def without_mask(module, args, kwargs):
        return args, kwargs | {"attention_mask": None, "is_causal": True}

    for name, module in model.named_modules():
        if ATTENTION.search(name):
            module.register_forward_pre_hook(without_mask, with_kwargs=True)


__all__ = ["ShardedRowsSFTTrainer", "WholeRowNgrams", "drop_masks"]
