# SPDX-License-Identifier: Apache-2.0
"""Sub-tables that do not need the accelerator: in host memory, or left on disk (arXiv 2601.21204, section 4).

A token reads one row of each sub-table, 12 x 512 bytes of 58.5 GiB in the released model. Rows are gathered on the
host, each once per call, and only they move:

    "host"    the tables are read into memory once
    "disk"    the safetensors files stay where they are, mapped; the kernel is asked for all rows before the first is
              touched, so that a drive reads them side by side instead of one page fault after another

Neither is a parameter: nothing moves them with `.to()`, plans memory for them or trains them. They are part of the
state dict all the same, as views of the file, which saving streams. Rows of few bits (`ngram_quantization.py`) move
packed, and are unpacked where they are used. Rows that fine-tuning changed lie in an overlay above the tables
(`ngram_row_store.py`), which themselves are never written.

Shapes: B batch, T tokens, S sub-tables, W row width, U distinct rows, C stored columns: W, or bytes of packed rows.
"""

import functools
import itertools
import re
from collections.abc import Sequence
from typing import Any
from weakref import WeakValueDictionary

import torch

from .ngram_quantization import row_format
from .ngram_row_store import RowCache, RowOverlay
from .ngram_table_files import MappedTable, StoredTable

PLACEMENTS = ("resident", "host", "disk")
KEY_BITS = 40  # of a row's key, for its id; the table's number lies above


