"""The attacks of an ensemble: along each loss, from another network, and without gradients."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from art.attacks.attack import EvasionAttack
from art.attacks.evasion import HopSkipJump
from art.estimators.classification import PyTorchClassifier

from art_hrloss.attacks._constraints import Images, checked_eps, predicted
from art_hrloss.attacks._gradient import ProjectedGradientDescent
from art_hrloss.attacks._losses import AttackLossName, attack_loss
from art_hrloss.attacks._restarted import PGD, AutoPGD
from art_hrloss.attacks._square import Square, is_for_square
from art_hrloss.classifier import attack_view


def ensemble(
    classifier: PyTorchClassifier,
    *,
    eps: float,
    norm: float | str = np.inf,
    max_iter: int = 100,
    restarts: int = 1,
    square_iter: int = 1000,
    hop_skip_jump_iter: int = 20,
    transfer_from: Mapping[str, PyTorchClassifier] | None = None,
    batch_size: int = 128,
) -> dict[str, EvasionAttack]:
    """
    Attacks for :func:`~art_hrloss.worst_case.worst_case`, by name, the cheap ones first.

    They are white box along each loss, transfer, score based and label based.

    :param classifier: What to attack.
    :param eps: The largest perturbation, in units of the images.
    :param norm: numpy.inf or 2, for which all of them are made.
    :param max_iter: Steps of each white-box attack.
    :param restarts: Attempts of each white-box attack.
    :param square_iter: Queries per example of the Square attack; 0 leaves it out.
    :param hop_skip_jump_iter: Rounds of HopSkipJump, of a few thousand queries per example each; 0 leaves it out.
    :param transfer_from: Classifiers by name, whose adversarial images are tried as well.
    :param batch_size: Images that are attacked together.
    :raises ValueError: If ART's Square attack cannot be used and is not left out, or an argument is out of its range.
    """
    eps = checked_eps(eps)
    if float(norm) not in (np.inf, 2.0):
        raise ValueError(f"expected norm to be numpy.inf or 2, but got {norm}")
    options: dict[str, Any] = {"eps": eps, "norm": norm, "batch_size": batch_size}
    losses: dict[AttackLossName, str] = {"ce": "CE", "margin": "the margin", "dlr": "DLR", "hr": "HR"}
    if classifier.nb_classes < 3:
        del losses["dlr"]
    attacks: dict[str, EvasionAttack] = {
        "PGD on CE": PGD(classifier, "ce", max_iter=max_iter, restarts=restarts, **options)
    }
    for loss, name in losses.items():
        attacks[f"AutoPGD on {name}"] = AutoPGD(classifier, loss, max_iter=max_iter, restarts=restarts, **options)
    for name, other in (transfer_from or {}).items():
        attacks[f"transfer from {name}"] = transfer(other, max_iter=max_iter, **options)
    if square_iter:
        _check_square(classifier, norm)
        attacks["Square"] = Square(classifier, max_iter=square_iter, nb_restarts=1, verbose=False, **options)
    if hop_skip_jump_iter:
        attacks["HopSkipJump"] = _HopSkipJump(
            attack_view(classifier, attack_loss("ce")),
            norm=norm,
            max_iter=hop_skip_jump_iter,
            batch_size=batch_size,
            verbose=False,
        )
    return attacks


def _check_square(classifier: PyTorchClassifier, norm: float | str) -> None:
    if not is_for_square(classifier, norm):
        raise ValueError(
            "expected images of about equal sides (with norm 2 of equal sides, at least 10) and clip values for ART's "
            f"Square attack, but got {classifier.input_shape} and {classifier.clip_values}: leave it out with "
            "attacks=ensemble(..., square_iter=0)"
        )


def transfer(
    source: PyTorchClassifier, *, eps: float, norm: float | str = np.inf, max_iter: int = 100, batch_size: int = 128
) -> ProjectedGradientDescent:
    """
    Projected gradient descent on another classifier, for images to try on this one.

    ART's own, because ours returns unchanged what the other classifier gets wrong to begin with.

    :param source: The other classifier, climbed along cross-entropy whatever its own loss.
    :param eps: The largest perturbation, in units of the images.
    :param norm: numpy.inf, 1 or 2.
    :param max_iter: Steps, of 2.5 eps / max_iter, from a random start.
    :param batch_size: Images that are attacked together.
    """
    return ProjectedGradientDescent(
        attack_view(source, attack_loss("ce")),
        norm=norm,
        eps=checked_eps(eps),
        eps_step=2.5 * eps / max_iter,
        max_iter=max_iter,
        num_random_init=1,
        batch_size=batch_size,
        verbose=False,
    )


class _HopSkipJump(HopSkipJump):
    """ART's, which starts from images of an unseeded generator of its own: here they come from numpy's global one."""

    def _init_sample(self, x: Images, y: Any, y_p: Any, init_pred: Any, adv_init: Any, *options: Any) -> Any:
        _, low, high = options
        for _ in range(self.init_size):
            image = np.random.uniform(low, high, size=x.shape).astype(x.dtype)  # noqa: NPY002
            (label,) = predicted(self.estimator, image[np.newaxis], 1)
            if label != y_p:
                return super()._init_sample(x, y, y_p, label, image, *options)
        return None
