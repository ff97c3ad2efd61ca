"""Preconditions of a verdict: what must hold before robust accuracy, a report or a bound is worth anything."""

from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from art_hrloss._context import modes_kept
from art_hrloss._labels import class_indices
from art_hrloss._network import as_array, check_classifier
from art_hrloss.losses._numerics import are_distributions

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Pixels = TypeVar("Pixels", npt.NDArray[Any], Tensor)


class Evaluation(NamedTuple):
    """Images ``(n, *input_shape)`` that a verdict can be based on, their classes ``(n,)``, and logits ``(n, M)``."""

    images: Images
    labels: Labels
    logits: npt.NDArray[np.float32]


def checked_evaluation(classifier: PyTorchClassifier, x: Any, y: Any, *, batch_size: int = 128) -> Evaluation:
    """
    Return images, labels and logits; raise unless a verdict on them means something.

    :param classifier: A PyTorchClassifier; neither its weights nor its modes are changed.
    :param x: Images, shape ``(n, *input_shape)``.
    :param y: True labels; see :func:`art_hrloss._labels.parse_labels`.
    :raises ValueError: If there is no image; if images are not finite or outside clip_values; if labels are no classes;
            if logits are not finite, not one per class, or probabilities; or if the network is random in evaluation
            mode, or its logits depend on the other images of a batch. The message names the remedy.
    """
    check_classifier(classifier)
    images = checked_images(classifier, x)
    labels = class_indices(y, n=len(images), classes=classifier.nb_classes).cpu().numpy()
    return Evaluation(images, labels, checked_logits(classifier, images, batch_size=batch_size))


def checked_images(classifier: PyTorchClassifier, x: Any) -> Images:
    """Return images as an array of float32; see :func:`checked_tensor`."""
    return as_array(checked_tensor(classifier, x))


def checked_tensor(classifier: PyTorchClassifier, x: Any) -> Tensor:
    """
    Return images as float32; raise unless there are any, finite and inside the classifier's clip_values.

    :param x: Images, shape ``(n, *input_shape)``: a tensor, which is checked where it is, or an array.
    """
    given = x.detach() if isinstance(x, Tensor) else np.asarray(x)
    shape = tuple(classifier.input_shape)
    numbers = not given.is_complex() if isinstance(given, Tensor) else given.dtype.kind in "fiub"
    if given.ndim != len(shape) + 1 or len(given) == 0 or not numbers:
        expected = ", ".join(map(str, ("n", *shape)))
        raise ValueError(
            f"expected at least one image, an array of numbers of shape ({expected}), but got {given.dtype} of shape "
            f"{tuple(given.shape)}"
        )
    with np.errstate(over="ignore"):  # float64 beyond float32 turns infinite, and so is refused
        images = given.float() if isinstance(given, Tensor) else torch.from_numpy(given.astype(np.float32, order="C"))
    if not images.isfinite().all():
        raise ValueError(
            "expected images to be finite, but got NaN or infinity: a network's answer to them means nothing"
        )
    if classifier.clip_values is not None and not bool(inside(images, classifier.clip_values).all()):
        low, high = np.min(classifier.clip_values[0]), np.max(classifier.clip_values[1])
        least, most = images.min().item(), images.max().item()
        raise ValueError(
            f"expected images inside clip_values, from {low:g} to {high:g}, but got values from {least:g} to {most:g}: "
            "an attack clips its images, and not those. Scale the images (those from 0 to 255 by 1/255), or construct "
            "the classifier with their clip_values"
        )
    return images


def inside(images: Pixels, clip_values: tuple[Any, Any]) -> Pixels:
    """Return which pixels lie in the range of clip_values, up to float32 rounding; of the shape of the images."""
    low, high = (np.asarray(value, dtype=np.float32) for value in clip_values)
    slack = 1e-6 * np.maximum(np.abs(low), np.abs(high))  # which scaling in float32 may add
    edges: list[Any] = [low - slack, high + slack]
    if isinstance(images, Tensor):  # numbers, so that a GPU does not wait for them
        edges = [torch.as_tensor(edge, device=images.device) if np.ndim(edge) else float(edge) for edge in edges]
    result: Pixels = (images >= edges[0]) & (images <= edges[1])
    return result


def checked_logits(classifier: PyTorchClassifier, images: Images, *, batch_size: int = 128) -> npt.NDArray[np.float32]:
    """Return the classifier's logits, shape ``(n, M)``; raise unless they are finite, and the same in other batches."""
    if batch_size < 1:
        raise ValueError(f"expected batch_size to be at least 1, but got {batch_size}")
    # The second time each image has other neighbours: the batch must not decide about it.
    sizes = batch_size, max(1, min(batch_size, len(images)) * 2 // 3)
    with modes_kept(classifier.model):
        logits, again = (np.asarray(classifier.predict(images, batch_size=size)) for size in sizes)
    if logits.shape != (len(images), classifier.nb_classes):
        single = ": give a network of one output a second one, of constant 0" if logits.shape[1:] == (1,) else ""
        raise ValueError(
            f"expected predictions of shape ({len(images)}, {classifier.nb_classes}), one logit per class, but got "
            f"{logits.shape}{single}"
        )
    if not np.isfinite(logits).all():
        raise ValueError(
            f"expected finite logits, but {int((~np.isfinite(logits)).any(1).sum())} of {len(logits)} images have NaN "
            "or infinite ones: they are no predictions, and have no gradients. See whether training diverged"
        )
    if are_distributions(torch.from_numpy(logits)):
        raise ValueError(
            "expected a classifier that predicts logits, but each row of its output is a distribution, whose gradients "
            "vanish: take the softmax out of the network"
        )
    # The sums of a GPU, and those of batches of other sizes, are not always in the same order.
    if np.abs(again - logits).max() > 1e-4 * np.abs(logits).max():
        raise ValueError(
            "expected a network that is deterministic in evaluation mode, but two predictions of the same images "
            "differ. If it is random, one draw proves nothing: switch the randomness off, or attack in expectation, a "
            "network whose forward averages the logits over many draws from a generator that it seeds itself. If it "
            "normalises by the statistics of the batch, let batch normalisation use its running ones"
        )
    return logits
