"""Flags of the diagnostics, each with its evidence and its remedy, and the power of the tests behind them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.stats import beta, binom

from art_hrloss._progress import StepwiseResult
from art_hrloss.diagnostics._measurements import Flags, Gradients

# A larger share of useless gradients is flagged, and a replay of an attack whose accuracy is lower by more.
USELESS, WEAKER = 0.001, 0.01
# Auto-PGD is a stronger attack than PGD, and the margin and DLR are other losses than cross-entropy: on honest
# networks, adversarially trained ones above all, their accuracies are lower by up to 5%.
MUCH_WEAKER, OTHER_LOSSES = 0.05, ("margin", "DLR")
# Shares of the examples above which the indicators of attack failure are flagged.
UNSTABLE, SILENT, MOVING = 0.1, 0.01, 0.1
# The level of every test, and the power at which the smallest difference that it detects is reported.
P_VALUE, POWER = 0.01, 0.8

_EXACT = 'Attack along a loss that does not saturate: loss="margin"'
_MORE_STEPS = "Double max_iter until the accuracy no longer changes"
_WORST_CASE = "Report the worst case over an ensemble of attacks: art_hrloss.worst_case"
REMEDIES = {
    "units of eps": "Give the classifier pixels in [0, 1] with clip_values=(0, 1), and normalise inside it with "
    "preprocessing=(mean, std): otherwise eps is no share of the pixel range",
    "zero gradients": f"{_EXACT}; if they remain 0, use the derivative of the identity for the step without one (BPDA)",
    "NaN gradients": "Compute the loss from log_softmax, and avoid divisions by 0",
    "subnormal gradients": _EXACT,
    "unchanged images": "Inspect these examples for NaN gradients, and the classifier for clip_values without a range",
    "masked gradients": 'Attack along the loss of the lowest accuracy, such as loss="margin"',
    "iterations do not help": f"{_EXACT}; use more restarts, and SquareAttack",
    "too few iterations": _MORE_STEPS,
    "stronger attack succeeds": _WORST_CASE,
    "black box beats white box": f"The gradients are useless. {_WORST_CASE}",
    "noise beats gradients": f"The gradients are useless. {_WORST_CASE}",
    "unbounded attack fails": f"{_EXACT}; use BPDA where a step has no derivative",
    "unstable predictions": "Attack by SquareAttack, or along the mean gradient over noise, or of a smooth network",
    "silent success": "Keep the first adversarial iterate: keep_first=True",
    "incomplete optimisation": _MORE_STEPS,
    "incomplete report": "Run it to its end: what is missing may raise more flags",
}

# What is not measured.
_NONE: Flags = np.zeros(0, dtype=bool)
_NO_GRADIENTS = Gradients(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Flag:
    """A reason not to trust the robust accuracy of a classifier under an attack."""

    name: str
    evidence: str  #: What was measured.
    remedy: str  #: What to do about it.

    def __str__(self) -> str:
        return f"{self.name}: {self.evidence}. {self.remedy}."


def _unmeasured() -> Flags:
    return _NONE


@dataclass(frozen=True, eq=False, repr=False)
class Measurements(StepwiseResult):
    """
    The measurements; arrays of flags, shape ``(n,)``, say which examples an attack leaves correctly classified.

    A measurement that is missing, because a report was stopped, is an array of shape ``(0,)``, NaN or an empty mapping.
    """

    eps: float
    norm: float | str
    classes: int
    clean: Flags  #: Without attack.
    margins: npt.NDArray[np.float64]  #: Shape ``(n,)``: the true class's logit less the largest other, without attack.
    image_range: tuple[float, float]  #: The least and the greatest value of the images.
    clip_values: tuple[float, float] | None  #: The least and the greatest value that the classifier allows.
    gradients: Gradients = _NO_GRADIENTS
    unchanged: float = math.nan  #: Share of the images that FGSM does not change.
    single_step: Mapping[str, Flags] = field(default_factory=dict)
    """FGSM: "as given", along the classifier's loss, and along other losses of it."""
    iterative: Mapping[int, Flags] = field(default_factory=dict)
    """PGD along the classifier's own loss, by the number of steps."""
    auto_pgd: Flags = field(default_factory=_unmeasured)  #: Auto-PGD on the margin.
    black_box: Mapping[str, Flags] = field(default_factory=dict)
    """Attacks that do not use this classifier's gradients."""
    unbounded: Flags = field(default_factory=_unmeasured)
    """PGD with an eps within which every image can become any other."""
    noise: Flags = field(default_factory=_unmeasured)
    """Random noise: every pixel moves by as much, so that the image is eps away."""
    unstable: Flags = field(default_factory=_unmeasured)
    """Examples whose gradient does not describe the margin, in noise of 1/255 of the pixel range."""
    silent: Flags = field(default_factory=_unmeasured)
    """Examples with a misclassified iterate of PGD whose last iterate is classified correctly."""
    moving: Flags = field(default_factory=_unmeasured)  #: Examples whose margin still falls when PGD ends.

    @property
    def detectable(self) -> dict[str, float]:
        """The smallest differences of accuracies, and shares, that are flagged with 80% power; NaN where none is."""
        n = len(self.clean)
        return {
            "difference": smallest_difference(n),
            "difference, stronger attack": smallest_difference(n, MUCH_WEAKER),
            "share, silent success": smallest_share(n, SILENT),
            "share, unstable or moving": smallest_share(n, UNSTABLE),
        }


