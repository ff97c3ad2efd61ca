"""
Strong white-box attacks, built from ART's and driven by any loss.

ART's own iterative attacks return the last iterate, and lose an earlier one that was already misclassified; here every
iterate that the network is asked about is looked at, and where the last one is right again, the first misclassified
one is returned. Their random starts are drawn from numpy's global generator.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from art.attacks.evasion import AutoProjectedGradientDescent, ProjectedGradientDescentPyTorch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_hrloss.attack_losses import AttackLossName, attack_loss
from art_hrloss.estimator import HRClassifier, attack_view, modes_kept, reduced, shared_options
from art_hrloss.numerics import are_distributions

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
        self.wrong = (logits.detach().argmax(1) != labels.argmax(1)).cpu().numpy()
        return reduced(self.loss, logits, labels, "none")


class _Watched(HRClassifier):
    """A view that keeps, of every example of a batch, the first image on which the network went wrong."""

    def __init__(self, *args: Any, images: Images, labels: Labels, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.images, self.labels, self.adversarial = images, labels, images.copy()
        self.found = np.zeros(len(images), dtype=bool)

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """As it does, but for the images themselves: AutoPGD would drop what a second look takes for misclassified."""
        if np.array_equal(x, self.images):
            return np.eye(self.nb_classes, dtype=np.float32)[self.labels]
        return super().predict(x, *args, **kwargs)

    def loss_gradient(self, x: Any, y: Any, *args: Any, **kwargs: Any) -> Any:
        gradient: Any = super().loss_gradient(x, y, *args, **kwargs)
        self._look(x)
        # The direction is all that is used, and for norms 1 and 2 AutoPGD loses it where the gradient is below 1e-7.
        size = abs(gradient).reshape(len(gradient), -1).max(1)
        size = size.values if isinstance(gradient, Tensor) else size
        size[~(size > 0)] = 1
        return gradient / size.reshape(-1, *(1,) * (gradient.ndim - 1))

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

    def _attempts(self, x: Images, y: npt.NDArray[Any] | None, restarts: int, mask: Any = None) -> Images:
        """
        :param x: Images, shape ``(n, *input_shape)``.
        :param y: True labels, as indices or one-hot; without them the predictions are taken.
        :param restarts: Attempts, each from another random start.
        :param mask: Where images may change, shape ``(n, *input_shape)``, or one that broadcasts to that of an image.
        :return: For every image a misclassified iterate, or what ART returns where there is none.
        :raises ValueError: If the labels are not as many as the images, or no labels.
        """
        attack: Any = self
        view, size = attack._estimator, attack.batch_size
        images = np.asarray(x).astype(np.float32)
        adversarial = images.copy()
        with modes_kept(view.model):
            labels = as_indices(y, view.nb_classes) if y is not None else predicted(view, images, size)
            if len(labels) != len(images):
                raise ValueError(f"expected as many labels as images, but got {len(labels)} and {len(images)}")
            standing = predicted(view, images, size) == labels
            for _ in range(restarts):
                indices = np.flatnonzero(standing)
                for batch in np.split(indices, range(size, len(indices), size)) if len(indices) else []:
                    part = mask[batch] if np.ndim(mask) == images.ndim else mask
                    options = {} if mask is None else {"mask": part}
                    adversarial[batch], broken = self._attempt(images[batch], labels[batch], **options)
                    standing[batch] = ~broken
        return adversarial

    def _attempt(self, images: Images, labels: Labels, **options: Any) -> tuple[Images, npt.NDArray[np.bool_]]:
        """One attempt at one batch, all of it classified rightly: what it made, and which of that is misclassified."""
        attack: Any = self
        view = attack._estimator
        watch = _Watch(view.attack_loss)
        watched = _Watched(view.model, attack_loss=watch, images=images, labels=labels, **shared_options(view))
        attack._estimator = watched
        try:
            last = super().generate(images, labels, **options)  # type: ignore[misc]
        finally:
            attack._estimator = view
        wrong = predicted(view, last, attack.batch_size) != labels
        # Where both went wrong the last iterate is as good; where neither did it is all there is.
        earlier = watched.found & ~wrong
        return np.where(_like(earlier, last), watched.adversarial, last), watched.found | wrong


class PGD(_KeepsTheFirst, ProjectedGradientDescentPyTorch):
    """
    ART's projected gradient descent (Madry et al., 2018) along any loss, with restarts, keeping whatever went wrong.

    Its estimator is a view of the classifier, so that ART's AdversarialTrainer takes it for an attack on another one
    and makes the images once, before it trains.
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
        :param loss: The loss to climb, by name, or any that HRClassifier takes as its `attack_loss`.
        :param eps: The largest perturbation, in units of the images.
        :param norm: numpy.inf, 1 or 2.
        :param eps_step: The step; 2.5 eps / max_iter by default.
        :param max_iter: Steps per attempt.
        :param restarts: Attempts, each from a random start in the ball, on what the ones before have left standing.
        :param batch_size: Images that are attacked together; it changes no image but by the random starts.
        """
        eps, max_iter = checked_eps(eps), _at_least_one("max_iter", max_iter)
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
        self.restarts = _at_least_one("restarts", restarts)

    def generate(self, x: Images, y: npt.NDArray[Any] | None = None, **kwargs: Any) -> Images:
        """Attack images, shape ``(n, *input_shape)``: see :class:`PGD`; `mask` is where they may change."""
        return self._attempts(x, y, self.restarts, **kwargs)


class AutoPGD(_KeepsTheFirst, AutoProjectedGradientDescent):
    """
    ART's Auto-PGD (Croce and Hein, 2020) along any loss, with restarts, keeping whatever went wrong.

    It climbs the loss of each example in its exact form, so that ART's stop at a loss of exactly 0 waits for a margin
    of 87, not of 17. Its estimator is a view, as that of :class:`PGD`.
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
        :param loss: The loss to climb, by name, or any that HRClassifier takes as its `attack_loss`.
        :param eps: The largest perturbation, in units of the images.
        :param norm: numpy.inf, 1 or 2.
        :param max_iter: Steps per attempt; the first has the length 2 eps.
        :param restarts: Attempts, each from a random start in the ball, on what the ones before have left standing.
        :param batch_size: Images that are attacked together; it changes no image but by the random starts.
        """
        eps, view = checked_eps(eps), attack_view(classifier, _module(loss))
        with modes_kept(view.model):  # It asks whether the network predicts probabilities.
            super().__init__(
                view,
                norm=norm,
                eps=eps,
                eps_step=2 * eps,
                max_iter=max_iter,
                nb_random_init=1,
                batch_size=batch_size,
                loss_type=None,
                verbose=False,
            )
        self.restarts = _at_least_one("restarts", restarts)

    def generate(self, x: Images, y: npt.NDArray[Any] | None = None, **kwargs: Any) -> Images:
        """Attack images, shape ``(n, *input_shape)``: see :class:`AutoPGD`."""
        if kwargs.get("mask") is not None:
            raise NotImplementedError("expected no mask, because ART's Auto-PGD starts at a random point outside of it")
        return self._attempts(x, y, self.restarts, **kwargs)


def predicted(classifier: Any, images: Images, batch_size: int) -> Labels:
    """
    The classes that a classifier predicts, shape ``(n,)``.

    :raises ValueError: If it does not predict logits, one per class: a single column would always be class 0, and the
            gradients of probabilities vanish.
    """
    outputs = classifier.predict(images, batch_size=batch_size)
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        raise ValueError(f"expected predictions of shape (n, M), a logit for each class, but got {outputs.shape}")
    if are_distributions(torch.from_numpy(outputs)):
        raise ValueError(
            "expected a classifier that predicts logits, but each of its rows is a distribution: take the softmax out "
            "of the network"
        )
    classes: Labels = outputs.argmax(1)
    return classes


def as_indices(y: npt.NDArray[Any], classes: int) -> Labels:
    """Labels as class indices, shape ``(n,)``, from indices or rows with one largest entry."""
    labels = np.asarray(y)
    if labels.ndim == 2 and labels.shape[1] == classes:
        largest: Labels = labels.argmax(1)
        return largest
    if labels.ndim == 1:
        labels = labels[:, np.newaxis]
    valid = labels.ndim == 2 and labels.shape[1] == 1
    if not valid or not ((labels == np.floor(labels)) & (labels >= 0) & (labels < classes)).all():
        raise ValueError(
            f"expected labels as class indices from 0 to {classes - 1} or rows of {classes}, but got {y!r:.60}"
        )
    return labels[:, 0].astype(np.int64)


def checked_eps(eps: float) -> float:
    """`eps` as Python's float, for ART refuses numpy's; raise unless it is finite and above 0."""
    if not 0 < float(eps) < np.inf:
        raise ValueError(f"expected eps to be finite and above 0, but got {eps}")
    return float(eps)


def _at_least_one(name: str, value: int) -> int:
    if value != int(value) or value < 1:
        raise ValueError(f"expected {name} to be a whole number of at least 1, but got {value}")
    return int(value)


def _module(loss: AttackLossName | nn.Module) -> nn.Module:
    return loss if isinstance(loss, nn.Module) else attack_loss(loss)


def _like(flags: npt.NDArray[np.bool_], images: Images) -> npt.NDArray[np.bool_]:
    """One flag per image in a shape that broadcasts with the images."""
    return flags.reshape(-1, *(1,) * (images.ndim - 1))
