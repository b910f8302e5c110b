# SPDX-License-Identifier: Apache-2.0
"""N-gram ids: pure integer functions (arXiv 2601.21204, section 2, equations 2 and 3).

For sub-table `i` with `rows_i` rows, which hashes n-grams of order `n`, the id of token `t` is

    ( tok[t] + sum_{d=1..n-1} tok[t-d] * V**d ) mod rows_i          V: the base vocabulary size

where a token that does not exist, or that a boundary hides, counts as 0. With V = 10, N = 3, one sub-table per order
and 71 and 73 rows, end-of-sequence being token 2:

    tokens         4    7    2    5    6
    2-gram id      4   47   1*   5   56      * 72 mod 71: EOS itself still looks back, the token after it does not
    3-gram id      4   47   34** 5   56      ** 472 mod 73

A stream of tokens that remembers its own boundaries is kept as one int64 code per token, so that a cache can carry
it from one forward to the next:

    token >= 0              continues the token before it
    ~token < 0              first of a segment: cannot look back
    HIDDEN                  not a token (padding, or before the sequence): counts as 0, and nothing looks past it, so
                            it is the code of a token 0 that begins a segment

Shapes: B batch rows, T tokens, L tokens with history, N highest n-gram order, S sub-tables.
"""

from collections.abc import Sequence

import torch

from .visible_tokens import document_starts, previous_visible

HIDDEN = ~0


def power_residues(base: int, sizes: Sequence[int], order: int) -> list[list[int]]:
    """`V**d mod rows` for d = 1..order-1 and every sub-table: `[order - 1][S]` exact Python integers.

    Reduced before they are multiplied with a token, so that an id fits int64 at any order (paper, footnote to
    equation 2). Orders above that of a sub-table have residue 0, so that one pass serves all sub-tables.
    """
    per_order = len(sizes) // (order - 1)
    orders = [2 + i // per_order for i in range(len(sizes))]
    return [
        [pow(base, d, rows) if d < n else 0 for rows, n in zip(sizes, orders, strict=True)] for d in range(1, order)
    ]


def encode_tokens(
    input_ids: torch.Tensor,
    position_ids: torch.Tensor | None = None,
    visible: torch.Tensor | None = None,
    previous: torch.Tensor | None = None,
) -> torch.Tensor:
    """Tokens with their boundaries, as described above: `[B, T]` int64.

    Args:
        input_ids (`torch.Tensor` of shape `[B, T]`): Token ids.
        position_ids (`torch.Tensor` of shape `[B, T]` or `[1, T]`, *optional*): Positions; restarts begin a segment.
        visible (`torch.Tensor` of shape `[B, T]`, *optional*): False (or 0) where a token is padding.
        previous (`torch.Tensor` of shape `[B, T]`, *optional*):
            Index of the visible token before each, below 0 if there is none; derived from `visible` by default.
    """
    codes = input_ids.long()
    if previous is None and visible is not None:
        previous = previous_visible(visible.bool())
    if position_ids is not None:
        codes = torch.where(document_starts(position_ids, previous), ~codes, codes)
    if visible is not None:
        codes = codes.masked_fill(visible == 0, HIDDEN)
    return codes


def visible_windows(history: torch.Tensor, slots: torch.Tensor, earlier: torch.Tensor) -> torch.Tensor:
    """The codes that each token's n-grams may read, without hidden tokens: `[B * T, N]`, farthest first.

    One window for each token, in the form of a history of N - 1 codes and one token, as [`ngram_contexts`] takes it.
    The window of a padding token is all `HIDDEN`.

        history         HIDDEN  HIDDEN  4  7  HIDDEN  5        N = 3; the fifth is a token that the mask hides
        window of 5                     4  7          5

    Args:
        history (`torch.Tensor` of shape `[B, N - 1 + L]`): `HIDDEN` for the time before the row, then its codes.
        slots (`torch.Tensor` of shape `[T]`): Places of the tokens among the L.
        earlier (`torch.Tensor` of shape `[B, T, N - 1]`): From [`lookback_slots`].
    """
    lookback = earlier.shape[-1]
    batch, length = earlier.shape[:2]
    own = slots.view(1, -1, 1).expand(batch, -1, -1)
    wanted = torch.cat([earlier.flip(-1), own], dim=-1) + lookback  # [B, T, N]; before the row: a `HIDDEN` column
    codes = history.gather(1, wanted.flatten(1)).view(batch * length, lookback + 1)
    return torch.where(codes[:, -1:] == HIDDEN, HIDDEN, codes)


def ngram_contexts(codes: torch.Tensor, order: int, eos_token_ids: Sequence[int]) -> torch.Tensor:
    """The tokens that an n-gram may see, 0 where it may see none: `[B, N, T]`, farthest first, the token itself last.

    Args:
        codes (`torch.Tensor` of shape `[B, order - 1 + T]`): History (`HIDDEN` before the sequence), then tokens.
        order (`int`): Highest n-gram order.
        eos_token_ids (`Sequence[int]`): Tokens that close a segment; they belong to the segment that they close.
    """
    length = codes.shape[1] - (order - 1)
    tokens = codes ^ (codes >> 63)  # ~token back to token
    begins = codes < 0
    for eos in eos_token_ids:
        begins[:, 1:].logical_or_(tokens[:, :-1] == eos)
    # A token sees tokens of its own segment. `unfold` gives N overlapping windows of T without a copy.
    segments = begins.cumsum(dim=1).unfold(1, length, 1)  # [B, N, T]
    return tokens.unfold(1, length, 1) * (segments == segments[:, -1:])


def ngram_ids(contexts: torch.Tensor, residues: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """The row of every sub-table for every token: `[S, B, T]` int64, all sub-tables in one pass.

    Args:
        contexts (`torch.Tensor` of shape `[B, N, T]`): From [`ngram_contexts`].
        residues (`torch.Tensor` of shape `[N - 1, S]`, int64): From [`power_residues`].
        sizes (`torch.Tensor` of shape `[S]`, int64): Rows per sub-table.

    At released size an intermediate is below 3 * 131072 * 10223639 = 4.1e12, far inside int64.
    """
    *past, total = contexts.unbind(1)  # [B, T] each
    for context, residue in zip(reversed(past), residues.view(*residues.shape, 1, 1).unbind(), strict=True):
        total = torch.addcmul(total, context, residue)  # [S, B, T]
    return total % sizes.view(-1, 1, 1)


__all__ = ["HIDDEN", "encode_tokens", "ngram_contexts", "ngram_ids", "power_residues", "visible_windows"]
