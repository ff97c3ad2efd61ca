"""Plan -> any concurrent.futures.Executor -> store."""

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import data
from benchmarks.config import AttackSpec, Grid, Recipe, RunSpec
from benchmarks.data import Dataset
from benchmarks.evaluation import evaluate
from benchmarks.store import Store
from benchmarks.training import train

OnEnd = Callable[[RunSpec, BaseException | None], None]


@dataclass(frozen=True)
class Job:
    """All that a worker needs to bring one run to its end, wherever it works."""

    run: RunSpec
    attacks: tuple[AttackSpec, ...]
    store: Path
    data_dir: Path
    device_type: str
    """"cpu" or "gpu", in ART's words."""


def execute(job: Job) -> None:
    """
    Train a run as far as it is not yet trained, and make the records that are missing.

    Doing it twice does nothing the second time, so a job that was lost can simply be sent again.
    """
    store, recipe, threads = Store(job.store), job.run.recipe, torch.get_num_threads()
    dataset = load_data(job.run.dataset, recipe, data_dir=job.data_dir)
    store.open(job.run, dataset.fingerprint)
    torch.set_num_threads(recipe.threads)
    try:
        if not store.is_trained(job.run):
            train(job.run, dataset, store, device=torch.device("cuda" if job.device_type == "gpu" else "cpu"))
        evaluate(job.run, job.attacks, dataset, store, device_type=job.device_type)
    finally:
        torch.set_num_threads(threads)


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
                store.open(run, dataset.fingerprint)


def missing_runs(grid: Grid, store: Store) -> list[RunSpec]:
    """The runs that are not trained, or lack a record."""
    return [run for run in grid.runs() if steps_done(grid, store, run) < steps(grid, run)]


def steps(grid: Grid, run: RunSpec) -> int:
    """A run's length in steps of progress: its epochs and its evaluations."""
    return run.recipe.epochs + len(grid.attacks)


def steps_done(grid: Grid, store: Store, run: RunSpec) -> int:
    """How many of a run's steps the store already holds."""
    return store.epochs_done(run) + sum(store.record(run, attack) is not None for attack in grid.attacks)


def run_all(jobs: list[Job], executor: Executor, on_end: OnEnd) -> int:
    """
    Send every job to the executor and wait; a job that fails is recorded in the store and the others go on.

    :param jobs: What to do.
    :param executor: Where: a pool of processes, a cluster's executor, or :class:`InProcess`.
    :param on_end: Called for each run as it ends, with its error if it failed.
    :return: How many jobs failed.
    """
    others, failures = multiprocessing.active_children(), 0
    try:
        for job, future in _ended(jobs, executor):
            error = future.exception()
            if error is not None:
                failures += 1
                Store(job.store).save_error(job.run, "".join(traceback.format_exception(error)))
            on_end(job.run, error)
    except KeyboardInterrupt:
        executor.shutdown(wait=False, cancel_futures=True)
        # A pool would wait for its workers to end their runs; what those have kept is whole at any moment.
        for worker in multiprocessing.active_children():
            if worker not in others:
                worker.terminate()
        raise
    return failures


def _ended(jobs: list[Job], executor: Executor) -> Iterator[tuple[Job, Future[None]]]:
    """Each job with its future, as it ends."""
    if isinstance(executor, InProcess):  # it ends a job before it takes the next
        yield from ((job, executor.submit(execute, job)) for job in jobs)
    else:
        futures = {executor.submit(execute, job): job for job in jobs}
        yield from ((futures[future], future) for future in as_completed(futures))


def available_cpus() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def local_executor(workers: int) -> Executor:
    """A pool of spawned processes; for a single worker, this process itself."""
    if workers == 1:
        return InProcess()
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_leave_interrupts_to_the_parent)


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


def _leave_interrupts_to_the_parent() -> None:
    # Ctrl-C reaches the whole process group; the parent alone decides what becomes of its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
