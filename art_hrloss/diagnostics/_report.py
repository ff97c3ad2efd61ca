"""
Is this robustness real? Signs that a classifier withstands an attack because its gradients are of no use.

After Athalye, Carlini and Wagner, "Obfuscated Gradients Give a False Sense of Security" (2018), Carlini et al., "On
Evaluating Adversarial Robustness" (2019), and Pintor et al., "Indicators of Attack Failure" (2022). A classifier that
raises no flag has passed these checks, and no more: what counts is :func:`~art_hrloss.worst_case.worst_case`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from art.estimators.classification import PyTorchClassifier

from art_hrloss._context import modes_kept
from art_hrloss.attacks._constraints import as_indices, checked_eps, margins
from art_hrloss.attacks._worst_case import seeded
from art_hrloss.diagnostics._flags import Flag, Measurements, flags
from art_hrloss.diagnostics._measurements import Flags, Target
from art_hrloss.losses._numerics import are_distributions

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class GradientMaskingReport(Measurements):
    """What the probes measured, the flags that follow, and both as a table."""

    @property
    def flags(self) -> tuple[Flag, ...]:
        """The reasons not to believe in robustness; none is no proof of any."""
        return flags(self)

    @property
    def flagged(self) -> bool:
        """Whether there is any flag."""
        return bool(self.flags)

    @property
    def standing(self) -> Flags:
        """Shape ``(n,)``: which examples are right without attack and under every attack of at most eps."""
        attacks = (*self.single_step.values(), *self.iterative.values(), self.strong, *self.black_box.values())
        found: Flags = np.logical_and.reduce((self.clean, *attacks))
        return found

    def rows(self) -> list[tuple[str, str, float]]:
        """What was measured: part, what, and its value, an accuracy or a share unless it says otherwise."""
        attacks = {
            ("no attack", ""): self.clean,
            **{("FGSM", name): standing for name, standing in self.single_step.items()},
            **{("PGD", f"{steps} steps"): standing for steps, standing in self.iterative.items()},
            **{("PGD", f"eps {eps:g}"): standing for eps, standing in self.curve.items()},
            ("PGD", "unbounded"): self.unbounded,
            ("Auto-PGD", "the margin"): self.strong,
            **{("black box", name): standing for name, standing in self.black_box.items()},
            **{("noise", f"size {size:g}"): standing for size, standing in self.noise.items()},
        }
        shares = {
            ("gradients", "exactly 0"): self.gradients.zero,
            ("gradients", "NaN or inf"): self.gradients.nan,
            ("gradients", "subnormal"): self.gradients.subnormal,
            ("FGSM", "images unchanged"): self.unchanged,
            ("PGD", "silent success"): self.silent,
            ("PGD", "still moving at its end"): self.moving,
            ("noise", "unstable at 4/255"): self.unstable,
        }
        percentiles = {("margin", f"percentile {p}"): float(np.percentile(self.margins, p)) for p in (1, 50, 99)}
        accuracies = {name: float(standing.mean()) for name, standing in attacks.items()}
        return [(*name, value) for name, value in (accuracies | shares | percentiles).items()]

    def to_frame(self) -> "pd.DataFrame":
        """The rows as a DataFrame with the columns part, what and value; needs pandas."""
        import pandas as pd

        return pd.DataFrame(self.rows(), columns=["part", "what", "value"])

    def __str__(self) -> str:
        verdict = f"{len(self.flags)} flags" if self.flagged else "no flag"
        lines = [f"Gradient masking, {len(self.clean)} examples, eps {self.eps:g}, norm {self.norm}: {verdict}"]
        lines += [f"{part:10} {what:24} {value:9.3f}" for part, what, value in self.rows()]
        return "\n".join([*lines, *(f"! {flag}" for flag in self.flags)])


def gradient_masking_report(
    classifier: PyTorchClassifier,
    x: npt.NDArray[Any],
    y: npt.NDArray[Any],
    *,
    eps: float,
    norm: float | str = np.inf,
    max_iter: int = 40,
    square_iter: int = 500,
    noise_draws: int = 100,
    transfer_from: Mapping[str, PyTorchClassifier] | None = None,
    batch_size: int = 128,
    seed: int = 0,
) -> GradientMaskingReport:
    """
    Probe a classifier for signs that it only seems robust.

    Nothing of the classifiers is changed: neither the mode of a network nor the gradients of its parameters.

    The cost is that of about ``8 max_iter + 25`` forward and ``8 max_iter + 6`` backward passes over the examples, at
    most ``square_iter + noise_draws + 3`` more forward ones, and `max_iter` of both per classifier in `transfer_from`;
    a few hundred examples are enough.

    :param classifier: Any PyTorchClassifier that predicts logits, whatever its loss.
    :param x: Images, shape ``(n, *input_shape)``.
    :param y: True labels, as indices or one-hot.
    :param eps: The perturbation to be withstood, in units of the images.
    :param norm: numpy.inf or 2. Of norm 1 ART's gradient attacks move a single pixel per step, which the clip values
           often undo: on it they fail on honest networks as well.
    :param max_iter: Steps of projected gradient descent, which is made with twice as many as well.
    :param square_iter: Steps of the Square attack; 0 leaves it out. It is left out as well where ART's cannot run: on
           what is no image, without clip values, and on images that are small (norm 2) or long.
    :param noise_draws: Draws of slight noise, 4/255 of the pixel range, for unstable predictions.
    :param transfer_from: Classifiers by name, whose adversarial images are tried on this one.
    :param batch_size: Images at a time.
    :param seed: Of all that is random.
    :raises ValueError: If there is no example, an option is out of its range, or the classifier's output is not one
            number per class.
    """
    eps, others = checked_eps(eps), transfer_from or {}
    _check_options(norm, max_iter, square_iter, noise_draws, batch_size)
    images = np.asarray(x).astype(np.float32)
    if len(images) == 0 or len(images) != len(y):
        raise ValueError(f"expected images, and a label for each, but got {len(images)} and {len(y)} labels")
    target = Target(classifier, images, as_indices(y, classifier.nb_classes), eps, norm, batch_size)
    with seeded(seed), _left_as_found(classifier, *others.values()):
        logits = target.clean
        if logits.shape != (len(images), classifier.nb_classes):
            expected = f"({len(images)}, {classifier.nb_classes}), one number for each class"
            raise ValueError(f"expected predictions of shape {expected}, but got {logits.shape}")
        return _measured(target, logits, max_iter, square_iter, noise_draws, others, seed)


def _check_options(norm: float | str, max_iter: int, square_iter: int, noise_draws: int, batch_size: int) -> None:
    if float(norm) not in (np.inf, 2.0):
        raise ValueError(f"expected norm to be numpy.inf or 2, but got {norm}")
    for name, value, least in (
        ("max_iter", max_iter, 1),
        ("square_iter", square_iter, 0),
        ("noise_draws", noise_draws, 0),
        ("batch_size", batch_size, 1),
    ):
        if value < least:
            raise ValueError(f"expected {name} to be at least {least}, but got {value}")


@contextmanager
def _left_as_found(*classifiers: PyTorchClassifier) -> Iterator[None]:
    """ART's `predict` and `loss_gradient` change the mode of the network, and the gradients of its parameters."""
    gradients = [(parameter, parameter.grad) for c in classifiers for parameter in c.model.parameters()]
    try:
        with modes_kept(*(c.model for c in classifiers)):
            yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient


