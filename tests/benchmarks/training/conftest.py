"""Data sets for tests of training: the digits, and a small part of them."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import data
from benchmarks.data import Dataset, Split


@pytest.fixture(scope="package")
def digits() -> Dataset:
    return data.load("digits", data_dir=Path("none"), validation_size=180)


@pytest.fixture(scope="package")
def few(digits: Dataset) -> Dataset:
    """The first 120 images of each part, for tests that need few images."""
    parts = {name: getattr(digits, name) for name in ("train", "validation", "test")}
    return replace(digits, **{name: Split(part.images[:120], part.labels[:120]) for name, part in parts.items()})
