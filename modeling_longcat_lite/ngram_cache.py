# SPDX-License-Identifier: Apache-2.0
"""Caches of latents with the history of tokens that n-grams look back to, in every form that `generate` asks for.

The cache keeps all tokens, 8 bytes each, and not only the last N - 1. Cropping by any length (prompt lookup, assisted
decoding), reordering (beams) and repeating (prefix reuse) are then plain tensor operations. The first N - 1 columns
are the time before the sequence, so a window never has to be padded. With N = 3, one row and `_` for that time:

    tokens 4 7 5 6        token_history [_, _, 4, 7, 5, 6]        window of the last two [4, 7, 5, 6]
    crop(-3)              token_history [_, _, 4]
    token 9               token_history [_, _, 4, 9]              window [_, 4, 9]: its 3-gram is `_ 4 9`

The cache does not know the model: it stores the codes of `ngram_hashing.encode_tokens` as they are. `check_fits`
checks that cache and model fit before either changes.

Shapes: B batch, T tokens of this forward, N highest n-gram order.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from transformers.cache_utils import Cache, DynamicCache, QuantizedCache, StaticCache

from .transformers_versions import CACHE, reset_dynamic_cache

BEFORE_SEQUENCE = ~0  # `ngram_hashing.HIDDEN`: counts as token 0, and nothing looks past it


class CacheLayout(NamedTuple):
    """The fields of a config that its caches depend on."""

    num_hidden_layers: int
    kv_lora_rank: int
    qk_rope_head_dim: int
    emb_neighbor_num: int

    @classmethod
    def of(cls, config: Any) -> "CacheLayout":
        """The layout of a [`LongCatLiteConfig`]."""
        return cls(config.num_hidden_layers, config.kv_lora_rank, config.qk_rope_head_dim, config.emb_neighbor_num)


class TokenHistoryMixin(Cache):
    """Adds `token_history`, `[B, N - 1 + tokens]` int64, to a cache class; it grows by concatenation."""

    # Defaults of the class, so that an empty cache of another class can become one of this class.
    token_history: torch.Tensor | None = None
    # `CacheLayout` of the model that fills it, as a plain tuple, which `torch.export` can take apart and rebuild.
    layout: tuple[int, ...] | None = None
    other_rows = "use `batch_repeat_interleave` or `batch_select_indices` on the cache, or a fresh one"

    def append_tokens(self, codes: torch.Tensor, lookback: int) -> torch.Tensor:
        """Appends `codes` (`[B, T]` int64) and returns them after the `lookback` codes before: `[B, lookback + T]`.

        Raises:
            `ValueError`: if the cache has keys and values but no tokens, or another number of rows.
        """
        self._check_appendable(codes)
        if self.token_history is None:
            self.token_history = codes.new_full((codes.shape[0], lookback), BEFORE_SEQUENCE)
        self.token_history = torch.cat([self.token_history, codes], dim=1)
        return self.token_history[:, -(lookback + codes.shape[1]) :]

    def num_tokens(self, lookback: int) -> int | torch.Tensor:
        """Tokens in the history, without the `lookback` columns before the sequence."""
        return 0 if self.token_history is None else self.token_history.shape[1] - lookback

    def next_slots(self, length: int, lookback: int, device: torch.device) -> torch.Tensor:
        """Where the next `length` tokens will be in the history, counted from its first token: `[length]` int64."""
        return torch.arange(length, device=device) + self.num_tokens(lookback)

    def _check_appendable(self, codes: torch.Tensor):
        if self.token_history is None:
            check_has_no_past(self)
        self.check_rows(codes.shape[0])

    def check_rows(self, rows: int):
        """Raises a `ValueError` unless `rows` rows can be appended."""
        if self.token_history is not None and self.token_history.shape[0] != rows:
            raise ValueError(
                f"The cache holds {self.token_history.shape[0]} rows but the input has {rows}: {self.other_rows}."
            )

    def _map_history(self, function):
        if self.token_history is not None:
            self.token_history = function(self.token_history)

    def reorder_cache(self, beam_idx: torch.LongTensor):
        super().reorder_cache(beam_idx)
        self._map_history(lambda history: history.index_select(0, beam_idx.to(history.device)))

    def crop(self, tokens_to_remove: int):
        if tokens_to_remove > 0:  # the layers refuse it too, if there are any
            raise ValueError(
                f"`tokens_to_remove` is {tokens_to_remove}, but a positive count is not supported: "
                f"{-tokens_to_remove} takes back that many tokens."
            )
        length = self.get_seq_length()
        if length == 0:
            return  # some versions of transformers fail on an empty cache
        super().crop(tokens_to_remove)
        removed = length - self.get_seq_length()
        if removed:
            self._map_history(lambda history: history[:, :-removed])

    def batch_repeat_interleave(self, repeats: int):
        super().batch_repeat_interleave(repeats)
        self._map_history(lambda history: history.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor | Sequence[int]):
        indices = torch.as_tensor(indices)
        super().batch_select_indices(indices)
        self._map_history(lambda history: history[indices.to(history.device)])

    def reset(self):
        super().reset()
        self.token_history = self.layout = None


class LongCatLiteDynamicCache(TokenHistoryMixin, DynamicCache):
    """[`DynamicCache`] with token history."""

    def reset(self):
        reset_dynamic_cache(self)
        if self.layer_class_to_replicate is not None:  # layers are made lazily: a failed forward has made some
            self.layers.clear()
        self.token_history = self.layout = None


class LongCatLiteQuantizedCache(TokenHistoryMixin, QuantizedCache):
    """[`QuantizedCache`] with token history; the history itself is exact."""

    other_rows = "start from a fresh one"

    def crop(self, tokens_to_remove: int):
        raise ValueError("A quantized cache cannot be cropped: use a dynamic cache for assisted decoding.")

    def batch_repeat_interleave(self, repeats: int):
        raise ValueError("A quantized cache cannot repeat rows: repeat those of a dynamic cache instead.")

    def batch_select_indices(self, indices: torch.Tensor | Sequence[int]):
        raise ValueError("A quantized cache cannot select rows: select those of a dynamic cache instead.")


class LongCatLiteStaticCache(TokenHistoryMixin, StaticCache):
    """[`StaticCache`] with token history in a preallocated buffer, written in place for compiled decoding."""

    token_history: torch.Tensor = None  # type: ignore[assignment]
    # A scalar int64 tensor, because a compiled graph would be guarded by a Python int.
    token_count: torch.Tensor = None  # type: ignore[assignment]
    other_rows = "a static cache keeps its batch size, also through `reset`; start from a fresh one"

    def append_tokens(self, codes: torch.Tensor, lookback: int) -> torch.Tensor:
        self._check_appendable(codes)
        if self.token_history is None:
            self._allocate(codes, lookback)
        length = codes.shape[1]
        written = torch.arange(length, device=codes.device) + self.token_count + lookback
        self.token_history.index_copy_(1, written, codes)
        window = torch.arange(lookback + length, device=codes.device) + self.token_count
        self.token_count.add_(length)
        return self.token_history.index_select(1, window)

    def num_tokens(self, lookback: int) -> int | torch.Tensor:
        return 0 if self.token_history is None else self.token_count

    def _allocate(self, codes: torch.Tensor, lookback: int):
        shape = (codes.shape[0], lookback + self.get_max_length())
        self.token_history = codes.new_full(shape, BEFORE_SEQUENCE)
        self.token_count = torch.zeros((), dtype=torch.int64, device=codes.device)
        if not torch.compiler.is_compiling():
            # As `StaticLayer` does with its buffers, because CUDA graphs need fixed addresses.
            torch._dynamo.mark_static_address(self.token_history)
            torch._dynamo.mark_static_address(self.token_count)

    def _map_history(self, function):
        if self.token_history is not None:
            self.token_history.copy_(function(self.token_history))  # in place: the address is fixed

    def crop(self, tokens_to_remove: int):
        raise ValueError("A static cache cannot be cropped: use a dynamic cache for assisted decoding.")

    def batch_repeat_interleave(self, repeats: int):
        raise ValueError("A static cache has a fixed batch size: repeat the rows of a dynamic cache instead.")

    def batch_select_indices(self, indices: torch.Tensor | Sequence[int]):
        raise ValueError("A static cache has a fixed batch size: select the rows of a dynamic cache instead.")

    def reset(self):
        StaticCache.reset(self)
        if self.token_history is not None:
            self.token_history.fill_(BEFORE_SEQUENCE)
            self.token_count.zero_()


def cache_leaves(cache: LongCatLiteDynamicCache) -> tuple[list[torch.Tensor | None], tuple[int, ...] | None]:
    """The tensors of a cache, its history first, and its layout: the parts that `torch.export` takes it apart into."""
    layers: Any = cache.layers
    states = [states for layer in layers for states in (layer.keys, layer.values)]
    return [cache.token_history, *states], cache.layout


def cache_of_leaves(leaves: Iterable[torch.Tensor | None], layout: tuple[int, ...] | None) -> LongCatLiteDynamicCache:
    """The inverse of [`cache_leaves`]."""
    cache = LongCatLiteDynamicCache()
    cache.layout = layout
    cache.token_history, *states = leaves
    for layer, (keys, values) in enumerate(zip(states[::2], states[1::2], strict=True)):
        if keys is not None and values is not None:
            cache.update(keys, values, layer)
    return cache


@functools.cache
def allow_export():
    """Lets `torch.export` take a cache apart.

    Called only when a model is exported: code that maps a function over all tensors of a call, such as mixed
    precision, would otherwise give the model a copy of the cache.
    """
    torch.utils._pytree.register_pytree_node(
        LongCatLiteDynamicCache,
        cache_leaves,
        cache_of_leaves,
        flatten_with_keys_fn=lambda cache: (
            [(torch.utils._pytree.SequenceKey(i), leaf) for i, leaf in enumerate(cache_leaves(cache)[0])],
            cache.layout,
        ),
    )


HISTORY_CACHES: dict[type[Cache], type[Cache]] = {
    DynamicCache: LongCatLiteDynamicCache,
    StaticCache: LongCatLiteStaticCache,
    QuantizedCache: LongCatLiteQuantizedCache,
}


def check_has_no_past(cache: Cache):
    """Raises a `ValueError` if `cache` has keys and values, because their tokens are unknown."""
    if int(cache.get_seq_length()) > 0:
        raise ValueError(
            f"`{CACHE}` is a {type(cache).__name__} with keys and values but without the tokens that made "
            "them: n-grams cannot be continued. Start from an empty cache, or from one that this model returned."
        )


def check_fits(cache: Cache, layout: CacheLayout, rows: int, length: int = 0, new_tokens: int = 0):
    """Raises a `ValueError` if a model cannot continue with `cache`, which is only read. Not for compiled regions.

    Args:
        layout (`CacheLayout`): Of the model.
        rows (`int`): Rows of the input.
        length (`int`, *optional*, defaults to 0): Tokens that the cache has to hold in the end.
        new_tokens (`int`, *optional*, defaults to 0): Tokens that will be added to those in the cache.
    """
    check_is_supported(cache)
    if len(cache.layers) not in (0, layout.num_hidden_layers):  # 0: layers are made lazily
        raise ValueError(
            f"`{CACHE}` has {len(cache.layers)} layers, but this model has {layout.num_hidden_layers} "
            "attention sublayers: make the cache with this model's `config`."
        )
    if isinstance(cache, TokenHistoryMixin):
        for name, theirs, ours in zip(layout._fields, cache.layout or layout, layout, strict=True):
            if theirs != ours:
                raise ValueError(
                    f"`{CACHE}` belongs to a model with `{name}` {theirs}, but this one has {ours}: start "
                    "from an empty cache, or from one that this model returned."
                )
        cache.check_rows(rows)
        if not isinstance(cache, StaticCache) or can_be_counted(cache, new_tokens):
            check_is_whole(cache, layout.emb_neighbor_num - 1)
    if isinstance(cache, StaticCache):
        check_room(cache, length, new_tokens)


def can_be_counted(cache: StaticCache, new_tokens: int) -> bool:
    """Whether to count the tokens in a cache. Decoding on an accelerator does not: counting would synchronize."""
    seen = cache.get_seq_length()
    return isinstance(seen, int) or seen.device.type == "cpu" or new_tokens > 1


def check_is_whole(cache: TokenHistoryMixin, lookback: int):
    """Raises a `ValueError` if a forward failed midway and some layers lack tokens that others have."""
    held = {int(cache.get_seq_length()), int(cache.get_seq_length(max(0, len(cache.layers) - 1)))}
    if cache.token_history is not None:
        held.add(int(cache.num_tokens(lookback)))
    if len(held) > 1:
        raise ValueError(
            f"`{CACHE}` is damaged: a forward failed midway, and its parts hold {min(held)} to {max(held)} tokens. "
            "Start from an empty cache, or from a copy that was made before."
        )


def check_room(cache: StaticCache, length: int, new_tokens: int):
    """Raises a `ValueError` if `cache` has no room for `length` tokens in all, or for `new_tokens` more."""
    if can_be_counted(cache, new_tokens):
        length = max(length, int(cache.get_seq_length()) + new_tokens)
    if length > cache.get_max_length():
        raise ValueError(
            f"`{CACHE}` is a static cache of {cache.get_max_length()} tokens, but it would have to hold "
            f"{length}: make one with `max_cache_len` of at least {length}."
        )


def check_is_supported(cache: Cache):
    """Raises a `ValueError` unless `cache` has a token history, or is empty and of a class that can get one."""
    if isinstance(cache, TokenHistoryMixin):
        return
    if type(cache) not in HISTORY_CACHES:
        known = ", ".join(c.__name__ for c in HISTORY_CACHES)
        raise ValueError(f"`{CACHE}` of type {type(cache).__name__} is not supported; use one of {known}.")
    check_has_no_past(cache)


def with_token_history(cache: Cache, layout: CacheLayout | None = None) -> Cache:
    """Gives an empty cache of transformers a token history, in place: the model then fills the caller's object.

    Raises:
        `ValueError`: if `cache` already has keys and values, or is of a class without a counterpart here.
    """
    check_is_supported(cache)
    if not isinstance(cache, TokenHistoryMixin):
        cache.__class__ = HISTORY_CACHES[type(cache)]
    if torch.compiler.is_exporting():
        allow_export()
    if layout is not None:
        cache.layout = tuple(layout)  # type: ignore[attr-defined]
    return cache


__all__ = [
    "CacheLayout",
    "LongCatLiteDynamicCache",
    "LongCatLiteQuantizedCache",
    "LongCatLiteStaticCache",
    "TokenHistoryMixin",
    "check_fits",
    "with_token_history",
]
