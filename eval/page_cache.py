# SPDX-License-Identifier: Apache-2.0
"""What the kernel holds of a file: evicted, read in, counted. Linux, without privileges.

`posix_fadvise(DONTNEED)` leaves pages that are dirty or mapped. Hence files are written out first, and this process's
own mappings of them let go of their pages, which come back from the file when they are touched again.
"""

import ctypes
import mmap
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

MAPS = Path("/proc/self/maps")
CHUNK = 16 * 2**20  # bytes read at a time

# `mmap.madvise` works on mappings made with `mmap` only; those of safetensors are torch's own.
libc = ctypes.CDLL(None, use_errno=True)
libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)


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


__all__ = ["cached_share", "can_evict", "evict", "own_mappings", "read_in"]
