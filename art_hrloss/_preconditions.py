"""Preconditions of an evaluation: checks without which robust accuracy, a report or a bound has no meaning."""

from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from art_hrloss._base_classifier import check_classifier
from art_hrloss._context import modes_kept
from art_hrloss._labels import class_indices
from art_hrloss._network import as_array
from art_hrloss.losses._numerics import are_distributions

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Pixels = TypeVar("Pixels", npt.NDArray[Any], Tensor)


class Evaluation(NamedTuple):
    """Checked images ``(n, *input_shape)``, their true classes ``(n,)``, and the logits ``(n, M)``."""

    images: Images
    labels: Labels
    logits: npt.NDArray[np.float32]


def checked_evaluation(classifier: PyTorchClassifier, x: Any, y: Any, *, batch_size: int = 128) -> Evaluation:
    """
    Return images, labels and logits after checking that an evaluation on them is valid.

    :param classifier: A PyTorchClassifier; its weights and its modes are not changed.
    :param x: Images, shape ``(n, *input_shape)``.
    :param y: True labels; see :func:`art_hrloss._labels.parse_labels`.
    :param batch_size: Images per prediction.
    :raises ValueError: If there is no image; if images are not finite or outside clip_values; if labels are not
            classes; if the outputs are not finite, not one per class, or probabilities instead of logits; or if the
            network is random in evaluation mode, or its logits depend on the other images of a batch. The message says
            what to do.
    """
    check_classifier(classifier)
    images = checked_images(classifier, x)
    labels = class_indices(y, n=len(images), classes=classifier.nb_classes).cpu().numpy()
    return Evaluation(images, labels, checked_logits(classifier, images, batch_size=batch_size))


def checked_images(classifier: PyTorchClassifier, x: Any) -> Images:
    """Return images as a float32 array; see :func:`checked_tensor`."""
    return as_array(checked_tensor(classifier, x))


def checked_tensor(classifier: PyTorchClassifier, x: Any) -> Tensor:
    """
    Return images as a float32 tensor after checking that they are finite and inside the classifier's clip_values.

    :param x: Images, shape ``(n, *input_shape)``: an array, or a tensor, which stays on its device.
    :raises ValueError: If there is no image, or the images have another shape, are not finite, or leave clip_values.
    """
    values = x.detach() if isinstance(x, Tensor) else np.asarray(x)
    shape = tuple(classifier.input_shape)
    is_real = not values.is_complex() if isinstance(values, Tensor) else values.dtype.kind in "fiub"
    if values.ndim != len(shape) + 1 or len(values) == 0 or not is_real:
        expected = ", ".join(map(str, ("n", *shape)))
        raise ValueError(
            f"expected at least one image, an array of real numbers of shape ({expected}), but got {values.dtype} of "
            f"shape {tuple(values.shape)}"
        )
    with np.errstate(over="ignore"):  # float64 numbers above the range of float32 become infinite, an error below
        if isinstance(values, Tensor):
            images = values.float()
        else:
            images = torch.from_numpy(values.astype(np.float32, order="C"))
    if not images.isfinite().all():
        raise ValueError(
            "expected images to be finite, but got NaN or infinity: the output of a network for them has no meaning"
        )
    if classifier.clip_values is not None and not bool(inside(images, classifier.clip_values).all()):
        low, high = np.min(classifier.clip_values[0]), np.max(classifier.clip_values[1])
        least, most = images.min().item(), images.max().item()
        raise ValueError(
            f"expected images inside clip_values, from {low:g} to {high:g}, but got values from {least:g} to {most:g}: "
            "an attack clips the adversarial images, but not the originals. Scale the images (by 1/255 if they range "
            "from 0 to 255), or construct the classifier with the clip_values of the images"
        )
    return images


def inside(images: Pixels, clip_values: tuple[Any, Any]) -> Pixels:
    """Return a mask of the pixels in the range of clip_values, up to float32 rounding; it has the images' shape."""
    low, high = (np.asarray(value, dtype=np.float32) for value in clip_values)
    slack = 1e-6 * np.maximum(np.abs(low), np.abs(high))  # scaling in float32 may exceed the range by a rounding error
    edges: list[Any] = [low - slack, high + slack]
    if isinstance(images, Tensor):  # Python numbers need no copy to a GPU
        edges = [torch.as_tensor(edge, device=images.device) if np.ndim(edge) else float(edge) for edge in edges]
    result: Pixels = (images >= edges[0]) & (images <= edges[1])
    return result


def checked_logits(classifier: PyTorchClassifier, images: Images, *, batch_size: int = 128) -> npt.NDArray[np.float32]:
    """
    Return the logits of a classifier, shape ``(n, M)``, after checking them.

    :raises ValueError: If they are not finite, not one per class, or probabilities, or if they change with the batch.
    """
    if batch_size < 1:
        raise ValueError(f"expected batch_size to be at least 1, but got {batch_size}")
    # The second prediction uses another batch size, so that each image is predicted beside other images: the logits
    # of an image must not depend on the rest of its batch.
    sizes = batch_size, max(1, min(batch_size, len(images)) * 2 // 3)
    with modes_kept(classifier.model):
        logits, repeated = (np.asarray(classifier.predict(images, batch_size=size)) for size in sizes)
    if logits.shape != (len(images), classifier.nb_classes):
        hint = ": add a second output, constant 0, to the network" if logits.shape[1:] == (1,) else ""
        raise ValueError(
            f"expected predictions of shape ({len(images)}, {classifier.nb_classes}), one logit per class, but got "
            f"{logits.shape}{hint}"
        )
    if not np.isfinite(logits).all():
        raise ValueError(
            f"expected finite logits, but got NaN or infinity for {int((~np.isfinite(logits)).any(1).sum())} of "
            f"{len(logits)} images: they have no predicted class and no gradient. Check whether the training diverged"
        )
    if are_distributions(torch.from_numpy(logits)):
        raise ValueError(
            "expected a classifier that predicts logits, but got probabilities, whose gradients vanish: remove the "
            "softmax from the network"
        )
    # The tolerance is needed because the order of a sum depends on the batch size, and on a GPU also on the call.
    if np.abs(repeated - logits).max() > 1e-4 * np.abs(logits).max():
        raise ValueError(
            "expected a network that is deterministic in evaluation mode, but got two predictions of the same images "
            "that differ. If the network is random, switch the randomness off, or evaluate a network whose forward "
            "averages the logits over many draws from a generator that it seeds itself. If the network normalises by "
            "batch statistics, use the running statistics of batch normalisation in evaluation mode"
        )
    return logits
