"""Ways to take a step of several networks at once, of which a CUDA graph can be made."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from benchmarks.training._loop import Training, build_optimizer

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
    # The steps before a recording are meant to be none.
    optimizer._warned_capturable_if_run_uncaptured = True
    for group in optimizer.param_groups:
        group |= {"fused": True, "lr": rate}
        if "capturable" in group:
            group["capturable"] = True
    for state in optimizer.state.values():
        if "step" in state:  # Adam's count of steps, of a run that goes on
            state["step"] = state["step"].to(rate.device, torch.float32)
