"""Figure of defences: dots with their intervals, with a row per training loss and a panel per eps."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.config import LossSpec
from benchmarks.report.drawing import BLACK, BLUE, GREY, VERMILLION, Line, Picture, draw_legend, seeds_note, settled
from benchmarks.report.line_figures import TEST_ACCURACY
from benchmarks.report.selection import Selection, blocks, hardening_attacks, without_hardening
from benchmarks.report.statistics import Interval

MARKS = {
    "no attack": Line("no attack", BLACK, "o", "none", hollow=True, width=1.1, size=4.5),
    "FGSM, paper": Line("FGSM, paper", VERMILLION, "^", "none", hollow=True, width=1.1, size=4.5),
    "FGSM, exact": Line("FGSM, exact", BLUE, "s", "none", hollow=False, width=1.1, size=4.5),
    "worst case": Line("worst case", BLACK, "D", "none", hollow=False, width=1.1, size=4.5),
}
# Vertical offsets of the dots within a row, in rows, so that their intervals do not overlap.
OFFSETS = dict(zip(MARKS, (-0.3, -0.1, 0.1, 0.3), strict=True))
# Accuracies by training loss and attack.
Points = Mapping[tuple[LossSpec, str], Interval]


def hardening(selection: Selection) -> Picture | None:
    """Return accuracy by defence and loss, without and under attack; None for a grid without defences."""
    known = hardening_attacks(selection.grid)
    by_kind = blocks(selection.grid)
    losses = [loss for block in by_kind.values() for loss in block]
    panels: dict[float, Points] = {}
    for eps in sorted({eps for eps, _ in known if eps}):
        specs = {name: attack for (attack_eps, name), attack in known.items() if attack_eps in (0, eps)}
        cells = {(loss, name): selection.cell(loss, specs[name]).accuracy for loss in losses for name in specs}
        panels[eps] = {key: accuracy for key, accuracy in cells.items() if accuracy.n}
    seeds = [accuracy.n for points in panels.values() for accuracy in points.values()]
    if not seeds:
        return None
    # One row for the name of each defence, followed by its losses that have a dot.
    shown = {loss for points in panels.values() for loss, _ in points}
    rows: list[LossSpec | str] = []
    for kind, block in by_kind.items():
        rows += [kind, *(loss for loss in block if loss in shown)] if shown.intersection(block) else []
    return Picture(
        f"hardening-{selection.dataset}",
        f"{selection.dataset}: defences under attack",
        f"Data: {selection.dataset}. Accuracy on the first {selection.images} (L-infinity norm, eps as a share of the "
        "pixel range), by the defence (bold) and the loss that the networks are trained with: without attack, under "
        "FGSM with the gradient from clipped probabilities (paper), under FGSM with the exact gradient (exact), and "
        f"under every attack of an ensemble (worst case). {seeds_note(seeds, intervals='bars')}",
        f"Dots, in {len(panels)} panel{'s' * (len(panels) > 1)}. {' '.join(map(_in_words, panels.items()))}",
        _figure(rows, panels),
    )


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
    """Draw the dots of each loss in its row, grey bands behind every second row, and a line under each defence."""
    axes.grid(axis="x", color=GREY, alpha=0.25, linewidth=0.6)
    for y, row in enumerate(rows):
        if isinstance(row, str):
            axes.axhline(y + 0.5, color=GREY, linewidth=0.8)
        elif y % 2:
            axes.axhspan(y - 0.5, y + 0.5, color=GREY, alpha=0.1, linewidth=0)
    for name, mark in MARKS.items():
        dots = [(y, row) for y, row in enumerate(rows) if isinstance(row, LossSpec) and (row, name) in points]
        axes.errorbar(
            [points[row, name].mean for _, row in dots],
            [y + OFFSETS[name] for y, _ in dots],
            xerr=np.nan_to_num([points[row, name].half_width for _, row in dots]),  # a single seed has no interval
            label=mark.label,
            fmt=mark.marker,
            color=mark.color,
            markersize=mark.size,
            markerfacecolor="white" if mark.hollow else mark.color,
            elinewidth=mark.width,
        )


def _in_words(panel: tuple[float, Points]) -> str:
    """Return every mean of a panel as text, loss by loss."""
    eps, points = panel
    losses = dict.fromkeys(loss for loss, _ in points)
    means = [
        f"{loss}: " + ", ".join(f"{name} {points[loss, name].mean:.3f}" for name in MARKS if (loss, name) in points)
        for loss in losses
    ]
    return f"eps {eps:g}, {TEST_ACCURACY}. {'; '.join(means)}."
