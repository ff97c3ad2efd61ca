"""Part "training": images a second of a run, the share of Fig. 1's attacks in it, and how its cost grows."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from art_hrloss import seeded
from benchmarks.execution import threads
from benchmarks.protocols import CE, HR
from benchmarks.report.markup import Table
from benchmarks.speed import training_growth, training_share
from benchmarks.speed.cases import HOW, SECONDS, Case, Findings, Part, Reading, Settings, find, remarks, shown
from benchmarks.speed.timing import interleaved, ratio, spread
from benchmarks.speed.training_loops import (
    Start,
    TrainingSubject,
    art_fit,
    bare_loop,
    followed_run,
    loader_loop,
    training_subjects,
    whole_run,
)

IMAGES, RELATIVE = "images / s", "throughput / bare loop"
LOSSES = {"CE": CE, "HR": HR}
BARE = {name: f"bare loop, {name}" for name in LOSSES}
OURS = {name: f"whole run, {name}" for name in LOSSES}
FOLLOWED = "whole run, followed, HR"
LOADER, FIT = "DataLoader loop, CE", "ART's fit, CE"
ORDER = (BARE["CE"], BARE["HR"], OURS["CE"], OURS["HR"], FOLLOWED, LOADER, FIT)
NOTES = (
    "Images go through training once an epoch; those of the validation are not counted, but their time is. One thread "
    "of the CPU, or the GPU where it is named. A whole run is benchmarks.training.train into a store in the temporary "
    "folder: it begins with drawing the weights, and after every epoch takes the validation accuracy and writes curve, "
    "checkpoint and log to the disk; only Fig. 1's attacks are left out. Followed, it is shown as in a terminal, once "
    "a second. The bare loop draws an order and for each batch goes forward, back and a step, over tensors that are "
    "in memory before it begins. All have the same network, weights, optimizer, batches and number of steps.",
    "The ratio is of throughputs, above 1 if the contender is faster than the bare loop with the same loss.",
    HOW,
)


def contenders(subject: TrainingSubject, folder: Path) -> dict[str, Callable[[], object]]:
    """Every way to train the subject's network from the same weights, by its name; the stores go into the folder."""
    starts = {name: Start(subject, loss) for name, loss in LOSSES.items()}
    return {
        **{BARE[name]: partial(bare_loop, start) for name, start in starts.items()},
        **{OURS[name]: partial(whole_run, subject, loss, folder) for name, loss in LOSSES.items()},
        FOLLOWED: partial(followed_run, subject, HR, folder),
        LOADER: partial(loader_loop, starts["CE"]),
        FIT: partial(art_fit, starts["CE"]),
    }


def measure(subject: TrainingSubject, device: torch.device, settings: Settings) -> list[Reading]:
    """Images a second of every contender on one network."""
    with tempfile.TemporaryDirectory() as folder, threads(1), seeded(0):
        calls = contenders(subject, Path(folder))
        times = interleaved(
            {name: lambda _, call=call: call() for name, call in calls.items()},  # type: ignore[misc]
            device=device,
            rounds=1 if settings.quick else 50,
            seconds=settings.seconds,
            warm=False,
        )
    case = f"{subject.name}" + (f", {device.type}" if device.type != "cpu" else "")
    return readings_of(case, times, subject)


def readings_of(case: str, times: Mapping[str, Sequence[float]], subject: TrainingSubject) -> list[Reading]:
    """
    Seconds, images a second and ratios to the bare loop.

    :param times: Seconds of a training by contender, one per round.
    """
    note = (
        f"{case}: {len(subject.data.train)} images, epochs in a round: {subject.recipe.epochs}. {subject.note}".rstrip()
    )
    readings = []
    for name, taken in times.items():
        bare = BARE["HR" if name.endswith("HR") else "CE"]
        readings += [
            Reading(case, name, SECONDS, spread(taken), note=note),
            Reading(case, name, IMAGES, spread([subject.images / seconds for seconds in taken])),
            Reading(case, name, RELATIVE, ratio(times, bare, name), bare),
        ]
    return readings


def cases(settings: Settings) -> list[Case]:
    """The throughput of every network on every device; then the share of Fig. 1, and growth."""
    found = [
        Case(f"{subject.name} ({device.type})", partial(measure, subject, device, settings))
        for device in settings.devices
        for subject in training_subjects(settings, device)
    ]
    return [*found, *training_share.cases(settings), *training_growth.cases(settings)]


def findings(readings: Sequence[Reading]) -> Findings:
    """Three tables, and the figure of how cost grows."""
    own = [r for r in readings if r.quantity in (SECONDS, IMAGES, RELATIVE) and r.contender in ORDER and r.x is None]
    rows = []
    for case in dict.fromkeys(reading.case for reading in own):
        for i, name in enumerate(ORDER):
            speed, bare = find(own, case, name, IMAGES), BARE["HR" if name.endswith("HR") else "CE"]
            rounds = str(speed.value.n) if speed and speed.value else "-"
            rows.append(("" if i else case, name, shown(speed), shown(find(own, case, name, RELATIVE, bare)), rounds))
    header = ("training", "contender", "images / s", "/ bare loop", "rounds")
    tables = [Table("Training throughput", header, tuple(rows), (*remarks(own), *NOTES))]
    table, picture = training_growth.shown_growth(readings)
    return Findings([*tables, training_share.shown_share(readings), table], [picture])


TRAINING = Part("training", 8, cases, findings)
