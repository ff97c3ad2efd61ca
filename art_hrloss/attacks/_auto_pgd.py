"""
Auto-PGD (Croce and Hein, 2020) along any loss: ART's attack with one evaluation per iterate, where ART needs two.

By default the adversarial images equal ART's bit for bit with the same seeds, except for rounding in two cases: finite
norms, which NumPy sums in another order, and batches of more than 128 images, whose losses ART computes in parts. For a
random network, ART evaluates two draws of the network per iterate, and this attack one.
"""

import itertools
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from art.attacks import evasion
from art.utils import projection, random_sphere
from torch import Tensor

from art_hrloss._labels import class_indices
from art_hrloss._network import as_array
from art_hrloss.attacks._base import LossAttack, warn_of_nan
from art_hrloss.attacks._constraints import Array, Batch, like, over_largest
from art_hrloss.attacks._losses import TargetedDLRLoss, TargetedMarginLoss


class Iterate(NamedTuple):
    """Iterates of the images of a batch, the previous iterates, and the evaluation of the network at the iterates."""

    points: Tensor
    previous: Tensor
    losses: Tensor
    logits: Tensor
    gradient: Tensor

    def where(self, flags: Tensor, other: "Iterate") -> "Iterate":
        """Return this iterate where `flags`, shape ``(n,)``, is True, and the other iterate elsewhere."""
        return Iterate(*(torch.where(like(flags, a), a, b) for a, b in zip(self, other, strict=True)))

    def select(self, rows: Tensor) -> "Iterate":
        """Return the iterates of some of the images, selected by a mask."""
        return Iterate(*(values[rows] for values in self))


