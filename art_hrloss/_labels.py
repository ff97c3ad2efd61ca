"""Labels: one parser for all accepted forms, and the conversion to the form that each kind of loss expects."""

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import BCELoss, BCEWithLogitsLoss, CrossEntropyLoss, Module, MultiMarginLoss, NLLLoss

# ART passes labels to these losses as class indices, to the binary losses as a column of 0 and 1, and to all other
# losses one-hot.
INDEX_LOSSES = (CrossEntropyLoss, NLLLoss, MultiMarginLoss)
BINARY_LOSSES = (BCELoss, BCEWithLogitsLoss)


def parse_labels(y: Any, *, n: int, classes: int, zero_rows: bool = False) -> Tensor:
    """
    Return labels as class indices or as rows of probabilities, converted from any accepted form.

    :param y: Class indices, shape ``(n,)`` or ``(n, 1)``, of any integer dtype, byte order and stride, or whole numbers
           of another dtype; or one-hot labels or probabilities, shape ``(n, classes)``. An array, a tensor, a list or
           a pandas object.
    :param n: The number of examples.
    :param classes: The number of classes.
    :param zero_rows: Whether a row may be all 0, which gives the example no weight.
    :return: A copy of the labels: int64 of shape ``(n,)``, or floating point of shape ``(n, classes)``.
    :raises ValueError: If the labels have neither form.

    >>> parse_labels([2, 0], n=2, classes=3)
    tensor([2, 0])
    """
    labels = _as_tensor(y)
    if labels is None:
        problem = type(y).__name__
    elif tuple(labels.shape) not in {(n,), (n, 1), (n, classes)}:
        problem = f"shape {tuple(labels.shape)}"
    elif labels.ndim == 2 and labels.shape[1] > 1:
        labels = labels if labels.is_floating_point() else labels.float()
        # A row of zeros or NaN gives no gradient: an attack would not change the image, which would then look robust.
        if bool((labels.isfinite() & (labels >= 0)).all() and (zero_rows or (labels.sum(1) > 0).all())):
            return labels
        problem = f"rows that contain NaN, infinity or negative numbers{'' if zero_rows else ', or only zeros'}"
    else:
        labels = labels.reshape(-1)
        index = labels.long()
        if bool(((index == labels) & (index >= 0) & (index < classes)).all()):
            return index
        problem = f"values from {labels.min()} to {labels.max()}"
    raise ValueError(f"{_expected(n, classes)}, but got {problem}")


def label_rows(y: Any, *, n: int, classes: int) -> Tensor:
    """Return one-hot labels or probabilities, floating point of shape ``(n, classes)``; see :func:`parse_labels`."""
    labels = parse_labels(y, n=n, classes=classes)
    return labels if labels.is_floating_point() else torch.nn.functional.one_hot(labels, classes).float()


def class_indices(y: Any, *, n: int, classes: int) -> Tensor:
    """
    Return labels as class indices, int64 of shape ``(n,)``; see :func:`parse_labels`.

    :raises ValueError: If a row of probabilities has more than one largest entry, so that the true class is unknown.
    """
    labels = parse_labels(y, n=n, classes=classes)
    return _largest(labels) if labels.is_floating_point() else labels


def target_for(loss: Module, labels: Tensor) -> Tensor:
    """Return rows of labels ``(n, M)`` in the form that ART passes to this kind of loss; other shapes are unchanged."""
    if not labels.is_floating_point() or labels.ndim == 1 or labels.shape[1] == 1:
        return labels
    if isinstance(loss, BINARY_LOSSES):
        return _largest(labels)[:, None].to(labels.dtype)
    # Cross-entropy takes a row as weights of the classes, so only true one-hot rows may become indices. ART converts
    # every row of whole numbers, also [1, 1, 0], to an index.
    one_hot = bool((((labels != 0).sum(1) == 1) & (labels.amax(1) == 1)).all())
    by_index = isinstance(loss, INDEX_LOSSES) and (one_hot or not isinstance(loss, CrossEntropyLoss))
    return _largest(labels) if by_index else labels


