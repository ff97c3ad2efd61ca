"""Networks of one architecture as one: their parameters stacked, so that a step of all is one step."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from benchmarks.config import LossSpec, Recipe
from benchmarks.losses import training_loss
from benchmarks.training._loop import build_optimizer

# Steps made one by one, before the next is recorded: what libraries set up at first is not to be part of it.
STEPS_BEFORE_RECORDING = 3


class Stack:
    """
    Several networks that learn the same images at once, each with its own loss, in its own order.

    The networks' own parameters and buffers become views of the stacked ones, so that each network is at any time as
    the stack has it, until :meth:`dissolve`.

    :param recipe: The recipe of all.
    :param networks: Of one architecture, on one device.
    :param losses: Each one's.
    :param optimizers: Each one's, as :func:`benchmarks.training.build_optimizer` makes them, of which the stack goes on
        with the states.
    :param images: All training images, shape ``(n, C, H, W)``, on the networks' device.
    :param labels: Class indices, shape ``(n,)``.
    """

    def __init__(
        self,
        recipe: Recipe,
        networks: Sequence[nn.Module],
        losses: Sequence[LossSpec],
        optimizers: Sequence[torch.optim.Optimizer],
        images: Tensor,
        labels: Tensor,
    ) -> None:
        self._networks, self._optimizers = networks, optimizers
        self._images, self._labels = images, labels
        self._network = networks[0]
        self._parameters, self._buffers = stack_module_state(list(networks))
        self._losses = _by_loss(losses, images.device)
        self._optimizer = build_optimizer(recipe, self._network, self._parameters)
        self._optimizer.load_state_dict(_stacked_states(optimizers, self._optimizer))
        for group in self._optimizer.param_groups:
            if "capturable" in group:  # Adam's count of steps is then where a recorded step finds it
                group["capturable"] = images.is_cuda
        self._give_views()
        # Sums over the batches of an epoch; in float64, for there are many.
        self._loss_sums = torch.zeros(len(networks), dtype=torch.float64, device=images.device)
        self._hits = torch.zeros(len(networks), dtype=torch.int64, device=images.device)
        self._step: Callable[[Tensor], None] = _Recorded(self._eager_step) if images.is_cuda else self._eager_step

    def epoch(self, orders: Tensor, *, batch_size: int, lr: float) -> list[dict[str, float]]:
        """
        One pass over the images.

        :param orders: Which image comes when for each network, shape ``(networks, n)``.
        :param batch_size: Images per step of each network.
        :param lr: Learning rate.
        :return: For each network train_loss, its mean over the batches in nats, and train_accuracy.
        """
        for optimizer in (self._optimizer, *self._optimizers):
            for group in optimizer.param_groups:
                if group["lr"] != lr and isinstance(self._step, _Recorded):
                    self._step.forget()  # the rate is a constant of what was recorded
                group["lr"] = lr
        self._network.train()
        self._loss_sums.zero_()
        self._hits.zero_()
        batches = orders.to(self._images.device).split(batch_size, dim=1)
        for batch in batches:
            self._step(batch)
        self._give_states()
        losses, hits = (self._loss_sums / len(batches)).tolist(), self._hits.tolist()
        count = orders.shape[1]
        return [{"train_loss": loss, "train_accuracy": hit / count} for loss, hit in zip(losses, hits, strict=True)]

    @torch.no_grad()
    def accuracies(self, images: Tensor, labels: Tensor, *, batch_size: int = 500) -> list[float]:
        """Share of images that each network, in evaluation mode, gets right."""
        self._network.eval()
        batches = zip(images.split(batch_size), labels.split(batch_size), strict=True)
        hits = [(self._logits(x, None).argmax(2) == y).sum(1) for x, y in batches]
        return [hit / len(labels) for hit in torch.stack(hits).sum(0).tolist()]

    def dissolve(self) -> None:
        """Give each network parameters and buffers of its own again, with the values that they have."""
        with torch.no_grad():
            for network in self._networks:
                for tensor in (*network.parameters(), *network.buffers()):
                    tensor.data = tensor.detach().clone()

    def _logits(self, images: Tensor, in_dim: int | None) -> Tensor:
        """Of every network, shape ``(networks, n, classes)``, for its own images (in_dim 0) or the same (None)."""

        def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor], own: Tensor) -> Tensor:
            logits: Tensor = functional_call(self._network, (parameters, buffers), (own,))
            return logits

        stacked: Tensor = vmap(one, in_dims=(0, 0, in_dim))(self._parameters, self._buffers, images)
        return stacked

    def _eager_step(self, batch: Tensor) -> None:
        """One step on the images of these numbers, shape ``(networks, b)``."""
        self._optimizer.zero_grad()
        labels = self._labels[batch]
        logits = self._logits(self._images[batch], 0)
        values = [vmap(loss)(logits[members], labels[members]) for loss, members in self._losses]
        torch.cat(values).sum().backward()
        self._optimizer.step()
        for (_, members), own in zip(self._losses, values, strict=True):
            self._loss_sums.index_add_(0, members, own.detach().double())
        self._hits += (logits.detach().argmax(2) == labels).sum(1)

    def _give_views(self) -> None:
        """Make the networks' parameters and buffers views of the stacked ones."""
        for i, network in enumerate(self._networks):
            for name, tensor in (*network.named_parameters(), *network.named_buffers()):
                stacked = self._parameters[name] if name in self._parameters else self._buffers[name]
                tensor.data = stacked.detach()[i]

    def _give_states(self) -> None:
        """Bring each network's optimizer to where the stack's is."""
        state = self._optimizer.state_dict()["state"]
        for i, optimizer in enumerate(self._optimizers):
            own = {key: {name: _part(value, i) for name, value in values.items()} for key, values in state.items()}
            optimizer.load_state_dict({"state": own, "param_groups": optimizer.state_dict()["param_groups"]})


