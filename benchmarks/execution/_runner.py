"""Jobs through any concurrent.futures.Executor into the store."""

import traceback
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, as_completed
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from pathlib import Path

from filelock import Timeout

from benchmarks.config import Grid, Recipe, RunSpec
from benchmarks.execution._checks import try_own_things
from benchmarks.execution._dask import ClusterError
from benchmarks.execution._jobs import MOMENT, Group, Job, Outcome, WorkerDiedError, execute_together, load_data
from benchmarks.execution._local import InProcess
from benchmarks.store import DamagedError, Store, StoreError
from benchmarks.training import can_be_stacked

OnEnd = Callable[[RunSpec, Outcome], None]


def prepare(grid: Grid, store: Store, *, data_dir: Path, download: bool) -> None:
    """
    Load each data set once, and try each of a user's own things, so that what is amiss is known before any work starts.

    :raises ConfigError: If a user's own network, loss or attack is not what it must be.
    :raises DataError: If a data set cannot be had.
    :raises StoreError: If the store has runs on other data of the same name.
    """
    for name, recipe in grid.recipes:
        dataset = load_data(name, recipe, data_dir=data_dir, download=download)
        try_own_things(grid, name, recipe, dataset)
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
    :param executor: Opens one: a pool of processes, a cluster's, or :class:`benchmarks.execution._local.InProcess`.
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
