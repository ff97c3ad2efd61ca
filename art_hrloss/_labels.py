"""Labels: one parser for every form that users have, and the form that ART gives to each kind of loss."""

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import BCELoss, BCEWithLogitsLoss, CrossEntropyLoss, Module, MultiMarginLoss, NLLLoss

# ART hands labels to these losses as class indices, to the binary ones as a column of 0 and 1, to others one-hot.
INDEX_LOSSES = (CrossEntropyLoss, NLLLoss, MultiMarginLoss)
BINARY_LOSSES = (BCELoss, BCEWithLogitsLoss)


def parse_labels(y: Any, *, n: int, classes: int, zero_rows: bool = False) -> Tensor:
    """
    Return labels in one of two forms, whatever form they come in.

    :param y: Class indices, shape ``(n,)`` or ``(n, 1)``, of any integer dtype, byte order and stride, or whole numbers
           of another dtype; or one-hot labels or probabilities, shape ``(n, classes)``. An array, a tensor, a list or
           a pandas object.
    :param zero_rows: Whether a row may be all 0: an example without weight.
    :return: A copy: int64 of shape ``(n,)``, or floating point of shape ``(n, classes)``.
    :raises ValueError: If they have neither form.

    >>> parse_labels([2, 0], n=2, classes=3)
    tensor([2, 0])
    """
    labels = _as_tensor(y)
    if labels is None:
        got = type(y).__name__
    elif tuple(labels.shape) not in {(n,), (n, 1), (n, classes)}:
        got = f"shape {tuple(labels.shape)}"
    elif labels.ndim == 2 and labels.shape[1] > 1:
        labels = labels if labels.is_floating_point() else labels.float()
        # A row without weight, or with NaN, has no gradient: its image would not move and would look robust.
        if bool((labels.isfinite() & (labels >= 0)).all() and (zero_rows or (labels.sum(1) > 0).all())):
            return labels
        got = f"rows with NaN, infinity or numbers below 0{'' if zero_rows else ', or all 0'}"
    else:
        labels = labels.reshape(-1)
        index = labels.long()
        if bool(((index == labels) & (index >= 0) & (index < classes)).all()):
            return index
        got = f"values from {labels.min()} to {labels.max()}"
    raise ValueError(f"{_expected(n, classes)}, but got {got}")


def label_rows(y: Any, *, n: int, classes: int) -> Tensor:
    """Return labels one-hot or as probabilities, floating point of shape ``(n, classes)``; see :func:`parse_labels`."""
    labels = parse_labels(y, n=n, classes=classes)
    return labels if labels.is_floating_point() else torch.nn.functional.one_hot(labels, classes).float()


def class_indices(y: Any, *, n: int, classes: int) -> Tensor:
    """
    Return labels as class indices, int64 of shape ``(n,)``; see :func:`parse_labels`.

    :raises ValueError: If a row of probabilities has no single largest entry: no class is then the true one.
    """
    labels = parse_labels(y, n=n, classes=classes)
    return _largest(labels) if labels.is_floating_point() else labels


def target_for(loss: Module, labels: Tensor) -> Tensor:
    """Return rows of labels ``(n, M)`` in the form that ART gives to a loss of this kind; any other form unchanged."""
    if not labels.is_floating_point() or labels.ndim == 1 or labels.shape[1] == 1:
        return labels
    if isinstance(loss, BINARY_LOSSES):
        return _largest(labels)[:, None].to(labels.dtype)
    # Cross-entropy takes rows as weights of the classes; to ART, rows of whole numbers such as [1, 1, 0] are one-hot.
    one_hot = bool((((labels != 0).sum(1) == 1) & (labels.amax(1) == 1)).all())
    by_index = isinstance(loss, INDEX_LOSSES) and (one_hot or not isinstance(loss, CrossEntropyLoss))
    return _largest(labels) if by_index else labels


