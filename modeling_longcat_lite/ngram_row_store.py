# SPDX-License-Identifier: Apache-2.0
"""Rows by key, in front of tables that are only read: changed rows in an overlay, often-read rows in a cache.

A key is a number for table and row id (`ngram_tables`). An overlay holds rows that fine-tuning changed, and wins over
the tables. Rows stay in the order in which they came, with an index of sorted keys:

    the tables have        key   3   5   7   9
                           row  A3  A5  A7  A9
    put [9, 5], [B9, B5]   keys [5, 9]      slots [1, 0]      rows [B9, B5]
    put [7, 9], [C7, C9]   keys [5, 7, 9]   slots [1, 2, 0]   rows [C9, B5, C7]
    over [3, 5, 7, 9]      [A3, B5, C7, C9]

Adding rows moves the index, 16 bytes per row; the rows themselves move only when their buffer doubles.

A cache holds rows that are read often, as the tables store them, on the device that reads them. It answers what it has
and reads the rest:

    cache of keys [5, 9]   wanted [3, 5, 9]   reads [3] from the tables   gives [A3, A5, A9]

For training, an overlay's `trained` is a parameter that represents all rows: as tall as there are keys, but one number
in memory. Its gradient is sparse, `[keys, W]`, and holds the rows that the batch read, like that of
`nn.Embedding(sparse=True)`.

Shapes: U distinct rows, M tokens together (one read each), W width of a table row, P stored columns of a packed row.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class RowOverlay:
    """Changed rows by key, on the host.

    Args:
        width (`int`): W.
        dtype (`torch.dtype`): Of the rows.
    """

    trained: nn.Parameter | None = None

    def __init__(self, width: int, dtype: torch.dtype):
        self.keys = torch.empty(0, dtype=torch.int64)  # sorted
        self.slots = torch.empty(0, dtype=torch.int64)  # of each key, the place of its row
        self._buffer = torch.empty(0, width, dtype=dtype)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def dtype(self) -> torch.dtype:
        return self._buffer.dtype

    @property
    def rows(self) -> torch.Tensor:
        """The rows by slot, `[len, W]`: a view."""
        return self._buffer[: len(self)]

    def find(self, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Which of the keys `[U]` are here, `[U]` bool, and the slots of those."""
        places = torch.searchsorted(self.keys, wanted)
        is_here = places < len(self)
        is_here[is_here.clone()] = self.keys[places[is_here]] == wanted[is_here]
        return is_here, self.slots[places[is_here]]

    def put(self, keys: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Sets the rows of distinct keys `[U]` to `[U, W]`; returns their slots `[U]`."""
        is_here, known = self.find(keys)
        slots = torch.empty_like(keys)
        slots[is_here] = known
        fresh, count = keys[~is_here], len(self)
        if len(fresh):
            slots[~is_here] = torch.arange(count, count + len(fresh))
            self._buffer = grown(self._buffer, count + len(fresh))
            self.keys, order = torch.cat([self.keys, fresh]).sort()
            self.slots = torch.cat([self.slots, slots[~is_here]])[order]
        self._buffer[slots] = rows.to(self.dtype)
        return slots

    def over(self, keys: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Rows `[U, W]` of keys `[U]` as the tables have them, with those replaced that are here."""
        is_here, slots = self.find(keys)
        if not len(slots):
            return rows
        return rows.index_copy(0, is_here.nonzero()[:, 0].to(rows.device), self.rows[slots].to(rows))

    def by_key(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Sorted keys and their rows `[len, W]`."""
        return self.keys, self.rows[self.slots]

    def clear(self):
        """Removes all rows."""
        self.keys = self.slots = torch.empty(0, dtype=torch.int64)

    def __getstate__(self) -> dict[str, Any]:
        # A copy is not trained. The parameter cannot be copied: the copy would be as large as its shape says.
        return {name: value for name, value in self.__dict__.items() if name != "trained"}

    def train(self, num_keys: int) -> nn.Parameter:
        """Makes lookups keep a gradient for `trained`, and returns it; `num_keys` is larger than every key."""
        self.trained = nn.Parameter(torch.zeros((), dtype=self.dtype).expand(num_keys, self._buffer.shape[1]))
        return self.trained

    def look_up(self, rows: torch.Tensor, places: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Rows `[U, W]` at places `[M]`: `[M, W]`, with a gradient for `keys` `[U]` if rows are trained."""
        if self.trained is None or not torch.is_grad_enabled():
            return rows.index_select(0, places)
        return LookUp.apply(self.trained, rows, places, keys)


class LookUp(torch.autograd.Function):
    """Rows of a batch, whose gradient goes to the parameter that represents all rows."""

    @staticmethod
    def forward(ctx: Any, trained: torch.Tensor, rows: torch.Tensor, places: torch.Tensor, keys: torch.Tensor):
        ctx.save_for_backward(places, keys)
        ctx.all_rows, ctx.dtype = trained.shape, trained.dtype
        return rows.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor):
        places, keys = ctx.saved_tensors
        (gradient,) = gradients  # [M, W]
        # Added in float32, in the order of the reads: bit-equal to a resident table, whose reads are summed like that.
        sums = gradient.new_zeros(len(keys), gradient.shape[1], dtype=torch.float32)
        sums.index_add_(0, places, gradient.float())
        values = sums.to("cpu", ctx.dtype)
        sparse = torch.sparse_coo_tensor(keys[None], values, ctx.all_rows, is_coalesced=True, check_invariants=False)
        return sparse, None, None, None


def grown(buffer: torch.Tensor, count: int) -> torch.Tensor:
    """The buffer, or a larger one with the same entries if `count` do not fit; it doubles, so that it rarely grows."""
    if count <= len(buffer):
        return buffer
    larger = buffer.new_zeros(max(count, 2 * len(buffer)), *buffer.shape[1:])
    larger[: len(buffer)] = buffer
    return larger


class RowCache:
    """Rows by key that do not have to be read from the tables.

    Args:
        keys (`torch.Tensor` of shape `[rows]`, int64): Sorted, distinct, on the host.
        rows (`torch.Tensor` of shape `[rows, P]`): As stored, on the device that reads them.
    """

    def __init__(self, keys: torch.Tensor, rows: torch.Tensor):
        self.keys, self.rows = keys, rows
        self.reads = self.hits = 0

    @property
    def hit_rate(self) -> float:
        """Share of all reads so far that found their row here; a row that a batch reads twice counts twice."""
        return self.hits / self.reads if self.reads else 0.0

    def complete(
        self, wanted: torch.Tensor, places: torch.Tensor, read: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """The rows of sorted distinct keys `[U]`, from here or else through `read`: `[U, P]`.

        `places` has for each read of the batch the index of its key, for the hit rate.
        """
        slots = torch.searchsorted(self.keys, wanted).clamp_max(len(self.keys) - 1)  # [U]
        is_here = self.keys[slots] == wanted
        self.reads += places.numel()
        self.hits += int(is_here[places].sum())
        device = self.rows.device
        here, missing = is_here.nonzero().squeeze(1), (~is_here).nonzero().squeeze(1)
        rows = self.rows.new_empty(len(wanted), self.rows.shape[1])
        rows[here.to(device)] = self.rows[slots[here].to(device)]
        if len(missing):
            rows[missing.to(device)] = read(wanted[missing])
        return rows


__all__ = ["RowCache", "RowOverlay"]
