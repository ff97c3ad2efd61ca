"""The HR loss of class indices on CUDA, by the kernels of :mod:`art_hrloss.losses._kernels`."""

import functools
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from art_hrloss.losses._passes import Batch, Stored, is_by_index
from art_hrloss.losses._validation import LossOptions

# The type of device whose tensors the kernels take; under Triton's interpreter those of a CPU are taken as well.
DEVICE = "cuda"
# Logits that a program takes at a time; of a long row; and those of a row that is still taken in one piece.
TILE, LONG_TILE, WHOLE_ROW = 2048, 4096, 8192
# Logits up to which one program computes the loss of the whole batch.
ALONE = 8192
# Neighbouring examples that a program takes where the logits of a class lie side by side: a cache line of them.
SIDE_BY_SIDE = 32
# Examples that 32 bits count.
_MOST = 1 << 30
# Triton passes numbers as float32.
_LARGE = 1e30


def has_kernels(logits: Tensor, target: Tensor, options: LossOptions) -> bool:
    """Return whether the kernels compute the loss of these checked arguments."""
    return (
        logits.device.type == DEVICE
        and target.device == logits.device
        and type(logits) in _PLAIN
        and is_by_index(logits, target, options)
        and options.alpha < _LARGE
        and target.numel() < _MOST
        and _is_usable(logits.device.index)
    )


# Other subclasses may have no memory of their own.
_PLAIN = (Tensor, torch.nn.Parameter)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _is_usable(index: int | None) -> bool:
    return _works_on(index)


@functools.cache
def _works_on(index: int | None) -> bool:
    """Return whether Triton is there, and can compile for a device; imports Triton, which takes its time."""
    if index is not None and (torch.version.cuda is None or torch.cuda.get_device_capability(index) < (7, 5)):
        return False
    try:
        from art_hrloss.losses import _kernels  # noqa: F401
    except ImportError:
        return False
    try:
        from triton.runtime import driver

        if index is not None:
            driver.active.get_current_target()
    except Exception as error:
        warnings.warn(f"Triton does not work here, so the HR loss on CUDA takes more kernels: {error}", stacklevel=2)
        return False
    return True


