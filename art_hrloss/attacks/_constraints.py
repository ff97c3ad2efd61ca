"""
Batches of images under attack: their feasible set, directions of steepest ascent, and checks of eps.

The order of operations is that of ART's attacks, so that the adversarial images are equal to ART's bit for bit.
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
Size = float | Array  # the radius of a ball or the length of a step: one number or an array, which broadcasts


class FeasibleSet:
    """Feasible set of an attack: the L_p ball around each image of a batch, intersected with clip_values."""

    def __init__(self, images: Tensor, eps: Size, *, norm: float | str, clip_values: Any) -> None:
        """
        :param images: The centres, shape ``(n, *input_shape)``.
        :param eps: The radius, in units of the images; an array broadcasts with them.
        :param norm: numpy.inf, "inf", or at least 1.
        :param clip_values: The least and the greatest pixel value, numbers or arrays that broadcast, or None.
        """
        self.images, self.eps, self.norm = images, eps, norm_order(norm)
        self.clip_values = None if clip_values is None else [beside(images, value) for value in clip_values]

    def project(self, points: Tensor) -> Tensor:
        """
        Return points clipped to clip_values and then projected into the ball; as in ART, finite norms scale the change.

        :param points: Shape ``(n, *input_shape)``; they may be overwritten, to reuse their memory at each step.
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
            # ART has no public projection for an eps per image.
            change = ProjectedGradientDescentPyTorch._projection(change, self.eps, self.norm)  # noqa: SLF001
        else:
            rows = change.flatten(1)
            size = torch.linalg.vector_norm(rows, ord=self.norm, dim=1, keepdim=True)
            # ART divides an array by the norms: float64, which promotes them, for a float, and int64 for an int.
            if isinstance(self.eps, float):
                size = size.double()
            rows = rows * torch.where(size == 0, size, (self.eps / size).clamp(max=1))
            change = rows.view_as(change).to(change.dtype)
        return change.add_(self.images)

    def random_start(self, mask: Tensor | None = None) -> Tensor:
        """Return a random point of each ball, clipped, from NumPy's global generator, like the start of ART's PGD."""
        n, size = len(self.images), math.prod(self.images.shape[1:])
        if isinstance(self.eps, np.ndarray):  # random_sphere accepts few shapes of arrays, and only for L-infinity
            eps = np.broadcast_to(self.eps, self.images.shape).reshape(n, size)
            infinite = self.norm == math.inf
            noise = random_sphere(n, size, eps, math.inf) if infinite else eps * random_sphere(n, size, 1.0, self.norm)
        else:
            noise = random_sphere(n, size, self.eps, self.norm)
        change = torch.from_numpy(noise.reshape(self.images.shape).astype(np.float32)).to(self.images.device)
        return self._clipped(self.images + (change if mask is None else change * mask))

    def select(self, rows: Tensor) -> "FeasibleSet":
        """Return the feasible set of some images of the batch, selected by a mask or indices."""
        eps = rows_of(self.eps, rows, len(self.images), self.images.ndim)
        return FeasibleSet(self.images[rows], eps, norm=self.norm, clip_values=self.clip_values)

    def _clipped(self, points: Tensor) -> Tensor:
        return points if self.clip_values is None else points.clamp(*self.clip_values)


class Batch:
    """Images under attack, on the network's device; an image leaves the batch when an iterate is adversarial."""

    def __init__(self, region: FeasibleSet, labels: Tensor, mask: Tensor | None, eps_step: Any) -> None:
        """
        :param labels: The labels, or targets, as :func:`~art_hrloss._labels.parse_labels` returns them.
        :param mask: The pixels that may change, of the shape of the images; None for all pixels.
        :param eps_step: The length of a step, a number or an array that broadcasts with the images.
        """
        self.region, self.labels, self.mask, self.eps_step = region, labels, mask, eps_step
        # The classes of the images that are still in the batch, and their positions in the original batch.
        self.classes = (labels if labels.ndim == 1 else labels.argmax(1)).to(region.images.device)
        self.rows = torch.arange(len(labels), device=region.images.device)
        # The positions of the images that have left, and their first adversarial iterates.
        self.adversarial: list[tuple[Tensor, Tensor]] = []


def norm_order(norm: float | str) -> float:
    """Return the order of a norm as a float; ART also accepts the string "inf"."""
    return math.inf if norm == "inf" else float(norm)


