"""Calibration: how well the predicted probabilities match the accuracy, as a table, sentences and diagrams."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.config import AttackSpec, LossSpec
from benchmarks.protocols import CE, protocol
from benchmarks.record import CONFIDENCE_BINS, Reliability
from benchmarks.report import notes
from benchmarks.report.drawing import GREY, Line, Picture, draw_legend, line_for, plot_line, seeds_note, settled
from benchmarks.report.markup import Table
from benchmarks.report.results import Results, by_seed, ce_attacks
from benchmarks.report.selection import Selection, confusion_attacks, where
from benchmarks.report.statistics import Interval, Verdict, judge, mean_interval, paired_interval
from benchmarks.report.tables import pivot, table

# The columns of the table and their metrics.
COLUMNS = {
    "accuracy": "accuracy",
    "confidence": "confidence",
    "confidence - accuracy": "overconfidence",
    "NLL": "nll",
    "Brier": "brier",
    "ECE": "ece",
    "AUROC": "auroc",
    "T": "temperature",
    "NLL at T": "scaled.nll",
    "ECE at T": "scaled.ece",
}
# Text for an interval above 0, below 0 and around 0: of a difference in confidence; of confidence - accuracy; and of
# the difference HR - CE of the latter.
UNCERTAIN: Mapping[Verdict, str] = {
    "supported": "{} is less uncertain than {}",
    "contradicted": "{} is more uncertain than {}",
    "undecided": "it is undecided whether {} is less uncertain than {}",
}
CONFIDENT: Mapping[Verdict, str] = {
    "supported": "over-confident",
    "contradicted": "under-confident",
    "undecided": "undecided",
}
DIFFERENCE: Mapping[Verdict, str] = {
    "supported": "higher for HR",
    "contradicted": "lower for HR",
    "undecided": "undecided",
}
# Bins with fewer images have no dot: their accuracy is too uncertain.
FEWEST = 10
DIAGONAL = "perfectly calibrated"


class Calibration:
    """Intervals over the seeds of the calibration metrics on one data set."""

    def __init__(self, selection: Selection) -> None:
        self.selection = selection
        trained = tuple(str(loss) for loss in selection.losses)
        self._values = by_seed(where(selection.results.calibration, dataset=selection.dataset, trained=trained))
        self.metrics = {metric for *_, metric in self._values}
        """The metrics for which at least one network of the selection's losses has a value."""

    def values(self, loss: LossSpec, attack: AttackSpec, metric: str) -> dict[int, float]:
        """Return a metric of the networks of a training loss, by seed."""
        if metric == "accuracy":
            return self.selection.values(loss, attack)
        return self._values.get((self.selection.dataset, str(loss), attack.key(), metric), {})

    def mean(self, loss: LossSpec, attack: AttackSpec, metric: str) -> Interval:
        """Return the mean of a metric over the seeds, with its interval."""
        return mean_interval(list(self.values(loss, attack, metric).values()))

    def gain(self, loss: LossSpec, attack: AttackSpec, metric: str) -> Interval:
        """Return the difference of a metric from that of CE, paired over the seeds."""
        return paired_interval(self.values(loss, attack, metric), self.values(CE, attack, metric))

    def entries(self, attack: AttackSpec, metric: str) -> dict[str, str]:
        """Return a metric as text, for each training loss and for its difference from CE."""
        losses = self.selection.losses
        compared = [loss for loss in losses if loss != CE and CE in losses]
        accuracies = [self.mean(loss, attack, "accuracy") for loss in losses]
        accuracies += [self.gain(loss, attack, "accuracy") for loss in compared]
        intervals = {str(loss): (self.mean(loss, attack, metric), "") for loss in losses}
        intervals |= {f"{loss} - {CE}": (self.gain(loss, attack, metric), "+z.3f") for loss in compared}
        return {
            # "-" is a metric without a value in a finished evaluation; a missing evaluation is "not yet".
            name: "-" if accuracy.n and not interval.n else self.selection.text(interval, spec)
            for (name, (interval, spec)), accuracy in zip(intervals.items(), accuracies, strict=True)
        }


def calibration_table(selection: Selection) -> Table | None:
    """
    Return accuracy, confidence and scores of the probabilities, without attack and under FGSM with the CE loss.

    None before such an evaluation has been made.
    """
    calibration, known = Calibration(selection), ce_attacks(selection.grid.attacks)
    if not calibration.metrics:
        return None
    columns = [column for column, metric in COLUMNS.items() if metric in calibration.metrics | {"accuracy"}]
    rows = [
        # A network has one temperature, which is shown in its row without attack.
        (attack.eps, protocol(attack)[0], trained, column, "" if column == "T" and attack.eps else text)
        for attack in known
        for column in columns
        for trained, text in calibration.entries(attack, COLUMNS[column]).items()
    ]
    frame = pd.DataFrame(rows, columns=["eps", "attack", "trained", "column", "entry"])
    images = max(record.n for loss in selection.losses for a in known for record in selection.records(loss, a).values())
    first, *rest = notes.calibration(selection, images, scaled="T" in columns)
    wide = pivot(frame, ["eps", "attack", "trained"], columns)
    return table(f"Calibration on {selection.dataset}", wide, [first, *sentences(selection), *rest])


