"""
FGSM and projected gradient descent along any loss: ART's attacks, with each point evaluated once.

By default the images are ART's bit for bit, at the same seeds, but for rounding in two cases: finite norms of
FastGradientMethod, which NumPy sums in another order, and sizes as float64 arrays there.
"""

import math
from typing import Any

import numpy as np
import torch
from art.attacks import evasion
from art.attacks.evasion.projected_gradient_descent import projected_gradient_descent_pytorch
from torch import Tensor
from torch.nn import Module

from art_hrloss._labels import label_rows
from art_hrloss.attacks._base import LossAttack, Unfinished, mask_rows, plain, warn_of_nan
from art_hrloss.attacks._constraints import (
    Array,
    FeasibleSet,
    Images,
    Size,
    over_largest,
    over_norm,
    rows_of,
    scaled,
    steepest_ascent,
)
from art_hrloss.attacks._losses import AttackLossName


class _GradientAscent(LossAttack):
    """Steps of projected gradient ascent: one of FGSM, many of PGD."""

    starts_param = ("num_random_init", 0)

    def _ascend(
        self,
        points: Tensor,
        region: FeasibleSet,
        labels: Tensor,
        mask: Tensor | None,
        eps_step: Size,
        *,
        steps: int,
        decay: float | None = None,
        unfinished: Unfinished | None = None,
    ) -> Tensor:
        """
        Return the last iterates of projected gradient ascent on the attack loss of a batch.

        :param points: Where it starts, on the network's device; may be overwritten.
        :param region: Where the iterates stay.
        :param labels: In any form of the labels.
        :param mask: Where images may change, of their shape; None is everywhere.
        :param eps_step: The length of a step.
        :param decay: Of the momentum; None is none.
        :param unfinished: If not None, images leave the batch with their first adversarial iterate.
        """
        classifier, labels = self._classifier, self._classifier.attack_labels(labels, len(points), self._loss)
        momentum = torch.zeros_like(points) if decay is not None else None
        # One number for all steps: what each step left behind would shift the next one's memory, and malloc then gives
        # activations back to the system and fetches them anew, at up to a tenth of the time.
        largest = points.new_zeros(())
        with classifier.attacking():
            for step in range(steps):
                point = classifier.evaluate(points, labels, loss=self._loss)
                gradient = point.slope
                if unfinished is not None:
                    stay = unfinished.update(points, classifier.predicted_classes(point.logits))
                    if stay is not None:
                        points, labels, gradient, region = (
                            points[stay],
                            labels[stay],
                            gradient[stay],
                            region.select(stay),
                        )
                        mask, momentum = (None if rows is None else rows[stay] for rows in (mask, momentum))
                        eps_step = rows_of(eps_step, stay.cpu().numpy(), len(stay), points.ndim)
                    if not len(points):
                        break
                self._summarise(step, points, labels, gradient)
                torch.maximum(largest, gradient.amax(), out=largest)
                # A copy, for an observer may hold the gradient.
                gradient = (-gradient if self.targeted else gradient).nan_to_num(0.0, math.inf, -math.inf)
                gradient = gradient if mask is None else torch.where(mask == 0, 0.0, gradient)
                if self._loss is not None and region.norm != math.inf:
                    gradient = over_largest(gradient)  # ART's norm of a gradient below 1e-19 underflows
                if momentum is not None and decay is not None:
                    momentum = decay * momentum + over_norm(gradient, 1)
                    gradient = momentum.clone()
                direction = steepest_ascent(gradient, self.norm).to(points.dtype)
                points = region.project(scaled(direction, eps_step).add_(points))
        warn_of_nan(largest)
        return points

    def _summarise(self, step: int, points: Tensor, labels: Tensor, gradient: Tensor) -> None:
        """Write a step to ART's summary writer, if there is one."""
        if self.summary_writer is not None:
            x, y, grad = (values.cpu().numpy() for values in (points, labels, gradient))
            self.summary_writer.update(
                batch_id=self._batch_id,
                global_step=step,
                grad=grad,
                patch=None,
                estimator=self.estimator,
                x=x,
                y=y,
                targeted=self.targeted,
            )


