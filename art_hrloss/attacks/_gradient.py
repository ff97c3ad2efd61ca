"""
FGSM and projected gradient descent (PGD) along any loss: ART's attacks, with one evaluation per iterate.

By default the adversarial images equal ART's bit for bit with the same seeds, except for rounding in three cases:

* FastGradientMethod with a finite norm, which NumPy sums in another order;
* FastGradientMethod with eps as a float64 array;
* finite norms for a PyTorchClassifier whose loss is a mean: here each image has the gradient of its own loss.
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
from art_hrloss.attacks._base import LossAttack, warn_of_nan
from art_hrloss.attacks._constraints import Array, Batch, beside, norm_order, over_largest, over_norm, steepest_ascent


class _GradientAscent(LossAttack):
    """Base of FGSM (one step) and PGD (several steps): projected gradient ascent on the loss."""

    starts_param = ("num_random_init", 0)
    max_iter = 1
    decay: float | None = None

    def _attempt(self, batch: Batch, attempt: int) -> tuple[Tensor, Tensor]:
        points = self._ascend(batch, self._start(batch))
        return points, self._logits(points, batch.classes)

    def _start(self, batch: Batch) -> Tensor:
        """Return the starting points of an attempt, which are random or the images themselves."""
        random = (self.restarts is not None or self.num_random_init > 0) and self.max_iter > 0
        return batch.region.random_start(batch.mask) if random else batch.region.images.clone()

    def _ascend(self, batch: Batch, points: Tensor) -> Tensor:
        """Return the last iterates of projected gradient ascent from starting points, which may be overwritten."""
        classifier = self._classifier
        labels = classifier.attack_labels(batch.labels, len(points), self._loss)
        momentum = None if self.decay is None else torch.zeros_like(points)
        # One number for all steps, read after the loop, so that a GPU is waited for only once. A new tensor per step
        # would also fragment memory: malloc then returns pages to the system, which takes up to a tenth of the time.
        largest = points.new_zeros(())
        with classifier.attacking():
            for step in range(self.max_iter):
                point = classifier.evaluate(points, labels, loss=self._loss)
                # A targeted attack descends the loss of the target class.
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
        """Return the gradient with NaN replaced by 0, and 0 where the mask is 0."""
        # A copy, because an observer may have stored the gradient, and the step overwrites it.
        gradient = gradient.nan_to_num(0.0, math.inf, -math.inf)
        gradient = gradient if mask is None else torch.where(mask == 0, 0.0, gradient)
        # The squares of entries below 1e-19 underflow in float32, so that the norm would be 0.
        rescales = self._loss is not None and (norm_order(self.norm) != math.inf or self.decay is not None)
        return over_largest(gradient) if rescales else gradient

    def _step(self, batch: Batch, points: Tensor, gradient: Tensor) -> Tensor:
        """Return the points after a step of steepest ascent; both arguments may be overwritten."""
        direction = steepest_ascent(gradient, self.norm).to(points.dtype)
        return batch.region.project(direction.mul_(beside(direction, batch.eps_step)).add_(points))

    def _summarise(self, step: int, points: Tensor, labels: Tensor, gradient: Tensor) -> None:
        """Write a step to ART's summary writer; as in ART, the gradient of a targeted attack is negated."""
        rows = label_rows(labels, n=len(points), classes=self.estimator.nb_classes)
        x, y, grad = (values.cpu().numpy() for values in (points, rows, gradient))
        options = {"patch": None, "estimator": self.estimator, "targeted": self.targeted}
        self.summary_writer.update(batch_id=self._batch_id, global_step=step, grad=grad, x=x, y=y, **options)


