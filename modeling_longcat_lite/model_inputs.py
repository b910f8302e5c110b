# SPDX-License-Identifier: Apache-2.0
"""The inputs of a forward pass: checked, and turned into the codes that n-grams are hashed from.

Shapes: B batch rows, T tokens, L tokens with history, D hidden size, N highest n-gram order, S sub-tables.
"""

import torch
from torch import nn
from transformers.cache_utils import Cache

from .configuration_longcat_lite import LongCatLiteConfig
from .ngram_cache import TokenHistoryMixin
from .ngram_hashing import HIDDEN, encode_tokens, visible_windows
from .visible_tokens import lookback_slots, own_keys, visible_keys


def check_token_ids(input_ids: torch.Tensor, vocab_size: int):
    """Raises a `ValueError` that names the first id outside the vocabulary. Does nothing in a compiled region, where
    the comparison would cost a synchronisation."""
    if torch.compiler.is_compiling() or input_ids.numel() == 0:
        return
    lowest, highest = torch.aminmax(input_ids)
    if lowest < 0 or highest >= vocab_size:
        row, column = torch.nonzero((input_ids < 0) | (input_ids >= vocab_size))[0].tolist()
        raise ValueError(
            f"`input_ids[{row}, {column}]` is {int(input_ids[row, column])}, outside the vocabulary of {vocab_size}."
        )


def checked_tokens(
    config: LongCatLiteConfig,
    input_ids: torch.Tensor | None,
    inputs_embeds: torch.Tensor | None,
    ngram_input_ids: torch.Tensor | None,
) -> torch.Tensor | None:
    """The tokens that n-grams are formed from, `[B, T]`; `None` for embeddings in a model without n-grams.

    Raises:
        `ValueError`: if the inputs contradict each other, or a token id is outside the vocabulary.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("Pass exactly one of `input_ids` and `inputs_embeds`.")
    tokens = input_ids if ngram_input_ids is None else ngram_input_ids
    if config.use_ngram_embedding and tokens is None:
        raise ValueError("N-grams cannot be derived from `inputs_embeds`: pass its tokens too, as `ngram_input_ids`.")
    if tokens is not None:
        other = input_ids if inputs_embeds is None else inputs_embeds
        if other is not None and tokens.shape != other.shape[:2]:
            raise ValueError(
                f"`ngram_input_ids` has shape {list(tokens.shape)}, the other input {list(other.shape[:2])}."
            )
        check_token_ids(tokens, config.vocab_size)
    return tokens


def check_row_ids(config: LongCatLiteConfig, row_ids: torch.Tensor, word_embeds: torch.Tensor, cache: Cache | None):
    """Raises a `ValueError` unless row ids `[B, T, S]` fit the tokens of `word_embeds` `[B, T, D]`."""
    wanted = [*word_embeds.shape[:2], config.num_subtables]
    if not config.use_ngram_embedding or list(row_ids.shape) != wanted:
        raise ValueError(f"`ngram_row_ids` has shape {list(row_ids.shape)}, but this model and input need {wanted}.")
    if cache is not None:
        raise ValueError("`ngram_row_ids` gives the cache no tokens to continue from: pass `use_cache=False`.")


def fitted_mask(
    attention_mask: torch.Tensor | None, cache: Cache | None, rows: int, new_tokens: int
) -> torch.Tensor | None:
    """A mask with one row per row of the input, and no columns for tokens that do not exist yet.

    For a static cache, the columns of its free slots stay. In a compiled region nothing is counted.

    Raises:
        `ValueError`: if the mask does not cover the tokens in the cache and the new ones.
    """
    if attention_mask is None:
        return None
    if attention_mask.shape[0] == 1 < rows and len(attention_mask.shape) == 2:
        attention_mask = attention_mask.expand(rows, -1)
    if torch.compiler.is_compiling():
        return attention_mask
    seen = 0 if cache is None else cache.get_seq_length()
    if isinstance(seen, torch.Tensor) and seen.device.type != "cpu" and new_tokens == 1:
        return attention_mask  # in decoding on an accelerator, do not wait to read the count
    width, needed = attention_mask.shape[-1], int(seen) + new_tokens
    if width < needed:
        raise ValueError(
            f"`attention_mask` has {width} columns, but the cache holds {int(seen)} tokens and {new_tokens} are new: "
            f"it needs {needed}, one for each token."
        )
    has_free_places = cache is not None and cache.is_compileable
    return attention_mask if width == needed or has_free_places else attention_mask[..., :needed]


def token_windows(
    config: LongCatLiteConfig,
    tokens: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    cache: TokenHistoryMixin | None = None,
) -> torch.Tensor:
    """Codes of tokens `[B, T]`, preceded by the codes that their n-grams look back at; a cache stores the new ones.

    Without a mask, `[B, N - 1 + T]`: a row's tokens after the N - 1 before them. With a mask, one window per token,
    `[B T, N]`, of the last visible ones.
    """
    lookback, length = config.max_ngram_order - 1, tokens.shape[1]
    if attention_mask is None:
        codes = encode_tokens(tokens, position_ids)
        if cache is not None:
            return cache.append_tokens(codes, lookback)
        return nn.functional.pad(codes, (lookback, 0), value=HIDDEN)

    device = tokens.device
    slots = torch.arange(length, device=device) if cache is None else cache.next_slots(length, lookback, device)
    visible = visible_keys(attention_mask, tokens)
    earlier = lookback_slots(visible, slots, lookback)  # [B, T, N - 1]
    codes = encode_tokens(tokens, position_ids, own_keys(visible, slots), previous=earlier[..., 0] - slots[0])
    if cache is None:
        return visible_windows(nn.functional.pad(codes, (lookback, 0), value=HIDDEN), slots, earlier)
    cache.append_tokens(codes, lookback)
    history: torch.Tensor = cache.token_history  # type: ignore[assignment]
    return visible_windows(history, slots, earlier)


def last_windows(
    config: LongCatLiteConfig, codes: torch.Tensor, length: int, attention_mask: torch.Tensor | None
) -> torch.Tensor:
    """Windows, as in [`token_windows`], for the last `length` codes of a history `[B, N - 1 + L]`.

    A mask, `[B, <= L]`, marks which of the L are hidden; tokens beyond its width are visible.
    """
    lookback = config.max_ngram_order - 1
    if attention_mask is None:
        return codes[:, -(lookback + length) :]
    whole = codes.shape[1] - lookback
    visible = nn.functional.pad(attention_mask.bool(), (0, whole - attention_mask.shape[1]), value=True)
    slots = torch.arange(whole - length, whole, device=codes.device)
    return visible_windows(codes, slots, lookback_slots(visible, slots, lookback))


__all__ = [
    "check_row_ids",
    "check_token_ids",
    "checked_tokens",
    "fitted_mask",
    "last_windows",
    "token_windows",
]
