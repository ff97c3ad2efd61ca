"""Several runs of one recipe, trained at once; what each leaves is what it would leave alone."""

import time
from collections.abc import Sequence

import torch

from benchmarks.config import RunSpec
from benchmarks.data import Dataset
from benchmarks.references import Reference
from benchmarks.store import Store
from benchmarks.training._loop import Training, TrainingError
from benchmarks.training._stack import Stack


def train_together(runs: Sequence[RunSpec], data: Dataset, store: Store) -> dict[RunSpec, TrainingError]:
    """
    Train runs of one data set and recipe from where they stand, as :func:`benchmarks.training.train` does each alone.

    Each run has the same key, initial weights, order of images, states and curve as alone, to the rounding of sums:
    those of stacked networks are added up in another order. Runs that stand at the same epoch are trained at once,
    others after them. A run that is interrupted can go on alone, or with others. The seconds that the log gives are of
    an epoch of all the runs.

    :param runs: What to train; of each the lock is the caller's.
    :param data: The data set of all.
    :param store: Where states, curves and weights go.
    :return: The runs that cannot go on, and why; the others are trained.
    :raises ValueError: If the runs differ in more than loss and seed, or one cannot be stacked.
    """
    if len({(run.dataset, run.recipe) for run in runs}) > 1:
        raise ValueError(f"expected runs of one data set and recipe, but got {', '.join(map(str, runs))}")
    if alone := [str(run) for run in runs if not can_be_stacked(run)]:
        raise ValueError(f"expected runs that can be stacked, not hardened and all ours, but got {alone}")
    by_epoch: dict[int, list[Training]] = {}
    for run in runs:
        training = Training(run, data)
        training.resume(store)
        by_epoch.setdefault(len(training.curve), []).append(training)
    failures: dict[RunSpec, TrainingError] = {}
    for trainings in by_epoch.values():
        failures |= _train(trainings, store)
    return failures


def can_be_stacked(run: RunSpec) -> bool:
    """Whether a run can be trained at once with others: not with a network or loss that vmap is not known to take."""
    own = isinstance(run.recipe.model, Reference) or isinstance(run.loss.name, Reference)
    return run.loss.hardening is None and not own


def _train(trainings: Sequence[Training], store: Store) -> dict[RunSpec, TrainingError]:
    """Train runs that stand at the same epoch; returns those that cannot go on, and why."""
    first, recipe = trainings[0], trainings[0].run.recipe
    stack = Stack(
        recipe,
        [training.model for training in trainings],
        [training.run.loss for training in trainings],
        [training.optimizer for training in trainings],
        *first.train,
    )
    failures: dict[RunSpec, TrainingError] = {}
    for epoch in range(len(first.curve), recipe.epochs):
        begun = time.perf_counter()
        orders = torch.stack([training.shuffled() for training in trainings])
        rows = stack.epoch(orders, batch_size=recipe.batch_size, lr=recipe.lr_at(epoch))
        trained = time.perf_counter()
        accuracies = stack.accuracies(*first.validation)
        going = [training.run for training in trainings if training.run not in failures]
        for training, row, right in zip(trainings, rows, accuracies, strict=True):
            if training.run in going:
                try:
                    training.keep(row | {"validation_accuracy": right}, store)
                except TrainingError as error:
                    failures[training.run] = error
        seconds = {"training": round(trained - begun, 3), "seconds": round(time.perf_counter() - begun, 3)}
        for run in going:
            if run not in failures:
                store.log(run, "epoch", epoch=epoch + 1, **seconds, together=len(trainings))
        if len(failures) == len(trainings):
            return failures
    stack.dissolve()
    for training in trainings:
        if training.run not in failures:
            try:
                training.finish(store)
            except TrainingError as error:
                failures[training.run] = error
    return failures
