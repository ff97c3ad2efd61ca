"""Flags of the gradient masking report, with evidence and remedy, and the power of the statistical tests."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.stats import beta, binom

from art_hrloss._progress import StepwiseResult
from art_hrloss.diagnostics._measurements import Flags, Gradients

# The share of useless gradients above which they are flagged, and the difference of accuracies above which one attack
# is weaker than another.
USELESS, WEAKER = 0.001, 0.01
# The same difference for comparisons with Auto-PGD, a stronger attack than PGD, and with losses other than
# cross-entropy. On networks without gradient masking, especially adversarially trained ones, these accuracies are lower
# by up to 5%.
MUCH_WEAKER, OTHER_LOSSES = 0.05, ("margin", "DLR")
# Shares of the examples above which the indicators of attack failure are flagged.
UNSTABLE, SILENT, MOVING = 0.1, 0.01, 0.1
# The significance level of all tests, and the power for which the smallest detectable differences are reported.
P_VALUE, POWER = 0.01, 0.8

_EXACT = 'Attack along a loss that does not saturate: loss="margin"'
_MORE_STEPS = "Double max_iter until the accuracy no longer changes"
_WORST_CASE = "Report the worst case over an ensemble of attacks: art_hrloss.worst_case"
REMEDIES = {
    "units of eps": "Use pixels in [0, 1] with clip_values=(0, 1), and normalise inside the classifier with "
    "preprocessing=(mean, std), so that eps is a share of the pixel range",
    "zero gradients": f"{_EXACT}; if the gradients remain 0, use the derivative of the identity for steps without a "
    "derivative (BPDA)",
    "NaN gradients": "Compute the loss from log_softmax, and avoid divisions by 0",
    "subnormal gradients": _EXACT,
    "unchanged images": "Check these examples for NaN gradients, and whether clip_values have the same upper and lower "
    "value",
    "masked gradients": 'Attack along the loss with the lowest accuracy, for example loss="margin"',
    "iterations do not help": f"{_EXACT}; use more restarts, and SquareAttack",
    "too few iterations": _MORE_STEPS,
    "stronger attack succeeds": _WORST_CASE,
    "black box beats white box": f"The gradients are useless to the attack. {_WORST_CASE}",
    "noise beats gradients": f"The gradients are useless to the attack. {_WORST_CASE}",
    "unbounded attack fails": f"{_EXACT}; use BPDA for steps without a derivative",
    "unstable predictions": "Use SquareAttack, or attack along the gradient averaged over noise or of a smooth network",
    "silent success": "Return the first adversarial iterate: keep_first=True",
    "incomplete optimisation": _MORE_STEPS,
    "incomplete report": "Run the report to its end: the missing measurements may raise more flags",
}

# The values of missing measurements.
_NONE: Flags = np.zeros(0, dtype=bool)
_NO_GRADIENTS = Gradients(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Flag:
    """
    Reason to distrust the robust accuracy of a classifier under an attack.

    >>> from art_hrloss.diagnostics import Flag
    >>> print(Flag("zero gradients", "12.0% of the input gradients are exactly 0", "Use BPDA"))
    zero gradients: 12.0% of the input gradients are exactly 0. Use BPDA.
    """

    name: str  #: The name of the flag, such as "zero gradients".
    evidence: str  #: The measurement that raises the flag, a sentence.
    remedy: str  #: The recommended action.

    def __str__(self) -> str:
        return f"{self.name}: {self.evidence}. {self.remedy}."


def _unmeasured() -> Flags:
    """Return the default of an array that has not been measured."""
    return _NONE


@dataclass(frozen=True, eq=False, repr=False)
class Measurements(StepwiseResult):
    """
    The measurements of a report. Boolean arrays of shape ``(n,)`` are True for the examples classified correctly.

    A missing measurement of an interrupted report is an array of shape ``(0,)``, NaN or an empty mapping.
    """

    eps: float  #: The largest perturbation, in units of the images.
    norm: float | str  #: The norm of the perturbation.
    classes: int  #: The number of classes.
    clean: Flags  #: Without attack.
    margins: npt.NDArray[np.float64]
    """The logit of the true class minus the largest other logit, without attack; shape ``(n,)``."""
    image_range: tuple[float, float]  #: The least and the greatest value of the images.
    clip_values: tuple[float, float] | None  #: The least and the greatest value that the classifier allows.
    gradients: Gradients = _NO_GRADIENTS  #: Shares of useless input gradients.
    unchanged: float = math.nan  #: The share of the images that FGSM does not change.
    single_step: Mapping[str, Flags] = field(default_factory=dict)
    """FGSM, by its loss; "as given" is the attack loss of the classifier."""
    iterative: Mapping[int, Flags] = field(default_factory=dict)
    """PGD along the attack loss of the classifier, by the number of steps."""
    auto_pgd: Flags = field(default_factory=_unmeasured)  #: Auto-PGD on the margin.
    black_box: Mapping[str, Flags] = field(default_factory=dict)
    """Attacks that do not use the gradients of this classifier, by name."""
    unbounded: Flags = field(default_factory=_unmeasured)
    """PGD with an eps so large that every image can become any other image."""
    noise: Flags = field(default_factory=_unmeasured)
    """Random noise of norm eps, of equal size in all pixels."""
    unstable: Flags = field(default_factory=_unmeasured)
    """True for examples whose margin is not described by its gradient, in noise of 1/255 of the pixel range."""
    silent: Flags = field(default_factory=_unmeasured)
    """True for examples whose last iterate of PGD is classified correctly, but an earlier iterate is not."""
    moving: Flags = field(default_factory=_unmeasured)
    """True for examples whose margin still decreases when PGD ends."""

    @property
    def detectable(self) -> dict[str, float]:
        """
        The smallest differences of accuracies, and shares, that are flagged with 80% power; NaN if there is none.

        The keys are "difference", "difference, stronger attack", "share, silent success" and "share, unstable or
        moving"; the values are in [0, 1].
        """
        n = len(self.clean)
        return {
            "difference": smallest_difference(n),
            "difference, stronger attack": smallest_difference(n, MUCH_WEAKER),
            "share, silent success": smallest_share(n, SILENT),
            "share, unstable or moving": smallest_share(n, UNSTABLE),
        }


def flags(measured: Measurements) -> tuple[Flag, ...]:
    """Return the flags that the measurements raise; evidence with the same name is joined to one flag."""
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
            # The exact binomial test of the hypothesis that the share is at most the limit.
            above = binom.sf(flagged.sum() - 1, len(flagged), limit) < P_VALUE
            add(name, bool(above), text.format(flagged.mean()))

    missing = ", ".join(measured.unfinished)
    add("incomplete report", not measured.complete, f"the report was interrupted, and these are missing: {missing}")
    (low, high), clip, (zero, nan, subnormal) = measured.image_range, measured.clip_values, measured.gradients
    # Images from 0 to 1 with clip_values from 0 to 255 are a mistake: all pixels would be nearly black.
    usual = clip == (0.0, 1.0) or (clip == (0.0, 255.0) and high > 1)
    add("units of eps", not usual, f"the images lie in [{low:.3g}, {high:.3g}], clip_values are {clip}")
    add("zero gradients", zero > USELESS, f"{zero:.1%} of the input gradients are exactly 0")
    text = f"{nan:.1%} of the input gradients contain NaN or infinity, and attacks replace NaN by 0"
    add("NaN gradients", nan > USELESS, text)
    add("subnormal gradients", subnormal > USELESS, f"{subnormal:.1%} of the input gradients are below 1.2e-38")
    text = f"FGSM does not change {measured.unchanged:.1%} of the images"
    add("unchanged images", measured.unchanged > USELESS >= zero, text)

    fgsm = measured.single_step.get("as given", _NONE)
    runs = [(f"PGD of {steps} steps", robust) for steps, robust in measured.iterative.items()]
    (short, single), (long, double) = [*runs, *[("PGD", _NONE)] * 2][:2]
    for name, robust in measured.single_step.items():
        limit = MUCH_WEAKER if name in OTHER_LOSSES else WEAKER
        compare("masked gradients", "FGSM", fgsm, f"FGSM along {name}", robust, limit)
    compare("iterations do not help", short, single, "FGSM", fgsm)
    compare("too few iterations", short, single, long, double)
    compare("stronger attack succeeds", long, double, "Auto-PGD on the margin", measured.auto_pgd, MUCH_WEAKER)
    for name, robust in measured.black_box.items():
        compare("black box beats white box", long, double, name, robust)
    compare("noise beats gradients", "FGSM", fgsm, "random noise of the same size", measured.noise)

    text = "accuracy is {:.3f}, above chance, although every image can become any other image"
    check_share("unbounded attack fails", measured.unbounded, 1 / measured.classes, text)
    text = "{:.1%} of the margins are not described by their gradients within 1/255 of the pixel range"
    check_share("unstable predictions", measured.unstable, UNSTABLE, text)
    text = "for {:.1%} of the examples, an iterate of PGD is misclassified, but the last iterate is not"
    check_share("silent success", measured.silent, SILENT, text)
    text = "{:.1%} of the margins still decrease when PGD ends"
    check_share("incomplete optimisation", measured.moving, MOVING, text)
    return tuple(Flag(name, "; ".join(texts), REMEDIES[name]) for name, texts in evidence.items())


def is_weaker(first: Flags, second: Flags, by: float = WEAKER) -> bool:
    """
    Return True if the accuracy under the first attack is significantly higher than that under the second, by `by`.

    This is McNemar's exact test with a shifted null hypothesis, that the accuracies differ by `by`. Let d be the number
    of examples that exactly one of the attacks misclassifies. Under the null hypothesis, the second attack
    misclassifies a share of (1 + by n / d) / 2 of them.
    """
    successes, discordant, n = int((first & ~second).sum()), int((first ^ second).sum()), len(first)
    return discordant > by * n and bool(binom.sf(successes - 1, discordant, (1 + by * n / discordant) / 2) < P_VALUE)


def smallest_difference(n: int, by: float = WEAKER) -> float:
    """Return the smallest difference of accuracies of nested attacks that is detected with 80% power; NaN if none."""
    # If the second attack succeeds wherever the first does, all discordant examples are its successes.
    discordant = np.arange(int(by * n) + 1, n + 1)
    detected = discordant[((1 + by * n / discordant) / 2) ** discordant < P_VALUE]
    return _with_power(int(detected[0]) if len(detected) else n + 1, n)


def smallest_share(n: int, limit: float) -> float:
    """Return the smallest share of n examples that is detected to be above a limit with 80% power; NaN if none."""
    return _with_power(int(binom.isf(P_VALUE, n, limit)) + 1, n)


def _with_power(needed: int, n: int) -> float:
    """Return the p for which a binomial(n, p) number is at least `needed` with 80% probability; NaN if needed > n."""
    # The binomial tail is a beta distribution function of p, which is inverted here.
    return float(beta.ppf(POWER, needed, n - needed + 1)) if needed <= n else math.nan
