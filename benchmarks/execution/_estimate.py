"""Estimate of the time of runs without any timing, from a few batches of training and a few images of each attack."""

import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryDirectory

import numpy as np
import torch

from art_hrloss import HRClassifier, seeded
from benchmarks.config import AttackSpec, RunSpec
from benchmarks.data import Dataset, Split
from benchmarks.evaluation import BATCH_SIZE, measure_all
from benchmarks.execution._jobs import Job, load_data, threads
from benchmarks.execution._monitor import RunStatus, Seconds
from benchmarks.references import Reference
from benchmarks.store import Store
from benchmarks.training import Training, accuracy, epoch_function, tf32

# Sizes of a trial: large enough that the overhead of first calls is small, and small enough to be fast.
BATCHES, VALIDATION_IMAGES = 8, 500
# Short calls are repeated up to this total time in seconds, or number of calls: a single short timing is unreliable.
MIN_SECONDS, MAX_CALLS = 0.1, 5
# Seconds of training before attacks are timed, so that the network has margins, on which the time of attacks depends.
TRAINING_SECONDS = 1.0
# An attack is timed on two numbers of images. The difference gives the time per image, and the rest is a constant.
# Attacks with thousands of forward passes are timed on fewer images.
IMAGE_COUNTS, IMAGE_COUNTS_OF_LONG_ATTACKS = (BATCH_SIZE, 2 * BATCH_SIZE), (4, 16)
# The time of these attacks depends on eps, because they stop at images that are misclassified.
LONG_ATTACKS = ("square", "transfer", "worst-case", "diagnostics")


def probe(job: Job, together: int = 1) -> Seconds:
    """
    Train the job's network for a short time, attack it, and return estimated seconds of an epoch and each evaluation.

    The time of an epoch is extrapolated from a few batches of training and validation. It includes storing the state,
    and the attacks of the curve at the recipe's interval. A network that is trained already is attacked without further
    training. Nothing is stored, and global random generators are restored.

    :param job: The job.
    :param together: The number of runs that are trained together, among which the time of an epoch is divided.
    """
    curve = job.run.recipe
    run = replace(job.run, recipe=replace(job.run.recipe, curve_every=0, curve_attacks=()))
    data = load_data(run.dataset, run.recipe, data_dir=job.data_dir)
    few = replace(
        data,
        train=_first(data.train, BATCHES * run.recipe.batch_size),
        validation=_first(data.validation, VALIDATION_IMAGES),
    )
    with threads(run.recipe.threads), tf32(False), torch.random.fork_rng(), seeded(0):
        training, store = Training(run, few), Store(job.store)
        if store.is_trained(job.run):
            training.model.load_state_dict(store.load_checkpoint(job.run))
            return _seconds_of_attacks(training, _with_predicted_labels(data, training), job.attacks)
        train = epoch_function([training, *(Training(run, few) for _ in range(together - 1))])
        train(0)  # warm-up: the first call includes set-up
        epoch = _seconds(lambda: train(0)) * len(data.train) / len(few.train) / together
        epoch += _seconds(lambda: accuracy(training.model, *training.validation)) * (
            len(data.validation) / len(few.validation)
        )
        with TemporaryDirectory() as folder:
            epoch += _seconds(lambda: Store(Path(folder)).save_state(run, training.state()))
        start = time.perf_counter()
        while time.perf_counter() - start < TRAINING_SECONDS:
            train(0)
        relabelled = _with_predicted_labels(data, training)
        attacks = _seconds_of_attacks(training, relabelled, (*job.attacks, *curve.curve_attacks))
    if curve.curve_every:
        epoch += sum(attacks[spec.key()] for spec in curve.curve_attacks) / curve.curve_every
    return {"epoch": epoch, **{spec.key(): attacks[spec.key()] for spec in job.attacks}}


