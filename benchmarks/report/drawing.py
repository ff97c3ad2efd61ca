"""Shared parts of all figures: styles for every colour vision, lines with intervals, files with reproducible bytes."""

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import matplotlib.style
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from benchmarks.config import LossSpec, Reference
from benchmarks.protocols import eps_text
from benchmarks.report.statistics import Interval
from benchmarks.store import write_bytes

# Okabe and Ito, Color Universal Design, 2008: colours that can be distinguished with any colour vision.
BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
BLACK, GREY = "#000000", "#767676"
# Colour and marker of a user's own losses.
OWN_LOOKS = ((GREEN, "^"), (PURPLE, "D"), ("#E69F00", "v"))
LINE_STYLES = ("-", "--", ":", "-.")
MARKERS_PER_LINE = 10
# Tick labels that are nearer to each other than this share of their axis are rotated.
CROWDED = 0.1

# A user's matplotlibrc has no influence: see `style`.
STYLE: Mapping[str, object] = MappingProxyType(
    {
        "font.family": "DejaVu Sans",  # which comes with matplotlib
        "font.size": 10,
        "axes.titlesize": 11,
        "legend.fontsize": 9.5,
        "legend.frameon": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "image.composite_image": False,  # images that share axes stay images in an SVG
        "svg.hashsalt": "art_hrloss",  # otherwise the identifiers in an SVG are random
    }
)


@dataclass(frozen=True)
class Picture:
    """Figure with its title, caption and alternative text."""

    name: str
    """The name of its files, such as figure_1-mnist."""
    title: str
    caption: str
    """Description of the lines and the shading, with the numbers of images and seeds."""
    alt: str
    """Alternative text with the values, for readers who do not see the figure."""
    figure: Figure

    @cached_property
    def png(self) -> bytes:
        """The figure as a file of pixels; the same figure gives the same bytes."""
        return _rendered(self.figure, "png", {"Software": None})

    @cached_property
    def svg(self) -> bytes:
        """The figure as a file of lines; the same figure gives the same bytes."""
        return _rendered(self.figure, "svg", {"Date": None, "Creator": None})


@dataclass(frozen=True)
class Line:
    """Style of a line, which can be identified without its colour as well."""

    label: str
    color: str
    marker: str
    style: str
    hollow: bool
    """True for markers without filling."""
    width: float
    """Width of the line, in points."""
    size: float
    """Size of the markers, in points."""


@dataclass(frozen=True)
class Panel:
    """Axes with lines; each line is a mapping from x to an interval over the seeds."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[tuple[Line, Mapping[float, Interval]]]
    log: bool = False
    """True for a logarithmic y axis; otherwise the axis is from 0 to 1, for accuracies."""
    ticks: bool = False
    """True for a tick at every x of the lines."""
    level: float | None = None
    """The y of a horizontal line."""


@contextmanager
def style() -> Iterator[None]:
    """Use matplotlib's defaults and STYLE within the context, independently of earlier settings."""
    with matplotlib.style.context(["default", dict(STYLE)]):
        yield


def line_for(loss: LossSpec, label: str, position: int = 0) -> Line:
    """Return the style of a line: colour, marker and width by training loss, dashes and filling by position."""
    hollow = position % 2 == 1
    style = LINE_STYLES[position % len(LINE_STYLES)]
    # Lines often coincide: CE is drawn first and wider, and hollow markers are larger than the filled ones.
    if loss.name == "ce":
        return Line(label, BLUE, "o", style, hollow, width=2.6, size=7 + 4 * hollow)
    if isinstance(loss.name, Reference):
        color, marker = OWN_LOOKS[int(loss.name.digest, 16) % len(OWN_LOOKS)]
        return Line(label, color, marker, style, hollow, width=1.5, size=5 + 4 * hollow)
    return Line(label, VERMILLION, "s", style, hollow, width=1.5, size=4 + 4 * hollow)


def line_figure(panels: Sequence[Panel]) -> Figure:
    """Return a figure with panels side by side and one legend of all their lines below."""
    # At least as wide as a legend with two columns.
    figure = Figure(figsize=(max(6.4, 4.4 * len(panels) + 0.4), 4.6), layout="constrained")
    share = len({(panel.y_label, panel.log) for panel in panels}) == 1
    axes_row = figure.subplots(1, len(panels), squeeze=False, sharey=share)[0]
    for axes, panel in zip(axes_row, panels, strict=True):
        _draw_panel(axes, panel, sharing=panels if share else [panel])
        if share:
            axes.label_outer()
    draw_legend(figure, list(axes_row))
    return settled(figure)


