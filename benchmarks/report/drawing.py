"""What all figures share: styles that everyone can tell apart, lines with their intervals, files of fixed bytes."""

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

# Okabe and Ito, Color Universal Design, 2008: told apart with any colour vision.
BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
BLACK, GREY = "#000000", "#767676"
# Of a user's own losses, colour and marker.
OWN_LOOKS = ((GREEN, "^"), (PURPLE, "D"), ("#E69F00", "v"))
LINE_STYLES = ("-", "--", ":", "-.")
MARKERS_PER_LINE = 10
# Labels of ticks that are nearer than this share of their axis are turned.
CROWDED = 0.1

# What the user's own matplotlibrc says plays no part: see `style`.
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
        "svg.hashsalt": "art_hrloss",  # else the identifiers in an SVG are drawn at random
    }
)


@dataclass(frozen=True)
class Picture:
    """A figure with the words that go with it."""

    name: str
    """Of its files, such as figure_1-mnist."""
    title: str
    caption: str
    """What is drawn, of how many images and seeds, and what the shading is."""
    alt: str
    """What it shows, for who does not see it."""
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
    """How a line looks, so that it is known without its colour as well."""

    label: str
    color: str
    marker: str
    style: str
    hollow: bool
    """Whether its markers are."""
    width: float
    size: float
    """Of its markers; both in points."""


@dataclass(frozen=True)
class Panel:
    """Axes with lines: each of them intervals over the seeds, by x."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[tuple[Line, Mapping[float, Interval]]]
    log: bool = False
    """Whether the y axis is logarithmic; else it is that of an accuracy, from 0 to 1."""
    ticks: bool = False
    """Whether every x of its lines has a tick."""
    level: float | None = None
    """A height at which a line is drawn across."""


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib's defaults and STYLE, whatever was set before, for as long as the context lasts."""
    with matplotlib.style.context(["default", dict(STYLE)]):
        yield


def line_for(loss: LossSpec, label: str, position: int = 0) -> Line:
    """The look of a training loss: colour, marker and width are its own, the line's style is that of the position."""
    hollow = position % 2 == 1
    style = LINE_STYLES[position % len(LINE_STYLES)]
    # Lines often lie on each other: what is drawn first is wider, and hollow markers stand around the full ones.
    if loss.name == "ce":
        return Line(label, BLUE, "o", style, hollow, width=2.6, size=7 + 4 * hollow)
    if isinstance(loss.name, Reference):
        color, marker = OWN_LOOKS[int(loss.name.digest, 16) % len(OWN_LOOKS)]
        return Line(label, color, marker, style, hollow, width=1.5, size=5 + 4 * hollow)
    return Line(label, VERMILLION, "s", style, hollow, width=1.5, size=4 + 4 * hollow)


def line_figure(panels: Sequence[Panel]) -> Figure:
    """Panels side by side, over one legend of all their lines."""
    # At least as wide as a legend of two columns.
    figure = Figure(figsize=(max(6.4, 4.4 * len(panels) + 0.4), 4.6), layout="constrained")
    share = len({(panel.y_label, panel.log) for panel in panels}) == 1
    axes_row = figure.subplots(1, len(panels), squeeze=False, sharey=share)[0]
    for axes, panel in zip(axes_row, panels, strict=True):
        _draw_panel(axes, panel, beside=panels if share else [panel])
        if share:
            axes.label_outer()
    draw_legend(figure, list(axes_row))
    return settled(figure)


def draw_legend(figure: Figure, all_axes: Sequence[Axes]) -> None:
    """One legend under all axes, of every label once."""
    by_label = {str(h.get_label()): h for axes in all_axes for h in axes.get_legend_handles_labels()[0]}
    columns = min(2, len(by_label))
    figure.legend(handles=by_label.values(), loc="outside lower center", ncols=columns, handlelength=3.5)


def _draw_panel(axes: Axes, panel: Panel, *, beside: Sequence[Panel]) -> None:
    """One panel, whose y axis has the range of all those beside it that share it."""
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
    # An interval may reach to 0 or below, where a logarithmic axis has no end.
    lines = [line for each in beside for line in each.lines]
    means = [point.mean for _, points in lines for point in points.values() if point.mean > 0]
    if means:
        axes.set_ylim(min(means) / 2, max(means) * 2)


def _crowded(ticks: Sequence[float]) -> bool:
    """Whether labels side by side would run into each other."""
    gaps = np.diff(ticks)
    return len(ticks) > 6 or bool((gaps < CROWDED * gaps.sum()).any())


def draw_line(axes: Axes, line: Line, points: Mapping[float, Interval]) -> None:
    """The means of a line by x, with their intervals shaded."""
    x = np.array(list(points))
    mean = np.array([point.mean for point in points.values()])
    half_width = np.array([point.half_width for point in points.values()])
    plot_line(axes, line, x, mean, markevery=max(1, math.ceil(len(x) / MARKERS_PER_LINE)))
    if np.isfinite(half_width).any():
        low, high = mean - half_width, mean + half_width
        axes.fill_between(x, low, high, color=line.color, alpha=0.15, linewidth=0.8, linestyle=line.style)


def plot_line(axes: Axes, line: Line, x: npt.ArrayLike, y: npt.ArrayLike, **options: Any) -> None:
    """Points joined in the colour, marks and width of a line, with matplotlib's further options."""
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
    What a caption says of the seeds.

    :param seeds: How many went into each of the values that are drawn.
    :param what: What was made of them.
    :param intervals: How their intervals are drawn, such as "shaded"; empty if they are not.
    """
    fewest, most = min(seeds), max(seeds)
    if most == 1:
        return "One seed, so there is no interval." if intervals else "One seed."
    number = f"{most} seeds" if fewest == most else f"the seeds there are so far, {fewest} to {most}"
    return f"{what} over {number}" + (f"; {intervals}: 95% Student t interval over the seeds." if intervals else ".")


def values_in_words(panels: Sequence[Panel]) -> str:
    """Each line's first and last mean, panel by panel."""
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
    """The figure, laid out once: a layout that is computed at each drawing may move a little, and bytes with it."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def save(picture: Picture, folder: Path) -> None:
    """
    Write NAME.png and NAME.svg.

    :raises StoreError: If they cannot be written.
    """
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", picture.name).strip("-")  # a user's own data set has a colon in its name
    write_bytes(folder / f"{name}.png", picture.png)
    write_bytes(folder / f"{name}.svg", picture.svg)


def _rendered(figure: Figure, kind: str, metadata: dict[str, None]) -> bytes:
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
    return buffer.getvalue()
