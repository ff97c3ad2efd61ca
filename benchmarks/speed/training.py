"""Part "training": throughput of a run compared with reference loops, and the share of Fig. 1's attacks in its time."""

import copy
import io
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from art.estimators.classification import PyTorchClassifier
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import grids
from benchmarks.config import Grid, LossSpec, Recipe, RunSpec
from benchmarks.data import Dataset
from benchmarks.evaluation import curve_point
from benchmarks.execution import following
from benchmarks.protocols import CE, FIGURE_1_ATTACKS, HR, TABLE_1_ATTACKS
from benchmarks.report.markup import Table
from benchmarks.speed.measuring import (
    HOW,
    SECONDS,
    Call,
    Reading,
    Settings,
    at,
    entry,
    interleaved,
    reading,
    rounds,
    tabulated,
)
from benchmarks.speed.subjects import TrainingSubject, training_subjects
from benchmarks.store import Store
from benchmarks.training import Training, train

IMAGES, RELATIVE, SHARE = "images / s", "throughput / bare loop", "share of a run"
LOSSES = {"CE": CE, "HR": HR}
BARE = {name: f"bare loop, {name}" for name in LOSSES}
OURS = {name: f"whole run, {name}" for name in LOSSES}
FOLLOWED = "whole run, followed, HR"
LOADER, FIT = "DataLoader loop, CE", "ART's fit, CE"
ORDER = (*BARE.values(), *OURS.values(), FOLLOWED, LOADER, FIT)
NOTES = (
    "images / s: training images per second, each counted once per epoch; the time of validation is included, its "
    "images are not. One thread of the CPU, or the GPU if it is named. All contenders have the same network, initial "
    "weights, optimizer, batches and number of steps. bare loop: draws an order of the images, and for each batch does "
    "a forward pass, a backward pass and an optimizer step, on tensors that are already in memory. whole run: "
    "benchmarks.training.train with a store in the temporary folder; it draws the weights, and after every epoch "
    "computes the validation accuracy and writes curve, checkpoint and log to the disk; only Fig. 1's attacks are left "
    "out. followed: with the progress display of a terminal, updated once a second. DataLoader loop: a loop over "
    "torch's DataLoader. ART's fit: PyTorchClassifier.fit.",
    "/ bare loop: the throughput divided by that of the bare loop with the same loss; above 1 if the contender is "
    "faster.",
)
EVALUATION, EPOCH = "Fig. 1's attacks, once", "an epoch"
GRIDS = ("digits", "mnist-short", "mnist", "cifar10-short", "cifar10")
SHARE_HEADER = ("grid", "epochs", "epochs between attacks", "seconds of an epoch", "seconds of the attacks", SHARE)
SHARE_NOTES = (
    "The attacks of Fig. 1 are those of the grid's recipe, repeated during training, on all test images, or on the "
    f"first {grids.CURVE_IMAGES} in the short grids. seconds of the attacks: for one repetition. seconds of an epoch: "
    "training with validation and files. If fewer images were measured, both are scaled up. share of a run: the time "
    "of the attacks divided by the time of the whole training; the evaluations of Table 1 come after training and are "
    "not counted. One thread of the CPU, or the GPU if it is named.",
    HOW,
)


def trained(runs: Sequence[RunSpec], data: Dataset, folder: Path, *, followed: bool = False) -> Store:
    """
    Train runs as `python -m benchmarks run` does, into a new store, with curves and a checkpoint after every epoch.

    :param followed: True to show the progress as in a terminal, as part of ten runs.
    :raises Exception: If a run fails.
    """
    store, contexts = Store(Path(tempfile.mkdtemp(dir=folder))), ExitStack()
    if followed:
        grid = Grid("speed", ((data.name, runs[0].recipe),), (CE, HR), tuple(range(5)), TABLE_1_ATTACKS)
        console = Console(file=io.StringIO(), force_terminal=True)
        contexts.enter_context(following(grid, store, console, at_once=1))
    with contexts:
        for run in runs:
            contexts.enter_context(store.lock(run))
            store.open(run, data.fingerprint)
        for run in runs:
            train(run, data, store)
    return store


