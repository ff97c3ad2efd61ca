"""The worst case over an ensemble of attacks, example by example, and the ensemble's attacks."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from art.attacks.attack import EvasionAttack
from art.attacks.evasion import AutoAttack, AutoConjugateGradient, HopSkipJump, RescalingAutoConjugateGradient
from art.estimators.classification import PyTorchClassifier

from art_hrloss._context import modes_kept, seeded
from art_hrloss._network import check_classifier
from art_hrloss._preconditions import Images, Labels, checked_evaluation
from art_hrloss.attacks._auto_pgd import AutoProjectedGradientDescent
from art_hrloss.attacks._constraints import check_eps, feasible, norm_order
from art_hrloss.attacks._gradient import ProjectedGradientDescent
from art_hrloss.attacks._square import SquareAttack, is_for_square
from art_hrloss.classifier import as_hr_classifier

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class WorstCase:
    """The result of an ensemble of attacks, example by example."""

    names: tuple[str, ...]  #: The attacks in their order; the first is "no attack".
    found_by: Labels
    """Shape ``(n,)``: for each example the index in `names` of the first attack that found an adversarial example; -1
    where none did."""
    adversarial: Images  #: Shape ``(n, *input_shape)``: the adversarial example, or the original image.
    attacked: tuple[int, ...]  #: How many examples each attack was tried on: those not yet misclassified.
    seconds: tuple[float, ...]  #: How long each attack took.
    eps: float
    norm: float | str

    @property
    def accuracy(self) -> float:
        """Robust accuracy: the share of the examples that no attack misclassified; an upper bound."""
        return float((self.found_by < 0).mean())

    @property
    def accuracy_after(self) -> dict[str, float]:
        """Robust accuracy under each attack and all those before it, by name."""
        return {name: float(((self.found_by < 0) | (self.found_by > i)).mean()) for i, name in enumerate(self.names)}

    def to_frame(self) -> "pd.DataFrame":
        """Return a row per attack as a DataFrame: attack, attacked, found, accuracy, seconds; needs pandas."""
        import pandas as pd

        return pd.DataFrame(self._rows(), columns=["attack", "attacked", "found", "accuracy", "seconds"])

    def __str__(self) -> str:
        width = max(len(name) for name in self.names)
        lines = [f"Worst case of {len(self.found_by)} examples, eps {self.eps:g}, norm {self.norm}"]
        lines.append(f"{'attack':{width}}  {'attacked':>8}  {'found':>6}  {'accuracy':>8}  {'seconds':>7}")
        for name, attacked, found, accuracy, seconds in self._rows():
            lines.append(f"{name:{width}}  {attacked:8}  {found:6}  {accuracy:8.3f}  {seconds:7.1f}")
        return "\n".join(lines)

    def _rows(self) -> list[tuple[str, int, int, float, float]]:
        found = [int((self.found_by == i).sum()) for i in range(len(self.names))]
        return list(zip(self.names, self.attacked, found, self.accuracy_after.values(), self.seconds, strict=True))


def worst_case(
    classifier: PyTorchClassifier,
    x: Any,
    y: Any,
    *,
    eps: float,
    norm: float | str = np.inf,
    attacks: Mapping[str, EvasionAttack] | None = None,
    batch_size: int = 128,
    seed: int = 0,
) -> WorstCase:
    """
    Run one attack after another, each on the examples that none before it has misclassified.

    An image is an adversarial example if it lies within eps of the original, in the range of the pixels, and is
    misclassified.

    :param x: Images, shape ``(n, *input_shape)``, finite and inside clip_values; attacked as float32.
    :param y: True labels, in any form of :func:`art_hrloss._labels.parse_labels`.
    :param eps: The largest perturbation, in units of the images.
    :param norm: numpy.inf or 2; 1 as well, with attacks of that norm.
    :param attacks: ART's attacks by name, each constructed for this eps, on the classifier or on others; of one of
           another norm, or for the nearest adversarial image, as HopSkipJump, only what lies within eps counts; {}
           measures clean accuracy. By default :func:`ensemble`.
    :param batch_size: Images per prediction.
    :param seed: Of Python's, NumPy's and torch's global generators, which are restored. ART's attacks draw from them,
           but for its own HopSkipJump and BoundaryAttack, which start at images that no seed decides.
    :raises ValueError: If robust accuracy would mean nothing: see
            :func:`art_hrloss._preconditions.checked_evaluation`; or if an attack is targeted, constructed for more than
            eps, or known not to work in ART; or if all are constructed for less.

    >>> import torch
    >>> from art_hrloss import HRClassifier, HRLoss
    >>> classifier = HRClassifier(torch.nn.Linear(4, 3), HRLoss(), (4,), 3, clip_values=(0, 1), device_type="cpu")
    >>> images = np.random.default_rng(0).random((20, 4), dtype=np.float32)
    >>> attacks = ensemble(classifier, eps=0.1, square_iter=0)
    >>> result = worst_case(classifier, images, classifier.predict(images).argmax(1), eps=0.1, attacks=attacks)
    >>> 0 <= result.accuracy <= 1
    True
    """
    check_classifier(classifier)
    eps = check_eps(eps, norm, classifier.clip_values)
    if norm_order(norm) not in (1.0, 2.0, np.inf):
        raise ValueError(f"expected norm to be 1, 2 or numpy.inf, but got {norm}")
    attacks = ensemble(classifier, eps=eps, norm=norm, batch_size=batch_size) if attacks is None else attacks
    if not isinstance(attacks, Mapping):
        raise TypeError(f"expected attacks by name, a dict as ensemble returns, but got a {type(attacks).__name__}")
    radii = [_checked_radius(name, attack, eps, norm) for name, attack in attacks.items()]
    if radii and all(radius < eps * (1 - 1e-5) for radius in radii):
        raise ValueError(f"expected an attack constructed for eps {eps:g}, but got attacks of smaller ones alone")
    begin = time.perf_counter()
    estimators = [getattr(attack, "estimator", None) for attack in attacks.values()]
    others = [estimator.model for estimator in estimators if isinstance(estimator, PyTorchClassifier)]
    with modes_kept(classifier.model, *others), seeded(seed):  # ART's predict draws from torch's generator as well
        images, labels, logits = checked_evaluation(classifier, x, y, batch_size=batch_size)
        found_by = np.where(logits.argmax(1) == labels, -1, 0)
        adversarial, attacked, seconds = images.copy(), [len(images)], [time.perf_counter() - begin]
        for i, attack in enumerate(attacks.values(), start=1):
            begin, rows = time.perf_counter(), np.flatnonzero(found_by < 0)
            if len(rows):
                candidates = attack.generate(images[rows], labels[rows]).astype(np.float32)
                wrong = classifier.predict(candidates, batch_size=batch_size).argmax(1) != labels[rows]
                wrong &= feasible(candidates, images[rows], eps, norm, classifier.clip_values)
                found_by[rows[wrong]] = i
                adversarial[rows[wrong]] = candidates[wrong]
            attacked.append(len(rows))
            seconds.append(time.perf_counter() - begin)
    return WorstCase(("no attack", *attacks), found_by, adversarial, tuple(attacked), tuple(seconds), eps, norm)


def ensemble(
    classifier: PyTorchClassifier,
    *,
    eps: float,
    norm: float | str = np.inf,
    max_iter: int = 100,
    restarts: int = 1,
    target_classes: int = 9,
    square_iter: int = 5000,
    hop_skip_jump_iter: int = 0,
    transfer_from: Mapping[str, PyTorchClassifier] | None = None,
    batch_size: int = 128,
) -> dict[str, EvasionAttack]:
    """
    Return attacks for :func:`worst_case`, by name: white-box along each loss and to each class, transfer, black-box.

    The order and the numbers are those that were never weaker than AutoAttack's standard set on honest and on masked
    networks, at a fraction of its time.

    :param eps: The largest perturbation, in units of the images.
    :param norm: numpy.inf or 2.
    :param max_iter: Steps of each white-box attack; a fifth of them for the one that goes to all classes.
    :param restarts: Attempts of each white-box attack that is not targeted.
    :param target_classes: Classes towards which Auto-PGD goes, the likeliest first, as far as there are so many; to the
           first five of them with all steps. 0 leaves these attacks out.
    :param square_iter: Queries per example of the Square attack, which in L-infinity ends after two fifths of them in a
           row that found nothing; 0 leaves it out.
    :param hop_skip_jump_iter: Rounds of HopSkipJump, of a few thousand queries per example each; 0 leaves it out.
    :param transfer_from: Classifiers by name, whose adversarial images are tried as well.
    :param batch_size: Images that are attacked together.
    :raises ValueError: If the Square attack cannot be used and is not left out, or an argument is out of its range.

    >>> import torch
    >>> from art_hrloss import HRClassifier, HRLoss
    >>> classifier = HRClassifier(torch.nn.Linear(4, 3), HRLoss(), (4,), 3, clip_values=(0, 1), device_type="cpu")
    >>> list(ensemble(classifier, eps=0.1, square_iter=0))[:2]
    ['AutoPGD on CE', 'AutoPGD on HR']
    """
    eps = check_eps(eps, norm, classifier.clip_values)
    if norm_order(norm) not in (np.inf, 2.0):
        raise ValueError(f"expected norm to be numpy.inf or 2, but got {norm}")
    options: dict[str, Any] = {"eps": eps, "norm": norm, "batch_size": batch_size, "verbose": False}
    auto = options | {"eps_step": 2 * eps, "max_iter": max_iter, "keep_first": True}
    parameters: dict[str, dict[str, Any]] = {
        "AutoPGD on CE": {"loss": "ce", "restarts": restarts},
        "AutoPGD on HR": {"loss": "hr", "restarts": restarts},
    }
    if target_classes:
        count = min(target_classes, classifier.nb_classes - 1)
        brief = {"target_classes": count, "loss": "margin", "max_iter": max(1, max_iter // 5)}
        parameters["AutoPGD to likeliest classes"] = {"target_classes": min(5, count)}
        parameters["AutoPGD to other classes"] = brief
    attacks: dict[str, EvasionAttack] = {
        name: AutoProjectedGradientDescent(classifier, **auto | values) for name, values in parameters.items()
    }
    for name, other in (transfer_from or {}).items():
        attacks[f"transfer from {name}"] = transfer(other, max_iter=max_iter, **options)
    if square_iter:
        if not is_for_square(classifier, norm):
            raise ValueError(
                "expected clip values and images of three dimensions, with norm 2 of equal sides of at least 10, for "
                f"the Square attack, but got {classifier.clip_values} and {classifier.input_shape}: leave it out with "
                "attacks=ensemble(..., square_iter=0)"
            )
        patience = max(1, 2 * square_iter // 5) if norm_order(norm) == np.inf else None  # which ART's of norm 2 has not
        attacks["Square"] = SquareAttack(classifier, max_iter=square_iter, nb_restarts=1, patience=patience, **options)
    if hop_skip_jump_iter:
        queried = {"norm": norm, "max_iter": hop_skip_jump_iter, "batch_size": batch_size, "verbose": False}
        attacks["HopSkipJump"] = HopSkipJumpAttack(as_hr_classifier(classifier), **queried)
    return attacks


def transfer(
    source: PyTorchClassifier,
    *,
    eps: float,
    norm: float | str = np.inf,
    max_iter: int = 100,
    batch_size: int = 128,
    verbose: bool = False,
) -> ProjectedGradientDescent:
    """
    Return projected gradient descent on another classifier, for images to be tried on this one.

    Its images are the last iterates: the first adversarial one of the other classifier is a weak one here.

    :param source: The other classifier, attacked along cross-entropy whatever its own loss.
    :param eps: The largest perturbation, in units of the images.
    :param norm: numpy.inf, 1 or 2.
    :param max_iter: Steps, of 2.5 eps / max_iter, from a random start.
    """
    eps = check_eps(eps, norm, source.clip_values)
    sizes: dict[str, Any] = {"eps": eps, "eps_step": 2.5 * eps / max_iter, "max_iter": max_iter, "num_random_init": 1}
    return ProjectedGradientDescent(source, norm, loss="ce", batch_size=batch_size, verbose=verbose, **sizes)


class HopSkipJumpAttack(HopSkipJump):
    """ART's, which starts at images of an unseeded generator of its own: here they come from NumPy's global one."""

    def _init_sample(self, x: Images, y: Any, y_p: Any, init_pred: Any, adv_init: Any, *options: Any) -> Any:
        _, low, high = options
        for _ in range(self.init_size):
            image = np.random.uniform(low, high, size=x.shape).astype(x.dtype)  # noqa: NPY002
            (label,) = self.estimator.predict(image[np.newaxis], batch_size=1).argmax(1)
            if label != y_p:
                return super()._init_sample(x, y, y_p, label, image, *options)
        return None


def _checked_radius(name: str, attack: EvasionAttack, eps: float, norm: float | str) -> float:
    """Return the largest eps of an attack of this norm, NaN for any other; raise if it has no place in a worst case."""
    if isinstance(attack, type) or not hasattr(attack, "generate"):
        raise TypeError(f"expected attacks, objects with a method generate, but {name} is {attack!r:.60}")
    kind, norm_of_attack = type(attack).__name__, getattr(attack, "norm", None)
    conjugate = (AutoConjugateGradient, RescalingAutoConjugateGradient)
    if isinstance(attack, conjugate) and norm_of_attack in (np.inf, "inf"):
        raise ValueError(
            f"expected attacks that work in ART, but {name} is {kind}, which for the L-infinity norm "
            "leaves out the sign of its step and so hardly moves: use it with norm 2, or AutoPGD"
        )
    # AutoAttack means by it that targeted attacks come on top.
    if getattr(attack, "targeted", False) and not isinstance(attack, AutoAttack):
        raise ValueError(f"expected attacks that are not targeted, but {name} is {kind} with targeted=True")
    same_norm = norm_of_attack is not None and norm_order(norm_of_attack) == norm_order(norm)
    if not same_norm or not hasattr(attack, "eps") or getattr(attack, "minimal", False):
        return np.nan
    radius = float(np.max(attack.eps))
    if radius > eps * (1 + 1e-5):
        raise ValueError(f"expected attacks constructed for eps {eps:g}, but {name} is {kind} with eps {radius:g}")
    return radius
