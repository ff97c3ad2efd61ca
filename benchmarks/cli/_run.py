"""Implementation of `run`: executes the missing runs of a grid, and writes its report."""

import os
import time
from concurrent.futures import Executor
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from benchmarks import execution
from benchmarks.cli._grid_options import expect_at_least
from benchmarks.cli._report import store_of, write_report
from benchmarks.config import ConfigError, Grid, RunSpec
from benchmarks.execution import Cluster, ClusterError, Job, Seconds, following
from benchmarks.report.results import load
from benchmarks.store import Store

if TYPE_CHECKING:
    from benchmarks.cli._commands import Run


def run(options: "Run", console: Console) -> int:
    """Execute the missing runs of the grid, write its report, and return the exit status."""
    grid, store = options.resolve(), Store(store_of(options).root.resolve())
    cluster = _cluster(options)
    _check(options, grid, cluster)
    data_dir = _data_dir(options)
    execution.prepare(grid, store, data_dir=data_dir, download=options.download)
    missing, total = execution.missing_runs(grid, store), len(grid.runs())
    done = total - len(missing)
    console.print(f"Grid {grid.name}: {total} runs, {done} of them done in {options.store}.", soft_wrap=True)
    start = time.perf_counter()
    failures = 0
    if missing:
        jobs = [Job(run, grid.attacks, store.root, data_dir) for run in missing]
        failures = _execute(options, grid, store, jobs, cluster, console)
    write_report(load(grid, store), store, console, options.command)
    if missing:
        console.print(f"Time: {execution.duration(time.perf_counter() - start)}, including the report.")
    if failures:
        # The options of GridOptions only: status has no options for data and workers.
        status = super(type(options), options).resuming.replace("benchmarks run", "benchmarks status")
        console.print(f"{failures} of {len(missing)} runs failed. To see the errors, run `{status}`.", soft_wrap=True)
    return 1 if failures else 0


def _execute(
    options: "Run", grid: Grid, store: Store, jobs: list[Job], cluster: Cluster | None, console: Console
) -> int:
    """Execute the jobs and return the number of failed jobs."""
    together = options.together or (10 if options.device == "gpu" else 1)
    capacity = 1 if options.device == "gpu" else execution.available_cpus() // (options.threads or 1)
    workers = max(1, min(options.workers or capacity, len(execution.grouped(jobs, together))))
    where = f"on the cluster at {cluster.address}" if cluster else f"on {workers} worker{'s' if workers > 1 else ''}"
    groups = f", which train up to {together} runs together" if together > 1 else ""
    console.print(f"Starting {len(jobs)} runs {where}{groups}.", soft_wrap=True)
    # The log has the time of all runs that are trained together, so the monitor counts them all as running.
    at_once = None if cluster or together > 1 else workers
    with cluster.executor(job.resources for job in jobs) if cluster else execution.local(workers) as executor:
        costs = _estimate(grid, store, jobs, executor, console, None if cluster else workers, together)
        with following(grid, store, console, at_once=at_once, costs=costs) as on_end:
            return execution.run_all(jobs, lambda: nullcontext(executor), on_end, together=together)


def _estimate(
    grid: Grid, store: Store, jobs: list[Job], executor: Executor, console: Console, workers: int | None, together: int
) -> dict[RunSpec, Seconds]:
    """Print the estimated time of the jobs, and return estimates for the runs without any timing."""
    states, by_run = execution.status(grid, store), {job.run: job for job in jobs}
    source = "from the times of other runs"
    costs: dict[RunSpec, Seconds] = {}
    console.print("Estimating the time: a few batches of training and a few attacked images are timed.", soft_wrap=True)
    try:
        costs = execution.costs(states, by_run.__getitem__, executor, at_once=workers or 1, together=together)
    except ClusterError:
        raise
    except Exception as error:  # the run itself will raise and report the same error
        source = f"the estimate failed: {error}"
    if costs:
        source = "from a few batches of training and a few images of each attack"
        states = execution.status(grid, store, before=states, costs=costs)
    left = execution.duration(execution.seconds_left(states, at_once=workers or 1))
    console.print(f"Estimated time{'' if workers else ' on one worker'}: {left} ({source}).", soft_wrap=True)
    return costs


def _check(options: "Run", grid: Grid, cluster: Cluster | None) -> None:
    """
    Make sure that this machine has the device and the processors that the grid requires.

    :raises ConfigError: If it does not. Workers of a cluster are checked later, when jobs are submitted.
    """
    if options.device == "gpu" and not cluster:
        execution.expect_gpu("--device gpu")
    threads, cpus = max(recipe.threads for _, recipe in grid.recipes), execution.available_cpus()
    if threads > cpus and not cluster:
        raise ConfigError(
            f"expected threads to be at most {cpus}, the number of available processors, but got {threads}"
        )


def _data_dir(options: "Run") -> Path:
    """
    Return the folder of the data sets; without a home directory, ~ is not expanded, since the digits need no folder.

    :raises ConfigError: If a data set is to be downloaded into a home directory that does not exist.
    """
    folder = os.path.expanduser(options.data_dir)
    if folder.startswith("~") and options.download:
        raise ConfigError(f"expected a home directory to download to {folder}, but there is none: set --data-dir")
    return Path(folder).resolve()


def _cluster(options: "Run") -> Cluster | None:
    files = (options.tls_ca, options.tls_cert, options.tls_key)
    if options.scheduler is None and any(files):
        raise ConfigError(
            "expected --scheduler together with --tls-ca, --tls-cert and --tls-key, but got no --scheduler"
        )
    expect_at_least(options, 1, "together", "workers")
    if options.workers is not None and options.scheduler is not None:
        raise ConfigError("expected either --workers or --scheduler, which has its own workers, but got both")
    return None if options.scheduler is None else Cluster(options.scheduler, *files)
