# SPDX-License-Identifier: Apache-2.0
"""Which earlier tokens a token sees: padding anywhere in a row, packed documents, branches of a 4D mask.

Attention and n-grams both use these functions, because they must agree. A slot is a token's place in its row, counted
from the first token in the cache; hidden tokens have slots too.

Shapes: B batch rows, T tokens, L tokens with history, N highest n-gram order.
"""

import torch


def previous_visible(visible: torch.Tensor) -> torch.Tensor:
    """The last visible slot before each slot, -1 where there is none: `[B, L]` int64 from `[B, L]` bool.

    visible     1  1  0  1        gives     -1  0  1  1
    """
    slots = torch.arange(visible.shape[1], device=visible.device).expand_as(visible)
    last = torch.where(visible, slots, -1).cummax(dim=1).values  # up to and including this slot
    return torch.nn.functional.pad(last[:, :-1], (1, 0), value=-1)


def document_starts(position_ids: torch.Tensor, previous: torch.Tensor | None = None) -> torch.Tensor:
    """Where a document begins inside a row: `[B, T]` bool.

    Without a mask, at position 0 and at any step other than +1, as in transformers. With a mask, only where positions
    do not grow: the mask says that the tokens belong together, and skipped positions (PoSE) do not contradict it.

        positions            0  1  2  0  1  9  10
        without a mask       1  0  0  1  0  1  0
        with a mask of ones  1  0  0  1  0  0  0

    The first token is a start only at position 0: the tokens before it may be in a cache.

    Args:
        position_ids (`torch.Tensor` of shape `[B, T]` or `[1, T]`): Positions.
        previous (`torch.Tensor` of shape `[B, T]`, *optional*):
            With a mask: the index, among these T tokens, of the visible token before each; below 0 if there is none.
    """
    if previous is None:
        starts = position_ids == 0
        starts[:, 1:] |= position_ids[:, 1:] != position_ids[:, :-1] + 1
        return starts
    position_ids = position_ids.expand_as(previous)
    shrinks = position_ids <= position_ids.gather(1, previous.clamp(min=0))
    return (position_ids == 0) | (shrinks & (previous >= 0))


def document_indices(position_ids: torch.Tensor, visible: torch.Tensor | None) -> torch.Tensor:
    """The number of each token's document within its row, from 0: `[B, T]` int64.

        visible     1  1  0  1  1  1
        positions   0  1  0  2  0  1   ->   0  0  0  0  1  1
        positions   0  1  2  3  0  1   ->   0  0  0  0  1  1

    Args:
        position_ids (`torch.Tensor` of shape `[B, T]` or `[1, T]`): Positions.
        visible (`torch.Tensor` of shape `[B, T]` bool, *optional*): The mask; without one see [`document_starts`].
    """
    if visible is None:
        starts = document_starts(position_ids)
        starts[:, 0] = False  # the first document has number 0
        return starts.cumsum(dim=1)
    previous = previous_visible(visible)
    return (document_starts(position_ids, previous) & (previous >= 0) & visible).cumsum(dim=1)


def visible_keys(attention_mask: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The visible tokens of a mask as booleans: `[B, L]` if 2D, `[B, T, L]` if 4D (its first head).

    A 4D mask of numbers is added to attention scores; a number that hides a key is far below any score. `tokens`
    `[B, T]` give the batch size and the device; a mask may have one row for the whole batch.
    """
    keys = attention_mask.to(tokens.device)
    if keys.ndim == 4:
        keys = keys[:, 0] if keys.dtype == torch.bool else keys[:, 0] > -1000.0
    return keys.bool().expand(tokens.shape[0], *keys.shape[1:])


def own_keys(visible: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """Whether each token, in its slot `[T]`, is itself visible: `[B, T]` bool from [`visible_keys`]."""
    if visible.ndim == 2:
        return visible.index_select(1, slots)
    return visible.gather(2, slots[:, None].expand(visible.shape[0], -1, -1)).squeeze(2)


def lookback_slots(visible: torch.Tensor, slots: torch.Tensor, count: int) -> torch.Tensor:
    """The last `count` visible slots before each token, nearest first, -1 where there are no more: `[B, T, count]`.

    Args:
        visible (`torch.Tensor` of shape `[B, L]` or `[B, T, L]`, bool): See [`visible_keys`].
        slots (`torch.Tensor` of shape `[T]`, int64): The slots of this forward's tokens.
        count (`int`): N - 1.
    """
    if visible.ndim == 2 and len(slots) > 1:
        # All tokens share the mask: go from each slot to the visible one before it, `count` times.
        previous, found = previous_visible(visible), []
        slot = slots.expand(visible.shape[0], -1)  # [B, T]
        for _ in range(count):
            slot = torch.where(slot >= 0, previous.gather(1, slot.clamp(min=0)), -1)
            found.append(slot)
        return torch.stack(found, dim=-1)
    rows = visible[:, None] if visible.ndim == 2 else visible  # [B, T, L]
    keys = torch.arange(rows.shape[-1], device=rows.device)
    earlier = torch.where(rows & (keys < slots[:, None]), keys, -1)
    return torch.nn.functional.pad(earlier, (count, 0), value=-1).topk(count, dim=-1).values


__all__ = [
    "document_indices",
    "document_starts",
    "lookback_slots",
    "own_keys",
    "previous_visible",
    "visible_keys",
]
