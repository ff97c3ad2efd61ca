"""A data set that a process reads once, whatever number of its runs use it."""

from functools import lru_cache
from pathlib import Path

from benchmarks import data
from benchmarks.data import Dataset

# What tells a file from another, or from itself before a change; None where there is none.
FileState = tuple[int, int, int, int] | None


def load(name: str, *, data_dir: Path, download: bool = False, validation_size: int, split_seed: int = 2019) -> Dataset:
    """
    As :func:`benchmarks.data.load`, but what was loaded last is not read again while its files are as they were.

    :return: A data set with read-only arrays, since all who ask for it share them; its fingerprint is computed once.
    :raises DataError: As it does.
    """
    # Looked at before they are read: a change in between is then seen the next time.
    states = tuple(_state(path) for path in data.files(name, data_dir))
    return _load(name, data_dir, download, validation_size, split_seed, states)


# One: a worker goes through the runs of one data set before the next, and CIFAR-10 or SVHN is 200 or 300 MB.
@lru_cache(maxsize=1)
def _load(
    name: str, data_dir: Path, download: bool, validation_size: int, split_seed: int, states: tuple[FileState, ...]
) -> Dataset:
    dataset = data.load(
        name, data_dir=data_dir, download=download, validation_size=validation_size, split_seed=split_seed
    )
    for split in (dataset.train, dataset.validation, dataset.test):
        split.images.setflags(write=False)
        split.labels.setflags(write=False)
    return dataset


def _state(path: Path) -> FileState:
    try:
        found = path.stat()
    except (OSError, ValueError):  # no such file, or no such name; whether that matters, load knows
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
