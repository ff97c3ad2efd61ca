"""Cache of data sets: one read per process, read-only arrays, and a new read when a file changes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import data, grids, protocols, recipes
from benchmarks.config import RunSpec
from benchmarks.data import DataError, Dataset
from benchmarks.execution import Job
from benchmarks.execution import _jobs as worker

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def empty_cache() -> None:
    worker._load.cache_clear()


def write(path: Path, seed: int) -> None:
    """Write a data set of 30 random images; the file has the same size for every seed."""
    random = np.random.default_rng(seed)
    images, labels = random.integers(256, size=(30, 4, 4), dtype=np.uint8), np.arange(30) % 3
    np.savez(path, x_train=images[:24], y_train=labels[:24], x_test=images[24:], y_test=labels[24:])


def load(folder: Path, **options: int) -> Dataset:
    return worker.load_data("noise", replace(recipes.DIGITS, **{"validation_size": 6, **options}), data_dir=folder)


def read_without_cache(folder: Path) -> Dataset:
    return data.load("noise", data_dir=folder, validation_size=6)


def test_a_data_set_is_read_again_only_for_other_options(tmp_path: Path) -> None:
    write(tmp_path / "noise.npz", 0)
    first = load(tmp_path)
    assert load(tmp_path) is first
    assert first.fingerprint == read_without_cache(tmp_path).fingerprint
    other = load(tmp_path, validation_size=7)
    assert (len(first.validation), len(other.validation)) == (6, 7)
    assert load(tmp_path, split_seed=3).fingerprint != first.fingerprint


@pytest.mark.parametrize("how", ["overwritten", "replaced", "removed"])
def test_a_file_that_changes_is_read_again(how: str, tmp_path: Path) -> None:
    path, other = tmp_path / "noise.npz", tmp_path / "other.npz"
    write(path, 0)
    first, size = load(tmp_path), path.stat().st_size
    if how == "overwritten":
        write(path, 1)
    else:
        write(other, 1)
        other.replace(path)
    assert path.stat().st_size == size
    second = load(tmp_path)
    assert second.fingerprint == read_without_cache(tmp_path).fingerprint != first.fingerprint
    if how == "removed":
        path.unlink()
        with pytest.raises(DataError, match=r"or a file .*noise\.npz"):
            load(tmp_path)


@pytest.mark.parametrize("name", [*data.TORCHVISION, "noise"])
def test_a_change_of_any_file_of_a_data_set_is_detected(name: str, tmp_path: Path) -> None:
    watched = data.files(name, tmp_path)
    assert tmp_path / f"{name}.npz" in watched
    assert all(path.is_relative_to(tmp_path) for path in watched)
    # Torchvision's files: images and labels of both parts; batches and metadata.
    named = {"cifar10": 7, "cifar100": 3, "svhn": 2, "noise": 0}
    assert len(set(watched)) == named.get(name, 4) + 1


def test_an_invalid_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a plain data set name"):
        worker.load_data("a\0b", recipes.DIGITS, data_dir=tmp_path)


def test_the_arrays_are_read_only(tmp_path: Path) -> None:
    write(tmp_path / "noise.npz", 0)
    before = load(tmp_path)
    for split in (before.train, before.validation, before.test):
        for array in (split.images, split.labels):
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 1
        images, labels = split.tensors(CPU)
        expected = split.images.astype(np.float32) / np.float32(255)
        np.testing.assert_array_equal(images.numpy(), expected)
        np.testing.assert_array_equal(labels.numpy(), split.labels)
        images.zero_()
        labels.zero_()
    assert data.digest(before.train, before.validation, before.test) == read_without_cache(tmp_path).fingerprint


def test_runs_of_one_process_read_their_data_once(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    ((name, recipe),) = grids.get("digits").recipes
    recipe = replace(recipe, epochs=1, curve_every=1)
    attacks = (protocols.exact("ce", 0.0), protocols.exact("hr", 0.1))
    for seed in range(3):
        worker.execute(Job(RunSpec(name, recipe, protocols.HR, seed), attacks, tmp_path, tmp_path))
    assert worker._load.cache_info()[:2] == (2, 1), "hits and misses"
    assert not recwarn.list
