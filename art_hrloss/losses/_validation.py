"""What the functions of the loss take: everything else is a clear error."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

Reduction = Literal["batch", "none", "mean", "sum"]
_REDUCTIONS = get_args(Reduction)


def check_alpha(alpha: float) -> float:
    """Return `alpha` as a float; raise unless it is a finite number above 0."""
    if isinstance(alpha, (bool, Tensor)) or not hasattr(alpha, "__float__"):
        raise TypeError(f"expected alpha to be a number, but got {type(alpha).__name__}")
    value = float(alpha)
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"expected alpha to be finite and above 0, but got {alpha}")
    return value


def check_reduction(reduction: str) -> None:
    """Raise unless `reduction` is one of the four."""
    if reduction not in _REDUCTIONS:
        raise ValueError(f"expected reduction to be one of {list(_REDUCTIONS)}, but got {reduction!r}")


def check_process_group(process_group: ProcessGroup | None, reduction: str) -> None:
    """Raise unless a process group, if there is one, is one, and the reduction has a meaning for it."""
    if process_group is None:
        return
    if not isinstance(process_group, ProcessGroup):
        came = type(process_group).__name__
        raise TypeError(f"expected process_group to be a torch.distributed.ProcessGroup that it is part of, got {came}")
    if reduction == "sum":
        raise ValueError("expected reduction to be 'batch', 'mean' or 'none' with a process group, but got 'sum'")


def check_label_smoothing(label_smoothing: float) -> None:
    """Raise unless `label_smoothing` lies in [0, 1]."""
    if not isinstance(label_smoothing, (int, float)) or not 0 <= label_smoothing <= 1:
        raise ValueError(f"expected label_smoothing to lie in [0, 1], but got {label_smoothing}")


def as_float(values: Tensor) -> Tensor:
    """Values as they are, half precisions as float32; anything else is an error."""
    if not isinstance(values, Tensor) or not values.is_floating_point():
        came = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"expected a floating-point tensor, but got {came}")
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def classes_last(logits: Tensor) -> Tensor:
    """Logits with the class dimension moved to the end."""
    logits = as_float(logits)
    if logits.ndim == 0 or logits.shape[min(1, logits.ndim - 1)] == 0:
        raise ValueError(f"expected logits of shape (C,), (N, C) or (N, C, d1, ...), but got {tuple(logits.shape)}")
    return logits if logits.ndim <= 2 else logits.movedim(1, -1)


def _target(logits: Tensor, target: Tensor) -> Tensor:
    """Class indices as int64, or probabilities with the class dimension at the end; told apart by their shape."""
    if not isinstance(target, Tensor):
        raise TypeError(f"expected the target to be a tensor, but got {type(target).__name__}")
    if target.ndim == 1 and logits.ndim == 2 and target.dtype == torch.int64 and len(target) == len(logits):
        return target  # the common case, which need not wait for the others
    classes = 0 if logits.ndim == 1 else 1
    index_shape = logits.shape[:classes] + logits.shape[classes + 1 :]
    if target.shape == logits.shape and not target.is_complex():
        return target if logits.ndim <= 2 else target.movedim(1, -1)
    if target.shape != index_shape:
        raise ValueError(
            f"expected a target of shape {tuple(index_shape)} (class indices) or {tuple(logits.shape)} (probabilities) "
            f"for logits of shape {tuple(logits.shape)}, but got {tuple(target.shape)}"
        )
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise TypeError(f"expected class indices to be integers, but got {target.dtype}")
    return target.long()


def checked(
    logits: Tensor, target: Tensor, alpha: float, weight: Tensor | None, label_smoothing: float, reduction: str
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Logits with the classes at the end, labels likewise, and the weights in the logits' dtype."""
    check_alpha(alpha)
    check_reduction(reduction)
    check_label_smoothing(label_smoothing)
    rows = classes_last(logits)
    labels = _target(logits, target)
    if weight is not None:
        if weight.shape != rows.shape[-1:]:
            classes = rows.shape[-1]
            raise ValueError(f"expected weight of shape ({classes},), one per class, but got {tuple(weight.shape)}")
        weight = weight.to(rows)
    return rows, labels, weight
