"""The figure of how cost grows: time against what grows, both logarithmic, a panel for each."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmarks.report.drawing import (
    BLACK,
    BLUE,
    GREY,
    VERMILLION,
    Line,
    Picture,
    draw_legend,
    plot_line,
    settled,
    style,
)
from benchmarks.speed.cases import SECONDS, Reading

UNITS = {"milliseconds": 1e3, "seconds": 1.0}
# What others are measured against: loops by hand, and what is done one after the other.
AGAINST = ("loop", "bare", "one after")


def growth_figure(
    readings: Sequence[Reading], *, name: str = "growth", what: str = "how cost grows", unit: str = "milliseconds"
) -> Picture:
    """
    Median times against x, with shaded quartiles.

    :param readings: Of seconds, with an x; a panel per case, a line per contender. Others are passed over.
    :param name: The figure's file.
    :param what: What it shows, in a few words.
    :param unit: One of UNITS.
    """
    drawn = [r for r in readings if r.quantity == SECONDS and r.x is not None and r.value is not None]
    panels = list(dict.fromkeys(reading.case for reading in drawn))
    with style():
        figure = Figure(figsize=(9.2, 3.6 * ((len(panels) + 1) // 2) + 0.6), layout="constrained")
        all_axes = figure.subplots((len(panels) + 1) // 2, 2, squeeze=False).ravel()
        for axes in all_axes[len(panels) :]:
            axes.set_visible(False)
        for axes, panel in zip(all_axes, panels, strict=False):
            _draw(axes, panel, [r for r in drawn if r.case == panel], unit)
        draw_legend(figure, list(all_axes[: len(panels)]))
        settled(figure)
    caption = (
        f"{unit.capitalize()} against what grows, both axes logarithmic; medians over the rounds, quartiles shaded. On "
        "one thread of the CPU where nothing else is said; the machine is named above."
    )
    return Picture(name, what, caption, _in_words(drawn, panels, unit), figure)


def _draw(axes: Axes, panel: str, readings: Sequence[Reading], unit: str) -> None:
    axes.set(xscale="log", yscale="log", xlabel=panel, ylabel=unit)
    axes.grid(color=GREY, alpha=0.25, linewidth=0.6)
    for name in sorted({r.contender for r in readings}):
        own = [r for r in readings if r.contender == name]
        x = np.array([r.x for r in own], dtype=float)
        low, middle, high = (
            np.array([UNITS[unit] * getattr(r.value, part) for r in own]) for part in ("lower", "median", "upper")
        )
        line = _line(name)
        plot_line(axes, line, x, middle)
        axes.fill_between(x, low, high, color=line.color, alpha=0.15, linewidth=0)
    ticks = sorted({float(r.x) for r in readings if r.x is not None})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], rotation=40)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _line(name: str) -> Line:
    """What is measured against is drawn wide with hollow marks, dashed if it is a loop; the HR loss's own is full."""
    if name.startswith("CE"):
        return Line(name, BLUE, "o", "-", True, width=2.6, size=9)
    if name.startswith(AGAINST):
        return Line(name, BLACK, "D", "--", True, width=2.6, size=9)
    return Line(name, VERMILLION, "s" if name.startswith("HR") else "^", "-", False, width=1.5, size=4.5)


def _in_words(readings: Sequence[Reading], panels: Sequence[str], unit: str) -> str:
    sentences, short = [], {"milliseconds": "ms", "seconds": "s"}[unit]
    for panel in panels:
        for name in dict.fromkeys(r.contender for r in readings if r.case == panel):
            own = [r for r in readings if r.case == panel and r.contender == name]
            ends = " to ".join(
                f"{UNITS[unit] * r.value.median:.3g} {short} at {r.x:g}" for r in (own[0], own[-1]) if r.value
            )
            sentences.append(f"{panel}: {name}, {ends}.")
    return " ".join(sentences)
