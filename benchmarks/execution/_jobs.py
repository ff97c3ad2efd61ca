"""Jobs of a worker: training of runs, and their evaluation."""

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

# Seconds to wait for a lock. A process that queries whether a run is locked holds the lock for a short time.
LOCK_TIMEOUT = 0.1

# Inode, size and times of a file, which identify its content; None if the file does not exist.
FileState = tuple[int, int, int, int] | None

# torch's number of threads and its random generator belong to the process. A cluster's worker may execute several jobs
# in threads of one process, so jobs take turns.
_one_job_at_a_time = threading.Lock()


class WorkerDiedError(RuntimeError):
    """A worker process died during a run; the message names the run."""


@dataclass(frozen=True)
class Job:
    """Everything that a worker needs to execute one run, on any machine."""

    run: RunSpec
    attacks: tuple[AttackSpec, ...]
    store: Path
    data_dir: Path
    wait: bool = False
    """Whether to wait if another process executes the same run; otherwise the run is left to that process."""

    @property
    def resources(self) -> dict[str, float]:
        """Resources that a cluster's worker needs: {"GPU": 1}, or {"CPU": number of threads}."""
        recipe = self.run.recipe
        return {"GPU": 1.0} if recipe.device == "gpu" else {"CPU": float(recipe.threads)}


@dataclass(frozen=True)
class Group:
    """Jobs whose runs one worker trains together."""

    jobs: tuple[Job, ...]

    @property
    def resources(self) -> dict[str, float]:
        """Resources that a cluster's worker needs: the same as for one of the jobs."""
        return self.jobs[0].resources


@dataclass(frozen=True)
class Outcome:
    """Result of a job."""

    error: BaseException | None = None
    """Error of a failed job; it is stored in the store, too."""
    busy: bool = False
    """Whether the run was left to another process."""
    messages: tuple[str, ...] = ()
    """Messages for the user, such as damaged files that were set aside."""


def execute(job: Job) -> Outcome:
    """
    Execute a job: complete the training of its run, and compute the missing records.

    The operation is idempotent, so a lost job can be submitted again. If another process is executing the run, the job
    is not executed.

    :raises Exception: Any error of the run, after it has been stored in the store.
    """
    # The store exists on the machine of the command. A worker must not create it, because nobody would read it.
    if not job.store.is_dir():
        raise StoreError(
            f"expected the store {job.store} on {platform.node()}, but it does not exist: it must be on a disk that "
            "all workers share, under the same path"
        )
    store = Store(job.store)
    try:
        messages = _train_sources(job)
    except Exception as error:
        with suppress(StoreError, OSError, Timeout), store.lock(job.run).acquire(timeout=LOCK_TIMEOUT):
            _store_error(store, job.run, error)
        raise
    try:
        with _one_job_at_a_time, store.lock(job.run).acquire(timeout=-1 if job.wait else LOCK_TIMEOUT):
            try:
                messages += store.set_damaged_aside(job.run, job.attacks)
                messages += _train_and_evaluate(job, store)
            except Exception as error:
                with suppress(StoreError, OSError):  # the disk may be full
                    _store_error(store, job.run, error)
                raise
    except Timeout:
        return Outcome(busy=True)
    return Outcome(messages=tuple(messages))


def execute_together(group: Group) -> tuple[Outcome, ...]:
    """
    Execute the jobs of a group as :func:`execute` does, but train their untrained runs together.

    :return: The outcomes, in the order of the jobs; errors are part of the outcomes.
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
    """Train the group's runs together where possible; other runs, such as locked ones, are left to :func:`execute`."""
    outcomes = dict.fromkeys(group.jobs, Outcome())
    with _one_job_at_a_time, ExitStack() as locks:
        ready: list[Job] = []
        dataset: Dataset | None = None
        for job in group.jobs:
            store = Store(job.store)
            with suppress(Exception):  # execute raises the same error again, and reports it
                if job.store.is_dir() and not store.is_trained(job.run):
                    locks.enter_context(store.lock(job.run).acquire(timeout=LOCK_TIMEOUT))
                    outcomes[job] = Outcome(messages=tuple(store.set_damaged_aside(job.run, job.attacks)))
                    dataset = _prepare(job, store)
                    if not store.is_trained(job.run):
                        ready.append(job)
        if dataset is not None and len(ready) > 1:
            for job, error in _train_ready(ready, dataset).items():
                outcomes[job] = replace(outcomes[job], error=error)
    return outcomes


