"""Steps of several networks at once on a GPU: recorded as one CUDA graph, and then launched as a whole."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from benchmarks.training._loop import Training, build_optimizer

# Steps made one by one before a recording, so that what libraries set up at first is no part of it, and steps by which
# ways of training are compared.
WARM_UP, TIMED = 3, 20

_Result = TypeVar("_Result")


class Way(Protocol):
    """A step of all networks: each on its own batch, with its own loss."""

    def begin(self) -> None:
        """Go on from the networks as they are."""

    def step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """
        Train each network on its batch.

        :param images: Shape ``(networks, b, C, H, W)``.
        :param labels: Class indices, shape ``(networks, b)``.
        :return: The losses, shape ``(networks,)``, and the logits, ``(networks, b, classes)``, without gradients.
        """
        ...

    def end(self) -> None:
        """Bring the networks to where the steps have led."""


class Forks:
    """Streams of a GPU, one for each network: what is begun in them runs side by side."""

    def __init__(self, networks: int, gpu: Any) -> None:
        self._streams, self._gpu = [gpu.Stream() for _ in range(networks)], gpu

    def each(self, work: Callable[[int], _Result]) -> list[_Result]:
        """Do the work of each network, by its number, in its stream; what is launched next waits for all."""
        gpu, results = self._gpu, []
        here = gpu.current_stream()
        for i, stream in enumerate(self._streams):
            stream.wait_stream(here)
            with gpu.stream(stream):
                results.append(work(i))
        for stream in self._streams:
            here.wait_stream(stream)
        return results


class Branches:
    """Each network a branch of the step, with its own loss and optimizer."""

    def __init__(self, trainings: Sequence[Training], forks: Forks, rate: Tensor) -> None:
        self._trainings, self._forks = trainings, forks
        for training in trainings:
            make_recordable(training.optimizer, rate)

    @staticmethod
    def fits(training: Training) -> bool:
        """Return True: it takes any network."""
        return True

    def begin(self) -> None:
        """Do nothing: the networks themselves are trained."""

    def end(self) -> None:
        """Do nothing: the networks themselves are trained."""

    def step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Train each network on its batch: see :class:`Way`."""

        def one(i: int) -> tuple[Tensor, Tensor]:
            training = self._trainings[i]
            logits = training.model(images[i])
            value = training.loss(logits, labels[i])
            # Not backward(), which would add in the stream in which a parameter was first seen.
            _update(training.optimizer, list(training.model.parameters()), value)
            return value.detach(), logits.detach()

        values, logits = zip(*self._forks.each(one), strict=True)
        return torch.stack(values), torch.stack(logits)


class Products:
    """
    LeNets as one: each layer of all networks is one batched matrix product, of a convolution over its patches.

    It keeps stacked parameters of its own, and is for SGD without momentum, whose optimizer has no state.
    """

    def __init__(self, trainings: Sequence[Training], forks: Forks, rate: Tensor) -> None:
        self._trainings, self._forks = trainings, forks
        self._layers = [module for module in trainings[0].model.modules() if not any(module.children())]
        self._named = [dict(training.model.named_parameters()) for training in trainings]
        self._stacked = {
            name: torch.stack([named[name].detach() for named in self._named]).contiguous().requires_grad_()
            for name in self._named[0]
        }
        self._of_layer = {
            module: (self._stacked[f"{name}.weight"], self._stacked[f"{name}.bias"])
            for name, module in trainings[0].model.named_modules()
            if isinstance(module, nn.Conv2d | nn.Linear)
        }
        self._optimizer = build_optimizer(trainings[0].run.recipe, trainings[0].model, self._stacked)
        make_recordable(self._optimizer, rate)

    @staticmethod
    def fits(training: Training) -> bool:
        """Return whether the network is a LeNet, trained by SGD without momentum."""
        recipe = training.run.recipe
        return recipe.model in ("lenet", "small-cnn") and recipe.optimizer == "sgd" and recipe.momentum == 0

    @torch.no_grad()
    def begin(self) -> None:
        """Take over the networks' parameters."""
        for name, stacked in self._stacked.items():
            stacked.copy_(torch.stack([named[name] for named in self._named]))

    @torch.no_grad()
    def end(self) -> None:
        """Give the networks their parameters."""
        for name, stacked in self._stacked.items():
            for parameter, values in zip((named[name] for named in self._named), stacked, strict=True):
                parameter.copy_(values)

    def step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Train each network on its batch: see :class:`Way`."""
        values = images.flatten(0, 1)
        for layer in self._layers:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                values = _product(layer, values, *self._of_layer[layer])
            else:
                values = layer(values)
        logits = values.unflatten(0, images.shape[:2])
        each = logits.unbind()
        losses = torch.stack(self._forks.each(lambda i: self._trainings[i].loss(each[i], labels[i])))
        _update(self._optimizer, list(self._stacked.values()), losses.sum())
        return losses.detach(), logits.detach()


def _product(layer: nn.Module, values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """
    Apply a layer of each network to its own values.

    :param values: Those of all networks, one after the other: shape ``(networks * b, ...)``.
    :param weight: Shape ``(networks, out, ...)``; `bias` is of shape ``(networks, out)``.
    """
    networks, into = bias.shape
    shape: tuple[int, ...] = (len(values),)
    if isinstance(layer, nn.Conv2d):
        (height, width), padding = layer.kernel_size, int(layer.padding[0])
        values = nn.functional.pad(values, (padding,) * 4) if padding else values
        # Not nn.functional.unfold, which on a GPU is a launch for every image.
        values = values.unfold(2, height, 1).unfold(3, width, 1).permute(0, 2, 3, 1, 4, 5)
        shape = tuple(values.shape[:3])
    values = torch.baddbmm(
        bias.unsqueeze(1), values.reshape(networks, -1, weight[0, 0].numel()), weight.flatten(2).transpose(1, 2)
    )
    values = values.reshape(*shape, into)
    return values.permute(0, 3, 1, 2) if isinstance(layer, nn.Conv2d) else values


def _update(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], loss: Tensor) -> None:
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        # An optimizer that updates all in one launch takes memory as it lies.
        strides = zip(parameter.shape, parameter.stride(), gradient.stride(), strict=True)
        alike = all(one == other for size, one, other in strides if size > 1)
        parameter.grad = gradient if alike else torch.empty_like(parameter).copy_(gradient)
    optimizer.step()


def make_recordable(optimizer: torch.optim.Optimizer, rate: Tensor) -> None:
    """
    Have an optimizer update all parameters in one launch, and find whatever changes in tensors on the device.

    :param rate: The learning rate, a scalar on the parameters' device: a number would become part of the recording.
    """
    for group in optimizer.param_groups:
        group |= {"fused": True, "lr": rate}
        if "capturable" in group:
            group["capturable"] = True
    for state in optimizer.state.values():
        if "step" in state:  # Adam's count of steps, of a run that goes on
            state["step"] = state["step"].to(rate.device, torch.float32)


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
        for training in self._trainings:
            training.model.train()
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
