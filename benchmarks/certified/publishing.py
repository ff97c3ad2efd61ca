"""Published files of the command `certify`: tables in Markdown, their numbers as CSV, and a figure."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.certified.measuring import ALPHA, CHOOSING, EPS, RADII, SAMPLES, SIGMAS, Plan, stored
from benchmarks.report.drawing import (
    BLACK,
    GREEN,
    GREY,
    PURPLE,
    Line,
    Picture,
    draw_legend,
    draw_line,
    save,
    seeds_note,
    settled,
    style,
)
from benchmarks.report.markup import Table
from benchmarks.report.statistics import Interval, mean_interval, paired_interval
from benchmarks.store import StoreError, write_bytes

CLEAN, CERTIFIED, ATTACKED, ATTACKED_L2 = "clean", "certified", "attacked", "attacked, L2"
BRACKET = "robust accuracy is in this range"
COLUMNS = ["dataset", "network", "seed", "bound", "radius", "accuracy", "images", "seconds"]


def smoothed(sigma: float) -> str:
    """Return the name of the certified accuracy of a smoothed classifier."""
    return f"smoothed, sigma {sigma:g}"


def results(plan: Plan) -> pd.DataFrame:
    """
    Return every bound of every network, one per row.

    :raises StoreError: If a measurement is missing.
    """
    rows: list[dict[str, Any]] = []
    for run in plan.runs:
        for step in (step for chain in plan.chains for step in chain):
            result = stored(step, plan.store, run)
            if result is None:
                raise StoreError(f"expected {step} of {run} in {plan.store}, but it is missing: run the command again")
            shared = {"dataset": run.dataset, "network": str(run.loss), "seed": run.seed, "images": step.images}
            for bound, radius, accuracy, seconds in _bounds(step.kind, step.size, result, RADII[plan.dataset]):
                measured = {"bound": bound, "radius": radius, "accuracy": accuracy, "seconds": seconds}
                rows.append({**shared, **measured})
    return pd.DataFrame(rows, columns=COLUMNS).drop_duplicates(["network", "seed", "bound", "radius"])


def _bounds(
    kind: str, size: float, result: Mapping[str, Any], all_radii: Sequence[float]
) -> list[tuple[str, float, float, float]]:
    """Return name, radius, accuracy and seconds of each bound in a result; at radius 0 both are clean accuracy."""
    clean, seconds = float(np.mean(result["correct"])), result["seconds"]
    if kind == "smoothed":
        radii = np.array(result["radius"])
        return [(smoothed(size), r, float(np.mean(radii >= r)), seconds if r == 0 else 0.0) for r in (0.0, *all_radii)]
    if kind == "L2":
        return [(ATTACKED_L2, 0.0, clean, 0.0), (ATTACKED_L2, size, float(np.mean(result["robust"])), seconds)]
    return [
        *((bound, 0.0, clean, 0.0) for bound in (CERTIFIED, ATTACKED)),
        (CERTIFIED, size, float(np.mean(result["certified"])), result["certifying_seconds"]),
        (ATTACKED, size, float(np.mean(result["robust"])), seconds),
    ]


class Bounds:
    """Accuracies of a frame of bounds, by seed."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self.networks = tuple(frame.network.unique())
        self.radii = tuple(sorted(frame.radius[frame.bound == ATTACKED_L2].unique()))
        keys = ["network", "bound", "radius"]
        self._by_seed = {key: dict(zip(rows.seed, rows.accuracy, strict=True)) for key, rows in frame.groupby(keys)}

    def mean(self, network: str, bound: str, radius: float) -> Interval:
        """Return the mean of a bound over the seeds, with its interval."""
        return mean_interval(list(self._by_seed[network, bound, radius].values()))

    def difference(self, bound: str, radius: float) -> Interval:
        """Return a bound of the second network minus that of the first, paired by seed: HR - CE."""
        first, second = (self._by_seed[network, bound, radius] for network in self.networks[:2])
        return paired_interval(second, first)

    def gap(self, network: str, above: str, below: str, radius: float) -> Interval:
        """Return one bound minus another, paired by seed."""
        return paired_interval(self._by_seed[network, above, radius], self._by_seed[network, below, radius])


