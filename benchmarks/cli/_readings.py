"""The command `readings` and its options, as tyro reads them."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from rich.console import Console

from benchmarks.cli._grid_options import GridOptions, changed


@dataclass(frozen=True)
class Readings:
    """Put the paper's CIFAR-10, read in other ways (`run --grid benchmarks.readings:NAME`), beside its Table 1."""

    NEEDS: ClassVar = ("benchmarks.readings",)

    store: Path = Path("hrloss-store")
    """Folder of results, as for `run`."""
    output: Path = Path("hrloss-readings")
    """Folder for readings.md and readings.csv."""
    seeds: int | None = None
    """As given to `run`, and so the next four."""
    epochs: int | None = None
    validation_size: int | None = None
    device: Literal["cpu", "gpu"] | None = None
    precision: Literal["float32", "tf32"] | None = None

    def __call__(self, console: Console) -> int:
        """Make the table; returns the exit status."""
        from benchmarks import readings
        from benchmarks.cli._reading import store_of

        given = {name: getattr(self, name) for name in ("seeds", "epochs", "validation_size", "device", "precision")}
        grids = {
            name: GridOptions(f"{readings.__name__}:{build.__name__}", self.store, **given)
            for name, build in readings.READINGS.items()
        }
        made = [(name, options.resolve(), options.command) for name, options in grids.items()]
        store = store_of(next(iter(grids.values())))
        table = readings.publish(made, store, Path(os.path.expanduser(self.output)), self.command)
        console.print(table.rich())
        return 0

    @property
    def command(self) -> str:
        """The command that makes the table, to stand under it."""
        names = ("seeds", "epochs", "validation_size", "device", "precision")
        return f"python -m benchmarks readings{changed(self, *names)}"

    @property
    def resuming(self) -> str:
        """The same command, with where it finds and keeps things."""
        return self.command + changed(self, "store", "output")
