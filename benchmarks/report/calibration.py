"""Calibration, or how far the networks' probabilities can be believed: its table, sentences and diagram."""

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

# The columns of the table, and the metrics behind them.
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
# What an interval above 0, below it and around it says of a difference in confidence, of confidence less accuracy, and
# of the difference of two of these.
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
    "supported": "more over-confident",
    "contradicted": "less over-confident",
    "undecided": "undecided",
}
# A dot of fewer images would say little of the accuracy in its bin.
FEWEST = 10
DIAGONAL = "perfectly calibrated"


class Calibration:
    """The intervals of one data set's metrics over the seeds."""

    def __init__(self, selection: Selection) -> None:
        self.selection = selection
        trained = tuple(str(loss) for loss in selection.losses)
        self._values = by_seed(where(selection.results.calibration, dataset=selection.dataset, trained=trained))
        self.metrics = {metric for *_, metric in self._values}
        """Those that any network of the selection's losses has a value of."""

    def values(self, loss: LossSpec, attack: AttackSpec, metric: str) -> dict[int, float]:
        """A metric of the networks of a training loss, by seed."""
        if metric == "accuracy":
            return self.selection.values(loss, attack)
        return self._values.get((self.selection.dataset, str(loss), attack.key(), metric), {})

    def mean(self, loss: LossSpec, attack: AttackSpec, metric: str) -> Interval:
        """The mean of a metric."""
        return mean_interval(list(self.values(loss, attack, metric).values()))

    def gain(self, loss: LossSpec, attack: AttackSpec, metric: str) -> Interval:
        """What a metric is more than that of CE, paired over the seeds."""
        return paired_interval(self.values(loss, attack, metric), self.values(CE, attack, metric))

    def entries(self, attack: AttackSpec, metric: str) -> dict[str, str]:
        """A metric as text: of each training loss, and of its difference from CE."""
        losses = self.selection.losses
        others = [loss for loss in losses if loss != CE and CE in losses]
        accuracies = [self.mean(loss, attack, "accuracy") for loss in losses]
        accuracies += [self.gain(loss, attack, "accuracy") for loss in others]
        intervals = {str(loss): (self.mean(loss, attack, metric), "") for loss in losses}
        intervals |= {f"{loss} - {CE}": (self.gain(loss, attack, metric), "+z.3f") for loss in others}
        return {
            # Of what has been evaluated, a metric that is not there has no value.
            name: "-" if accuracy.n and not interval.n else self.selection.text(interval, spec)
            for (name, (interval, spec)), accuracy in zip(intervals.items(), accuracies, strict=True)
        }


def calibration_table(selection: Selection) -> Table | None:
    """
    Confidence beside accuracy and the scores of probabilities, without attack and under FGSM by the CE loss.

    None where there is no such evaluation yet.
    """
    found, known = Calibration(selection), ce_attacks(selection.grid.attacks)
    if not found.metrics:
        return None
    columns = [column for column, metric in COLUMNS.items() if metric in found.metrics | {"accuracy"}]
    rows = [
        # A network has one temperature, which stands beside no attack.
        (attack.eps, protocol(attack)[0], trained, column, "" if column == "T" and attack.eps else text)
        for attack in known
        for column in columns
        for trained, text in found.entries(attack, COLUMNS[column]).items()
    ]
    frame = pd.DataFrame(rows, columns=["eps", "attack", "trained", "column", "entry"])
    images = max(record.n for loss in selection.losses for a in known for record in selection.records(loss, a).values())
    shown = notes.of_calibration(selection, images, scaled="T" in columns)
    wide = pivot(frame, ["eps", "attack", "trained"], columns)
    return table(f"Calibration on {selection.dataset}", wide, [shown[0], *sentences(selection), *shown[1:]])