class FastGradientMethod(_GradientAscent, evasion.FastGradientMethod):
    """
    ART's FastGradientMethod (FGSM; Goodfellow et al., 2015) along any loss.

    The length of the step is `eps`. With `minimal`, ART searches for the smallest multiple of `eps_step` that is
    adversarial, along the loss of the estimator; `loss`, `restarts` and `keep_first` are then not allowed.

    >>> import numpy as np, torch
    >>> from art_hrloss import FastGradientMethod, HRClassifier, HRLoss
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
        Return adversarial images for known gradients, so that attacks with several `eps` need one evaluation.

        :param x: Images on the classifier's device, float32 of shape ``(n, *input_shape)``, inside clip_values.
        :param gradient: The gradient of each image's loss by the image, of the shape of `x`.
        :return: float32 of the shape of `x`.
        :raises ValueError: If the attack has random starts, restarts, `keep_first` or `minimal`.

        >>> import torch
        >>> from art_hrloss import FastGradientMethod, HRClassifier, HRLoss
        >>> classifier = HRClassifier(torch.nn.Linear(4, 3), HRLoss(), (4,), 3, clip_values=(0, 1), device_type="cpu")
        >>> FastGradientMethod(classifier, eps=0.5).along(torch.zeros(1, 4), torch.tensor([[1.0, -1.0, 0.0, 2.0]]))
        tensor([[0.5000, 0.0000, 0.0000, 0.5000]])
        """
        if self.num_random_init or self._stops_early or self.minimal:
            raise ValueError(
                "expected an attack without random starts, restarts, keep_first and minimal, but got one of them: its "
                "images do not follow from the gradients at the originals"
            )
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
        # As in ART. The sum is computed by NumPy, whose rounding differs from torch's.
        if labels.is_floating_point() and self.estimator.nb_classes > 2:
            rows = as_array(labels)
            labels = torch.from_numpy(rows / np.sum(rows, axis=1, keepdims=True)).to(images.device)
        best, most = images.float(), 0
        for _ in range(max(1, self.num_random_init)):
            adversarial = self._once(images, labels, mask)
            if self.num_random_init < 2:
                best = adversarial
                continue
            # As in ART, the attempt with the most successes is returned for all images.
            reference = (labels if labels.ndim == 1 else labels.argmax(1)) if self.targeted else self._predict(images)
            success = int(((self._predict(adversarial) == reference) == self.targeted).sum())
            best, most = (adversarial, success) if success > most else (best, most)
        if self.summary_writer is not None:
            self.summary_writer.reset()
        return best

    def _arts_smallest(self, images: Tensor, labels: Tensor, mask: Array | None) -> Tensor:
        """Return the images of ART's search for the smallest perturbation."""
        rows = as_array(label_rows(labels, n=len(images), classes=self.estimator.nb_classes))
        network = self.estimator.model
        with modes_kept(network), gradients_kept(network):  # ART's search changes modes and gradients
            adversarial = evasion.FastGradientMethod.generate(self, as_array(images), rows, mask=mask)
        return torch.from_numpy(adversarial).to(images.device)

    def _check_params(self) -> None:
        super()._check_params()
        if self.minimal and (self.loss is not None or self._stops_early):
            raise ValueError(
                "expected minimal=False with loss, restarts or keep_first, but got True: ART's search for the smallest "
                "perturbation uses the attack loss of the estimator. Choose that loss with attack_view"
            )

    def _once(self, images: Tensor, labels: Tensor, mask: Array | None) -> Tensor:
        """Return the adversarial images of one attempt on all images."""
        adversarial = images.float().clone()
        if self.num_random_init:  # as in ART, the random starts of all images are drawn together, before the batches
            adversarial = self._start(self._batch(adversarial, labels, mask, slice(None))).to(images.device)
        for start in range(0, len(images), self.batch_size):
            rows, self._batch_id = slice(start, start + self.batch_size), start // self.batch_size
            # The originals keep their precision, because NumPy, and so ART, projects in the higher of both precisions.
            batch = self._batch(images, labels, mask, rows)
            points = adversarial[rows].to(batch.region.images.device, copy=True)
            adversarial[rows] = self._ascend(batch, points).to(images.device)
        return adversarial


class _AnyPreprocessing(evasion.ProjectedGradientDescentPyTorch):
    """ART's PGD without its requirement that preprocessing is written in torch: HRClassifier.evaluate supports both."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super(evasion.ProjectedGradientDescentPyTorch, self).__init__(*args, **kwargs)

    def _check_params(self) -> None:
        super()._check_params()
        if self.summary_writer is not None and self.num_random_init > 1:  # the skipped constructor checks this
            raise ValueError(
                f"expected num_random_init of at most 1 with summary_writer, but got {self.num_random_init}"
            )


class ProjectedGradientDescent(_GradientAscent, _AnyPreprocessing):
    """
    ART's ProjectedGradientDescentPyTorch (PGD; Madry et al., 2018) along any loss.

    With `decay` the steps have momentum (MI-FGSM; Dong et al., 2018).

    >>> import numpy as np, torch
    >>> from art_hrloss import HRClassifier, HRLoss, ProjectedGradientDescent
    >>> classifier = HRClassifier(torch.nn.Linear(4, 3), HRLoss(), (4,), 3, clip_values=(0, 1), device_type="cpu")
    >>> options = {"max_iter": 10, "restarts": 2, "keep_first": True, "verbose": False}
    >>> attack = ProjectedGradientDescent(classifier, eps=0.1, eps_step=0.02, **options)
    >>> attack.generate(np.full((2, 4), 0.5, dtype=np.float32), [0, 1]).shape
    (2, 4)
    """

    # ART declares the parameters of its FastGradientMethod here, but PGD ignores `minimal`.
    attack_params = [  # noqa: RUF012
        *(name for name in evasion.ProjectedGradientDescentPyTorch.attack_params if name != "minimal"),
        *LossAttack.extra_params,
    ]

    def set_params(self, **kwargs: Any) -> None:
        """
        Set parameters by name, as in ART; if a value is invalid, no parameter is changed.

        :param kwargs: Any of the names in `attack_params`.
        :raises ValueError: If a parameter is out of its range, or conflicts with another one.
        """
        if kwargs.keys() & {"eps", "random_eps"} and (self.random_eps or kwargs.get("random_eps")):
            raise ValueError(
                f"expected no change of eps or random_eps for random eps, but got {sorted(kwargs)}: ART's constructor "
                "sets the distribution of eps. Construct another attack"
            )
        super().set_params(**kwargs)

    def _attacked(self, x: Any, y: Any, **kwargs: Any) -> Tensor:
        images, labels, mask = self._checked(x, y, kwargs)
        mask = self._get_mask(images, mask=mask)
        self._check_compatibility_input_and_eps(x=images)
        self._random_eps()
        if self._stops_early:
            return self._attack_unfinished(images, labels, mask)
        images, device = images.float(), images.device
        adversarial = images.clone()
        for first in self._bar(range(0, len(images), self.batch_size), "batch"):
            rows, self._batch_id = slice(first, first + self.batch_size), first // self.batch_size
            batch = self._batch(images, labels, mask, rows)
            adversarial[rows] = self._ascend(batch, self._start(batch)).to(device)
            if self.num_random_init > 1:  # as in ART, success is a change of the prediction, not a wrong label
                reference = batch.classes.to(device) if self.targeted else self._predict(images[rows])
            for _ in range(1, self.num_random_init):
                points = self._ascend(batch, self._start(batch)).to(device)
                success = (self._predict(points) == reference) == self.targeted
                adversarial[rows][success] = points[success]  # as in ART, a later success replaces an earlier one
        if self.summary_writer is not None:
            self.summary_writer.reset()
        return adversarial
