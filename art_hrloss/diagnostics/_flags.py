"""The flags of the diagnostics: each names what was measured, and the remedy."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from art_hrloss.diagnostics._measurements import Flags, Gradients

# A larger share of useless gradients is flagged, and a replay that breaks so much more than the plain attack.
USELESS, WEAKER = 0.001, 0.01
# Auto-PGD is a better attack than projected gradient descent, and the margin a better aim than cross-entropy: they may
# break more of an honest network, and of adversarially trained ones do.
MUCH_WEAKER, BETTER_AIMS = 0.05, ("the margin", "DLR")
# A difference is flagged only if chance alone would make it more seldom than this.
P_VALUE = 0.01
# Two equal calls may differ by so much of the largest logit: a GPU's sums are not always in the same order.
ROUNDING = 1e-4
# Of the other indicators of attack failure larger shares are flagged, again if they are not by chance.
UNSTABLE, SILENT, MOVING = 0.1, 0.01, 0.1


@dataclass(frozen=True)
class Flag:
    """A reason not to believe what an attack on this classifier leaves standing."""

    name: str
    evidence: str
    """What was measured."""
    remedy: str
    """What to do about it."""

    def __str__(self) -> str:
        return f"{self.name}: {self.evidence}. {self.remedy}."


@dataclass(frozen=True, eq=False)
class Measurements:
    """What the probes measured. Arrays of flags, shape ``(n,)``, say which examples an attack leaves right."""

    eps: float
    norm: float | str
    classes: int
    clean: Flags
    """Without attack."""
    gradients: Gradients
    margins: npt.NDArray[np.float64]
    """Shape ``(n,)``: the true logit less the largest other, without attack."""
    unchanged: float
    """Share of the images that FGSM returns as they were."""
    single_step: Mapping[str, Flags]
    """FGSM: "as given", by the classifier's own gradients, and by those of other losses on the same network."""
    iterative: Mapping[int, Flags]
    """Projected gradient descent by the classifier's own gradients, by the number of its steps."""
    strong: Flags
    """Auto-PGD by the margin."""
    black_box: Mapping[str, Flags]
    """Attacks that do without this classifier's gradients."""
    curve: Mapping[float, Flags]
    """Projected gradient descent by eps."""
    unbounded: Flags
    """Projected gradient descent where every image may become any other."""
    noise: Mapping[float, Flags]
    """Random noise of every pixel, by its size."""
    unstable: float
    """Share of the examples whose prediction changes in noise of 4/255 of the pixel range."""
    silent: float
    """Share that the last iterate of projected gradient descent leaves right, though an earlier one was not."""
    moving: float
    """Share whose margin still falls when projected gradient descent ends."""
    random: float
    """Largest difference between the logits of two equal calls, as a share of the largest logit."""
    probabilities: bool
    """Whether each row of the output is a distribution."""
    pixels: tuple[float, float]
    """The range of the images."""
    clip_values: tuple[float, float] | None
    """The range that the classifier allows."""


def flags(measured: Measurements) -> tuple[Flag, ...]:
    """All flags that the measurements raise."""
    kinds = (_of_outputs, _of_gradients, _of_gradient_attacks, _of_blind_attacks, _of_failures)
    return tuple(flag for kind in kinds for flag in kind(measured))


def _of_outputs(measured: Measurements) -> Iterator[Flag]:
    if measured.probabilities:
        yield Flag(
            "probabilities",
            "each row of the output is a distribution",
            "Take the softmax out of the network: a loss of logits saturates on probabilities",
        )
    if measured.random > ROUNDING:
        yield Flag(
            "random predictions",
            f"two equal calls differ in a logit by {measured.random:.1%} of the largest",
            "Switch randomness such as dropout off, or attack its expectation (art.preprocessing.expectation_over_"
            "transformation)",
        )
    low, high = measured.pixels
    # Bytes in [0, 1] are a mistake: no image among them would have a pixel brighter than 1 of 255.
    as_shares = measured.clip_values == (0.0, 1.0) and low >= 0 and high <= 1
    as_bytes = measured.clip_values == (0.0, 255.0) and low >= 0 and 1 < high <= 255
    if not (as_shares or as_bytes):
        yield Flag(
            "units of eps",
            f"the images lie in [{low:.3g}, {high:.3g}], clip_values are {measured.clip_values}",
            "Give the classifier pixels in [0, 1] and their clip_values, and normalise inside it (preprocessing=(mean, "
            "std)): else eps is not a share of the pixel range, and attacks leave it",
        )