class Start:
    """Starting point of the reference loops: an untrained network, and images and labels in memory."""

    def __init__(self, subject: TrainingSubject, loss: LossSpec) -> None:
        self.subject, self.training = subject, Training(subject.run(loss), subject.data)
        self.loss, self.device = self.training.loss, self.training.device
        self.images, self.labels = self.training.train
        self.in_main_memory = self.images.cpu(), self.labels.cpu()

    def fresh(self) -> tuple[nn.Module, torch.optim.Optimizer, torch.Generator]:
        """Return copies of the initial network and its optimizer, and the generator of the run's order of images."""
        network, optimizer = copy.deepcopy((self.training.model, self.training.optimizer))
        order = torch.Generator()
        order.set_state(self.training.order.get_state())
        return network.train(), optimizer, order


def bare_loop(start: Start) -> nn.Module:
    """Train without validation or files: draw the order of the run; forward, backward and a step for each batch."""
    network, optimizer, generator = start.fresh()
    images, labels, recipe = start.images, start.labels, start.subject.recipe
    for _ in range(recipe.epochs):
        for batch in torch.randperm(len(images), generator=generator).to(start.device).split(recipe.batch_size):
            optimizer.zero_grad()
            start.loss(network(images[batch]), labels[batch]).backward()
            optimizer.step()
    return network