def flags(measured: Measurements) -> tuple[Flag, ...]:
    """Return all flags that the measurements raise, one of each name."""
    evidence: dict[str, list[str]] = {}

    def add(name: str, raised: bool, text: str) -> None:
        if raised:
            evidence.setdefault(name, []).append(text)

    def compare(name: str, weak: str, first: Flags, strong: str, second: Flags, by: float = WEAKER) -> None:
        if len(first) and len(second):  # both are measured
            accuracies = f"accuracy is {first.mean():.3f} under {weak}, but {second.mean():.3f} under {strong}"
            add(name, is_weaker(first, second, by), accuracies)

    def check_share(name: str, flagged: Flags, limit: float, text: str) -> None:
        if len(flagged):
            # Above the limit by more than chance: the exact binomial test.
            above = binom.sf(flagged.sum() - 1, len(flagged), limit) < P_VALUE
            add(name, bool(above), text.format(flagged.mean()))

    missing = ", ".join(measured.unfinished)
    add("incomplete report", not measured.complete, f"it was stopped, and has not measured: {missing}")
    (low, high), clip, (zero, nan, subnormal) = measured.image_range, measured.clip_values, measured.gradients
    # Bytes from 0 to 1 are a mistake: no image would have a pixel brighter than 1 of 255.
    usual = clip == (0.0, 1.0) or (clip == (0.0, 255.0) and high > 1)
    add("units of eps", not usual, f"the images lie in [{low:.3g}, {high:.3g}], clip_values are {clip}")
    add("zero gradients", zero > USELESS, f"{zero:.1%} of the input gradients are exactly 0")
    text = f"{nan:.1%} of the input gradients contain NaN or inf; attacks replace NaN by 0"
    add("NaN gradients", nan > USELESS, text)
    add("subnormal gradients", subnormal > USELESS, f"{subnormal:.1%} of the input gradients are below 1.2e-38")
    text = f"FGSM does not change {measured.unchanged:.1%} of the images"
    add("unchanged images", measured.unchanged > USELESS >= zero, text)

    fgsm = measured.single_step.get("as given", _NONE)
    descents = [(f"PGD of {steps} steps", robust) for steps, robust in measured.iterative.items()]
    (short, single), (long, double) = [*descents, *[("PGD", _NONE)] * 2][:2]
    for name, robust in measured.single_step.items():
        limit = MUCH_WEAKER if name in OTHER_LOSSES else WEAKER
        compare("masked gradients", "FGSM", fgsm, f"FGSM along {name}", robust, limit)
    compare("iterations do not help", short, single, "FGSM", fgsm)
    compare("too few iterations", short, single, long, double)
    compare("stronger attack succeeds", long, double, "Auto-PGD on the margin", measured.auto_pgd, MUCH_WEAKER)
    for name, robust in measured.black_box.items():
        compare("black box beats white box", long, double, name, robust)
    compare("noise beats gradients", "FGSM", fgsm, "random noise of the same size", measured.noise)

    text = "accuracy is {:.3f}, above chance, though every image can become any other"
    check_share("unbounded attack fails", measured.unbounded, 1 / measured.classes, text)
    text = "{:.1%} of the margins are not described by their gradient within 1/255 of the pixel range"
    check_share("unstable predictions", measured.unstable, UNSTABLE, text)
    text = "of {:.1%} of the examples an iterate of PGD is misclassified, but not the last"
    check_share("silent success", measured.silent, SILENT, text)
    check_share("incomplete optimisation", measured.moving, MOVING, "{:.1%} of the margins still fall when PGD ends")
    return tuple(Flag(name, "; ".join(texts), REMEDIES[name]) for name, texts in evidence.items())


def is_weaker(first: Flags, second: Flags, by: float = WEAKER) -> bool:
    """
    Return whether the accuracy under the first attack is higher by more than `by`, and by more than chance.

    McNemar's exact test, shifted: under the null hypothesis the accuracies differ by just `by`, so that of the examples
    that only one of the attacks misclassifies, the second misclassifies a share of (1 + by n / their number) / 2.
    """
    successes, either, n = int((first & ~second).sum()), int((first ^ second).sum()), len(first)
    return either > by * n and bool(binom.sf(successes - 1, either, (1 + by * n / either) / 2) < P_VALUE)


def smallest_difference(n: int, by: float = WEAKER) -> float:
    """Return the smallest difference of accuracies of nested attacks that is detected with 80% power; NaN if none."""
    either = np.arange(int(by * n) + 1, n + 1)
    detected = either[((1 + by * n / either) / 2) ** either < P_VALUE]
    return _with_power(int(detected[0]) if len(detected) else n + 1, n)


def smallest_share(n: int, limit: float) -> float:
    """Return the smallest share of n examples that is detected with 80% power to be above a limit; NaN if none is."""
    return _with_power(int(binom.isf(P_VALUE, n, limit)) + 1, n)


def _with_power(needed: int, n: int) -> float:
    """Return the p for which a binomial of n trials is at least `needed` with 80% probability; NaN for more than n."""
    return float(beta.ppf(POWER, needed, n - needed + 1)) if needed <= n else math.nan
