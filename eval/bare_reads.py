# SPDX-License-Identifier: Apache-2.0
"""Rows read from the tables' files with nothing around it: what the drive and the kernel take by themselves."""

import mmap
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from eval.large_tables import StoredRows


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


__all__ = ["random_rows", "time_bare_reads"]
