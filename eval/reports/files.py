# SPDX-License-Identifier: Apache-2.0
"""A report: `NAME.json` for programs, `NAME.md` for people and `NAME.png`, its figure. Each is written whole or not.

write_report(output, "step_time", results, markdown, figure)     # the Markdown shows `![Times](step_time.png)`
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modeling_longcat_lite.whole_files import whole_file, write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is aligned to the left and whose other columns are aligned to the right."""
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def format_table(columns: Sequence[tuple[str, str]], rows: Iterable[Mapping[str, Any]]) -> str:
    """A `markdown_table` from (header, format) pairs such as `("loss", "{loss:.4f}")` and the values of each row."""
    return markdown_table([name for name, _ in columns], [[cell.format(**row) for _, cell in columns] for row in rows])


def portable_path(path: str | Path) -> str:
    """A path as reports show it, without what only one machine has: of an absolute path, the last two names."""
    return "/".join(Path(path).parts[-2:]) if Path(path).is_absolute() else str(path)


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure as PNG."""
    with whole_file(path) as beside:
        figure.savefig(beside, dpi=120, format="png")


def write_report(
    output: Path, name: str, results: dict[str, Any], markdown: str, figure: "Figure | None" = None
) -> list[Path]:
    """Write a report and its figure, all with the same name.

    Args:
        output (`Path`): Folder, which is made if necessary.
        name (`str`): Name of the files, without an ending.
        results (`dict`): What the JSON file holds.
        markdown (`str`): The report for people, which shows `{name}.png`.
        figure (`matplotlib.figure.Figure`, *optional*): The figure.

    Returns:
        `list[Path]`: What was written.
    """
    paths = [output / f"{name}.json", output / f"{name}.md"]
    write_whole(paths[0], json.dumps(results, indent=2) + "\n")
    write_whole(paths[1], markdown)
    if figure is not None:
        paths.append(output / f"{name}.png")
        save_figure(figure, paths[-1])
    return paths


__all__ = ["format_table", "markdown_table", "portable_path", "save_figure", "write_report"]
