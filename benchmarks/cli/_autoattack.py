"""The command `autoattack` and its options, as tyro reads them."""

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

from rich.console import Console

from benchmarks.cli._grid_options import changed
from benchmarks.config import DATA_DIR, ConfigError


@dataclass(frozen=True)
class AutoAttack:
    """
    Put the worst case beside AutoAttack's own code, on trained networks and on networks of masked gradients.

    Networks that are not in the store are trained into it. Other settings add rows. Needs the package pyautoattack.
    """

    NEEDS: ClassVar = ("benchmarks.autoattack.running",)

    networks: tuple[str, ...] = ("digits", "masked", "mnist", "cifar10")
    """Groups, as in the default, or single networks, such as digits-hr: an unknown name lists all."""
    store: Path = Path("hrloss-store")
    """Folder of the trained networks, that of `run`."""
    output: Path = Path("hrloss-autoattack")
    """Folder for autoattack.md, autoattack.csv, autoattack-attacks.csv and the results that they are made from."""
    data_dir: Path = DATA_DIR
    """Folder of the data sets, as for `run`."""
    images: int | None = None
    """Test images; by default 360 of the digits and 1000 of the others."""
    eps: tuple[float, ...] = ()
    """Largest changes of a pixel, each in turn, such as 0.1 0.2; by default each network has one of its own."""
    max_iter: int = 100
    """Steps of each gradient attack of the worst case."""
    square_iter: int = 5000
    """Queries per image of its Square attack; 0 leaves it out."""
    seeds: int = 1
    """Use the seeds 0, 1, ... so many of them, for the random starts of both; each has a row."""

    def __call__(self, console: Console) -> int:
        """Measure what is missing; returns the exit status."""
        from benchmarks.autoattack import networks, running
        from benchmarks.autoattack.measuring import WORST_CASE, Evaluation
        from benchmarks.store import Store

        least = {"images": 1, "max_iter": 1, "square_iter": 0, "seeds": 1}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise ConfigError(f"expected {name} to be at least {bound}, but got {value}")
        if not all(0 < eps <= 1 for eps in self.eps):
            raise ConfigError(f"expected eps above 0 and at most 1, but got {self.eps}")
        store, output, data_dir = (Path(os.path.expanduser(path)) for path in (self.store, self.output, self.data_dir))
        cases = networks.chosen(self.networks, self.eps, self.images)
        ours = [Evaluation(WORST_CASE, self.max_iter, self.square_iter, seed) for seed in range(self.seeds)]
        data_dir, command = data_dir.resolve(), self.command
        return running.run(cases, ours, Store(store), output, console, data_dir=data_dir, command=command)

    @property
    def command(self) -> str:
        """The command that makes these results from nothing, to stand above the tables."""
        names = ("networks", "images", "eps", "max_iter", "square_iter", "seeds")
        return f"python -m benchmarks autoattack{changed(self, *names)}"

    @property
    def resuming(self) -> str:
        """The same command, with where it finds and keeps things."""
        return f"python -m benchmarks autoattack{changed(self, *(field.name for field in fields(self)))}"
