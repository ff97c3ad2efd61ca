"""
The steps of gradient attacks: from a gradient to a direction, and back into the ball around the images.

The formulas are those of ART's attacks, operation by operation, so that the images are theirs to the last bit.
"""

import logging
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from art.attacks.evasion import ProjectedGradientDescentPyTorch
from art.utils import random_sphere
from torch import Tensor

Array = npt.NDArray[Any]
Images = npt.NDArray[np.float32]
Size = float | Array  # of a ball or a step: one number, or an array that broadcasts with the images


class Room:
    """Where the images of a batch may go: a ball around each, and the range of the classifier's clip values."""

    def __init__(self, origin: Tensor, eps: Size, *, norm: float | str, clip_values: Any) -> None:
        """
        :param origin: The images, shape ``(n, *input_shape)``.
        :param eps: The radius, in units of the images; an array broadcasts with them.
        :param norm: numpy.inf, "inf", or at least 1.
        :param clip_values: The least and the greatest value, numbers or arrays that broadcast with the images, or None.
        """
        self.origin, self.eps, self.norm = origin, eps, norm_order(norm)
        self.clip_values = None if clip_values is None else [_on(origin, value) for value in clip_values]

    @classmethod
    def around(cls, attack: Any, origin: Tensor, eps: Size) -> "Room":
        """Where an attack of ART's may take the images of a batch."""
        return cls(origin, eps, norm=attack.norm, clip_values=attack.estimator.clip_values)

    def inside(self, points: Tensor) -> Tensor:
        """
        Points clipped, and then projected into the ball; as in ART, by scaling for any finite norm.

        :param points: Shape ``(n, *input_shape)``; they may be overwritten, which spares fresh memory at each step.
        """
        if points.dtype != self.origin.dtype:
            return self._projected(self._clipped(points) - self.origin).add_(self.origin)
        clipped = points if self.clip_values is None else points.clamp_(*self.clip_values)
        return self._projected(clipped.sub_(self.origin)).add_(self.origin)

    def random_point(self, mask: Tensor | None) -> Tensor:
        """A point of the ball around each image, clipped, from numpy's global generator."""
        n, *shape = self.origin.shape
        noise = random_sphere(n, math.prod(shape), self.eps, self.norm).reshape(self.origin.shape).astype(np.float32)
        free = torch.from_numpy(noise).to(self.origin.device)
        return self._clipped(self.origin + (free if mask is None else free * mask))

    def _clipped(self, points: Tensor) -> Tensor:
        return points if self.clip_values is None else points.clamp(*self.clip_values)

    def _projected(self, change: Tensor) -> Tensor:
        if self.norm == math.inf:
            bound = _on(change, self.eps)
            return change.clamp_(-bound, bound)
        if isinstance(self.eps, np.ndarray):
            projected: Tensor = ProjectedGradientDescentPyTorch._projection(change, self.eps, self.norm)
            return projected
        rows = change.flatten(1)
        size = torch.linalg.vector_norm(rows, ord=self.norm, dim=1, keepdim=True)
        if isinstance(self.eps, float):  # ART divides an array of float64 by it, which is an array of int64 for an int.
            size = size.double()
        return (rows * torch.where(size == 0, size, (self.eps / size).clamp(max=1))).view_as(change).to(change.dtype)


def norm_order(norm: float | str) -> float:
    """The order of a norm of ART's, which may be "inf"."""
    return math.inf if norm == "inf" else float(norm)


def usable(gradient: Tensor, mask: Tensor | None, *, targeted: bool) -> Tensor:
    """The gradient to climb: turned round for a targeted attack, 0 where it is NaN and where the mask is 0."""
    gradient = (-gradient if targeted else gradient).nan_to_num(0.0, math.inf, -math.inf)
    return gradient if mask is None else torch.where(mask == 0, 0.0, gradient)


def warn_of_nan(largest: Tensor, logger: logging.Logger) -> None:
    """Warn as ART does if there was a NaN in a gradient, given the largest element of all: looked at only here."""
    if largest.isnan():
        logger.warning("Elements of the loss gradient are NaN and have been replaced with 0.0.")


def ascent(gradient: Tensor, norm: float | str) -> Tensor:
    """Of all perturbations of norm 1 the one of steepest rise along the gradient, shape ``(n, ...)``, in its place."""
    order = norm_order(norm)
    if order == math.inf:
        return gradient.sign_()
    rows = gradient.flatten(1)
    if order == 1:
        unit = torch.zeros_like(rows).scatter(1, rows.abs().argmax(1, keepdim=True), 1.0)
    else:
        conjugate = order / (order - 1)
        unit = torch.pow(over_norm(rows.abs(), conjugate), conjugate - 1)
    return (unit.view_as(gradient) * gradient.sign()).nan_to_num(0.0, math.inf, -math.inf)


def over_norm(gradient: Tensor, order: float) -> Tensor:
    """Each example's gradient over its norm; 0 stays 0."""
    rows = gradient.flatten(1)
    size = torch.linalg.vector_norm(rows, ord=order, dim=1, keepdim=True)
    return (rows * torch.where(size == 0, size, 1 / size)).view_as(gradient)


def times(size: Size, direction: Tensor) -> Tensor:
    """A step of that size in place of its direction, and in its precision, whatever that of the size."""
    return direction.mul_(_on(direction, size))


def like(values: Tensor, images: Tensor) -> Tensor:
    """A value per example in a shape that broadcasts with the examples."""
    return values.view(-1, *(1,) * (images.ndim - 1))


def of_batch(size: Size, part: slice, x: Array) -> Size:
    """Of an array with an entry for each image, the part that belongs to a batch."""
    each = isinstance(size, np.ndarray) and size.ndim == x.ndim and len(size) == len(x)
    return size[part] if isinstance(size, np.ndarray) and each else size


def mask_of_batch(mask: Array | None, part: slice, images: Tensor) -> Tensor | None:
    """Of a mask in the shape of the images the part that belongs to a batch, or the mask of one image for all."""
    if mask is None:
        return None
    return torch.from_numpy((mask[part] if mask.ndim == images.ndim else mask).astype(np.float32)).to(images.device)


def _on(images: Tensor, value: Any) -> Any:
    """A number as Python's, an array as a tensor beside the images: either is then in their precision."""
    if np.ndim(value) == 0:
        return float(value)
    return torch.as_tensor(value, dtype=images.dtype, device=images.device)
