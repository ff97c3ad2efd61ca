"""The figure that is dots with their intervals: a row per training loss, a panel per eps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.config import Hardening, LossSpec
from benchmarks.report.drawing import BLACK, BLUE, GREY, VERMILLION, Picture, draw_legend, seeds_note, settled
from benchmarks.report.line_figures import TEST_ACCURACY
from benchmarks.report.selection import UNHARDENED, Selection, blocks, hardening_attacks, without_hardening
from benchmarks.report.statistics import Interval


@dataclass(frozen=True)
class Mark:
    """How the dots of one attack look, so that they are known without their colour as well."""

    marker: str
    color: str
    hollow: bool
    offset: float
    """Below the middle of the row, in rows: intervals of one row lie beside each other."""


MARKS = {
    "no attack": Mark("o", BLACK, hollow=True, offset=-0.3),
    "FGSM, paper": Mark("^", VERMILLION, hollow=True, offset=-0.1),
    "FGSM, sound": Mark("s", BLUE, hollow=False, offset=0.1),
    "worst case": Mark("D", BLACK, hollow=False, offset=0.3),
}
# Accuracy by training loss and attack.
Points = Mapping[tuple[LossSpec, str], Interval]


def hardening(selection: Selection) -> Picture | None:
    """Accuracy of hardened networks without and under attack, a panel per eps; None for a grid without them."""
    attacks = hardening_attacks(selection.results.grid)
    panels: dict[float, Points] = {}
    for eps in sorted({eps for eps, _ in attacks if eps}):
        specs = {name: attack for (at, name), attack in attacks.items() if at in (0, eps)}
        cells = {
            (loss, name): selection.results.cell(selection.dataset, loss, attack).accuracy
            for losses in blocks(selection.results.grid).values()
            for loss in losses
            for name, attack in specs.items()
        }
        panels[eps] = {key: accuracy for key, accuracy in cells.items() if accuracy is not None}
    seeds = [accuracy.n for points in panels.values() for accuracy in points.values()]
    if not seeds:
        return None
    return Picture(
        f"hardening-{selection.dataset}",
        f"{selection.dataset}: hardened networks under attack",
        f"Data: {selection.dataset}. Accuracy on the first {selection.images} (L-infinity, eps as a share of the pixel "
        "range), by the loss and by what the networks are hardened with: without attack, under FGSM through clipped "
        "probabilities (paper) and along the exact gradient (sound), and in the worst case over an ensemble of strong "
        f"attacks. {seeds_note(seeds, intervals='bars')}",
        f"Dots, in {len(panels)} panel{'s' * (len(panels) > 1)}. {' '.join(map(_in_words, panels.items()))}",
        _figure(_rows(panels), panels),
    )


def _rows(panels: Mapping[float, Points]) -> list[LossSpec | str]:
    """The losses that have a dot, and before those of each hardening its name."""
    losses = dict.fromkeys(loss for points in panels.values() for loss, _ in points)
    rows: list[LossSpec | str] = []
    last: Hardening | None = None
    for i, loss in enumerate(losses):
        if i == 0 or loss.hardening != last:
            rows.append(str(loss.hardening or UNHARDENED))
        rows.append(loss)
        last = loss.hardening
    return rows


def _figure(rows: Sequence[LossSpec | str], panels: Mapping[float, Points]) -> Figure:
    figure = Figure(figsize=(max(6.4, 2.0 + 4.2 * len(panels)), 1.6 + 0.36 * len(rows)), layout="constrained")
    axes_row = figure.subplots(1, len(panels), squeeze=False, sharex=True, sharey=True)[0]
    for axes, (eps, points) in zip(axes_row, panels.items(), strict=True):
        axes.set(title=f"eps {eps:g}", xlabel=TEST_ACCURACY, xlim=(-0.02, 1.02), ylim=(len(rows) - 0.5, -0.5))
        axes.tick_params(axis="y", length=0)
        _draw_rows(axes, rows, points)
    axes_row[0].set_ylabel("trained with")
    labels = [row if isinstance(row, str) else without_hardening(row) for row in rows]
    axes_row[0].set_yticks(range(len(rows)), labels)
    for label, row in zip(axes_row[0].get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if isinstance(row, str) else "normal")
    draw_legend(figure, list(axes_row))
    return settled(figure)


def _draw_rows(axes: Axes, rows: Sequence[LossSpec | str], points: Points) -> None:
    """The dots of each loss in its row, bands to follow a row by, and a line under the name of each hardening."""
    axes.grid(axis="x", color=GREY, alpha=0.25, linewidth=0.6)
    for y, row in enumerate(rows):
        if isinstance(row, str):
            axes.axhline(y + 0.5, color=GREY, linewidth=0.8)
        elif y % 2:
            axes.axhspan(y - 0.5, y + 0.5, color=GREY, alpha=0.1, linewidth=0)
    for name, mark in MARKS.items():
        keys = [(y + mark.offset, (row, name)) for y, row in enumerate(rows) if isinstance(row, LossSpec)]
        found = [(y, points[key]) for y, key in keys if key in points]
        axes.errorbar(
            [accuracy.mean for _, accuracy in found],
            [y for y, _ in found],
            xerr=np.nan_to_num([accuracy.half_width for _, accuracy in found]),  # a single seed has no interval
            label=name,
            fmt=mark.marker,
            color=mark.color,
            markersize=4.5,
            markerfacecolor="white" if mark.hollow else mark.color,
            elinewidth=1.1,
        )


def _in_words(panel: tuple[float, Points]) -> str:
    """Every mean, loss by loss."""
    eps, points = panel
    losses = dict.fromkeys(loss for loss, _ in points)
    means = [
        f"{loss}: " + ", ".join(f"{name} {points[loss, name].mean:.3f}" for name in MARKS if (loss, name) in points)
        for loss in losses
    ]
    return f"eps {eps:g}, {TEST_ACCURACY}. {'; '.join(means)}."
