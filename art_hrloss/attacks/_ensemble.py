"""The default ensemble of attacks for the worst case, and attacks that belong to it."""

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
    Return the default attacks of :func:`worst_case` by name: white-box attacks, transfer attacks, black-box attacks.

    The order and the numbers of steps were chosen in a comparison with AutoAttack's standard set, on networks with and
    without gradient masking, to find as many adversarial examples with a third of the passes through the network.

    :param classifier: The PyTorchClassifier to attack.
    :param eps: The largest perturbation, in units of the images.
    :param norm: numpy.inf or 2.
    :param max_iter: Steps of each white-box attack; the attack on all target classes uses a fifth of them.
    :param restarts: Restarts of each untargeted white-box attack.
    :param target_classes: The number of target classes of Auto-PGD, the most likely first, at most all other classes.
           The first five are attacked with all steps. 0 omits the targeted attacks.
    :param square_iter: Queries of the Square attack per example; 0 omits it. In L-infinity it stops after a tenth of
           these queries, but at least 500, without a success.
    :param hop_skip_jump_iter: Iterations of HopSkipJump, each of a few thousand queries per example; 0 omits it.
    :param transfer_from: Classifiers by name, whose adversarial examples are evaluated on this classifier.
    :param batch_size: Images that are attacked together.
    :return: Attacks by name, in the order in which they run.
    :raises ValueError: If the Square attack does not support the classifier, or an argument is out of its range.

    >>> import torch
    >>> from art_hrloss import HRClassifier, HRLoss, ensemble
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
        short = {"target_classes": count, "loss": "margin", "max_iter": max(1, max_iter // 5)}
        parameters["AutoPGD to likeliest classes"] = {"target_classes": min(5, count)}
        parameters["AutoPGD to other classes"] = short
    attacks: dict[str, EvasionAttack] = {
        name: AutoProjectedGradientDescent(classifier, **auto | values) for name, values in parameters.items()
    }
    for name, source in (transfer_from or {}).items():
        attacks[f"transfer from {name}"] = transfer(source, max_iter=max_iter, **options)
    if square_iter:
        if not is_for_square(classifier, norm):
            raise ValueError(
                "expected clip_values and images of three dimensions (for norm 2 with equal sides of at least 10) for "
                f"the Square attack, but got {classifier.clip_values} and {classifier.input_shape}: omit this attack "
                "with attacks=ensemble(..., square_iter=0)"
            )
        # With masked gradients the attack continues to have successes; otherwise more queries had none in our tests.
        # For norm 2, ART's implementation runs, which has no such parameter.
        patience = max(500, square_iter // 10) if norm_order(norm) == np.inf else None
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
    Return projected gradient descent on a source classifier, for a transfer attack on another classifier.

    The attack returns the last iterates: the first adversarial iterate of the source is a weak attack on another model.

    :param source: The source classifier, attacked along cross-entropy, independent of its loss.
    :param eps: The largest perturbation, in units of the images.
    :param norm: numpy.inf, 1 or 2.
    :param max_iter: The number of steps of size 2.5 eps / max_iter, from a random start.
    :param batch_size: Images that are attacked together.
    :param verbose: Whether to show a progress bar.
    :raises ValueError: If an argument is out of its range.
    :raises TypeError: If `source` is not a PyTorchClassifier.

    >>> import torch
    >>> from art_hrloss import HRClassifier, HRLoss
    >>> from art_hrloss.attacks import transfer
    >>> source = HRClassifier(torch.nn.Linear(4, 3), HRLoss(), (4,), 3, clip_values=(0, 1), device_type="cpu")
    >>> transfer(source, eps=0.1, max_iter=10).eps_step
    0.025
    """
    eps = check_eps(eps, norm, source.clip_values)
    sizes: dict[str, Any] = {"eps": eps, "eps_step": 2.5 * eps / max_iter, "max_iter": max_iter, "num_random_init": 1}
    return ProjectedGradientDescent(source, norm, loss="ce", batch_size=batch_size, verbose=verbose, **sizes)


class HopSkipJumpAttack(HopSkipJump):
    """
    ART's HopSkipJump (Chen et al., 2020), reproducible with :func:`~art_hrloss.attacks.seeded`.

    ART draws the starting points from an unseeded generator, and this attack from NumPy's global generator. Its
    iterates are float64 under NumPy 2, which ART's PyTorchClassifier rejects; the classifier is therefore wrapped.

    >>> import numpy as np, torch
    >>> from art_hrloss import HRClassifier, HRLoss, seeded
    >>> from art_hrloss.attacks import HopSkipJumpAttack
    >>> classifier = HRClassifier(torch.nn.Linear(4, 3), HRLoss(), (4,), 3, clip_values=(0, 1), device_type="cpu")
    >>> attack = HopSkipJumpAttack(classifier, norm=2, max_iter=1, max_eval=10, init_eval=5, verbose=False)
    >>> with seeded(0):
    ...     attack.generate(np.full((1, 4), 0.5, dtype=np.float32)).shape
    (1, 4)
    """

    def __init__(self, classifier: Any, *args: Any, **kwargs: Any) -> None:
        """
        :param classifier: A PyTorchClassifier or a black-box classifier of ART.
        :param args: ART's parameters.
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