def loader_loop(start: Start) -> nn.Module:
    """Train as in torch's tutorials, with a shuffled DataLoader in this process over tensors in main memory."""
    network, optimizer, generator = start.fresh()
    recipe, data = start.subject.recipe, TensorDataset(*start.in_main_memory)
    loader = DataLoader(data, batch_size=recipe.batch_size, shuffle=True, generator=generator)
    for _ in range(recipe.epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            start.loss(network(images.to(start.device)), labels.to(start.device)).backward()
            optimizer.step()
    return network


def art_fit(start: Start) -> nn.Module:
    """Train with `fit` of ART's PyTorchClassifier, from NumPy arrays."""
    network, optimizer, _ = start.fresh()
    data, recipe = start.subject.data, start.subject.recipe
    options: dict[str, Any] = {"optimizer": optimizer, "clip_values": (0.0, 1.0), "device_type": recipe.device}
    classifier = PyTorchClassifier(network, start.loss, data.image_shape, data.classes, **options)
    images, labels = (part.numpy() for part in start.in_main_memory)
    classifier.fit(images, labels, batch_size=recipe.batch_size, nb_epochs=recipe.epochs)
    return network


def measure(subject: TrainingSubject, settings: Settings) -> list[Reading]:
    """Return the images per second of every way to train the subject's network, from the same initial weights."""
    starts = {name: Start(subject, loss) for name, loss in LOSSES.items()}
    with tempfile.TemporaryDirectory() as folder:

        def run(loss: LossSpec, *, followed: bool = False) -> Store:
            return trained([subject.run(loss)], subject.data, Path(folder), followed=followed)

        calls: dict[str, Call] = {
            BARE["CE"]: lambda _: bare_loop(starts["CE"]),
            BARE["HR"]: lambda _: bare_loop(starts["HR"]),
            OURS["CE"]: lambda _: run(CE),
            OURS["HR"]: lambda _: run(HR),
            FOLLOWED: lambda _: run(HR, followed=True),
            LOADER: lambda _: loader_loop(starts["CE"]),
            FIT: lambda _: art_fit(starts["CE"]),
        }
        times = interleaved(calls, settings, rounds=50, warm=False)
    return throughputs(at(subject.name, settings.device), times, subject)


def throughputs(case: str, times: Mapping[str, Sequence[float]], subject: TrainingSubject) -> list[Reading]:
    """
    Return seconds, images per second and ratios to the bare loop.

    :param times: Seconds of a training by contender, one per round.
    """
    size = f"{len(subject.data.train)} images, epochs in a round: {subject.recipe.epochs}"
    note, readings = f"{case}: {size}. {subject.note}".rstrip(), []
    for name, seconds in times.items():
        bare = BARE[name[-2:]]
        ratios = [reference / own for reference, own in zip(times[bare], seconds, strict=True)]
        readings += [
            reading(case, name, SECONDS, seconds, note=note),
            reading(case, name, IMAGES, [subject.images / value for value in seconds]),
            reading(case, name, RELATIVE, ratios, bare),
        ]
    return readings


def measure_share(subject: TrainingSubject, settings: Settings) -> list[Reading]:
    """Return the seconds of Fig. 1's attacks and of an epoch, and the resulting share, by grid."""
    training = Training(subject.run(HR), subject.data)
    training.epoch(0)
    with tempfile.TemporaryDirectory() as folder:
        calls: dict[str, Call] = {
            EVALUATION: lambda _: curve_point(FIGURE_1_ATTACKS, training.classifier, subject.data).row(),
            EPOCH: lambda _: trained([subject.run(HR)], subject.data, Path(folder)),
        }
        times = interleaved(calls, settings, rounds=20, share=1 / 2, warm=False)
    epoch = [seconds / subject.recipe.epochs / subject.share for seconds in times[EPOCH]]
    readings = []
    for name, recipe in recipes(subject.data.name).items():
        attacked = recipe.curve_attacks[0].images or subject.tested
        once = [seconds * attacked / len(subject.data.test) for seconds in times[EVALUATION]]
        shares = [share(recipe, *pair) for pair in zip(once, epoch, strict=True)]
        case, note = at(name, settings.device), f"{recipe.epochs}, {recipe.curve_every}"
        readings += [reading(case, EVALUATION, SECONDS, once), reading(case, EPOCH, SECONDS, epoch)]
        readings.append(reading(case, EVALUATION, SHARE, shares, note=note))
    return readings


def recipes(dataset: str) -> dict[str, Recipe]:
    """Return, by grid, the recipes for this data set that include Fig. 1."""
    by_grid = {name: dict(grids.get(name).recipes).get(dataset) for name in GRIDS}
    return {name: recipe for name, recipe in by_grid.items() if recipe is not None}


def share(recipe: Recipe, evaluation: float, epoch: float) -> float:
    """
    Return the share of the attacks in the time of the whole training.

    :param evaluation: Seconds of one repetition of the attacks.
    :param epoch: Seconds of an epoch.
    """
    attacked = recipe.epochs // recipe.curve_every * evaluation
    return attacked / (attacked + recipe.epochs * epoch)


def cases(settings: Settings) -> dict[str, Callable[[], list[Reading]]]:
    """Return the measurements of the throughput of every network and of the share of Fig. 1, by name."""
    measures = {"": measure, "Fig. 1, ": measure_share}
    subjects = training_subjects(settings)
    return {
        f"{what}{subject.name} ({settings.device.type})": partial(measuring, subject, settings)
        for what, measuring in measures.items()
        for subject in subjects
    }


def tables(readings: pd.DataFrame) -> list[Table]:
    """Return the table of throughputs and that of the shares."""
    entries = {"images / s": entry(IMAGES), "/ bare loop": entry(RELATIVE), "rounds": rounds}
    timed = readings[readings.contender.isin(ORDER) & readings.x.isna()]
    rows = []
    for case, of_case in readings[readings.contender.isin((EPOCH, EVALUATION))].groupby("case", sort=False):
        seconds = [entry(SECONDS)(of_case[of_case.contender == name]) for name in (EPOCH, EVALUATION)]
        epochs = of_case.note[of_case.quantity == SHARE].item().split(", ")
        rows.append((case, *epochs, *seconds, entry(SHARE)(of_case)))
    return [
        tabulated("Training throughput", timed, ("training", "contender"), entries, NOTES, ORDER),
        Table("Share of Fig. 1's attacks in the time of training", SHARE_HEADER, tuple(rows), SHARE_NOTES),
    ]
