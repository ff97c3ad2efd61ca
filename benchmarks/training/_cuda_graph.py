"""Training of several networks on a GPU in steps that are recorded as one CUDA graph."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from benchmarks.training._loop import Training
from benchmarks.training._vectorized import Branches, Forks, Products, Way

# Number of steps before a recording, so that it does not include the initial set-up of libraries; and number of steps
# by which kinds of steps are compared.
WARM_UP, TIMED = 3, 20


class Recorded:
    """
    Networks that are trained together, each on its batches, in steps that are recorded as CUDA graphs.

    For a small network, the launch of an operation takes longer than its execution. A CUDA graph launches all
    operations of a step together. Among the kinds of steps, the fastest for these networks on this device is used.
    """

    def __init__(
        self,
        trainings: Sequence[Training],
        *,
        ways: Sequence[type[Branches | Products]] = (Branches, Products),
        gpu: Any = torch.cuda,
    ) -> None:
        """
        :param trainings: Runs of one recipe and data set, with equal numbers of finished epochs.
        :param ways: The kinds of steps to choose from; kinds that do not support the networks are skipped.
        :param gpu: The module with streams and graphs: torch.cuda, or a substitute for tests.
        """
        self._trainings, self._gpu = trainings, gpu
        first, networks = trainings[0], len(trainings)
        images, self._labels = first.train
        # Channels last, which is the memory format of the networks' kernels.
        self._images = images.permute(0, 2, 3, 1).contiguous()
        self._offsets = torch.arange(first.run.recipe.batch_size, device=images.device)
        self._orders = torch.zeros(networks, len(images), dtype=torch.int64, device=images.device)
        # Position of the next batch in the order. It is a tensor, because a graph replays the same operations, and a
        # Python number would be a constant of the recording.
        self._position = torch.zeros((), dtype=torch.int64, device=images.device)
        # Sums over the batches of an epoch, in float64 for accuracy.
        self._losses = torch.zeros(networks, dtype=torch.float64, device=images.device)
        self._hits = torch.zeros(networks, dtype=torch.int64, device=images.device)
        self._rate = torch.tensor(first.run.recipe.lr, device=images.device)
        forks = Forks(networks, gpu)
        self._graphs: dict[int, Any] = {}
        self._ways: dict[str, Way] = {
            way.__name__.lower(): way(trainings, forks, self._rate) for way in ways if way.fits(first)
        }
        self.seconds: dict[str, float] = {}
        """Seconds of a step, by kind of step; empty if there is only one kind."""
        self.way = self._fastest()
        """Name of the kind of step that is used."""

    def epoch(self, epoch: int) -> list[dict[str, Any]]:
        """Train all networks for an epoch, counted from 0, and return train_loss and train_accuracy of each."""
        recipe, way, count = self._trainings[0].run.recipe, self._ways[self.way], len(self._labels)
        sizes = [min(recipe.batch_size, count - start) for start in range(0, count, recipe.batch_size)]
        for size in dict.fromkeys(sizes):
            if size not in self._graphs:
                with self._state_restored():
                    self._graphs[size] = self._record(way, size)
        self._orders.copy_(torch.stack([training.shuffled() for training in self._trainings]))
        for tensor in (self._position, self._losses, self._hits):
            tensor.zero_()
        self._rate.fill_(recipe.lr_at(epoch))
        way.begin()
        for size in sizes:
            self._graphs[size].replay()
        way.end()
        metrics = zip((self._losses / len(sizes)).tolist(), self._hits.tolist(), strict=True)
        return [{"train_loss": loss, "train_accuracy": hits / count} for loss, hits in metrics]

    def _fastest(self) -> str:
        """Return the name of the fastest kind of step; the kinds are timed if there are several."""
        for name, way in self._ways.items():
            if len(self._ways) > 1:
                self.seconds[name] = self._timed(way)
        return min(self._ways, key=lambda name: self.seconds.get(name, 0.0))

    def _timed(self, way: Way) -> float:
        with self._state_restored():
            graph = self._record(way, len(self._offsets))
            for steps in (1, TIMED):  # the first launch transfers the graph to the device, and is not counted
                self._gpu.synchronize()
                start = time.perf_counter()
                for _ in range(steps):
                    self._position.zero_()
                    graph.replay()
                self._gpu.synchronize()
            return (time.perf_counter() - start) / TIMED

    def _record(self, way: Way, size: int) -> Any:
        """Return the graph of a step on batches of this size."""
        for training in self._trainings:
            training.model.train()
        stream, current = self._gpu.Stream(), self._gpu.current_stream()
        stream.wait_stream(current)
        with self._gpu.stream(stream):
            for _ in range(WARM_UP):
                self._position.zero_()
                self._step(way, size)
        current.wait_stream(stream)
        graph = self._gpu.CUDAGraph()
        with self._gpu.graph(graph):
            self._step(way, size)
        return graph

    def _step(self, way: Way, size: int) -> None:
        """Train each network for a step on the next images of its order."""
        indices = self._orders.index_select(1, self._position + self._offsets[:size])
        images = self._images.index_select(0, indices.flatten()).unflatten(0, indices.shape).movedim(-1, 2)
        labels = self._labels[indices]
        losses, logits = way.step(images, labels)
        self._losses += losses
        self._hits += (logits.argmax(2) == labels).sum(1)
        self._position += size

    @contextmanager
    def _state_restored(self) -> Iterator[None]:
        """Restore networks and optimizers at the end of a with block."""
        before = {tensor: tensor.detach().clone() for tensor in self._state()}
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor in self._state():
                    # Tensors that the optimizer has created in the block (averages, momentum, number of steps) have
                    # the initial value 0.
                    tensor.copy_(before[tensor]) if tensor in before else tensor.zero_()

    def _state(self) -> Iterator[Tensor]:
        """Yield every tensor that a step changes, in networks and optimizers."""
        for training in self._trainings:
            yield from training.model.parameters()
            yield from training.model.buffers()
            for state in training.optimizer.state.values():
                yield from (value for value in state.values() if isinstance(value, Tensor))
