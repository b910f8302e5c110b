# SPDX-License-Identifier: Apache-2.0
"""A bounded cache of table rows that are read most, on the device that reads them.

It is filled once, from a file of rows counted on text (`ngram_hot_rows.py`), and does not change: a lookup is one
binary search over all rows of a batch, without the bookkeeping of a cache that learns.

Shapes: U distinct rows, H kept rows, C stored columns.
"""

from collections.abc import Callable

import torch


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


__all__ = ["RowCache"]
