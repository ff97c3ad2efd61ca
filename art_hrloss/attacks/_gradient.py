"""
FGSM and projected gradient descent along any loss: ART's attacks, with each point evaluated once.

By default the images are ART's bit for bit, at the same seeds, but for rounding in three cases: finite norms of
FastGradientMethod, which NumPy sums in another order; sizes as float64 arrays there; and, in finite norms, a
PyTorchClassifier whose loss is a mean, for here the gradient is that of each image's own loss.
"""

import math
from typing import Any

import numpy as np
import torch
from art.attacks import evasion
from torch import Tensor

from art_hrloss._context import gradients_kept, modes_kept
from art_hrloss._labels import label_rows
from art_hrloss._network import as_array
from art_hrloss.attacks._base import Batch, LossAttack, warn_of_nan
from art_hrloss.attacks._constraints import Array, beside, norm_order, over_largest, over_norm, steepest_ascent


class _GradientAscent(LossAttack):
    """Projected gradient ascent: one step of FGSM, many of PGD."""

    starts_param = ("num_random_init", 0)
    max_iter = 1
    decay: float | None = None

    def _attempt(self, batch: Batch, attempt: int) -> tuple[Tensor, Tensor]:
        points = self._ascend(batch, self._start(batch))
        return points, self._logits(points, batch.classes)

    def _start(self, batch: Batch) -> Tensor:
        """Return the points where an attempt starts: random ones, or the images."""
        random = (self.restarts is not None or self.num_random_init > 0) and self.max_iter > 0
        return batch.region.random_start(batch.mask) if random else batch.region.images.clone()

    def _ascend(self, batch: Batch, points: Tensor) -> Tensor:
        """Return the last iterates of projected gradient ascent from some points, which may be overwritten."""
        classifier = self._classifier
        labels = classifier.attack_labels(batch.labels, len(points), self._loss)
        momentum = None if self.decay is None else torch.zeros_like(points)
        # One number for all steps: a GPU waits for it only once, and what each step left behind would shift the memory
        # of the next one, so that malloc returns it to the system and fetches it anew: up to a tenth of the time.
        largest = points.new_zeros(())
        with classifier.attacking():
            for step in range(self.max_iter):
                point = classifier.evaluate(points, labels, loss=self._loss)
                gradient = -point.slope if self.targeted else point.slope
                if self.keep_first and (stay := self._remove(batch, points, point.logits)) is not None:
                    points, labels, gradient = points[stay], labels[stay], gradient[stay]
                    momentum = None if momentum is None else momentum[stay]
                    if not len(points):
                        break
                if self.summary_writer is not None:
                    self._summarise(step, points, labels, gradient)
                torch.maximum(largest, gradient.amax(), out=largest)
                gradient = self._finite(gradient, batch.mask)
                if momentum is not None and self.decay is not None:
                    momentum = self.decay * momentum + over_norm(gradient, 1)
                    gradient = momentum.clone()
                points = self._step(batch, points, gradient)
        warn_of_nan(largest)
        return points

    def _finite(self, gradient: Tensor, mask: Tensor | None) -> Tensor:
        """Return a copy of a gradient, which an observer may hold, without NaN, where the mask lets an image change."""
        gradient = gradient.nan_to_num(0.0, math.inf, -math.inf)
        gradient = gradient if mask is None else torch.where(mask == 0, 0.0, gradient)
        # The norm of a gradient below 1e-19 underflows in float32.
        rescales = self._loss is not None and (norm_order(self.norm) != math.inf or self.decay is not None)
        return over_largest(gradient) if rescales else gradient

    def _step(self, batch: Batch, points: Tensor, gradient: Tensor) -> Tensor:
        """Return the points after a step of steepest ascent; both arguments may be overwritten."""
        direction = steepest_ascent(gradient, self.norm).to(points.dtype)
        return batch.region.project(direction.mul_(beside(direction, batch.eps_step)).add_(points))

    def _summarise(self, step: int, points: Tensor, labels: Tensor, gradient: Tensor) -> None:
        """Write a step to ART's summary writer as ART does: the gradient is negated if targeted."""
        rows = label_rows(labels, n=len(points), classes=self.estimator.nb_classes)
        x, y, grad = (values.cpu().numpy() for values in (points, rows, gradient))
        options = {"patch": None, "estimator": self.estimator, "targeted": self.targeted}
        self.summary_writer.update(batch_id=self._batch_id, global_step=step, grad=grad, x=x, y=y, **options)


