# SPDX-License-Identifier: Apache-2.0
"""What the kernel holds of a file: evicted, read in, counted. Linux, without privileges.

`posix_fadvise(DONTNEED)` leaves pages that are dirty or mapped. Hence files are written out first, and this process's
own mappings of them let go of their pages, which come back from the file when they are touched again.
"""

import ctypes
import mmap
import os
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np

MAPS = Path("/proc/self/maps")
CHUNK = 16 * 2**20  # bytes read at a time

# `mmap.madvise` works on mappings made with `mmap` only; those of safetensors are torch's own.
libc = ctypes.CDLL(None, use_errno=True)
libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)


class StoredRows(NamedTuple):
    """Where a table lies: what a program that knows nothing of the model needs to read its rows."""

    path: str
    offset: int  # bytes, of the first row
    rows: int
    row_bytes: int


def own_mappings(paths: Iterable[Path]) -> list[tuple[int, int]]:
    """Address and length of every mapping of `paths` in this process."""
    wanted = {str(Path(path).resolve()) for path in paths}
    found = []
    for line in MAPS.read_text().splitlines():
        addresses, *_, name = line.split(maxsplit=5)
        if name in wanted:
            begin, end = (int(address, 16) for address in addresses.split("-"))
            found.append((begin, end - begin))
    return found


def evict(paths: Iterable[Path]):
    """Drops the files from the page cache, written out first. Pages that another process maps stay."""
    paths = list(paths)
    for address, length in own_mappings(paths):
        if libc.madvise(address, length, mmap.MADV_DONTNEED):
            raise OSError(ctypes.get_errno(), "madvise(MADV_DONTNEED) on a mapped table")
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fdatasync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def read_in(paths: Iterable[Path]):
    """Reads the files from end to end, so that the page cache holds them, memory permitting."""
    buffer = bytearray(CHUNK)
    for path in paths:
        with Path(path).open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def cached_share(paths: Iterable[Path]) -> float:
    """The share of the files' pages that the page cache holds, 0 to 1."""
    held = total = 0
    for path in paths:
        with Path(path).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapping:
            view = np.frombuffer(mapping, dtype=np.uint8)
            pages = np.zeros(-(-len(view) // mmap.PAGESIZE), dtype=np.uint8)
            if libc.mincore(view.ctypes.data, len(view), pages.ctypes.data):
                raise OSError(ctypes.get_errno(), "mincore on a mapped table")
            del view  # a mapping cannot be closed under it
            held, total = held + int((pages & 1).sum()), total + len(pages)
    return held / total


def can_evict(folder: Path) -> bool:
    """Whether files in `folder` leave memory when they are evicted; a file system in memory keeps them."""
    with tempfile.NamedTemporaryFile(dir=folder) as probe:
        probe.write(bytes(16 * mmap.PAGESIZE))
        probe.flush()
        evict([Path(probe.name)])
        return cached_share([Path(probe.name)]) == 0


def time_bare_reads(tables: Sequence[StoredRows], batches: Sequence[Sequence[np.ndarray]]) -> list[float]:
    """Seconds for each batch of rows, one after another; a batch is one array of row numbers for each table.

    All pages of a batch are asked for, then its rows are copied out. Opening the files does not count.
    """
    with ExitStack() as stack:
        files, views = [], []
        for table in tables:
            file = stack.enter_context(Path(table.path).open("rb", buffering=0))
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            mapping.madvise(mmap.MADV_RANDOM)
            flat = np.frombuffer(mapping, np.uint8, count=table.rows * table.row_bytes, offset=table.offset)
            files.append(file.fileno())
            views.append(flat.reshape(table.rows, table.row_bytes))
        seconds = []
        for batch in batches:
            begin = time.perf_counter()
            for table, descriptor, rows in zip(tables, files, batch, strict=True):
                for offset in (rows * table.row_bytes + table.offset).tolist():
                    os.posix_fadvise(descriptor, offset, table.row_bytes, os.POSIX_FADV_WILLNEED)
            for view, rows in zip(views, batch, strict=True):
                view[rows]
            seconds.append(time.perf_counter() - begin)
        return seconds


def random_rows(tables: Sequence[StoredRows], counts: Sequence[int], generator: np.random.Generator):
    """So many distinct rows of each table, drawn at random and sorted, or all of a table that has fewer."""
    return [
        np.sort(generator.choice(table.rows, min(count, table.rows), replace=False, shuffle=False))
        for table, count in zip(tables, counts, strict=True)
    ]


STATUS, IO = Path("/proc/self/status"), Path("/proc/self/io")

INTERVAL = 0.005  # seconds between two looks


def memory() -> dict[str, int]:
    """Bytes of memory: `anonymous`, the process's own, and `file`, pages of mapped files, which can be dropped."""
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    kinds = {"anonymous": "RssAnon", "file": "RssFile"}
    return {kind: 1024 * int(lines[field].split()[0]) for kind, field in kinds.items()}


def bytes_read() -> int:
    """Bytes that the drive has delivered to this process since it began; what the page cache had does not count."""
    lines = dict(line.split(": ") for line in IO.read_text().splitlines())
    return int(lines["read_bytes"])


class PeakMemory:
    """The most memory of each kind inside a `with` block, looked at every few milliseconds: `.bytes`."""

    def __enter__(self) -> "PeakMemory":
        self.bytes = memory()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def _look(self):
        self.bytes = {kind: max(self.bytes[kind], now) for kind, now in memory().items()}

    def _watch(self):
        while not self.ended.wait(INTERVAL):
            self._look()

    def __exit__(self, *exception):
        self.ended.set()
        self.thread.join()
        self._look()


__all__ = [
    "PeakMemory",
    "bytes_read",
    "cached_share",
    "can_evict",
    "evict",
    "memory",
    "own_mappings",
    "random_rows",
    "read_in",
    "time_bare_reads",
]
