# SPDX-License-Identifier: Apache-2.0
"""Where the dense attention of this package is what a checkpoint with sparse attention computes, and where it is not.

LongCat-Flash-Lite-Sparse and LongCat-2.0 have an indexer (LongCat sparse attention): of all keys that a query may see
it keeps `index_topk`, among them always the first `index_init_tokens` and the last `index_local_tokens`; the second
attention of a layer takes the same ones. A query that sees at most `index_topk` keys keeps every one of them, whatever
the indexer says, and both attentions are dense. Longer sequences are refused here: dense attention is another function
there. The indexer's tensors take no part and are not loaded.

Shapes: B batch, T tokens of this forward, L tokens with history.
"""

import re
from collections.abc import Iterable

import torch
from transformers.cache_utils import Cache
from transformers.utils import logging

from .visible_tokens import document_indices

# `wq_b`, `wk`, `k_norm` and `weights_proj`, in the first attention of a layer and in the draft head.
INDEXER = re.compile(r"\.self_attn(\.\d+)?\.indexer\.")

logger = logging.get_logger(__name__)


def leave_indexer(names: Iterable[str], index_topk: int | None) -> list[str]:
    """The indexer's tensors among the names of a checkpoint; says once that they are left.

    Raises:
        `ValueError`: if there are some, and no `index_topk` up to which they change nothing.
    """
    indexer = [name for name in names if INDEXER.search(name)]
    if indexer and index_topk is None:
        raise ValueError(
            f"The checkpoint has {len(indexer)} tensors of an indexer, such as `{indexer[0]}`, but the config no "
            "`index_topk`: up to that many tokens its sparse attention is dense, which is what runs here."
        )
    if indexer:
        logger.warning(
            f"{len(indexer)} tensors of the checkpoint's indexer, such as `{indexer[0]}`, are not loaded: attention "
            f"is dense, which is exact up to `index_topk` = {index_topk} tokens; longer sequences are refused."
        )
    return indexer


def warn_of_lost_indexer(count: int, folder: str):
    """Says that a saved checkpoint lacks the indexer's tensors of the one that it was loaded from."""
    if count:
        logger.warning(
            f"The {count} indexer tensors of the checkpoint that this model was loaded from are not in {folder}: "
            "only dense attention can run from it. Take them from the original checkpoint for sparse attention."
        )


def check_length(length: int, index_topk: int | None, where: str):
    """Raises a `ValueError` that names `index_topk` and the length, if that is above it."""
    if index_topk is not None and length > index_topk:
        raise ValueError(
            f"{where} has {length} tokens, above `index_topk` ({index_topk}): from there on the checkpoint's "
            f"attention is sparse, which is not computed here. Shorten it; `index_topk={length}` in the config "
            "computes dense attention instead, which is another function than the checkpoint's."
        )


def longest_sequence(
    new_tokens: int,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    cache: Cache | None,
    is_part: bool,
) -> int:
    """Tokens that one query may see in this forward, at most; packed documents are sequences of their own.

    Args:
        new_tokens (`int`): T.
        attention_mask (`torch.Tensor` of shape `[B, L]` or `[B, 1, T, L]`, *optional*): As given by the caller.
        position_ids (`torch.Tensor` of shape `[B, T]` or `[1, T]`, *optional*): As given by the caller.
        cache (`Cache`, *optional*): Before this forward.
        is_part (`bool`): Whether the tokens are part of rows that were split: positions tell how long those are.
    """
    if cache is not None and cache.is_compileable and torch.compiler.is_compiling():
        return cache.get_max_length()  # how full it is cannot be asked inside a graph
    length = new_tokens + (0 if cache is None else int(cache.get_seq_length()))
    if position_ids is None or torch.compiler.is_compiling():
        return length
    if is_part:
        return max(length, int(position_ids.max()) + 1)
    # As `causal_mask_arguments`, which keeps documents apart in these cases alone.
    is_fresh = cache is None or not (cache.is_compileable or length > new_tokens)
    if not is_fresh or (attention_mask is not None and attention_mask.ndim != 2):
        return length
    visible = torch.ones_like(position_ids) if attention_mask is None else attention_mask
    documents = document_indices(position_ids, None if attention_mask is None else visible.bool())  # [B, T]
    counts = torch.zeros_like(documents).scatter_add(1, documents, visible.to(documents.dtype))
    return int(counts.max())


__all__ = ["INDEXER", "check_length", "leave_indexer", "longest_sequence", "warn_of_lost_indexer"]
