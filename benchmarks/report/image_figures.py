"""Figures of confusion matrices, histograms of margins, and attacked images."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from benchmarks.config import AttackSpec, LossSpec
from benchmarks.record import MARGIN_EDGES, Sample
from benchmarks.report.drawing import (
    BLACK,
    GREY,
    LINE_STYLES,
    VERMILLION,
    Picture,
    draw_legend,
    line_for,
    seeds_note,
    settled,
)
from benchmarks.report.selection import Selection, confusion_attacks, fgsm
from benchmarks.report.statistics import mean_interval

Floats = npt.NDArray[np.float64]

STRIP_CLASSES = 10
# Above about this margin a float32 probability is above 1 - 1e-7. Clipping makes it constant there, so that a loss
# computed from it has a gradient of exactly 0.
VANISHING_MARGIN = float(np.log(1e7))


def confusion(selection: Selection) -> Picture | None:
    """Return the semi-empirical confusion matrix of CE under the exact CE attack, and the difference HR - CE."""
    pair = selection.pair
    known = {name: attack for name, attack in confusion_attacks(selection.grid).items() if attack.eps}
    attack = known.get("exact")
    if pair is None or attack is None:
        return None
    ce, hr = ({seed: record.confusion for seed, record in selection.records(loss, attack).items()} for loss in pair)
    seeds = sorted(ce.keys() & hr.keys())
    if not seeds:
        return None
    norms = [
        f"{loss} trained, {name} protocol: {mean_interval(list(by_seed.values()))}"
        for name, attack in known.items()
        for loss in pair
        if (by_seed := selection.values(loss, attack, "confusion_norm"))
    ]
    baseline = np.mean([ce[seed] for seed in seeds], axis=0)
    difference = np.mean([hr[seed] - ce[seed] for seed in seeds], axis=0)
    diagonal = float(np.nanmean(np.diag(difference)))
    where = f"FGSM with CE gradients (exact-gradient protocol, eps {attack.eps:g})"
    return Picture(
        f"confusion-{selection.dataset}",
        f"{selection.dataset}: confusion under attack",
        f"Data: {selection.dataset}, {selection.images}. Left: the semi-empirical confusion matrix C of {pair[0]} "
        f"under {where}; an entry is the mean probability of class ŷ over the images of class y. Right: the matrix of "
        f"{pair[1]} minus that of {pair[0]}, paired over the seeds. {seeds_note([len(seeds)])} The Frobenius norm "
        f"||I - C||, which is 0 for a perfect classifier, with its 95% Student t interval over the seeds: "
        f"{'; '.join(norms)}.{selection.left_out}",
        f"Heat maps. {pair[0]}: the mean of the diagonal is {np.nanmean(np.diag(baseline)):.3f}. {pair[1]} minus "
        f"{pair[0]}: the mean of the diagonal is {diagonal:+.3f}, and the entries are from "
        f"{np.nanmin(difference):+.3f} to {np.nanmax(difference):+.3f}. ||I - C||: {'; '.join(norms)}.",
        _matrix_figure(pair, baseline, difference),
    )


def _matrix_figure(pair: tuple[LossSpec, LossSpec], baseline: Floats, difference: Floats) -> Figure:
    figure = Figure(figsize=(9.6, 4.4), layout="constrained")
    most = max(float(np.nanmax(np.abs(difference))), 0.01)
    panels = (
        (baseline, f"{pair[0]} trained", "cividis", 0.0, 1.0, "mean probability of class ŷ"),
        (difference, f"{pair[1]} minus {pair[0]}", "RdBu_r", -most, most, "difference of mean probabilities"),
    )
    for axes, (matrix, title, colors, low, high, label) in zip(figure.subplots(1, 2), panels, strict=True):
        image = axes.imshow(matrix, cmap=colors, vmin=low, vmax=high)
        axes.set(title=title, xlabel="true class y", ylabel="predicted class ŷ")
        if len(matrix) <= 10:
            axes.set(xticks=range(len(matrix)), yticks=range(len(matrix)))
        figure.colorbar(image, ax=axes, label=label, shrink=0.85)
    return settled(figure)


def margins(selection: Selection) -> Picture | None:
    """Return histograms of margins, a panel per attack."""
    panels: list[tuple[AttackSpec, dict[LossSpec, Floats]]] = []
    seeds: list[int] = []
    for attack in fgsm(selection.grid.attacks, "exact", "CE"):
        counts = {loss: [r.histogram for r in selection.records(loss, attack).values()] for loss in selection.losses}
        shares = {loss: np.sum(several, axis=0) / np.sum(several) for loss, several in counts.items() if several}
        seeds += [len(several) for several in counts.values() if several]
        panels += [(attack, shares)] if shares else []
    if not panels:
        return None
    negative = "; ".join(
        f"{loss} trained, {_attack_name(attack)}: {share[: MARGIN_EDGES.index(0)].sum():.1%} of margins are below 0"
        for attack, shares in panels
        for loss, share in shares.items()
    )
    return Picture(
        f"margins-{selection.dataset}",
        f"{selection.dataset}: margins",
        f"Data: {selection.dataset}, {selection.images}. The margin of an image is the logit of its true class minus "
        "the largest other logit, without attack and under FGSM with CE gradients (exact-gradient protocol). "
        f"{seeds_note(seeds, 'Sum')} The outermost bins, at {MARGIN_EDGES[0]} and {MARGIN_EDGES[-1]}, also contain all "
        "margins beyond them. Clean images to the right of the grey line have a gradient of exactly 0 if the loss "
        f"is computed from clipped float32 probabilities: FGSM does not change them.{selection.left_out}",
        f"Histograms of the margins, from {MARGIN_EDGES[0]} to {MARGIN_EDGES[-1]}. {negative}.",
        _margin_figure(panels),
    )


def _margin_figure(panels: Sequence[tuple[AttackSpec, Mapping[LossSpec, Floats]]]) -> Figure:
    figure = Figure(figsize=(7.2, 1.2 + 1.9 * len(panels)), layout="constrained")
    column = figure.subplots(len(panels), 1, squeeze=False, sharex=True, sharey=True)[:, 0]
    for axes, (attack, shares) in zip(column, panels, strict=True):
        title = _attack_name(attack)
        axes.set(title=title[0].upper() + title[1:], ylabel="share of images")
        for position, (loss, share) in enumerate(shares.items()):
            line = line_for(loss, f"{loss} trained", position)
            axes.stairs(share, MARGIN_EDGES, fill=True, color=line.color, alpha=0.15)
            axes.stairs(share, MARGIN_EDGES, label=line.label, color=line.color, linestyle=line.style, linewidth=1.8)
        axes.axvline(0, color=BLACK, linewidth=1, label="margin 0: misclassified to the left")
        label = f"margin {VANISHING_MARGIN:.0f}: zero clipped gradient to the right"
        axes.axvline(VANISHING_MARGIN, color=GREY, linestyle=LINE_STYLES[3], linewidth=1.4, label=label)
    filled = np.flatnonzero(np.sum([share for _, shares in panels for share in shares.values()], axis=0))
    left, right = MARGIN_EDGES[filled[0]] - 1, MARGIN_EDGES[filled[-1] + 1] + 1
    column[-1].set(xlabel="margin (difference of logits)", xlim=(min(left, -2), max(right, VANISHING_MARGIN + 2)))
    draw_legend(figure, list(column))
    return settled(figure)


def strip(selection: Selection) -> Picture | None:
    """Return attacked images of the first seed that has records, a row per training loss and attack."""
    by_seed: dict[int, list[tuple[str, Sequence[Sample]]]] = {}
    for loss in selection.losses:
        for attack in fgsm(selection.grid.attacks, "exact", "CE"):
            for seed, record in selection.records(loss, attack).items():
                if samples := record.shown():
                    row = (f"{loss} trained\n{_attack_name(attack)}", samples[:STRIP_CLASSES])
                    by_seed.setdefault(seed, []).append(row)
    if not by_seed:
        return None
    seed = min(by_seed, key=selection.grid.seeds.index)
    rows = by_seed[seed]
    wrong = "; ".join(
        f"{name.replace(chr(10), ', ')}: {sum(map(_is_wrong, row))} of {len(row)} misclassified" for name, row in rows
    )
    return Picture(
        f"strip-{selection.dataset}",
        f"{selection.dataset}: attacked images",
        f"Data: {selection.dataset}. The first image of each of {max(len(row) for _, row in rows)} classes, of "
        f"{selection.images}, without attack and under FGSM with CE gradients (exact-gradient protocol), for the "
        f"networks of seed {seed}: an example, not a statistic. Under each image: true label → predicted label, and "
        "the probability of the prediction. Misclassified images have a dashed frame, a cross and bold "
        f"text.{selection.left_out}",
        f"Rows of images. {wrong}.",
        _strip_figure(rows),
    )


def _strip_figure(rows: Sequence[tuple[str, Sequence[Sample]]]) -> Figure:
    columns = max(len(row) for _, row in rows)
    # Inches: the side of an image, the gap between two, the height of the text under it, the width of a row's name.
    side, gap, text, names = 0.8, 0.08, 0.42, 1.65
    width, height = names + columns * (side + gap), len(rows) * (side + text) + 0.1
    figure = Figure(figsize=(width, height))
    # One pair of axes, in inches, for all images: with one pair per image the figure would take seconds to draw.
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
    axes.set_axis_off()
    for i, (name, row) in enumerate(rows):
        bottom = height - 0.1 - i * (side + text) - side
        axes.text(0.1, bottom + side / 2, name, va="center")
        for j, sample in enumerate(row):
            _draw_sample(axes, sample, names + j * (side + gap), bottom, side)
    return figure


def _draw_sample(axes: Axes, sample: Sample, left: float, bottom: float, side: float) -> None:
    image, wrong = pixels(sample), _is_wrong(sample)
    axes.imshow(
        image,
        cmap="gray" if image.ndim == 2 else None,
        vmin=0,
        vmax=255,
        interpolation="nearest",
        extent=(left, left + side, bottom, bottom + side),
        aspect="auto",
    )
    frame = Rectangle((left, bottom), side, side, fill=False, zorder=2, color=GREY, linewidth=0.8)
    if wrong:
        frame.set(color=VERMILLION, linewidth=2.5, linestyle=(0, (2, 1)))
    axes.add_patch(frame)
    text = f"{'✗ ' if wrong else ''}{sample.label} → {sample.prediction}\n{sample.confidence:.0%}"
    weight = "bold" if wrong else "normal"
    axes.text(left + side / 2, bottom - 0.05, text, ha="center", va="top", fontsize=9.5, fontweight=weight)


def pixels(sample: Sample) -> npt.NDArray[np.uint8]:
    """Return the image of a sample, of shape (H, W), or (H, W, 3) in colour."""
    return sample.pixels[0] if len(sample.pixels) == 1 else sample.pixels.transpose(1, 2, 0)


def _is_wrong(sample: Sample) -> bool:
    return sample.label != sample.prediction


def _attack_name(attack: AttackSpec) -> str:
    return f"CE attack, eps {attack.eps:g}" if attack.eps else "no attack"
