"""Execution of jobs on any executor, and the executors of one machine: the current process, or a pool of processes."""

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
from tqdm import tqdm

from benchmarks.config import Grid, Recipe, RunSpec
from benchmarks.execution._checks import try_user_code
from benchmarks.execution._dask import ClusterError
from benchmarks.execution._jobs import LOCK_TIMEOUT, Group, Job, Outcome, WorkerDiedError, execute_together, load_data
from benchmarks.store import DamagedError, Store, StoreError, expect_writable
from benchmarks.store._atomic import writing
from benchmarks.training import can_be_recorded

# Modules that the server of worker processes imports once. torch imports torch._dynamo with the first optimizer, which
# takes a second or two.
PRELOAD = ("benchmarks.execution", "torch._dynamo", "sklearn.datasets")

OnEnd = Callable[[RunSpec, Outcome], None]


class InProcess(Executor):
    """Executor that calls each function immediately, in the current process."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call the function and return its result as a future."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class Processes(Executor):
    """
    Pool of processes in which the death of one process breaks only the future of its job.

    In a single ProcessPoolExecutor the death of one process breaks all futures. Here each process is a pool of one.

    :param workers: The maximum number of processes; a process starts when there is a job for it.
    """

    def __init__(self, workers: int) -> None:
        # The resource tracker unblocks SIGINT in the thread that starts it, and later children of the thread would
        # inherit that. So it is started first.
        if os.name == "posix":
            resource_tracker.ensure_running()
        self._foreign_children = multiprocessing.active_children()
        self._futures: list[Future[Any]] = []
        self._feeders = ThreadPoolExecutor(workers, initializer=_block_interrupts)
        # Last in, first out: a used process is preferred, so that no more processes start than necessary.
        self._idle: LifoQueue[ProcessPoolExecutor] = LifoQueue()
        for _ in range(workers):
            self._idle.put(_one_process())

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call the function in the next idle process."""
        self._futures.append(self._feeders.submit(self._call, fn, args, kwargs))
        return self._futures[-1]

    def _call(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        process = self._idle.get()
        try:
            try:
                return process.submit(fn, *args, **kwargs).result()
            except BrokenPipeError as error:  # the process was killed while it started
                raise BrokenExecutor("the process died while it started") from error
        except BrokenExecutor:
            process.shutdown()
            process = _one_process()
            raise
        finally:
            self._idle.put(process)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more jobs, and end the processes when their jobs are done."""
        self._feeders.shutdown(wait=wait, cancel_futures=cancel_futures)
        while wait and not self._idle.empty():
            self._idle.get().shutdown()

    def kill(self) -> None:
        """End the processes immediately. This is safe, because the store's files are written atomically."""
        self._feeders.shutdown(wait=False, cancel_futures=True)
        while True:  # repeated, because a process may start after the list of children is read
            for child in multiprocessing.active_children():
                if child not in self._foreign_children:
                    child.terminate()
            if all(future.done() for future in self._futures):
                break
            time.sleep(0.05)
        self.shutdown()


@contextmanager
def local(workers: int) -> Iterator[Executor]:
    """Yield a pool of processes, or the current process for a single worker; an interrupt ends the workers."""
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
    """Return the number of processors that the process may use, by its affinity and its container's quota."""
    return int(joblib.cpu_count())


def _one_process() -> ProcessPoolExecutor:
    # The server imports torch and ART once, which takes seconds, and forks workers quickly. It is not used with a GPU:
    # CUDA that is initialised in the server cannot be used in a forked process.
    if "forkserver" in multiprocessing.get_all_start_methods() and not torch.cuda.is_available():
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(PRELOAD))
        return ProcessPoolExecutor(1, context, _initialize_worker)
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _initialize_worker)


def _initialize_worker() -> None:
    _block_interrupts()  # again, because other code may have started the server without blocking them
    # The default lock of tqdm's bars is a semaphore, which a terminated worker would leave behind with a warning.
    tqdm.set_lock(threading.RLock())
    # A killed parent cannot end its workers, and they would wait forever for its next job. So they watch the parent.
    parent = multiprocessing.parent_process()
    assert parent is not None

    def exit_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()


def _block_interrupts() -> None:
    # Ctrl-C reaches the whole process group, but only the parent decides when its workers end. A process inherits the
    # signal mask of the thread that starts it.
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def prepare(grid: Grid, store: Store, *, data_dir: Path, download: bool) -> None:
    """
    Load each data set and try a user's code, so that errors are reported before any run starts.

    :raises ConfigError: If a user's network, loss or attack is invalid.
    :raises DataError: If a data set is missing or damaged.
    :raises StoreError: If the store cannot be written, or has runs on other data of the same name.
    """
    expect_writable(store.root)
    for name, recipe in grid.recipes:
        dataset = load_data(name, recipe, data_dir=data_dir, download=download)
        try_user_code(grid, name, recipe, dataset)
        for run in grid.runs():
            if run.dataset == name:
                with suppress(DamagedError):  # it is set aside and reported when the run is executed
                    store.check(run, dataset.fingerprint)


