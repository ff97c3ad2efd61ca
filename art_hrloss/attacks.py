"""
Strong attacks, built from ART's: white-box ones driven by any loss, and the worst case over an ensemble.

ART's own iterative attacks return the last iterate, and lose an earlier one that was already misclassified; here every
iterate that the network is asked about is looked at, and the first misclassified one is kept.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from art.attacks.attack import EvasionAttack
from art.attacks.evasion import (
    AutoProjectedGradientDescent,
    HopSkipJump,
    ProjectedGradientDescentPyTorch,
    SquareAttack,
)
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_hrloss.attack_losses import AttackLossName, attack_loss
from art_hrloss.estimator import HRClassifier, attack_view, shared_options

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


class _Watch(nn.Module):
    """A loss that also tells which of the examples it was last asked about are misclassified."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss
        self.wrong = np.zeros(0, dtype=bool)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits ``(n, M)`` and one-hot labels ``(n, M)`` to ``(n,)``."""
        index = labels.argmax(1)
        self.wrong = (logits.detach().argmax(1) != index).cpu().numpy()
        losses: Tensor = self.loss(logits, index)
        return losses


class _Watched(HRClassifier):
    """A view that keeps, of every example of a batch, the first image on which the network went wrong."""

    def __init__(self, *args: Any, images: Images, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.adversarial = images.copy()
        self.found = np.zeros(len(images), dtype=bool)

    def loss_gradient(self, x: Any, y: Any, *args: Any, **kwargs: Any) -> Any:
        gradient = super().loss_gradient(x, y, *args, **kwargs)
        self._look(x)
        return gradient

    def compute_loss(self, x: Any, y: Any, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(x, y, *args, **kwargs)
        self._look(x)
        return loss

    def _look(self, x: Any) -> None:
        first = self.attack_loss.wrong & ~self.found
        if first.any():
            images = x.detach().cpu().numpy() if isinstance(x, Tensor) else x
            self.adversarial[first] = images[first]
            self.found |= first


class _KeepsTheFirst:
    """Restarts on what still stands, batch by batch, of an attack of ART's that makes one attempt at one batch."""

    def _attempts(self, x: Images, y: npt.NDArray[Any] | None, restarts: int, **kwargs: Any) -> Images:
        """
        :param x: Images, shape ``(n, *input_shape)``.
        :param y: True labels, as indices or one-hot; without them the predictions are taken.
        :param restarts: Attempts, each from another random start.
        :return: For every image the first misclassified iterate, or the last of all where there is none.
        """
        attack: Any = self
        view = attack._estimator
        images = np.asarray(x).astype(np.float32)
        labels = as_indices(y, view.nb_classes) if y is not None else predicted(view, images, attack.batch_size)
        adversarial, standing = images.copy(), predicted(view, images, attack.batch_size) == labels
        try:
            for _ in range(restarts):
                indices = np.flatnonzero(standing)
                for start in range(0, len(indices), attack.batch_size):
                    batch = indices[start : start + attack.batch_size]
                    watched = _Watched(
                        view.model,
                        attack_loss=_Watch(view.attack_loss),
                        images=images[batch],
                        **shared_options(view),
                    )
                    attack._estimator = watched
                    last = super().generate(images[batch], labels[batch], **kwargs)  # type: ignore[misc]
                    wrong = predicted(view, last, attack.batch_size) != labels[batch]
                    # Where both went wrong the last iterate is as good; where neither did it is all there is.
                    earlier = watched.found & ~wrong
                    adversarial[batch] = np.where(_like(earlier, last), watched.adversarial, last)
                    standing[batch] = ~(watched.found | wrong)
        finally:
            attack._estimator = view
        return adversarial


class PGD(_KeepsTheFirst, ProjectedGradientDescentPyTorch):
    """
    ART's projected gradient descent (Madry et al., 2018) along any loss, with restarts, keeping whatever went wrong.

    Accepted wherever ART's is.
    """

    def __init__(
        self,
        classifier: PyTorchClassifier,
        loss: AttackLossName | nn.Module = "hr",
        *,
        eps: float,
        norm: float | str = np.inf,
        eps_step: float | None = None,
        max_iter: int = 40,
        restarts: int = 1,
        batch_size: int = 128,
    ) -> None:
        """
        :param classifier: What to attack: a PyTorchClassifier that predicts logits.
        :param loss: The loss to climb, per example.
        :param eps: The largest perturbation, in units of the images.
        :param norm: numpy.inf, 1 or 2.
        :param eps_step: The step; 2.5 eps / max_iter by default.
        :param max_iter: Steps per attempt.
        :param restarts: Attempts, each from a random start in the ball, on what the ones before have left standing.
        :param batch_size: Images that are attacked together; it changes no image but by the random starts.
        """
        eps = checked_eps(eps)
        super().__init__(
            attack_view(classifier, _module(loss)),
            norm=norm,
            eps=eps,
            eps_step=2.5 * eps / max_iter if eps_step is None else eps_step,
            max_iter=max_iter,
            num_random_init=1,
            batch_size=batch_size,
            verbose=False,
        )
        self.restarts = restarts

    def generate(self, x: Images, y: npt.NDArray[Any] | None = None, **kwargs: Any) -> Images:
        """Attack images, shape ``(n, *input_shape)``: see :class:`PGD`."""
        return self._attempts(x, y, self.restarts, **kwargs)


