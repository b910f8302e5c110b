# SPDX-License-Identifier: Apache-2.0
"""A report as JSON and Markdown, side by side, each written whole or not at all."""

import json
from collections.abc import Sequence
from pathlib import Path

from training.folder_replacement import write_beside


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """First column to the left, numbers to the right."""
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def write_whole(path: Path, text: str) -> None:
    """Writes `text` beside `path` and renames, so that `path` is never half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_beside(path, text.encode())


def write_report(output: Path, name: str, results: dict, markdown: str) -> list[Path]:
    """Writes `{name}.json` and `{name}.md` into the folder `output`; returns their paths."""
    paths = [output / f"{name}.json", output / f"{name}.md"]
    write_whole(paths[0], json.dumps(results, indent=2) + "\n")
    write_whole(paths[1], markdown)
    return paths


__all__ = ["markdown_table", "write_report", "write_whole"]
