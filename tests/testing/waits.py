"""What a GPU is waited for: what it would be, seen on the CPU, and what it is."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


class Waits:
    """
    Records, while it is entered, in `names`, all that would make the CPU wait for a GPU if the tensors were there.

    Values that are read, by whatever way, and operations whose result has a shape that depends on values.
    """

    COPIES = ("numpy", "tolist", "__array__", "cpu")

    def __init__(self) -> None:
        self.names: list[str] = []
        self._modes = _Calls(self.names), _Operations(self.names)

    def __enter__(self) -> "Waits":
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)


class _Calls(TorchFunctionMode):
    """Values that leave torch, which no operation of its own shows."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note the call."""
        if getattr(func, "__name__", "") in Waits.COPIES:
            self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


class _Operations(TorchDispatchMode):
    """Single values that are read, and shapes that depend on values."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note the operation."""
        of_shape = func in (aten.nonzero.default, aten.masked_select.default)
        by_mask = func in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default) and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if func is aten._local_scalar_dense.default or of_shape or by_mask:
            self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def waits_on_gpu(call: Callable[[], object]) -> int:
    """How often a call waits for the GPU, by torch's own count."""
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return sum("called a synchronizing" in str(warning.message) for warning in caught)
