"""Validation of the arguments of the loss; the errors name the argument and its value."""

import math
from dataclasses import dataclass
from numbers import Real
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

Reduction = Literal["batch", "none", "mean", "sum"]
_REDUCTIONS = get_args(Reduction)


@dataclass(frozen=True, eq=False)
class LossOptions:
    """The validated options of the HR loss; :func:`~art_hrloss.losses.hr_loss` describes them."""

    alpha: float = 1.6
    weight: Tensor | None = None
    ignore_index: int = -100
    label_smoothing: float = 0.0
    reduction: Reduction = "batch"
    process_group: ProcessGroup | None = None

    def __post_init__(self) -> None:
        # The exact type is tested first: this runs at every call of the loss, and isinstance of an ABC is slow.
        if type(self.alpha) is not float or not 0 < self.alpha < math.inf:
            object.__setattr__(self, "alpha", check_alpha(self.alpha))
        if self.reduction not in _REDUCTIONS:
            raise ValueError(f"expected reduction to be one of {list(_REDUCTIONS)}, but got {self.reduction!r}")
        smoothing = self.label_smoothing
        if type(smoothing) is not float or not 0 <= smoothing <= 1:
            if not isinstance(smoothing, Real) or not 0 <= smoothing <= 1:
                raise ValueError(f"expected label_smoothing to lie in [0, 1], but got {smoothing}")
            object.__setattr__(self, "label_smoothing", float(smoothing))
        if self.weight is not None and not isinstance(self.weight, Tensor):
            raise TypeError(f"expected weight to be a tensor, but got {type(self.weight).__name__}")
        if self.process_group is not None:
            _check_process_group(self.process_group, self.reduction)


def check_alpha(alpha: float) -> float:
    """Return `alpha` as a float; raise TypeError or ValueError unless it is a finite number above 0."""
    if isinstance(alpha, (bool, Tensor)) or not hasattr(alpha, "__float__"):
        raise TypeError(f"expected alpha to be a number, but got {type(alpha).__name__}")
    value = float(alpha)
    if not 0 < value < math.inf:
        raise ValueError(f"expected alpha to be finite and above 0, but got {alpha}")
    return value


def _check_process_group(process_group: object, reduction: str) -> None:
    if not isinstance(process_group, ProcessGroup):
        kind = type(process_group).__name__
        raise TypeError(
            f"expected process_group to be a torch.distributed.ProcessGroup that contains this process, but got {kind}"
        )
    if reduction == "sum":
        raise ValueError("expected reduction to be 'batch', 'mean' or 'none' with a process group, but got 'sum'")


def check_class_weights(weight: Tensor) -> None:
    """Raise ValueError unless `weight` is one finite number >= 0 per class; a meta tensor has no values to check."""
    if weight.ndim != 1 or not (weight.is_meta or bool(((weight >= 0) & weight.isfinite()).all())):
        raise ValueError(f"expected weight to be one finite number >= 0 per class, but got {weight}")


def as_float(values: Tensor) -> Tensor:
    """Return the values, converted to float32 from half precision; raise TypeError unless they are floating-point."""
    if not isinstance(values, Tensor) or not values.is_floating_point():
        kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"expected a floating-point tensor, but got {kind}")
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def check_logits(logits: Tensor) -> Tensor:
    """Return the logits, converted to float32 from half precision; raise unless they have a class dimension."""
    logits = as_float(logits)
    if logits.ndim == 0 or logits.shape[min(1, logits.ndim - 1)] == 0:
        raise ValueError(f"expected logits of shape (C,), (N, C) or (N, C, d1, ...), but got {tuple(logits.shape)}")
    return logits


def classes_last(logits: Tensor) -> Tensor:
    """Return the logits with the class dimension moved to the end, converted to float32 from half precision."""
    logits = check_logits(logits)
    return logits if logits.ndim <= 2 else logits.movedim(1, -1)


def check_target(logits: Tensor, target: Tensor) -> Tensor:
    """Return class indices as int64 and probabilities unchanged; the shape of the target distinguishes the two."""
    if not isinstance(target, Tensor):
        raise TypeError(f"expected the target to be a tensor, but got {type(target).__name__}")
    classes = 0 if logits.ndim == 1 else 1
    index_shape = logits.shape[:classes] + logits.shape[classes + 1 :]
    if target.shape == index_shape and target.dtype == torch.int64:
        return target
    if target.shape == logits.shape and not target.is_complex():
        return target
    if target.shape != index_shape:
        raise ValueError(
            f"expected a target of shape {tuple(index_shape)} (class indices) or {tuple(logits.shape)} (probabilities) "
            f"for logits of shape {tuple(logits.shape)}, but got {tuple(target.shape)}"
        )
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise TypeError(f"expected class indices to be integers, but got {target.dtype}: convert them with .long()")
    return target.long()


def check_weight_for(logits: Tensor, weight: Tensor) -> Tensor:
    """Return the class weights in the dtype of the logits; raise unless there is one per class, on the same device."""
    classes = logits.shape[0 if logits.ndim == 1 else 1]
    if weight.shape != (classes,):
        raise ValueError(f"expected weight of shape ({classes},), one per class, but got {tuple(weight.shape)}")
    if weight.device != logits.device:
        raise RuntimeError(f"expected weight on {logits.device}, the device of the logits, but got {weight.device}")
    return weight.to(logits.dtype)
