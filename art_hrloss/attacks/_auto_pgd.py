"""
Auto-PGD (Croce and Hein, 2020) along any loss: ART's attack, with each point evaluated once where ART needs two passes.

By default the images are ART's bit for bit, at the same seeds, but for rounding in two cases: finite norms, which NumPy
sums in another order, and batches of more than 128, which ART cuts up for the losses. Of a random network ART sees two
draws at each point, this attack one.
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
from art_hrloss.attacks._base import Batch, LossAttack, warn_of_nan
from art_hrloss.attacks._constraints import Array, like, over_largest
from art_hrloss.attacks._losses import TargetedDLRLoss, TargetedMarginLoss


class Iterate(NamedTuple):
    """For each image of a batch its iterate, the one before it, and the evaluation there."""

    points: Tensor
    previous: Tensor
    losses: Tensor
    logits: Tensor
    gradient: Tensor

    def where(self, flags: Tensor, other: "Iterate") -> "Iterate":
        """Return this iterate for the images whose flag, shape ``(n,)``, is set, and the other for the rest."""
        return Iterate(*(torch.where(like(flags, a), a, b) for a, b in zip(self, other, strict=True)))

    def select(self, rows: Tensor) -> "Iterate":
        """Return the iterate of some of the images."""
        return Iterate(*(values[rows] for values in self))


class AutoProjectedGradientDescent(LossAttack, evasion.AutoProjectedGradientDescent):
    """
    ART's AutoProjectedGradientDescent (Auto-PGD; Croce and Hein, 2020) along any loss.

    `eps_step` is the length of the first step; Croce and Hein take 2 eps, the default is ART's 0.1. ART's `loss_type`
    is refused: `loss` has more.

    >>> from art_hrloss import HRClassifier, HRLoss
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
        :param args: As in :class:`~art_hrloss.attacks.FastGradientMethod`: ART's, `loss`, `restarts`, `keep_first`.
        :param target_classes: The number of target classes, one targeted attempt each, the most likely class first; 0
               for an untargeted attack. `y` is still the true labels. Requires `keep_first`, and loss="margin"
               (:class:`~art_hrloss.attacks.TargetedMarginLoss`) or loss="dlr", the default here
               (:class:`~art_hrloss.attacks.TargetedDLRLoss`).
        :raises ValueError: If a parameter is out of its range, or conflicts with another one.
        """
        self.target_classes = target_classes
        super().__init__(estimator, *args, **kwargs)

    def _attacked(self, x: Any, y: Any, **kwargs: Any) -> Tensor:
        originals, labels, mask = self._checked(x, y, kwargs)
        if self._stops_early:
            return self._attack_unfinished(originals, labels, mask)
        classes = class_indices(labels, n=len(originals), classes=self.estimator.nb_classes)
        images, home = originals.float(), originals.device
        adversarial = images.clone()
        for _ in self._bar(range(self.nb_random_init), "restart"):
            rows = ((self._predict(adversarial) == classes) != self.targeted).nonzero().squeeze(1)
            if not len(rows):
                break
            starts = self._around(as_array(adversarial[rows]), as_array(originals[rows])).to(home)
            for first in self._bar(range(0, len(rows), self.batch_size), "batch"):
                part = slice(first, first + self.batch_size)
                batch = self._batch(images, labels, mask, rows[part])
                last = self._ascend(batch, starts[part].to(batch.region.images.device, copy=True))
                success = (self._classifier.predicted_classes(last.logits) == batch.classes) == self.targeted
                # As in ART, an image that is not adversarial is where it started.
                starts[part][success.to(home)] = last.points[success].to(home)
            adversarial[rows] = starts
        return adversarial

    def _around(self, iterates: Array, originals: Array) -> Tensor:
        """Return, as in ART, a random point around each iterate, projected into the ball, float32; NumPy draws it."""
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
                f"expected loss_type=None, but got {self.loss_type!r}: pass loss='ce' or loss='dlr', which are exact "
                "and per example"
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
                "expected keep_first=True, loss 'dlr' or 'margin', and neither targeted, restarts nor nb_random_init "
                "with target_classes, but got others: each attempt has a target of its own"
            )
        self._loss = TargetedMarginLoss() if self.loss == "margin" else TargetedDLRLoss()

    def _attempt(self, batch: Batch, attempt: int) -> tuple[Tensor, Tensor]:
        if self.target_classes:
            logits = self._logits(batch.region.images, batch.classes)
            others = logits.scatter(1, batch.classes.unsqueeze(1), -torch.inf).argsort(1, descending=True)
            batch.labels = torch.stack((batch.classes, others[:, attempt]), dim=1)
        last = self._ascend(batch, batch.region.random_start(batch.mask))
        return last.points, last.logits

    def _ascend(self, batch: Batch, start: Tensor) -> Iterate:
        """
        Return the last iterates of Auto-PGD on a batch: momentum, the best iterate so far, and a step that is halved.

        Operation by operation this is ART's.
        """
        classifier, sign, labels = self._classifier, -1.0 if self.targeted else 1.0, batch.labels
        if not self.target_classes:
            labels = classifier.attack_labels(labels, len(start), self._loss)
        intervals = checkpoints(self.max_iter)
        # Read once, at the end: reading one number at each step would make a GPU wait.
        largest = start.new_zeros(())
        with classifier.attacking():
            point = classifier.evaluate(start, labels, loss=self._loss)
            here = newest = Iterate(start, start, point.losses, point.logits, point.slope)
            best, best_before = here._replace(previous=batch.region.images), here.losses
            step = torch.full_like(like(here.losses, start), self.eps_step, dtype=torch.float32)
            count = torch.zeros_like(here.losses)
            for k in range(self.max_iter):
                # The newest iterate may be adversarial where the best, to which it returned, is not.
                if self.keep_first and (stay := self._remove(batch, newest.points, newest.logits)) is not None:
                    here, newest, best = (iterate.select(stay) for iterate in (here, newest, best))
                    labels, best_before, step, count = labels[stay], best_before[stay], step[stay], count[stay]
                    if not len(labels):
                        break
                torch.maximum(largest, here.gradient.amax(), out=largest)
                points = self._next(here, batch, step, first=k == 0)
                point = classifier.evaluate(points, labels, loss=self._loss, gradient=k + 1 < self.max_iter)
                slope = here.gradient if point.gradient is None else point.gradient  # the last one is not used
                newest = Iterate(points, here.points, point.losses, point.logits, slope)
                if not self.keep_first and k > 0 and bool((newest.losses == 0).all()):
                    here = newest  # as ART, to which this is the end of a cross-entropy
                    break
                # As in ART, the first step may be no better than the start, and for a targeted attack must not be.
                better = newest.losses >= best.losses if k == 0 else sign * newest.losses > sign * best.losses
                count += better
                candidate = newest._replace(previous=best.previous) if k == 0 else newest
                here, best = newest, candidate.where(better, best)
                if k in intervals:
                    # ART counts new bests; the authors' code counts rises, which was no stronger on eleven networks.
                    halve = (count < 0.75 * intervals[k]) | (best.losses == best_before)
                    here, step = best.where(halve, here), torch.where(like(halve, step), step / 2, step)
                    count, best_before = torch.zeros_like(count), best.losses
        warn_of_nan(largest)
        return newest if self.keep_first else here

    def _next(self, here: Iterate, batch: Batch, step: Tensor, *, first: bool) -> Tensor:
        """Return the points after a step: along the gradient and, but for the first, in part along the step before."""
        region, gradient = batch.region, -here.gradient if self.targeted else here.gradient
        # ART's Auto-PGD returns images of NaN.
        gradient = gradient.nan_to_num(0.0, math.inf, -math.inf)
        if region.norm == math.inf:
            direction = gradient.sign()
        else:
            # ART lifts the norm a little off 0, which hides the direction of a gradient below 1e-7.
            gradient = gradient if self._loss is None else over_largest(gradient)
            norm = torch.linalg.vector_norm(gradient.flatten(1), ord=region.norm, dim=1)
            direction = (gradient / (like(norm, gradient) + 10e-8)).nan_to_num(0.0)
        direction = direction if batch.mask is None else direction * batch.mask
        ahead = region.project(direction.to(here.points.dtype).mul_(step).add_(here.points))
        if first:
            return ahead
        drift = (here.points - here.previous).mul_(0.25)
        return region.project(ahead.sub_(here.points).mul_(0.75).add_(here.points).add_(drift))


def checkpoints(max_iter: int) -> dict[int, int]:
    """Return the steps after which the step size is decided, each with the number of steps since the one before."""
    ends = [0.0, 0.22]
    while (end := ends[-1] + max(ends[-1] - ends[-2] - 0.03, 0.06)) <= 1:
        ends.append(end)
    steps = [math.ceil(end * max_iter) for end in ends]
    return {step: step - before for before, step in reversed(list(itertools.pairwise(steps))) if step > 0}
