# SPDX-License-Identifier: Apache-2.0
"""Training of n-gram tables that stay in host memory or on disk: what changes is kept beside them, row by row.

Fine-tuning reads few rows of 31 billion parameters. Those of a batch are pulled for the forward; their gradient goes
to a parameter that only stands for the tables, and `RowwiseAdamW` writes new rows to an overlay in memory. The base
checkpoint is never written. What is saved is the overlay, `ngram_row_delta.safetensors`: megabytes, which travel
beside a LoRA adapter or the weights (`modeling_longcat_lite/ngram_row_files.py`).

Rows of a delta that was loaded before learn on from there, and are saved with the rest. A checkpoint of the trainer
holds rows twice: in its delta and, with second moments and stamps, in the optimizer's state, from which it resumes.

The numbers are those of tables that are parameters, bit for bit: rows are summed, clipped and updated in one order.

Shapes: n rows in the overlay, U distinct rows touched, W row width.
"""

import itertools
from typing import Any

import torch

from modeling_longcat_lite.ngram_tables import NgramTables


class OverlayRows:
    """The rows of all tables as one (`RowStore`), those that changed in the tables' overlay.

    Args:
        tables (`NgramTables`): Of a model loaded with `ngram_tables="host"` or `"disk"`.
        width (`int`): W.
        dtype (`torch.dtype`): Of the rows while they train: the model's, which reads them.
    """

    def __init__(self, tables: NgramTables, width: int, dtype: torch.dtype):
        self.tables = tables
        self.overlay = tables.lay_over(width, dtype)
        # Stands for all rows of all tables, one behind another; it takes one number and gets the gradient.
        self.parameter = self.overlay.train(tables.num_keys)
        self._forget()

    def _forget(self) -> None:
        self.second_moments = torch.zeros(len(self.overlay))  # [n], by slot
        self.stamps = torch.zeros(len(self.overlay), dtype=torch.int32)

    def read(self, touched: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of sorted keys `[U]`: rows `[U, W]`, second moments and stamps `[U]`. The disk was read for the forward."""
        is_here, slots = self.overlay.find(touched)
        second_moments, stamps = torch.zeros(len(touched)), torch.zeros(len(touched), dtype=torch.int32)
        second_moments[is_here], stamps[is_here] = self.second_moments[slots], self.stamps[slots]
        return self.tables.rows_at(touched, self.overlay.dtype), second_moments, stamps

    def write(self, touched: torch.Tensor, rows: torch.Tensor, second_moments: torch.Tensor, step: int) -> None:
        """Sets them; rows that are new to the overlay are added."""
        slots = self.overlay.put(touched, rows)
        fresh = len(self.overlay) - len(self.stamps)
        self.second_moments = torch.nn.functional.pad(self.second_moments, (0, fresh))
        self.stamps = torch.nn.functional.pad(self.stamps, (0, fresh))
        self.second_moments[slots], self.stamps[slots] = second_moments, step

    def state(self) -> dict[str, torch.Tensor]:
        """Keys `[n]`, rows `[n, W]`, second moments and stamps `[n]`, sorted by key."""
        keys, rows = self.overlay.by_key()
        slots = self.overlay.slots
        return {"keys": keys, "rows": rows, "second_moment": self.second_moments[slots], "stamp": self.stamps[slots]}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Takes up what [`state`] returned, in place of what is here."""
        self.overlay.clear()
        self.overlay.put(state["keys"], state["rows"])
        self.second_moments, self.stamps = state["second_moment"], state["stamp"]

    def replace(self, changed: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Has the rows of a delta, one entry a table, in place of what is here; nothing is remembered of them."""
        self.overlay.clear()
        for table, (row_ids, rows) in enumerate(changed):
            self.overlay.put(self.tables.keys(table, row_ids), rows)
        self._forget()

    def gradients(self) -> list[torch.Tensor]:
        """Those of each table `[any, W]`, summed: views, for a norm that is taken table by table."""
        gradient = self.parameter.grad
        if gradient is None:
            return []
        _, bounds = self.tables.by_table(gradient._indices()[0])
        return [gradient._values()[begin:end] for begin, end in itertools.pairwise(bounds)]


def overlay_rows(embedding: Any, dtype: torch.dtype) -> OverlayRows:
    """Makes the tables of an n-gram embedding train, which are no parameters of it."""
    return OverlayRows(embedding.tables, embedding.post_proj.in_features // len(embedding.tables.stored), dtype)


__all__ = ["OverlayRows", "overlay_rows"]
