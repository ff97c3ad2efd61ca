"""The command `autoattack` and its options, as tyro reads them."""

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, ClassVar

from rich.console import Console

from benchmarks.cli._grid_options import changed, default, expect_at_least
from benchmarks.config import DATA_DIR, ConfigError


@dataclass(frozen=True)
class AutoAttack:
    """
    Compare the worst case with AutoAttack's original code, on trained networks and on networks with masked gradients.

    Networks that are missing in the store are trained. Other settings add rows to the table. Requires pyautoattack.
    """

    NEEDS: ClassVar = ("benchmarks.autoattack.running",)

    networks: tuple[str, ...] = ("digits", "masked", "mnist", "cifar10")
    """Groups of networks, as in the default, or single networks such as digits-hr. An unknown name prints all names."""
    store: Path = Path("hrloss-store")
    """Folder of the trained networks, the same as for `run`."""
    output: Path = Path("hrloss-autoattack")
    """Folder for autoattack.md, autoattack.csv, autoattack-attacks.csv and the results behind them."""
    data_dir: Path = DATA_DIR
    """Folder of the data sets, the same as for `run`."""
    images: Annotated[int | None, default("360 of the digits, 1000 of other data")] = None
    """Number of test images."""
    eps: tuple[float, ...] = ()
    """Maximum changes of a pixel, such as 0.1 0.2; each value gives a row. Empty: one value for each network."""
    max_iter: int = 100
    """Number of steps of each gradient attack in the worst case."""
    square_iter: int = 5000
    """Number of queries per image of the Square attack in the worst case. 0: no Square attack."""
    seeds: int = 1
    """Number of seeds (0, 1, ...) of the random starts of both; each seed gives a row."""

    def __call__(self, console: Console) -> int:
        """Execute the missing evaluations and return the exit status."""
        from benchmarks.autoattack import networks, running
        from benchmarks.autoattack.measuring import WORST_CASE, Evaluation
        from benchmarks.store import Store

        expect_at_least(self, 1, "images", "max_iter", "seeds")
        expect_at_least(self, 0, "square_iter")
        if not all(0 < eps <= 1 for eps in self.eps):
            raise ConfigError(f"expected eps above 0 and at most 1, but got {self.eps}")
        store, output, data_dir = (Path(os.path.expanduser(path)) for path in (self.store, self.output, self.data_dir))
        cases = networks.chosen(self.networks, self.eps, self.images)
        evaluations = [Evaluation(WORST_CASE, self.max_iter, self.square_iter, seed) for seed in range(self.seeds)]
        data_dir, command = data_dir.resolve(), self.command
        return running.run(cases, evaluations, Store(store), output, console, data_dir=data_dir, command=command)

    @property
    def command(self) -> str:
        """The command that reproduces the results, without paths, for display above the tables."""
        names = ("networks", "images", "eps", "max_iter", "square_iter", "seeds")
        return f"python -m benchmarks autoattack{changed(self, *names)}"

    @property
    def resuming(self) -> str:
        """The command with its paths, which resumes the run."""
        return f"python -m benchmarks autoattack{changed(self, *(field.name for field in fields(self)))}"