def calibration_frame(results: Results) -> pd.DataFrame:
    """Return all metrics of calibration, with a row per network and attack; empty where there is no value."""
    names = ["dataset", "trained", "seed", "protocol", "eps", "units"]
    keys = tuple(attack.key() for attack in ce_attacks(results.grid.attacks))
    accuracy = where(results.trained, key=keys, metric="accuracy")
    # pandas 2 would take the columns' types from an empty frame.
    parts = [frame for frame in (accuracy, results.calibration) if len(frame)]
    whole = pd.concat(parts or [accuracy])[[*names, "metric", "value"]]
    wide = whole.pivot_table(index=names, columns="metric", values="value", sort=False)
    return wide.reset_index()


def sentences(selection: Selection) -> list[str]:
    """
    Return sentences on the paper's claim "less uncertain", without attack and under the exact attack of least eps.

    They compare the mean confidence, the over-confidence (confidence - accuracy), and the over-confidence after
    temperature scaling. A comparison is undecided if its interval contains 0.
    """
    calibration = Calibration(selection)
    if selection.pair is None or selection.pair[0] != CE:
        return []
    texts = [_sentences(calibration, selection.pair[1], name, attack) for name, attack in _attacks(selection).items()]
    return [text for text in texts if text]


def _sentences(calibration: Calibration, hr: LossSpec, name: str, attack: AttackSpec) -> str:
    """Return the sentences on one attack; empty before a pair of networks has been evaluated."""
    confidence, accuracy, over, scaled = (
        calibration.gain(hr, attack, metric)
        for metric in ("confidence", "accuracy", "overconfidence", "scaled.overconfidence")
    )
    if not over.n:
        return ""
    text = (
        f"{name[0].upper()}{name[1:]}: {UNCERTAIN[judge(confidence)].format(hr, CE)}; the difference {hr} - {CE} is "
        f"{confidence:+z.3f} in mean confidence and {accuracy:+z.3f} in accuracy. Confidence minus accuracy is "
        f"{_over(calibration, hr, attack, 'overconfidence')}, a difference of {over:+z.3f} ({DIFFERENCE[judge(over)]})."
    )
    if scaled.n:
        text += (
            f" With temperature scaling it is {_over(calibration, hr, attack, 'scaled.overconfidence')}, a difference "
            f"of {scaled:+z.3f} ({_with_temperatures(judge(over), judge(scaled))})."
        )
    return text


def _over(calibration: Calibration, hr: LossSpec, attack: AttackSpec, metric: str) -> str:
    """Return the over-confidence of HR and of CE as text."""
    means = {loss: calibration.mean(loss, attack, metric) for loss in (hr, CE)}
    return " and ".join(f"{over:+z.3f} for {loss} ({CONFIDENT[judge(over)]})" for loss, over in means.items())


def _with_temperatures(before: Verdict, after: Verdict) -> str:
    """Return a comparison of the difference in over-confidence without and with temperature scaling."""
    if before == "undecided":
        return "undecided, as without scaling" if after == before else f"{DIFFERENCE[after]}, with scaling only"
    if after == "undecided":
        return "undecided with temperature scaling"
    if after == before:
        return "temperature scaling does not remove the difference"
    return "temperature scaling reverses the difference"


def _attacks(selection: Selection) -> dict[str, AttackSpec]:
    """Return no attack and the exact CE attack at the smallest eps, by name."""
    known = {name: a for name, a in confusion_attacks(selection.grid).items() if name in ("no attack", "exact")}
    return {f"CE attack, eps {a.eps:g}" if a.eps else "no attack": a for a in known.values()}