def check_no_image_ignored(loss: Module, rows: Tensor) -> None:
    """
    Raise if a loss ignores images because of its `ignore_index` or a class weight of 0.

    :param rows: The labels of the images, shape ``(n, M)``.
    :raises ValueError: If at least one image is ignored.
    """
    if not isinstance(loss, INDEX_LOSSES):  # in other losses, `weight` is not a weight per class
        return
    target = target_for(loss, rows)
    ignored = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    if not target.is_floating_point():
        ignored = target == getattr(loss, "ignore_index", -100)  # MultiMarginLoss has no ignore_index
        target = torch.nn.functional.one_hot(target, rows.shape[1])
    # With label smoothing every class has a share of every label, so no example loses all its weight.
    if loss.weight is not None and not getattr(loss, "label_smoothing", 0):
        weightless = (loss.weight == 0).nonzero().flatten().to(rows.device)
        ignored |= target.index_fill(1, weightless, 0).sum(1) == 0
    if bool(ignored.any()):
        classes = target[ignored].argmax(1).unique().tolist()
        raise ValueError(
            f"expected an attack loss that depends on every image, but got {type(loss).__name__}, which ignores "
            f"{int(ignored.sum())} of {len(rows)} images (classes {classes}) because of ignore_index or a class weight "
            "of 0: these images have no gradient, so an attack would not change them and they would look robust. Pass "
            "attack_loss=, for example the same loss without ignore_index and weight"
        )


def reduced(loss: Module, logits: Tensor, labels: Tensor, reduction: str) -> Tensor:
    """
    Return the loss with another reduction; the module itself is not modified.

    :param loss: A module with an attribute `reduction`, or a module that returns one value per example.
    :param labels: Labels in any form that :func:`target_for` takes.
    :param reduction: "none", "mean", "sum", or another reduction of the module.
    :return: Shape ``(n,)`` for "none", otherwise a scalar.
    :raises ValueError: If the loss does not return one value per example, or does not support the reduction.
    """
    has_reduction = hasattr(loss, "reduction")
    if not has_reduction and reduction not in ("none", "mean", "sum"):
        raise ValueError(f"expected reduction to be one of ['none', 'mean', 'sum'], but got {reduction!r}")
    if has_reduction and loss.reduction != reduction:
        loss = copy.copy(loss)  # a shallow copy shares the weights, and the caller's module stays unchanged
        setattr(loss, "reduction", reduction)  # noqa: B010  # for mypy, attributes of a module are tensors
    labels = labels.to(logits.device, logits.dtype if labels.is_floating_point() else None)
    values: Tensor = loss(logits, target_for(loss, labels))
    if has_reduction and reduction != "none":
        return values
    if values.ndim == 0 or len(values) != len(logits):
        raise ValueError(
            f"expected {type(loss).__name__} to return one value per example, shape ({len(logits)},), but got shape "
            f"{tuple(values.shape)}: the attack on one image must not depend on the other images of its batch"
        )
    values = values if values.ndim == 1 else values.flatten(1).sum(1)
    if reduction == "none":
        return values
    return values.mean() if reduction == "mean" else values.sum()


def _largest(rows: Tensor) -> Tensor:
    """Return the class of the largest entry of each row, int64 of shape ``(n,)``; raise if a row has two of them."""
    if bool(((rows == rows.amax(1, keepdim=True)).sum(1) != 1).any()):
        raise ValueError(f"{_expected(*rows.shape)}, but got a row whose largest value occurs more than once")
    return rows.argmax(1)


def _expected(n: int, classes: int) -> str:
    return (
        f"expected class indices, whole numbers from 0 to {classes - 1}, of shape ({n},) or ({n}, 1), or one-hot "
        f"labels or probabilities of shape ({n}, {classes})"
    )


def _as_tensor(y: Any) -> Tensor | None:
    """Return a copy of the labels as a tensor of a dtype that torch computes with; None if they are not numbers."""
    if isinstance(y, Tensor):  # a copy, because autograd does not accept tensors that were created in inference mode
        dense = y.detach().to_dense().clone()
        return None if y.is_complex() else dense if y.is_floating_point() else dense.long()
    try:
        array = np.asarray(y)
        if array.dtype == object:  # nullable integers of pandas, or Python integers in an array of objects
            array = np.asarray(array.tolist())
    except ValueError:  # the rows have different lengths
        return None
    if array.dtype.kind not in "biuf":
        return None
    # torch supports few operations on unsigned integers. A uint64 above the range of int64 becomes negative here, and
    # parse_labels then rejects it.
    dtype: np.dtype[Any] = np.dtype(np.int64)
    if array.dtype.kind == "f":
        dtype = array.dtype.newbyteorder("=") if array.dtype.itemsize <= 8 else np.dtype(np.float64)
    return torch.from_numpy(array.astype(dtype, order="C"))
