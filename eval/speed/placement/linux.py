# SPDX-License-Identifier: Apache-2.0
"""What Linux knows of a process and of its files: memory, reads, and the page cache, without privileges.

Memory and reads are those of this process. Files can be evicted from the page cache, read into it and looked up in it;
single rows of them can be read without a model, cold, as a measure of the drive.

`posix_fadvise(DONTNEED)` keeps pages that are dirty or mapped. Hence files are first written out, and this process's
own mappings of them let go of their pages, which are read again when they are touched.

Shapes: R rows of a table.
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

MAPS, STATUS, IO = Path("/proc/self/maps"), Path("/proc/self/status"), Path("/proc/self/io")
MEMORY = Path("/proc/meminfo")
INTERVAL = 0.005  # seconds between two looks at memory
CHUNK = 16 * 2**20  # bytes read at a time

# `mmap.madvise` works on mappings made with `mmap` only; those of safetensors are torch's own.
libc = ctypes.CDLL(None, use_errno=True)
libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)


def proc_bytes(path: Path, field: str) -> int:
    """The bytes of a line such as `MemAvailable:   1024 kB` of a file in /proc."""
    lines = dict(line.split(":", 1) for line in path.read_text().splitlines())
    return 1024 * int(lines[field].split()[0])


def available_memory() -> int:
    """Bytes that the kernel could give to a process."""
    return proc_bytes(MEMORY, "MemAvailable")


def memory() -> dict[str, int]:
    """Bytes of memory: `anonymous`, the process's own, and `file`, pages of mapped files, which can be dropped."""
    return {"anonymous": proc_bytes(STATUS, "RssAnon"), "file": proc_bytes(STATUS, "RssFile")}


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


def bytes_read() -> int:
    """Bytes that the drive has delivered to this process since it began; what the page cache had does not count."""
    lines = dict(line.split(": ") for line in IO.read_text().splitlines())
    return int(lines["read_bytes"])


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
    """Writes the files out and drops them from the page cache. Pages that another process maps remain there."""
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
            del view  # a mapping with views cannot be closed
            held, total = held + int((pages & 1).sum()), total + len(pages)
    return held / total


def can_evict(folder: Path) -> bool:
    """Whether files in `folder` leave memory when they are evicted; a file system in memory keeps them."""
    with tempfile.NamedTemporaryFile(dir=folder) as probe:
        probe.write(bytes(16 * mmap.PAGESIZE))
        probe.flush()
        evict([Path(probe.name)])
        return cached_share([Path(probe.name)]) == 0


class TableFile(NamedTuple):
    """The place of a table's rows in a file: all that a program without the model needs to read them."""

    path: str
    offset: int  # bytes, of the first row
    rows: int
    row_bytes: int


def random_rows(
    tables: Sequence[TableFile], counts: Sequence[int], generator: np.random.Generator
) -> list[np.ndarray]:
    """For each table, `[R]` distinct row numbers, drawn at random and sorted; all of a table that has fewer."""
    return [
        np.sort(generator.choice(table.rows, min(count, table.rows), replace=False, shuffle=False))
        for table, count in zip(tables, counts, strict=True)
    ]


def time_drive_reads(tables: Sequence[TableFile], batches: Sequence[Sequence[np.ndarray]]) -> list[float]:
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


__all__ = [
    "MEMORY",
    "PeakMemory",
    "TableFile",
    "available_memory",
    "bytes_read",
    "cached_share",
    "can_evict",
    "evict",
    "memory",
    "own_mappings",
    "random_rows",
    "read_in",
    "time_drive_reads",
]
