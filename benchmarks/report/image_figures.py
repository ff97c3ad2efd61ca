"""The figures that are no lines: confusion matrices, histograms of margins, attacked images."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
from benchmarks.report.selection import SOUND, Selection, confusion_attacks
from benchmarks.report.statistics import distance_to_identity, mean_interval

Floats = npt.NDArray[np.float64]

STRIP_CLASSES = 10
# Past about this margin a float32 probability is above 1 - 1e-7; clipped to that, it has a gradient of exactly 0.
VANISHING_MARGIN = float(np.log(1e7))


def confusion(selection: Selection) -> Picture | None:
    """Semi-empirical confusion matrices under the CE attack, a column per training loss, a row per protocol."""
    rows: list[list[tuple[str, Floats]]] = []
    seeds: list[int] = []
    for name, attack in confusion_attacks(selection.results.grid).items():
        row = []
        for loss in selection.losses if attack.loss else ():
            matrices = [record.confusion for record in selection.records(loss, attack)]
            if matrices:
                norm = mean_interval([distance_to_identity(matrix) for matrix in matrices])
                title = f"{loss} trained, {name} protocol\neps {attack.eps:g}: ||I - C|| = {norm}"
                row.append((title, np.mean(matrices, axis=0)))
                seeds.append(len(matrices))
        rows += [row] if row else []
    if not rows:
        return None
    titles = "; ".join(title.replace("\n", ", ") for row in rows for title, _ in row)
    return Picture(
        f"confusion-{selection.dataset}",
        f"{selection.dataset}: confusion under attack",
        f"Data: {selection.dataset}. Semi-empirical confusion matrices C under FGSM with CE gradients: the mean "
        f"probability of class ŷ over the images of class y, {selection.images}. {seeds_note(seeds)} ||I - C|| is the "
        f"Frobenius norm, the mean over seeds with its 95% Student t interval.{selection.left_out}",
        f"Heat maps of the confusion matrices. {titles}.",
        _matrix_figure(rows),
    )


def _matrix_figure(rows: Sequence[Sequence[tuple[str, Floats]]]) -> Figure:
    columns = max(len(row) for row in rows)
    figure = Figure(figsize=(3.6 * columns + 1.2, 3.9 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes_row, row in zip(grid, rows, strict=True):
        for axes in axes_row[len(row) :]:
            axes.set_axis_off()
        for axes, (title, matrix) in zip(axes_row, row, strict=False):
            image = axes.imshow(matrix, cmap="cividis", vmin=0, vmax=1)
            axes.set(title=title, xlabel="true class y", ylabel="predicted class ŷ")
            if len(matrix) <= 10:
                axes.set(xticks=range(len(matrix)), yticks=range(len(matrix)))
    figure.colorbar(image, ax=grid, label="mean probability of class ŷ", shrink=0.8)
    return settled(figure)


def margins(selection: Selection) -> Picture | None:
    """Histograms of margins, a panel per attack."""
    panels: list[tuple[AttackSpec, dict[LossSpec, Floats]]] = []
    seeds: list[int] = []
    for attack in SOUND.attacks(selection.results.grid.attacks, "ce"):
        found = {loss: [r.histogram for r in selection.records(loss, attack)] for loss in selection.losses}
        shares = {loss: np.sum(counts, axis=0) / np.sum(counts) for loss, counts in found.items() if counts}
        seeds += [len(counts) for counts in found.values() if counts]
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
        f"Data: {selection.dataset}. The margin of an image as attacked is the true class's logit less the largest "
        f"other, {selection.images}, attacked by FGSM with CE gradients (sound protocol). {seeds_note(seeds, 'Sum')} "
        f"The outermost bins, at {MARGIN_EDGES[0]} and {MARGIN_EDGES[-1]}, hold all that lies beyond. Clean images "
        "past about the second mark are those that an attack through clipped float32 probabilities cannot change: "
        f"their gradient is exactly 0.{selection.left_out}",
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
        axes.axvline(0, color=BLACK, linewidth=1, label="margin 0: left of it, wrong")
        label = f"margin {VANISHING_MARGIN:.0f}: right of it, no clipped gradient"
        axes.axvline(VANISHING_MARGIN, color=GREY, linestyle=LINE_STYLES[3], linewidth=1.4, label=label)
    filled = np.flatnonzero(np.sum([share for _, shares in panels for share in shares.values()], axis=0))
    left, right = MARGIN_EDGES[filled[0]] - 1, MARGIN_EDGES[filled[-1] + 1] + 1
    column[-1].set(xlabel="margin (difference of logits)", xlim=(min(left, -2), max(right, VANISHING_MARGIN + 2)))
    draw_legend(figure, list(column))
    return settled(figure)


def strip(selection: Selection) -> Picture | None:
    """Attacked images of the first seed that has any, a row per training loss and attack."""
    results, attacks = selection.results, SOUND.attacks(selection.results.grid.attacks, "ce")
    by_seed: dict[int, list[tuple[str, Sequence[Sample]]]] = {}
    for loss in selection.losses:
        for run in results.runs(selection.dataset, loss):
            for attack in attacks:
                record = results.records.get((run, attack))
                if record is not None and (samples := record.shown()):
                    row = (f"{loss} trained\n{_attack_name(attack)}", samples[:STRIP_CLASSES])
                    by_seed.setdefault(run.seed, []).append(row)
    if not by_seed:
        return None
    seed = min(by_seed, key=results.grid.seeds.index)
    rows = by_seed[seed]
    wrong = "; ".join(
        f"{name.replace(chr(10), ', ')}: {sum(map(_is_wrong, row))} of {len(row)} are wrong" for name, row in rows
    )
    return Picture(
        f"strip-{selection.dataset}",
        f"{selection.dataset}: attacked images",
        f"Data: {selection.dataset}. The first image of each of {max(len(row) for _, row in rows)} classes, of "
        f"{selection.images}, without attack and under FGSM with CE gradients (sound protocol), by the networks of "
        f"seed {seed}: an example, no statistic. Under an image: label → prediction, and its probability. "
        f"Wrong ones have a dashed frame, a cross and bold text.{selection.left_out}",
        f"Rows of images. {wrong}.",
        _strip_figure(rows),
    )


def _strip_figure(rows: Sequence[tuple[str, Sequence[Sample]]]) -> Figure:
    columns = max(len(row) for _, row in rows)
    side, gap, words, names = 0.8, 0.08, 0.42, 1.65  # inches: an image, between two, the lines under it, a row's name
    width, height = names + columns * (side + gap), len(rows) * (side + words) + 0.1
    figure = Figure(figsize=(width, height))
    for i, (name, row) in enumerate(rows):
        bottom = height - 0.1 - i * (side + words) - side
        figure.text(0.1 / width, (bottom + side / 2) / height, name, va="center")
        for j, sample in enumerate(row):
            left = names + j * (side + gap)
            axes = figure.add_axes((left / width, bottom / height, side / width, side / height))
            _draw_sample(axes, sample)
    return figure


def _draw_sample(axes: Axes, sample: Sample) -> None:
    image, wrong = pixels(sample), _is_wrong(sample)
    axes.imshow(image, cmap="gray" if image.ndim == 2 else None, vmin=0, vmax=255, interpolation="nearest")
    axes.set(xticks=(), yticks=())
    for spine in axes.spines.values():
        spine.set(visible=True, color=VERMILLION if wrong else GREY, linewidth=2.5 if wrong else 0.8)
        spine.set(linestyle=(0, (2, 1)) if wrong else "-", capstyle="butt")
    text = f"{'✗ ' if wrong else ''}{sample.label} → {sample.prediction}\n{sample.confidence:.0%}"
    axes.set_xlabel(text, fontsize=9.5, fontweight="bold" if wrong else "normal", labelpad=3)


def pixels(sample: Sample) -> npt.NDArray[np.uint8]:
    """A record's sample as an image: (H, W), or (H, W, 3) in colour."""
    return sample.pixels[0] if len(sample.pixels) == 1 else sample.pixels.transpose(1, 2, 0)


def _is_wrong(sample: Sample) -> bool:
    return sample.label != sample.prediction


def _attack_name(attack: AttackSpec) -> str:
    return f"CE attack, eps {attack.eps:g}" if attack.loss else "no attack"
