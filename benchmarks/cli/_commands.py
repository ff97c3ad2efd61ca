"""The commands and their options, as tyro reads them. What a command does is imported when it is called."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import grids
from benchmarks.cli._grid_options import GridOptions
from benchmarks.config import DATA_DIR
from benchmarks.speed.command import Speed


@dataclass(frozen=True)
class Run(GridOptions):
    """Train every run of a grid, attack it, and make the tables and figures."""

    NEEDS: ClassVar = ("benchmarks.cli._run",)

    data_dir: Path = DATA_DIR
    """Folder of the data sets, torchvision's own files or NAME.npz."""
    download: bool = False
    """Let torchvision download what is not there, into the data folder."""
    workers: int | None = None
    """Runs at once, each in a process of its own; by default as many as there are processors for."""
    together: int | None = None
    """Runs of one recipe that a worker trains in one step, stacked; by default 10 on a GPU."""
    scheduler: str | None = None
    """Address of a Dask scheduler, such as tcp://127.0.0.1:8786, whose workers do the runs."""
    tls_ca: Path | None = None
    """For tls:// addresses: certificates of the authorities that are trusted, PEM."""
    tls_cert: Path | None = None
    """This client's certificate, PEM."""
    tls_key: Path | None = None
    """This client's private key, PEM."""

    def __call__(self, console: Console) -> int:
        """Run the grid; returns the exit status."""
        from benchmarks.cli._run import run

        return run(self, console)

    @property
    def resuming(self) -> str:
        """The same command, with where it finds and keeps things."""
        names = ("data_dir", "workers", "together", "scheduler", "tls_ca", "tls_cert", "tls_key")
        given = {name: value for name in names if (value := getattr(self, name)) != getattr(Run, name)}
        options = (f" --{name.replace('_', '-')} {shlex.quote(str(value))}" for name, value in given.items())
        return super().resuming + "".join(options) + (" --download" if self.download else "")


@dataclass(frozen=True)
class Status(GridOptions):
    """Show how far a grid is: which runs are done, running, failed, begun or missing, and the time left."""

    NEEDS: ClassVar = ("benchmarks.cli._reading",)

    def __call__(self, console: Console) -> int:
        """Show the status; returns the exit status."""
        from benchmarks.cli._reading import show_status

        return show_status(self, console)


@dataclass(frozen=True)
class Report(GridOptions):
    """Make a grid's tables and figures from the results that are there, without training or attacking anything."""

    NEEDS: ClassVar = ("benchmarks.cli._reading",)

    def __call__(self, console: Console) -> int:
        """Make the report; returns the exit status."""
        from benchmarks.cli._reading import report

        return report(self, console)


@dataclass(frozen=True)
class Grids:
    """List the grids: what each is, how many trainings it has, and what it costs."""

    NEEDS: ClassVar = ()
    resuming: ClassVar = "python -m benchmarks grids"

    def __call__(self, console: Console) -> int:
        """Show the table; returns the exit status."""
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
        table.add_column("grid", no_wrap=True)
        table.add_column("what")
        table.add_column("runs", justify="right", no_wrap=True)
        table.add_column("two cores", justify="right", no_wrap=True)
        for name, build in grids.GRIDS.items():
            what = (build.__doc__ or "").strip().splitlines()[0]
            table.add_row(name, what, str(len(build().runs())), grids.COSTS[name])
        console.print(table)
        return 0


COMMANDS = {"run": Run, "status": Status, "report": Report, "grids": Grids, "speed": Speed}

Command = (
    Annotated[Run, tyro.conf.subcommand("run")]
    | Annotated[Status, tyro.conf.subcommand("status")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Grids, tyro.conf.subcommand("grids")]
    | Annotated[Speed, tyro.conf.subcommand("speed")]
)