def costs(
    states: Sequence[RunStatus],
    job_of: Callable[[RunSpec], Job],
    executor: Executor,
    *,
    at_once: int = 1,
    together: int = 1,
) -> dict[RunSpec, Seconds]:
    """
    Return estimated seconds of epochs and evaluations for the runs without any timing.

    :param states: The states of all runs.
    :param job_of: A function that returns the job of a run.
    :param executor: The executor of the runs, on which :func:`probe` is called.
    :param at_once: The number of simultaneous runs. As many probes are executed at a time, since they slow each other.
    :param together: The number of runs that a worker trains together.
    """
    jobs: dict[Hashable, Job] = {}
    for state in states:
        if state.state != "done" and (state.untimed or state.seconds_left is None):
            kind = _kind(state)
            job = jobs.get(kind) or replace(job_of(state.run), attacks=())
            missing = (attack for attack in job_of(state.run).attacks if attack.key() in state.left)
            jobs[kind] = replace(job, attacks=tuple(dict.fromkeys((*job.attacks, *missing))))
    probed = list(islice(cycle(jobs), max(at_once, len(jobs)) if jobs else 0))
    futures = [executor.submit(probe, jobs[kind], together) for kind in probed]
    by_kind: dict[Hashable, list[Seconds]] = {}
    for kind, future in zip(probed, futures, strict=True):
        by_kind.setdefault(kind, []).append(future.result())
    means = {kind: {part: fmean(s[part] for s in seconds) for part in seconds[0]} for kind, seconds in by_kind.items()}
    return {state.run: means[kind] for state in states if (kind := _kind(state)) in means}


def _kind(state: RunStatus) -> Hashable:
    """Return the properties on which the time of a run depends; seed and alpha are not among them."""
    run = state.run
    return run.dataset, run.recipe, run.loss.name, run.loss.hardening, "epoch" in state.left


def _seconds_of_attacks(training: Training, data: Dataset, specs: Sequence[AttackSpec]) -> Seconds:
    """Return the estimated seconds of each attack on all its images, by the attack's key."""
    seconds: dict[tuple[AttackSpec, int], float] = {}
    scale = training.run.recipe.input_scale
    for representative in dict.fromkeys(_representative(spec, data) for spec in specs):
        spec, images = representative
        # The attacked network serves as source network: the time of a transfer attack is the same.
        sources = {} if spec.source is None else {spec.source: training.classifier}

        def attack(count: int, spec: AttackSpec = spec, sources: dict[int, HRClassifier] = sources) -> float:
            trial = replace(spec, images=count)
            return _seconds(lambda: dict(measure_all([trial], training.classifier, data, scale, sources)))

        long = spec.name in LONG_ATTACKS or isinstance(spec.name, Reference)  # a user's attack may be long
        few, more = (min(images, count) for count in (IMAGE_COUNTS_OF_LONG_ATTACKS if long else IMAGE_COUNTS))
        batches = -(-images // BATCH_SIZE) if long else 1
        seconds[representative] = extrapolated(attack(few), attack(more), few, more, images, batches=batches)
    return {spec.key(): seconds[_representative(spec, data)] for spec in specs}


def extrapolated(
    seconds_of_few: float, seconds_of_more: float, few: int, more: int, images: int, *, batches: int = 1
) -> float:
    """Extrapolate seconds to a number of images from two timings, as a time per image and a constant per batch."""
    per_image = max(0.0, (seconds_of_more - seconds_of_few) / (more - few)) if more > few else 0.0
    constant = max(0.0, seconds_of_more - per_image * more)
    return per_image * images + constant * batches


def _with_predicted_labels(data: Dataset, training: Training) -> Dataset:
    """
    Return the data with the network's predictions as labels of the images in the trial.

    Strong attacks skip images that are misclassified already. With true labels that would be nearly all images of a
    network that has learned little, and the attacks would seem fast.
    """

    def relabelled(split: Split) -> Split:
        first = _first(split, IMAGE_COUNTS[1])
        images = first.tensors(torch.device("cpu"))[0].numpy()
        labels = training.classifier.predict(images, batch_size=BATCH_SIZE).argmax(1)
        return Split(split.images, np.concatenate([labels, split.labels[len(first) :]]))

    return replace(data, test=relabelled(data.test), validation=relabelled(data.validation))


def _representative(spec: AttackSpec, data: Dataset) -> tuple[AttackSpec, int]:
    """Return an attack that takes the same time per image, and the number of images."""
    images = len(data.test if spec.split == "test" else data.validation)
    images = min(spec.images, images) if spec.images else images
    eps = spec.eps if spec.name in LONG_ATTACKS or not spec.eps else 0.1
    return replace(spec, eps=eps, images=0), images


def _first(split: Split, count: int) -> Split:
    return Split(split.images[:count], split.labels[:count])


def _seconds(call: Callable[[], object]) -> float:
    """Return the median seconds of a few calls, or of one call if it is long."""
    seconds: list[float] = []
    while not seconds or (sum(seconds) < MIN_SECONDS and len(seconds) < MAX_CALLS):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return median(seconds)
