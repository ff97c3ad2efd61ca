"""What is attacked: two networks, each trained for a moment, and 1024 images of each one's data set."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from benchmarks import models
from benchmarks.data import DataError, Dataset, load
from benchmarks.speed.cases import Settings

IMAGES, BATCH = 1024, 128
QUICK_IMAGES, QUICK_BATCH = 48, 16
TRAINING_STEPS = 40


@dataclass(frozen=True)
class AttackKind:
    """An attack that every contender has its own form of."""

    name: str
    steps: int

    def __str__(self) -> str:
        return self.name if self.name == "FGM" else f"{self.name}-{self.steps}"


@dataclass(frozen=True, eq=False)
class Subject:
    """A network and images to attack, as float32 in [0, 1] of shape (n, C, H, W), in batches."""

    name: str
    network: nn.Module
    """On the CPU, in evaluation mode; `on` gives copies for a device."""
    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    classes: int
    eps: float
    eps_step: float
    batch: int
    note: str = ""

    def on(self, device: torch.device) -> nn.Module:
        """A copy of the network there."""
        return copy.deepcopy(self.network).to(device)

    def part(self, index: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """The batch of this number, counted around."""
        first = index % (len(self.images) // self.batch) * self.batch
        return self.images[first : first + self.batch], self.labels[first : first + self.batch]


def subjects(settings: Settings) -> list[Subject]:
    """LeNet on MNIST and ResNet-8 on CIFAR-10; where a data set is not in the data folder, the digits in its place."""
    return [
        _subject("LeNet", "mnist", 0.1, 0.02, settings),
        _subject("ResNet-8", "cifar10", 8 / 255, 2 / 255, settings),
    ]


def _subject(architecture: str, wanted: str, eps: float, eps_step: float, settings: Settings) -> Subject:
    data, note = _data(wanted, settings)
    network = _trained(architecture, data, steps=20 if settings.quick else TRAINING_STEPS)
    images, labels = data.test.tensors(torch.device("cpu"))
    count, batch = (QUICK_IMAGES, QUICK_BATCH) if settings.quick else (IMAGES, BATCH)
    # Those that the network has right, as far as there are: Auto-PGD leaves the others alone.
    with torch.no_grad():
        wrong = torch.cat([network(part).argmax(1) for part in images.split(1000)]) != labels
    order = wrong.int().argsort(stable=True)[: min(count, len(labels) // batch * batch)]
    images, labels = images[order], labels[order]
    name = f"{architecture}, {data.name}"
    return Subject(name, network, images.numpy(), labels.numpy(), data.classes, eps, eps_step, batch, note)


def _data(wanted: str, settings: Settings) -> tuple[Dataset, str]:
    """The data set, and what is to be said if it is another than was wanted."""
    if settings.quick:
        return load("digits", data_dir=settings.data_dir, validation_size=100), ""
    try:
        return load(wanted, data_dir=settings.data_dir, validation_size=1000), ""
    except DataError as error:
        digits = load("digits", data_dir=settings.data_dir, validation_size=100)
        return digits, f"Digits (8 x 8 pixels) stand in for {wanted}: {error}."


def _trained(architecture: str, data: Dataset, *, steps: int) -> nn.Module:
    """After so many steps of Adam: gradients are then neither noise nor saturated. Speed does not depend on it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = _network(architecture, data.image_shape, data.classes)
    count = min(len(data.train), steps * 64)
    images = torch.from_numpy(data.train.images[:count]).float() / 255
    labels = torch.from_numpy(data.train.labels[:count])
    optimizer, loss = torch.optim.Adam(network.parameters(), lr=1e-3), nn.CrossEntropyLoss()
    for step in range(steps):
        chosen = (torch.arange(64) + 64 * step) % count
        optimizer.zero_grad()
        loss(network(images[chosen]), labels[chosen]).backward()
        optimizer.step()
    return network.eval()


def _network(architecture: str, image_shape: Sequence[int], classes: int) -> nn.Module:
    channels, height, width = image_shape
    if architecture == "LeNet":
        network = models.lenet((channels, height, width), classes, small=height < 16)
    else:
        network = models.resnet(channels, classes, blocks=1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the statistics of all steps so far, for there are few
    return network.to(memory_format=torch.channels_last)  # as the grids' networks are


def resnet_for(size: int) -> Subject:
    """An untrained ResNet-8 and noise of this height and width, for how cost grows with them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = _network("ResNet-8", (3, size, size), 10).eval()
    generator = np.random.default_rng(0)
    images = generator.random((32, 3, size, size), dtype=np.float32)
    return Subject("ResNet-8, noise", network, images, generator.integers(0, 10, 32), 10, 8 / 255, 2 / 255, 32)
