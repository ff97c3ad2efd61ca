"""The rules of an attack: what it is given, and which of its images count."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from art_hrloss.losses._numerics import are_distributions

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


def predicted(classifier: Any, images: Images, batch_size: int) -> Labels:
    """
    The classes that a classifier predicts, shape ``(n,)``.

    :raises ValueError: If it does not predict logits, one per class: a single column would always be class 0, and the
            gradients of probabilities vanish.
    """
    outputs = classifier.predict(images, batch_size=batch_size)
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        raise ValueError(f"expected predictions of shape (n, M), a logit for each class, but got {outputs.shape}")
    if are_distributions(torch.from_numpy(outputs)):
        raise ValueError(
            "expected a classifier that predicts logits, but each of its rows is a distribution: take the softmax out "
            "of the network"
        )
    classes: Labels = outputs.argmax(1)
    return classes


def as_indices(y: npt.NDArray[Any], classes: int) -> Labels:
    """Labels as class indices, shape ``(n,)``, from indices or rows with one largest entry."""
    labels = np.asarray(y)
    if labels.ndim == 2 and labels.shape[1] == classes:
        largest: Labels = labels.argmax(1)
        return largest
    if labels.ndim == 1:
        labels = labels[:, np.newaxis]
    valid = labels.ndim == 2 and labels.shape[1] == 1
    if not valid or not ((labels == np.floor(labels)) & (labels >= 0) & (labels < classes)).all():
        raise ValueError(
            f"expected labels as class indices from 0 to {classes - 1} or rows of {classes}, but got {y!r:.60}"
        )
    return labels[:, 0].astype(np.int64)


def margins(logits: npt.NDArray[np.float64], labels: Labels) -> npt.NDArray[np.float64]:
    """The true class's logit less the largest other, shape ``(n,)``: below 0 where misclassified."""
    true = np.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    others = logits.copy()
    np.put_along_axis(others, labels[:, None], -np.inf, axis=1)
    found: npt.NDArray[np.float64] = true - others.max(1)
    return found


def checked_eps(eps: float) -> float:
    """`eps` as Python's float, for ART refuses numpy's; raise unless it is finite and above 0."""
    if not 0 < float(eps) < np.inf:
        raise ValueError(f"expected eps to be finite and above 0, but got {eps}")
    return float(eps)


def at_least_one(name: str, value: int) -> int:
    """A number of steps or attempts as Python's int; raise, with its name, unless it is whole and above 0."""
    if value != int(value) or value < 1:
        raise ValueError(f"expected {name} to be a whole number of at least 1, but got {value}")
    return int(value)


def allowed(
    adversarial: Images, images: Images, eps: float, norm: float | str, clip_values: tuple[Any, Any] | None
) -> npt.NDArray[np.bool_]:
    """Which adversarial images lie within eps of the originals, and in the pixels' range, up to float32 rounding."""
    change = (adversarial.astype(np.float64) - images).reshape(len(images), -1)
    distance = np.linalg.norm(change, ord=float(norm), axis=1)  # float("inf") is numpy.inf
    rounding = 1e-6 * np.abs(images).reshape(len(images), -1).max(1)
    near: npt.NDArray[np.bool_] = distance <= eps * (1 + 1e-5) + rounding
    if clip_values is None:
        return near
    low, high = clip_values
    slack = 1e-6 * np.maximum(np.abs(low), np.abs(high))
    inside: npt.NDArray[np.bool_] = (adversarial >= low - slack) & (adversarial <= high + slack)
    return near & inside.reshape(len(images), -1).all(1)
