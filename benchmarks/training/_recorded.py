"""Steps of several networks at once on a GPU: recorded as one CUDA graph, and then launched as a whole."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from benchmarks.training._loop import Training
from benchmarks.training._ways import Branches, Forks, Products, Way

# Steps made one by one before a recording, so that what libraries set up at first is no part of it, and steps by which
# ways of training are compared.
WARM_UP, TIMED = 3, 20


class Recorded:
    """
    Networks that are trained at the same time, each on its own batches, in steps that are launched as a whole.

    One by one, the operations of a small network take longer to launch than to run. The way of training is the one
    that is fastest on this device for these networks.
    """

    def __init__(
        self,
        trainings: Sequence[Training],
        *,
        ways: Sequence[type[Branches | Products]] = (Branches, Products),
        gpu: Any = torch.cuda,
    ) -> None:
        """
        :param trainings: Of one recipe and data set, at the same epoch.
        :param ways: Those to choose from, as far as they fit.
        :param gpu: Streams and graphs: torch.cuda, or what stands for it.
        """
        self._trainings, self._gpu = trainings, gpu
        first, networks = trainings[0], len(trainings)
        images, self._labels = first.train
        # With the channels last, as the networks' kernels have them.
        self._images = images.permute(0, 2, 3, 1).contiguous()
        self._places = torch.arange(first.run.recipe.batch_size, device=images.device)
        self._orders = torch.zeros(networks, len(images), dtype=torch.int64, device=images.device)
        self._begun = torch.zeros((), dtype=torch.int64, device=images.device)  # images that are behind, in an epoch
        # Sums over the batches of an epoch; in float64, for there are many.
        self._losses = torch.zeros(networks, dtype=torch.float64, device=images.device)
        self._hits = torch.zeros(networks, dtype=torch.int64, device=images.device)
        self._rate = torch.tensor(first.run.recipe.lr, device=images.device)
        forks = Forks(networks, gpu)
        self._graphs: dict[int, Any] = {}
        self._ways: dict[str, Way] = {
            way.__name__.lower(): way(trainings, forks, self._rate) for way in ways if way.fits(first)
        }
        self.seconds: dict[str, float] = {}
        """Of a step, by each way that was tried."""
        self.way = self._fastest()
        """The name of the way that was chosen."""

    def epoch(self, epoch: int) -> list[dict[str, Any]]:
        """Train all for an epoch, counted from 0; returns of each its train_loss and train_accuracy."""
        recipe, way, count = self._trainings[0].run.recipe, self._ways[self.way], len(self._labels)
        sizes = [min(recipe.batch_size, count - start) for start in range(0, count, recipe.batch_size)]
        for size in dict.fromkeys(sizes):
            if size not in self._graphs:
                with self._undone():
                    self._graphs[size] = self._record(way, size)
        self._orders.copy_(torch.stack([training.shuffled() for training in self._trainings]))
        for sums in (self._begun, self._losses, self._hits):
            sums.zero_()
        self._rate.fill_(recipe.lr_at(epoch))
        way.begin()
        for size in sizes:
            self._graphs[size].replay()
        way.end()
        told = zip((self._losses / len(sizes)).tolist(), self._hits.tolist(), strict=True)
        return [{"train_loss": loss, "train_accuracy": hits / count} for loss, hits in told]

    def _fastest(self) -> str:
        """Return the name of the way that takes least for a step, having tried all if there are several."""
        for name, way in self._ways.items():
            if len(self._ways) > 1:
                self.seconds[name] = self._timed(way)
        return min(self._ways, key=lambda name: self.seconds.get(name, 0.0))

    def _timed(self, way: Way) -> float:
        with self._undone():
            graph = self._record(way, len(self._places))
            for steps in (1, TIMED):  # the first launch brings the graph to the device
                self._gpu.synchronize()
                begun = time.perf_counter()
                for _ in range(steps):
                    self._begun.zero_()
                    graph.replay()
                self._gpu.synchronize()
            return (time.perf_counter() - begun) / TIMED

    def _record(self, way: Way, size: int) -> Any:
        """Return the graph of a step on batches of this size."""
        for training in self._trainings:
            training.model.train()
        stream, here = self._gpu.Stream(), self._gpu.current_stream()
        stream.wait_stream(here)
        with self._gpu.stream(stream):
            for _ in range(WARM_UP):
                self._begun.zero_()
                self._step(way, size)
        here.wait_stream(stream)
        graph = self._gpu.CUDAGraph()
        with self._gpu.graph(graph):
            self._step(way, size)
        return graph

    def _step(self, way: Way, size: int) -> None:
        """Take a step, on the next images of each network's order."""
        numbers = self._orders.index_select(1, self._begun + self._places[:size])
        images = self._images.index_select(0, numbers.flatten()).unflatten(0, numbers.shape).movedim(-1, 2)
        labels = self._labels[numbers]
        losses, logits = way.step(images, labels)
        self._losses += losses
        self._hits += (logits.argmax(2) == labels).sum(1)
        self._begun += size

    @contextmanager
    def _undone(self) -> Iterator[None]:
        """Leave networks and optimizers as they were."""
        before = {tensor: tensor.detach().clone() for tensor in self._state()}
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor in self._state():
                    # What an optimizer has made meanwhile begins at 0: averages, momentum and the count of steps.
                    tensor.copy_(before[tensor]) if tensor in before else tensor.zero_()

    def _state(self) -> Iterator[Tensor]:
        """Yield every tensor that a step changes, in networks and optimizers."""
        for training in self._trainings:
            yield from training.model.parameters()
            yield from training.model.buffers()
            for state in training.optimizer.state.values():
                yield from (value for value in state.values() if isinstance(value, Tensor))
