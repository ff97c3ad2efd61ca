"""
Train and attack the paper's grid, and make its tables.

Without arguments: `run`, on the digits that come with scikit-learn, in about half a minute.
"""

import inspect
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks import grids, report, runner
from benchmarks.config import AttackSpec, ConfigError, Grid, RunSpec
from benchmarks.data import DataError
from benchmarks.store import Store, StoreError


@dataclass(frozen=True)
class GridOptions:
    """Which grid, and where its results are kept."""

    grid: str = "digits"
    """The grid's name, one of those listed above."""
    store: Path = Path("hrloss-store")
    """Folder of results. What it already holds is used, not made again."""
    seeds: int | None = None
    """Use the seeds 0, 1, ... so many of them. Default: the grid's own five."""
    epochs: int | None = None
    """Train for so many epochs instead of the grid's. Such runs are kept apart from the grid's own."""
    threads: int | None = None
    """Threads of each training on the CPU instead of 1. Kept apart too, for they round differently."""

    def resolve(self) -> Grid:
        """
        The grid, with what is overridden in its name, so that its tables do not replace those of the whole.

        :raises ConfigError: If there is no such grid, or a value is out of range.
        """
        grid = grids.get(self.grid)
        if self.seeds is not None and self.seeds < 1:
            raise ConfigError(f"expected seeds to be at least 1, but got {self.seeds}")
        changes: dict[str, Any] = dict(self._overrides())
        name = "-".join([grid.name, *(f"{name}-{value}" for name, value in changes.items())])
        seeds = tuple(range(changes.pop("seeds"))) if "seeds" in changes else grid.seeds
        recipes = tuple((dataset, replace(recipe, **changes)) for dataset, recipe in grid.recipes)
        return replace(grid, name=name, recipes=recipes, seeds=seeds)

    @property
    def command(self) -> str:
        """What makes these results from nothing, to stand under the tables."""
        overrides = (f" --{name} {value}" for name, value in self._overrides())
        return f"python -m benchmarks run --grid {self.grid}" + "".join(overrides)

    def _overrides(self) -> list[tuple[str, int]]:
        values = ((name, getattr(self, name)) for name in ("seeds", "epochs", "threads"))
        return [(name, value) for name, value in values if value is not None]


@dataclass(frozen=True)
class Run(GridOptions):
    """Train every run of a grid, attack it, and print the tables."""

    data_dir: Path = Path("~/.cache/art_hrloss")
    """Folder of the data sets: torchvision's own files, or NAME.npz with x_train, y_train, x_test, y_test."""
    download: bool = False
    """Let torchvision download what is not there, into the data folder."""
    workers: int | None = None
    """Runs at once, each in a process of its own. Default: one per processor; 1 runs in this process."""
    device: Literal["cpu", "gpu"] = "cpu"
    """Where to train and attack. It is no part of a run's key, and a GPU rounds differently: give it its own store."""

    def __call__(self, console: Console) -> int:
        """Do it; returns the exit status."""
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"expected workers to be at least 1, but got {self.workers}")
        if self.device == "gpu" and not torch.cuda.is_available():
            raise ConfigError("expected a GPU that torch can use for --device gpu, but there is none")
        grid, store = self.resolve(), Store(self.store)
        data_dir = self.data_dir.expanduser()
        runner.prepare(grid, store, data_dir=data_dir, download=self.download)
        missing, planned = runner.missing_runs(grid, store), len(grid.runs())
        console.print(f"Grid {grid.name}: {planned} runs, {planned - len(missing)} of them already in {store.root}.")
        at_once = self.workers or (1 if self.device == "gpu" else runner.available_cpus() // (self.threads or 1))
        workers = max(1, min(at_once, len(missing)))
        jobs = [runner.Job(run, grid.attacks, store.root, data_dir, self.device) for run in missing]
        failures = 0
        if jobs:
            console.print(f"{len(jobs)} to do, {workers} at once.")
            with runner.local_executor(workers) as executor, _progress(grid, store, console) as ended:
                failures = runner.run_all(jobs, executor, ended)
        print_tables(grid, store, console, self.command)
        if failures:
            console.print(f"{failures} of {len(jobs)} runs failed; their error.txt in {store.root}/runs says why.")
        return 1 if failures else 0


@dataclass(frozen=True)
class Report(GridOptions):
    """Make a grid's tables from the results that are there, without training or attacking anything."""

    def __call__(self, console: Console) -> int:
        """Do it; returns the exit status."""
        grid, store = self.resolve(), Store(self.store)
        missing = runner.missing_runs(grid, store)
        if report.record_frame(grid, store).empty:
            made_by = f"{self.command} --store {store.root}"
            raise StoreError(f"{store.root} holds no results of the grid {grid.name}: `{made_by}` makes them")
        if missing:
            console.print(
                f"{len(missing)} of {len(grid.runs())} runs are not complete: `{self.command}` goes on with them."
            )
        print_tables(grid, store, console, self.command)
        return 0


def _help(command: type) -> str:
    """A subcommand's own words, and then each grid's."""
    lines = [f"Grid {name}: {' '.join((grid.__doc__ or '').split())}" for name, grid in grids.GRIDS.items()]
    return "\n\n".join([inspect.getdoc(command) or "", *lines])


Command = (
    Annotated[Run, tyro.conf.subcommand("run", description=_help(Run))]
    | Annotated[Report, tyro.conf.subcommand("report", description=_help(Report))]
)


def print_tables(grid: Grid, store: Store, console: Console, command: str) -> None:
    """Write the grid's tables, show them, and say where they are."""
    files = report.write(grid, store, command=command)
    for dataset, _ in grid.recipes:
        console.print(report.table_1(grid, store, dataset).rich())
    console.print("Tables:", *map(str, files), soft_wrap=True)


@contextmanager
def _progress(grid: Grid, store: Store, console: Console) -> Iterator[runner.OnEnd]:
    """A progress bar that follows the store, whoever fills it, and a line for each run that ends."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    runs = grid.runs()
    stop = threading.Event()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("epochs and attacks", total=sum(runner.steps(grid, run) for run in runs))

        def follow() -> None:
            while not stop.wait(0.5):
                with suppress(StoreError):  # a damaged file is the runs' affair, and told by them
                    progress.update(task, completed=sum(runner.steps_done(grid, store, run) for run in runs))

        def ended(run: RunSpec, error: BaseException | None) -> None:
            clean = store.record(run, AttackSpec("none"))
            outcome = f"accuracy {clean['correct'] / clean['n']:.3f}" if clean else "done"
            outcome = f"failed: {error}" if error else outcome
            console.print(f"{run}: {outcome}", soft_wrap=True)

        follower = threading.Thread(target=follow, daemon=True)
        follower.start()
        try:
            yield ended
        finally:
            stop.set()
            follower.join()


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
    except (ConfigError, DataError, StoreError, OSError) as error:
        Console(stderr=True, markup=False, highlight=False).print(f"Error: {error}", style="red", soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        console.print("Interrupted. All is kept but the epochs in progress; the same command goes on from there.")
        return 130
    finally:
        signal.signal(signal.SIGTERM, on_termination)


if __name__ == "__main__":
    sys.exit(main())