class AutoPGD(_KeepsTheFirst, AutoProjectedGradientDescent):
    """
    ART's Auto-PGD (Croce and Hein, 2020) along any loss, with restarts, keeping whatever went wrong.

    It climbs the loss of each example in its exact form, so that ART's stop at a loss of exactly 0 waits for a margin
    of 87, not of 17. Accepted wherever ART's is.
    """

    def __init__(
        self,
        classifier: PyTorchClassifier,
        loss: AttackLossName | nn.Module = "hr",
        *,
        eps: float,
        norm: float | str = np.inf,
        max_iter: int = 100,
        restarts: int = 1,
        batch_size: int = 128,
    ) -> None:
        """
        :param classifier: What to attack: a PyTorchClassifier that predicts logits.
        :param loss: The loss to climb, per example.
        :param eps: The largest perturbation, in units of the images.
        :param norm: numpy.inf, 1 or 2.
        :param max_iter: Steps per attempt; the first has the length 2 eps.
        :param restarts: Attempts, each from a random start in the ball, on what the ones before have left standing.
        :param batch_size: Images that are attacked together; it changes no image but by the random starts.
        """
        eps = checked_eps(eps)
        super().__init__(
            attack_view(classifier, _module(loss)),
            norm=norm,
            eps=eps,
            eps_step=2 * eps,
            max_iter=max_iter,
            nb_random_init=1,
            batch_size=batch_size,
            loss_type=None,
            verbose=False,
        )
        self.restarts = restarts

    def generate(self, x: Images, y: npt.NDArray[Any] | None = None, **kwargs: Any) -> Images:
        """Attack images, shape ``(n, *input_shape)``: see :class:`AutoPGD`."""
        return self._attempts(x, y, self.restarts, **kwargs)


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
    The attacks of :func:`worst_case`, the cheap ones first: white box along each loss, transfer, score and label based.

    :param classifier: What to attack.
    :param eps: The largest perturbation, in units of the images.
    :param norm: numpy.inf or 2.
    :param max_iter: Steps of each white-box attack.
    :param restarts: Attempts of each white-box attack.
    :param square_iter: Queries per example of the Square attack; 0 leaves it out.
    :param hop_skip_jump_iter: Rounds of HopSkipJump, of a few thousand queries per example each; 0 leaves it out.
    :param transfer_from: Classifiers by name, whose adversarial images are tried as well.
    :param batch_size: Images that are attacked together.
    """
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
        attacks[f"transfer from {name}"] = PGD(other, "ce", max_iter=max_iter, **options)
    if square_iter:
        attacks["Square"] = SquareAttack(classifier, max_iter=square_iter, nb_restarts=1, verbose=False, **options)
    if hop_skip_jump_iter:
        attacks["HopSkipJump"] = HopSkipJump(
            attack_view(classifier, attack_loss("ce")),
            norm=norm,
            max_iter=hop_skip_jump_iter,
            batch_size=batch_size,
            verbose=False,
        )
    return attacks


def predicted(classifier: Any, images: Images, batch_size: int) -> Labels:
    """The classes that a classifier predicts, shape ``(n,)``."""
    classes: Labels = classifier.predict(images, batch_size=batch_size).argmax(1)
    return classes


def as_indices(y: npt.NDArray[Any], classes: int) -> Labels:
    """Labels as class indices, shape ``(n,)``, from indices or rows with one largest entry."""
    labels = np.asarray(y)
    if labels.ndim == 2 and labels.shape[1] == classes:
        largest: Labels = labels.argmax(1)
        return largest
    labels = labels.reshape(len(labels), -1)
    if labels.shape[1] != 1 or ((labels != labels.astype(np.int64)) | (labels < 0) | (labels >= classes)).any():
        raise ValueError(
            f"expected labels as class indices from 0 to {classes - 1} or rows of {classes}, but got {y!r:.60}"
        )
    return labels[:, 0].astype(np.int64)


def checked_eps(eps: float) -> float:
    """`eps` as Python's float, for ART refuses numpy's; raise unless it is finite and above 0."""
    if not 0 < float(eps) < np.inf:
        raise ValueError(f"expected eps to be finite and above 0, but got {eps}")
    return float(eps)


def _module(loss: AttackLossName | nn.Module) -> nn.Module:
    return loss if isinstance(loss, nn.Module) else attack_loss(loss)


def _like(flags: npt.NDArray[np.bool_], images: Images) -> npt.NDArray[np.bool_]:
    """One flag per image in a shape that broadcasts with the images."""
    return flags.reshape(-1, *(1,) * (images.ndim - 1))
