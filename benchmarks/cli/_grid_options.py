"""Options of run, status and report: the grid, its overrides, and the folder of its results."""

import re
import shlex
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from benchmarks import grids
from benchmarks.config import ConfigError, Grid, Recipe


def default(text: str) -> Any:
    """Return the annotation of an option whose default is None, with the text that its help shows as the default."""
    return tyro.conf.arg(help_behavior_hint=f"(default: {text})")


@dataclass(frozen=True)
class GridOptions:
    """
    The grid, its overrides, and the folder of its results.

    Overrides become part of the grid's name and of the keys of the runs that they change, so they replace no other
    results. Runs that they do not change share their results with the grid.
    """

    grid: str = "digits"
    """Name of a grid, see `python -m benchmarks grids`; or a function that returns a Grid, as FILE.py:NAME or
    PACKAGE.MODULE:NAME."""
    store: Path = Path("hrloss-store")
    """Folder of results. Results that it already has are not computed again."""
    dataset: Annotated[str | None, default("the grid's")] = None
    """One of the grid's data sets, or, if it has one, another: a name, or FILE.py:NAME, a function that returns
    x_train, y_train, x_test, y_test."""
    seeds: Annotated[int | None, default("the grid's")] = None
    """Number of seeds: 0, 1, ..."""
    epochs: Annotated[int | None, default("the grid's")] = None
    """Number of epochs; the epochs of learning rate drops do not change."""
    alpha: Annotated[float | None, default("the grid's")] = None
    """Alpha of the HR loss."""
    batch_size: Annotated[int | None, default("the grid's")] = None
    """Number of images per training step."""
    validation_size: Annotated[int | None, default("the grid's")] = None
    """Training images that are held out."""
    threads: Annotated[int | None, default("the grid's")] = None
    """Number of CPU threads of each run."""
    device: Annotated[Literal["cpu", "gpu"] | None, default("the grid's")] = None
    """Device for training and attacks."""
    precision: Annotated[Literal["float32", "tf32"] | None, default("the grid's")] = None
    """Precision of training on a GPU."""

    def resolve(self) -> Grid:
        """
        Return the grid with its overrides.

        :raises ConfigError: If there is no such grid, or if a value is out of range.
        """
        grid = grids.get(self.grid)
        expect_at_least(self, 1, "seeds")
        overrides: dict[str, Any] = dict(self._overrides())
        recipe_fields = {field.name for field in fields(Recipe)}
        recipe_overrides = {name: value for name, value in overrides.items() if name in recipe_fields}
        recipes = tuple((dataset, replace(recipe, **recipe_overrides)) for dataset, recipe in self._recipes(grid))
        losses = grid.losses
        if self.alpha is not None:
            changed = (loss if loss.alpha is None else replace(loss, alpha=self.alpha) for loss in losses)
            losses = tuple(dict.fromkeys(changed))
        return replace(
            grid,
            name="-".join(
                [grid.name, *(f"{name.replace('_', '-')}-{_slug(value)}" for name, value in overrides.items())]
            ),
            recipes=recipes,
            losses=losses,
            seeds=grid.seeds if self.seeds is None else tuple(range(self.seeds)),
        )

    @property
    def command(self) -> str:
        """The command that reproduces the results, without paths, for display below the tables."""
        overrides = (f" --{name.replace('_', '-')} {shlex.quote(str(value))}" for name, value in self._overrides())
        return f"python -m benchmarks run --grid {shlex.quote(self.grid)}" + "".join(overrides)

    @property
    def resuming(self) -> str:
        """The command that resumes the run in the same store, without --data-dir, which status and report lack."""
        return f"{self.command} --store {shlex.quote(str(self.store))}"

    def _recipes(self, grid: Grid) -> tuple[tuple[str, Recipe], ...]:
        selected = tuple(pair for pair in grid.recipes if self.dataset in (None, pair[0]))
        if not selected and len(grid.recipes) > 1:
            raise ConfigError(
                f"expected dataset to be one of {[name for name, _ in grid.recipes]}, which grid {grid.name} has "
                f"recipes for, but got {self.dataset!r}"
            )
        return selected or tuple((str(self.dataset), recipe) for _, recipe in grid.recipes)

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


def expect_at_least(command: object, minimum: int, *names: str) -> None:
    """
    Check the named numbers of a command; None, which stands for a default, passes.

    :raises ConfigError: If a number is below the minimum.
    """
    for name in names:
        if (value := getattr(command, name)) is not None and value < minimum:
            raise ConfigError(f"expected {name} to be at least {minimum}, but got {value}")


def changed(command: object, *names: str) -> str:
    """Return the named options that differ from their defaults, as text for a command line."""
    text = ""
    for name in names:
        if (value := getattr(command, name)) != getattr(type(command), name):
            words = map(str, value if isinstance(value, tuple) else (value,))
            text += f" --{name.replace('_', '-')} {' '.join(map(shlex.quote, words))}"
    return text


def _slug(value: object) -> str:
    """Return a value as part of a folder name; in a reference, punctuation becomes dashes."""
    text = str(value)
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-.") if ":" in text else text
