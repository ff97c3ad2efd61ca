"""Plan -> any concurrent.futures.Executor -> store."""

import platform
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, as_completed
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from filelock import Timeout

from benchmarks import data
from benchmarks.config import AttackSpec, ConfigError, Grid, Recipe, RunSpec
from benchmarks.data import Dataset
from benchmarks.evaluation import evaluate
from benchmarks.executors import ClusterError, InProcess
from benchmarks.store import DamagedError, Store, StoreError, versions
from benchmarks.training import train

# Seconds to try for a lock: who looks whether a run is locked holds its lock for a moment.
MOMENT = 0.1

# torch's threads, and the generator that initial weights are drawn from, belong to the process; a worker of a cluster
# may do several jobs in one.
_one_job_at_a_time = threading.Lock()


class WorkerDiedError(RuntimeError):
    """A worker that ended in mid-run; says whose."""


@dataclass(frozen=True)
class Job:
    """All that a worker needs to bring one run to its end, wherever it works."""

    run: RunSpec
    attacks: tuple[AttackSpec, ...]
    store: Path
    data_dir: Path
    wait: bool = False
    """Whether to wait for another process that works on the same run, or to leave the run to it."""


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    error: BaseException | None = None
    """What made it fail; it is in the store as well."""
    busy: bool = False
    """Whether the run was left to another process."""
    messages: tuple[str, ...] = ()
    """What is to be known about it, such as files that had to be set aside."""


OnEnd = Callable[[RunSpec, Outcome], None]


def execute(job: Job) -> Outcome:
    """
    Train a run as far as it is not yet trained, and make the records that are missing.

    Doing it twice does nothing the second time, so a job that was lost can simply be sent again. While another process
    works on the run, this one does not.

    :raises Exception: Whatever makes the run fail, having been kept in the store.
    """
    if not job.store.is_dir():  # it is where the command was given; a new one here would be seen by nobody
        raise StoreError(
            f"expected the store {job.store} on {platform.node()}, but it is not there: it must be on a disk that "
            "all workers share, under the same path"
        )
    store = Store(job.store)
    try:
        messages = _train_sources(job)
    except Exception as error:
        with suppress(StoreError, OSError, Timeout), store.lock(job.run).acquire(timeout=MOMENT):
            _keep_error(store, job.run, error)
        raise
    try:
        with _one_job_at_a_time, store.lock(job.run).acquire(timeout=-1 if job.wait else MOMENT):
            try:
                messages += store.set_damaged_aside(job.run, job.attacks)
                messages += _work(job, store)
            except Exception as error:
                with suppress(StoreError, OSError):  # the disk may be full
                    _keep_error(store, job.run, error)
                raise
    except Timeout:
        return Outcome(busy=True)
    return Outcome(messages=tuple(messages))


def _keep_error(store: Store, run: RunSpec, error: Exception) -> None:
    store.save_error(run, "".join(traceback.format_exception(error)))
    store.log(run, "failed", message=str(error))


def _train_sources(job: Job) -> list[str]:
    """
    Train the networks on which attacks make their images, where nobody has; returns what is to be known about it.

    It is done before the run is locked: who holds a run's lock waits for no other.
    """
    needing = tuple(attack for attack in job.attacks if attack.source is not None)
    if Store(job.store).is_done(job.run, needing):
        return []
    seeds = {attack.source for attack in needing if attack.source is not None}
    sources = [job.run.source(seed) for seed in sorted(seeds)]
    outcomes = [execute(replace(job, run=source, attacks=(), wait=True)) for source in sources]
    return [message for outcome in outcomes for message in outcome.messages]


def _work(job: Job, store: Store) -> list[str]:
    """Do the job; returns what is to be known about it."""
    recipe, threads = job.run.recipe, torch.get_num_threads()
    if recipe.device == "gpu" and not torch.cuda.is_available():  # ART would go on without, on the CPU
        raise ConfigError(f"expected a GPU that torch can use for {job.run}, but there is none")
    dataset = load_data(job.run.dataset, recipe, data_dir=job.data_dir)
    store.open(job.run, dataset.fingerprint)
    torch.set_num_threads(recipe.threads)
    try:
        if not store.is_trained(job.run):
            store.log(job.run, "training", from_epoch=store.epochs_done(job.run) + 1)
            train(job.run, dataset, store)
        evaluate(job.run, job.attacks, dataset, store)
    finally:
        torch.set_num_threads(threads)
    others = store.other_versions(job.run)
    return [f"begun with {others}, and gone on with {versions()}"] if others else []


