"""Networks and data sets of the speed benchmark: three networks, by the recipes of the grids."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from benchmarks import models
from benchmarks.config import LossSpec, Recipe, RunSpec
from benchmarks.data import DataError, Dataset, Split
from benchmarks.execution import load_data
from benchmarks.recipes import CIFAR10_SHORT, DIGITS, MNIST_SHORT
from benchmarks.speed.measuring import CPU, Settings
from benchmarks.training import train_epoch

SMALL_CNN, LENET, RESNET = "small CNN", "LeNet", "ResNet-8"
# Data set and recipe of each network.
NETWORKS: Mapping[str, tuple[str, Recipe]] = MappingProxyType(
    {SMALL_CNN: ("digits", DIGITS), LENET: ("mnist", MNIST_SHORT), RESNET: ("cifar10", CIFAR10_SHORT)}
)
# Training in a round: the epochs, and on the CPU the share of the images that fits into 20 seconds of rounds.
EPOCHS = {"digits": 20, "mnist": 1, "cifar10": 1}
SHARES = {"digits": 1.0, "mnist": 0.1, "cifar10": 0.025}


@dataclass(frozen=True)
class AttackKind:
    """Attack that every contender implements."""

    name: str
    steps: int

    def __str__(self) -> str:
        return self.name if self.name == "FGM" else f"{self.name}-{self.steps}"


@dataclass(frozen=True, eq=False)
class Subject:
    """Network and images to attack, as float32 in [0, 1] of shape (n, C, H, W), in batches."""

    name: str
    network: nn.Module
    """The network on the CPU, in evaluation mode; `on` returns copies on another device."""
    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    eps: float
    eps_step: float
    batch: int
    note: str = ""

    def on(self, device: torch.device) -> nn.Module:
        """Return a copy of the network on a device."""
        return copy.deepcopy(self.network).to(device)

    def part(self, index: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Return the batch with this index, modulo the number of batches."""
        first = index % (len(self.images) // self.batch) * self.batch
        return self.images[first : first + self.batch], self.labels[first : first + self.batch]


def subjects(settings: Settings) -> list[Subject]:
    """Return LeNet on MNIST and ResNet-8 on CIFAR-10; a data set that is missing is replaced by the digits."""
    return [_attacked(LENET, 0.1, 0.02, settings), _attacked(RESNET, 8 / 255, 2 / 255, settings)]


def _attacked(architecture: str, eps: float, eps_step: float, settings: Settings) -> Subject:
    (dataset, recipe), note, data = NETWORKS[architecture], "", None
    try:
        data = None if settings.quick else load_data(dataset, recipe, data_dir=settings.data_dir)
    except DataError as error:
        note = f"The digits (8 x 8 pixels) replace {dataset}: {error}."
    if data is None:
        data = load_data("digits", DIGITS, data_dir=settings.data_dir)
        recipe = replace(recipe, model="small-cnn") if architecture == LENET else recipe
    network = _trained(recipe, data)
    images, labels = data.test.tensors(CPU)
    batch, batch_note = 16 if settings.quick else 128, ""
    if settings.device.type == "cuda" and not settings.quick:  # larger batches take a GPU hardly longer
        batch, batch_note = min(1000, len(data.test)), "Batches of 1000 images on the GPU."
    # Images that are classified correctly come first: Auto-PGD does not attack the others, and would look faster.
    with torch.no_grad():
        wrong = torch.cat([network(part).argmax(1) for part in images.split(1000)]) != labels
    order = wrong.int().argsort(stable=True)[: min(8 * batch, len(labels) // batch * batch)]
    name = f"{architecture}, {data.name}"
    note = " ".join(filter(None, (note, batch_note)))
    return Subject(name, network, images[order].numpy(), labels[order].numpy(), eps, eps_step, batch, note)


def _trained(recipe: Recipe, data: Dataset) -> nn.Module:
    """Return a network trained for 40 steps of Adam, after which its gradients are neither noise nor saturated."""
    network = models.build_for(recipe, data)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # average over all steps, because there are few
    images, labels = Split(data.train.images[: 40 * 64], data.train.labels[: 40 * 64]).tensors(CPU)
    steps = (torch.arange(40 * 64) % len(labels)).split(64)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    train_epoch(network, nn.CrossEntropyLoss(), optimizer, ((images[step], labels[step]) for step in steps))
    return network.eval()


def noise(size: int) -> Subject:
    """Return an untrained ResNet-8 and images of noise of this height and width, to measure the growth of the cost."""
    recipe, generator = NETWORKS[RESNET][1], np.random.default_rng(0)
    network = models.build(recipe, image_shape=(3, size, size), classes=10, seed=0).eval()
    images, labels = generator.random((32, 3, size, size), dtype=np.float32), generator.integers(0, 10, 32)
    return Subject("ResNet-8, noise", network, images, labels, 8 / 255, 2 / 255, 32)


@dataclass(frozen=True, eq=False)
class TrainingSubject:
    """Part of a data set that fits into the time limit, and the recipe of its training."""

    name: str
    data: Dataset
    recipe: Recipe
    share: float = 1.0
    """Share of the images of each split that `data` contains."""
    tested: int = 0
    """Number of test images of the whole data set."""
    note: str = ""

    @property
    def images(self) -> int:
        """Number of images of a training, counted once per epoch."""
        return len(self.data.train) * self.recipe.epochs

    def run(self, loss: LossSpec) -> RunSpec:
        """Return the run of all contenders."""
        return RunSpec(self.data.name, self.recipe, loss, seed=0)


def training_subjects(settings: Settings) -> list[TrainingSubject]:
    """
    Return the digits' network, LeNet on MNIST and ResNet-8 on CIFAR-10; in quick mode only some digits.

    Data sets that are missing in the data folder are named in the note of the digits.
    """
    trained: list[TrainingSubject] = []
    missing: list[str] = []
    for architecture, (dataset, recipe) in NETWORKS.items():
        name = f"{architecture}, {dataset}"
        if settings.quick and trained:
            break
        try:
            data = load_data(dataset, recipe, data_dir=settings.data_dir)
        except DataError as error:
            missing.append(f"{name} is missing: {error}.")
            continue
        on_cpu = settings.device.type == "cpu"
        share = min(1.0, SHARES[dataset] * settings.seconds / 20) if on_cpu and dataset != "digits" else 1.0
        share = 0.25 if settings.quick else share
        sizes = ((part, max(1, round(len(part) * share))) for part in (data.train, data.validation, data.test))
        parts = (Split(part.images[:size], part.labels[:size]) for part, size in sizes)
        epochs = 2 if settings.quick else EPOCHS[dataset]
        recipe = replace(recipe, epochs=epochs, lr_drops=(), device=settings.device_name)
        subset = Dataset(data.name, data.classes, *parts)
        trained.append(TrainingSubject(name, subset, recipe, share, len(data.test)))
    return [replace(trained[0], note=" ".join(missing)), *trained[1:]]
