"""What the cases act on: the digits in several forms, and a small network for each form."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from art_hrloss import HRLoss
from benchmarks import data, models

CLASSES = 10
Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


class Network(nn.Module):
    """Layers with an adapter before and after them; a plain module, because ART treats nn.Sequential in its own way."""

    def __init__(
        self, layers: nn.Module, adapt: Callable[[Tensor], Tensor], finish: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.layers = layers
        self.adapt = adapt
        self.finish = finish

    def forward(self, images: Tensor) -> Tensor:
        """What `finish` makes of the logits, shape ``(n, classes)``."""
        return self.finish(self.layers(self.adapt(images)))


def _same(values: Any) -> Any:
    return values


@dataclass(frozen=True)
class Form:
    """
    A form in which digits are given to an attack that does not take them as they are, and the network for that form.

    :param shape: Of one image.
    :param present: Images of shape ``(n, 1, 8, 8)`` in this form.
    :param adapt: The way back, in torch, inside the network.
    :param finish: What follows the logits.
    :param classes: Only digits below this are used.
    :param sequential: Whether the network is an nn.Sequential.
    :param channels_first: As ART is told.
    """

    shape: tuple[int, ...] = (1, 8, 8)
    present: Callable[[Images], Images] = _same
    adapt: Callable[[Tensor], Tensor] = _same
    finish: Callable[[Tensor], Tensor] = _same
    classes: int = CLASSES
    sequential: bool = False
    channels_first: bool = True

    def network(self, layers: nn.Sequential) -> nn.Module:
        """A network for this form on a copy of these layers."""
        layers = copy.deepcopy(layers)
        return layers if self.sequential else Network(layers, self.adapt, self.finish)


PLAIN = Form()
SEQUENTIAL = Form(sequential=True)
TWO_CLASSES = Form(finish=lambda logits: logits[:, :2], classes=2)
PROBABILITIES = Form(finish=partial(torch.softmax, dim=1))
COLUMNS = Form(shape=(64,), present=lambda x: x.reshape(-1, 64), adapt=lambda x: x.reshape(-1, 1, 8, 8))
COLOUR = Form(shape=(3, 8, 8), present=lambda x: x.repeat(3, axis=1), adapt=lambda x: x.mean(1, keepdim=True))
CHANNELS_LAST = Form(
    shape=(8, 8, 3),
    present=lambda x: x.repeat(3, axis=1).transpose(0, 2, 3, 1),
    adapt=lambda x: x.permute(0, 3, 1, 2).mean(1, keepdim=True),
    channels_first=False,
)
VIDEO = Form(  # four frames, the channels last
    shape=(4, 8, 8, 1),
    present=lambda x: x[:, np.newaxis].transpose(0, 1, 3, 4, 2).repeat(4, axis=1),
    adapt=lambda x: x.mean(1).permute(0, 3, 1, 2),
    channels_first=False,
)


@dataclass(frozen=True, eq=False)
class Subject:
    """Digits, as images of shape ``(n, 1, 8, 8)`` in [0, 1] with their labels, and a small CNN's layers."""

    x_train: Images
    y_train: Labels
    x_test: Images
    y_test: Labels
    trained: nn.Sequential
    untrained: nn.Sequential


def make_subject() -> Subject:
    """The digits, and the small CNN before and after eight epochs of the HR loss; about two seconds."""
    digits = data.load("digits", data_dir=Path(), validation_size=100)
    (x, y), (x_test, y_test) = (split.tensors(torch.device("cpu")) for split in (digits.train, digits.test))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        untrained = models.lenet((1, 8, 8), CLASSES, small=True)
    assert isinstance(untrained, nn.Sequential)
    trained = copy.deepcopy(untrained)
    optimizer, loss, order = torch.optim.Adam(trained.parameters(), lr=2e-3), HRLoss(), torch.Generator().manual_seed(0)
    for _ in range(8):
        for batch in torch.randperm(len(x), generator=order).split(64):
            optimizer.zero_grad()
            loss(trained(x[batch]), y[batch]).backward()
            optimizer.step()
    return Subject(x.numpy(), y.numpy(), x_test.numpy(), y_test.numpy(), trained.eval(), untrained)
