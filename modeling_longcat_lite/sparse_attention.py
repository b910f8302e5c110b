# SPDX-License-Identifier: Apache-2.0
"""Checkpoints with sparse attention, and the length up to which dense attention computes the same.

LongCat-Flash-Lite-Sparse and LongCat-2.0 have an indexer (LongCat sparse attention). Of all keys that a query may see,
it keeps `index_topk`: always the first `index_init_tokens` and the last `index_local_tokens`, and the best of the
others. The second attention of a layer uses the same keys. A query that sees at most `index_topk` keys keeps all of
them, so that both attentions are dense. This package computes dense attention only: it refuses longer sequences, and
does not load the indexer's tensors.

Shapes: B batch rows, T tokens of this forward pass, L tokens with history, which a query may see.
"""

from collections.abc import Iterable

import torch
from transformers.cache_utils import Cache
from transformers.utils import logging

from .checkpoint_names import is_indexer
from .visible_tokens import document_indices

logger = logging.get_logger(__name__)


def leave_indexer(names: Iterable[str], index_topk: int | None) -> list[str]:
    """The indexer's tensors among the names of a checkpoint; logs once that they are not loaded.

    Raises:
        `ValueError`: if there are any, but no `index_topk` up to which attention is dense.
    """
    indexer = [name for name in names if is_indexer(name)]
    if indexer and index_topk is None:
        raise ValueError(
            f"The checkpoint has {len(indexer)} tensors of an indexer, such as `{indexer[0]}`, but the config has no "
            "`index_topk`: up to that many tokens its sparse attention is dense, and this package computes dense "
            "attention only. Take the config of the checkpoint."
        )
    if indexer:
        logger.warning(
            f"{len(indexer)} tensors of the checkpoint's indexer, such as `{indexer[0]}`, are not loaded: attention "
            f"is dense, which is exact up to `index_topk` = {index_topk} tokens. Longer sequences are refused."
        )
    return indexer


def warn_of_lost_indexer(count: int, folder: str):
    """Warns that a saved checkpoint lacks the indexer's tensors of the one that the model was loaded from."""
    if count:
        logger.warning(
            f"The {count} indexer tensors of the checkpoint that this model was loaded from are not in {folder}: "
            "only dense attention can run from it. Take them from the original checkpoint for sparse attention."
        )


def check_length(length: int, index_topk: int | None, where: str):
    """Raises a `ValueError` that names `index_topk` and the length, if that is above it."""
    if index_topk is not None and length > index_topk:
        raise ValueError(
            f"{where} has {length} tokens, above `index_topk` ({index_topk}): beyond that the checkpoint's attention "
            f"is sparse, which this package does not compute. Shorten it; `index_topk={length}` in the config "
            "computes dense attention instead, which is not what the checkpoint was trained with."
        )


def longest_sequence(
    new_tokens: int,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    cache: Cache | None,
    is_part: bool,
) -> int:
    """The most tokens that a query may see in this forward pass; each packed document is a sequence.

    Args:
        new_tokens (`int`): T.
        attention_mask (`torch.Tensor` of shape `[B, L]` or `[B, 1, T, L]`, *optional*): As given by the caller.
        position_ids (`torch.Tensor` of shape `[B, T]` or `[1, T]`, *optional*): As given by the caller.
        cache (`Cache`, *optional*): Before this forward pass.
        is_part (`bool`): Whether the tokens are part of rows that were split; positions then tell their length.
    """
    if cache is not None and cache.is_compileable and torch.compiler.is_compiling():
        return cache.get_max_length()  # a graph cannot ask how full it is
    length = new_tokens + (0 if cache is None else int(cache.get_seq_length()))
    if position_ids is None or torch.compiler.is_compiling():
        return length
    if is_part:
        return max(length, int(position_ids.max()) + 1)
    # As `causal_mask_arguments`, which separates documents in these cases only.
    is_fresh = cache is None or not (cache.is_compileable or length > new_tokens)
    if not is_fresh or (attention_mask is not None and attention_mask.ndim != 2):
        return length
    visible = torch.ones_like(position_ids) if attention_mask is None else attention_mask
    documents = document_indices(position_ids, None if attention_mask is None else visible.bool())  # [B, T]
    counts = torch.zeros_like(documents).scatter_add(1, documents, visible.to(documents.dtype))
    return int(counts.max())


__all__ = ["check_length", "leave_indexer", "longest_sequence", "warn_of_lost_indexer"]