class FastGradientMethod(_GradientAscent, evasion.FastGradientMethod):
    """
    ART's FastGradientMethod (FGSM; Goodfellow et al., 2015) along any loss.

    Its step is `eps`. With `minimal` ART searches for the smallest multiple of `eps_step` that succeeds, along the loss
    of the estimator, which excludes `loss`, `restarts` and `keep_first`.

    >>> from art_hrloss import HRClassifier, HRLoss
    >>> classifier = HRClassifier(torch.nn.Linear(4, 3), HRLoss(), (4,), 3, clip_values=(0, 1), device_type="cpu")
    >>> images = np.full((2, 4), 0.5, dtype=np.float32)
    >>> adversarial = FastGradientMethod(classifier, eps=0.1, loss="margin").generate(images, [0, 1])
    >>> bool(np.allclose(np.abs(adversarial - images), 0.1))
    True
    """

    attack_params = [*evasion.FastGradientMethod.attack_params, *LossAttack.extra_params]  # noqa: RUF012  # ART's own
    step_param = "eps"

    def along(self, x: Tensor, gradient: Tensor) -> Tensor:
        """
        Return adversarial images from the gradients at the images, which several values of `eps` may share.

        :param x: Images on the classifier's device, float32 of shape ``(n, *input_shape)``, inside clip_values.
        :param gradient: The gradient of each image's loss by the image, of the shape of `x`.
        """
        if self.num_random_init or self._stops_early or self.minimal:
            raise ValueError("expected neither random starts, restarts, keep_first nor minimal, but got one of them")
        batch = self._batch(x, torch.empty(len(x), dtype=torch.int64, device=x.device), None, slice(None))
        warn_of_nan(gradient.amax())
        return self._step(batch, x, self._finite(-gradient if self.targeted else gradient, None))

    def _attacked(self, x: Any, y: Any, **kwargs: Any) -> Tensor:
        images, labels, mask = self._checked(x, y, kwargs)
        mask = self._get_mask(images, mask=mask)
        self._check_compatibility_input_and_eps(x=images)
        if self._stops_early:
            return self._attack_unfinished(images, labels, mask)
        if self.minimal:
            return self._arts_smallest(images, labels, mask)
        if labels.is_floating_point() and self.estimator.nb_classes > 2:  # as ART, in NumPy, for its sum
            rows = as_array(labels)
            labels = torch.from_numpy(rows / np.sum(rows, axis=1, keepdims=True)).to(images.device)
        best, most = images.float(), 0
        for _ in range(max(1, self.num_random_init)):
            adversarial = self._once(images, labels, mask)
            if self.num_random_init < 2:
                best = adversarial
                continue
            # As ART: the attempt that is successful on the most images, for all of them.
            reference = (labels if labels.ndim == 1 else labels.argmax(1)) if self.targeted else self._predict(images)
            success = int(((self._predict(adversarial) == reference) == self.targeted).sum())
            best, most = (adversarial, success) if success > most else (best, most)
        if self.summary_writer is not None:
            self.summary_writer.reset()
        return best

    def _arts_smallest(self, images: Tensor, labels: Tensor, mask: Array | None) -> Tensor:
        """Return the images of ART's search for the smallest perturbation, which computes in NumPy."""
        rows = as_array(label_rows(labels, n=len(images), classes=self.estimator.nb_classes))
        network = self.estimator.model
        with modes_kept(network), gradients_kept(network):  # ART's search changes both
            adversarial = evasion.FastGradientMethod.generate(self, as_array(images), rows, mask=mask)
        return torch.from_numpy(adversarial).to(images.device)

    def _check_params(self) -> None:
        super()._check_params()
        if self.minimal and (self.loss is not None or self._stops_early):
            raise ValueError(
                "expected minimal=False with loss, restarts or keep_first, but got True: the search for the smallest "
                "perturbation is ART's, along the loss of the estimator: see attack_view"
            )

    def _once(self, images: Tensor, labels: Tensor, mask: Array | None) -> Tensor:
        """Return the images of one attempt at all."""
        adversarial = images.float().clone()
        if self.num_random_init:  # one draw for all images
            adversarial = self._start(self._batch(adversarial, labels, mask, slice(None))).to(images.device)
        for start in range(0, len(images), self.batch_size):
            rows, self._batch_id = slice(start, start + self.batch_size), start // self.batch_size
            # NumPy computes the difference of an image and its original, and projects it, in their common precision.
            batch = self._batch(images, labels, mask, rows)
            points = adversarial[rows].to(batch.region.images.device, copy=True)
            adversarial[rows] = self._ascend(batch, points).to(images.device)
        return adversarial