def calibration_frame(results: Results) -> pd.DataFrame:
    """All metrics of calibration, a row per network and attack; empty where there is no value."""
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
    What the numbers say of the paper's "less uncertain", without attack and under the exact one at the smallest eps.

    By the mean confidence, by what it is more than the accuracy, and by what a temperature leaves of that. Whatever has
    0 in its interval is undecided.
    """
    found = Calibration(selection)
    if selection.pair is None or selection.pair[0] != CE:
        return []
    said = [_sentence(found, selection.pair[1], name, attack) for name, attack in _attacks(selection).items()]
    return [text for text in said if text]


def _sentence(found: Calibration, hr: LossSpec, name: str, attack: AttackSpec) -> str:
    """The sentences on one attack; empty where no pair of networks has been evaluated."""
    confidence, accuracy, over, left = (
        found.gain(hr, attack, metric)
        for metric in ("confidence", "accuracy", "overconfidence", "scaled.overconfidence")
    )
    if not over.n:
        return ""
    text = (
        f"{name[0].upper()}{name[1:]}: {UNCERTAIN[judge(confidence)].format(hr, CE)}, {confidence:+z.3f} in mean "
        f"confidence and {accuracy:+z.3f} in accuracy. Confidence less accuracy is "
        f"{_over(found, hr, attack, 'overconfidence')}: a difference of {over:+z.3f} ({DIFFERENCE[judge(over)]})."
    )
    if left.n:
        text += (
            f" At the temperatures it is {_over(found, hr, attack, 'scaled.overconfidence')}: a difference of "
            f"{left:+z.3f} ({_end(judge(over), judge(left))})."
        )
    return text


def _over(found: Calibration, hr: LossSpec, attack: AttackSpec, metric: str) -> str:
    """The over-confidence of HR and of CE."""
    means = {loss: found.mean(loss, attack, metric) for loss in (hr, CE)}
    return " and ".join(f"{over:+z.3f} for {loss} ({CONFIDENT[judge(over)]})" for loss, over in means.items())


def _end(before: Verdict, after: Verdict) -> str:
    """What temperatures leave of the difference of two over-confidences."""
    if before == "undecided":
        return "undecided, as without the temperatures" if after == before else f"{DIFFERENCE[after]} only with them"
    if after == "undecided":
        return "undecided whether the temperatures leave any of it"
    return "the temperatures do not take it away" if after == before else "the temperatures reverse it"


def _attacks(selection: Selection) -> dict[str, AttackSpec]:
    """No attack, and the exact CE attack at the smallest eps, by what they are called."""
    known = {name: a for name, a in confusion_attacks(selection.grid).items() if name in ("no attack", "exact")}
    return {f"CE attack, eps {a.eps:g}" if a.eps else "no attack": a for a in known.values()}


def reliability(selection: Selection) -> Picture | None:
    """The reliability diagrams of CE and HR, without attack and under the exact CE attack at the smallest eps."""
    found, panels = Calibration(selection), dict[tuple[str, LossSpec], tuple[str, dict[Line, Reliability]]]()
    seeds = []
    for name, attack in _attacks(selection).items():
        for loss in selection.losses:
            if records := selection.records(loss, attack):
                runs = {run.seed: run for run in selection.results.runs(selection.dataset, loss)}
                scales = {seed: selection.results.temperature(runs[seed]) for seed in records}
                scaled = [r.reliability(scales[seed]) for seed, r in records.items() if scales[seed] > 0]
                lines = {line_for(loss, f"{loss} trained"): _pooled([r.reliability() for r in records.values()])}
                lines |= {line_for(loss, f"{loss} trained, at T", 1): _pooled(scaled)} if scaled else {}
                ece = [f"ECE {found.mean(loss, attack, 'ece')}"]
                ece += [f"at T {found.mean(loss, attack, 'scaled.ece')}"] if scaled else []
                panels[name, loss] = "\n".join(ece), lines
                seeds.append(len(records))
    if not panels:
        return None
    return Picture(
        f"reliability-{selection.dataset}",
        f"{selection.dataset}: reliability diagrams",
        f"Data: {selection.dataset}. Accuracy against the mean probability of the predicted class, by "
        f"{CONFIDENCE_BINS} bins of that probability, {selection.images}, without attack and under FGSM with CE "
        "gradients (exact-gradient protocol): below the diagonal a network is over-confident. Under each diagram the "
        f"number of images in every bin, on a logarithmic axis; a bin of fewer than {FEWEST} images has no dot. At "
        "T: the logits divided by the temperature that is fitted to the validation images without attack. "
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
    """The accuracy of every bin against its mean confidence, and under it the number of images in every bin."""
    diagram.plot([0, 1], [0, 1], color=GREY, linewidth=1.2, label=DIAGONAL)
    diagram.set(xlim=(-0.03, 1.03), ylim=(-0.05, 1.05), ylabel="accuracy (share of images)")
    numbers.set(xlabel="probability of the predicted class", ylabel="images", yscale="log")
    edges = np.linspace(0, 1, CONFIDENCE_BINS + 1)
    for line, bins in lines.items():
        images, right, confidence = (values[bins.images >= FEWEST] for values in bins)
        plot_line(diagram, line, confidence / images, right / images)
        numbers.stairs(bins.images, edges, color=line.color, linestyle=line.style, linewidth=line.width)


def _in_words(at: tuple[str, LossSpec], panel: tuple[str, Mapping[Line, Reliability]]) -> str:
    """The expected calibration error, and the last bin's share, confidence and accuracy."""
    (name, loss), (ece, lines) = at, panel
    bins = next(iter(lines.values()))
    last = f"{bins.images[-1] / bins.images.sum():.1%} of the images have the highest probabilities"
    if bins.images[-1]:
        mean, accuracy = (values[-1] / bins.images[-1] for values in (bins.confidence, bins.right))
        last += f", {mean:.3f} on average, and an accuracy of {accuracy:.3f}"
    return f"{loss} trained, {name}: {', '.join(ece.splitlines())}; {last}."
