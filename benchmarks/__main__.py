"""
Train and attack the paper's grid, make its tables and figures, and measure how fast all is.

Without arguments: `run`, on the digits that come with scikit-learn, in about half a minute.
"""

import inspect
import shlex
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.console import Console

from benchmarks import execution, grids
from benchmarks.config import ConfigError, Grid, Recipe, RunSpec
from benchmarks.data import DataError
from benchmarks.execution import Cluster, ClusterError, Cost, following
from benchmarks.report import export
from benchmarks.report.cells import Results, load
from benchmarks.report.provenance import provenance
from benchmarks.report.table_1 import table_1
from benchmarks.report.tables import alpha_table
from benchmarks.speed.command import Speed
from benchmarks.store import Store, StoreError


@dataclass(frozen=True)
class GridOptions:
    """
    Which grid, and where its results are kept.

    What is overridden becomes part of the grid's name, and of the keys of the runs that it changes, so that it replaces
    no other results; runs that it leaves as they are share theirs.
    """

    grid: str = "digits"
    """The grid's name, one of those listed above."""
    store: Path = Path("hrloss-store")
    """Folder of results. What it already holds is used, not made again."""
    dataset: str | None = None
    """Of the grid's data sets, only this one; or, where the grid has a single one, this one in its place."""
    seeds: int | None = None
    """Use the seeds 0, 1, ... so many of them, instead of the grid's own five."""
    epochs: int | None = None
    """Train for so many epochs instead of the grid's; where the learning rate drops stays as it is."""
    alpha: float | None = None
    """Train with the HR loss of this alpha, and of no other."""
    batch_size: int | None = None
    """Images per training step."""
    threads: int | None = None
    """Threads of each training on the CPU, instead of 1."""
    device: Literal["cpu", "gpu"] | None = None
    """Where to train and attack, instead of on the CPU."""

    def resolve(self) -> Grid:
        """
        The grid, with what is overridden.

        :raises ConfigError: If there is no such grid, or a value is out of range.
        """
        grid = grids.get(self.grid)
        if self.seeds is not None and self.seeds < 1:
            raise ConfigError(f"expected seeds to be at least 1, but got {self.seeds}")
        given: dict[str, Any] = dict(self._overrides())
        of_recipe = {name: value for name, value in given.items() if name in {f.name for f in fields(Recipe)}}
        recipes = tuple((dataset, replace(recipe, **of_recipe)) for dataset, recipe in self._recipes(grid))
        losses = grid.losses
        if self.alpha is not None:
            changed = (loss if loss.alpha is None else replace(loss, alpha=self.alpha) for loss in losses)
            losses = tuple(dict.fromkeys(changed))
        return replace(
            grid,
            name="-".join([grid.name, *(f"{name.replace('_', '-')}-{value}" for name, value in given.items())]),
            recipes=recipes,
            losses=losses,
            seeds=grid.seeds if self.seeds is None else tuple(range(self.seeds)),
        )

    @property
    def command(self) -> str:
        """What makes these results from nothing, to stand under the tables."""
        overrides = (f" --{name.replace('_', '-')} {value}" for name, value in self._overrides())
        return f"python -m benchmarks run --grid {self.grid}" + "".join(overrides)

    @property
    def resuming(self) -> str:
        """The command that goes on with these results; where the data are elsewhere, it wants to be told."""
        return f"{self.command} --store {shlex.quote(str(self.store))}"

    def _recipes(self, grid: Grid) -> tuple[tuple[str, Recipe], ...]:
        named = tuple(pair for pair in grid.recipes if self.dataset in (None, pair[0]))
        if not named and len(grid.recipes) > 1:
            raise ConfigError(
                f"expected dataset to be one of {[name for name, _ in grid.recipes]}, which grid {grid.name} has "
                f"recipes for, but got {self.dataset!r}"
            )
        return named or tuple((str(self.dataset), recipe) for _, recipe in grid.recipes)

    def _overrides(self) -> list[tuple[str, str | int | float]]:
        names = ("dataset", "seeds", "epochs", "alpha", "batch_size", "threads", "device")
        return [(name, value) for name in names if (value := getattr(self, name)) is not None]


