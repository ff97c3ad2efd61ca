"""Loading of a trained network of a grid as an ART classifier."""

import os
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from art_hrloss import HRClassifier
from benchmarks import data, grids
from benchmarks.config import DATA_DIR, ConfigError, Grid, LossSpec, Recipe, RunSpec
from benchmarks.evaluation import trained_classifier
from benchmarks.references import refer
from benchmarks.store import Store, StoreError


def load_classifier(
    store: str | Path,
    grid: str | Grid,
    loss: str | LossSpec,
    seed: int,
    *,
    dataset: str | None = None,
    data_dir: str | Path = DATA_DIR,
    **changes: Any,
) -> HRClassifier:
    """
    Load a trained network of a grid, selected by the training loss and the seed.

    The classifier takes images of shape ``(n, C, H, W)`` in [0, 1]. Its loss is the training loss.

    :param store: The folder of results.
    :param grid: The grid, its name, or a reference to it such as "my_study.py:my_grid".
    :param loss: The training loss, or its name in tables, such as "CE" or "HR(1.6)".
    :param seed: The run's seed.
    :param dataset: The data set of a grid with several; in a grid with one data set, its replacement.
    :param data_dir: The folder of the data set, which determines the image shape and the number of classes.
    :param changes: Fields of the recipe that the command had overridden, such as ``epochs=2``.
    :raises ConfigError: If the grid has no such data set or loss.
    :raises StoreError: If the network is not trained yet (the message contains the command that trains it), or was
        trained on other data of the same name.
    """
    declared = grid if isinstance(grid, Grid) else grids.get(grid)
    name, recipe = _recipe(declared, dataset)
    run = RunSpec(name, replace(recipe, **changes), _loss(declared, loss), seed)
    results = Store(Path(os.path.expanduser(store)))
    if not results.is_trained(run):
        grid_name = declared.name if declared.name in grids.GRIDS else "FILE.py:FUNCTION"
        options = {"grid": grid if isinstance(grid, str) else grid_name, "dataset": dataset, **changes, "store": store}
        options["seeds"] = None if seed in declared.seeds else seed + 1
        quoted = {
            name.replace("_", "-"): shlex.quote(str(value)) for name, value in options.items() if value is not None
        }
        command = "python -m benchmarks run" + "".join(f" --{name} {value}" for name, value in quoted.items())
        raise StoreError(f"expected {run} to be trained in {results.root}, but it is not: to train it, run `{command}`")
    folder, size = Path(data_dir), run.recipe.validation_size
    examples = data.load(run.dataset, data_dir=folder, validation_size=size, split_seed=run.recipe.split_seed)
    results.check(run, examples.fingerprint)
    return trained_classifier(run, examples, results)


def _recipe(grid: Grid, dataset: str | None) -> tuple[str, Recipe]:
    name, recipes = refer(dataset) if dataset and ":" in dataset else dataset, dict(grid.recipes)
    if len(recipes) == 1:
        ((default, recipe),) = grid.recipes
        return name or default, recipe
    if name not in recipes:
        raise ConfigError(f"expected dataset to be one of {list(recipes)}, but got {dataset!r}")
    return name, recipes[name]


def _loss(grid: Grid, loss: str | LossSpec) -> LossSpec:
    if isinstance(loss, LossSpec):
        return loss
    by_name = {str(declared): declared for declared in grid.losses}
    if loss not in by_name:
        raise ConfigError(f"expected loss to be one of {list(by_name)}, but got {loss!r}")
    return by_name[loss]