class _Recorded:
    """
    A step on a GPU, recorded once for each size of its batches as a CUDA graph, and then launched as one.

    One by one, the operations of a small network take longer to launch than to run.
    """

    def __init__(self, step: Callable[[Tensor], None]) -> None:
        self._make = step
        self._made: dict[int, int] = {}
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}

    def __call__(self, batch: Tensor) -> None:
        size = batch.shape[1]
        made = self._made[size] = self._made.get(size, 0) + 1
        if made <= STEPS_BEFORE_RECORDING:
            self._make_aside(batch)
            return
        if size not in self._graphs:
            given, graph = batch.clone(), torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._make(given)
            self._graphs[size] = graph, given
        graph, given = self._graphs[size]
        given.copy_(batch)
        graph.replay()

    def forget(self) -> None:
        """Record anew."""
        self._graphs.clear()

    def _make_aside(self, batch: Tensor) -> None:
        """A step in a stream of its own, as is asked for before a recording."""
        stream = torch.cuda.Stream(batch.device)
        stream.wait_stream(torch.cuda.current_stream(batch.device))
        with torch.cuda.stream(stream):
            self._make(batch)
        torch.cuda.current_stream(batch.device).wait_stream(stream)


def _by_loss(specs: Sequence[LossSpec], device: torch.device) -> list[tuple[nn.Module, Tensor]]:
    """Each loss with the numbers of the networks that it is of."""
    members: dict[LossSpec, list[int]] = {}
    for i, spec in enumerate(specs):
        members.setdefault(spec, []).append(i)
    return [(training_loss(spec).to(device), torch.tensor(own, device=device)) for spec, own in members.items()]


def _stacked_states(optimizers: Sequence[torch.optim.Optimizer], stacked: torch.optim.Optimizer) -> dict[str, Any]:
    """The states of several optimizers that have made equally many steps, as that of one."""
    states = [optimizer.state_dict()["state"] for optimizer in optimizers]
    joint = {
        key: {
            # What is no array of a network's own shape, such as Adam's count of steps, is the same in all.
            name: torch.stack([state[key][name] for state in states]) if value.dim() else value
            for name, value in values.items()
        }
        for key, values in states[0].items()
    }
    return {"state": joint, "param_groups": stacked.state_dict()["param_groups"]}


def _part(value: Any, i: int) -> Any:
    """The i-th network's part of what an optimizer keeps."""
    return value.clone() if not value.dim() else value[i].clone()