def draw_legend(figure: Figure, all_axes: Sequence[Axes]) -> None:
    """Draw one legend under all axes, with every label once."""
    by_label = {str(h.get_label()): h for axes in all_axes for h in axes.get_legend_handles_labels()[0]}
    columns = min(2, len(by_label))
    figure.legend(handles=by_label.values(), loc="outside lower center", ncols=columns, handlelength=3.5)


def _draw_panel(axes: Axes, panel: Panel, *, sharing: Sequence[Panel]) -> None:
    """Draw one panel; a logarithmic y axis has the range of all panels that share it."""
    axes.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
    axes.grid(color=GREY, alpha=0.25, linewidth=0.6)
    if panel.ticks:
        ticks = sorted({x for _, points in panel.lines for x in points})
        axes.set_xticks(ticks, [*map(eps_text, ticks)], rotation=60 if _crowded(ticks) else 0)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    if panel.level is not None:
        axes.axhline(panel.level, color=GREY, linewidth=1.2)
    for line, points in panel.lines:
        draw_line(axes, line, points)
    if not panel.log:
        axes.set_ylim(-0.02, 1.02)
        return
    axes.set_yscale("log", nonpositive="clip")
    # An interval may reach below 0, which a logarithmic axis cannot show: the range follows the means.
    lines = [line for each in sharing for line in each.lines]
    means = [point.mean for _, points in lines for point in points.values() if point.mean > 0]
    if means:
        axes.set_ylim(min(means) / 2, max(means) * 2)


def _crowded(ticks: Sequence[float]) -> bool:
    """Return true if horizontal tick labels would overlap."""
    gaps = np.diff(ticks)
    return len(ticks) > 6 or bool((gaps < CROWDED * gaps.sum()).any())


def draw_line(axes: Axes, line: Line, points: Mapping[float, Interval]) -> None:
    """Draw the means of a line by x, with their intervals shaded."""
    x = np.array(list(points))
    mean = np.array([point.mean for point in points.values()])
    half_width = np.array([point.half_width for point in points.values()])
    plot_line(axes, line, x, mean, markevery=max(1, math.ceil(len(x) / MARKERS_PER_LINE)))
    if np.isfinite(half_width).any():
        low, high = mean - half_width, mean + half_width
        axes.fill_between(x, low, high, color=line.color, alpha=0.15, linewidth=0.8, linestyle=line.style)


def plot_line(axes: Axes, line: Line, x: npt.ArrayLike, y: npt.ArrayLike, **options: Any) -> None:
    """Plot points in the colour, markers and width of a line; further options are matplotlib's."""
    axes.plot(
        x,
        y,
        label=line.label,
        color=line.color,
        linestyle=line.style,
        linewidth=line.width,
        marker=line.marker,
        markersize=line.size,
        markerfacecolor="none" if line.hollow else line.color,
        **options,
    )


def seeds_note(seeds: Sequence[int], what: str = "Mean", *, intervals: str = "") -> str:
    """
    Return a sentence for a caption on the number of seeds.

    :param seeds: The number of seeds behind each value that is drawn.
    :param what: How the seeds are combined, such as "Mean" or "Sum".
    :param intervals: How the intervals are drawn, such as "shaded"; empty if they are not drawn.
    """
    fewest, most = min(seeds), max(seeds)
    if most == 1:
        return "One seed, so there is no interval." if intervals else "One seed."
    number = f"{most} seeds" if fewest == most else f"{fewest} to {most} seeds (the others are not finished)"
    return f"{what} over {number}" + (f"; {intervals}: 95% Student t interval over the seeds." if intervals else ".")


def values_in_words(panels: Sequence[Panel]) -> str:
    """Return the first and the last mean of each line as text, panel by panel."""
    sentences = []
    for panel in panels:
        lines = []
        for line, points in panel.lines:
            x, values = list(points), list(points.values())
            ends = [f"{values[i].mean:.3g} at {eps_text(x[i])}" for i in ((0, -1) if len(x) > 1 else (0,))]
            lines.append(f"{line.label}: {', '.join(ends)}")
        sentences.append(f"{panel.title}, {panel.y_label} by {panel.x_label}. {'; '.join(lines)}.")
    return " ".join(sentences)


def settled(figure: Figure) -> Figure:
    """
    Return the figure with its layout computed once and fixed.

    A layout that is computed again at each drawing may move a little, and would change the bytes of the files.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def save(picture: Picture, folder: Path) -> None:
    """
    Write NAME.png and NAME.svg.

    :raises StoreError: If they cannot be written.
    """
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", picture.name).strip("-")  # the name of a user's data set has a colon
    write_bytes(folder / f"{name}.png", picture.png)
    write_bytes(folder / f"{name}.svg", picture.svg)


def _rendered(figure: Figure, kind: str, metadata: dict[str, None]) -> bytes:
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
    return buffer.getvalue()
