"""Replacement for CUDA's streams and graphs on the CPU, to test the recording and the replay of graphs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map


class Graph(TorchDispatchMode):
    """
    The operations of one step with the tensors that they read and write, as in a CUDA graph.

    A recording does not change tensors that existed before it. A replay repeats the operations on the same tensors, so
    numbers and decisions that Python computed during the recording are constants of the graph.
    """

    def __init__(self) -> None:
        super().__init__()
        self._operations: list[tuple[Any, tuple, dict, Any]] = []
        self._before: dict[int, tuple[Tensor, Tensor]] = {}
        self._made: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        for value in tree_flatten((args, kwargs))[0]:
            if isinstance(value, Tensor) and value.untyped_storage().data_ptr() not in self._made:
                self._before.setdefault(id(value), (value, value.detach().clone()))
        results = function(*args, **kwargs)
        given = {v.untyped_storage().data_ptr() for v in tree_flatten((args, kwargs))[0] if isinstance(v, Tensor)}
        for value in tree_flatten(results)[0]:
            if isinstance(value, Tensor) and value.untyped_storage().data_ptr() not in given:
                self._made.add(value.untyped_storage().data_ptr())
        self._operations.append((function, args, kwargs, results))  # the reference keeps its memory from being reused
        return results

    def recorded(self) -> None:
        """Restore the tensors that the recording has changed."""
        for value, before in reversed(
            self._before.values()
        ):  # for tensors that share memory, the first copy is the original
            value.detach().copy_(before)

    @torch.no_grad()
    def replay(self) -> None:
        """Repeat every operation, with results in the same memory."""
        for function, args, kwargs, kept in self._operations:
            args, kwargs = tree_map(lambda v: v.detach() if isinstance(v, Tensor) else v, (args, kwargs))
            given = [v for v in tree_flatten((args, kwargs))[0] if isinstance(v, Tensor)]
            places = {value.untyped_storage().data_ptr() for value in given}
            results = function(*args, **kwargs)
            for one, other in zip(tree_flatten(kept)[0], tree_flatten(results)[0], strict=True):
                if isinstance(one, Tensor) and one.untyped_storage().data_ptr() not in places:
                    one.detach().copy_(other)


class Stream:
    """A stream that executes all work immediately."""

    def wait_stream(self, other: "Stream") -> None:
        """Return immediately."""


class StandIn:
    """The part of torch.cuda that a recording uses."""

    Stream, CUDAGraph = Stream, Graph

    def __init__(self) -> None:
        self.here = Stream()
        self.recordings = 0

    def current_stream(self) -> Stream:
        """Return the current stream."""
        return self.here

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        """Make a stream the current one within the context."""
        before, self.here = self.here, stream
        try:
            yield
        finally:
            self.here = before

    @contextmanager
    def graph(self, graph: Graph) -> Iterator[None]:
        """Record the operations within the context."""
        with graph:
            yield
        graph.recorded()
        self.recordings += 1

    def synchronize(self) -> None:
        """Return immediately."""