def check_no_image_ignored(loss: Module, rows: Tensor) -> None:
    """Raise if a loss ignores, by `ignore_index` or a class weight of 0, images with labels ``(n, M)``."""
    if not isinstance(loss, INDEX_LOSSES):  # what other losses call weight is not of classes
        return
    target = target_for(loss, rows)
    ignored = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    if not target.is_floating_point():
        ignored = target == getattr(loss, "ignore_index", -100)  # which MultiMarginLoss lacks
        target = torch.nn.functional.one_hot(target, rows.shape[1])
    if loss.weight is not None and not getattr(loss, "label_smoothing", 0):  # a smoothed label is of every class
        weightless = (loss.weight == 0).nonzero().flatten().to(rows.device)
        ignored |= target.index_fill(1, weightless, 0).sum(1) == 0
    if bool(ignored.any()):
        classes = target[ignored].argmax(1).unique().tolist()
        raise ValueError(
            f"expected an attack loss that depends on every image, but got {type(loss).__name__}, which ignores "
            f"{int(ignored.sum())} of {len(rows)} images, those of classes {classes}, by its ignore_index or a class "
            "weight of 0: they have no gradient, would never move, and would look robust. Give attack_loss=, such as "
            "the same loss without ignore_index and weight"
        )


def reduced(loss: Module, logits: Tensor, labels: Tensor, reduction: str) -> Tensor:
    """
    Return the loss under a reduction: shape ``(n,)`` for "none", else a scalar; the module itself is not modified.

    :param loss: A module with a `reduction`, or one that gives a value per example.
    :param labels: In any form that :func:`target_for` takes.
    :raises ValueError: If the loss does not give one value per example, or does not know the reduction.
    """
    has_reduction = hasattr(loss, "reduction")
    if not has_reduction and reduction not in ("none", "mean", "sum"):
        raise ValueError(f"expected reduction to be one of ['none', 'mean', 'sum'], but got {reduction!r}")
    if has_reduction and loss.reduction != reduction:
        loss = copy.copy(loss)  # shares the weights; the caller's module keeps its own reduction
        setattr(loss, "reduction", reduction)  # noqa: B010  # to mypy, a module's attributes are tensors
    labels = labels.to(logits.device, logits.dtype if labels.is_floating_point() else None)
    values: Tensor = loss(logits, target_for(loss, labels))
    if has_reduction and reduction != "none":
        return values
    if values.ndim == 0 or len(values) != len(logits):
        raise ValueError(
            f"expected {type(loss).__name__} to give one value per example, shape ({len(logits)},), so that an attack "
            f"on one image does not depend on the others, but got shape {tuple(values.shape)}"
        )
    values = values if values.ndim == 1 else values.flatten(1).sum(1)
    if reduction == "none":
        return values
    return values.mean() if reduction == "mean" else values.sum()


def _largest(rows: Tensor) -> Tensor:
    """Return the class of each row's largest entry, int64 of shape ``(n,)``; raise where it is not the only one."""
    if bool(((rows == rows.amax(1, keepdim=True)).sum(1) != 1).any()):
        raise ValueError(f"{_expected(*rows.shape)}, but got a row whose largest entry occurs more than once")
    return rows.argmax(1)


def _expected(n: int, classes: int) -> str:
    return (
        f"expected class indices, whole numbers from 0 to {classes - 1}, of shape ({n},) or ({n}, 1), or one-hot "
        f"labels or probabilities of shape ({n}, {classes})"
    )


def _as_tensor(y: Any) -> Tensor | None:
    """Return a copy as a tensor of a dtype that torch computes with; None if `y` holds no numbers."""
    if isinstance(y, Tensor):  # A copy, because a tensor made in inference mode cannot enter a graph.
        dense = y.detach().to_dense().clone()
        return None if y.is_complex() else dense if y.is_floating_point() else dense.long()
    try:
        array = np.asarray(y)
        if array.dtype == object:  # pandas's nullable integers, or Python's in an array of objects
            array = np.asarray(array.tolist())
    except ValueError:  # rows of different lengths
        return None
    if array.dtype.kind not in "biuf":
        return None
    # torch has few operations on unsigned integers; uint64 beyond int64 turns negative, and so is refused.
    dtype: np.dtype[Any] = np.dtype(np.int64)
    if array.dtype.kind == "f":
        dtype = array.dtype.newbyteorder("=") if array.dtype.itemsize <= 8 else np.dtype(np.float64)
    return torch.from_numpy(array.astype(dtype, order="C"))
