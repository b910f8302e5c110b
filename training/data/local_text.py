# SPDX-License-Identifier: Apache-2.0
"""Real text without a download: files that the user names, or the sources of Python's standard library.

A document is a file. The same Python gives the same documents in the same order.
"""

import sysconfig
from collections.abc import Iterator
from pathlib import Path

# Generated tables, test data, and folders that some distributions of Python leave out.
SKIPPED_FOLDERS = frozenset(
    {"__pycache__", "dist-packages", "encodings", "idlelib", "lib2to3", "site-packages", "test", "tests", "turtledemo"}
)


def standard_library_files() -> list[Path]:
    """Sources of the running Python's standard library that are the same on all machines, sorted by path."""
    root = Path(sysconfig.get_path("stdlib"))
    files = []
    for path in root.rglob("*.py"):
        inside = path.relative_to(root)
        is_built = inside.name.startswith("_sysconfigdata") or any(part.startswith("config-") for part in inside.parts)
        if not is_built and SKIPPED_FOLDERS.isdisjoint(inside.parts):
            files.append(path)
    return sorted(files, key=lambda path: path.relative_to(root).as_posix())


def read_document(path: Path) -> str:
    """The text of a file.

    Raises:
        `ValueError`: naming the file if it does not exist, is not UTF-8, or is empty.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not text in UTF-8 ({error})") from error
    if not text.strip():
        raise ValueError(f"{path}: the file has no text")
    return text


def documents(files: list[Path] | None = None) -> Iterator[tuple[str, str]]:
    """Yield (name, text) of each given file, or of each file of the standard library that is not empty."""
    if files:
        for path in files:
            yield path.name, read_document(path)
        return
    root = Path(sysconfig.get_path("stdlib"))
    for path in standard_library_files():
        if path.stat().st_size > 1:
            yield path.relative_to(root).as_posix(), read_document(path)


__all__ = ["documents", "read_document", "standard_library_files"]
