"""The attacks that a worst case is taken over by default."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from art.attacks.attack import EvasionAttack
from art.attacks.evasion import HopSkipJump
from art.estimators.classification import PyTorchClassifier

from art_hrloss._preconditions import Images
from art_hrloss.attacks._auto_pgd import AutoProjectedGradientDescent
from art_hrloss.attacks._constraints import check_eps, norm_order
from art_hrloss.attacks._gradient import ProjectedGradientDescent
from art_hrloss.attacks._square import SquareAttack, is_for_square
from art_hrloss.classifier import as_hr_classifier


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

    Order and numbers were chosen beside AutoAttack's standard set, on honest and on masked networks, for as many
    adversarial examples from a third of its passes through the network.

    :param eps: The largest perturbation, in units of the images.
    :param norm: numpy.inf or 2.
    :param max_iter: Steps of each white-box attack; a fifth of them for the one that goes to all classes.
    :param restarts: Attempts of each white-box attack that is not targeted.
    :param target_classes: Classes towards which Auto-PGD goes, the likeliest first, as far as there are so many; to the
           first five of them with all steps. 0 leaves these attacks out.
    :param square_iter: Queries per example of the Square attack; 0 leaves it out. In L-infinity it ends after a tenth
           of them in a row, and 500 at least, that found nothing.
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
        # Where gradients are masked it goes on finding; where they are not, more queries found nothing in our tests.
        patience = max(500, square_iter // 10) if norm_order(norm) == np.inf else None  # which ART's of norm 2 has not
        attacks["Square"] = SquareAttack(classifier, max_iter=square_iter, nb_restarts=1, patience=patience, **options)
    if hop_skip_jump_iter:
        queried = {"norm": norm, "max_iter": hop_skip_jump_iter, "batch_size": batch_size, "verbose": False}
        attacks["HopSkipJump"] = HopSkipJumpAttack(classifier, **queried)
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
    """
    ART's, which starts at images of an unseeded generator of its own: here they come from NumPy's global one.

    Under NumPy 2 ART's gives images of float64, which its PyTorchClassifier does not take: an HRClassifier does.
    """

    def __init__(self, classifier: Any, *args: Any, **kwargs: Any) -> None:
        """
        :param classifier: A classifier of ART's, of PyTorch or a black box.
        :param args: As in ART.
        """
        view = as_hr_classifier(classifier) if isinstance(classifier, PyTorchClassifier) else classifier
        super().__init__(view, *args, **kwargs)

    def _init_sample(self, x: Images, y: Any, y_p: Any, init_pred: Any, adv_init: Any, *options: Any) -> Any:
        _, low, high = options
        for _ in range(self.init_size):
            image = np.random.uniform(low, high, size=x.shape).astype(x.dtype)  # noqa: NPY002
            (label,) = self.estimator.predict(image[np.newaxis], batch_size=1).argmax(1)
            if label != y_p:
                return super()._init_sample(x, y, y_p, label, image, *options)
        return None