def reliability(selection: Selection) -> Picture | None:
    """Return reliability diagrams of CE and HR, without attack and under the exact CE attack at the smallest eps."""
    calibration, panels = Calibration(selection), dict[tuple[str, LossSpec], tuple[str, dict[Line, Reliability]]]()
    seeds = []
    for name, attack in _attacks(selection).items():
        for loss in selection.losses:
            if records := selection.records(loss, attack):
                runs = {run.seed: run for run in selection.results.runs(selection.dataset, loss)}
                scales = {seed: selection.results.temperature(runs[seed]) for seed in records}
                scaled = [r.reliability(scales[seed]) for seed, r in records.items() if scales[seed] > 0]
                lines = {line_for(loss, f"{loss} trained"): _pooled([r.reliability() for r in records.values()])}
                lines |= {line_for(loss, f"{loss} trained, at T", 1): _pooled(scaled)} if scaled else {}
                ece = [f"ECE {calibration.mean(loss, attack, 'ece')}"]
                ece += [f"at T {calibration.mean(loss, attack, 'scaled.ece')}"] if scaled else []
                panels[name, loss] = "\n".join(ece), lines
                seeds.append(len(records))
    if not panels:
        return None
    return Picture(
        f"reliability-{selection.dataset}",
        f"{selection.dataset}: reliability diagrams",
        f"Data: {selection.dataset}, {selection.images}. Accuracy against the mean probability of the predicted class, "
        f"in {CONFIDENCE_BINS} bins of that probability, without attack and under FGSM with CE gradients "
        "(exact-gradient protocol). Below the diagonal a network is over-confident. Under each diagram: the number of "
        f"images in each bin, on a logarithmic axis; a bin with fewer than {FEWEST} images has no dot. At T: with the "
        "logits divided by the temperature that is fitted to the validation images without attack. "
        f"{seeds_note(seeds, 'Sum')} ECE: the expected calibration error, its mean and 95% t interval over the seeds."
        f"{selection.left_out}",
        f"Reliability diagrams. {' '.join(_in_words(*panel) for panel in panels.items())}",
        _figure(panels),
    )


Panels = Mapping[tuple[str, LossSpec], tuple[str, Mapping[Line, Reliability]]]


def _pooled(several: Sequence[Reliability]) -> Reliability:
    return Reliability(*(np.sum(values, axis=0) for values in zip(*several, strict=True)))


def _figure(panels: Panels) -> Figure:
    names, losses = (list(dict.fromkeys(part)) for part in zip(*panels, strict=True))
    figure = Figure(figsize=(max(6.4, 3.6 * len(losses) + 0.6), 4.1 * len(names) + 0.8), layout="constrained")
    grid = figure.subplots(
        2 * len(names), len(losses), squeeze=False, sharex=True, sharey="row", height_ratios=[3, 1] * len(names)
    )
    for (name, loss), (text, lines) in panels.items():
        row, column = 2 * names.index(name), losses.index(loss)
        _draw(grid[row, column], grid[row + 1, column], lines)
        grid[row, column].set_title(f"{loss} trained, {name}")
        grid[row, column].text(0.04, 0.96, text, va="top", transform=grid[row, column].transAxes)
    most = max(bins.images.max() for _, lines in panels.values() for bins in lines.values())
    for axes in grid[1::2].flat:
        axes.set_ylim(0.5, 2 * most)
        axes.yaxis.set_major_formatter("{x:g}")
    for axes in grid.flat:
        axes.grid(color=GREY, alpha=0.25, linewidth=0.6)
        axes.label_outer()
    draw_legend(figure, list(grid.flat))
    return settled(figure)


def _draw(diagram: Axes, numbers: Axes, lines: Mapping[Line, Reliability]) -> None:
    """Draw the accuracy of each bin against its mean confidence, and below it the number of images in each bin."""
    diagram.plot([0, 1], [0, 1], color=GREY, linewidth=1.2, label=DIAGONAL)
    diagram.set(xlim=(-0.03, 1.03), ylim=(-0.05, 1.05), ylabel="accuracy (share of images)")
    numbers.set(xlabel="probability of the predicted class", ylabel="images", yscale="log")
    edges = np.linspace(0, 1, CONFIDENCE_BINS + 1)
    for line, bins in lines.items():
        images, right, confidence = (values[bins.images >= FEWEST] for values in bins)
        plot_line(diagram, line, confidence / images, right / images)
        numbers.stairs(bins.images, edges, color=line.color, linestyle=line.style, linewidth=line.width)


def _in_words(key: tuple[str, LossSpec], panel: tuple[str, Mapping[Line, Reliability]]) -> str:
    """Return the expected calibration error, and the share, confidence and accuracy of the last bin, as text."""
    (name, loss), (ece, lines) = key, panel
    bins = next(iter(lines.values()))
    last = f"{bins.images[-1] / bins.images.sum():.1%} of the images are in the bin of the highest probabilities"
    if bins.images[-1]:
        mean, accuracy = (values[-1] / bins.images[-1] for values in (bins.confidence, bins.right))
        last += f", with a mean probability of {mean:.3f} and an accuracy of {accuracy:.3f}"
    return f"{loss} trained, {name}: {', '.join(ece.splitlines())}; {last}."