def steepest_ascent(gradient: Tensor, norm: float | str) -> Tensor:
    """Return the perturbation of norm 1 with the steepest ascent, shape ``(n, ...)``; `gradient` is overwritten."""
    order = norm_order(norm)
    if order == math.inf:
        return gradient.sign_()
    rows = gradient.flatten(1)
    if order == 1:  # only the pixel of the largest gradient changes
        unit = torch.zeros_like(rows).scatter(1, rows.abs().argmax(1, keepdim=True), 1.0)
    else:
        conjugate = order / (order - 1)  # the exponent of the dual norm, for equality in Hoelder's inequality
        unit = torch.pow(over_norm(rows.abs(), conjugate), conjugate - 1)
    return (unit.view_as(gradient) * gradient.sign()).nan_to_num(0.0, math.inf, -math.inf)


def over_norm(gradient: Tensor, order: float) -> Tensor:
    """Return the gradient of each example divided by its norm; 0 stays 0."""
    size = like(torch.linalg.vector_norm(gradient.flatten(1), ord=order, dim=1), gradient)
    return gradient * torch.where(size == 0, size, 1 / size)


def over_largest(gradient: Tensor) -> Tensor:
    """Return the gradient of each example divided by its largest entry: its norm cannot underflow; 0 stays 0."""
    largest = gradient.abs().flatten(1).amax(1)
    return gradient / like(torch.where(largest > 0, largest, 1), gradient)


def like(values: Tensor, images: Tensor) -> Tensor:
    """Return values, one per example, in a shape that broadcasts with the images."""
    return values.view(-1, *(1,) * (images.ndim - 1))


def beside(images: Tensor, value: Any) -> Any:
    """Return a number as a Python float, and an array as a tensor with the device and dtype of the images."""
    if np.ndim(value) == 0:
        return float(value)
    return torch.as_tensor(value, dtype=images.dtype, device=images.device)


def rows_of(values: Any, rows: Any, n: int, ndim: int) -> Any:
    """Return the part of eps, a step size or a mask for some images; a value shared by all images is unchanged."""
    if not isinstance(values, np.ndarray) or values.ndim != ndim or len(values) != n:
        return values
    return values[rows.cpu().numpy() if isinstance(rows, Tensor) else rows]


def margins(logits: npt.NDArray[np.float64], labels: Labels) -> npt.NDArray[np.float64]:
    """Return the margins, the logit of the true class minus the largest other logit: below 0 if misclassified."""
    true = np.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    wrong = logits.copy()
    np.put_along_axis(wrong, labels[:, None], -np.inf, axis=1)
    return np.asarray(true - wrong.max(1))


def check_eps(eps: Any, norm: float | str, clip_values: Any) -> float:
    """Return eps as a Python float, because ART rejects NumPy numbers; raise as :func:`check_units`."""
    value = float(eps)
    check_units(value, norm, clip_values)
    return value


def check_units(eps: Any, norm: float | str, clip_values: Any) -> None:
    """
    Raise ValueError unless eps is finite, above 0 and, in L-infinity, at most the range of the pixels.

    A larger eps is nearly always a mistake in the units. Some entries of an array may be 0.
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
            f"expected eps of at most {width:g}, the range of clip_values, but got {np.max(eps):g}: pass eps in units "
            f"of the images, in which 8 of 255 gray levels are {8 / 255 * width:.4g}"
        )


def at_least_one(name: str, value: Any) -> int:
    """Return a number of steps or attempts as a Python int; raise ValueError unless it is whole and above 0."""
    if value != int(value) or value < 1:
        raise ValueError(f"expected {name} to be a whole number of at least 1, but got {value}")
    return int(value)


def feasible(adversarial: Images, images: Images, eps: float, norm: float | str, clip_values: Any) -> Array:
    """Return a mask of the images within eps of the originals and inside clip_values, up to float32 rounding."""
    change = (adversarial.astype(np.float64) - images).reshape(len(images), -1)
    distance = np.linalg.norm(change, ord=norm_order(norm), axis=1)
    rounding = 1e-6 * np.abs(images).reshape(len(images), -1).max(1)
    near = distance <= eps * (1 + 1e-5) + rounding
    if clip_values is not None:
        near &= inside(adversarial, clip_values).reshape(len(images), -1).all(1)
    return np.asarray(near)
