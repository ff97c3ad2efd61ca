"""The HR loss of class indices on CUDA, by the kernels of :mod:`art_hrloss.losses._kernels`."""

import functools
import warnings
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from art_hrloss.losses._passes import Batch, Stored, is_by_index, rows_of
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
        and (_IS_THERE if torch.compiler.is_compiling() else _works_on(logits.device.index))
    )


# Other subclasses may have no memory of their own.
_PLAIN = (Tensor, torch.nn.Parameter)
# What torch.compile asks; importing Triton, and trying it, takes its time.
_IS_THERE = torch.version.hip is None and find_spec("triton") is not None


@functools.cache
def _works_on(index: int | None) -> bool:
    """Return whether Triton is there, and can compile for a device."""
    if not _IS_THERE or (index is not None and torch.cuda.get_device_capability(index) < (7, 5)):
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

    def __init__(self, logits: Tensor, target: Tensor, weight: Tensor | None, options: LossOptions) -> None:
        self.rows, self.options = rows_of(logits), options
        self.labels = (target if target.ndim == 1 else target.reshape(-1)).contiguous()
        self.weight = None if weight is None else weight.contiguous()
        self.order, self.example_shape = options.alpha - 1, target.shape

    def loss(self, *, with_gradient: bool, in_advance: bool) -> tuple[Tensor, Stored]:
        """Return the loss and what its gradient is computed from, as :meth:`Batch.loss`; never in advance."""
        rows = self.rows
        plan = self._plan(rows.stride())
        loss = rows.new_empty(() if plan.joint else self.example_shape)
        memory = rows.new_empty(plan.memory)
        first = rows, self.labels, self.weight, memory, loss
        with _device_of(rows):
            plan.launch("rows_kernel", plan.tiles, (*first, *plan.numbers), plan.rows_constants)
            if plan.joint and not plan.alone:
                plan.launch("join_kernel", 1, (memory, loss, *plan.join_numbers), plan.join_constants)
        return loss, Stored(memory, rows.new_empty(0), plain=False, valid=False)

    def gradient(self, stored: Stored, by_loss: Tensor) -> Tensor:
        """Return the gradient of the loss times a number or, with reduction "none", times one for each example."""
        rows = self.rows
        if _has_no_memory(by_loss):  # many at once: they have the kernel's factor in common
            column = (len(rows), 1, *rows.shape[2:])
            each = by_loss.reshape(column) if by_loss.ndim else by_loss
            return self.gradient(stored, rows.new_ones(by_loss.shape)) * each
        spacing = 1
        if by_loss.ndim:
            by_loss = by_loss.reshape(-1)
            if torch.compiler.is_compiling():  # which knows no strides of gradients
                by_loss = by_loss.contiguous()
            else:
                spacing = by_loss.stride(0)
        plan = self._plan(stored.strides, spacing, by_loss)
        gradient = torch.empty_strided(rows.shape, plan.gradient_strides, dtype=rows.dtype, device=rows.device)
        first = rows, self.labels, self.weight, stored.columns, by_loss, gradient
        with _device_of(rows):
            plan.launch("gradient_kernel", plan.programs, (*first, *plan.gradient_numbers), plan.gradient_constants)
        return gradient

    def _plan(self, strides: tuple[int, ...], spacing: int = 1, by_loss: Tensor | None = None) -> "_Plan":
        """Return how the kernels are launched: all that depends on more than the values of tensors."""
        rows, options = self.rows, self.options
        known = tuple(rows.shape), strides, rows.dtype, options.reduction, self.order, options.ignore_index, spacing
        if torch.compiler.is_compiling():
            return _Plan(*known)
        tensors = rows, self.labels, self.weight, by_loss
        return _plan_of(*known, rows.device.index, *(None if t is None else _alignment(t) for t in tensors))


