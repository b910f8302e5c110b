# SPDX-License-Identifier: Apache-2.0
"""."""

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

CHUNK = 64 * 2**20  # bytes read at a time into host memory


class StoredTable(NamedTuple):
    """Where a table lies in a safetensors file."""

    path: str
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int  # bytes, of its first row in the file

    @property
    def row_bytes(self) -> int:
        return self.shape[1] * self.dtype.itemsize

    @property
    def num_bytes(self) -> int:
        return self.shape[0] * self.row_bytes


def find_tables(
    files: Sequence[str], names: Sequence[str], rows: Sequence[int], width: int, bits: int | str = 16
) -> list[StoredTable]:
    """The tables called `names`, `[rows, columns]`, in safetensors `files`, from the headers alone.

    Raises:
        `ValueError`: naming file and table: missing, of another shape or dtype, or cut off; or what else contradicts
            itself in a header.
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
    for path, of_file in contradictions.items():  # last: what is said of a table is plainer
        raise_first(of_file, path)
    return [found[name] for name in names]


class MappedTable:
    """A table in its file: rows as bytes `[rows, row_bytes]`, and the check that the file is still that one."""

    def __init__(self, stored: StoredTable):
        self.stored = stored
        # Unbuffered: the descriptor is for the kernel, the bytes come through the mapping.
        self.file = Path(stored.path).open("rb", buffering=0)  # noqa: SIM115 (as long as the table is)
        self.identity = self._identify()
        self.mapping = mmap.mmap(self.file.fileno(), 0, access=mmap.ACCESS_READ)
        # A fault brings its own page alone, not its neighbours, of which no row is wanted.
        self.mapping.madvise(mmap.MADV_RANDOM)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            flat = torch.frombuffer(self.mapping, dtype=torch.uint8, count=stored.num_bytes, offset=stored.offset)
        self.rows = flat.view(stored.shape[0], stored.row_bytes)

    def _identify(self) -> tuple[int, int, int, int]:
        by_path, by_descriptor = Path(self.stored.path).stat(), os.fstat(self.file.fileno())
        return by_path.st_dev, by_path.st_ino, by_descriptor.st_size, by_descriptor.st_mtime_ns

    def check(self):
        """Raises a `ValueError` if the file has changed, before a read beyond its end could kill the process."""
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
        """Has the kernel read the pages of sorted distinct rows `[U]`, and returns without waiting for them."""
        begins = row_ids * self.stored.row_bytes + self.stored.offset
        firsts, lasts = begins // PAGE, (begins + self.stored.row_bytes - 1) // PAGE
        # One request for pages that touch or overlap.
        starts = torch.ones_like(firsts, dtype=torch.bool)
        starts[1:] = firsts[1:] > lasts[:-1] + 1
        ends = torch.cat([starts[1:], starts[:1]])
        descriptor = self.file.fileno()
        for first, last in zip(firsts[starts].tolist(), lasts[ends].tolist(), strict=True):
            os.posix_fadvise(descriptor, first * PAGE, (last - first + 1) * PAGE, os.POSIX_FADV_WILLNEED)

    def read_all(self) -> torch.Tensor:
        """The table in memory, as bytes."""
        rows = torch.empty(self.stored.shape[0], self.stored.row_bytes, dtype=torch.uint8)
        buffer = memoryview(rows.numpy().data).cast("B")
        self.file.seek(self.stored.offset)
        for begin in range(0, len(buffer), CHUNK):
            piece = buffer[begin : begin + CHUNK]
            if self.file.readinto(piece) != len(piece):
                raise ValueError(f"{self.stored.path} is truncated inside `{self.stored.name}`. Download it again.")
        return rows


__all__ = ["CHUNK", "PAGE", "MappedTable", "StoredTable", "find_tables"]