@dataclass(frozen=True)
class Run(GridOptions):
    """Train every run of a grid, attack it, and make the tables and figures."""

    data_dir: Path = Path("~/.cache/art_hrloss")
    """Folder of the data sets: torchvision's own files, or NAME.npz with x_train, y_train, x_test, y_test."""
    download: bool = False
    """Let torchvision download what is not there, into the data folder."""
    workers: int | None = None
    """Runs at once, each in a process of its own. Default: as many as the processors have threads for; 1 runs in this
    process."""
    together: int | None = None
    """Runs of one recipe that a worker trains at once, their networks stacked. Default: 10 on a GPU, which a small
    network leaves idle, and 1 on the CPU. The results are those of single runs but for rounding."""
    scheduler: str | None = None
    """Address of a Dask cluster's scheduler, such as tcp://127.0.0.1:8786, whose workers do the runs. They need this
    program, the data folder and the store under the same paths."""
    tls_ca: Path | None = None
    """Certificates of the authorities that the cluster's are signed by, PEM; for tls:// addresses."""
    tls_cert: Path | None = None
    """This client's certificate, PEM."""
    tls_key: Path | None = None
    """This client's private key, PEM."""

    def __call__(self, console: Console) -> int:
        """Do it; returns the exit status."""
        cluster = self._cluster()
        if self.device == "gpu" and not cluster and not torch.cuda.is_available():
            raise ConfigError("expected a GPU that torch can use for --device gpu, but there is none")
        grid, store = self.resolve(), Store(self.store.expanduser().resolve())
        data_dir = self.data_dir.expanduser().resolve()
        execution.prepare(grid, store, data_dir=data_dir, download=self.download)
        missing, planned = execution.missing_runs(grid, store), len(grid.runs())
        done = planned - len(missing)
        console.print(f"Grid {grid.name}: {planned} runs, {done} of them already in {self.store}.", soft_wrap=True)
        failures = 0
        if missing:
            jobs = [execution.Job(run, grid.attacks, store.root, data_dir) for run in missing]
            failures = self._do(grid, store, jobs, cluster, console)
        make_report(load(grid, store), store, console, self.command)
        if failures:
            why = super().resuming.replace("benchmarks run", "benchmarks status")
            console.print(f"{failures} of {len(missing)} runs failed: `{why}` says why.", soft_wrap=True)
        return 1 if failures else 0

    def _do(
        self, grid: Grid, store: Store, jobs: list[execution.Job], cluster: Cluster | None, console: Console
    ) -> int:
        """Do the jobs; returns how many failed."""
        together = self.together or (10 if self.device == "gpu" else 1)
        fit = 1 if self.device == "gpu" else execution.available_cpus() // (self.threads or 1)
        workers = max(1, min(self.workers or fit, len(execution.grouped(jobs, together))))
        where = f"on the cluster at {cluster.address}, as it has workers" if cluster else f"{workers} at once"
        console.print(f"{len(jobs)} to do, {where}{f', each of {together} runs' if together > 1 else ''}.")
        costs = self._estimated(grid, store, jobs, cluster, console, workers)
        # Runs that are trained at once are timed as a whole, so each of them seems to run.
        at_once = None if cluster or together > 1 else workers
        with following(grid, store, console, at_once=at_once, costs=costs) as ended:
            return execution.run_all(jobs, lambda: self._executor(cluster, jobs, workers), ended, together=together)

    @staticmethod
    def _executor(cluster: Cluster | None, jobs: list[execution.Job], workers: int) -> AbstractContextManager[Executor]:
        return cluster.executor(job.resources for job in jobs) if cluster else execution.local(workers)

    def _estimated(
        self,
        grid: Grid,
        store: Store,
        jobs: list[execution.Job],
        cluster: Cluster | None,
        console: Console,
        workers: int,
    ) -> dict[RunSpec, Cost]:
        """Say how long the jobs will take; returns what is expected of those of which nothing has been timed."""
        states, by_run = execution.status(grid, store), {job.run: job for job in jobs}
        how = "from the runs that were timed"
        costs: dict[RunSpec, Cost] = {}
        if execution.to_probe(states):
            how = "from a few batches of training and a few images of each attack"
            try:
                with self._executor(cluster, jobs, 1) as one:
                    costs = execution.costs(states, by_run.__getitem__, one)
            except ClusterError:
                raise
            except Exception as error:  # whatever it is, the run itself will meet it and tell
                how = f"the estimate failed: {error}"
            states = execution.status(grid, store, before=states, costs=costs)
        left = execution.duration(execution.seconds_left(states, at_once=1 if cluster else workers))
        console.print(f"Estimated: {left}{' of one worker' if cluster else ''} ({how}).", soft_wrap=True)
        return costs

    @property
    def resuming(self) -> str:
        """The same command, with where it finds and keeps things."""
        names = ("data_dir", "workers", "together", "scheduler", "tls_ca", "tls_cert", "tls_key")
        given = {name: value for name in names if (value := getattr(self, name)) != getattr(Run, name)}
        options = (f" --{name.replace('_', '-')} {shlex.quote(str(value))}" for name, value in given.items())
        return super().resuming + "".join(options) + (" --download" if self.download else "")

    def _cluster(self) -> Cluster | None:
        files = (self.tls_ca, self.tls_cert, self.tls_key)
        if self.scheduler is None and any(files):
            raise ConfigError("expected --scheduler with --tls-ca, --tls-cert and --tls-key, but got none")
        if self.together is not None and self.together < 1:
            raise ConfigError(f"expected together to be at least 1, but got {self.together}")
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"expected workers to be at least 1, but got {self.workers}")
        if self.workers is not None and self.scheduler is not None:
            raise ConfigError("expected --workers or --scheduler, which brings its own workers, but got both")
        return None if self.scheduler is None else Cluster(self.scheduler, *files)


