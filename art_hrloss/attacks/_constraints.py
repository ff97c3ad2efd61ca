"""
Constraints of an attack: the feasible set of a batch, directions of steepest ascent, and checks of eps.

The formulas are those of ART's attacks, operation by operation, so that the images are ART's to the last bit.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from art.attacks.evasion import ProjectedGradientDescentPyTorch
from art.utils import random_sphere
from torch import Tensor

from art_hrloss._preconditions import Images, Labels, inside

Array = npt.NDArray[Any]
Size = float | Array  # of a ball or a step: one number, or an array that broadcasts with the images


class FeasibleSet:
    """The L_p ball around each image of a batch, intersected with the range of clip_values."""

    def __init__(self, images: Tensor, eps: Size, *, norm: float | str, clip_values: Any) -> None:
        """
        :param images: The centres, shape ``(n, *input_shape)``.
        :param eps: The radius, in units of the images; an array broadcasts with them.
        :param norm: numpy.inf, "inf", or at least 1.
        :param clip_values: The least and the greatest value, numbers or arrays that broadcast with the images, or None.
        """
        self.images, self.eps, self.norm = images, eps, norm_order(norm)
        self.clip_values = None if clip_values is None else [beside(images, value) for value in clip_values]

    def project(self, points: Tensor) -> Tensor:
        """
        Return points clipped and then projected into the ball; as in ART, by scaling for any finite norm.

        :param points: Shape ``(n, *input_shape)``; they may be overwritten, which spares fresh memory at each step.
        """
        change: Tensor
        if points.dtype != self.images.dtype:
            change = self._clipped(points) - self.images
        else:
            change = (points if self.clip_values is None else points.clamp_(*self.clip_values)).sub_(self.images)
        if self.norm == math.inf:
            bound = beside(change, self.eps)
            change.clamp_(-bound, bound)
        elif isinstance(self.eps, np.ndarray):
            change = ProjectedGradientDescentPyTorch._projection(change, self.eps, self.norm)
        else:
            rows = change.flatten(1)
            size = torch.linalg.vector_norm(rows, ord=self.norm, dim=1, keepdim=True)
            if isinstance(self.eps, float):  # ART divides an array of float64 by it, which is one of int64 for an int
                size = size.double()
            rows = rows * torch.where(size == 0, size, (self.eps / size).clamp(max=1))
            change = rows.view_as(change).to(change.dtype)
        return change.add_(self.images)

    def random_start(self, mask: Tensor | None = None) -> Tensor:
        """Return a random point of each ball, clipped, from NumPy's global generator, as ART's PGD starts."""
        n, size = len(self.images), math.prod(self.images.shape[1:])
        if isinstance(self.eps, np.ndarray):  # ART's takes an array of few shapes, and in no finite norm
            eps = np.broadcast_to(self.eps, self.images.shape).reshape(n, size)
            infinite = self.norm == math.inf
            noise = random_sphere(n, size, eps, math.inf) if infinite else eps * random_sphere(n, size, 1.0, self.norm)
        else:
            noise = random_sphere(n, size, self.eps, self.norm)
        change = torch.from_numpy(noise.reshape(self.images.shape).astype(np.float32)).to(self.images.device)
        return self._clipped(self.images + (change if mask is None else change * mask))

    def select(self, rows: Tensor) -> "FeasibleSet":
        """Return the feasible set of some images of the batch, by a mask or indices of shape ``(n,)``."""
        eps = rows_of(self.eps, rows, len(self.images), self.images.ndim)
        return FeasibleSet(self.images[rows], eps, norm=self.norm, clip_values=self.clip_values)

    def _clipped(self, points: Tensor) -> Tensor:
        return points if self.clip_values is None else points.clamp(*self.clip_values)


def norm_order(norm: float | str) -> float:
    """Return the order of a norm, which ART also calls "inf"."""
    return math.inf if norm == "inf" else float(norm)


def steepest_ascent(gradient: Tensor, norm: float | str) -> Tensor:
    """Return, of all perturbations of norm 1, the one of steepest ascent, shape ``(n, ...)``; overwrites `gradient`."""
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
    """Return each example's gradient over its norm; 0 stays 0."""
    size = like(torch.linalg.vector_norm(gradient.flatten(1), ord=order, dim=1), gradient)
    return gradient * torch.where(size == 0, size, 1 / size)