class _AnyPreprocessing(evasion.ProjectedGradientDescentPyTorch):
    """ART's PGD without the check of its constructor that preprocessing is in torch: `evaluate` takes any."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super(evasion.ProjectedGradientDescentPyTorch, self).__init__(*args, **kwargs)

    def _check_params(self) -> None:
        super()._check_params()
        if self.summary_writer is not None and self.num_random_init > 1:  # as ART's
            raise ValueError(f"expected num_random_init of at most 1 with summary_writer, got {self.num_random_init}")


class ProjectedGradientDescent(_GradientAscent, _AnyPreprocessing):
    """
    ART's ProjectedGradientDescentPyTorch (PGD; Madry et al., 2018) along any loss.

    `decay` is that of the momentum (MI-FGSM; Dong et al., 2018).

    >>> from art_hrloss import HRClassifier, HRLoss
    >>> classifier = HRClassifier(torch.nn.Linear(4, 3), HRLoss(), (4,), 3, clip_values=(0, 1), device_type="cpu")
    >>> options = {"max_iter": 10, "restarts": 2, "keep_first": True, "verbose": False}
    >>> attack = ProjectedGradientDescent(classifier, eps=0.1, eps_step=0.02, **options)
    >>> attack.generate(np.full((2, 4), 0.5, dtype=np.float32), [0, 1]).shape
    (2, 4)
    """

    # ART's declares the parameters of its FastGradientMethod, of which PGD ignores `minimal`.
    attack_params = [  # noqa: RUF012
        *(name for name in evasion.ProjectedGradientDescentPyTorch.attack_params if name != "minimal"),
        *LossAttack.extra_params,
    ]

    def set_params(self, **kwargs: Any) -> None:
        """Set parameters by name: see LossAttack's."""
        if kwargs.keys() & {"eps", "random_eps"} and (self.random_eps or kwargs.get("random_eps")):
            raise ValueError(
                "expected eps and random_eps to stay where eps is random, but got others: ART draws it from a "
                "distribution that its constructor sets. Construct another attack"
            )
        super().set_params(**kwargs)

    def _attacked(self, x: Any, y: Any, **kwargs: Any) -> Tensor:
        images, labels, mask = self._checked(x, y, kwargs)
        mask = self._get_mask(images, mask=mask)
        self._check_compatibility_input_and_eps(x=images)
        self._random_eps()
        if self._stops_early:
            return self._attack_unfinished(images, labels, mask)
        images, home = images.float(), images.device
        adversarial = images.clone()
        for first in self._bar(range(0, len(images), self.batch_size), "batch"):
            rows, self._batch_id = slice(first, first + self.batch_size), first // self.batch_size
            batch = self._batch(images, labels, mask, rows)
            adversarial[rows] = self._ascend(batch, self._start(batch)).to(home)
            if self.num_random_init > 1:  # ART compares with the prediction, not with the label
                reference = batch.classes.to(home) if self.targeted else self._predict(images[rows])
            for _ in range(1, self.num_random_init):
                points = self._ascend(batch, self._start(batch)).to(home)
                success = (self._predict(points) == reference) == self.targeted
                adversarial[rows][success] = points[success]  # as in ART, a later success replaces an earlier one
        if self.summary_writer is not None:
            self.summary_writer.reset()
        return adversarial
