# SPDX-License-Identifier: Apache-2.0
"""What a figure shows, read from matplotlib as it is saved: panels, labels, ticks and series, not the bytes of a PNG.

    with drawn_figures() as figures:
        main(arguments)                                  # saves results/step_time.png
    (panel,) = figures["step_time.png"].panels
    assert panel.x_label == "ms" and panel.labels == ["step"]
    assert panel.series("step").named == {"forward": 1.5, "backward": 3.0}

Only figures that this process saves are seen.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure


@dataclass(frozen=True)
class Series:
    """One line, group of bars, cloud of points or image.

    Args:
        kind (`str`): `line`, `bars`, `points`, `segments` (`hlines`, `vlines`) or `image`.
        label (`str`): As in the legend; empty without one.
        x (`list[float]`): Places. Of horizontal bars: their lengths, as drawn to the right.
        y (`list[float]`): Values. Of horizontal bars: their places.
        values (`list`): Heights or lengths of bars; the rows of an image; `y` of everything else.
        named (`dict[str, float]`): Values of bars by the tick label nearest to each; empty for other kinds.
        errors (`list[float]`): Half the length of each error bar.
    """

    kind: str
    label: str
    x: list[float]
    y: list[float]
    values: list
    named: dict[str, float] = field(default_factory=dict)
    errors: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Panel:
    """One pair of axes, and everything that is drawn in it."""

    title: str
    x_label: str
    y_label: str
    x_ticks: list[str]
    y_ticks: list[str]
    x_scale: str
    y_scale: str
    texts: list[str]
    legend: list[str]
    all_series: list[Series]

    @property
    def labels(self) -> list[str]:
        """Labels of the series that have one, in the order of drawing; each once."""
        return list(dict.fromkeys(one.label for one in self.all_series if one.label))

    def series(self, label: str) -> Series:
        """The one series of that label."""
        found = [one for one in self.all_series if one.label == label]
        assert len(found) == 1, f"{len(found)} series are called {label!r}; labels are {self.labels}"
        return found[0]

    def of_kind(self, kind: str) -> list[Series]:
        """All series of a kind, labelled or not."""
        return [one for one in self.all_series if one.kind == kind]


@dataclass(frozen=True)
class DrawnFigure:
    """The visible panels of a figure, its title, and the labels of a legend that belongs to no panel."""

    title: str
    legend: list[str]
    panels: list[Panel]

    def panel(self, title: str) -> Panel:
        """The one panel of that title."""
        found = [one for one in self.panels if one.title == title]
        assert len(found) == 1, f"{len(found)} panels are called {title!r}: {[one.title for one in self.panels]}"
        return found[0]


@contextmanager
def drawn_figures() -> Iterator[dict[str, DrawnFigure]]:
    """Gives a dictionary that gets every figure saved inside, by its file name; a later one of a name replaces it."""
    figures: dict[str, DrawnFigure] = {}
    save = Figure.savefig

    def save_and_read(self: Figure, path: Any, **options: Any) -> None:
        save(self, path, **options)  # ticks have their labels only when they were drawn
        figures[final_name(path)] = read_figure(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", save_and_read)
        yield figures


def final_name(path: Any) -> str:
    """The file's name after `whole_file` has renamed it: `a.png` for `.a.png.partial`."""
    name = Path(path).name
    return name.removeprefix(".").removesuffix(".partial") if name.endswith(".partial") else name


def read_figure(figure: Figure) -> DrawnFigure:
    """What `figure` shows; the bars of colours that belong to images are left out."""
    shown = [axes for axes in figure.axes if axes.get_visible() and axes.get_label() != "<colorbar>"]
    legend = [text.get_text() for one in figure.legends for text in one.get_texts()]
    return DrawnFigure(figure.get_suptitle(), legend, [read_panel(axes) for axes in shown])