def _of_gradients(measured: Measurements) -> Iterator[Flag]:
    found = measured.gradients
    exact = "Attack through a loss that does not saturate: attack_view(classifier, attack_loss('margin'))"
    if found.zero > USELESS:
        yield Flag(
            "zero gradients",
            f"{found.zero:.1%} of the input gradients are exactly 0",
            f"{exact}; if they stay 0, give the step that has no derivative the one of the identity (BPDA)",
        )
    if found.nan > USELESS:
        yield Flag(
            "NaN gradients",
            f"{found.nan:.1%} of the input gradients have NaN or inf, which ART takes for 0",
            "Compute the loss from log_softmax, and divide by nothing that can be 0",
        )
    if found.subnormal > USELESS:
        yield Flag("subnormal gradients", f"{found.subnormal:.1%} of the input gradients are below 1.2e-38", exact)
    if measured.unchanged > USELESS and not found.zero > USELESS:
        yield Flag(
            "unchanged images",
            f"FGSM returns {measured.unchanged:.1%} of the images as they were",
            "See which examples, and why: NaN gradients, clip values, a mask",
        )


def _of_gradient_attacks(measured: Measurements) -> Iterator[Flag]:
    plain, (single, double) = measured.single_step["as given"], measured.iterative.values()
    limits = {name: MUCH_WEAKER if name in BETTER_AIMS else WEAKER for name in measured.single_step}
    lower = [name for name, standing in measured.single_step.items() if weaker(plain, standing, limits[name])]
    if lower:
        found = ", ".join(f"{name} {measured.single_step[name].mean():.3f}" for name in lower)
        yield Flag(
            "masked gradients",
            f"FGSM leaves {plain.mean():.3f}, and along other gradients of the same network less: {found}",
            "Attack through a loss that breaks more, such as attack_view(classifier, attack_loss('margin'))",
        )
    if weaker(single, plain):
        yield Flag(
            "iterations do not help",
            f"one step leaves {plain.mean():.3f}, many {single.mean():.3f}",
            "The gradients do not lead on: use losses that do not saturate, more restarts, and Square",
        )
    if weaker(single, double):
        steps = list(measured.iterative)
        yield Flag(
            "too few iterations",
            f"{steps[0]} steps leave {single.mean():.3f}, {steps[1]} leave {double.mean():.3f}",
            "Double max_iter until nothing changes",
        )
    if weaker(double, measured.strong, MUCH_WEAKER):
        yield Flag(
            "a better attack breaks more",
            f"PGD leaves {double.mean():.3f}, Auto-PGD by the margin {measured.strong.mean():.3f}",
            "Quote the worst case of an ensemble: art_hrloss.attacks._worst_case",
        )


def _of_blind_attacks(measured: Measurements) -> Iterator[Flag]:
    """Of those that see no gradient of the classifier."""
    plain, double = measured.single_step["as given"], measured.iterative[max(measured.iterative)]
    for name, standing in measured.black_box.items():
        if weaker(double, standing):
            yield Flag(
                "black box beats white box",
                f"PGD leaves {double.mean():.3f}, {name} {standing.mean():.3f}",
                "The gradients are of no use; quote the worst case of an ensemble: art_hrloss.attacks._worst_case",
            )
    noise = measured.noise[min(measured.noise)]
    if weaker(plain, noise):
        yield Flag(
            "noise beats gradients",
            f"FGSM leaves {plain.mean():.3f}, random noise of the same size {noise.mean():.3f}",
            "The gradients point nowhere; see whether the predictions are random",
        )


def _of_failures(measured: Measurements) -> Iterator[Flag]:
    left, n = int(measured.unbounded.sum()), len(measured.unbounded)
    if binomtest(left, n, 1 / measured.classes, alternative="greater").pvalue < P_VALUE:
        yield Flag(
            "unbounded attack fails",
            f"though every image may become any other, {left / n:.3f} stay right, more than chance",
            "The gradients do not lead to the classes' borders: use losses that do not saturate, and BPDA",
        )
    if _more(measured.unstable, n, UNSTABLE):
        yield Flag(
            "unstable predictions",
            f"noise of 4/255 of the pixel range changes {measured.unstable:.1%} of the predictions",
            "Attack the expectation over the noise; no single gradient tells much",
        )
    if _more(measured.silent, n, SILENT):
        yield Flag(
            "silent success",
            f"PGD came by an adversarial image of {measured.silent:.1%} of the examples, and left it for a right one",
            "Keep every iterate that is misclassified: art_hrloss.attacks.PGD and AutoPGD do",
        )
    if _more(measured.moving, n, MOVING):
        yield Flag(
            "incomplete optimisation",
            f"the margin of {measured.moving:.1%} still falls when PGD ends",
            "Double max_iter until nothing changes",
        )


def _more(share: float, n: int, limit: float) -> bool:
    """Whether a share of `n` examples is above a limit, and not by chance."""
    return bool(binomtest(round(share * n), n, limit, alternative="greater").pvalue < P_VALUE)


def weaker(first: Flags, second: Flags, by: float = WEAKER) -> bool:
    """
    Whether the first attack leaves more standing than the second, by a share of more than `by`, and not by chance.

    McNemar's exact test, but not of equal attacks: of the examples that one of them alone breaks, the second breaks so
    many where it is better by just `by`.
    """
    broken, either, n = int((first & ~second).sum()), int((first ^ second).sum()), len(first)
    if either <= by * n:
        return False
    expected = (1 + by * n / either) / 2
    return bool(binomtest(broken, either, expected, alternative="greater").pvalue < P_VALUE)
