# SPDX-License-Identifier: Apache-2.0
"""Folders and files that are whole at any moment: written beside their place, where an older one stays until then."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced_folder(output: Path) -> Iterator[Path]:
    """Gives a new folder to fill, which takes the place of `output` when the block ends without an error.

    An older `output` is renamed aside, not removed, before the new one takes its name, and comes back if that fails.
    A process that is killed between the two leaves it as `.NAME.old`; the next call puts it back.

    Args:
        output (`Path`): Folder to write; its parents are made.
    """
    output = output.absolute()
    new, old = (output.with_name(f".{output.name}.{state}") for state in ("partial", "old"))
    output.parent.mkdir(parents=True, exist_ok=True)
    if old.exists() and not output.exists():
        old.rename(output)
    for left_by_a_killed_process in (new, old):
        shutil.rmtree(left_by_a_killed_process, ignore_errors=True)
    new.mkdir()
    try:
        yield new
        if output.exists():
            output.rename(old)
        new.rename(output)
    except BaseException:
        if old.exists() and not output.exists():
            old.rename(output)
        shutil.rmtree(new, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def write_beside(path: Path, content: bytes) -> None:
    """Write beside `path` and rename, so that a reader never finds half of it."""
    beside = path.with_name(f".{path.name}.partial")
    beside.write_bytes(content)
    beside.replace(path)


__all__ = ["replaced_folder", "write_beside"]
