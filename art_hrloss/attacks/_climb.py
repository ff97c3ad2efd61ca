"""
How Auto-PGD (Croce and Hein, 2020) goes on from a step: momentum, the best place so far, and a step that halves.

As in ART, operation by operation, so that the images are the same.
"""

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from art_hrloss.attacks._steps import Room, like, norm_order


class Place(NamedTuple):
    """For each image of a batch a point, the one before it, and what the network says of it."""

    points: Tensor
    previous: Tensor
    losses: Tensor
    logits: Tensor
    gradient: Tensor

    def where(self, flags: Tensor, other: "Place") -> "Place":
        """This place for the images whose flag, shape ``(n,)``, is set, and the other for the rest."""
        return Place(*(torch.where(like(flags, a), a, b) for a, b in zip(self, other, strict=True)))


class Climb:
    """How far Auto-PGD is with a batch: where each image is, the best place that it has been at, and its step."""

    def __init__(self, start: Place, *, step: float, max_iter: int, norm: float | str, targeted: bool) -> None:
        """
        :param start: Where the images are; the points before them are the images themselves.
        :param step: The length of a step, in units of the images.
        :param max_iter: The number of steps.
        :param norm: numpy.inf, "inf", 1 or 2.
        :param targeted: Whether the loss is to fall.
        """
        self.here = self.best = start
        self.norm, self.targeted = norm_order(norm), targeted
        self.step = torch.full_like(like(start.losses, start.points), step, dtype=torch.float32)
        self.taken, self.rises, self.best_at_check = 0, torch.zeros_like(start.losses), start.losses
        self.stretches = _stretches(max_iter)

    def next_points(self, room: Room, mask: Tensor | None) -> Tensor:
        """A step along the gradient, and from the second on three parts of it to one of the step before."""
        points, previous, _, _, gradient = self.here
        direction = _over_size(-gradient if self.targeted else gradient, self.norm)
        direction = direction if mask is None else direction * mask
        ahead = room.inside(direction.mul_(self.step).add_(points))
        if self.taken == 0:
            return ahead
        return room.inside(ahead.sub_(points).mul_(0.75).add_(points).add_((points - previous).mul_(0.25)))

    def go(self, there: Place) -> None:
        """Go on, and at the end of a stretch send the slow ones back to their best with half the step."""
        first = self.taken == 0
        if first:
            better = there.losses >= self.best.losses  # in ART for a targeted attack as well
        else:
            better = there.losses < self.best.losses if self.targeted else there.losses > self.best.losses
        before = self.best.previous if first else there.previous
        self.best = there._replace(previous=before).where(better, self.best)
        self.here, self.rises = there, self.rises + better
        if self.taken in self.stretches:
            few = self.rises < 0.75 * self.stretches[self.taken]
            slow = few | (self.best.losses == self.best_at_check)
            self.here = self.best.where(slow, there)
            self.step = torch.where(like(slow, self.step), self.step / 2, self.step)
            self.rises, self.best_at_check = torch.zeros_like(self.rises), self.best.losses
        self.taken += 1


def _stretches(max_iter: int) -> dict[int, int]:
    """The steps after which Auto-PGD takes stock, each with the length of the stretch up to it."""
    ends = [0.0, 0.22]
    while (end := ends[-1] + max(ends[-1] - ends[-2] - 0.03, 0.06)) <= 1:
        ends.append(end)
    steps = [math.ceil(end * max_iter) for end in ends]
    return {step: step - before for before, step in reversed(list(itertools.pairwise(steps))) if step > 0}


def _over_size(gradient: Tensor, norm: float) -> Tensor:
    """Auto-PGD's direction: the sign, or the gradient over its norm, which ART lifts a little off 0."""
    if norm == math.inf:
        return gradient.sign()
    size = torch.linalg.vector_norm(gradient.flatten(1), ord=norm, dim=1)
    return gradient / (like(size, gradient) + 10e-8)
