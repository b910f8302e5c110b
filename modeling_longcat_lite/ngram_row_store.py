# SPDX-License-Identifier: Apache-2.0
"""Rows that stand in for those of tables which are only read: what fine-tuning changed of tables on host or disk.

A row is known by its key, a number for table and row id; rows lie in the order they came in, with an index of sorted
keys beside. Adding rows moves the index, 16 bytes a row, and the rows themselves only when their buffer doubles.

For training, `trained` is a parameter in whose place the rows are looked up: as tall as keys go, and of one number.
Its gradient is sparse, `[keys, W]`, and holds what the batch read, as that of `nn.Embedding(sparse=True)` does.

Shapes: U distinct rows, M reads, W row width.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class RowOverlay:
    """Rows by key.

    Args:
        width (`int`): W.
        dtype (`torch.dtype`): Of the rows, which lie on the host.
    """

    trained: nn.Parameter | None = None

    def __init__(self, width: int, dtype: torch.dtype):
        self.keys = torch.empty(0, dtype=torch.int64)  # sorted
        self.slots = torch.empty(0, dtype=torch.int64)  # where each key's row lies
        self._buffer = torch.empty(0, width, dtype=dtype)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def dtype(self) -> torch.dtype:
        return self._buffer.dtype

    @property
    def rows(self) -> torch.Tensor:
        """By slot, `[len, W]`: a view."""
        return self._buffer[: len(self)]

    def find(self, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of keys `[U]`: which are here `[U]` bool, and the slots of those."""
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
        """Rows `[U, W]` of keys `[U]` from below, with those that are here in their place."""
        is_here, slots = self.find(keys)
        if not len(slots):
            return rows
        return rows.index_copy(0, is_here.nonzero()[:, 0].to(rows.device), self.rows[slots].to(rows))

    def by_key(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Sorted keys and their rows `[len, W]`."""
        return self.keys, self.rows[self.slots]

    def clear(self):
        """Takes all rows out."""
        self.keys = self.slots = torch.empty(0, dtype=torch.int64)

    def __getstate__(self) -> dict[str, Any]:
        # A copy is not trained, and the parameter could not be copied: it would become as large as it looks.
        return {name: value for name, value in self.__dict__.items() if name != "trained"}

    def train(self, num_keys: int) -> nn.Parameter:
        """Has lookups keep a gradient for `trained`, which is returned; `num_keys` is above every key."""
        self.trained = nn.Parameter(torch.zeros((), dtype=self.dtype).expand(num_keys, self._buffer.shape[1]))
        return self.trained

    def look_up(self, rows: torch.Tensor, places: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Rows `[U, W]` at places `[M]`: `[M, W]`, with a gradient by `keys` `[U]` if they are trained."""
        if self.trained is None or not torch.is_grad_enabled():
            return rows.index_select(0, places)
        return LookUp.apply(self.trained, rows, places, keys)


class LookUp(torch.autograd.Function):
    """Rows of a batch, whose gradient goes to the parameter that stands for all rows."""

    @staticmethod
    def forward(ctx: Any, trained: torch.Tensor, rows: torch.Tensor, places: torch.Tensor, keys: torch.Tensor):
        ctx.save_for_backward(places, keys)
        ctx.stands_for, ctx.dtype = trained.shape, trained.dtype
        return rows.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor):
        places, keys = ctx.saved_tensors
        (gradient,) = gradients  # [M, W]
        # Added in float32, in the order of the reads: the bits of a table in memory, whose reads are summed so too.
        sums = gradient.new_zeros(len(keys), gradient.shape[1], dtype=torch.float32)
        sums.index_add_(0, places, gradient.float())
        values = sums.to("cpu", ctx.dtype)
        sparse = torch.sparse_coo_tensor(keys[None], values, ctx.stands_for, is_coalesced=True, check_invariants=False)
        return sparse, None, None, None


def grown(buffer: torch.Tensor, count: int) -> torch.Tensor:
    """A buffer with room for `count` entries, the old ones kept; it doubles, so that it rarely has to grow."""
    if count <= len(buffer):
        return buffer
    larger = buffer.new_zeros(max(count, 2 * len(buffer)), *buffer.shape[1:])
    larger[: len(buffer)] = buffer
    return larger


class RowCache:
    """Rows by key.

    Args:
        keys (`torch.Tensor` of shape `[H]`, int64): Sorted, distinct, on the host.
        rows (`torch.Tensor` of shape `[H, C]`): On the device that reads them.
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
        """The rows of sorted distinct keys `[U]`, from here or else through `read`: `[U, C]`.

        `places` says which of the keys each read of the batch is, for the hit rate.
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
