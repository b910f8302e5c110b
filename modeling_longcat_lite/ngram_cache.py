# SPDX-License-Identifier: Apache-2.0
"""Token history beside the latent KV: what an n-gram needs of the past, in every cache that `generate` can ask for.

The whole history is kept, 8 bytes a token, rather than the last N-1 ids: cropping by any length (prompt lookup,
assisted decoding), reordering (beams) and repeating (prefix reuse) are then plain tensor operations. The first N-1
columns stand for the time before the sequence, so that a window never has to be padded.

The cache does not know the model: it stores the codes of `ngram_hashing.encode_tokens` as they come.
"""

import torch
from transformers.cache_utils import Cache, DynamicCache, QuantizedCache, StaticCache

BEFORE_SEQUENCE = -1  # `ngram_hashing.HIDDEN`: nothing can look at it


class TokenHistoryMixin(Cache):
    """Adds `token_history`, `[B, N-1 + tokens]` int64, to a cache class; grows by concatenation."""

    # A class-level default, so that an empty cache can be upgraded in place.
    token_history: torch.Tensor | None = None

    def append_tokens(self, codes: torch.Tensor, lookback: int) -> torch.Tensor:
        """Appends `codes` (`[B, T]` int64) and returns them behind the `lookback` codes before: `[B, lookback + T]`.

        Raises:
            `ValueError`: if the cache holds keys and values but no tokens, or rows of another batch.
        """
        self._check_appendable(codes)
        if self.token_history is None:
            self.token_history = codes.new_full((codes.shape[0], lookback), BEFORE_SEQUENCE)
        self.token_history = torch.cat([self.token_history, codes], dim=1)
        return self.token_history[:, -(lookback + codes.shape[1]) :]

    def _check_appendable(self, codes: torch.Tensor):
        if self.token_history is None:
            check_has_no_past(self)
        elif self.token_history.shape[0] != codes.shape[0]:
            raise ValueError(
                f"The cache holds {self.token_history.shape[0]} rows but the input has {codes.shape[0]}: "
                "use `batch_repeat_interleave` or `batch_select_indices` on the cache, or a fresh one."
            )

    def _map_history(self, function):
        if self.token_history is not None:
            self.token_history = function(self.token_history)

    def reorder_cache(self, beam_idx: torch.LongTensor):
        super().reorder_cache(beam_idx)
        self._map_history(lambda history: history.index_select(0, beam_idx.to(history.device)))

    def crop(self, tokens_to_remove: int):
        length = self.get_seq_length()
        super().crop(tokens_to_remove)
        removed = length - self.get_seq_length()
        if removed:
            self._map_history(lambda history: history[:, :-removed])

    def batch_repeat_interleave(self, repeats: int):
        super().batch_repeat_interleave(repeats)
        self._map_history(lambda history: history.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor):
        super().batch_select_indices(indices)
        self._map_history(lambda history: history[indices.to(history.device)])

    def reset(self):
        super().reset()
        self.token_history = None


class LongCatLiteDynamicCache(TokenHistoryMixin, DynamicCache):
    """[`DynamicCache`] with token history."""


class LongCatLiteQuantizedCache(TokenHistoryMixin, QuantizedCache):
    """[`QuantizedCache`] with token history; the history itself is exact."""

    def crop(self, tokens_to_remove: int):
        raise ValueError("A quantized cache cannot be cropped: use a dynamic cache for assisted decoding.")

    def batch_repeat_interleave(self, repeats: int):
        raise ValueError("A quantized cache cannot repeat rows: repeat those of a dynamic cache instead.")

    def batch_select_indices(self, indices: torch.Tensor):
        raise ValueError("A quantized cache cannot select rows: select those of a dynamic cache instead.")


class LongCatLiteStaticCache(TokenHistoryMixin, StaticCache):
    """[`StaticCache`] with token history in a preallocated buffer, written in place for compiled decoding."""

    token_history: torch.Tensor = None  # type: ignore[assignment]
    # Scalar int64: a Python int would be a guard of the compiled graph.
    token_count: torch.Tensor = None  # type: ignore[assignment]

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

    def _allocate(self, codes: torch.Tensor, lookback: int):
        shape = (codes.shape[0], lookback + self.get_max_length())
        self.token_history = codes.new_full(shape, BEFORE_SEQUENCE)
        self.token_count = torch.zeros((), dtype=torch.int64, device=codes.device)
        if not torch.compiler.is_compiling():
            # As `StaticLayer` does with its buffers: CUDA graphs need fixed addresses.
            torch._dynamo.mark_static_address(self.token_history)
            torch._dynamo.mark_static_address(self.token_count)

    def _map_history(self, function):
        if self.token_history is not None:
            self.token_history.copy_(function(self.token_history))  # in place: the address is fixed

    def crop(self, tokens_to_remove: int):
        raise ValueError("A static cache cannot be cropped: use a dynamic cache for assisted decoding.")

    def batch_repeat_interleave(self, repeats: int):
        raise ValueError("A static cache has a fixed batch size: repeat the rows of a dynamic cache instead.")

    def batch_select_indices(self, indices: torch.Tensor):
        raise ValueError("A static cache has a fixed batch size: select the rows of a dynamic cache instead.")

    def reset(self):
        StaticCache.reset(self)
        if self.token_history is not None:
            self.token_history.fill_(BEFORE_SEQUENCE)
            self.token_count.zero_()


HISTORY_CACHES: dict[type[Cache], type[Cache]] = {
    DynamicCache: LongCatLiteDynamicCache,
    StaticCache: LongCatLiteStaticCache,
    QuantizedCache: LongCatLiteQuantizedCache,
}


def check_has_no_past(cache: Cache):
    """Raises a `ValueError` if `cache` holds keys and values, whose tokens are then unknown."""
    if int(cache.get_seq_length()) > 0:
        raise ValueError(
            f"`past_key_values` is a {type(cache).__name__} with keys and values but without the tokens that made "
            "them: n-grams cannot be continued. Start from an empty cache, or from one that this model returned."
        )


def with_token_history(cache: Cache) -> Cache:
    """Gives an empty stock cache a token history, in place: the caller's object stays the one that fills up.

    Raises:
        `ValueError`: if `cache` already holds keys and values, or is of a class that has no counterpart here.
    """
    if isinstance(cache, TokenHistoryMixin):
        return cache
    if type(cache) not in HISTORY_CACHES:
        known = ", ".join(c.__name__ for c in HISTORY_CACHES)
        raise ValueError(f"`past_key_values` of type {type(cache).__name__} is not supported; use one of {known}.")
    check_has_no_past(cache)
    cache.__class__ = HISTORY_CACHES[type(cache)]
    return cache


__all__ = [
    "LongCatLiteDynamicCache",
    "LongCatLiteQuantizedCache",
    "LongCatLiteStaticCache",
    "TokenHistoryMixin",
    "with_token_history",
]
