"""What `run` does: what is missing of a grid, and then its report."""

import os
import time
from concurrent.futures import Executor
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from benchmarks import execution
from benchmarks.cli._reading import make_report, store_of
from benchmarks.config import ConfigError, Grid, RunSpec
from benchmarks.execution import Cluster, ClusterError, Job, Seconds, following
from benchmarks.report.results import load
from benchmarks.store import Store

if TYPE_CHECKING:
    from benchmarks.cli._commands import Run


def run(options: "Run", console: Console) -> int:
    """Do what is missing of the grid and make its report; returns the exit status."""
    grid, store = options.resolve(), Store(store_of(options).root.resolve())
    cluster = _cluster(options)
    _check(options, grid, cluster)
    data_dir = _data_dir(options)
    execution.prepare(grid, store, data_dir=data_dir, download=options.download)
    missing, planned = execution.missing_runs(grid, store), len(grid.runs())
    done = planned - len(missing)
    console.print(f"Grid {grid.name}: {planned} runs, {done} of them already in {options.store}.", soft_wrap=True)
    begun = time.perf_counter()
    failures = 0
    if missing:
        jobs = [Job(run, grid.attacks, store.root, data_dir) for run in missing]
        failures = _do(options, grid, store, jobs, cluster, console)
    make_report(load(grid, store), store, console, options.command)
    if missing:
        console.print(f"Took {execution.duration(time.perf_counter() - begun)}, the report included.")
    if failures:
        # In the words of the options that all commands have: where data are and who works does not matter to status.
        why = super(type(options), options).resuming.replace("benchmarks run", "benchmarks status")
        console.print(f"{failures} of {len(missing)} runs failed: `{why}` says why.", soft_wrap=True)
    return 1 if failures else 0


def _do(options: "Run", grid: Grid, store: Store, jobs: list[Job], cluster: Cluster | None, console: Console) -> int:
    """Do the jobs; returns how many failed."""
    together = options.together or (10 if options.device == "gpu" else 1)
    fit = 1 if options.device == "gpu" else execution.available_cpus() // (options.threads or 1)
    workers = max(1, min(options.workers or fit, len(execution.grouped(jobs, together))))
    where = f"on the cluster at {cluster.address}, as it has workers" if cluster else f"{workers} at once"
    console.print(f"{len(jobs)} to do, {where}{f', each of {together} runs' if together > 1 else ''}.")
    # Runs that are trained together are timed as a whole, so each of them seems to run.
    at_once = None if cluster or together > 1 else workers
    with cluster.executor(job.resources for job in jobs) if cluster else execution.local(workers) as executor:
        costs = _estimated(grid, store, jobs, executor, console, None if cluster else workers, together)
        with following(grid, store, console, at_once=at_once, costs=costs) as ended:
            return execution.run_all(jobs, lambda: nullcontext(executor), ended, together=together)


def _estimated(
    grid: Grid, store: Store, jobs: list[Job], executor: Executor, console: Console, workers: int | None, together: int
) -> dict[RunSpec, Seconds]:
    """Say how long the jobs will take; returns what is expected of those of which nothing has been timed."""
    states, by_run = execution.status(grid, store), {job.run: job for job in jobs}
    how = "from the runs that were timed"
    costs: dict[RunSpec, Seconds] = {}
    try:
        costs = execution.costs(states, by_run.__getitem__, executor, at_once=workers or 1, together=together)
    except ClusterError:
        raise
    except Exception as error:  # whatever it is, the run itself will meet it and tell
        how = f"the estimate failed: {error}"
    if costs:
        how = "from a few batches of training and a few images of each attack"
        states = execution.status(grid, store, before=states, costs=costs)
    left = execution.duration(execution.seconds_left(states, at_once=workers or 1))
    console.print(f"Estimated: {left}{'' if workers else ' of one worker'} ({how}).", soft_wrap=True)
    return costs


def _check(options: "Run", grid: Grid, cluster: Cluster | None) -> None:
    """
    Make sure that this machine has what the grid asks for.

    :raises ConfigError: If it has not; a cluster's workers are asked in their time.
    """
    if options.device == "gpu" and not cluster:
        execution.expect_gpu("--device gpu")
    threads, cpus = max(recipe.threads for _, recipe in grid.recipes), execution.available_cpus()
    if threads > cpus and not cluster:
        raise ConfigError(
            f"expected threads to be at most {cpus}, the processors that this process may use, but got {threads}"
        )


def _data_dir(options: "Run") -> Path:
    """
    The folder of the data; without a home its name stays as it is, for the digits need none.

    :raises ConfigError: If data are to be downloaded into a home that is not there.
    """
    folder = os.path.expanduser(options.data_dir)
    if folder.startswith("~") and options.download:
        raise ConfigError(f"expected a home directory to download to {folder}, but there is none: give --data-dir")
    return Path(folder).resolve()


def _cluster(options: "Run") -> Cluster | None:
    files = (options.tls_ca, options.tls_cert, options.tls_key)
    if options.scheduler is None and any(files):
        raise ConfigError("expected --scheduler with --tls-ca, --tls-cert and --tls-key, but got none")
    for name in ("together", "workers"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise ConfigError(f"expected {name} to be at least 1, but got {value}")
    if options.workers is not None and options.scheduler is not None:
        raise ConfigError("expected --workers or --scheduler, which brings its own workers, but got both")
    return None if options.scheduler is None else Cluster(options.scheduler, *files)
