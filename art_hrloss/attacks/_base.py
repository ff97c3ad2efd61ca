"""What the gradient attacks of this package share: stopping at the first adversarial iterate, restarts, and checks."""

import logging
from typing import Any

import numpy as np
import torch
from art.attacks.attack import EvasionAttack
from torch import Tensor
from torch.nn import Module

from art_hrloss._context import modes_kept
from art_hrloss._labels import class_indices, parse_labels
from art_hrloss._preconditions import checked_images
from art_hrloss._views import as_hr_classifier
from art_hrloss.attacks._constraints import Array, FeasibleSet, Images, at_least_one, check_units, rows_of
from art_hrloss.attacks._losses import AttackLossName, MarginLoss, attack_loss

logger = logging.getLogger(__name__)
# The loss of an evaluation of which only the logits are wanted: the cheapest.
_MARGIN = MarginLoss()


class Unfinished:
    """The images of a batch that no iterate has misclassified yet, and the first adversarial iterate of the others."""

    def __init__(self, images: Tensor, classes: Tensor, *, targeted: bool) -> None:
        """
        :param images: Shape ``(n, *input_shape)``.
        :param classes: The true classes, or the targets, shape ``(n,)``.
        :param targeted: Whether an image is adversarial if it is taken for the class, rather than if it is not.
        """
        self.images, self.classes, self.targeted = images.clone(), classes, targeted
        self.rows = torch.arange(len(images), device=images.device)
        self.adversarial = torch.zeros(len(images), dtype=torch.bool, device=images.device)

    def update(self, points: Tensor, predicted: Tensor) -> Tensor | None:
        """
        Store the iterates that are adversarial, whose images leave the batch.

        :param points: The iterates of the unfinished images.
        :param predicted: Their predicted classes.
        :return: Which of them stay, shape ``(len(points),)``; None if all do.
        """
        hit = (predicted == self.classes) == self.targeted
        if not bool(hit.any()):
            return None
        self.images[self.rows[hit]] = points[hit]
        self.adversarial[self.rows[hit]] = True
        self.rows, self.classes = self.rows[~hit], self.classes[~hit]
        return ~hit

    def finish(self, points: Tensor, predicted: Tensor) -> tuple[Tensor, Tensor]:
        """Store the last iterates; return every image's adversarial or last iterate, and which are adversarial."""
        self.images[self.rows] = points
        self.update(points, predicted)
        return self.images, self.adversarial


class LossAttack(EvasionAttack):
    """
    The parameters that the attacks of this package add to those of ART's: `loss`, `restarts` and `keep_first`.

    ART's own return the last iterate, even where an earlier one was adversarial, and follow the loss of the estimator.
    """

    _classifier: Any
    extra_params = ("loss", "restarts", "keep_first")
    # ART's number of random starts, and its default, which `restarts` replaces.
    starts_param: tuple[str, int]

    def _set_up(
        self, estimator: Any, loss: AttackLossName | Module | None, restarts: int | None, keep_first: bool
    ) -> None:
        """Set what ART's constructor, which follows, does not know of but checks already."""
        self._classifier = as_hr_classifier(estimator)
        self.loss, self.restarts, self.keep_first = loss, restarts, keep_first

    def set_params(self, **kwargs: Any) -> None:
        """Set parameters by name, as ART does; those that cannot be honoured are refused, with the reason."""
        before = {name: getattr(self, name) for name in kwargs if name in self.attack_params}
        try:
            super().set_params(**{name: plain(value) for name, value in kwargs.items()})
        except (TypeError, ValueError):
            for name, value in before.items():
                setattr(self, name, value)
            raise

    def _check_params(self) -> None:
        super()._check_params()
        loss = None if self.loss is None else attack_loss(self.loss)
        check_units(self.eps, self.norm, self.estimator.clip_values)
        name, default = self.starts_param
        if self.restarts is not None and at_least_one("restarts", self.restarts) != getattr(self, name) != default:
            raise ValueError(
                f"expected either restarts or {name}, but got {self.restarts} and {getattr(self, name)}: restarts "
                "attack again only the images that no earlier one has made adversarial"
            )
        if self._stops_early and getattr(self, "summary_writer", None) is not None:
            raise ValueError(
                "expected no summary_writer with restarts or keep_first, but got one: ART's has no such rows"
            )
        self._loss = loss

    @property
    def _stops_early(self) -> bool:
        """Whether an image is left alone once it is adversarial."""
        return bool(self.restarts is not None or self.keep_first)

    @property
    def _attempts(self) -> int:
        """The number of attempts at an image that stays unfinished."""
        return int(self.restarts or max(1, getattr(self, self.starts_param[0])))

    def _checked(self, x: Any, y: Any) -> tuple[Array, Tensor]:
        """Return images as an array of numbers, and labels: those given, or the predictions."""
        images = np.asarray(x)
        if len(images):
            checked_images(self.estimator, images)
        if y is not None:
            return images, parse_labels(y, n=len(images), classes=self.estimator.nb_classes)
        if self.targeted:
            raise ValueError("expected y, the target classes, for a targeted attack, but got None")
        return images, torch.from_numpy(self._predict(images))

    def _predict(self, images: Array) -> Array:
        """Return the predicted classes, int64 of shape ``(n,)``."""
        outputs = self.estimator.predict(images, batch_size=self.batch_size)
        if outputs.shape[1] < 2:
            raise ValueError(
                f"expected predictions of shape (n, {self.estimator.nb_classes}), one logit per class, but got "
                f"{outputs.shape}: its largest entry is always class 0. Give the network a second output of constant 0"
            )
        classes: Array = outputs.argmax(1)
        return classes

    def _attack_unfinished(self, x: Array, labels: Tensor, mask: Array | None) -> Images:
        """Attack, attempt by attempt, the images that no earlier one has made adversarial; return an image for each."""
        classes = class_indices(labels, n=len(x), classes=self.estimator.nb_classes)
        adversarial = x.astype(np.float32)
        with modes_kept(self.estimator.model):
            left = (self._predict(x) == classes.cpu().numpy()) != self.targeted
            for attempt in range(self._attempts):
                rows = np.flatnonzero(left)
                for start in range(0, len(rows), self.batch_size):
                    batch = rows[start : start + self.batch_size]
                    region, eps_step = self._region(x[batch], batch, len(x))
                    unfinished = Unfinished(
                        region.images, classes[batch].to(region.images.device), targeted=self.targeted
                    )
                    mask_part = mask_rows(mask, batch, region, len(x))
                    points = self._attempt(region, labels[batch], mask_part, eps_step, unfinished, attempt)
                    predicted = self._outcome(points, unfinished.classes)
                    points, success = unfinished.finish(points, predicted)
                    adversarial[batch], left[batch] = points.cpu().numpy(), ~success.cpu().numpy()
        return adversarial

    def _outcome(self, points: Tensor, classes: Tensor) -> Tensor:
        """Return the predicted classes of the last iterates."""
        if not len(points):
            return points.new_zeros(0, dtype=torch.int64)
        predicted: Tensor = self._classifier.predicted_classes(self._logits(points, classes))
        return predicted

    def _logits(self, points: Tensor, classes: Tensor) -> Tensor:
        """Return the logits at images, evaluated by the door but for any gradient."""
        labels = self._classifier.attack_labels(classes, len(points), _MARGIN)
        with self._classifier.attacking():
            logits: Tensor = self._classifier.evaluate(points, labels, loss=_MARGIN, gradient=False).logits
        return logits

    def _region(self, images: Array, rows: Any, n: int) -> tuple[FeasibleSet, Any]:
        """Return the feasible set of some of `n` images, in float32 on the network's device, and their step size."""
        x = torch.from_numpy(images.astype(np.float32)).to(self._classifier.device)
        eps, eps_step = (rows_of(size, rows, n, images.ndim) for size in (self.eps, self.eps_step))
        return FeasibleSet(x, eps, norm=self.norm, clip_values=self.estimator.clip_values), eps_step

    def _attempt(
        self,
        region: FeasibleSet,
        labels: Tensor,
        mask: Tensor | None,
        eps_step: Any,
        unfinished: Unfinished,
        attempt: int,
    ) -> Tensor:
        """
        Return the last iterates of one attempt at the images of a batch that no iterate has misclassified.

        :param region: Where the iterates stay.
        :param labels: Of the batch, as :meth:`_checked` returns them.
        :param mask: Where images may change, of their shape; None is everywhere.
        :param eps_step: The length of a step.
        :param unfinished: To be updated at each iterate if `keep_first`.
        :param attempt: The number of the attempt.
        """
        raise NotImplementedError


def plain(value: Any) -> Any:
    """Return a NumPy number as Python's, for ART refuses NumPy's, and a tensor as an array."""
    value = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
    return (
        value.item() if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0) else value
    )


def warn_of_nan(largest: Tensor) -> None:
    """Warn, as ART does, of NaN in a gradient, given the largest entry of all steps: a GPU waits for it only once."""
    if largest.isnan():
        logger.warning("Elements of the loss gradient are NaN and have been replaced with 0.0.")


def mask_rows(mask: Array | None, rows: Any, region: FeasibleSet, n: int) -> Tensor | None:
    """Return the part of a mask that belongs to a batch, in the shape of its images; `n` counts all images."""
    if mask is None:
        return None
    part = rows_of(mask, rows, n, region.images.ndim)
    full = np.broadcast_to(np.asarray(part, dtype=np.float32), region.images.shape)
    return torch.tensor(full, device=region.images.device)
