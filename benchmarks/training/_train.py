"""Training of one run, or of several runs together, with storage of states, learning curves and checkpoints."""

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
from benchmarks.training._cuda_graph import Recorded
from benchmarks.training._loop import Training, TrainingError

# On a GPU, states are stored if that takes at most this share of the time, but at least at this interval in seconds.
STORAGE_SHARE, MAX_INTERVAL = 0.05, 30.0


def train(run: RunSpec, data: Dataset, store: Store) -> None:
    """
    Train a run to its last epoch, from its stored state if there is one, and store its checkpoint.

    The seed determines the initial weights and the order of the images, for every loss, so that the losses of one seed
    can be compared as pairs. (In adversarial training ART draws the order.) On the CPU, a resumed run gives the same
    bits as an uninterrupted run, and the state is stored after every epoch. On a GPU, where an epoch may take less time
    than storing a state, an interruption loses at most an epoch or 30 seconds, whichever is longer.

    A row of the learning curve has epoch (from 1), lr, train_loss (mean over the batches, in nats), train_accuracy and
    validation_accuracy. train_loss and train_accuracy are measured during the epoch; in adversarial training they are
    measured after it, on clean images. At the recipe's interval a row also has the results of Fig. 1: attacks, the
    accuracy under each attack, and bounds, see :meth:`benchmarks.record.Record.bounds`. The log has the seconds of each
    epoch, with and without its evaluation.

    :param run: The run; the caller must hold its lock.
    :param data: The run's data set.
    :param store: The store of state, learning curve and checkpoint.
    :raises TrainingError: If the loss is not finite, or if the logits cannot be scaled to the run's margin.
    """
    for error in train_together([run], data, store).values():
        raise error


def train_together(runs: Sequence[RunSpec], data: Dataset, store: Store) -> dict[RunSpec, TrainingError]:
    """
    Train runs of one data set and recipe together, with the results of :func:`train`.

    Each run has the same key, initial weights, order of images, states and curve as if trained alone. On the CPU, where
    the runs take turns, results are identical to the bit. On a GPU, where steps are recorded as CUDA graphs if
    possible, they are equal except for the rounding of sums. Runs with the same number of finished epochs are trained
    together, one such group after the other. An interrupted run can be resumed alone, or together with others. The
    seconds in the log are those of an epoch of all runs.

    :param runs: The runs; the caller must hold their locks.
    :param data: The data set of the runs.
    :param store: The store of states, learning curves and checkpoints.
    :return: The failed runs with their errors; the other runs are trained.
    :raises ValueError: If the runs have different data sets or recipes.
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
    """Return whether the steps of a run can be recorded: no user's model or loss, and no defence."""
    has_user_code = isinstance(run.recipe.model, Reference) or isinstance(run.loss.name, Reference)
    return run.loss.hardening is None and not has_user_code


def epoch_function(
    trainings: Sequence[Training], report: Callable[..., None] = lambda **_: None
) -> Callable[[int], list[dict[str, Any]]]:
    """
    Return a function that trains runs with equal numbers of finished epochs for an epoch, counted from 0.

    It returns train_loss and train_accuracy of each run. On a GPU, steps are recorded as a CUDA graph if possible;
    otherwise the runs take turns.

    :param trainings: The runs.
    :param report: A callback for the kind of recorded steps, and the milliseconds of a step of each kind.
    """
    first = trainings[0]
    recordable = first.device.type == "cuda" and all(can_be_recorded(training.run) for training in trainings)
    with tf32(first.run.recipe.precision == "tf32"):
        recorded = Recorded(trainings) if recordable else None
    if recorded is not None:
        report(way=recorded.way, milliseconds={name: round(1e3 * s, 3) for name, s in recorded.seconds.items()})

    def epoch(number: int) -> list[dict[str, Any]]:
        with tf32(first.run.recipe.precision == "tf32"):
            return [training.epoch(number) for training in trainings] if recorded is None else recorded.epoch(number)

    return epoch


def _train(trainings: Sequence[Training], store: Store) -> dict[RunSpec, TrainingError]:
    """Train runs with equal numbers of finished epochs, and return the failed runs with their errors."""
    recipe, failures = trainings[0].run.recipe, dict[RunSpec, TrainingError]()

    def for_each_active(action: Callable[[Training], Any]) -> list[Training]:
        """Call the action for each run that has not failed, and return the runs that have not failed after it."""
        for training in trainings:
            if training.run not in failures:
                try:
                    action(training)
                except TrainingError as error:
                    failures[training.run] = error
        return [training for training in trainings if training.run not in failures]

    def log_recording(**values: Any) -> None:
        for training in trainings:
            store.log(training.run, "recorded", **values)

    train_epoch = epoch_function(trainings, log_recording)
    with _state_writer(store, asynchronous=trainings[0].device.type == "cuda") as save_states:
        for epoch in range(len(trainings[0].curve), recipe.epochs):
            start = time.perf_counter()
            rows = dict(zip(trainings, train_epoch(epoch), strict=True))
            trained = time.perf_counter()
            active = for_each_active(lambda training: training.extend(rows[training]))  # noqa: B023  # called here
            save_states(active, epoch + 1 == recipe.epochs)
            seconds = {"training": round(trained - start, 3), "seconds": round(time.perf_counter() - start, 3)}
            together = {"together": len(trainings)} if len(trainings) > 1 else {}
            for training in active:
                store.log(training.run, "epoch", epoch=epoch + 1, **seconds, **together)
            if not active:
                return failures
    for_each_active(lambda training: training.finish(store))
    return failures


@contextmanager
def _state_writer(store: Store, *, asynchronous: bool) -> Iterator[Callable[[Sequence[Training], bool], None]]:
    """
    Yield a function that stores the states of runs; its arguments are the runs, and True after the last epoch.

    :param asynchronous: Whether to write in a thread during the next epoch, and to skip writes that would take too
        large a share of the time (see STORAGE_SHARE). Otherwise every call writes before it returns.
    """
    last_save, write_seconds = time.perf_counter(), 0.0
    pending: Future[None] | None = None

    def write(states: list[tuple[RunSpec, dict[str, Any]]]) -> None:
        nonlocal write_seconds
        start = time.perf_counter()
        for run, state in states:
            store.save_state(run, state)
        write_seconds = time.perf_counter() - start

    def save(trainings: Sequence[Training], last: bool) -> None:
        nonlocal last_save, pending
        if not asynchronous:
            write([(training.run, training.state()) for training in trainings])
            return
        now = time.perf_counter()
        due = last or now - last_save >= MAX_INTERVAL
        if due or (write_seconds <= STORAGE_SHARE * (now - last_save) and (pending is None or pending.done())):
            if pending is not None:
                pending.result()  # raises an error of the last write
            states = [(training.run, _copy_to_cpu(training.state())) for training in trainings]
            pending, last_save = executor.submit(write, states), now

    with ThreadPoolExecutor(1) as executor:
        yield save
        if pending is not None:
            pending.result()


def _copy_to_cpu(values: Any) -> Any:
    """Return a state with copies of its tensors and lists on the CPU, which the next epoch does not change."""
    if isinstance(values, torch.Tensor):
        return values.detach().to("cpu", copy=True)
    if isinstance(values, dict):
        return {name: _copy_to_cpu(value) for name, value in values.items()}
    return [_copy_to_cpu(value) for value in values] if isinstance(values, list) else values


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 on a GPU, which rounds the factors of float32 products to 10 bits, within a with block."""
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    products.allow_tf32 = convolutions.allow_tf32 = allowed
    try:
        yield
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before
