# SPDX-License-Identifier: Apache-2.0
"""Figures as PNG files."""

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from training.folder_replacement import write_beside

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_figure(figure: "Figure", path: Path) -> None:
    """Writes a figure as PNG beside `path` and renames."""
    drawn = BytesIO()
    figure.savefig(drawn, dpi=120, format="png")
    write_beside(path, drawn.getvalue())


__all__ = ["save_figure"]