class FastGradientMethod(_GradientAscent, evasion.FastGradientMethod):
    """
    ART's FastGradientMethod (FGSM; Goodfellow et al., 2015) along any loss.

    >>> import art_hrloss
    >>> options = {"input_shape": (4,), "nb_classes": 3, "clip_values": (0, 1), "device_type": "cpu"}
    >>> classifier = art_hrloss.HRClassifier(torch.nn.Linear(4, 3), art_hrloss.HRLoss(), **options)
    >>> images = np.full((2, 4), 0.5, dtype=np.float32)
    >>> adversarial = FastGradientMethod(classifier, eps=0.1, loss="margin").generate(images, [0, 1])
    >>> float(np.abs(adversarial - images).max().round(4))
    0.1
    """

    attack_params = [*evasion.FastGradientMethod.attack_params, *LossAttack.extra_params]  # noqa: RUF012  # ART's own

    def __init__(
        self,
        estimator: Any,
        norm: float | str = np.inf,
        eps: Size = 0.3,
        eps_step: Size = 0.1,
        targeted: bool = False,
        num_random_init: int = 0,
        batch_size: int = 32,
        minimal: bool = False,
        summary_writer: Any = False,
        *,
        loss: AttackLossName | Module | None = None,
        restarts: int | None = None,
        keep_first: bool = False,
    ) -> None:
        """
        :param estimator: A PyTorchClassifier or HRClassifier, as are the other parameters without asterisk ART's.
        :param eps: The radius and the step, in units of the images; at most the range of clip_values in L-infinity.
        :param minimal: Whether to search for the smallest multiple of `eps_step` that succeeds: ART's search, which
               excludes the three parameters below.
        :param loss: The loss to ascend: "ce", "hr", "margin", "dlr", or a module as HRClassifier's `attack_loss`. By
               default that of the estimator.
        :param restarts: Attempts, each from a random start, at the images that no earlier one has made adversarial. By
               default ART's `num_random_init`.
        :param keep_first: Whether an image stops at its first adversarial iterate, here its start.
        :raises ValueError: If a parameter is out of its range, or cannot be honoured beside the others.
        """
        self._set_up(estimator, loss, restarts, keep_first)
        super().__init__(
            estimator, norm, plain(eps), plain(eps_step), targeted, num_random_init, batch_size, minimal, summary_writer
        )
        self._check_params()

    def generate(self, x: Array, y: Any = None, **kwargs: Any) -> Images:
        """
        Return adversarial images, float32 of shape ``(n, *input_shape)``.

        :param x: Images, finite and inside clip_values.
        :param y: True labels, or targets if targeted, in any form; by default the predictions.
        :param kwargs: `mask`: where images may change, shape ``(n, *input_shape)`` or that of one image.
        """
        images, labels = self._checked(x, y)
        if self._stops_early:
            return self._attack_unfinished(images, labels, self._get_mask(images, **kwargs))
        rows = label_rows(labels, n=len(images), classes=self.estimator.nb_classes).cpu().numpy()
        adversarial: Images = super().generate(images, rows, **kwargs)
        return adversarial

    def _check_params(self) -> None:
        super()._check_params()
        if self.minimal and (self.loss is not None or self._stops_early):
            raise ValueError(
                "expected minimal=False with loss, restarts or keep_first, but got True: the search for the smallest "
                "perturbation is ART's, along the loss of the estimator: see attack_view"
            )

    def _compute(
        self,
        x: Array,
        x_init: Array,
        y: Array,
        mask: Array | None,
        eps: Size,
        eps_step: Size,
        project: bool,
        random_init: bool,
        *others: Any,
        **options: Any,
    ) -> Images:
        """Make one attempt at all images; the choice among attempts is ART's."""
        # NumPy computes the difference of an image and its original, and projects it, in their common precision.
        origin = torch.from_numpy(x_init.astype(np.result_type(np.float32, x_init.dtype)))
        whole = FeasibleSet(
            torch.from_numpy(x.astype(np.float32)), eps, norm=self.norm, clip_values=self.estimator.clip_values
        )
        points = whole.random_start(mask_rows(mask, slice(None), whole, len(x))) if random_init else whole.images
        adversarial = np.empty(x.shape, dtype=np.float32)
        for start in range(0, len(x), self.batch_size):
            rows = slice(start, start + self.batch_size)
            step, radius = (rows_of(size, rows, len(x), x.ndim) for size in (eps_step, eps))
            images = origin[rows].to(self._classifier.device)
            region = FeasibleSet(images, radius, norm=self.norm, clip_values=self.estimator.clip_values)
            free, begin = mask_rows(mask, rows, region, len(x)), points[rows].to(images.device)
            adversarial[rows] = (
                self._ascend(begin, region, torch.from_numpy(y[rows]), free, step, steps=1).cpu().numpy()
            )
        return adversarial

    def _attempt(
        self,
        region: FeasibleSet,
        labels: Tensor,
        mask: Tensor | None,
        eps_step: Size,
        unfinished: Unfinished,
        attempt: int,
    ) -> Tensor:
        random = self.restarts is not None or self.num_random_init > 0
        start = region.random_start(mask) if random else region.images.clone()
        stops = unfinished if self.keep_first else None
        return self._ascend(start, region, labels, mask, region.eps, steps=1, unfinished=stops)


