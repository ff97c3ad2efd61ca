"""Which grid, with what is overridden, and where its results are kept: options of run, status and report."""

import re
import shlex
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks import grids
from benchmarks.config import ConfigError, Grid, Recipe


@dataclass(frozen=True)
class GridOptions:
    """
    Which grid, and where its results are kept.

    What is overridden becomes part of the grid's name, and of the keys of the runs that it changes, so that it replaces
    no other results; runs that it leaves as they are share theirs.
    """

    grid: str = "digits"
    """The grid's name: `python -m benchmarks grids` lists them; or a function of your own that returns a Grid, as
    FILE.py:NAME or PACKAGE.MODULE:NAME."""
    store: Path = Path("hrloss-store")
    """Folder of results. What it already holds is used, not made again."""
    dataset: str | None = None
    """Of the grid's data sets, only this one; or, where it has a single one, this one in its place, also as
    FILE.py:NAME, a function of your own that returns x_train, y_train, x_test, y_test."""
    seeds: int | None = None
    """Use the seeds 0, 1, ... so many of them, instead of the grid's own five."""
    epochs: int | None = None
    """Train for so many epochs instead of the grid's; where the learning rate drops stays as it is."""
    alpha: float | None = None
    """Train with the HR loss of this alpha, and of no other."""
    batch_size: int | None = None
    """Images per training step."""
    validation_size: int | None = None
    """Training images to set aside for validation."""
    threads: int | None = None
    """Threads of each training on the CPU; else 1."""
    device: Literal["cpu", "gpu"] | None = None
    """Where to train and attack; else on the CPU."""
    precision: Literal["float32", "tf32"] | None = None
    """Of products in training on a GPU."""

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
            name="-".join([grid.name, *(f"{name.replace('_', '-')}-{_plain(value)}" for name, value in given.items())]),
            recipes=recipes,
            losses=losses,
            seeds=grid.seeds if self.seeds is None else tuple(range(self.seeds)),
        )

    @property
    def command(self) -> str:
        """The command that makes these results from nothing, to stand under the tables."""
        overrides = (f" --{name.replace('_', '-')} {shlex.quote(str(value))}" for name, value in self._overrides())
        return f"python -m benchmarks run --grid {shlex.quote(self.grid)}" + "".join(overrides)

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
        names = (
            "dataset",
            "seeds",
            "epochs",
            "alpha",
            "batch_size",
            "validation_size",
            "threads",
            "device",
            "precision",
        )
        return [(name, value) for name in names if (value := getattr(self, name)) is not None]


def changed(command: object, *names: str) -> str:
    """Return the options of these names that are not at their defaults, as one types them."""
    text = ""
    for name in names:
        if (value := getattr(command, name)) != getattr(type(command), name):
            words = map(str, value if isinstance(value, tuple) else (value,))
            text += f" --{name.replace('_', '-')} {' '.join(map(shlex.quote, words))}"
    return text


def _plain(value: object) -> str:
    """A value for a grid's name, which is a folder's: of a user's own data the reference without its punctuation."""
    text = str(value)
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-.") if ":" in text else text
