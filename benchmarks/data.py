"""Data sets by name, as arrays: the digits, torchvision's, any NAME.npz or sheets, and what a user's function returns.

Every source ends as images uint8 (N, C, H, W) and labels int64 (N,), validated once, here. Files are taken to be
hostile: no pickle is opened unless its MD5 is torchvision's own, and MNIST and CIFAR-10 must have the official content.
"""

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks import data_files
from benchmarks.data_files import DataError as DataError
from benchmarks.data_files import reading
from benchmarks.references import Reference, did_you_mean

# Torchvision's, by their names here: the name of its class, and what tells the part that is meant.
TORCHVISION: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "mnist": ("MNIST", {}),
    "cifar10": ("CIFAR10", {}),
    "svhn": ("SVHN", {}),
    "fashion-mnist": ("FashionMNIST", {}),
    "kmnist": ("KMNIST", {}),
    "emnist-digits": ("EMNIST", {"split": "digits"}),
    "cifar100": ("CIFAR100", {}),
}
BUILT_IN = ("digits", *TORCHVISION)

# `digest(train, test)` of the official data. Those of which it is not here are known by torchvision's MD5s alone, which
# it has of every file but the unpacked ones of the MNIST kind.
OFFICIAL_SHA256: Mapping[str, str] = {
    "mnist": "e0130f111822ed58de3ba94ad450971c80ee446d2ff4d08e2b4c8e8be16eae50",
    "cifar10": "088db17c50ddf8b6d4ae26627291c330435e1f1bd0f0f70db194a685896d7abd",
}


@dataclass(frozen=True, eq=False)
class Split:
    """Examples of one part of a data set: images (N, C, H, W) and the class of each, (N,)."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def tensors(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Images as float32 in [0, 1], shape ``(N, C, H, W)``, and labels, shape ``(N,)``.

        All who ask share them, as long as the split lives: they are not to be modified.
        """
        device = torch.empty(0, device=device).device  # "cuda" is the same as "cuda:0"
        if device not in self._tensors:
            # torch.from_numpy would share memory that may be read-only, which tensors do not know. And a GPU multiplies
            # by 1 / 255 where it is to divide by a number, so that images would not be those of the CPU.
            white = torch.full((), 255.0, device=device)
            images = torch.tensor(self.images, device=device).float().div_(white)
            self._tensors[device] = images, torch.tensor(self.labels, device=device)
        return self._tensors[device]

    @cached_property
    def _tensors(self) -> dict[torch.device, tuple[torch.Tensor, torch.Tensor]]:
        return {}

    def __getstate__(self) -> dict[str, Any]:
        """The arrays alone."""
        return {"images": self.images, "labels": self.labels}


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in its three parts; labels run from 0 to `classes` - 1."""

    name: str
    classes: int
    train: Split
    validation: Split
    test: Split

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image."""
        _, channels, height, width = self.train.images.shape
        return channels, height, width

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the three parts, whatever the name and the source."""
        return digest(self.train, self.validation, self.test)


def digest(*splits: Split) -> str:
    """SHA-256, in hexadecimal, of the images' shape, the images and the labels of each split in turn."""
    sha256 = hashlib.sha256()
    for split in splits:
        sha256.update(str(split.images.shape).encode())
        sha256.update(np.ascontiguousarray(split.images).data)
        sha256.update(np.ascontiguousarray(split.labels, dtype="<i8").data)
    return sha256.hexdigest()


def load(name: str, *, data_dir: Path, download: bool = False, validation_size: int, split_seed: int = 2019) -> Dataset:
    """Load a data set and draw its validation part from its training part.

    Torchvision's data sets are read from its own files in `data_dir`. Where there are none, MNIST and CIFAR-10 are read
    from NAME.npz or sheets there; where these are missing too, torchvision downloads its files if it may.

    :param name: One of BUILT_IN; the NAME of a NAME.npz with x_train, y_train, x_test, y_test: images uint8 (N, H, W)
        or (N, H, W, C) with C 1 or 3, labels integers (N,) from 0 to classes - 1; or of sheets of these; or a reference
        to what returns these.
    :param data_dir: Folder of the files.
    :param download: Whether torchvision may download files that are missing or damaged.
    :param validation_size: Number of training examples to set aside for validation.
    :param split_seed: Seed of the draw; for "digits", which has no test part of its own, of the test part as well.
    :return: The same arrays in the same order for the same arguments and content.
    :raises DataError: If the data set is unknown, missing, damaged, not what its name says, or too small to split.
    """
    train, test = _unsplit(name, data_dir, download=download, split_seed=split_seed)
    classes = int(train.labels.max()) + 1
    limit = len(train) - classes  # more training examples stay than there are classes
    if not 1 <= validation_size < limit:
        came = f"{validation_size}: say how many to set aside with --validation-size"
        raise DataError(f"{name}: expected validation_size from 1 to less than {limit}, but got {came}")
    train, validation = _set_aside(train, validation_size, split_seed)
    return Dataset(name, classes, train, validation, test)