class Kernels(Batch):
    """A batch whose two passes are kernels."""

    def loss(self, *, with_gradient: bool, in_advance: bool) -> tuple[Tensor, Stored]:
        """Return the loss and what its gradient is computed from, as :meth:`Batch.loss`; never in advance."""
        from art_hrloss.losses._kernels import COLUMNS, PARTS, RESULTS, join_kernel, rows_kernel

        rows, labels, reduction = self.rows, self.labels.reshape(-1).contiguous(), self.options.reduction
        weight = None if self.weight is None else self.weight.contiguous()
        n, batch = labels.shape[0], reduction != "none"
        strides = rows.stride()
        tile = _tile(rows, strides, n, LONG_TILE, WHOLE_ROW, batch)
        tiles = -(-n // tile["E"])
        alone = batch and tiles == 1
        loss = rows.new_empty(() if batch else self.example_shape)
        memory = rows.new_empty(COLUMNS.value * n + (RESULTS.value + PARTS.value * tiles if batch else 0))
        chosen = {"REDUCTION": reduction, "POWERS": reduction == "batch" and self.order != 0}
        order = _three_parts(self.order)
        with _device_of(rows):
            rows_kernel[(tiles,)](
                rows, labels, weight, memory, loss, n, *_layout(rows, strides), self.options.ignore_index, *order,
                CLASSES=rows.shape[1], FLAT=_is_flat(rows, strides), **tile, **chosen, ALONE=alone,
                num_warps=_warps(rows, tile),
            )  # fmt: skip
            if batch and not alone:
                block = min(LONG_TILE, max(128, _power_of_2(tiles)))
                warps = max(4, block // 256)
                join_kernel[(1,)](memory, loss, n, tiles, *order, **chosen, BLOCK=block, num_warps=warps)
        return loss, Stored(memory, rows.new_empty(0), plain=False, valid=False)

    def gradient(self, stored: Stored, by_loss: Tensor) -> Tensor:
        """Return the gradient of the loss times a number or, with reduction "none", times one for each example."""
        from art_hrloss.losses._kernels import gradient_kernel

        if _has_no_memory(by_loss):  # many at once: they have the kernel's factor in common
            each = by_loss.reshape(self.column_shape) if by_loss.ndim else by_loss
            return self.gradient(stored, self.rows.new_ones(by_loss.shape)) * each
        rows, labels, reduction = self.rows, self.labels.reshape(-1).contiguous(), self.options.reduction
        weight = None if self.weight is None else self.weight.contiguous()
        n, by_loss, strides = labels.shape[0], by_loss.reshape(-1), stored.strides
        gradient_strides = _strides_of_gradient(rows, strides)
        gradient = torch.empty_strided(rows.shape, gradient_strides, dtype=rows.dtype, device=rows.device)
        if torch.compiler.is_compiling():  # which knows no strides of gradients
            by_loss, spacing = by_loss.contiguous(), 1
        else:
            spacing = by_loss.stride(0)
        tile = _tile(rows, strides, n, TILE, TILE, batch=False)
        programs = -(-n // tile["E"]) * -(-rows.shape[1] // tile["C"])
        with _device_of(rows):
            gradient_kernel[(programs,)](
                rows, labels, weight, stored.columns, by_loss, gradient, n, *_layout(rows, strides),
                *_layout(rows, gradient_strides)[1:], spacing, self.options.ignore_index, *_three_parts(self.order),
                CLASSES=rows.shape[1], FLAT=_is_flat(rows, strides), **tile,
                REDUCTION=reduction, POWERS=reduction == "batch" and self.order != 0, num_warps=_warps(rows, tile),
            )  # fmt: skip
        return gradient


def _layout(rows: Tensor, strides: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Return the number of positions of each example, and the strides of examples, classes and positions."""
    return (1, *strides, 0) if rows.ndim == 2 else (rows.shape[2], *strides)  # type: ignore[return-value]


def _is_flat(rows: Tensor, strides: tuple[int, ...]) -> bool:
    """Return whether row after row lies side by side."""
    return rows.ndim == 2 and strides == (rows.shape[1], 1)


def _strides_of_gradient(rows: Tensor, strides: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of the rows if these fill their memory in one of the usual orders, else contiguous ones."""
    n, classes, *inner = rows.shape
    if inner:
        usual = (classes * inner[0], inner[0], 1)
        other = (classes * inner[0], 1, classes)
    else:
        usual, other = (classes, 1), (1, n)  # type: ignore[assignment]
    return other if strides == other else usual


def _tile(rows: Tensor, strides: tuple[int, ...], n: int, long: int, whole: int, batch: bool) -> dict[str, int]:
    """Return how many classes and examples a program takes at a time, powers of 2, and which axis the classes are."""
    classes = _power_of_2(rows.shape[1])
    inner, s_example, s_class, s_inner = _layout(rows, strides)
    axis = int(s_class <= (s_inner if inner > 1 else s_example))  # neighbours lie along the last axis
    if batch and _power_of_2(n) * classes <= ALONE:
        return {"C": classes, "E": _power_of_2(n), "AX": axis}
    if not axis:
        classes = min(classes, TILE // SIDE_BY_SIDE)
    elif classes > whole:
        classes = long
    return {"C": classes, "E": min(_power_of_2(n), max(1, TILE // classes)), "AX": axis}


def _power_of_2(number: int) -> int:
    """Return the least power of 2 that is not less."""
    return 1 << (number - 1).bit_length()


def _warps(rows: Tensor, tile: dict[str, int]) -> int:
    """Return the number of warps of which each thread takes 64 bytes: more are out of its registers."""
    return max(1, min(16, tile["C"] * tile["E"] * rows.element_size() // 2048))


def _three_parts(number: float) -> tuple[float, float, float]:
    """Return three numbers of at most 29 bits, the first the nearest float32, whose sum is the number."""
    parts = []
    for _ in range(3):
        shifted = number * (2.0**29 + 1)
        parts.append(shifted - (shifted - number))  # Veltkamp's splitting: the leading 24 bits
        number -= parts[-1]
    return parts[0], parts[1], parts[2]


def _has_no_memory(values: Tensor) -> bool:
    """Return whether the values are those of vmap, as torch.autograd.grad takes many gradients in one pass."""
    if torch.compiler.is_compiling():
        return False
    try:
        values.data_ptr()
    except RuntimeError:
        return True
    return False


def _device_of(rows: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which kernels run on the device of the rows."""
    if torch.compiler.is_compiling() or not rows.is_cuda or rows.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(rows.device)
