# SPDX-License-Identifier: Apache-2.0
"""A report as JSON and Markdown, side by side, each written whole or not at all."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from modeling_longcat_lite.whole_files import whole_file, write_whole


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """First column to the left, numbers to the right."""
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def write_report(output: Path, name: str, results: dict, markdown: str) -> list[Path]:
    """Writes `{name}.json` and `{name}.md` into the folder `output`; returns their paths."""
    paths = [output / f"{name}.json", output / f"{name}.md"]
    write_whole(paths[0], json.dumps(results, indent=2) + "\n")
    write_whole(paths[1], markdown)
    return paths


def spoken_path(path: str) -> str:
    """A path without what only one machine has: the last two names of an absolute one."""
    return "/".join(Path(path).parts[-2:]) if Path(path).is_absolute() else path


if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_figure(figure: "Figure", path: Path) -> None:
    """Writes a figure as PNG, whole or not at all."""
    with whole_file(path) as beside:
        figure.savefig(beside, dpi=120, format="png")


__all__ = ["markdown_table", "save_figure", "spoken_path", "write_report"]