def pack(name: str, *, data_dir: Path, folder: Path) -> list[Path]:
    """
    Write a data set as sheets, which :func:`load` reads where there is neither NAME.npz nor torchvision's own files.

    :return: The files, in folders of at most so many bytes as :mod:`benchmarks.data_files` says.
    :raises DataError: As :func:`load`.
    """
    train, test = _unsplit(name, data_dir, download=False, split_seed=2019)
    arrays = {"y_train": train.labels, "y_test": test.labels}
    images = {f"x_{part}": split.images.transpose(0, 2, 3, 1) for part, split in (("train", train), ("test", test))}
    return data_files.pack(name, arrays | images, folder)


def files(name: str, data_dir: Path) -> tuple[Path, ...]:
    """The files that :func:`load` looks for, whether they are there or not; "digits" has none."""
    if isinstance(name, Reference):
        return (Path(name.path),) if name.path else ()
    data_dir = Path(os.path.expanduser(data_dir))
    official = tuple(_official_md5s(name, data_dir)) if name in BUILT_IN[1:] else ()
    return official if name == "digits" else (*official, *data_files.find(name, data_dir))


def _unsplit(name: str, data_dir: Path, *, download: bool, split_seed: int) -> tuple[Split, Split]:
    """The training part, with what will be set aside for validation, and the test part."""
    if not isinstance(name, Reference) and not re.fullmatch(r"\w[\w.-]*", name):
        raise DataError(f"expected a plain data set name (letters, digits, '_', '-', inner '.'), but got {name!r}")
    data_dir = Path(os.path.expanduser(data_dir))  # unlike Path's own, no error where there is no home
    if isinstance(name, Reference):
        return _own(name)
    if name == "digits":
        return _digits(split_seed)
    return _official(name, data_dir, download=download) if name in BUILT_IN else _packed(name, data_dir)


def _set_aside(split: Split, size: int, seed: int) -> tuple[Split, Split]:
    """Part a split at random into what stays and the `size` examples set aside."""
    aside, stay = np.split(np.random.default_rng(seed).permutation(len(split)), [size])
    return Split(split.images[stay], split.labels[stay]), Split(split.images[aside], split.labels[aside])


def _digits(split_seed: int) -> tuple[Split, Split]:
    # Imported here, as torchvision is below, so that a data set costs only its own library's import.
    from sklearn.datasets import load_digits

    levels, labels = load_digits(return_X_y=True)
    images = np.rint(levels.reshape(-1, 1, 8, 8) * 255 / 16).astype(np.uint8)
    return _set_aside(Split(images, labels.astype(np.int64)), 360, split_seed)


def _own(reference: Reference) -> tuple[Split, Split]:
    arrays = reference.make(tuple)
    if len(arrays) != 4:
        raise DataError(f"{reference}: expected x_train, y_train, x_test, y_test, but got {len(arrays)} values")
    with reading(reference):
        return _checked(reference, *map(np.asarray, arrays))


def _official(name: str, data_dir: Path, *, download: bool) -> tuple[Split, Split]:
    files = _torchvision_files(name, data_dir)
    source = data_files.source(name, data_dir)
    if name in OFFICIAL_SHA256 and source and not any(path.exists() for path in files):
        train, test = _packed(name, data_dir)
    else:
        _ensure_whole(files, name, data_dir, download=download)
        source = next(iter(files)).parent
        with reading(source):
            train, test = _checked(source, *_torchvision_arrays(name, data_dir, download=False))
    expected, came = OFFICIAL_SHA256.get(name), digest(train, test)
    if expected not in (None, came):
        raise DataError(
            f"{source} is not the official {name}: expected content of SHA-256 {expected}, but got {came}; "
            "give it another name to use it under that name"
        )
    return train, test


def _ensure_whole(files: Mapping[Path, bool], name: str, data_dir: Path, *, download: bool) -> None:
    """Make sure that torchvision's files are whole, downloading them where that is needed and allowed."""
    otherwise = f"put them into {next(iter(files)).parent}"
    if name in OFFICIAL_SHA256:
        otherwise += f", or, with none of them there, use {data_dir / name}.npz"
    else:  # nothing could show an .npz to be official
        otherwise += f"; {name}.npz is not accepted: other images go under their own name, such as {name}_grey.npz"
    if download and not all(files.values()):
        try:
            _torchvision_arrays(name, data_dir, download=True)
        except Exception as error:  # whatever goes wrong in the network, on the disk or in an archive
            raise DataError(f"{name}: expected to download its files, but got {error!r}; {otherwise}") from error
        files = _torchvision_files(name, data_dir)
    if damaged := ", ".join(str(path) for path, whole in files.items() if not whole):
        raise DataError(
            f"{name}: expected torchvision's files, but missing or altered: {damaged}; pass --download, {otherwise}"
        )


