# SPDX-License-Identifier: Apache-2.0
"""Files that are whole or not there."""

from pathlib import Path


def write_beside(path: Path, content: bytes) -> None:
    """Write beside `path` and rename, so that a reader never finds half of it."""
    beside = path.with_name(f".{path.name}.partial")
    beside.write_bytes(content)
    beside.replace(path)


__all__ = ["write_beside"]