def _train_ready(jobs: list[Job], dataset: Dataset) -> dict[Job, Exception]:
    """Train the jobs' runs together, store the errors, and return the failed jobs with their errors."""
    store, runs = Store(jobs[0].store), [job.run for job in jobs]
    failures: dict[RunSpec, Exception] = {}
    with threads(jobs[0].run.recipe.threads), tf32(False):
        try:
            for run in runs:
                store.log(run, "training", from_epoch=store.epochs_done(run) + 1, together=len(runs))
            failures |= train_together(runs, dataset, store)
        except Exception as joint_error:  # an error of the joint training fails all of its runs
            failures = dict.fromkeys(runs, joint_error)
    for run, error in failures.items():
        with suppress(StoreError, OSError):  # the disk may be full
            _store_error(store, run, error)
    return {job: failures[job.run] for job in jobs if job.run in failures}


def _store_error(store: Store, run: RunSpec, error: Exception) -> None:
    store.save_error(run, "".join(traceback.format_exception(error)))
    store.log(run, "failed", message=str(error))


def _train_sources(job: Job) -> list[str]:
    """
    Train the untrained source networks of the job's transfer attacks, and return messages for the user.

    This precedes the lock of the run: a process that holds a run's lock never waits for another run's lock, so that no
    two processes wait for each other.
    """
    transfers = tuple(attack for attack in job.attacks if attack.source is not None)
    if Store(job.store).is_done(job.run, transfers):
        return []
    seeds = {attack.source for attack in transfers if attack.source is not None}
    sources = [job.run.source(seed) for seed in sorted(seeds)]
    outcomes = [execute(replace(job, run=source, attacks=(), wait=True)) for source in sources]
    return [message for outcome in outcomes for message in outcome.messages]


def _train_and_evaluate(job: Job, store: Store) -> list[str]:
    """Train and evaluate the job's run, and return messages for the user."""
    dataset = _prepare(job, store)
    with threads(job.run.recipe.threads), tf32(False):
        if not store.is_trained(job.run):
            store.log(job.run, "training", from_epoch=store.epochs_done(job.run) + 1)
            train(job.run, dataset, store)
        evaluate(job.run, job.attacks, dataset, store)
    initial = store.other_versions(job.run)
    return [f"started with {initial}, and resumed with {versions()}"] if initial else []


def _prepare(job: Job, store: Store) -> Dataset:
    """Prepare the run's folder for execution, and return the run's data set."""
    recipe = job.run.recipe
    if recipe.device == "gpu":
        expect_gpu(str(job.run))
    dataset = load_data(job.run.dataset, recipe, data_dir=job.data_dir)
    store.open(job.run, dataset.fingerprint)
    return dataset


def expect_gpu(user: str) -> None:
    """
    Make sure that torch can use a GPU; without one, ART would use the CPU silently.

    :param user: The option or run that needs the GPU, for the message.
    :raises ConfigError: If there is no GPU.
    """
    if not torch.cuda.is_available():
        raise ConfigError(f"expected a GPU that torch can use for {user}, but there is none")


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Set torch's number of CPU threads within a with block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def load_data(name: str, recipe: Recipe, *, data_dir: Path, download: bool = False) -> Dataset:
    """
    Return a data set, split by the recipe; the last data set is cached until its files change.

    :return: The data set. Its arrays are read-only, because all callers share them.
    :raises DataError: See :func:`benchmarks.data.load`.
    """
    # The file states are queried before the files are read, so that a change in between is detected by the next call.
    states = tuple(_file_state(path) for path in data.files(name, data_dir))
    return _load(name, data_dir, download, recipe.validation_size, recipe.split_seed, states)


# One entry: a worker executes the runs of one data set before the next, and CIFAR-10 and SVHN take 200 and 300 MB.
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
        stat = path.stat()
    except (OSError, ValueError):  # no such file, or an invalid name; data.load decides whether that is an error
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