def _torchvision_files(name: str, data_dir: Path) -> dict[Path, bool]:
    """Torchvision's files, and whether each is whole: there, and of the right MD5 where torchvision has one for it."""
    from torchvision.datasets.utils import check_integrity

    return {path: check_integrity(path, md5) for path, md5 in _official_md5s(name, data_dir).items()}


def _official_md5s(name: str, data_dir: Path) -> dict[Path, str | None]:
    reader = _reader(name)
    if name == "svhn":
        return {data_dir / file: md5 for _, file, md5 in (reader.split_list[part] for part in ("train", "test"))}
    if name.startswith("cifar"):
        batches = [*reader.train_list, *reader.test_list, (reader.meta["filename"], reader.meta["md5"])]
        return {data_dir / reader.base_folder / file: md5 for file, md5 in batches}
    raw = data_dir / reader.__name__ / "raw"
    if name == "emnist-digits":  # of which torchvision fetches a single archive, with more in it
        parts = ("train-images-idx3", "train-labels-idx1", "test-images-idx3", "test-labels-idx1")
        return {raw / f"{name}-{part}-ubyte": None for part in parts}
    return {raw / Path(archive).stem: None for archive, _ in reader.resources}


def _torchvision_arrays(name: str, data_dir: Path, *, download: bool) -> list[npt.NDArray[Any]]:
    """Training images, (N, H, W) or (N, H, W, C), and labels, test images and labels."""
    reader, (_, options) = _reader(name), TORCHVISION[name]
    if name == "svhn":
        svhn = [reader(data_dir, split=split, download=download) for split in ("train", "test")]
        return [array for part in svhn for array in (part.data.transpose(0, 2, 3, 1), part.labels)]
    # CIFAR's readers unpickle no file before they have compared its MD5.
    parts = [reader(data_dir, train=train, download=download, **options) for train in (True, False)]
    return [np.asarray(array) for part in parts for array in (part.data, part.targets)]


def _reader(name: str) -> Any:
    from torchvision import datasets

    return getattr(datasets, TORCHVISION[name][0])


def _packed(name: str, data_dir: Path) -> tuple[Split, Split]:
    """Training and test part from NAME.npz or sheets."""
    source = data_files.source(name, data_dir)
    if source is None:
        found = ", ".join(sorted(file.name for file in data_dir.glob("*.npz"))) or "no .npz file"
        known = f"one of {', '.join(BUILT_IN)}, or a file {data_dir / name}.npz"
        raise DataError(f"expected {known}, but found {found} there{did_you_mean(name, BUILT_IN)}")
    return _checked(source, *data_files.read(name, data_dir))


def _checked(source: Path | Reference, *arrays: npt.NDArray[Any]) -> tuple[Split, Split]:
    """Validate training images and labels, test images and labels, and give them their common form."""
    train = _checked_split(f"{source}: expected train", *arrays[:2])
    test = _checked_split(f"{source}: expected test", *arrays[2:])
    here, there = train.images.shape[1:], test.images.shape[1:]
    if here != there:
        raise DataError(f"{source}: expected test images of shape (C, H, W) {here}, as in train, but got {there}")
    classes = np.unique(train.labels)
    if len(classes) < 2 or not np.array_equal(classes, np.arange(len(classes))):
        raise DataError(
            f"{source}: expected train labels of 2 or more classes, numbered from 0 with none left out, "
            f"but got {len(classes)} different labels from {classes[0]} to {classes[-1]}"
        )
    if unseen := np.setdiff1d(test.labels, classes).tolist():
        raise DataError(f"{source}: expected test labels to occur in train, but these do not: {unseen[:10]}")
    return train, test


def _checked_split(expected: str, images: npt.NDArray[Any], labels: npt.NDArray[Any]) -> Split:
    grey = images.ndim == 3
    if images.dtype != np.uint8 or not images.size or not (grey or (images.ndim == 4 and images.shape[3] in (1, 3))):
        raise DataError(
            f"{expected} images to be uint8 of shape (N, H, W) or (N, H, W, C) with C 1 or 3, none of them 0, "
            f"but got {images.dtype} of shape {images.shape}"
        )
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise DataError(
            f"{expected} labels to be integers of shape {images.shape[:1]}, but got {labels.dtype} {labels.shape}"
        )
    channels_first = images[:, np.newaxis] if grey else images.transpose(0, 3, 1, 2)
    return Split(np.ascontiguousarray(channels_first), labels.astype(np.int64))