def _measured(
    target: Target,
    logits: npt.NDArray[np.float64],
    max_iter: int,
    square_iter: int,
    noise_draws: int,
    transfer_from: Mapping[str, PyTorchClassifier],
    seed: int,
) -> GradientMaskingReport:
    eps, x, random, found = target.eps, target.x, np.random.default_rng(seed), margins(logits, target.labels)
    stepped, traces = target.fgsm(), {steps: target.pgd(steps) for steps in (max_iter, 2 * max_iter)}
    views = target.views(float(np.median(found)))
    black_box = {"Square": target.square(square_iter)} if square_iter and target.is_for_square else {}
    clip = target.classifier.clip_values
    return GradientMaskingReport(
        eps=eps,
        norm=target.norm,
        classes=logits.shape[1],
        clean=logits.argmax(1) == target.labels,
        gradients=target.gradients(),
        margins=found,
        unchanged=float((stepped == x).reshape(len(x), -1).all(1).mean()),
        single_step={
            "as given": target.standing(stepped),
            **{name: target.standing(target.fgsm(view)) for name, view in views.items()},
        },
        iterative={steps: trace.standing for steps, trace in traces.items()},
        strong=target.strong(max_iter),
        black_box=black_box | {f"transfer from {n}": target.transfer(c, max_iter) for n, c in transfer_from.items()},
        curve={factor * eps: target.pgd(max_iter, factor * eps).standing for factor in (0.5, 2.0, 4.0)},
        unbounded=target.pgd(max_iter, target.unbounded_eps).standing,
        noise={factor * target.noise_size: target.noise(factor * target.noise_size, random) for factor in (1.0, 2.0)},
        unstable=target.unstable(4 / 255 * target.pixel_range, noise_draws, random),
        silent=float(traces[max_iter].silent.mean()),
        moving=float(traces[2 * max_iter].moving.mean()),
        random=float(np.nan_to_num(np.abs(target.logits(x) - logits)).max() / max(np.abs(logits).max(), 1e-30)),
        probabilities=are_distributions(torch.from_numpy(logits)),
        pixels=(float(x.min()), float(x.max())),
        clip_values=None if clip is None else (float(np.min(clip[0])), float(np.max(clip[1]))),
    )
