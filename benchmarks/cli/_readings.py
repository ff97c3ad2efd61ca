"""The command `readings` and its options, as tyro reads them."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from rich.console import Console

from benchmarks.cli._grid_options import GridOptions, changed, default


@dataclass(frozen=True)
class Readings:
    """Compare readings of the paper's CIFAR-10 recipe (run --grid benchmarks.readings:NAME) with its Table 1."""

    NEEDS: ClassVar = ("benchmarks.readings",)
    OVERRIDES: ClassVar = ("seeds", "epochs", "validation_size", "device", "precision")

    store: Path = Path("hrloss-store")
    """Folder of results, the same as for `run`."""
    output: Path = Path("hrloss-readings")
    """Folder for readings.md and readings.csv."""
    seeds: Annotated[int | None, default("the grid's")] = None
    """Number of seeds, the same as for `run`."""
    epochs: Annotated[int | None, default("the grid's")] = None
    """Number of epochs, the same as for `run`."""
    validation_size: Annotated[int | None, default("the grid's")] = None
    """Number of validation images, the same as for `run`."""
    device: Annotated[Literal["cpu", "gpu"] | None, default("the grid's")] = None
    """Device, the same as for `run`."""
    precision: Annotated[Literal["float32", "tf32"] | None, default("the grid's")] = None
    """Precision of matrix products, the same as for `run`."""

    def __call__(self, console: Console) -> int:
        """Write the table and return the exit status."""
        from benchmarks import readings
        from benchmarks.cli._report import store_of

        overrides = {name: getattr(self, name) for name in self.OVERRIDES}
        grids = {
            name: GridOptions(f"{readings.__name__}:{build.__name__}", self.store, **overrides)
            for name, build in readings.READINGS.items()
        }
        resolved = [(name, options.resolve(), options.command) for name, options in grids.items()]
        store, folder = store_of(next(iter(grids.values()))), Path(os.path.expanduser(self.output))
        table = readings.publish(resolved, store, folder, self.command)
        console.print(table.rich())
        console.print(f"Files: readings.md and readings.csv in {folder}", soft_wrap=True)
        return 0

    @property
    def command(self) -> str:
        """The command that reproduces the table, without paths, for display below it."""
        return f"python -m benchmarks readings{changed(self, *self.OVERRIDES)}"

    @property
    def resuming(self) -> str:
        """The command with its paths."""
        return self.command + changed(self, "store", "output")
