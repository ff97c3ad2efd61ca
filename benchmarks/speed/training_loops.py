"""What is trained to be timed, and the ways to train it: a whole run of ours, ART's fit, and loops by hand."""

import copy
import io
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from art.estimators.classification import PyTorchClassifier
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.config import Grid, LossSpec, Recipe, RunSpec
from benchmarks.data import DataError, Dataset, Split, load
from benchmarks.execution import following
from benchmarks.protocols import CE, HR, TABLE_1_ATTACKS
from benchmarks.recipes import CIFAR10_SHORT, DIGITS, MNIST_SHORT
from benchmarks.speed.cases import Settings
from benchmarks.store import Store
from benchmarks.training import Training, train

# Of an epoch on the CPU, the share of the images that 20 seconds of rounds have time for.
SHARES = {"digits": 1.0, "mnist": 0.1, "cifar10": 0.025}
EPOCHS = {"digits": 20, "mnist": 1, "cifar10": 1}
QUICK_EPOCHS = 2
LARGER = (("LeNet, mnist", "mnist", MNIST_SHORT), ("ResNet-8, cifar10", "cifar10", CIFAR10_SHORT))


@dataclass(frozen=True, eq=False)
class TrainingSubject:
    """A data set, as much of it as there is time for, and the recipe by which its networks are trained."""

    name: str
    data: Dataset
    recipe: Recipe
    share: float = 1.0
    """Of the images of each part of the data set, how many there are here."""
    tested: int = 0
    """Test images that the whole data set has."""
    note: str = ""

    @property
    def images(self) -> int:
        """Images that a training goes through, counted once an epoch."""
        return len(self.data.train) * self.recipe.epochs

    def run(self, loss: LossSpec) -> RunSpec:
        """The run that all contenders do."""
        return RunSpec(self.data.name, self.recipe, loss, seed=0)


def training_subjects(settings: Settings, device: torch.device) -> list[TrainingSubject]:
    """
    The digits' network, LeNet on MNIST and ResNet-8 on CIFAR-10; only the digits if it is to be quick.

    Where a data set is not in the data folder, the digits' note says so.
    """
    digits = _subject("small CNN, digits", "digits", DIGITS, settings, device)
    others: list[TrainingSubject] = []
    missing: list[str] = []
    for name, dataset, recipe in () if settings.quick else LARGER:
        try:
            others.append(_subject(name, dataset, recipe, settings, device))
        except DataError as error:
            missing.append(f"Without {name}: {error}.")
    return [replace(digits, note=" ".join(missing)), *others]


def _subject(name: str, dataset: str, recipe: Recipe, settings: Settings, device: torch.device) -> TrainingSubject:
    data = load(dataset, data_dir=settings.data_dir, validation_size=recipe.validation_size)
    on_cpu = device.type == "cpu"
    share = min(1.0, SHARES[dataset] * settings.seconds / 20) if on_cpu and dataset != "digits" else 1.0
    parts = (Split(p.images[: _part(p, share)], p.labels[: _part(p, share)]) for p in _parts(data))
    epochs = QUICK_EPOCHS if settings.quick else EPOCHS[dataset]
    recipe = replace(recipe, epochs=epochs, lr_drops=(), device="cpu" if on_cpu else "gpu")
    return TrainingSubject(name, Dataset(data.name, data.classes, *parts), recipe, share, len(data.test))


def _parts(data: Dataset) -> tuple[Split, Split, Split]:
    return data.train, data.validation, data.test


def _part(split: Split, share: float) -> int:
    return max(1, round(len(split) * share))


def whole_run(subject: TrainingSubject, loss: LossSpec, folder: Path) -> Store:
    """A run as `python -m benchmarks run` trains it: with its curve, and a checkpoint after every epoch, on disk."""
    store, run = Store(Path(tempfile.mkdtemp(dir=folder))), subject.run(loss)
    with store.lock(run):
        store.open(run, subject.data.fingerprint)
        train(run, subject.data, store)
    return store


def followed_run(subject: TrainingSubject, loss: LossSpec, folder: Path) -> Store:
    """The same, watched from a terminal, as one of ten runs."""
    store = Store(Path(tempfile.mkdtemp(dir=folder)))
    grid = Grid("speed", ((subject.data.name, subject.recipe),), (CE, HR), tuple(range(5)), TABLE_1_ATTACKS)
    run = subject.run(loss)
    with following(grid, store, Console(file=io.StringIO(), force_terminal=True), at_once=1), store.lock(run):
        store.open(run, subject.data.fingerprint)
        train(run, subject.data, store)
    return store


class Start:
    """A network before its training, images and labels in memory: where loops by hand begin, as often as is wanted."""

    def __init__(self, subject: TrainingSubject, loss: LossSpec) -> None:
        self.subject, self.training = subject, Training(subject.run(loss), subject.data)
        self.loss, self.device = self.training.loss, self.training.device
        self.images, self.labels = self.training.train
        self.in_main_memory = self.images.cpu(), self.labels.cpu()

    def fresh(self) -> tuple[nn.Module, torch.optim.Optimizer, torch.Generator]:
        """The network as it was drawn from the run's seed, its optimizer, and the generator of the run's order."""
        network, optimizer = copy.deepcopy((self.training.model, self.training.optimizer))
        order = torch.Generator()
        order.set_state(self.training.order.get_state())
        return network.train(), optimizer, order


def bare_loop(start: Start) -> nn.Module:
    """Nothing but training: the order of the run, and of each batch forward, back and a step."""
    network, optimizer, generator = start.fresh()
    images, labels, recipe = start.images, start.labels, start.subject.recipe
    for _ in range(recipe.epochs):
        for batch in torch.randperm(len(images), generator=generator).to(start.device).split(recipe.batch_size):
            optimizer.zero_grad()
            start.loss(network(images[batch]), labels[batch]).backward()
            optimizer.step()
    return network


def loader_loop(start: Start) -> nn.Module:
    """The loop of torch's tutorials, over a shuffled DataLoader of this process and tensors in main memory."""
    network, optimizer, generator = start.fresh()
    recipe = start.subject.recipe
    loader = DataLoader(
        TensorDataset(*start.in_main_memory), batch_size=recipe.batch_size, shuffle=True, generator=generator
    )
    for _ in range(recipe.epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            start.loss(network(images.to(start.device)), labels.to(start.device)).backward()
            optimizer.step()
    return network


def art_fit(start: Start) -> nn.Module:
    """ART's own classifier and its `fit`, from NumPy arrays."""
    network, optimizer, _ = start.fresh()
    data, recipe = start.subject.data, start.subject.recipe
    options: dict[str, Any] = {"optimizer": optimizer, "clip_values": (0.0, 1.0), "device_type": recipe.device}
    classifier = PyTorchClassifier(network, start.loss, data.image_shape, data.classes, **options)
    images, labels = (part.numpy() for part in start.in_main_memory)
    classifier.fit(images, labels, batch_size=recipe.batch_size, nb_epochs=recipe.epochs)
    return network
