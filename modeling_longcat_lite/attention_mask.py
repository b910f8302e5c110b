# SPDX-License-Identifier: Apache-2.0
"""Attention that stays within packed documents.

`create_causal_mask` of transformers finds documents in `position_ids` only if there is neither a mask nor a cache;
otherwise it silently attends across them. The arguments made here also keep them apart with an empty cache, a mask of
ones, or a mask with padding, compiled or not.

Shapes: B batch rows, T tokens, L tokens with history.
"""

import torch
from transformers.cache_utils import Cache

from .transformers_versions import CACHE
from .visible_tokens import document_indices


def causal_mask_arguments(
    attention_mask: torch.Tensor | None, position_ids: torch.Tensor | None, cache: Cache | None
) -> dict:
    """Arguments of `create_causal_mask` with which it keeps packed documents apart.

    Args:
        attention_mask (`torch.Tensor` of shape `[B, T]` or `[B, 1, T, L]`, *optional*): As given by the caller.
        position_ids (`torch.Tensor` of shape `[B, T]` or `[1, T]`, *optional*): As given by the caller.
        cache (`Cache`, *optional*):
            If it holds tokens, documents cannot be told apart: mask and positions are used unchanged.
    """
    arguments: dict = {"attention_mask": attention_mask, CACHE: cache, "position_ids": position_ids}
    if cache is not None:
        if cache.is_compileable or cache.get_seq_length() > 0:
            return arguments
        arguments[CACHE] = None
    if attention_mask is None or attention_mask.ndim != 2 or position_ids is None:
        return arguments
    visible = attention_mask.bool()
    documents = document_indices(position_ids, visible)
    is_compiled = torch.compiler.is_compiling()  # a graph cannot branch on the values below
    if not is_compiled and visible.all():
        # Positions that grow by 1 inside a document and by 3 at a border: without a mask, any other step is a border.
        index = torch.arange(visible.shape[1], device=visible.device)
        return arguments | {"attention_mask": None, "position_ids": index + 2 * documents}
    if is_compiled or documents.any():
        arguments["and_mask_function"] = lambda b, h, query, key: documents[b, query] == documents[b, key]
    return arguments


__all__ = ["causal_mask_arguments"]