def tables(bounds: Bounds, plan: Plan) -> list[Table]:
    """Return the table of the bounds in L-infinity, and that of the smoothed classifiers in norm 2."""
    difference = f"{bounds.networks[1]} - {bounds.networks[0]}, paired"
    rows = _rows(
        bounds,
        (0.0, *EPS),
        difference,
        (CERTIFIED, ATTACKED),
        lambda network, eps: (f"{bounds.gap(network, ATTACKED, CERTIFIED, eps)}",),
    )
    header = ("eps", "network", "certified: at least", "under attacks: at most", "undecided")
    columns = (*map(smoothed, SIGMAS), ATTACKED_L2)
    rows_l2 = _rows(bounds, bounds.radii, difference, columns)
    names = (*(f"certified, {smoothed(sigma)}" for sigma in SIGMAS), "network itself under attacks: at most")
    return [
        Table(f"{plan.dataset}: robust accuracy between two bounds, L-infinity", header, rows, _notes(plan)),
        Table(f"{plan.dataset}: randomized smoothing, norm 2", ("radius", "network", *names), rows_l2, _notes_l2(plan)),
    ]


def _rows(
    bounds: Bounds,
    radii: Sequence[float],
    difference: str,
    columns: Sequence[str],
    further: Callable[[str, float], tuple[str, ...]] = lambda network, radius: (),
) -> tuple[tuple[str, ...], ...]:
    """Return a section per radius, with a row for each network and one for the paired difference."""
    rows = []
    for radius in radii:
        for i, network in enumerate(bounds.networks):
            entries = (f"{bounds.mean(network, column, radius)}" for column in columns)
            rows.append(("" if i else f"{radius:g}", network, *entries, *further(network, radius)))
        differences = [f"{bounds.difference(column, radius):+z.3f}" for column in columns]
        rows.append(("", difference, *differences, *("" for _ in further(bounds.networks[0], radius))))
    return tuple(rows)


def _seeds(plan: Plan) -> str:
    """Return a sentence on the seeds and the intervals of the entries."""
    return seeds_note([plan.seeds], intervals="±" if plan.seeds > 1 else "")


def _attacks(plan: Plan) -> str:
    return f"art_hrloss.worst_case with its default ensemble, {plan.max_iter} steps"


def _notes(plan: Plan) -> tuple[str, ...]:
    madry = plan.runs[2]
    return (
        f"Data: {plan.dataset}, the first {plan.images} test images; entries are shares of them. {_seeds(plan)} At "
        "each eps the robust accuracy is at least the certified accuracy and at most the accuracy under attacks. This "
        "holds for each image: no attack misclassified a certified image. A row with a minus sign is the difference of "
        "two networks, paired over the seeds.",
        "certified: DeepZ computes, through the trained network itself, a zonotope that contains the logits of all "
        "images within eps and in [0, 1]. An image is certified if its label has the largest logit in the whole "
        "zonotope. The sums are in float64 and not rounded outward; the network under attack has the same weights in "
        "float32. A certificate counts at every smaller eps as well, and an image without one is not tried at a larger "
        "eps.",
        f"under attacks: {_attacks(plan)} and {plan.square_iter} queries per image of Square. An adversarial example "
        "counts at every larger eps as well. On certified images only two attacks of the ensemble, which have no "
        "target class, are run, to check the certificates.",
        "undecided: the share of images that are neither certified nor misclassified by an attack. If certified is 0, "
        "the lower bound is vacuous: this does not mean that the network is not robust.",
        f"{madry.loss}: cross-entropy with Madry's adversarial training by ART, {madry.recipe.epochs} epochs of "
        f"{madry.recipe.optimizer.capitalize()}. CE and HR: {plan.runs[0].recipe.epochs} epochs of SGD.",
    )


def _notes_l2(plan: Plan) -> tuple[str, ...]:
    return (
        f"Data: {plan.dataset}, the first {plan.smoothed_images} test images; entries are shares of them. "
        f"{_seeds(plan)} A row with a minus sign is the difference of two networks, paired over the seeds.",
        "certified: randomized smoothing (Cohen et al. 2019) by ART. The smoothed classifier returns the class that "
        "the network predicts most often for the image with Gaussian noise of standard deviation sigma. The entry is "
        "the share of images for which this class is the label, certified up to the radius of the row. "
        f"{CHOOSING} samples choose the class and {SAMPLES} certify it. Each certificate holds with probability "
        f"{1 - ALPHA:g}, and its radius is at most 2.46 sigma.",
        "The smoothed classifier and the network under attack are different classifiers, so these columns are not two "
        "bounds on the robust accuracy of one of them. The networks were not trained on images with Gaussian noise, "
        "although smoothing works best for such networks.",
        f"network itself under attacks: {_attacks(plan)}, without Square, in norm 2.",
    )


