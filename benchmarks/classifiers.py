"""A trained network of a grid as a classifier, for ART's pipelines."""

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
    Load a trained network of a grid, by the store, the grid, the training loss and the seed.

    It takes images of shape ``(n, C, H, W)`` in [0, 1]; its loss is the one that it was trained with.

    :param store: The folder of results.
    :param grid: The grid, its name, or a reference to it such as "my_study.py:my_grid".
    :param loss: The training loss, or what tables call it, such as "CE" or "HR(1.6)".
    :param seed: The run's seed.
    :param dataset: Which data set, for a grid of several, or in place of a grid's own.
    :param data_dir: Where the data set is, which tells the shape of the images and the number of classes.
    :param changes: What the command overrode of the recipe, such as ``epochs=2``.
    :raises ConfigError: If the grid has no such data set or loss.
    :raises StoreError: If the network is not trained yet, naming the command that trains it, or was trained on other
        data of the same name.
    """
    declared = grid if isinstance(grid, Grid) else grids.get(grid)
    name, recipe = _recipe(declared, dataset)
    run = RunSpec(name, replace(recipe, **changes), _loss(declared, loss), seed)
    kept = Store(Path(os.path.expanduser(store)))
    if not kept.is_trained(run):
        of_ours = declared.name if declared.name in grids.GRIDS else "FILE.py:FUNCTION"
        options = {"grid": grid if isinstance(grid, str) else of_ours, "dataset": dataset, **changes, "store": store}
        options["seeds"] = None if seed in declared.seeds else seed + 1
        given = {
            name.replace("_", "-"): shlex.quote(str(value)) for name, value in options.items() if value is not None
        }
        command = "python -m benchmarks run" + "".join(f" --{name} {value}" for name, value in given.items())
        raise StoreError(f"expected {run} to be trained in {kept.root}, but it is not yet: `{command}` trains it")
    folder, size = Path(data_dir), run.recipe.validation_size
    examples = data.load(run.dataset, data_dir=folder, validation_size=size, split_seed=run.recipe.split_seed)
    kept.check(run, examples.fingerprint)
    return trained_classifier(run, examples, kept)


def _recipe(grid: Grid, dataset: str | None) -> tuple[str, Recipe]:
    wanted, recipes = refer(dataset) if dataset and ":" in dataset else dataset, dict(grid.recipes)
    if len(recipes) == 1:
        ((own, recipe),) = grid.recipes
        return wanted or own, recipe
    if wanted not in recipes:
        raise ConfigError(f"expected dataset to be one of {list(recipes)}, but got {dataset!r}")
    return wanted, recipes[wanted]


def _loss(grid: Grid, loss: str | LossSpec) -> LossSpec:
    if isinstance(loss, LossSpec):
        return loss
    by_name = {str(one): one for one in grid.losses}
    if loss not in by_name:
        raise ConfigError(f"expected loss to be one of {list(by_name)}, but got {loss!r}")
    return by_name[loss]