class NgramTables:
    """All sub-tables outside the model: ids in, rows out.

    Args:
        placement (`str`): `"host"` or `"disk"`.
        tables (`Sequence[StoredTable]`): One per sub-table, of one width and dtype.
        bits (`int` or `str`, *optional*, defaults to 16): `ngram_table_bits` of the config, see [`row_format`].
    """

    def __init__(self, placement: str, tables: Sequence[StoredTable], bits: int | str = 16):
        kinds = {(table.dtype, table.shape[1]) for table in tables}
        if len(kinds) != 1:
            raise ValueError(f"The tables in {tables[0].path} differ in dtype or width; those of one model do not.")
        self.placement, self.stored, self.row_format = placement, list(tables), row_format(bits)
        ((self.dtype, self.columns),) = kinds
        self.kept: RowCache | None = None
        self.overlay: RowOverlay | None = None
        self.open()

    def open(self):
        """Maps the files, or reads them into memory."""
        self.mapped = [MappedTable(table) for table in self.stored]
        if self.placement == "disk":
            self.rows = [table.rows for table in self.mapped]
        else:
            self.rows = [table.read_all() for table in self.mapped]
            self.mapped = []
        self.handle = next(HANDLES)
        OPEN[self.handle] = self

    def follow(self, tables: Sequence[StoredTable]):
        """Goes on with the same rows in other files, into which they were written: those in memory are not read."""
        self.stored = list(tables)
        if self.placement == "disk":
            self.mapped = [MappedTable(table) for table in self.stored]
            self.rows = [table.rows for table in self.mapped]

    def __getstate__(self) -> dict[str, Any]:
        # Another process maps the file for itself; the pages are shared through the kernel's cache.
        return {
            "placement": self.placement,
            "tables": self.stored,
            "bits": self.row_format.bits,
            "overlay": self.overlay,
        }

    def __setstate__(self, state: dict[str, Any]):
        overlay = state.pop("overlay")
        self.__init__(**state)  # type: ignore[misc]
        self.overlay = overlay

    def tensors(self) -> list[torch.Tensor]:
        """The tables themselves `[rows, C]`, to be saved; on disk, views of the file."""
        self.check()
        return [rows.view(self.dtype) for rows in self.rows]

    def check(self):
        """Raises a `ValueError` that names the file and the table if one has changed on disk."""
        for table in self.mapped:
            table.check()

    def prefetch(self, ids: torch.Tensor):
        """Asks for the rows of `[S, B, T]` ids without waiting; nothing to do in host memory."""
        self.check()
        for table, of_table in zip(self.mapped, ids.cpu().unbind(), strict=False):
            table.ask_for(of_table.unique())

    def gather(self, ids: torch.Tensor, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """Rows of `[S, B, T]` ids side by side: `[B, T, S * W]` on `device`, each distinct row moved once."""
        self.check()
        batch, length = ids.shape[1:]
        # One number per table and row, so that one pass finds the distinct ones, table by table.
        firsts = torch.arange(len(ids)) << KEY_BITS
        distinct, places = (ids.cpu().flatten(1) + firsts[:, None]).unique(return_inverse=True)  # [U], [S, B T]
        if self.kept is None:
            moved = self.read(distinct, device)  # [U, C]
        else:  # on the device of a model that may have moved since
            kept = self.kept
            moved = kept.complete(distinct, places, lambda keys: self.read(keys, kept.rows.device)).to(device)
        # From [S, B T] to the token's rows one behind another.
        order = places.t().reshape(-1).to(device, non_blocking=True)
        values = self.row_format.unpack(moved, dtype)  # [U, W]
        if self.overlay is None:
            return values.index_select(0, order).view(batch, length, -1)
        return self.overlay.look_up(self.overlay.over(distinct, values), order, distinct).view(batch, length, -1)

    @property
    def num_bytes(self) -> int:
        """What the tables take where they lie."""
        return sum(table.num_bytes for table in self.stored)

    def rows_of(self, table: int, row_ids: torch.Tensor) -> torch.Tensor:
        """Rows of one table, by sorted ids `[R]`: `[R, W]` float32 on the host."""
        return self.rows_at(self.keys(table, row_ids), torch.float32)

    def rows_at(self, keys: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The rows of sorted keys `[U]`, changed ones as they are now: `[U, W]` on the host."""
        rows = self.below_at(keys, dtype)
        return rows if self.overlay is None else self.overlay.over(keys, rows)

    def below_at(self, keys: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """As [`rows_at`], but as they are in the tables, whatever lies over them."""
        self.check()
        return self.row_format.unpack(self.read(keys, torch.device("cpu")), dtype)

    def keys(self, table: int, row_ids: torch.Tensor) -> torch.Tensor:
        """What rows of one table, by ids `[R]`, are called among those of all."""
        return row_ids + (table << KEY_BITS)

    @property
    def num_keys(self) -> int:
        """Above the key of every row."""
        return len(self.stored) << KEY_BITS

    def lay_over(self, width: int, dtype: torch.dtype) -> RowOverlay:
        """The overlay for rows of `dtype`; the one that is there already has its rows in it."""
        below, self.overlay = self.overlay, RowOverlay(width, dtype)
        if below is not None:
            self.overlay.put(*below.by_key())
        return self.overlay

    def change_rows(self, changed: Sequence[tuple[torch.Tensor, torch.Tensor]], width: int):
        """Lays rows over the tables, ids `[n]` and values `[n, W]` for each; in the widest dtype of all so far."""
        rows = [values for row_ids, values in changed if len(row_ids)]
        dtypes = {values.dtype for values in rows} | ({self.overlay.dtype} if self.overlay else set())
        if not rows:
            return
        dtype = functools.reduce(torch.promote_types, dtypes)
        overlay = self.overlay if self.overlay and self.overlay.dtype == dtype else self.lay_over(width, dtype)
        for table, (row_ids, values) in enumerate(changed):
            overlay.put(self.keys(table, row_ids), values)

    def changed_rows(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """What is laid over each table: sorted ids `[n]` and values `[n, W]`; none without an overlay."""
        if self.overlay is None:
            return []
        keys, rows = self.overlay.by_key()
        wanted, bounds = self.by_table(keys)
        return [(ids, rows[a:b]) for ids, (a, b) in zip(wanted, itertools.pairwise(bounds), strict=True)]

    def by_table(self, keys: torch.Tensor) -> tuple[list[torch.Tensor], list[int]]:
        """Sorted keys as row ids of each table, and where each table begins among them, with the end behind."""
        firsts = torch.arange(len(self.stored) + 1) << KEY_BITS
        bounds = torch.searchsorted(keys, firsts).tolist()
        return [keys[a:b] - (i << KEY_BITS) for i, (a, b) in enumerate(itertools.pairwise(bounds))], bounds

    def read(self, keys: torch.Tensor, device: torch.device) -> torch.Tensor:
        """The rows of sorted keys `[U]` as they are stored: `[U, C]` on `device`."""
        wanted, bounds = self.by_table(keys)
        for table, row_ids in zip(self.mapped, wanted, strict=False):  # none in host memory
            table.ask_for(row_ids)
        # Fresh memory, aligned whatever the file's offsets are; pinned, so that the copy runs beside computation.
        row_bytes = self.columns * self.dtype.itemsize
        staging = torch.empty(len(keys), row_bytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
        for rows, row_ids, (a, b) in zip(self.rows, wanted, itertools.pairwise(bounds), strict=True):
            torch.index_select(rows, 0, row_ids, out=staging[a:b])
        return staging.view(self.dtype).to(device, non_blocking=True)

    def keep(self, row_ids: Sequence[torch.Tensor], device: torch.device) -> RowCache:
        """Keeps some rows of each table, `[any]` ids each, on `device`: they are read no more."""
        keys = torch.cat([self.keys(table, ids.cpu()) for table, ids in enumerate(row_ids)]).unique()
        self.check()
        self.kept = RowCache(keys, self.read(keys, device))
        return self.kept


HANDLES = itertools.count()
# A compiled graph holds numbers and tensors, no objects: it names the tables by number.
OPEN: WeakValueDictionary[int, NgramTables] = WeakValueDictionary()


# Named after the module: as remote code it can be loaded more than once, each time with its own tables. torch takes
# only ASCII letters, digits and `_`; a folder's name, which is part of the module's, may hold any character.
OPERATION = re.sub(r"[^\w.]", lambda found: f"_{ord(found[0]):x}_", __name__, flags=re.ASCII)
OPERATION = OPERATION.replace(".", "_") + "::gather_rows"


# The lookup leaves the device: a CUDA graph has to end before it and begin again behind it.
@torch.library.custom_op(OPERATION, mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def gather_rows(ids: torch.Tensor, like: torch.Tensor, handle: int) -> torch.Tensor:
    """[`NgramTables.gather`] as one operation of a graph, in the dtype and on the device of `like` `[B, T, S * W]`."""
    return OPEN[handle].gather(ids, like.device, like.dtype)


@gather_rows.register_fake
def _(ids, like, handle):
    return like.new_empty(like.shape)


__all__ = ["PLACEMENTS", "NgramTables", "gather_rows"]