@dataclass(frozen=True)
class Status(GridOptions):
    """Show how far a grid is: which runs are done, running, failed, begun or missing, and the time left."""

    def __call__(self, console: Console) -> int:
        """Show it; returns the exit status."""
        grid, store = self.resolve(), Store(self.store.expanduser())
        states = execution.status(grid, store)
        console.print(execution.table(grid, states))
        counts = {name: sum(state.state == name for state in states) for name in execution.STATES}
        console.print(", ".join(f"{count} {name}" for name, count in counts.items() if count))
        if counts["done"] < len(states):
            left = execution.duration(execution.seconds_left(states))
            console.print(f"Time left at this pace: {left}. `{self.resuming}` goes on.", soft_wrap=True)
        return 0


@dataclass(frozen=True)
class Report(GridOptions):
    """Make a grid's tables and figures from the results that are there, without training or attacking anything."""

    def __call__(self, console: Console) -> int:
        """Do it; returns the exit status."""
        grid, store = self.resolve(), Store(self.store.expanduser())
        results = load(grid, store)
        if not results.records:
            raise StoreError(f"{store.root} holds no results of the grid {grid.name}: `{self.resuming}` makes them")
        if missing := execution.missing_runs(grid, store):
            console.print(
                f"{len(missing)} of {len(grid.runs())} runs are not complete: `{self.resuming}` goes on with them.",
                soft_wrap=True,
            )
        make_report(results, store, console, self.command)
        return 0


def _help(command: type) -> str:
    """A subcommand's own words, and then each grid's."""
    lines = [f"Grid {name}: {' '.join((grid.__doc__ or '').split())}" for name, grid in grids.GRIDS.items()]
    return "\n\n".join([inspect.getdoc(command) or "", *lines])


Command = (
    Annotated[Run, tyro.conf.subcommand("run", description=_help(Run))]
    | Annotated[Status, tyro.conf.subcommand("status", description=_help(Status))]
    | Annotated[Report, tyro.conf.subcommand("report", description=_help(Report))]
    | Annotated[Speed, tyro.conf.subcommand("speed")]
)


def make_report(results: Results, store: Store, console: Console, command: str) -> None:
    """Write the grid's tables and figures, show the first table, and say where they are."""
    for problem in results.problems:
        console.print(f"Counted as missing: {problem}", soft_wrap=True)
    folder = store.report_folder(results.grid.name)
    page = export.write(results, folder, command=command, facts=provenance(results.grid, store))
    overview = export.write_index(folder.parent)
    for dataset in results.datasets:
        for table in (table_1(results, dataset), alpha_table(results, dataset)):
            if table is not None:
                console.print(table.rich())
    console.print(f"Tables and figures: {folder}, and all of them in {page}; all grids: {overview}", soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv) or ["run"]
    command = tyro.cli(Command, prog="python -m benchmarks", description=__doc__, args=arguments)
    # Without markup: a path may hold brackets.
    console = Console(markup=False, highlight=False)
    # A scheduler ends a job by SIGTERM, which must not leave workers behind any more than Ctrl-C.
    on_termination = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return command(console)
    except (ConfigError, DataError, StoreError, ClusterError, OSError) as error:
        Console(stderr=True, markup=False, highlight=False).print(f"Error: {error}", style="red", soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        cluster = "; the cluster's workers go on with what they are at" if getattr(command, "scheduler", None) else ""
        console.print(
            f"Interrupted. All is kept but the epochs in progress{cluster}; the same command goes on from there:\n"
            f"  {command.resuming}",
            soft_wrap=True,
        )
        return 130
    finally:
        signal.signal(signal.SIGTERM, on_termination)


if __name__ == "__main__":
    sys.exit(main())