def picture(bounds: Bounds, plan: Plan) -> Picture:
    """Draw a column per network: its bounds in L-infinity above, those in norm 2 below."""
    with style():
        columns = len(bounds.networks)
        figure = Figure(figsize=(3.3 * columns + 0.6, 6.6), layout="constrained")
        axes = figure.subplots(2, columns, sharey=True, sharex="row", squeeze=False)
        for (above, below), network in zip(axes.T, bounds.networks, strict=True):
            clean = bounds.mean(network, CERTIFIED, 0.0)
            above.set_title(f"{network}\nclean accuracy {clean.mean:.3f}")
            _draw_l_infinity(above, bounds, network)
            _draw_l2(below, bounds, network)
        axes[0, 0].set_ylabel("accuracy, L-infinity")
        axes[1, 0].set_ylabel("accuracy, norm 2")
        draw_legend(figure, [*axes[0], *axes[1]])
        settled(figure)
    caption = (
        f"Data: {plan.dataset}. Above: certified accuracy and accuracy under attacks of each network (L-infinity "
        f"norm), on the first {plan.images} test images; the robust accuracy is in the grey area. Below: certified "
        "accuracy of the network's smoothed classifiers (norm 2), and for comparison the accuracy under attacks of the "
        f"network itself, on the first {plan.smoothed_images} test images. These are different classifiers, so the "
        "lines below are not two bounds on one robust accuracy. "
        + seeds_note([plan.seeds], intervals="shaded" if plan.seeds > 1 else "")
    )
    return Picture(
        f"certified-{plan.dataset}", "Robust accuracy between two bounds", caption, _in_words(bounds), figure
    )


def _draw_l_infinity(axes: Axes, bounds: Bounds, network: str) -> None:
    lines = {
        ATTACKED: Line("under attacks: at most", BLACK, "v", "--", False, 1.5, 5),
        CERTIFIED: Line("certified: at least", GREEN, "^", "-", False, 2.0, 5),
    }
    means = {bound: {eps: bounds.mean(network, bound, eps) for eps in EPS} for bound in lines}
    low, high = ([point.mean for point in means[bound].values()] for bound in (CERTIFIED, ATTACKED))
    axes.fill_between(EPS, low, high, color=GREY, alpha=0.22, linewidth=0, label=BRACKET)
    for bound, line in lines.items():
        draw_line(axes, line, means[bound])
    axes.set_xscale("log")
    axes.set_xticks(EPS, [f"{eps:g}" for eps in EPS], rotation=60)
    axes.minorticks_off()
    _finish(axes, "eps")


def _draw_l2(axes: Axes, bounds: Bounds, network: str) -> None:
    lines = {ATTACKED_L2: Line("under attacks: at most", BLACK, "v", "--", False, 1.5, 5)}
    for sigma, look in zip(SIGMAS, (("s", "-"), ("D", ":")), strict=True):
        lines[smoothed(sigma)] = Line(f"smoothed classifier certified, sigma {sigma:g}", PURPLE, *look, False, 1.5, 4)
    for bound, line in lines.items():
        draw_line(axes, line, {radius: bounds.mean(network, bound, radius) for radius in bounds.radii})
    _finish(axes, "radius")


def _finish(axes: Axes, x_label: str) -> None:
    axes.set(xlabel=x_label, ylim=(-0.02, 1.02))
    axes.grid(color=GREY, alpha=0.25, linewidth=0.6)


def _in_words(bounds: Bounds) -> str:
    """Return the alternative text of the figure: the bounds at the smallest and the largest eps in L-infinity."""
    sentences = []
    for network in bounds.networks:
        means = {eps: [bounds.mean(network, bound, eps).mean for bound in (CERTIFIED, ATTACKED)] for eps in EPS}
        ends = (f"from {means[eps][0]:.3f} to {means[eps][1]:.3f} at eps {eps:g}" for eps in (EPS[0], EPS[-1]))
        sentences.append(f"{network}: robust accuracy {', '.join(ends)}.")
    return " ".join(sentences)


def write(plan: Plan, folder: Path, command: str) -> tuple[list[Table], list[Path]]:
    """
    Write certified-DATASET.md, .csv, .png and .svg, each by an atomic write.

    :param command: The command, for the head of the file.
    :return: The tables, and the paths of the files.
    :raises StoreError: If a file cannot be written.
    """
    frame = results(plan)
    bounds = Bounds(frame)
    both, figure = tables(bounds, plan), picture(bounds, plan)
    body = [table.markdown() for table in both]
    body.insert(1, f"![{figure.alt}]({figure.name}.png)\n\n{figure.caption}\n")
    title = f"# Robust accuracy between two bounds: {plan.dataset}"
    write_bytes(folder / f"{figure.name}.md", "\n\n".join([title, f"Made by `{command}`.", "\n".join(body)]).encode())
    write_bytes(folder / f"{figure.name}.csv", frame.to_csv(index=False, float_format="%.6g").encode())
    save(figure, folder)
    return both, [folder / f"{figure.name}.{ending}" for ending in ("md", "csv", "png", "svg")]
