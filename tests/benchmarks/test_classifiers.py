"""load_classifier returns the trained network of a grid, loss and seed."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from art_hrloss import HRClassifier, HRLoss
from benchmarks import data, execution, grids, load_classifier
from benchmarks.config import ConfigError, LossSpec
from benchmarks.store import Store, StoreError

GRID = grids.digits()
((DATASET, RECIPE),) = GRID.recipes
SHORT = replace(GRID, recipes=((DATASET, replace(RECIPE, epochs=1, curve_every=0, curve_attacks=())),), seeds=(0,))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Store with the HR loss's run of the short grid, and its clean record."""
    folder = tmp_path_factory.mktemp("store")
    (run,) = [run for run in SHORT.runs() if run.loss.name == "hr"]
    execution.execute(execution.Job(run, SHORT.attacks[:1], folder, folder))
    return folder


@pytest.mark.parametrize("grid", [SHORT, "digits"], ids=["grid", "name"])
@pytest.mark.parametrize("loss", ["HR(1.6)", LossSpec("hr", 1.6)], ids=["name", "loss"])
def test_the_loaded_network_is_the_trained_one(grid, loss, store: Path) -> None:
    changes = {} if grid is SHORT else {"epochs": 1, "curve_every": 0, "curve_attacks": ()}
    classifier = load_classifier(store, grid, loss, 0, **changes)
    assert isinstance(classifier, HRClassifier)
    assert isinstance(classifier.attack_loss, HRLoss), "the attack loss follows from the training loss"
    test = data.load("digits", data_dir=store, validation_size=180).test
    right = classifier.predict((test.images / 255).astype(np.float32)).argmax(1) == test.labels
    (run,) = [run for run in SHORT.runs() if run.loss.name == "hr"]
    assert right.sum() == Store(store).record(run, SHORT.attacks[0]).right.sum()


def test_for_an_untrained_network_the_error_contains_the_command_that_trains_it(store: Path) -> None:
    command = f"python -m benchmarks run --grid digits --epochs 1 --store {store} --seeds 8"
    with pytest.raises(StoreError, match=re.escape(command)):
        load_classifier(store, "digits", "CE", 7, epochs=1)


@pytest.mark.parametrize(
    ("grid", "loss", "named"),
    [("digits", "MSE", r"HR\(1\.6\).*MSE"), ("paper", "CE", "mnist.*cifar10.*svhn"), ("none", "CE", "'none'")],
)
def test_an_unknown_grid_loss_or_data_set_is_refused(grid: str, loss: str, named: str, store: Path) -> None:
    with pytest.raises(ConfigError, match=named):
        load_classifier(store, grid, loss, 0)