class AutoProjectedGradientDescent(LossAttack, evasion.AutoProjectedGradientDescent):
    """
    ART's AutoProjectedGradientDescent (Auto-PGD; Croce and Hein, 2020) along any loss.

    `eps_step` is the length of the first step. Croce and Hein use 2 eps; the default is ART's 0.1. Use `loss` instead
    of ART's `loss_type`, which raises an error.

    >>> import numpy as np, torch
    >>> from art_hrloss import AutoProjectedGradientDescent, HRClassifier, HRLoss
    >>> classifier = HRClassifier(torch.nn.Linear(4, 3), HRLoss(), (4,), 3, clip_values=(0, 1), device_type="cpu")
    >>> attack = AutoProjectedGradientDescent(classifier, eps=0.1, loss="dlr", keep_first=True, verbose=False)
    >>> attack.generate(np.full((2, 4), 0.5, dtype=np.float32), [0, 1]).shape
    (2, 4)
    """

    attack_params = [  # noqa: RUF012  # ART's own declaration
        *evasion.AutoProjectedGradientDescent.attack_params,
        *LossAttack.extra_params,
        "target_classes",
    ]
    starts_param = ("nb_random_init", 5)

    def __init__(self, estimator: Any, *args: Any, target_classes: int = 0, **kwargs: Any) -> None:
        """
        :param args: ART's parameters, and `loss`, `restarts` and `keep_first` of
               :class:`~art_hrloss.attacks.FastGradientMethod`.
        :param target_classes: The number of target classes, the most likely class first; each is the target of one
               attempt. 0 is an untargeted attack. `y` remains the true labels. Requires `keep_first`, and loss="dlr"
               (:class:`~art_hrloss.attacks.TargetedDLRLoss`, the default) or loss="margin"
               (:class:`~art_hrloss.attacks.TargetedMarginLoss`).
        :raises ValueError: If a parameter is out of its range, or conflicts with another one.
        """
        self.target_classes = target_classes
        super().__init__(estimator, *args, **kwargs)

    def _attacked(self, x: Any, y: Any, **kwargs: Any) -> Tensor:
        originals, labels, mask = self._checked(x, y, kwargs)
        if self._stops_early:
            return self._attack_unfinished(originals, labels, mask)
        classes = class_indices(labels, n=len(originals), classes=self.estimator.nb_classes)
        images, device = originals.float(), originals.device
        adversarial = images.clone()
        for _ in self._bar(range(self.nb_random_init), "restart"):
            rows = ((self._predict(adversarial) == classes) != self.targeted).nonzero().squeeze(1)
            if not len(rows):
                break
            starts = self._around(as_array(adversarial[rows]), as_array(originals[rows])).to(device)
            for first in self._bar(range(0, len(rows), self.batch_size), "batch"):
                part = slice(first, first + self.batch_size)
                batch = self._batch(images, labels, mask, rows[part])
                last = self._ascend(batch, starts[part].to(batch.region.images.device, copy=True))
                success = (self._classifier.predicted_classes(last.logits) == batch.classes) == self.targeted
                # As in ART, an attempt that fails returns its random start.
                starts[part][success.to(device)] = last.points[success].to(device)
            adversarial[rows] = starts
        return adversarial

    def _around(self, iterates: Array, originals: Array) -> Tensor:
        """Return a random point around each iterate, projected into the ball, from NumPy's generator as in ART."""
        noise = random_sphere(len(iterates), math.prod(iterates.shape[1:]), self.eps, self.norm)
        starts = iterates + noise.reshape(iterates.shape).astype(np.float32)
        if self.estimator.clip_values is not None:
            starts = np.clip(starts, *self.estimator.clip_values)
        starts = originals + projection(starts - originals, self.eps, self.norm)
        return torch.from_numpy(starts.astype(np.float32))

    def _check_params(self) -> None:
        super()._check_params()
        if self.loss_type is not None:
            raise ValueError(
                f"expected loss_type=None, but got {self.loss_type!r}: use loss='ce' or loss='dlr' instead, which are "
                "numerically exact and computed per example"
            )
        if not self.target_classes:
            return
        if self.target_classes not in range(1, self.estimator.nb_classes):
            raise ValueError(
                f"expected target_classes from 0 to {self.estimator.nb_classes - 1}, the number of other classes, but "
                f"got {self.target_classes}"
            )
        attempts = (self.restarts in (None, 1)) and self.nb_random_init in (1, self.starts_param[1])
        if self.loss not in (None, "dlr", "margin") or self.targeted or not self.keep_first or not attempts:
            raise ValueError(
                "expected keep_first=True, loss 'dlr' or 'margin', and no targeted, restarts or nb_random_init with "
                f"target_classes, but got keep_first={self.keep_first}, loss={self.loss!r}, "
                f"targeted={self.targeted}, restarts={self.restarts} and nb_random_init={self.nb_random_init}"
            )
        self._loss = TargetedMarginLoss() if self.loss == "margin" else TargetedDLRLoss()

    def _attempt(self, batch: Batch, attempt: int) -> tuple[Tensor, Tensor]:
        if self.target_classes:
            logits = self._logits(batch.region.images, batch.classes)
            wrong_classes = logits.scatter(1, batch.classes.unsqueeze(1), -torch.inf).argsort(1, descending=True)
            batch.labels = torch.stack((batch.classes, wrong_classes[:, attempt]), dim=1)
        last = self._ascend(batch, batch.region.random_start(batch.mask))
        return last.points, last.logits

    def _ascend(self, batch: Batch, start: Tensor) -> Iterate:
        """
        Return the last iterates of Auto-PGD on a batch.

        The steps have momentum. At checkpoints, the step size of an image is halved if its loss has increased in too
        few steps, and the image returns to its best iterate. The order of operations is ART's, for equal images.
        """
        classifier, sign, labels = self._classifier, -1.0 if self.targeted else 1.0, batch.labels
        if not self.target_classes:
            labels = classifier.attack_labels(labels, len(start), self._loss)
        intervals = checkpoints(self.max_iter)
        # The largest gradient entry, to warn of NaN once after the loop: reading it at each step would make a GPU wait.
        largest = start.new_zeros(())
        with classifier.attacking():
            point = classifier.evaluate(start, labels, loss=self._loss)
            current = newest = Iterate(start, start, point.losses, point.logits, point.slope)
            best, last_best = current._replace(previous=batch.region.images), current.losses
            step = torch.full_like(like(current.losses, start), self.eps_step, dtype=torch.float32)
            count = torch.zeros_like(current.losses)  # new best losses since the last checkpoint
            for k in range(self.max_iter):
                # The newest iterates are tested, because at a checkpoint an image may have left an adversarial iterate
                # for its best one.
                if self.keep_first and (stay := self._remove(batch, newest.points, newest.logits)) is not None:
                    current, newest, best = (iterate.select(stay) for iterate in (current, newest, best))
                    labels, last_best, step, count = labels[stay], last_best[stay], step[stay], count[stay]
                    if not len(labels):
                        break
                torch.maximum(largest, current.gradient.amax(), out=largest)
                points = self._next(current, batch, step, first=k == 0)
                point = classifier.evaluate(points, labels, loss=self._loss, gradient=k + 1 < self.max_iter)
                slope = current.gradient if point.gradient is None else point.gradient  # the last iterate needs none
                newest = Iterate(points, current.points, point.losses, point.logits, slope)
                if not self.keep_first and k > 0 and bool((newest.losses == 0).all()):
                    current = newest  # ART stops if all losses are exactly 0
                    break
                # As in ART, the first step counts as better if its loss is at least that of the start, also for a
                # targeted attack, for which a smaller loss is better.
                better = newest.losses >= best.losses if k == 0 else sign * newest.losses > sign * best.losses
                count += better
                candidate = newest._replace(previous=best.previous) if k == 0 else newest
                current, best = newest, candidate.where(better, best)
                if k in intervals:
                    # ART counts new best losses. The authors' code counts all increases, which was not stronger in a
                    # comparison on eleven networks.
                    halve = (count < 0.75 * intervals[k]) | (best.losses == last_best)
                    current, step = best.where(halve, current), torch.where(like(halve, step), step / 2, step)
                    count, last_best = torch.zeros_like(count), best.losses
        warn_of_nan(largest)
        return newest if self.keep_first else current

    def _next(self, current: Iterate, batch: Batch, step: Tensor, *, first: bool) -> Tensor:
        """Return the points after a step along the gradient, with momentum unless it is the first step."""
        region, gradient = batch.region, -current.gradient if self.targeted else current.gradient
        # Without this, an image with a NaN in its gradient would become NaN, as in ART's Auto-PGD.
        gradient = gradient.nan_to_num(0.0, math.inf, -math.inf)
        if region.norm == math.inf:
            direction = gradient.sign()
        else:
            # ART adds a small constant to the norm, which would shorten the step along a gradient below 1e-7. With a
            # loss of this package, gradients are therefore scaled first.
            gradient = gradient if self._loss is None else over_largest(gradient)
            norm = torch.linalg.vector_norm(gradient.flatten(1), ord=region.norm, dim=1)
            direction = (gradient / (like(norm, gradient) + 10e-8)).nan_to_num(0.0)
        direction = direction if batch.mask is None else direction * batch.mask
        points = region.project(direction.to(current.points.dtype).mul_(step).add_(current.points))
        if first:
            return points
        # The update of Croce and Hein, who take three quarters of the step and one quarter of the previous step.
        momentum = (current.points - current.previous).mul_(0.25)
        return region.project(points.sub_(current.points).mul_(0.75).add_(current.points).add_(momentum))


def checkpoints(max_iter: int) -> dict[int, int]:
    """Return the steps at which step sizes may be halved, each with the number of steps since the previous one."""
    # The schedule of Croce and Hein: intervals of 0.22 of all steps at first, each shorter by 0.03, but at least 0.06.
    ends = [0.0, 0.22]
    while (end := ends[-1] + max(ends[-1] - ends[-2] - 0.03, 0.06)) <= 1:
        ends.append(end)
    steps = [math.ceil(end * max_iter) for end in ends]
    return {step: step - last_step for last_step, step in reversed(list(itertools.pairwise(steps))) if step > 0}
