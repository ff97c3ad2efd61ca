"""Jobs through any executor into the store; and the executors of one machine, this process or a pool of them."""

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from multiprocessing import resource_tracker
from pathlib import Path
from queue import LifoQueue
from typing import Any

import joblib
import torch
from filelock import Timeout

from benchmarks.config import Grid, Recipe, RunSpec
from benchmarks.execution._checks import try_own_things
from benchmarks.execution._dask import ClusterError
from benchmarks.execution._jobs import MOMENT, Group, Job, Outcome, WorkerDiedError, execute_together, load_data
from benchmarks.store import DamagedError, Store, StoreError
from benchmarks.store._atomic import expect_writable, writing
from benchmarks.training import can_be_recorded

# What torch imports, for a second or two, with the first optimizer, and what the digits come with.
PRELOAD = ("benchmarks.execution", "torch._dynamo", "sklearn.datasets")

OnEnd = Callable[[RunSpec, Outcome], None]


class InProcess(Executor):
    """An executor that does each job at once, here."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call the function and return its outcome as a future."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class Processes(Executor):
    """
    Processes, each in a pool of its own: one that dies breaks its own job's future and no other.

    In a single ProcessPoolExecutor one death breaks every future there is, whosever fault it was.

    :param workers: How many; they start as there are jobs for them.
    """

    def __init__(self, workers: int) -> None:
        # Its start unblocks interrupts in the thread that needs it first, whose children would inherit that.
        if os.name == "posix":
            resource_tracker.ensure_running()
        self._others = multiprocessing.active_children()
        self._futures: list[Future[Any]] = []
        self._feeders = ThreadPoolExecutor(workers, initializer=_keep_interrupts_from_children)
        # The one that was used last comes first: others need not start.
        self._idle: LifoQueue[ProcessPoolExecutor] = LifoQueue()
        for _ in range(workers):
            self._idle.put(_one_process())

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Have the next process that is idle call the function."""
        self._futures.append(self._feeders.submit(self._do, fn, args, kwargs))
        return self._futures[-1]

    def _do(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        process = self._idle.get()
        try:
            try:
                return process.submit(fn, *args, **kwargs).result()
            except BrokenPipeError as error:  # it was ended while it started
                raise BrokenExecutor("the process ended before it began") from error
        except BrokenExecutor:
            process.shutdown()
            process = _one_process()
            raise
        finally:
            self._idle.put(process)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more jobs; end the processes once they have done theirs."""
        self._feeders.shutdown(wait=wait, cancel_futures=cancel_futures)
        while wait and not self._idle.empty():
            self._idle.get().shutdown()

    def kill(self) -> None:
        """End the processes at once, whatever they do: what a run has kept is whole at any moment."""
        self._feeders.shutdown(wait=False, cancel_futures=True)
        while True:  # a process may be about to start
            for child in multiprocessing.active_children():
                if child not in self._others:
                    child.terminate()
            if all(future.done() for future in self._futures):
                break
            time.sleep(0.05)
        self.shutdown()


@contextmanager
def local(workers: int) -> Iterator[Executor]:
    """A pool of processes; for a single worker, this process itself. An interrupt ends its workers at once."""
    if workers == 1:
        yield InProcess()
        return
    pool = Processes(workers)
    try:
        yield pool
    except BaseException:
        pool.kill()
        raise
    pool.shutdown()


def available_cpus() -> int:
    """Processors that this process may use, by its affinity and by its container's quota."""
    return int(joblib.cpu_count())


def _one_process() -> ProcessPoolExecutor:
    # A server that has imported torch and ART once forks in a moment what would else import them in seconds. Not where
    # there is a GPU: whatever began to use it in the server could not be used in a fork.
    if "forkserver" in multiprocessing.get_all_start_methods() and not torch.cuda.is_available():
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(PRELOAD))
        return ProcessPoolExecutor(1, context, _begin)
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _begin)


def _begin() -> None:
    _keep_interrupts_from_children()  # again: the server may be somebody else's, who has not
    # A parent that is killed cannot end its workers, which would wait for its next job for ever.
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _keep_interrupts_from_children() -> None:
    # Ctrl-C reaches the whole process group; the parent alone decides what becomes of its workers. A process inherits
    # the mask of the thread that starts it.
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def prepare(grid: Grid, store: Store, *, data_dir: Path, download: bool) -> None:
    """
    Load each data set once, and try each of a user's own things, so that what is amiss is known before any work starts.

    :raises ConfigError: If a user's own network, loss or attack is not what it must be.
    :raises DataError: If a data set cannot be had.
    :raises StoreError: If the store cannot be written, or has runs on other data of the same name.
    """
    expect_writable(store.root)
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
    :param executor: Opens one: a pool of processes, a cluster's, or :class:`InProcess`.
    :param on_end: Called for each run as it ends.
    :param together: Of the runs of one data set and recipe, how many a worker trains at once.
    :return: How many jobs failed.
    :raises ClusterError: If a cluster is lost; its runs are then neither done nor failed.
    """
    for root in {job.store for job in jobs}:
        with writing(root):
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
        if not can_be_recorded(job.run):
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