class _Plan:
    """The arguments of the kernels, for batches of one shape in memory under the same options."""

    def __init__(
        self,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        dtype: torch.dtype,
        reduction: str,
        order: float,
        ignore_index: int,
        spacing: int,
    ) -> None:
        self.compiled: dict[str, Any] = {}
        n = shape[0] * (shape[2] if len(shape) > 2 else 1)
        self.joint = reduction != "none"
        tile = _tile(shape, strides, n, LONG_TILE, WHOLE_ROW, self.joint)
        self.tiles = -(-n // tile["E"])
        self.alone = self.joint and self.tiles == 1
        self.memory = 4 * n + (3 + 6 * self.tiles if self.joint else 0)  # COLUMNS, RESULTS, PARTS of _kernels
        layout, parts = _layout(shape, strides), _three_parts(order)
        flat = {"FLAT": len(shape) == 2 and strides == (shape[1], 1)}
        chosen = {"REDUCTION": reduction, "POWERS": reduction == "batch" and order != 0}
        self.numbers = n, *layout, ignore_index, *parts
        self.rows_constants = {"CLASSES": shape[1], **tile, **flat, **chosen, "ALONE": self.alone}
        self.rows_constants["num_warps"] = _warps(tile, dtype)
        block = min(TILE, max(128, _power_of_2(self.tiles)))
        self.join_numbers = n, self.tiles, *parts
        self.join_constants = {**chosen, "BLOCK": block, "num_warps": max(4, block // 128)}
        self.gradient_strides = _strides_of_gradient(shape, strides)
        tile = _tile(shape, strides, n, TILE, TILE, batch=False)
        self.programs = -(-n // tile["E"]) * -(-shape[1] // tile["C"])
        self.gradient_numbers = n, *layout, *_layout(shape, self.gradient_strides)[1:], spacing, ignore_index, *parts
        self.gradient_constants = {"CLASSES": shape[1], **tile, **flat, **chosen, "num_warps": _warps(tile, dtype)}

    def launch(self, name: str, programs: int, arguments: tuple[Any, ...], constants: dict[str, Any]) -> None:
        """
        Launch a kernel.

        Triton looks a kernel up by the kind of every argument, which takes longer than small kernels run. The same plan
        always finds the same one.
        """
        from art_hrloss.losses import _kernels

        if torch.compiler.is_compiling():
            getattr(_kernels, name)[(programs,)](*arguments, **constants)
            return
        compiled = self.compiled.get(name)
        if compiled is None:
            self.compiled[name] = getattr(_kernels, name)[(programs,)](*arguments, **constants)
        else:
            *values, _ = constants.values()
            compiled[(programs, 1, 1)](*arguments, *values)


_plan_of = functools.lru_cache(4096)(lambda *known: _Plan(*known[:7]))


def _alignment(values: Tensor) -> bool:
    """Return whether Triton may load several of the values at a time."""
    return values.data_ptr() % 16 == 0


def _layout(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Return the number of positions of each example, and the strides of examples, classes and positions."""
    return (1, *strides, 0) if len(shape) == 2 else (shape[2], *strides)  # type: ignore[return-value]


def _strides_of_gradient(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of the rows if these fill their memory in one of the usual orders, else contiguous ones."""
    n, classes, *inner = shape
    if inner:
        usual = (classes * inner[0], inner[0], 1)
        other = (classes * inner[0], 1, classes)
    else:
        usual, other = (classes, 1), (1, n)  # type: ignore[assignment]
    return other if strides == other else usual


def _tile(
    shape: tuple[int, ...], strides: tuple[int, ...], n: int, long: int, whole: int, batch: bool
) -> dict[str, int]:
    """Return how many classes and examples a program takes at a time, powers of 2, and which axis the classes are."""
    classes = _power_of_2(shape[1])
    inner, s_example, s_class, s_inner = _layout(shape, strides)
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


def _warps(tile: dict[str, int], dtype: torch.dtype) -> int:
    """Return the number of warps of which each thread takes 64 bytes: more are out of its registers."""
    return max(1, min(16, tile["C"] * tile["E"] * dtype.itemsize // 2048))


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