def load_data(name: str, recipe: Recipe, *, data_dir: Path, download: bool = False) -> Dataset:
    """A data set, split as the recipe says."""
    return data.load(
        name,
        data_dir=data_dir,
        download=download,
        validation_size=recipe.validation_size,
        split_seed=recipe.split_seed,
    )


def prepare(grid: Grid, store: Store, *, data_dir: Path, download: bool) -> None:
    """
    Load each data set once, so that a missing or damaged file is known before any work starts.

    :raises DataError: If a data set cannot be had.
    :raises StoreError: If the store has runs on other data of the same name.
    """
    for name, recipe in grid.recipes:
        dataset = load_data(name, recipe, data_dir=data_dir, download=download)
        for run in grid.runs():
            if run.dataset == name:
                with suppress(DamagedError):  # set aside, and told, when the run is worked on
                    store.check(run, dataset.fingerprint)


def missing_runs(grid: Grid, store: Store) -> list[RunSpec]:
    """The runs of which something is not there, or cannot be used."""
    return [run for run in grid.runs() if not store.is_done(run, grid.attacks)]


def run_all(jobs: list[Job], executor: Callable[[], AbstractContextManager[Executor]], on_end: OnEnd) -> int:
    """
    Send every job to an executor and wait; a job that fails is recorded in the store and the others go on.

    A run whose worker died is begun once more when the others are through, and alone: memory may have been short, or
    another run on the same worker may have ended it. (Before Dask says that a worker died, it has begun the run again
    as often as its scheduler's allowed-failures.) Runs that another process works on are left to it at first, and
    waited for in the end.

    :param jobs: What to do.
    :param executor: Opens one: a pool of processes, a cluster's, or :class:`benchmarks.executors.InProcess`.
    :param on_end: Called for each run as it ends.
    :return: How many jobs failed.
    :raises ClusterError: If a cluster is lost; its runs are then neither done nor failed.
    """
    for root in {job.store for job in jobs}:
        root.mkdir(parents=True, exist_ok=True)
    died: set[RunSpec] = set()
    failures = 0
    batches = deque([jobs])
    with executor() as opened:
        while batches:
            busy: list[Job] = []
            for job, outcome in _ended(batches.popleft(), opened):
                if isinstance(outcome.error, WorkerDiedError) and job.run not in died:
                    died.add(job.run)
                    batches.append([job])
                elif outcome.busy:
                    busy.append(replace(job, wait=True))
                else:
                    failures += outcome.error is not None
                    _keep_error_of_a_dead_worker(job, outcome.error)
                    on_end(job.run, outcome)
            if busy:
                batches.append(busy)
    return failures


def _keep_error_of_a_dead_worker(job: Job, error: BaseException | None) -> None:
    """An error that came from within the job is in the store already; one that ended the worker is not."""
    store = Store(job.store)
    if error is not None and (isinstance(error, WorkerDiedError) or store.error(job.run) is None):
        with suppress(StoreError, OSError, Timeout), store.lock(job.run).acquire(timeout=MOMENT):
            store.save_error(job.run, "".join(traceback.format_exception(error)))


def _ended(jobs: list[Job], executor: Executor) -> Iterator[tuple[Job, Outcome]]:
    """Each job with its outcome, as it ends."""
    if isinstance(executor, InProcess):  # it ends a job before it takes the next
        yield from ((job, _outcome(job, executor.submit(execute, job))) for job in jobs)
    else:
        futures = {executor.submit(execute, job): job for job in jobs}
        yield from ((futures[future], _outcome(futures[future], future)) for future in as_completed(futures))


def _outcome(job: Job, future: Future[Outcome]) -> Outcome:
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, ClusterError):
        raise error
    if isinstance(error, BrokenExecutor):
        died = WorkerDiedError(f"the worker that did {job.run} died, perhaps for want of memory: {error}")
        died.__cause__ = error
        return Outcome(error=died)
    return Outcome(error=error)
