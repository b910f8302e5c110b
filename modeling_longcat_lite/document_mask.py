# SPDX-License-Identifier: Apache-2.0
"""Attention that stays inside packed documents.

`create_causal_mask` of transformers finds documents in `position_ids` only if there is neither a mask nor a cache, and
attends across them otherwise, silently. What follows says the same to it for an empty cache, for an all-ones mask and
for a mask with padding.

Shapes: B batch, T tokens.
"""

import torch
from transformers.cache_utils import Cache


def document_indices(position_ids: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """Number of the document of every token, `[B, T]`, among the visible tokens of a row.

    A document goes on where the position grows by 1, or by as much as the index (positions that count padding):

        visible     1  1  0  1  1  1
        positions   0  1  0  2  0  1   ->   0  0  0  0  1  1
        positions   0  1  2  3  0  1   ->   0  0  0  0  1  1
    """
    position_ids = position_ids.expand_as(visible)
    index = torch.arange(visible.shape[1], device=visible.device).expand_as(visible)
    last_visible = torch.where(visible, index, -1).cummax(dim=1).values  # up to and with this token
    previous = torch.nn.functional.pad(last_visible[:, :-1], (1, 0), value=-1)  # before this token
    growth = position_ids - position_ids.gather(1, previous.clamp(min=0))
    goes_on = (previous < 0) | (growth == 1) | (growth == index - previous)
    return (visible & ~goes_on).cumsum(dim=1)


def causal_mask_arguments(
    attention_mask: torch.Tensor | None, position_ids: torch.Tensor | None, past_key_values: Cache | None
) -> dict:
    """Arguments of `create_causal_mask` with which it keeps packed documents apart.

    Args:
        attention_mask (`torch.Tensor` of shape `[B, T]` or `[B, 1, T, L]`, *optional*): As given by the caller.
        position_ids (`torch.Tensor` of shape `[B, T]` or `[1, T]`, *optional*): As given by the caller.
        past_key_values (`Cache`, *optional*): With the cache's own past, documents cannot be told: taken as they are.
    """
    arguments: dict = {"attention_mask": attention_mask, "past_key_values": past_key_values}
    if past_key_values is not None:
        if past_key_values.is_compileable or past_key_values.get_seq_length() > 0:
            return arguments
        arguments["past_key_values"] = None
    # What follows depends on values, which a compiled region cannot branch on.
    if attention_mask is None or attention_mask.ndim != 2 or position_ids is None or torch.compiler.is_compiling():
        return arguments
    visible = attention_mask.bool()
    if visible.all():
        return arguments | {"attention_mask": None}
    documents = document_indices(position_ids, visible)
    if documents.any():
        arguments["and_mask_function"] = lambda b, h, query, key: documents[b, query] == documents[b, key]
    return arguments


__all__ = ["causal_mask_arguments", "document_indices"]
