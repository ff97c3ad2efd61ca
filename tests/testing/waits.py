"""Detection of synchronisations with a GPU: predicted on the CPU, and counted on a GPU."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


class Waits:
    """
    Records in `names`, within its context, all operations that would make the CPU wait for a GPU.

    These are conversions of tensors to Python or NumPy values, and operations whose output shape depends on values.
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
    """Records conversions to NumPy and Python, which are not operations of torch."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Record the call."""
        if getattr(func, "__name__", "") in Waits.COPIES:
            self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


class _Operations(TorchDispatchMode):
    """Records reads of single values, and operations whose output shape depends on values."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Record the operation."""
        of_shape = func in (aten.nonzero.default, aten.masked_select.default)
        by_mask = func in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default) and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if func is aten._local_scalar_dense.default or of_shape or by_mask:
            self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def waits_on_gpu(call: Callable[[], object]) -> int:
    """Return how often a call waits for the GPU, as counted by torch."""
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
