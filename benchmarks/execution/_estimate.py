"""How long runs will take before any was timed: from a few batches of training and a few images of each attack."""

import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

import numpy as np
import torch

from art_hrloss import HRClassifier, seeded
from benchmarks.config import AttackSpec, RunSpec
from benchmarks.data import Dataset, Split
from benchmarks.evaluation import BATCH_SIZE, measure_all
from benchmarks.execution._jobs import Job, load_data, threads
from benchmarks.execution._status import Cost, RunStatus
from benchmarks.references import Reference
from benchmarks.store import Store
from benchmarks.training import Training, accuracy

# What is tried: enough for the first calls' extra time to be small, few enough for a moment.
BATCHES, VALIDATION_IMAGES = 8, 500
# Images that an attack is tried on, first few and then more: the difference tells what one costs, and the rest is what
# any number does. Of attacks that take thousands of passes, fewer.
FEW_AND_MORE, OF_LONG_ATTACKS = (50, 250), (8, 32)
LONG_ATTACKS = ("square", "transfer", "worst-case", "diagnostics")


def probe(job: Job) -> Cost:
    """
    Train the job's network for a moment, attack it, and tell what its epochs and evaluations will take.

    An epoch is as many times the moment as it has images of training and validation, what it takes to keep its state,
    and, as often as the recipe says, what its curve attacks. Of attacks the time is a constant and so much for each
    image, whatever the eps. Nothing is kept, and no generator is moved.
    """
    curve = job.run.recipe
    run = replace(job.run, recipe=replace(job.run.recipe, curve_every=0, curve_attacks=()))
    data = load_data(run.dataset, run.recipe, data_dir=job.data_dir)
    few = replace(
        data,
        train=_first(data.train, BATCHES * run.recipe.batch_size),
        validation=_first(data.validation, VALIDATION_IMAGES),
    )
    with threads(run.recipe.threads), torch.random.fork_rng(), seeded(0):
        training = Training(run, few)
        row = training.epoch(0)  # what is set up at first is set up here
        training_seconds = _seconds(lambda: training.epoch(0)) * len(data.train) / len(few.train)
        looking = _seconds(lambda: accuracy(training.model, *training.validation))
        with TemporaryDirectory() as folder:
            keeping = _seconds(lambda: training.keep(row | {"validation_accuracy": 0.0}, Store(Path(folder))))
        epoch = training_seconds + looking * len(data.validation) / len(few.validation) + keeping
        attacks = _seconds_of_attacks(training, _believed(data, training), (*job.attacks, *curve.curve_attacks))
    if curve.curve_every:
        epoch += sum(attacks[_like(spec, data)] for spec in curve.curve_attacks) / curve.curve_every
    return Cost(epoch, fmean(attacks[_like(spec, data)] for spec in job.attacks) if job.attacks else 0.0)


def to_probe(states: Iterable[RunStatus]) -> dict[Hashable, RunSpec]:
    """Of each kind of runs of which nothing has been timed, one; kinds differ in what the time depends on."""
    unknown = (state.run for state in states if state.state != "done" and state.seconds_left is None)
    return {kind(run): run for run in unknown}


def kind(run: RunSpec) -> Hashable:
    """What the time that a run takes depends on: not its seed, nor its alpha."""
    return run.dataset, run.recipe, run.loss.name, run.loss.hardening


def costs(states: Sequence[RunStatus], job_of: Callable[[RunSpec], Job], executor: Executor) -> dict[RunSpec, Cost]:
    """
    What the runs of which nothing has been timed will take.

    :param states: Of all runs.
    :param job_of: The job of a run.
    :param executor: Of one worker, or a cluster's: where :func:`probe` is called, one job after the other.
    """
    probed = {name: executor.submit(probe, job_of(run)).result() for name, run in to_probe(states).items()}
    return {state.run: probed[kind(state.run)] for state in states if kind(state.run) in probed}


def _seconds_of_attacks(
    training: Training, data: Dataset, specs: Iterable[AttackSpec]
) -> dict[tuple[AttackSpec, int], float]:
    """Seconds of each attack at any eps, on all the images that it attacks."""
    seconds = {}
    scale = training.run.recipe.input_scale
    for spec, images in dict.fromkeys(_like(spec, data) for spec in specs):
        # Images made on the network itself cost as much as those made on another.
        sources = {} if spec.source is None else {spec.source: training.classifier}

        def attack(count: int, spec: AttackSpec = spec, sources: dict[int, HRClassifier] = sources) -> float:
            tried = replace(spec, images=count)
            return _seconds(lambda: dict(measure_all([tried], training.classifier, data, scale, sources)))

        long = spec.name in LONG_ATTACKS or isinstance(spec.name, Reference)  # of a user's own nobody knows
        few, more = (min(images, n) for n in (OF_LONG_ATTACKS if long else FEW_AND_MORE))
        seconds[spec, images] = extrapolated(attack(few), attack(more), few, more, images)
    return seconds


def extrapolated(seconds_of_few: float, seconds_of_more: float, few: int, more: int, images: int) -> float:
    """Seconds for so many images, from those for few and for more of them: a constant, and so much for each image."""
    each = max(0.0, (seconds_of_more - seconds_of_few) / (more - few)) if more > few else 0.0
    return seconds_of_more + each * (images - more)


def _believed(data: Dataset, training: Training) -> Dataset:
    """
    The data, with what the network takes the images for as the labels of those that are tried.

    Strong attacks leave alone what is wrong before, which in a network that has hardly learned is nearly all.
    """

    def believed(split: Split) -> Split:
        first = _first(split, FEW_AND_MORE[1])
        images = first.tensors(torch.device("cpu"))[0].numpy()
        labels = training.classifier.predict(images, batch_size=BATCH_SIZE).argmax(1)
        return Split(split.images, np.concatenate([labels, split.labels[len(first) :]]))

    return replace(data, test=believed(data.test), validation=believed(data.validation))


def _like(spec: AttackSpec, data: Dataset) -> tuple[AttackSpec, int]:
    """An attack that costs as much, whatever its eps, and the images that it attacks."""
    images = len(data.test if spec.split == "test" else data.validation)
    images = min(spec.images, images) if spec.images else images
    return replace(spec, eps=0.1 if spec.eps else 0.0, images=0), images


def _first(split: Split, count: int) -> Split:
    return Split(split.images[:count], split.labels[:count])


def _seconds(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun
