"""The worst case of an ensemble of attacks, example by example."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from art.attacks.attack import EvasionAttack
from art.attacks.evasion import AutoConjugateGradient, RescalingAutoConjugateGradient
from art.estimators.classification import PyTorchClassifier

from art_hrloss.attacks import Images, Labels, as_indices, checked_eps, ensemble, predicted


@dataclass(frozen=True)
class WorstCase:
    """What an ensemble of attacks left of a classifier, example by example."""

    names: tuple[str, ...]
    """The attacks in their order; the first is "no attack"."""
    broken_by: Labels
    """Shape ``(n,)``: for each example the index in `names` of the first attack that broke it; -1 where none did."""
    adversarial: Images
    """Shape ``(n, *input_shape)``: the image that broke it, or the original."""
    attacked: tuple[int, ...]
    """How many examples still stood when each attack began."""
    seconds: tuple[float, ...]
    """How long each attack took."""
    eps: float
    norm: float | str

    @property
    def accuracy(self) -> float:
        """Robust accuracy: the share of the examples that no attack broke."""
        return float((self.broken_by < 0).mean())

    @property
    def accuracy_after(self) -> dict[str, float]:
        """The share that still stands after each attack and all those before it."""
        return {name: float(((self.broken_by < 0) | (self.broken_by > i)).mean()) for i, name in enumerate(self.names)}

    def __str__(self) -> str:
        width = max(len(name) for name in self.names)
        lines = [f"Worst case of {len(self.broken_by)} examples, eps {self.eps:g}, norm {self.norm}"]
        lines.append(f"{'attack':{width}}  {'attacked':>8}  {'broken':>6}  {'accuracy':>8}  {'seconds':>7}")
        for i, (name, accuracy) in enumerate(self.accuracy_after.items()):
            broken = int((self.broken_by == i).sum())
            lines.append(f"{name:{width}}  {self.attacked[i]:8}  {broken:6}  {accuracy:8.3f}  {self.seconds[i]:7.1f}")
        return "\n".join(lines)


def worst_case(
    classifier: PyTorchClassifier,
    x: npt.NDArray[Any],
    y: npt.NDArray[Any],
    *,
    eps: float,
    norm: float | str = np.inf,
    attacks: Mapping[str, EvasionAttack] | None = None,
    batch_size: int = 128,
    seed: int = 0,
) -> WorstCase:
    """
    Attack with one after another, each only what the ones before have left standing.

    An example is broken when an image within eps of it, in the range of the pixels, is misclassified; attacks that look
    for the nearest adversarial image, as HopSkipJump, so count only where that is near enough.

    :param classifier: What to attack.
    :param x: Images, shape ``(n, *input_shape)``; attacked as float32.
    :param y: True labels, as indices or one-hot.
    :param eps: The largest perturbation, in units of the images.
    :param norm: numpy.inf, 1 or 2.
    :param attacks: ART's attacks by name, each made for this eps, on the classifier or on others; by default
           :func:`ensemble`.
    :param batch_size: Of the predictions.
    :param seed: Of numpy's and torch's global generators, which ART's attacks draw from; they are left as they were.
    :raises ValueError: If there is no example, or an attack is known to be broken in ART.
    """
    eps = checked_eps(eps)
    attacks = ensemble(classifier, eps=eps, norm=norm, batch_size=batch_size) if attacks is None else attacks
    for name, attack in attacks.items():
        _check_attack(name, attack, norm)
    images, labels = np.asarray(x).astype(np.float32), as_indices(y, classifier.nb_classes)
    if len(images) == 0 or len(images) != len(labels):
        raise ValueError(
            f"expected as many labels as images, and at least one, but got {len(labels)} and {len(images)}"
        )
    begun = time.perf_counter()
    broken_by = np.where(predicted(classifier, images, batch_size) == labels, -1, 0)
    adversarial, attacked, seconds = images.copy(), [len(images)], [time.perf_counter() - begun]
    with seeded(seed):
        for i, attack in enumerate(attacks.values(), start=1):
            begun, standing = time.perf_counter(), np.flatnonzero(broken_by < 0)
            if len(standing):
                made = attack.generate(images[standing], labels[standing]).astype(np.float32)
                wrong = predicted(classifier, made, batch_size) != labels[standing]
                wrong &= allowed(made, images[standing], eps, norm, classifier.clip_values)
                broken_by[standing[wrong]] = i
                adversarial[standing[wrong]] = made[wrong]
            attacked.append(len(standing))
            seconds.append(time.perf_counter() - begun)
    return WorstCase(("no attack", *attacks), broken_by, adversarial, tuple(attacked), tuple(seconds), eps, norm)


def allowed(
    adversarial: Images, images: Images, eps: float, norm: float | str, clip_values: tuple[Any, Any] | None
) -> npt.NDArray[np.bool_]:
    """Which adversarial images lie within eps of the originals, and in the pixels' range, up to float32 rounding."""
    change = (adversarial.astype(np.float64) - images).reshape(len(images), -1)
    distance = np.linalg.norm(change, ord=float(norm), axis=1)  # float("inf") is numpy.inf
    near: npt.NDArray[np.bool_] = distance <= eps * (1 + 1e-5) + 1e-6
    if clip_values is None:
        return near
    low, high = clip_values
    inside: npt.NDArray[np.bool_] = (adversarial >= low - 1e-6) & (adversarial <= high + 1e-6)
    return near & inside.reshape(len(images), -1).all(1)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """numpy's and torch's global generators, which ART's attacks draw from, seeded for a while."""
    state = np.random.get_state()  # noqa: NPY002  # ART draws from it
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


def _check_attack(name: str, attack: EvasionAttack, norm: float | str) -> None:
    conjugate = (AutoConjugateGradient, RescalingAutoConjugateGradient)
    if isinstance(attack, conjugate) and norm in (np.inf, "inf"):
        raise ValueError(
            f"expected attacks that work in ART, but {name} is {type(attack).__name__}, which for the L-infinity norm "
            "leaves out the sign of its step and so hardly moves: use it with norm 2, or AutoPGD"
        )
