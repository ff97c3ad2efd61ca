"""What a worker does: jobs to trained runs and their records."""

import platform
import threading
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from filelock import Timeout

from benchmarks import data
from benchmarks.config import AttackSpec, ConfigError, Recipe, RunSpec
from benchmarks.data import Dataset
from benchmarks.evaluation import evaluate
from benchmarks.store import Store, StoreError, versions
from benchmarks.training import tf32, train, train_together

# Seconds to try for a lock: who looks whether a run is locked holds its lock for a moment.
MOMENT = 0.1

# What tells a file from another, or from itself before a change; None where there is none.
FileState = tuple[int, int, int, int] | None

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

    @property
    def resources(self) -> dict[str, float]:
        """What a worker of a cluster needs for it: {"GPU": 1}, or as many CPU as the run has threads."""
        recipe = self.run.recipe
        return {"GPU": 1.0} if recipe.device == "gpu" else {"CPU": float(recipe.threads)}


@dataclass(frozen=True)
class Group:
    """Jobs whose runs one worker trains at once."""

    jobs: tuple[Job, ...]

    @property
    def resources(self) -> dict[str, float]:
        """What a worker of a cluster needs for it: as for one of them."""
        return self.jobs[0].resources


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    error: BaseException | None = None
    """What made it fail; it is in the store as well."""
    busy: bool = False
    """Whether the run was left to another process."""
    messages: tuple[str, ...] = ()
    """What is to be known about it, such as files that had to be set aside."""


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


def execute_together(group: Group) -> tuple[Outcome, ...]:
    """
    As :func:`execute` for each job, but that the runs that are not yet trained are trained at once.

    :return: The outcomes, in the jobs' order; what makes a run fail is in its outcome.
    """
    outcomes = _train_group(group) if len(group.jobs) > 1 else dict.fromkeys(group.jobs, Outcome())
    for job in group.jobs:
        if outcomes[job].error is None:
            try:
                ended = execute(job)
                outcomes[job] = replace(ended, messages=outcomes[job].messages + ended.messages)
            except Exception as error:
                outcomes[job] = replace(outcomes[job], error=error)
    return tuple(outcomes[job] for job in group.jobs)


def _train_group(group: Group) -> dict[Job, Outcome]:
    """Train at once what can be; all else, such as what another process works on, is left to :func:`execute`."""
    outcomes = dict.fromkeys(group.jobs, Outcome())
    with _one_job_at_a_time, ExitStack() as locks:
        ready: list[Job] = []
        dataset: Dataset | None = None
        for job in group.jobs:
            store = Store(job.store)
            with suppress(Exception):  # execute meets it again, and tells
                if job.store.is_dir() and not store.is_trained(job.run):
                    locks.enter_context(store.lock(job.run).acquire(timeout=MOMENT))
                    outcomes[job] = Outcome(messages=tuple(store.set_damaged_aside(job.run, job.attacks)))
                    dataset = _made_ready(job, store)
                    if not store.is_trained(job.run):
                        ready.append(job)
        if dataset is not None and len(ready) > 1:
            for job, error in _train_ready(ready, dataset).items():
                outcomes[job] = replace(outcomes[job], error=error)
    return outcomes


def _train_ready(jobs: list[Job], dataset: Dataset) -> dict[Job, Exception]:
    """Train at once; returns the jobs that failed, and why, which is in the store as well."""
    store, runs = Store(jobs[0].store), [job.run for job in jobs]
    failures: dict[RunSpec, Exception] = {}
    with threads(jobs[0].run.recipe.threads), tf32(False):
        try:
            for run in runs:
                store.log(run, "training", from_epoch=store.epochs_done(run) + 1, together=len(runs))
            failures |= train_together(runs, dataset, store)
        except Exception as common:
            failures = dict.fromkeys(runs, common)
    for run, error in failures.items():
        with suppress(StoreError, OSError):  # the disk may be full
            _keep_error(store, run, error)
    return {job: failures[job.run] for job in jobs if job.run in failures}


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
    dataset = _made_ready(job, store)
    with threads(job.run.recipe.threads), tf32(False):
        if not store.is_trained(job.run):
            store.log(job.run, "training", from_epoch=store.epochs_done(job.run) + 1)
            train(job.run, dataset, store)
        evaluate(job.run, job.attacks, dataset, store)
    others = store.other_versions(job.run)
    return [f"begun with {others}, and gone on with {versions()}"] if others else []


def _made_ready(job: Job, store: Store) -> Dataset:
    """Make the run's folder ready for work; returns its data."""
    recipe = job.run.recipe
    if recipe.device == "gpu":
        expect_gpu(str(job.run))
    dataset = load_data(job.run.dataset, recipe, data_dir=job.data_dir)
    store.open(job.run, dataset.fingerprint)
    return dataset


def expect_gpu(what: str) -> None:
    """
    Make sure that torch can use a GPU: ART would go on without, on the CPU.

    :param what: What wants it.
    :raises ConfigError: If there is none.
    """
    if not torch.cuda.is_available():
        raise ConfigError(f"expected a GPU that torch can use for {what}, but there is none")


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Torch with so many threads on the CPU, and with as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def load_data(name: str, recipe: Recipe, *, data_dir: Path, download: bool = False) -> Dataset:
    """
    A data set, split as the recipe says; what was loaded last is not read again while its files are as they were.

    :return: A data set with read-only arrays, since all who ask for it share them; its fingerprint is computed once.
    :raises DataError: As :func:`benchmarks.data.load`.
    """
    # Looked at before they are read: a change in between is then seen the next time.
    states = tuple(_file_state(path) for path in data.files(name, data_dir))
    return _load(name, data_dir, download, recipe.validation_size, recipe.split_seed, states)


# One: a worker goes through the runs of one data set before the next, and CIFAR-10 or SVHN is 200 or 300 MB.
@lru_cache(maxsize=1)
def _load(
    name: str, data_dir: Path, download: bool, validation_size: int, split_seed: int, states: tuple[FileState, ...]
) -> Dataset:
    dataset = data.load(
        name, data_dir=data_dir, download=download, validation_size=validation_size, split_seed=split_seed
    )
    for split in (dataset.train, dataset.validation, dataset.test):
        split.images.setflags(write=False)
        split.labels.setflags(write=False)
    return dataset


def _file_state(path: Path) -> FileState:
    try:
        found = path.stat()
    except (OSError, ValueError):  # no such file, or no such name; whether that matters, load knows
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
