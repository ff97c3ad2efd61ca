"""Training steps of several networks together, which can be recorded as a CUDA graph."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from benchmarks.training._loop import Training, build_optimizer

_Result = TypeVar("_Result")


class Way(Protocol):
    """Kind of step of several networks: each network has its batch and its loss."""

    def begin(self) -> None:
        """Read the networks' parameters before the first step."""

    def step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """
        Train each network on its batch.

        :param images: Images, shape ``(networks, b, C, H, W)``.
        :param labels: Class indices, shape ``(networks, b)``.
        :return: The losses, shape ``(networks,)``, and the logits, ``(networks, b, classes)``, without gradients.
        """
        ...

    def end(self) -> None:
        """Write the networks' parameters after the last step."""


class Forks:
    """Streams of a GPU, one per network, whose operations run concurrently."""

    def __init__(self, networks: int, gpu: Any) -> None:
        self._streams, self._gpu = [gpu.Stream() for _ in range(networks)], gpu

    def each(self, work: Callable[[int], _Result]) -> list[_Result]:
        """Call the function for the index of each network in the network's stream; later launches wait for all."""
        gpu, results = self._gpu, []
        current = gpu.current_stream()
        for i, stream in enumerate(self._streams):
            stream.wait_stream(current)
            with gpu.stream(stream):
                results.append(work(i))
        for stream in self._streams:
            current.wait_stream(stream)
        return results


class Branches:
    """Step with one branch per network, each with the network's loss and optimizer, for any network."""

    def __init__(self, trainings: Sequence[Training], forks: Forks, rate: Tensor) -> None:
        self._trainings, self._forks = trainings, forks
        for training in trainings:
            make_recordable(training.optimizer, rate)

    @staticmethod
    def fits(training: Training) -> bool:
        """Return True: every network is supported."""
        return True

    def begin(self) -> None:
        """Do nothing, because the networks' parameters are trained in place."""

    def end(self) -> None:
        """Do nothing, because the networks' parameters are trained in place."""

    def step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Train each network on its batch: see :class:`Way`."""

        def train_network(i: int) -> tuple[Tensor, Tensor]:
            training = self._trainings[i]
            logits = training.model(images[i])
            value = training.loss(logits, labels[i])
            # autograd.grad instead of backward(): backward() accumulates a gradient in the stream in which the
            # parameter was first used, which is not the network's stream.
            _update(training.optimizer, list(training.model.parameters()), value)
            return value.detach(), logits.detach()

        values, logits = zip(*self._forks.each(train_network), strict=True)
        return torch.stack(values), torch.stack(logits)


class Products:
    """
    Step of LeNets in which each layer of all networks is one batched matrix product; convolutions act on patches.

    It has a stacked copy of the networks' parameters. It supports SGD without momentum only, whose optimizer has no
    state that would have to be stacked.
    """

    def __init__(self, trainings: Sequence[Training], forks: Forks, rate: Tensor) -> None:
        self._trainings, self._forks = trainings, forks
        self._layers = [module for module in trainings[0].model.modules() if not any(module.children())]
        self._named = [dict(training.model.named_parameters()) for training in trainings]
        self._stacked = {
            name: torch.stack([named[name].detach() for named in self._named]).contiguous().requires_grad_()
            for name in self._named[0]
        }
        self._layer_parameters = {
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
        """Copy the networks' parameters to the stacked parameters."""
        for name, stacked in self._stacked.items():
            stacked.copy_(torch.stack([named[name] for named in self._named]))

    @torch.no_grad()
    def end(self) -> None:
        """Copy the stacked parameters to the networks."""
        for name, stacked in self._stacked.items():
            for parameter, values in zip((named[name] for named in self._named), stacked, strict=True):
                parameter.copy_(values)

    def step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Train each network on its batch: see :class:`Way`."""
        values = images.flatten(0, 1)
        for layer in self._layers:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                values = _product(layer, values, *self._layer_parameters[layer])
            else:
                values = layer(values)
        logits = values.unflatten(0, images.shape[:2])
        per_network = logits.unbind()
        losses = torch.stack(self._forks.each(lambda i: self._trainings[i].loss(per_network[i], labels[i])))
        _update(self._optimizer, list(self._stacked.values()), losses.sum())
        return losses.detach(), logits.detach()


def _product(layer: nn.Module, values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """
    Apply a layer of each network to the network's values.

    :param layer: The layer of one network, for its kernel size and padding.
    :param values: Values of all networks, concatenated: shape ``(networks * b, ...)``.
    :param weight: Stacked weights, shape ``(networks, out, ...)``.
    :param bias: Stacked biases, shape ``(networks, out)``.
    """
    networks, features = bias.shape
    shape: tuple[int, ...] = (len(values),)
    if isinstance(layer, nn.Conv2d):
        (height, width), padding = layer.kernel_size, int(layer.padding[0])
        values = nn.functional.pad(values, (padding,) * 4) if padding else values
        # Tensor.unfold instead of nn.functional.unfold, which launches one kernel per image on a GPU.
        values = values.unfold(2, height, 1).unfold(3, width, 1).permute(0, 2, 3, 1, 4, 5)
        shape = tuple(values.shape[:3])
    values = torch.baddbmm(
        bias.unsqueeze(1), values.reshape(networks, -1, weight[0, 0].numel()), weight.flatten(2).transpose(1, 2)
    )
    values = values.reshape(*shape, features)
    return values.permute(0, 3, 1, 2) if isinstance(layer, nn.Conv2d) else values


def _update(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], loss: Tensor) -> None:
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        # A fused optimizer reads parameter and gradient in memory order, so their strides must be equal.
        strides = zip(parameter.shape, parameter.stride(), gradient.stride(), strict=True)
        equal = all(first == second for size, first, second in strides if size > 1)
        parameter.grad = gradient if equal else torch.empty_like(parameter).copy_(gradient)
    optimizer.step()


def make_recordable(optimizer: torch.optim.Optimizer, rate: Tensor) -> None:
    """
    Make an optimizer recordable: it updates all parameters in one launch, and reads variable values from tensors.

    :param optimizer: The optimizer.
    :param rate: The learning rate, a scalar on the parameters' device; a Python number would become a constant of the
        recording.
    """
    for group in optimizer.param_groups:
        group |= {"fused": True, "lr": rate}
        if "capturable" in group:
            group["capturable"] = True
    for state in optimizer.state.values():
        if "step" in state:  # Adam's number of steps, in a resumed run
            state["step"] = state["step"].to(rate.device, torch.float32)
