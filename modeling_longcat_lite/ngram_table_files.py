# SPDX-License-Identifier: Apache-2.0
"""N-gram tables in safetensors files: where they are, and their rows as bytes through a memory map.

    stored = find_tables(files, names, rows=[1793, 1795], width=16)    from the headers; nothing is read
    table = MappedTable(stored[0])
    table.ask_for(row_ids)                                             the kernel starts to read pages
    table.rows[row_ids]                                                `[U, bytes of a row]` uint8

A map reads pages of 4 KiB, not rows. Rows of 512 bytes from byte 1,000 on, with row ids 2, 3 and 20, are asked for
as two ranges of pages: rows 2 and 3 are bytes 2,024 to 3,047, in page 0; row 20 is bytes 11,240 to 11,751, in page 2.

Shapes: R rows of a table, P stored columns of a packed row, U distinct rows.
"""

import mmap
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from .checkpoint_header import Contradiction, raise_first, read_safetensors_header
from .ngram_quantization import row_format

PAGE = mmap.PAGESIZE
CHUNK = 64 * 2**20  # bytes that are read at a time into host memory


class StoredTable(NamedTuple):
    """A table `[R, P]` in a safetensors file; `offset` is the first byte of its first row in the file."""

    path: str
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def row_bytes(self) -> int:
        return self.shape[1] * self.dtype.itemsize

    @property
    def num_bytes(self) -> int:
        return self.shape[0] * self.row_bytes


def find_tables(
    files: Sequence[str], names: Sequence[str], rows: Sequence[int], width: int, bits: int | str = 16
) -> list[StoredTable]:
    """Finds tables in safetensors files, by the headers alone.

    Args:
        names (`Sequence[str]`): Of the tables' tensors.
        rows (`Sequence[int]`): R of each table.
        width (`int`): W, the values of a row.
        bits (`int` or `str`, *optional*, defaults to 16): `ngram_table_bits` of the config.

    Raises:
        `ValueError`: naming file and table, if one is missing, truncated, or of another shape or dtype; or if anything
            else in a header contradicts itself.
    """
    stored_as = row_format(bits)
    found, dtypes, columns = {}, stored_as.dtypes, stored_as.columns(width)
    contradictions: dict[str, list[Contradiction]] = {path: [] for path in files}
    for path in files:
        tensors, _ = read_safetensors_header(path, contradictions[path])
        for name in set(names) & tensors.keys():
            stored = tensors[name]
            if stored.dtype not in dtypes:
                known = ", ".join(dtypes)
                raise ValueError(f"`{name}` in {path} is stored as {stored.dtype}; tables can be {known}.")
            found[name] = StoredTable(path, name, dtypes[stored.dtype], stored.shape, stored.begin)
    for name, count in zip(names, rows, strict=True):
        if name not in found:
            raise ValueError(
                f"The checkpoint has no table `{name}` (shape {[count, columns]}), which the model needs."
            )
        if found[name].shape != (count, columns):
            shape, path = list(found[name].shape), found[name].path
            raise ValueError(f"`{name}` in {path} has shape {shape}, but the config asks for {[count, columns]}.")
    for path, in_file in contradictions.items():  # last, because the errors above are plainer
        raise_first(in_file, path)
    return [found[name] for name in names]


class MappedTable:
    """A table in its file: `rows` as bytes `[R, bytes of a row]` uint8, and a check that the file has not changed."""

    def __init__(self, stored: StoredTable):
        self.stored = stored
        # Unbuffered: the kernel needs the descriptor, and the bytes come through the map.
        self.file = Path(stored.path).open("rb", buffering=0)  # noqa: SIM115 (open as long as the table is)
        self.identity = self._identify()
        self.mapping = mmap.mmap(self.file.fileno(), 0, access=mmap.ACCESS_READ)
        # A page fault then reads one page and not its neighbours, whose rows are not wanted.
        self.mapping.madvise(mmap.MADV_RANDOM)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            flat = torch.frombuffer(self.mapping, dtype=torch.uint8, count=stored.num_bytes, offset=stored.offset)
        self.rows = flat.view(stored.shape[0], stored.row_bytes)

    def _identify(self) -> tuple[int, int, int, int]:
        by_path, by_descriptor = Path(self.stored.path).stat(), os.fstat(self.file.fileno())
        return by_path.st_dev, by_path.st_ino, by_descriptor.st_size, by_descriptor.st_mtime_ns

    def check(self):
        """Raises a `ValueError` if the file has changed, before a read past its end kills the process."""
        try:
            unchanged = self._identify() == self.identity
        except FileNotFoundError:
            unchanged = False
        if not unchanged:
            raise ValueError(
                f"{self.stored.path} was truncated, replaced or deleted while `{self.stored.name}` was read from it: "
                "put the file back and load the model again."
            )

    def ask_for(self, row_ids: torch.Tensor):
        """Asks the kernel for the pages of sorted distinct rows `[U]`, and returns without waiting for them."""
        begins = row_ids * self.stored.row_bytes + self.stored.offset
        firsts, lasts = begins // PAGE, (begins + self.stored.row_bytes - 1) // PAGE
        # One request for each range of pages that touch or overlap.
        starts = torch.ones_like(firsts, dtype=torch.bool)
        starts[1:] = firsts[1:] > lasts[:-1] + 1
        ends = torch.cat([starts[1:], starts[:1]])
        descriptor = self.file.fileno()
        for first, last in zip(firsts[starts].tolist(), lasts[ends].tolist(), strict=True):
            os.posix_fadvise(descriptor, first * PAGE, (last - first + 1) * PAGE, os.POSIX_FADV_WILLNEED)

    def read_all(self) -> torch.Tensor:
        """Reads the table into memory, as bytes `[R, bytes of a row]`."""
        rows = torch.empty(self.stored.shape[0], self.stored.row_bytes, dtype=torch.uint8)
        buffer = memoryview(rows.numpy().data).cast("B")
        self.file.seek(self.stored.offset)
        for begin in range(0, len(buffer), CHUNK):
            piece = buffer[begin : begin + CHUNK]
            if self.file.readinto(piece) != len(piece):
                raise ValueError(f"{self.stored.path} is truncated inside `{self.stored.name}`. Download it again.")
        return rows


__all__ = ["CHUNK", "PAGE", "MappedTable", "StoredTable", "find_tables"]
