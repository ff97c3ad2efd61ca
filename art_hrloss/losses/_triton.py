"""The HR loss of class indices on CUDA: choice, arguments and launch of the kernels in _kernels.py."""

import functools
import warnings
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from art_hrloss.losses._passes import Batch, Stored, has_hard_labels, rows_of
from art_hrloss.losses._validation import LossOptions

# The type of device that the kernels support; tests with Triton's interpreter set it to "cpu".
DEVICE = "cuda"
# Logits that a program loads together; the same for a row longer than WHOLE_ROW; the longest row loaded in one piece.
TILE, LONG_TILE, WHOLE_ROW = 2048, 4096, 8192
# The largest batch, in logits, whose loss a single program computes, without the kernel that joins tiles.
ALONE = 8192
# Examples per program if the logits of a class are adjacent in memory: those of one cache line.
SIDE_BY_SIDE = 32
# The largest number of examples whose indices fit into 32 bits.
_MOST = 1 << 30
# The largest alpha: Triton passes numbers as float32.
_LARGE = 1e30


def has_kernels(logits: Tensor, target: Tensor, options: LossOptions) -> bool:
    """Return True if the kernels support these checked arguments, and Triton works on their device."""
    return (
        logits.device.type == DEVICE
        and target.device == logits.device
        and type(logits) in _PLAIN
        and has_hard_labels(logits, target, options)
        and options.alpha < _LARGE
        and target.numel() < _MOST
        and (_IS_THERE if torch.compiler.is_compiling() else _works_on(logits.device.index))
    )


# Other subclasses of Tensor may have no memory that a kernel could read.
_PLAIN = (Tensor, torch.nn.Parameter)
# Without importing Triton, which takes long and which torch.compile could not trace.
_IS_THERE = torch.version.hip is None and find_spec("triton") is not None


@functools.cache
def _works_on(index: int | None) -> bool:
    """Return True if Triton is installed and supports the device; warn if it is installed but does not work."""
    if not _IS_THERE or (index is not None and torch.cuda.get_device_capability(index) < (7, 5)):
        return False
    try:
        from triton.runtime import driver

        if index is not None:
            driver.active.get_current_target()
    except Exception as error:
        warnings.warn(f"Triton does not work, so the HR loss on CUDA uses torch's own kernels: {error}", stacklevel=2)
        return False
    return True


class Kernels(Batch):
    """A batch whose two passes are Triton kernels."""

    def __init__(self, logits: Tensor, target: Tensor, weight: Tensor | None, options: LossOptions) -> None:
        self.rows, self.options = rows_of(logits), options
        self.labels = (target if target.ndim == 1 else target.reshape(-1)).contiguous()
        self.weight = None if weight is None else weight.contiguous()
        self.order, self.example_shape = options.alpha - 1, target.shape

    def loss(self, *, with_gradient: bool, in_advance: bool) -> tuple[Tensor, Stored]:
        """Return the loss and the values for its gradient, as :meth:`Batch.loss`; the gradient is never in advance."""
        rows = self.rows
        plan = self._plan(rows.stride())
        loss = rows.new_empty(() if plan.joint else self.example_shape)
        memory = rows.new_empty(plan.memory)
        pointers = rows, self.labels, self.weight, memory, loss
        with _device_of(rows):
            plan.launch("rows_kernel", plan.tiles, (*pointers, *plan.numbers), plan.rows_constants)
            if plan.joint and not plan.alone:
                plan.launch("join_kernel", 1, (memory, loss, *plan.join_numbers), plan.join_constants)
        return loss, Stored(memory, rows.new_empty(0), all_finite=False, valid=False)

    def gradient(self, stored: Stored, grad_loss: Tensor) -> Tensor:
        """Return the gradient by the logits, as :meth:`Batch.gradient`."""
        rows = self.rows
        if _has_no_memory(grad_loss):  # a batch of gradients: the kernel runs once, for a gradient of ones
            column = (len(rows), 1, *rows.shape[2:])
            factor = grad_loss.reshape(column) if grad_loss.ndim else grad_loss
            return self.gradient(stored, rows.new_ones(grad_loss.shape)) * factor
        spacing = 1
        if grad_loss.ndim:
            grad_loss = grad_loss.reshape(-1)
            if torch.compiler.is_compiling():  # the compiler does not know the strides of gradients
                grad_loss = grad_loss.contiguous()
            else:
                spacing = grad_loss.stride(0)
        plan = self._plan(stored.strides, spacing, grad_loss)
        gradient = torch.empty_strided(rows.shape, plan.gradient_strides, dtype=rows.dtype, device=rows.device)
        pointers = rows, self.labels, self.weight, stored.columns, grad_loss, gradient
        with _device_of(rows):
            plan.launch("gradient_kernel", plan.programs, (*pointers, *plan.gradient_numbers), plan.gradient_constants)
        return gradient

    def _plan(self, strides: tuple[int, ...], spacing: int = 1, grad_loss: Tensor | None = None) -> "_Plan":
        """Return the plan for tensors of this layout; outside of torch.compile, plans are cached."""
        rows, options = self.rows, self.options
        layout = tuple(rows.shape), strides, rows.dtype, options.reduction, self.order, options.ignore_index, spacing
        if torch.compiler.is_compiling():
            return _Plan(*layout)
        # A plan holds compiled kernels, which also depend on the device and on the alignment of the memory.
        tensors = rows, self.labels, self.weight, grad_loss
        return _plan_of(*layout, rows.device.index, *(None if t is None else _alignment(t) for t in tensors))