class ProjectedGradientDescent(_GradientAscent, evasion.ProjectedGradientDescentPyTorch):
    """
    ART's ProjectedGradientDescentPyTorch (PGD; Madry et al., 2018) along any loss.

    >>> import art_hrloss
    >>> options = {"input_shape": (4,), "nb_classes": 3, "clip_values": (0, 1), "device_type": "cpu"}
    >>> classifier = art_hrloss.HRClassifier(torch.nn.Linear(4, 3), art_hrloss.HRLoss(), **options)
    >>> attack = ProjectedGradientDescent(classifier, eps=0.1, eps_step=0.02, max_iter=10, restarts=2, keep_first=True)
    >>> attack.generate(np.full((2, 4), 0.5, dtype=np.float32), [0, 1]).shape
    (2, 4)
    """

    attack_params = [*evasion.ProjectedGradientDescentPyTorch.attack_params, *LossAttack.extra_params]  # noqa: RUF012

    def __init__(
        self,
        estimator: Any,
        norm: float | str = np.inf,
        eps: Size = 0.3,
        eps_step: Size = 0.1,
        decay: float | None = None,
        max_iter: int = 100,
        targeted: bool = False,
        num_random_init: int = 0,
        batch_size: int = 32,
        random_eps: bool = False,
        summary_writer: Any = False,
        verbose: bool = True,
        *,
        loss: AttackLossName | Module | None = None,
        restarts: int | None = None,
        keep_first: bool = False,
    ) -> None:
        """
        :param estimator: A PyTorchClassifier or HRClassifier, as are the other parameters without asterisk ART's.
        :param eps: The radius, in units of the images; at most the range of clip_values in L-infinity.
        :param eps_step: The length of a step.
        :param decay: Of the momentum (MI-FGSM; Dong et al., 2018); None is none.
        :param max_iter: Steps per attempt.
        :param loss: See :class:`FastGradientMethod`, as for `restarts`.
        :param keep_first: Whether an image stops at its first adversarial iterate. ART's returns the last iterate, even
               if only an earlier one was adversarial.
        :raises ValueError: If a parameter is out of its range, or cannot be honoured beside the others.
        """
        self._set_up(estimator, loss, restarts, keep_first)
        if summary_writer and num_random_init > 1:  # as ART
            raise ValueError(f"expected num_random_init of at most 1 with a summary_writer, but got {num_random_init}")
        # ART's own constructor, which this call passes over, refuses preprocessing in NumPy; `evaluate` takes it.
        super(evasion.ProjectedGradientDescentPyTorch, self).__init__(
            estimator,
            norm,
            plain(eps),
            plain(eps_step),
            decay,
            max_iter,
            targeted,
            num_random_init,
            batch_size,
            random_eps,
            summary_writer,
            verbose,
        )
        self._batch_id, self._i_max_iter = 0, 0
        self._check_params()

    def generate(self, x: Array, y: Any = None, **kwargs: Any) -> Images:
        """Return adversarial images, float32 of shape ``(n, *input_shape)``: see FastGradientMethod's."""
        images, labels = self._checked(x, y)
        mask = self._get_mask(images, **kwargs)
        self._check_compatibility_input_and_eps(x=images)
        self._random_eps()
        if self._stops_early:
            return self._attack_unfinished(images, labels, mask)
        adversarial = np.empty(images.shape, dtype=np.float32)
        batches = range(0, len(images), self.batch_size)
        bar = projected_gradient_descent_pytorch.tqdm
        for start in bar(batches, desc="PGD - Batches", leave=False, disable=not self.verbose):
            self._batch_id = start // self.batch_size
            rows = slice(start, start + self.batch_size)
            region, eps_step = self._region(images[rows], rows, len(images))
            free = mask_rows(mask, rows, region, len(images))
            adversarial[rows] = self._choose(region, labels[rows], free, eps_step)
        if self.summary_writer is not None:
            self.summary_writer.reset()
        return adversarial

    def _choose(self, region: FeasibleSet, labels: Tensor, mask: Tensor | None, eps_step: Size) -> Images:
        """Return the first attempt at a batch or, image by image, the last of the others that succeeded, as ART."""
        images: Images = region.images.cpu().numpy()
        adversarial = self._attempt(region, labels, mask, eps_step).cpu().numpy()
        for attempt in range(1, self.num_random_init):
            if attempt == 1:  # ART compares with the prediction, not with the label
                rows = label_rows(labels, n=len(images), classes=self.estimator.nb_classes)
                reference = rows.argmax(1).cpu().numpy() if self.targeted else self._predict(images)
            points = self._attempt(region, labels, mask, eps_step).cpu().numpy()
            success = (self._predict(points) == reference) == self.targeted
            adversarial[success] = points[success]
        return adversarial

    def _attempt(
        self,
        region: FeasibleSet,
        labels: Tensor,
        mask: Tensor | None,
        eps_step: Size,
        unfinished: Unfinished | None = None,
        attempt: int = 0,
    ) -> Tensor:
        random = (self.restarts is not None or self.num_random_init > 0) and self.max_iter > 0
        return self._ascend(
            region.random_start(mask) if random else region.images.clone(),
            region,
            labels,
            mask,
            eps_step,
            steps=self.max_iter,
            decay=self.decay,
            unfinished=unfinished if self.keep_first else None,
        )