def read_panel(axes: Axes) -> Panel:
    """What one pair of axes shows."""
    legend = axes.get_legend()
    return Panel(
        title=axes.get_title(),
        x_label=axes.get_xlabel(),
        y_label=axes.get_ylabel(),
        x_ticks=[tick.get_text() for tick in axes.get_xticklabels()],
        y_ticks=[tick.get_text() for tick in axes.get_yticklabels()],
        x_scale=axes.get_xscale(),
        y_scale=axes.get_yscale(),
        texts=[text.get_text() for text in axes.texts if text.get_text()],
        legend=[text.get_text() for text in legend.get_texts()] if legend else [],
        all_series=read_series(axes),
    )


def read_series(axes: Axes) -> list[Series]:
    """Lines, bars, points, segments and images, in this order."""
    error_bars = [bars for one in axes.containers if (bars := error_bars_of(one))]
    owners = {id(one.lines[0]): one for one in error_bars}
    caps = {id(cap) for one in error_bars for cap in one.lines[1]}
    strokes = {id(stroke) for one in error_bars for stroke in one.lines[2]}
    found = []
    for line in axes.lines:
        if id(line) not in caps:
            owner = owners.get(id(line))
            x, y = (list(map(float, data)) for data in line.get_data(orig=False))
            found.append(Series("line", label_of(owner or line), x, y, y, errors=half_lengths(owner)))
    found += [read_bars(axes, one) for one in axes.containers if isinstance(one, BarContainer)]
    for one in axes.collections:
        if isinstance(one, PathCollection):
            x, y = np.ma.filled(one.get_offsets(), math.nan).T.tolist()
            found.append(Series("points", label_of(one), x, y, y))
        elif isinstance(one, LineCollection) and id(one) not in strokes:
            x, y = np.array([segment.mean(axis=0) for segment in one.get_segments()]).reshape(-1, 2).T.tolist()
            found.append(Series("segments", label_of(one), x, y, y))
    for image in axes.images:
        found.append(Series("image", label_of(image), [], [], np.asarray(image.get_array(), float).tolist()))
    return found


def read_bars(axes: Axes, bars: BarContainer) -> Series:
    """A group of bars, each named after the tick nearest to it."""
    boxes = [bar.get_bbox() for bar in bars]
    if bars.orientation == "vertical":
        axis, x, y = axes.xaxis, [(box.x0 + box.x1) / 2 for box in boxes], [box.y1 for box in boxes]
        places, values = x, [box.height for box in boxes]
    else:
        axis, x, y = axes.yaxis, [box.x1 for box in boxes], [(box.y0 + box.y1) / 2 for box in boxes]
        places, values = y, [box.width for box in boxes]
    ticks = [(tick.get_loc(), tick.label1.get_text()) for tick in axis.get_major_ticks()]
    names = [min((abs(where - place), name) for where, name in ticks)[1] for place in places] if ticks else []
    named = {name: float(value) for name, value in zip(names, values, strict=True)} if ticks else {}
    errors = half_lengths(error_bars_of(bars))
    return Series(
        "bars", label_of(bars), list(map(float, x)), list(map(float, y)), list(map(float, values)), named, errors
    )


def error_bars_of(container: Any) -> ErrorbarContainer | None:
    """The error bars that `container` is or has."""
    found = container.errorbar if isinstance(container, BarContainer) else container
    return found if isinstance(found, ErrorbarContainer) else None


def half_lengths(error_bars: ErrorbarContainer | None) -> list[float]:
    """Half the length of each error bar, in the units of its axis."""
    strokes = error_bars.lines[2] if error_bars else ()
    return [float(np.ptp(segment, axis=0).max()) / 2 for one in strokes for segment in one.get_segments()]


def label_of(artist: Any) -> str:
    """The label that a legend shows; matplotlib's own names begin with an underscore."""
    label = str(artist.get_label())
    return "" if label.startswith("_") else label


__all__ = ["DrawnFigure", "Panel", "Series", "drawn_figures"]