def missing_runs(grid: Grid, store: Store) -> list[RunSpec]:
    """Return the runs with a missing or damaged file."""
    return [run for run in grid.runs() if not store.is_done(run, grid.attacks)]


def run_all(
    jobs: list[Job], executor: Callable[[], AbstractContextManager[Executor]], on_end: OnEnd, *, together: int = 1
) -> int:
    """
    Submit all jobs to an executor and wait for them; a failed job does not affect other jobs.

    A run whose worker died is retried once, alone, after the other runs: memory may have been short, or another run of
    the same worker may have caused the death. (Before Dask reports that a worker died, it has retried the run as often
    as its scheduler's allowed-failures.) Runs that other processes are executing are waited for at the end.

    :param jobs: The jobs.
    :param executor: A function that opens an executor: a pool of processes, a cluster's, or :class:`InProcess`.
    :param on_end: A callback for each run that ends.
    :param together: The maximum number of runs of one data set and recipe that a worker trains together.
    :return: The number of failed jobs.
    :raises ClusterError: If the cluster is lost; its runs are then neither done nor failed.
    """
    for root in {job.store for job in jobs}:
        with writing(root):
            root.mkdir(parents=True, exist_ok=True)
    died: set[RunSpec] = set()
    failures = 0
    rounds = deque([grouped(jobs, together)])
    with executor() as open_executor:
        while rounds:
            busy: list[Group] = []
            for job, outcome in _outcomes_as_completed(rounds.popleft(), open_executor):
                if isinstance(outcome.error, WorkerDiedError) and job.run not in died:
                    died.add(job.run)
                    rounds.append([Group((job,))])
                elif outcome.busy:
                    busy.append(Group((replace(job, wait=True),)))
                else:
                    failures += outcome.error is not None
                    _store_error_of_worker(job, outcome.error)
                    on_end(job.run, outcome)
            if busy:
                rounds.append(busy)
    return failures


def grouped(jobs: list[Job], together: int) -> list[Group]:
    """Return the jobs in groups of at most `together` jobs that can be trained together, in their order."""
    open_groups: dict[tuple[str, Recipe], list[Job]] = {}
    groups: list[list[Job]] = []
    for job in jobs:
        kind = (job.run.dataset, job.run.recipe)
        if not can_be_recorded(job.run):
            groups.append([job])
        elif len(open_groups.get(kind, ())) in (0, together):
            open_groups[kind] = [job]
            groups.append(open_groups[kind])
        else:
            open_groups[kind].append(job)
    return [Group(tuple(group)) for group in groups]


def _store_error_of_worker(job: Job, error: BaseException | None) -> None:
    """Store the error of a job, unless the job itself has stored it; a worker that died has not."""
    store = Store(job.store)
    if error is not None and (isinstance(error, WorkerDiedError) or store.error(job.run) is None):
        with suppress(StoreError, OSError, Timeout), store.lock(job.run).acquire(timeout=LOCK_TIMEOUT):
            store.save_error(job.run, "".join(traceback.format_exception(error)))


def _outcomes_as_completed(groups: list[Group], executor: Executor) -> Iterator[tuple[Job, Outcome]]:
    """Yield each job with its outcome when its group has ended."""
    if isinstance(executor, InProcess):  # lazily, so that the outcomes of a group are yielded before the next starts
        completed = ((group, executor.submit(execute_together, group)) for group in groups)
    else:
        futures = {executor.submit(execute_together, group): group for group in groups}
        completed = ((futures[future], future) for future in as_completed(futures))
    for group, future in completed:
        yield from zip(group.jobs, _outcomes(group, future), strict=True)


def _outcomes(group: Group, future: Future[tuple[Outcome, ...]]) -> tuple[Outcome, ...]:
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, ClusterError):
        raise error
    if isinstance(error, BrokenExecutor):
        return tuple(Outcome(error=_worker_died(job, error)) for job in group.jobs)
    return tuple(Outcome(error=error) for _ in group.jobs)


def _worker_died(job: Job, cause: BrokenExecutor) -> WorkerDiedError:
    error = WorkerDiedError(f"the worker of {job.run} died, possibly for lack of memory: {cause}")
    error.__cause__ = cause
    return error
