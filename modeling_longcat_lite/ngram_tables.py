# SPDX-License-Identifier: Apache-2.0
"""Sub-tables that are not on the accelerator: in host memory, or left on disk (arXiv 2601.21204, section 4).

A token reads one row of each sub-table: 12 x 512 bytes out of 58.5 GiB in the released model. The host gathers the
rows of a call, each distinct row once, and only those rows move to the accelerator:

    "host"    the tables are read into memory once
    "disk"    the safetensors files are mapped; the kernel is asked for all rows before the first one is touched, so
              that a drive reads them in parallel instead of one page fault at a time

These tables are not parameters: `.to()` does not move them, device maps do not count them, optimizers do not train
them. They are part of the state dict as views of the files, which saving streams. Packed rows
(`ngram_quantization.py`) move packed and are unpacked where they are used. Changed rows are in an overlay
(`ngram_row_store.py`); the tables themselves are never written.

A row is known by one number, its key, so that one pass finds the distinct rows of all tables:

    key = table * 2**40 + row id        row 7 of table 2: 2 * 2**40 + 7

Shapes: B batch rows, T tokens, S sub-tables, W width of a table row, U distinct rows, R rows of a table, P stored
columns (values, or the bytes of a packed row).
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
KEY_BITS = 40  # bits of a key that hold the row id


class NgramTables:
    """All sub-tables of a model whose tables are not parameters: ids in, rows out.

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
        """Continues with other files that hold the same rows; rows in host memory are not read again."""
        self.stored = list(tables)
        if self.placement == "disk":
            self.mapped = [MappedTable(table) for table in self.stored]
            self.rows = [table.rows for table in self.mapped]

    def __getstate__(self) -> dict[str, Any]:
        # Another process maps the files itself; the kernel's page cache is shared.
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
        """The tables `[R, P]` as they are saved, without the overlay; on disk, views of the files."""
        self.check()
        return [rows.view(self.dtype) for rows in self.rows]

    def check(self):
        """Raises a `ValueError` that names file and table if a file has changed."""
        for table in self.mapped:
            table.check()

    def prefetch(self, ids: torch.Tensor):
        """Asks for the rows of `[S, B, T]` ids without waiting for them; does nothing in host memory."""
        self.check()
        for table, row_ids in zip(self.mapped, ids.cpu().unbind(), strict=False):
            table.ask_for(row_ids.unique())

    def gather(self, ids: torch.Tensor, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """Rows of `[S, B, T]` ids side by side: `[B, T, S * W]` on `device`. Each distinct row moves once."""
        self.check()
        batch, length = ids.shape[1:]
        firsts = torch.arange(len(ids)) << KEY_BITS
        distinct, places = (ids.cpu().flatten(1) + firsts[:, None]).unique(return_inverse=True)  # [U], [S, B T]
        if self.kept is None:
            moved = self.read(distinct, device)  # [U, P]
        else:  # they are where the model was when they were kept
            kept = self.kept
            moved = kept.complete(distinct, places, lambda keys: self.read(keys, kept.rows.device)).to(device)
        # From [S, B T] to the S rows of each token in a row.
        order = places.t().reshape(-1).to(device, non_blocking=True)
        values = self.row_format.unpack(moved, dtype)  # [U, W]
        if self.overlay is None:
            return values.index_select(0, order).view(batch, length, -1)
        return self.overlay.look_up(self.overlay.over(distinct, values), order, distinct).view(batch, length, -1)

    @property
    def num_bytes(self) -> int:
        """Bytes of all tables, in host memory or on disk."""
        return sum(table.num_bytes for table in self.stored)

    def rows_of(self, table: int, row_ids: torch.Tensor) -> torch.Tensor:
        """Rows of one table, by sorted ids `[R]`: `[R, W]` float32 on the host."""
        return self.rows_at(self.keys(table, row_ids), torch.float32)

    def rows_at(self, keys: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The rows of sorted keys `[U]`, with the changed rows of the overlay: `[U, W]` on the host."""
        rows = self.below_at(keys, dtype)
        return rows if self.overlay is None else self.overlay.over(keys, rows)

    def below_at(self, keys: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """As [`rows_at`], but without the overlay."""
        self.check()
        return self.row_format.unpack(self.read(keys, torch.device("cpu")), dtype)

    def keys(self, table: int, row_ids: torch.Tensor) -> torch.Tensor:
        """Keys of the rows `[any]` of one table."""
        return row_ids + (table << KEY_BITS)

    @property
    def num_keys(self) -> int:
        """One more than the largest key that a row can have."""
        return len(self.stored) << KEY_BITS

    def lay_over(self, width: int, dtype: torch.dtype) -> RowOverlay:
        """Replaces the overlay by one of `dtype` with the same rows, and returns it."""
        below, self.overlay = self.overlay, RowOverlay(width, dtype)
        if below is not None:
            self.overlay.put(*below.by_key())
        return self.overlay

    def change_rows(self, changed: Sequence[tuple[torch.Tensor, torch.Tensor]], width: int):
        """Puts rows into the overlay: ids `[n]` and values `[n, W]` for each table, in the widest dtype of all so far.

        Rows that are there already are replaced. `ngram_row_store` shows an example.
        """
        rows = [values for row_ids, values in changed if len(row_ids)]
        dtypes = {values.dtype for values in rows} | ({self.overlay.dtype} if self.overlay else set())
        if not rows:
            return
        dtype = functools.reduce(torch.promote_types, dtypes)
        overlay = self.overlay if self.overlay and self.overlay.dtype == dtype else self.lay_over(width, dtype)
        for table, (row_ids, values) in enumerate(changed):
            overlay.put(self.keys(table, row_ids), values)

    def changed_rows(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The overlay by table: sorted ids `[n]` and values `[n, W]` for each; empty without an overlay."""
        if self.overlay is None:
            return []
        keys, rows = self.overlay.by_key()
        wanted, bounds = self.by_table(keys)
        return [(ids, rows[a:b]) for ids, (a, b) in zip(wanted, itertools.pairwise(bounds), strict=True)]

    def by_table(self, keys: torch.Tensor) -> tuple[list[torch.Tensor], list[int]]:
        """Splits sorted keys by table: row ids for each, and S + 1 bounds of the tables among the keys.

        keys [3, 9, 2**40 + 4] of 3 tables    gives    ids [3, 9], [4], []    and bounds [0, 2, 3, 3]
        """
        firsts = torch.arange(len(self.stored) + 1) << KEY_BITS
        bounds = torch.searchsorted(keys, firsts).tolist()
        return [keys[a:b] - (i << KEY_BITS) for i, (a, b) in enumerate(itertools.pairwise(bounds))], bounds

    def read(self, keys: torch.Tensor, device: torch.device) -> torch.Tensor:
        """The rows of sorted keys `[U]` as stored, without the overlay: `[U, P]` on `device`."""
        wanted, bounds = self.by_table(keys)
        for table, row_ids in zip(self.mapped, wanted, strict=False):  # `mapped` is empty in host memory
            table.ask_for(row_ids)
        # New memory, because offsets in a file may be unaligned; pinned, so that the copy overlaps computation.
        row_bytes = self.columns * self.dtype.itemsize
        staging = torch.empty(len(keys), row_bytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
        for rows, row_ids, (a, b) in zip(self.rows, wanted, itertools.pairwise(bounds), strict=True):
            torch.index_select(rows, 0, row_ids, out=staging[a:b])
        return staging.view(self.dtype).to(device, non_blocking=True)

    def keep(self, row_ids: Sequence[torch.Tensor], device: torch.device) -> RowCache:
        """Keeps some rows of each table, `[any]` ids each, on `device`, from where they are read from now on."""
        keys = torch.cat([self.keys(table, ids.cpu()) for table, ids in enumerate(row_ids)]).unique()
        self.check()
        self.kept = RowCache(keys, self.read(keys, device))
        return self.kept


HANDLES = itertools.count()
# A compiled graph holds only numbers and tensors, so it refers to the tables by number.
OPEN: WeakValueDictionary[int, NgramTables] = WeakValueDictionary()


# Named after the module, because remote code can be loaded more than once, each time with its own tables. torch takes
# only ASCII letters, digits and `_`, but the module's name contains a folder's, which may have any character.
OPERATION = re.sub(r"[^\w.]", lambda found: f"_{ord(found[0]):x}_", __name__, flags=re.ASCII)
OPERATION = OPERATION.replace(".", "_") + "::gather_rows"


# The lookup leaves the device, so a CUDA graph has to end before it and another begin after it.
@torch.library.custom_op(OPERATION, mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def gather_rows(ids: torch.Tensor, like: torch.Tensor, handle: int) -> torch.Tensor:
    """[`NgramTables.gather`] as one operation of a graph, in the dtype and on the device of `like` `[B, T, S * W]`."""
    return OPEN[handle].gather(ids, like.device, like.dtype)


@gather_rows.register_fake
def _(ids, like, handle):
    return like.new_empty(like.shape)


__all__ = ["PLACEMENTS", "NgramTables", "gather_rows"]
