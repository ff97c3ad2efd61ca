"""Plan -> any concurrent.futures.Executor -> store."""

import platform
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, as_completed
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from filelock import Timeout

from benchmarks import shared_data
from benchmarks.cluster import ClusterError
from benchmarks.config import AttackSpec, ConfigError, Grid, Recipe, RunSpec
from benchmarks.data import Dataset
from benchmarks.evaluation import evaluate
from benchmarks.executors import InProcess
from benchmarks.store import DamagedError, Store, StoreError, versions
from benchmarks.together import can_be_stacked, train_together
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
    with threads(jobs[0].run.recipe.threads):
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
    with threads(job.run.recipe.threads):
        if not store.is_trained(job.run):
            store.log(job.run, "training", from_epoch=store.epochs_done(job.run) + 1)
            train(job.run, dataset, store)
        evaluate(job.run, job.attacks, dataset, store)
    others = store.other_versions(job.run)
    return [f"begun with {others}, and gone on with {versions()}"] if others else []


def _made_ready(job: Job, store: Store) -> Dataset:
    """Make the run's folder ready for work; returns its data."""
    recipe = job.run.recipe
    if recipe.device == "gpu" and not torch.cuda.is_available():  # ART would go on without, on the CPU
        raise ConfigError(f"expected a GPU that torch can use for {job.run}, but there is none")
    dataset = load_data(job.run.dataset, recipe, data_dir=job.data_dir)
    store.open(job.run, dataset.fingerprint)
    return dataset


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
    """A data set, split as the recipe says; read once per process, as :func:`benchmarks.shared_data.load` does."""
    return shared_data.load(
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


def run_all(
    jobs: list[Job], executor: Callable[[], AbstractContextManager[Executor]], on_end: OnEnd, *, together: int = 1
) -> int:
    """
    Send every job to an executor and wait; a job that fails is recorded in the store and the others go on.

    A run whose worker died is begun once more when the others are through, and alone: memory may have been short, or
    another run on the same worker may have ended it. (Before Dask says that a worker died, it has begun the run again
    as often as its scheduler's allowed-failures.) Runs that another process works on are left to it at first, and
    waited for in the end.

    :param jobs: What to do.
    :param executor: Opens one: a pool of processes, a cluster's, or :class:`benchmarks.executors.InProcess`.
    :param on_end: Called for each run as it ends.
    :param together: Of the runs of one data set and recipe, how many a worker trains at once.
    :return: How many jobs failed.
    :raises ClusterError: If a cluster is lost; its runs are then neither done nor failed.
    """
    for root in {job.store for job in jobs}:
        root.mkdir(parents=True, exist_ok=True)
    died: set[RunSpec] = set()
    failures = 0
    rounds = deque([grouped(jobs, together)])
    with executor() as opened:
        while rounds:
            busy: list[Group] = []
            for job, outcome in _ended(rounds.popleft(), opened):
                if isinstance(outcome.error, WorkerDiedError) and job.run not in died:
                    died.add(job.run)
                    rounds.append([Group((job,))])
                elif outcome.busy:
                    busy.append(Group((replace(job, wait=True),)))
                else:
                    failures += outcome.error is not None
                    _keep_error_of_a_dead_worker(job, outcome.error)
                    on_end(job.run, outcome)
            if busy:
                rounds.append(busy)
    return failures


def grouped(jobs: list[Job], together: int) -> list[Group]:
    """Jobs in groups of at most so many that can be trained at once, in their order."""
    alike: dict[tuple[str, Recipe], list[Job]] = {}
    groups: list[list[Job]] = []
    for job in jobs:
        kind = (job.run.dataset, job.run.recipe)
        if not can_be_stacked(job.run):
            groups.append([job])
        elif len(alike.get(kind, ())) in (0, together):
            alike[kind] = [job]
            groups.append(alike[kind])
        else:
            alike[kind].append(job)
    return [Group(tuple(group)) for group in groups]


def _keep_error_of_a_dead_worker(job: Job, error: BaseException | None) -> None:
    """An error that came from within the job is in the store already; one that ended the worker is not."""
    store = Store(job.store)
    if error is not None and (isinstance(error, WorkerDiedError) or store.error(job.run) is None):
        with suppress(StoreError, OSError, Timeout), store.lock(job.run).acquire(timeout=MOMENT):
            store.save_error(job.run, "".join(traceback.format_exception(error)))


def _ended(groups: list[Group], executor: Executor) -> Iterator[tuple[Job, Outcome]]:
    """Each job with its outcome, as its group ends."""
    if isinstance(executor, InProcess):  # it ends a group before it takes the next
        ended = ((group, executor.submit(execute_together, group)) for group in groups)
    else:
        futures = {executor.submit(execute_together, group): group for group in groups}
        ended = ((futures[future], future) for future in as_completed(futures))
    for group, future in ended:
        yield from zip(group.jobs, _outcomes(group, future), strict=True)


def _outcomes(group: Group, future: Future[tuple[Outcome, ...]]) -> tuple[Outcome, ...]:
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, ClusterError):
        raise error
    if isinstance(error, BrokenExecutor):
        return tuple(Outcome(error=_death(job, error)) for job in group.jobs)
    return tuple(Outcome(error=error) for _ in group.jobs)


def _death(job: Job, cause: BrokenExecutor) -> WorkerDiedError:
    died = WorkerDiedError(f"the worker that did {job.run} died, perhaps for want of memory: {cause}")
    died.__cause__ = cause
    return died
