"""Runs -> their checkpoints and learning curves, one or several at once."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.config import RunSpec
from benchmarks.data import Dataset
from benchmarks.references import Reference
from benchmarks.store import Store
from benchmarks.training._loop import Training, TrainingError
from benchmarks.training._recorded import Recorded

# On a GPU states are kept as often as it costs this share of the time, or after so many seconds.
SHARE, PROMISED = 0.05, 30.0


def train(run: RunSpec, data: Dataset, store: Store) -> None:
    """
    Train a run from where it stands, keep its state after every epoch, and its weights at the end.

    The seed fixes the initial weights and the order of the images, whatever the loss, so that the losses of one seed
    are compared as pairs; in adversarial training ART draws the order. A run that is resumed ends, on the CPU, in the
    same bits as one that was not interrupted. On a GPU, where an epoch may be shorter than the writing of a state, what
    is lost is at most an epoch or 30 seconds, whichever is longer. A row of the curve holds epoch (from 1), lr,
    train_loss (mean over the batches, nats) and train_accuracy, both as the epoch went by, or, of adversarial training,
    after it on the images as they are; validation_accuracy (after it); and, every so many epochs, for each attack that
    the recipe names: attacks, the accuracy under it, and bounds, as a record has them under "labels". The log gets each
    epoch's seconds, and those of its training alone.

    :param run: What to train.
    :param data: Its data set.
    :param store: Where state, curve and weights go; the run's lock is the caller's.
    :raises TrainingError: If the loss is no longer finite, or no temperature gives the network the run's margin.
    """
    for error in train_together([run], data, store).values():
        raise error


def train_together(runs: Sequence[RunSpec], data: Dataset, store: Store) -> dict[RunSpec, TrainingError]:
    """
    Train runs of one data set and recipe from where they stand, as :func:`train` does each alone.

    Each run has the same key, initial weights, order of images, states and curve as alone: to the bit on the CPU, where
    they take turns, and to the rounding of sums on a GPU, where those that can be are trained in recorded steps. Runs
    that stand at the same epoch are trained at once, others after them. A run that is interrupted can go on alone, or
    with others. The seconds that the log gives are of an epoch of all the runs.

    :param runs: What to train; of each the lock is the caller's.
    :param data: The data set of all.
    :param store: Where states, curves and weights go.
    :return: The runs that cannot go on, and why; the others are trained.
    :raises ValueError: If the runs differ in more than loss and seed.
    """
    if len({(run.dataset, run.recipe) for run in runs}) > 1:
        raise ValueError(f"expected runs of one data set and recipe, but got {', '.join(map(str, runs))}")
    by_epoch: dict[int, list[Training]] = {}
    for run in runs:
        training = Training(run, data)
        training.resume(store)
        by_epoch.setdefault(len(training.curve), []).append(training)
    failures: dict[RunSpec, TrainingError] = {}
    for trainings in by_epoch.values():
        failures |= _train(trainings, store)
    return failures


def can_be_recorded(run: RunSpec) -> bool:
    """Return whether the steps of a run are the same at each time: what is ours, and no adversarial training."""
    own = isinstance(run.recipe.model, Reference) or isinstance(run.loss.name, Reference)
    return run.loss.hardening is None and not own


def stepping(
    trainings: Sequence[Training], tell: Callable[..., None] = lambda **_: None
) -> Callable[[int], list[dict[str, Any]]]:
    """
    Return what trains runs that stand at the same epoch for one more, counted from 0, and returns what each has told.

    On a GPU their steps are recorded, if they can be; else the runs take turns.

    :param tell: Called with the way in which steps are recorded, and the milliseconds of one by each way tried.
    """
    first = trainings[0]
    recordable = first.device.type == "cuda" and all(can_be_recorded(training.run) for training in trainings)
    with tf32(first.run.recipe.precision == "tf32"):
        recorded = Recorded(trainings) if recordable else None
    if recorded is not None:
        tell(way=recorded.way, milliseconds={name: round(1e3 * s, 3) for name, s in recorded.seconds.items()})

    def epoch(number: int) -> list[dict[str, Any]]:
        with tf32(first.run.recipe.precision == "tf32"):
            return [one.epoch(number) for one in trainings] if recorded is None else recorded.epoch(number)

    return epoch


def _train(trainings: Sequence[Training], store: Store) -> dict[RunSpec, TrainingError]:
    """Train runs that stand at the same epoch; returns those that cannot go on, and why."""
    recipe, failures = trainings[0].run.recipe, dict[RunSpec, TrainingError]()

    def going(work: Callable[[Training], Any]) -> list[Training]:
        """Do the work for each that has not failed; returns those that it has not made fail."""
        for training in trainings:
            if training.run not in failures:
                try:
                    work(training)
                except TrainingError as error:
                    failures[training.run] = error
        return [training for training in trainings if training.run not in failures]

    def tell(**values: Any) -> None:
        for training in trainings:
            store.log(training.run, "recorded", **values)

    train_epoch = stepping(trainings, tell)
    with _keeping(store, beside=trainings[0].device.type == "cuda") as keep:
        for epoch in range(len(trainings[0].curve), recipe.epochs):
            begun = time.perf_counter()
            told = dict(zip(trainings, train_epoch(epoch), strict=True))
            trained = time.perf_counter()
            left = going(lambda training: training.extend(told[training]))  # noqa: B023  # called at once
            keep(left, epoch + 1 == recipe.epochs)
            seconds = {"training": round(trained - begun, 3), "seconds": round(time.perf_counter() - begun, 3)}
            together = {"together": len(trainings)} if len(trainings) > 1 else {}
            for training in left:
                store.log(training.run, "epoch", epoch=epoch + 1, **seconds, **together)
            if not left:
                return failures
    going(lambda training: training.finish(store))
    return failures


@contextmanager
def _keeping(store: Store, *, beside: bool) -> Iterator[Callable[[Sequence[Training], bool], None]]:
    """
    Yield what keeps the states of runs, given those and whether it is the last time.

    :param beside: Whether to write beside the next epoch, and no oftener than is worth it; else at once, every time.
    """
    kept, cost = time.perf_counter(), 0.0
    writing: Future[None] | None = None

    def write(states: list[tuple[RunSpec, dict[str, Any]]]) -> None:
        nonlocal cost
        begun = time.perf_counter()
        for run, state in states:
            store.save_state(run, state)
        cost = time.perf_counter() - begun

    def keep(trainings: Sequence[Training], last: bool) -> None:
        nonlocal kept, writing
        if not beside:
            write([(training.run, training.state()) for training in trainings])
            return
        now = time.perf_counter()
        due = last or now - kept >= PROMISED
        if due or (cost <= SHARE * (now - kept) and (writing is None or writing.done())):
            if writing is not None:
                writing.result()
            states = [(training.run, _copied(training.state())) for training in trainings]
            writing, kept = writer.submit(write, states), now

    with ThreadPoolExecutor(1) as writer:
        yield keep
        if writing is not None:
            writing.result()


def _copied(values: Any) -> Any:
    """Return a state, with copies on the CPU of its tensors and lists: the next epoch changes them."""
    if isinstance(values, torch.Tensor):
        return values.detach().to("cpu", copy=True)
    if isinstance(values, dict):
        return {name: _copied(value) for name, value in values.items()}
    return [_copied(value) for value in values] if isinstance(values, list) else values


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Have a GPU round the factors of float32 products to TF32's 10 bits, or not, and as before afterwards."""
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    products.allow_tf32 = convolutions.allow_tf32 = allowed
    try:
        yield
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before
