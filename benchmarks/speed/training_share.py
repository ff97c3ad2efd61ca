"""What share of a run's time Fig. 1's attacks take, by the recipes of the grids."""

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from art_hrloss import seeded
from benchmarks import grids
from benchmarks.config import Recipe
from benchmarks.evaluation import measure_all
from benchmarks.execution import threads
from benchmarks.protocols import FIGURE_1_ATTACKS, HR
from benchmarks.report.markup import Table
from benchmarks.speed.cases import HOW, SECONDS, Case, Reading, Settings, find, shown
from benchmarks.speed.timing import interleaved, spread
from benchmarks.speed.training_loops import TrainingSubject, training_subjects, whole_run
from benchmarks.training import Training

SHARE = "share of a run"
EVALUATION, EPOCH = "Fig. 1's attacks, once", "an epoch"
GRIDS = ("digits", "mnist-short", "mnist", "cifar10-short", "cifar10")
HEADER = ("grid", "epochs", "attacked every", "seconds of an epoch", "seconds of the attacks", "share of a run")
NOTES = (
    "The attacks of Fig. 1 are those of the grid's recipe, after every so many epochs, on all test images, or on the "
    f"first {grids.CURVE_IMAGES} in the short grids; the seconds are of one time, and of an epoch of training with all "
    "that is kept of it. Where other numbers of images were measured, both are scaled. The share is that of the "
    "attacks in the whole training, which the records of Table 1 are no part of. One thread of the CPU, or the GPU "
    "where it is named.",
    HOW,
)


def measure(subject: TrainingSubject, device: torch.device, settings: Settings) -> list[Reading]:
    """Seconds of the attacks and of an epoch, and the share that follows, by grid."""
    training = Training(subject.run(HR), subject.data)
    scale, recipe = subject.share, subject.recipe
    with tempfile.TemporaryDirectory() as folder, threads(1), seeded(0):
        training.epoch(0)
        times = interleaved(
            {
                EVALUATION: lambda _: dict(measure_all(FIGURE_1_ATTACKS, training.classifier, subject.data)),
                EPOCH: lambda _: whole_run(subject, HR, Path(folder)),
            },
            device=device,
            rounds=1 if settings.quick else 20,
            seconds=settings.seconds / 2,
            warm=False,
        )
    epoch = [seconds / recipe.epochs / scale for seconds in times[EPOCH]]
    readings = []
    for name, own in recipes(subject.data.name).items():
        case = name + (f", {device.type}" if device.type != "cpu" else "")
        attacked = own.curve_attacks[0].images or subject.tested
        evaluation = [seconds * attacked / len(subject.data.test) for seconds in times[EVALUATION]]
        shares = [share(own, *pair) for pair in zip(evaluation, epoch, strict=True)]
        readings += [
            Reading(case, EVALUATION, SECONDS, spread(evaluation)),
            Reading(case, EPOCH, SECONDS, spread(epoch)),
            Reading(case, EVALUATION, SHARE, spread(shares), note=f"{own.epochs}, {own.curve_every}"),
        ]
    return readings


def recipes(dataset: str) -> dict[str, Recipe]:
    """By grid, the recipes for this data set that ask for Fig. 1."""
    found = {name: dict(grids.get(name).recipes).get(dataset) for name in GRIDS}
    return {name: recipe for name, recipe in found.items() if recipe is not None}


def share(recipe: Recipe, evaluation: float, epoch: float) -> float:
    """
    Of the whole training's seconds, those of the attacks.

    :param evaluation: Seconds of the attacks, each made once.
    :param epoch: Seconds of an epoch.
    """
    attacked = recipe.epochs // recipe.curve_every * evaluation
    return attacked / (attacked + recipe.epochs * epoch)


def cases(settings: Settings) -> list[Case]:
    """One for each data set and device."""
    return [
        Case(f"Fig. 1, {subject.name} ({device.type})", partial(measure, subject, device, settings))
        for device in settings.devices
        for subject in training_subjects(settings, device)
    ]


def shown_share(readings: Sequence[Reading]) -> Table:
    """A row per grid."""
    rows = []
    for reading in (r for r in readings if r.quantity == SHARE):
        epochs, every = reading.note.split(", ")
        seconds = (shown(find(readings, reading.case, name, SECONDS)) for name in (EPOCH, EVALUATION))
        rows.append((reading.case, epochs, every, *seconds, shown(reading)))
    return Table("Fig. 1's share", HEADER, tuple(rows), NOTES)