class _Plan:
    """The arguments of the kernels for batches of the same shape, memory layout and options."""

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
        flags = {"REDUCTION": reduction, "POWERS": reduction == "batch" and order != 0}
        self.numbers = n, *layout, ignore_index, *parts
        self.rows_constants = {"CLASSES": shape[1], **tile, **flat, **flags, "ALONE": self.alone}
        self.rows_constants["num_warps"] = _warps(tile, dtype)
        block = min(TILE, max(128, _power_of_2(self.tiles)))
        self.join_numbers = n, self.tiles, *parts
        self.join_constants = {**flags, "BLOCK": block, "num_warps": max(4, block // 128)}
        self.gradient_strides = _strides_of_gradient(shape, strides)
        tile = _tile(shape, strides, n, TILE, TILE, batch=False)
        self.programs = -(-n // tile["E"]) * -(-shape[1] // tile["C"])
        self.gradient_numbers = n, *layout, *_layout(shape, self.gradient_strides)[1:], spacing, ignore_index, *parts
        self.gradient_constants = {"CLASSES": shape[1], **tile, **flat, **flags, "num_warps": _warps(tile, dtype)}

    def launch(self, name: str, programs: int, arguments: tuple[Any, ...], constants: dict[str, Any]) -> None:
        """
        Launch a kernel.

        Triton's own launch looks up the compiled kernel by the types of all arguments, which takes longer than a small
        kernel runs. For one plan the compiled kernel is always the same, so it is stored after the first launch.
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


_plan_of = functools.lru_cache(4096)(lambda *key: _Plan(*key[:7]))  # the rest of the key only selects the plan


def _alignment(values: Tensor) -> bool:
    """Return True if the memory is aligned such that Triton may load several values with one instruction."""
    return values.data_ptr() % 16 == 0


def _layout(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Return the number of positions of each example, and the strides of examples, classes and positions."""
    return (1, *strides, 0) if len(shape) == 2 else (shape[2], *strides)  # type: ignore[return-value]


def _strides_of_gradient(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of the rows if they are channels-last or transposed, otherwise contiguous strides."""
    n, classes, *inner = shape
    if inner:
        contiguous = (classes * inner[0], inner[0], 1)
        permuted = (classes * inner[0], 1, classes)
    else:
        contiguous, permuted = (classes, 1), (1, n)  # type: ignore[assignment]
    return permuted if strides == permuted else contiguous


def _tile(
    shape: tuple[int, ...], strides: tuple[int, ...], n: int, long: int, whole: int, batch: bool
) -> dict[str, int]:
    """
    Return the tile of a program: the numbers of classes C and of examples E, powers of 2, and the axis of the classes.

    :param long: Classes per step, for rows longer than `whole`, which do not fit into one tile.
    :param batch: Whether one program may take the whole batch if it is small.
    """
    classes = _power_of_2(shape[1])
    inner, s_example, s_class, s_inner = _layout(shape, strides)
    # The last axis of a tile should be the one that is adjacent in memory, for wide loads.
    axis = int(s_class <= (s_inner if inner > 1 else s_example))
    if batch and _power_of_2(n) * classes <= ALONE:
        return {"C": classes, "E": _power_of_2(n), "AX": axis}
    if not axis:
        classes = min(classes, TILE // SIDE_BY_SIDE)
    elif classes > whole:
        classes = long
    return {"C": classes, "E": min(_power_of_2(n), max(1, TILE // classes)), "AX": axis}


def _power_of_2(number: int) -> int:
    """Return the smallest power of 2 that is at least `number`."""
    return 1 << (number - 1).bit_length()


def _warps(tile: dict[str, int], dtype: torch.dtype) -> int:
    """Return the number of warps such that each thread holds 64 bytes of the tile; more would not fit in registers."""
    return max(1, min(16, tile["C"] * tile["E"] * dtype.itemsize // 2048))


def _three_parts(number: float) -> tuple[float, float, float]:
    """Return three float32 numbers whose sum is the float64 `number`; the first is the nearest float32."""
    parts = []
    for _ in range(3):
        shifted = number * (2.0**29 + 1)
        parts.append(shifted - (shifted - number))  # Veltkamp's splitting gives the leading 24 bits
        number -= parts[-1]
    return parts[0], parts[1], parts[2]


def _has_no_memory(values: Tensor) -> bool:
    """Return True for batched tensors of vmap, which have no memory: torch.autograd.grad with is_grads_batched."""
    if torch.compiler.is_compiling():
        return False
    try:
        values.data_ptr()
    except RuntimeError:
        return True
    return False


def _device_of(rows: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which the current CUDA device is that of the rows, where Triton launches kernels."""
    if torch.compiler.is_compiling() or not rows.is_cuda or rows.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(rows.device)
