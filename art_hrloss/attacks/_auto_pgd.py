"""
Auto-PGD (Croce and Hein, 2020) along any loss: ART's attack, with each point evaluated once.

ART asks for the gradient at a point and for the loss at the next, and so passes every point through the network twice;
here both come from one evaluation, and with them the prediction. By default the images are ART's bit for bit, at the
same seeds, but for rounding in two cases: finite norms, which NumPy sums in another order, and batches of more than
128, which ART cuts up for the losses. Of a random network ART sees two draws at each point, this attack one.
"""

import itertools
import math
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from art.attacks import evasion
from art.attacks.evasion import auto_projected_gradient_descent
from art.utils import projection, random_sphere
from torch import Tensor
from torch.nn import Module

from art_hrloss._context import modes_kept
from art_hrloss._labels import class_indices
from art_hrloss.attacks._base import LossAttack, Unfinished, mask_rows, plain
from art_hrloss.attacks._constraints import Array, FeasibleSet, Images, like, over_largest
from art_hrloss.attacks._losses import AttackLossName, TargetedDLRLoss

# What counts as progress of a step, of which a stretch needs three in four or the step is halved: "best", a loss better
# than all before, as in ART; "rise", a loss better than the last, as in the authors' implementation.
Progress = Literal["best", "rise"]


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

    >>> import art_hrloss
    >>> options = {"input_shape": (4,), "nb_classes": 3, "clip_values": (0, 1), "device_type": "cpu"}
    >>> classifier = art_hrloss.HRClassifier(torch.nn.Linear(4, 3), art_hrloss.HRLoss(), **options)
    >>> attack = AutoProjectedGradientDescent(classifier, eps=0.1, loss="dlr", keep_first=True, verbose=False)
    >>> attack.generate(np.full((2, 4), 0.5, dtype=np.float32), [0, 1]).shape
    (2, 4)
    """

    attack_params = [  # noqa: RUF012  # ART's own declaration
        *evasion.AutoProjectedGradientDescent.attack_params,
        *LossAttack.extra_params,
        "target_classes",
        "progress",
    ]
    starts_param = ("nb_random_init", 5)
    summary_writer = None  # ART's has none

    def __init__(
        self,
        estimator: Any,
        norm: float | str = np.inf,
        eps: float = 0.3,
        eps_step: float = 0.1,
        max_iter: int = 100,
        targeted: bool = False,
        nb_random_init: int = 5,
        batch_size: int = 32,
        loss_type: None = None,
        verbose: bool = True,
        *,
        loss: AttackLossName | Module | None = None,
        restarts: int | None = None,
        keep_first: bool = False,
        target_classes: int = 0,
        progress: Progress = "best",
    ) -> None:
        """
        :param estimator: A PyTorchClassifier or HRClassifier, as are the other parameters without asterisk ART's.
        :param eps: The radius, in units of the images; at most the range of clip_values in L-infinity.
        :param eps_step: The length of the first step; the authors take 2 eps.
        :param max_iter: Steps per attempt.
        :param loss_type: None: see `loss`, which has more.
        :param loss: The loss to ascend: "ce", "hr", "margin", "dlr", or a module as HRClassifier's `attack_loss`. By
               default that of the estimator.
        :param restarts: Attempts, each from a random start, at the images that no earlier one has made adversarial. By
               default ART's `nb_random_init`.
        :param keep_first: Whether an image stops at its first adversarial iterate. ART's returns the last iterate, or
               the start, even if only an earlier one was adversarial.
        :param target_classes: If not 0, as many attempts, each towards another class, the likeliest first, along
               :class:`~art_hrloss.attacks.TargetedDLRLoss`; `y` is still the true labels. With `keep_first` alone.
        :param progress: Which steps count when the step size is decided: "best" as ART, "rise" as the authors.
        :raises ValueError: If a parameter is out of its range, or cannot be honoured beside the others.
        """
        self._set_up(estimator, loss, restarts, keep_first)
        self.target_classes, self.progress = target_classes, progress
        if restarts is not None and nb_random_init == self.starts_param[1]:
            nb_random_init = restarts
        with modes_kept(estimator.model):  # ART predicts, to see whether the outputs are probabilities
            super().__init__(
                estimator,
                norm,
                plain(eps),
                plain(eps_step),
                max_iter,
                targeted,
                nb_random_init,
                batch_size,
                loss_type,
                verbose,
            )
        self._check_params()

    def generate(self, x: Array, y: Any = None, **kwargs: Any) -> Images:
        """
        Return adversarial images, float32 of shape ``(n, *input_shape)``.

        :param x: Images, finite and inside clip_values.
        :param y: True labels, or targets if targeted, in any form; by default the predictions.
        :param kwargs: `mask`: where a step may change an image, in a shape that broadcasts with it. ART's random start
               ignores it; with restarts or `keep_first` the start honours it.
        """
        images, labels = self._checked(x, y)
        mask = kwargs.get("mask")
        if self._stops_early:
            return self._attack_unfinished(images, labels, mask)
        classes = class_indices(labels, n=len(images), classes=self.estimator.nb_classes).cpu().numpy()
        adversarial = images.astype(np.float32)
        for _ in self._bar("restart", max(1, self.nb_random_init)):
            rows = np.flatnonzero((self._predict(adversarial) == classes) != self.targeted)
            if not len(rows):
                break
            start = self._start(adversarial[rows], images[rows])
            for batch in self._bar("batch", math.ceil(len(rows) / self.batch_size)):
                part = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
                region, _ = self._region(images[rows[part]], rows[part], len(images))
                free = mask_rows(mask, rows[part], region, len(images))
                begin = torch.from_numpy(start[part]).to(region.images.device)
                last = self._ascend(begin, region, labels[rows[part]], free)
                predicted = self._classifier.predicted_classes(last.logits).cpu().numpy()
                success = (predicted == classes[rows[part]]) == self.targeted
                # As in ART, an image that is not adversarial is where it started.
                start[part][success] = last.points.cpu().numpy()[success]
            adversarial[rows] = start
        return adversarial

    def _check_params(self) -> None:
        super()._check_params()
        if self.loss_type is not None:
            raise ValueError(
                f"expected loss_type=None, but got {self.loss_type!r}: pass loss='ce' or loss='dlr', which are exact "
                "and per example"
            )
        if self.progress not in get_args(Progress):
            raise ValueError(f"expected progress to be one of {list(get_args(Progress))}, but got {self.progress!r}")
        if not self.target_classes:
            return
        if not 0 < self.target_classes < self.estimator.nb_classes:
            raise ValueError(
                f"expected target_classes from 0 to {self.estimator.nb_classes - 1}, the number of other classes, but "
                f"got {self.target_classes}"
            )
        if self.loss is not None or self.targeted or not self.keep_first or self.restarts not in (None, 1):
            raise ValueError(
                "expected keep_first=True and neither loss, targeted nor restarts with target_classes, but got others: "
                "it has a loss and attempts of its own"
            )
        self._loss = TargetedDLRLoss()

    @property
    def _attempts(self) -> int:
        return self.target_classes or super()._attempts

    def _attempt(
        self,
        region: FeasibleSet,
        labels: Tensor,
        mask: Tensor | None,
        eps_step: float,
        unfinished: Unfinished,
        attempt: int,
    ) -> Tensor:
        if self.target_classes:
            logits = self._logits(region.images, unfinished.classes)
            others = logits.scatter(1, unfinished.classes.unsqueeze(1), -torch.inf).argsort(1, descending=True)
            labels = torch.stack((unfinished.classes, others[:, attempt]), dim=1)
        return self._ascend(
            region.random_start(mask), region, labels, mask, unfinished if self.keep_first else None
        ).points

    def _ascend(
        self,
        start: Tensor,
        region: FeasibleSet,
        labels: Tensor,
        mask: Tensor | None,
        unfinished: Unfinished | None = None,
    ) -> Iterate:
        """
        Return the last iterates of Auto-PGD on a batch: momentum, the best iterate so far, and a step that is halved.

        The parameters are those of `LossAttack._attempt`. Operation by operation this is ART's.
        """
        classifier, sign = self._classifier, -1.0 if self.targeted else 1.0
        if not self.target_classes:
            labels = classifier.attack_labels(labels, len(start), self._loss)
        stretches = checkpoints(self.max_iter)
        with classifier.attacking():
            here = Iterate(start, start, *classifier.evaluate(start, labels, loss=self._loss))
            best, best_before, newest = here._replace(previous=region.images), here.losses, here
            step = torch.full_like(like(here.losses, start), self.eps_step, dtype=torch.float32)
            count, halved = torch.zeros_like(here.losses), torch.zeros_like(here.losses, dtype=torch.bool)
            for k in range(self.max_iter):
                if unfinished is not None:
                    stay = unfinished.update(newest.points, classifier.predicted_classes(newest.logits))
                    if stay is not None:
                        here, best, region = here.select(stay), best.select(stay), region.select(stay)
                        mask = None if mask is None else mask[stay]
                        labels, best_before, step, count, halved = (
                            rows[stay] for rows in (labels, best_before, step, count, halved)
                        )
                    if not len(here.points):
                        return here
                points = self._next(here, region, step, mask, first=k == 0)
                point = classifier.evaluate(points, labels, loss=self._loss, gradient=k + 1 < self.max_iter)
                slope = here.gradient if point.gradient is None else point.gradient  # the last one is not used
                there = newest = Iterate(points, here.points, point.losses, point.logits, slope)
                if k > 0 and bool((there.losses == 0).all()):  # as ART, to which this is the end of a cross-entropy
                    return there
                # As in ART, the first step may be no better than the start, and for a targeted attack must not be.
                better = there.losses >= best.losses if k == 0 else sign * there.losses > sign * best.losses
                count += better if self.progress == "best" else sign * there.losses > sign * here.losses
                candidate = there._replace(previous=best.previous) if k == 0 else there
                here, best = there, candidate.where(better, best)
                if k in stretches:
                    stalled = best.losses == best_before
                    halve = (count < 0.75 * stretches[k]) | (stalled if self.progress == "best" else stalled & ~halved)
                    here, step = best.where(halve, here), torch.where(like(halve, step), step / 2, step)
                    count, halved, best_before = torch.zeros_like(count), halve, best.losses
        # The newest may be adversarial, the best no longer.
        return here if unfinished is None else newest

    def _next(self, here: Iterate, region: FeasibleSet, step: Tensor, mask: Tensor | None, *, first: bool) -> Tensor:
        """Return the points after a step: along the gradient and, but for the first, in part along the step before."""
        gradient = -here.gradient if self.targeted else here.gradient
        if region.norm == math.inf:
            direction = gradient.sign()
        else:
            # ART lifts the norm a little off 0, which hides the direction of a gradient below 1e-7.
            gradient = gradient if self._loss is None else over_largest(gradient)
            norm = torch.linalg.vector_norm(gradient.flatten(1), ord=region.norm, dim=1)
            direction = gradient / (like(norm, gradient) + 10e-8)
        direction = direction if mask is None else direction * mask
        ahead = region.project(direction.to(here.points.dtype).mul_(step).add_(here.points))
        if first:
            return ahead
        drift = (here.points - here.previous).mul_(0.25)
        return region.project(ahead.sub_(here.points).mul_(0.75).add_(here.points).add_(drift))

    def _bar(self, name: str, length: int) -> Any:
        """Return ART's progress bar."""
        return auto_projected_gradient_descent.trange(
            length, desc=f"AutoPGD - {name}", leave=name == "restart", disable=not self.verbose
        )

    def _start(self, points: Images, images: Array) -> Images:
        """Return a random point around each of `points`, within the ball around the image, as ART does."""
        noise = random_sphere(len(points), math.prod(points.shape[1:]), self.eps, self.norm)
        points = points + noise.reshape(points.shape).astype(np.float32)
        if self.estimator.clip_values is not None:
            points = np.clip(points, *self.estimator.clip_values)
        inside: Array = images + projection(points - images, self.eps, self.norm)
        return inside.astype(np.float32)


def checkpoints(max_iter: int) -> dict[int, int]:
    """Return the steps after which the step size is decided, each with the number of steps since the one before."""
    ends = [0.0, 0.22]
    while (end := ends[-1] + max(ends[-1] - ends[-2] - 0.03, 0.06)) <= 1:
        ends.append(end)
    steps = [math.ceil(end * max_iter) for end in ends]
    return {step: step - before for before, step in reversed(list(itertools.pairwise(steps))) if step > 0}
