"""
Strong white-box attacks, built from ART's and driven by any loss.

ART's own iterative attacks return the last iterate, and lose an earlier one that was already misclassified; here every
iterate that the network is asked about is looked at, and where the last one is right again, the first misclassified
one is returned. Their random starts are drawn from numpy's global generator.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_hrloss.attack_losses import AttackLossName, attack_loss
from art_hrloss.estimator import HRClassifier, Point, attack_view, modes_kept, shared_options
from art_hrloss.evasion import AutoProjectedGradientDescent, ProjectedGradientDescent
from art_hrloss.numerics import are_distributions
from art_hrloss.steps import like

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


class _Watched(HRClassifier):
    """A view that keeps, of every example of a batch, the first image on which the network went wrong."""

    def __init__(self, *args: Any, images: Images, labels: Labels, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.labels, self.adversarial, self.found = labels, images.copy(), np.zeros(len(images), dtype=bool)

    def evaluate(self, x: Tensor, labels: Tensor, *, gradient: bool = True) -> Point:
        """As inherited, but for the size of the gradients: the largest entry of each is 1."""
        point = super().evaluate(x, labels, gradient=gradient)
        first = (point.logits.argmax(1).cpu().numpy() != self.labels) & ~self.found
        if first.any():
            self.adversarial[first] = x.detach().cpu().numpy()[first]
            self.found |= first
        if point.gradient is None:
            return point
        # The direction is all that is used, and for norms 1 and 2 AutoPGD loses it where the gradient is below 1e-7.
        size = point.gradient.abs().flatten(1).amax(1)
        size = torch.where(size > 0, size, 1)
        return point._replace(gradient=point.gradient / like(size, x))


class _KeepsTheFirst:
    """Restarts on what still stands, batch by batch, of an attack of ART's that makes one attempt at one batch."""

    def _with_restarts(self, x: Images, y: npt.NDArray[Any] | None, restarts: int, mask: Any = None) -> Images:
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
            labels = classes = predicted(view, images, size)
            if y is not None:
                labels = as_indices(y, view.nb_classes)
            if len(labels) != len(images):
                raise ValueError(f"expected as many labels as images, but got {len(labels)} and {len(images)}")
            standing = classes == labels
            for _ in range(restarts):
                indices = np.flatnonzero(standing)
                for batch in np.split(indices, range(size, len(indices), size)) if len(indices) else []:
                    part = mask[batch] if np.ndim(mask) == images.ndim else mask
                    adversarial[batch], broken = self._watched_attempt(images[batch], labels[batch], part)
                    standing[batch] = ~broken
        return adversarial

    def _watched_attempt(self, images: Images, labels: Labels, mask: Any) -> tuple[Images, npt.NDArray[np.bool_]]:
        """One attempt at one batch, all of it classified rightly: what it made, and which of that is misclassified."""
        attack: Any = self
        view = attack._estimator
        watched = _Watched(
            view.model, attack_loss=view.attack_loss, images=images, labels=labels, **shared_options(view)
        )
        attack._estimator = watched
        try:
            last, outputs = self._climbed(images, labels, mask)
        finally:
            attack._estimator = view
        wrong = outputs.argmax(1) != labels
        # Where both went wrong the last iterate is as good; where neither did it is all there is.
        earlier = watched.found & ~wrong
        return np.where(_like(earlier, last), watched.adversarial, last), watched.found | wrong

    def _climbed(self, images: Images, labels: Labels, mask: Any) -> tuple[Images, npt.NDArray[np.float32]]:
        """Where ART's attack ends on one batch, and what the network says of it."""
        raise NotImplementedError


class PGD(_KeepsTheFirst, ProjectedGradientDescent):
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
        return self._with_restarts(x, y, self.restarts, **kwargs)

    def _climbed(self, images: Images, labels: Labels, mask: Any) -> tuple[Images, npt.NDArray[np.float32]]:
        free = None if mask is None else torch.tensor(np.broadcast_to(mask, images.shape), dtype=torch.float32)
        inputs = torch.from_numpy(images), torch.from_numpy(labels)
        last = self._generate_batch(*inputs, free, self.eps, self.eps_step)
        return last, self.estimator.predict(last, batch_size=len(last))


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
        return self._with_restarts(x, y, self.restarts, **kwargs)

    def _climbed(self, images: Images, labels: Labels, mask: Any) -> tuple[Images, npt.NDArray[np.float32]]:
        start = self._start(images, images)
        last, outputs = self._climb(start, images, labels, mask)
        if self.estimator.postprocessing_defences:
            outputs = self.estimator.predict(last, batch_size=len(last))
        # As in ART: an image that it has not broken is back where it began.
        return np.where(_like(outputs.argmax(1) != labels, last), last, start), outputs


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


@contextmanager
def answering(classifier: PyTorchClassifier, name: str, answer: Callable[..., Any]) -> Iterator[None]:
    """The classifier, for a while, with another method of that name, whoever asks it."""
    methods = vars(classifier)
    own = {name: methods[name]} if name in methods else {}
    methods[name] = answer
    try:
        yield
    finally:
        del methods[name]
        methods.update(own)


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
