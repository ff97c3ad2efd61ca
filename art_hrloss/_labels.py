"""Labels in the form that ART gives to each kind of loss, and a loss of them under a reduction."""

import copy

import numpy as np
import torch
from torch import Tensor
from torch.nn import BCELoss, BCEWithLogitsLoss, CrossEntropyLoss, Module, MultiMarginLoss, NLLLoss

# How ART hands labels to a loss: as class indices, as a column of 0 and 1, and otherwise one-hot.
INDEX_LOSSES = (CrossEntropyLoss, NLLLoss, MultiMarginLoss)
BINARY_LOSSES = (BCELoss, BCEWithLogitsLoss)


def one_hot(y: np.ndarray | Tensor, n: int, classes: int, device: torch.device) -> Tensor:
    """
    Labels checked, in one form.

    :param y: Class indices, shape ``(n,)`` or ``(n, 1)``, or one-hot labels or probabilities, ``(n, classes)``.
    :param n: How many images they belong to.
    :return: Floats of shape ``(n, classes)`` on the device.
    :raises ValueError: If they fit neither form.
    """
    # Copied as well: a tensor made in inference mode cannot enter a graph, its copy can.
    labels = y.to(device).clone() if isinstance(y, Tensor) else torch.tensor(y, device=device)
    if labels.ndim == 0 or len(labels) != n:
        raise ValueError(f"expected labels for {n} images, but got shape {tuple(labels.shape)}")
    if labels.ndim == 2 and labels.shape[1] == classes and classes > 1:
        # A row without weight, or with NaN, has no gradient: the attack would stand still and look withstood.
        if not bool((labels.isfinite() & (labels >= 0)).all() and (labels.sum(1) > 0).all()):
            raise ValueError("expected rows of labels to be finite, not negative and not all 0, but got others")
        return labels.float() if not labels.is_floating_point() else labels
    if labels.ndim == 1 or (labels.ndim == 2 and labels.shape[1] == 1):
        index = labels.reshape(-1).long()
        if bool(((index != labels.reshape(-1)) | (index < 0) | (index >= classes)).any()):
            raise ValueError(
                f"expected class indices, whole numbers from 0 to {classes - 1}, "
                f"but got values from {labels.min()} to {labels.max()}"
            )
        return torch.nn.functional.one_hot(index, classes).float()
    raise ValueError(f"expected labels of shape (n,), (n, 1) or (n, {classes}), but got {tuple(labels.shape)}")


def reduced(loss: Module, logits: Tensor, labels: Tensor, reduction: str) -> Tensor:
    """The loss under a reduction, the module itself left as it is; "none" gives shape (n,)."""
    own_reduction = hasattr(loss, "reduction")
    if own_reduction and loss.reduction != reduction:
        loss = copy.copy(loss)  # shares the weights; the caller's module keeps its own reduction
        setattr(loss, "reduction", reduction)  # noqa: B010  # to mypy, a module's attributes are tensors
    elif not own_reduction and reduction not in ("none", "mean", "sum"):
        raise ValueError(f"expected reduction to be one of ['none', 'mean', 'sum'], but got {reduction!r}")
    target = target_for(loss, labels.to(logits.device, logits.dtype if labels.is_floating_point() else None))
    values: Tensor = loss(logits, target)
    if own_reduction and reduction != "none":
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


def target_for(loss: Module, labels: Tensor) -> Tensor:
    """Labels of shape (n, M) in the form that ART gives to a loss of this kind; those in that form stay as they are."""
    if not labels.is_floating_point() or labels.shape[1] == 1:
        return labels
    if isinstance(loss, BINARY_LOSSES):
        return labels.argmax(1, keepdim=True).to(labels.dtype)
    probabilities = isinstance(loss, CrossEntropyLoss) and not torch.equal(labels, labels.floor())
    return labels.argmax(1) if isinstance(loss, INDEX_LOSSES) and not probabilities else labels