def over_largest(gradient: Tensor) -> Tensor:
    """Return each example's gradient over its largest entry, so that no norm of it underflows; 0 stays 0."""
    largest = gradient.abs().flatten(1).amax(1)
    return gradient / like(torch.where(largest > 0, largest, 1), gradient)


def like(values: Tensor, images: Tensor) -> Tensor:
    """Return a value per example in a shape that broadcasts with the images."""
    return values.view(-1, *(1,) * (images.ndim - 1))


def beside(images: Tensor, value: Any) -> Any:
    """Return a number as Python's, an array as a tensor beside the images: either is then in their precision."""
    if np.ndim(value) == 0:
        return float(value)
    return torch.as_tensor(value, dtype=images.dtype, device=images.device)


def rows_of(values: Any, rows: Any, n: int, ndim: int) -> Any:
    """Return some images' part of eps, a step size or a mask; what all images share, unchanged."""
    if not isinstance(values, np.ndarray) or values.ndim != ndim or len(values) != n:
        return values
    return values[rows.cpu().numpy() if isinstance(rows, Tensor) else rows]


def margins(logits: npt.NDArray[np.float64], labels: Labels) -> npt.NDArray[np.float64]:
    """Return each true class's logit less the largest other, shape ``(n,)``: below 0 where misclassified."""
    true = np.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    others = logits.copy()
    np.put_along_axis(others, labels[:, None], -np.inf, axis=1)
    return np.asarray(true - others.max(1))


def check_eps(eps: Any, norm: float | str, clip_values: Any) -> float:
    """Return eps as Python's float, for ART refuses NumPy's; raise as :func:`check_units` does."""
    value = float(eps)
    check_units(value, norm, clip_values)
    return value


def check_units(eps: Any, norm: float | str, clip_values: Any) -> None:
    """
    Raise unless eps is finite, above 0 and, in L-infinity, at most the range of the pixels.

    A larger one is nearly always in other units. Some entries of an array may be 0.
    """
    if not (np.isfinite(eps).all() and np.min(eps) >= 0 and np.max(eps) > 0):
        raise ValueError(f"expected eps to be finite and above 0, but got {eps}")
    if not norm_order(norm) >= 1:
        raise ValueError(f"expected norm to be numpy.inf, 'inf' or at least 1, but got {norm}")
    if clip_values is None or norm_order(norm) != math.inf:
        return
    width = float(np.max(np.subtract(clip_values[1], clip_values[0])))
    if np.max(eps) > width * (1 + 1e-6):
        raise ValueError(
            f"expected eps of at most {width:g}, the range of clip_values, but got {np.max(eps):g}: eps is in units of "
            f"the images, so that 8 of 255 gray levels are {8 / 255 * width:.4g}"
        )


def at_least_one(name: str, value: Any) -> int:
    """Return a number of steps or attempts as Python's int; raise, with its name, unless it is whole and above 0."""
    if value != int(value) or value < 1:
        raise ValueError(f"expected {name} to be a whole number of at least 1, but got {value}")
    return int(value)


def feasible(adversarial: Images, images: Images, eps: float, norm: float | str, clip_values: Any) -> Array:
    """Return which images lie within eps of the originals and in the pixels' range, up to float32 rounding."""
    change = (adversarial.astype(np.float64) - images).reshape(len(images), -1)
    distance = np.linalg.norm(change, ord=norm_order(norm), axis=1)
    rounding = 1e-6 * np.abs(images).reshape(len(images), -1).max(1)
    near = distance <= eps * (1 + 1e-5) + rounding
    if clip_values is not None:
        near &= inside(adversarial, clip_values).reshape(len(images), -1).all(1)
    return np.asarray(near)
