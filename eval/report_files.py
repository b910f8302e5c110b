# SPDX-License-Identifier: Apache-2.0
"""A report as JSON and Markdown, side by side."""

import json
from collections.abc import Sequence
from pathlib import Path


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """First column to the left, numbers to the right."""
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def write_report(output: Path, name: str, results: dict, markdown: str) -> list[Path]:
    """Writes `{name}.json` and `{name}.md` into the folder `output`; returns their paths."""
    output.mkdir(parents=True, exist_ok=True)
    paths = [output / f"{name}.json", output / f"{name}.md"]
    paths[0].write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    paths[1].write_text(markdown, encoding="utf-8")
    return paths


__all__ = ["markdown_table", "write_report"]
