"""The worst case of an ensemble of attacks, example by example."""

import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from art.attacks.attack import EvasionAttack
from art.attacks.evasion import AutoAttack, AutoConjugateGradient, RescalingAutoConjugateGradient
from art.estimators.classification import PyTorchClassifier

from art_hrloss._context import modes_kept
from art_hrloss.attacks._constraints import Images, Labels, allowed, as_indices, checked_eps, predicted
from art_hrloss.attacks._ensemble import ensemble

__all__ = ["WorstCase", "ensemble", "seeded", "worst_case"]


@dataclass(frozen=True, eq=False)
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
    :param norm: numpy.inf or 2; 1 as well, with attacks of that norm.
    :param attacks: ART's attacks by name, each made for this eps, on the classifier or on others; of one of another
           norm, or for the nearest adversarial image, only what lies within eps counts. By default :func:`ensemble`.
    :param batch_size: Of the predictions.
    :param seed: Of Python's, numpy's and torch's global generators, which are left as they were. ART's attacks draw
           from them, but for its own HopSkipJump and BoundaryAttack, which begin at images that no seed decides.
    :raises ValueError: If there is no example, or an attack is targeted, made for more than eps, or known to be broken
            in ART: what such an attack leaves standing would count as robust.
    """
    eps = checked_eps(eps)
    attacks = ensemble(classifier, eps=eps, norm=norm, batch_size=batch_size) if attacks is None else attacks
    for name, attack in attacks.items():
        _check_attack(name, attack, eps, norm)
    images, labels = np.asarray(x).astype(np.float32), as_indices(y, classifier.nb_classes)
    if len(images) == 0 or len(images) != len(labels):
        raise ValueError(
            f"expected as many labels as images, and at least one, but got {len(labels)} and {len(images)}"
        )
    begun = time.perf_counter()
    estimators = [getattr(attack, "estimator", None) for attack in attacks.values()]
    others = [estimator.model for estimator in estimators if isinstance(estimator, PyTorchClassifier)]
    with modes_kept(classifier.model, *others), seeded(seed):  # ART's predict draws from torch's generator as well.
        broken_by = np.where(predicted(classifier, images, batch_size) == labels, -1, 0)
        adversarial, attacked, seconds = images.copy(), [len(images)], [time.perf_counter() - begun]
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


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Python's, numpy's and torch's global generators, which ART's attacks draw from, seeded for a while."""
    python, state = random.getstate(), np.random.get_state()  # noqa: NPY002  # ART draws from them
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            random.seed(seed)
            yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
        random.setstate(python)


def _check_attack(name: str, attack: EvasionAttack, eps: float, norm: float | str) -> None:
    kind, own_norm, own_eps = type(attack).__name__, getattr(attack, "norm", None), getattr(attack, "eps", 0.0)
    conjugate = (AutoConjugateGradient, RescalingAutoConjugateGradient)
    if isinstance(attack, conjugate) and own_norm in (np.inf, "inf"):
        raise ValueError(
            f"expected attacks that work in ART, but {name} is {kind}, which for the L-infinity norm "
            "leaves out the sign of its step and so hardly moves: use it with norm 2, or AutoPGD"
        )
    # AutoAttack means by it that targeted attacks come on top.
    if getattr(attack, "targeted", False) and not isinstance(attack, AutoAttack):
        raise ValueError(f"expected attacks that are not targeted, but {name} is {kind} with targeted=True")
    same_norm = own_norm is not None and float(own_norm) == float(norm)
    if same_norm and not getattr(attack, "minimal", False) and np.max(own_eps) > eps * (1 + 1e-5):
        raise ValueError(f"expected attacks made for eps {eps:g}, but {name} is {kind} with eps {np.max(own_eps):g}")
