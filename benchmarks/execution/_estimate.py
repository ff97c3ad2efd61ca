"""How long runs will take before any was timed: from a moment of training and a few images of each attack."""

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
from benchmarks.training import Training, accuracy, stepping, tf32

# What is tried: enough for the first calls' extra time to be small, few enough for a moment.
BATCHES, VALIDATION_IMAGES = 8, 500
# Short calls are timed again, until so many seconds or calls are behind them: a single one says little.
MOMENT, CALLS = 0.1, 5
# Seconds in which a network that is not trained yet learns something, so that attacks meet one that has margins.
LEARNING = 1.0
# Images that an attack is tried on, first few and then more: the difference tells what one costs, and the rest is what
# any number does. Of attacks that take thousands of passes, fewer.
FEW_AND_MORE, OF_LONG_ATTACKS = (BATCH_SIZE, 2 * BATCH_SIZE), (4, 16)
# Their time depends on eps as well: what one of their attacks has misclassified the others leave alone.
LONG_ATTACKS = ("square", "transfer", "worst-case", "diagnostics")


def probe(job: Job, together: int = 1) -> Seconds:
    """
    Train the job's network for a moment, attack it, and return what an epoch and each evaluation will take.

    An epoch is as many times the moment as it has images of training and validation, what it takes to keep its state,
    and, as often as the recipe says, what its curve attacks. A network that the store has trained is attacked as it
    is. Nothing is kept, and no generator is moved.

    :param job: The job.
    :param together: How many runs such as its own will be trained at once, of whose epoch this one has its share.
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
            return _seconds_of_attacks(training, _believed(data, training), job.attacks)
        train = stepping([training, *(Training(run, few) for _ in range(together - 1))])
        train(0)  # what is set up at first is set up here
        epoch = _seconds(lambda: train(0)) * len(data.train) / len(few.train) / together
        epoch += _seconds(lambda: accuracy(training.model, *training.validation)) * (
            len(data.validation) / len(few.validation)
        )
        with TemporaryDirectory() as folder:
            epoch += _seconds(lambda: Store(Path(folder)).save_state(run, training.state()))
        begun = time.perf_counter()
        while time.perf_counter() - begun < LEARNING:
            train(0)
        believed = _believed(data, training)
        attacks = _seconds_of_attacks(training, believed, (*job.attacks, *curve.curve_attacks))
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
    What the parts of the runs will take of which nothing has been timed.

    :param states: Of all runs.
    :param job_of: The job of a run.
    :param executor: Where the runs will be done, and :func:`probe` is called.
    :param at_once: How many runs will be done at the same time: so many probes are, since they slow each other.
    :param together: How many of them each trains at once.
    """
    jobs: dict[Hashable, Job] = {}
    for state in states:
        if state.state != "done" and (state.untimed or state.seconds_left is None):
            kind = _kind(state)
            job = jobs.get(kind) or replace(job_of(state.run), attacks=())
            missing = (attack for attack in job_of(state.run).attacks if attack.key() in state.left)
            jobs[kind] = replace(job, attacks=tuple(dict.fromkeys((*job.attacks, *missing))))
    tried = list(islice(cycle(jobs), max(at_once, len(jobs)) if jobs else 0))
    probes = [executor.submit(probe, jobs[kind], together) for kind in tried]
    by_kind: dict[Hashable, list[Seconds]] = {}
    for kind, ended in zip(tried, probes, strict=True):
        by_kind.setdefault(kind, []).append(ended.result())
    means = {kind: {part: fmean(s[part] for s in seconds) for part in seconds[0]} for kind, seconds in by_kind.items()}
    return {state.run: means[kind] for state in states if (kind := _kind(state)) in means}


def _kind(state: RunStatus) -> Hashable:
    """What the time depends on that the run takes: not its seed, nor its alpha."""
    run = state.run
    return run.dataset, run.recipe, run.loss.name, run.loss.hardening, "epoch" in state.left


def _seconds_of_attacks(training: Training, data: Dataset, specs: Sequence[AttackSpec]) -> Seconds:
    """Seconds of each attack, by its key, on all the images that it attacks."""
    seconds: dict[tuple[AttackSpec, int], float] = {}
    scale = training.run.recipe.input_scale
    for alike in dict.fromkeys(_alike(spec, data) for spec in specs):
        spec, images = alike
        # Images made on the network itself cost as much as those made on another.
        sources = {} if spec.source is None else {spec.source: training.classifier}

        def attack(count: int, spec: AttackSpec = spec, sources: dict[int, HRClassifier] = sources) -> float:
            tried = replace(spec, images=count)
            return _seconds(lambda: dict(measure_all([tried], training.classifier, data, scale, sources)))

        long = spec.name in LONG_ATTACKS or isinstance(spec.name, Reference)  # of a user's own nobody knows
        few, more = (min(images, n) for n in (OF_LONG_ATTACKS if long else FEW_AND_MORE))
        batches = -(-images // BATCH_SIZE) if long else 1
        seconds[alike] = extrapolated(attack(few), attack(more), few, more, images, batches=batches)
    return {spec.key(): seconds[_alike(spec, data)] for spec in specs}


def extrapolated(
    seconds_of_few: float, seconds_of_more: float, few: int, more: int, images: int, *, batches: int = 1
) -> float:
    """Seconds for so many images, from those for few and for more: so much for each, and a constant for each batch."""
    each = max(0.0, (seconds_of_more - seconds_of_few) / (more - few)) if more > few else 0.0
    constant = max(0.0, seconds_of_more - each * more)
    return each * images + constant * batches


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


def _alike(spec: AttackSpec, data: Dataset) -> tuple[AttackSpec, int]:
    """An attack that costs as much, and the images that it attacks."""
    images = len(data.test if spec.split == "test" else data.validation)
    images = min(spec.images, images) if spec.images else images
    eps = spec.eps if spec.name in LONG_ATTACKS or not spec.eps else 0.1
    return replace(spec, eps=eps, images=0), images


def _first(split: Split, count: int) -> Split:
    return Split(split.images[:count], split.labels[:count])


def _seconds(call: Callable[[], object]) -> float:
    """The median of a few calls, of one if it is long."""
    taken: list[float] = []
    while not taken or (sum(taken) < MOMENT and len(taken) < CALLS):
        begun = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begun)
    return median(taken)
