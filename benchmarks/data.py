"""
Data sets by name, as arrays: scikit-learn's digits, torchvision's data sets, NAME.npz or sheets, and user functions.

Every source is validated and becomes uint8 images (N, C, H, W) and int64 labels (N,). Files are treated as hostile: a
pickle is opened only if its MD5 is the one that torchvision states, and MNIST and CIFAR-10 must have official content.
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
from benchmarks.data_files import TORCHVISION, reading, torchvision_arrays, torchvision_files, torchvision_md5s
from benchmarks.data_files import DataError as DataError
from benchmarks.references import Reference, did_you_mean

BUILT_IN = ("digits", *TORCHVISION)

# `digest(train, test)` of official data sets. Other data sets are verified by torchvision's MD5s only, which exist for
# all files except the unpacked files of MNIST, Fashion-MNIST, KMNIST and EMNIST.
OFFICIAL_SHA256: Mapping[str, str] = {
    "mnist": "e0130f111822ed58de3ba94ad450971c80ee446d2ff4d08e2b4c8e8be16eae50",
    "cifar10": "088db17c50ddf8b6d4ae26627291c330435e1f1bd0f0f70db194a685896d7abd",
}


@dataclass(frozen=True, eq=False)
class Split:
    """Part of a data set: images (N, C, H, W) and class labels (N,)."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def tensors(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Return images as float32 in [0, 1], shape ``(N, C, H, W)``, and labels, shape ``(N,)``.

        The tensors are cached per device and shared by all callers, which must not modify them.
        """
        device = torch.empty(0, device=device).device  # the device with its index: "cuda" becomes "cuda:0"
        if device not in self._tensors:
            # torch.tensor copies; torch.from_numpy would share memory that may be read-only. The divisor is a tensor,
            # because a GPU divides by a Python number as a product with 1 / 255, which rounds unlike the CPU.
            white = torch.full((), 255.0, device=device)
            images = torch.tensor(self.images, device=device).float().div_(white)
            self._tensors[device] = images, torch.tensor(self.labels, device=device)
        return self._tensors[device]

    @cached_property
    def _tensors(self) -> dict[torch.device, tuple[torch.Tensor, torch.Tensor]]:
        return {}

    def __getstate__(self) -> dict[str, Any]:
        """Return the arrays only: cached tensors are not pickled."""
        return {"images": self.images, "labels": self.labels}


@dataclass(frozen=True, eq=False)
class Dataset:
    """Data set in three parts, with labels from 0 to `classes` - 1."""

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
        """Digest of the three parts; it does not depend on the name and the source."""
        return digest(self.train, self.validation, self.test)


def digest(*splits: Split) -> str:
    """Return the SHA-256, in hexadecimal, of each split's image shape, images and labels."""
    sha256 = hashlib.sha256()
    for split in splits:
        sha256.update(str(split.images.shape).encode())
        sha256.update(np.ascontiguousarray(split.images).data)
        sha256.update(np.ascontiguousarray(split.labels, dtype="<i8").data)
    return sha256.hexdigest()


def load(name: str, *, data_dir: Path, download: bool = False, validation_size: int, split_seed: int = 2019) -> Dataset:
    """
    Load a data set and draw its validation part from its training part.

    Torchvision's data sets are read from torchvision's files in `data_dir`. If these do not exist, MNIST and CIFAR-10
    are read from NAME.npz or sheets. If these do not exist either, torchvision downloads its files, if allowed.

    :param name: One of BUILT_IN; or the NAME of NAME.npz or of sheets, with x_train, y_train, x_test and y_test: uint8
        images (N, H, W) or (N, H, W, C) with C 1 or 3, and integer labels (N,) from 0 to classes - 1; or a reference to
        a function that returns these four arrays.
    :param data_dir: Folder of the files.
    :param download: Whether torchvision may download files that are missing or damaged.
    :param validation_size: Number of training examples that are held out for validation.
    :param split_seed: Seed of the draw; for "digits", which has no official test part, also of the test part.
    :return: The same arrays in the same order for the same arguments and content.
    :raises DataError: If the data set is unknown, missing, damaged, not the official one, or too small to split.
    """
    train, test = _unsplit(name, data_dir, download=download, split_seed=split_seed)
    classes = int(train.labels.max()) + 1
    limit = len(train) - classes  # so that more training examples remain than there are classes
    if not 1 <= validation_size < limit:
        raise DataError(
            f"{name}: expected validation_size from 1 to less than {limit}, but got {validation_size}: set it with "
            "--validation-size"
        )
    train, validation = _hold_out(train, validation_size, split_seed)
    return Dataset(name, classes, train, validation, test)


def pack(name: str, *, data_dir: Path, folder: Path) -> list[Path]:
    """
    Write a data set as sheets, which :func:`load` reads if neither NAME.npz nor torchvision's files exist.

    :return: The files, in folders of limited size: see :func:`benchmarks.data_files.pack`.
    :raises DataError: See :func:`load`.
    """
    train, test = _unsplit(name, data_dir, download=False, split_seed=2019)
    arrays = {"y_train": train.labels, "y_test": test.labels}
    images = {f"x_{part}": split.images.transpose(0, 2, 3, 1) for part, split in (("train", train), ("test", test))}
    return data_files.pack(name, arrays | images, folder)


def files(name: str, data_dir: Path) -> tuple[Path, ...]:
    """Return the files that :func:`load` searches for, whether they exist or not; "digits" has none."""
    if isinstance(name, Reference):
        return (Path(name.path),) if name.path else ()
    data_dir = Path(os.path.expanduser(data_dir))
    official = tuple(torchvision_md5s(name, data_dir)) if name in BUILT_IN[1:] else ()
    return official if name == "digits" else (*official, *data_files.find(name, data_dir))


def _unsplit(name: str, data_dir: Path, *, download: bool, split_seed: int) -> tuple[Split, Split]:
    """Return the training part, before validation examples are held out, and the test part."""
    if not isinstance(name, Reference) and not re.fullmatch(r"\w[\w.-]*", name):
        raise DataError(f"expected a plain data set name (letters, digits, '_', '-', inner '.'), but got {name!r}")
    data_dir = Path(os.path.expanduser(data_dir))  # Path.expanduser would raise an error without a home directory
    if isinstance(name, Reference):
        return _from_reference(name)
    if name == "digits":
        return _digits(split_seed)
    return _official(name, data_dir, download=download) if name in BUILT_IN else _packed(name, data_dir)


def _hold_out(split: Split, size: int, seed: int) -> tuple[Split, Split]:
    """Divide a split at random; return the remaining examples and the `size` examples that are held out."""
    held_out, remaining = np.split(np.random.default_rng(seed).permutation(len(split)), [size])
    rest, drawn = (Split(split.images[indices], split.labels[indices]) for indices in (remaining, held_out))
    return rest, drawn


def _digits(split_seed: int) -> tuple[Split, Split]:
    # Imported in the function, as torchvision is below: only the data set's own library is imported.
    from sklearn.datasets import load_digits

    levels, labels = load_digits(return_X_y=True)
    images = np.rint(levels.reshape(-1, 1, 8, 8) * 255 / 16).astype(np.uint8)
    return _hold_out(Split(images, labels.astype(np.int64)), 360, split_seed)


def _from_reference(reference: Reference) -> tuple[Split, Split]:
    arrays = reference.make(tuple)
    if len(arrays) != 4:
        raise DataError(f"{reference}: expected x_train, y_train, x_test, y_test, but got {len(arrays)} values")
    with reading(reference):
        return _checked(reference, *map(np.asarray, arrays))


def _official(name: str, data_dir: Path, *, download: bool) -> tuple[Split, Split]:
    files = torchvision_files(name, data_dir)
    source = data_files.source(name, data_dir)
    if name in OFFICIAL_SHA256 and source and not any(path.exists() for path in files):
        train, test = _packed(name, data_dir)
    else:
        _expect_complete(files, name, data_dir, download=download)
        source = next(iter(files)).parent
        with reading(source):
            train, test = _checked(source, *torchvision_arrays(name, data_dir, download=False))
    expected, actual = OFFICIAL_SHA256.get(name), digest(train, test)
    if expected not in (None, actual):
        raise DataError(
            f"{source} is not the official {name}: expected content of SHA-256 {expected}, but got {actual}; "
            "rename it to use it under another name"
        )
    return train, test


def _expect_complete(files: Mapping[Path, bool], name: str, data_dir: Path, *, download: bool) -> None:
    """Make sure that torchvision's files exist and are undamaged; download them if necessary and allowed."""
    remedy = f"put them into {next(iter(files)).parent}"
    if name in OFFICIAL_SHA256:
        remedy += f", or remove them all and use {data_dir / name}.npz"
    else:  # without an official digest, the content of an .npz cannot be verified
        remedy += f"; {name}.npz is not accepted, because it cannot be verified: use another name, as {name}_grey.npz"
    if download and not all(files.values()):
        try:
            torchvision_arrays(name, data_dir, download=True)
        except Exception as error:  # any error of the network, the disk or an archive
            raise DataError(f"{name}: expected to download its files, but got {error!r}; {remedy}") from error
        files = torchvision_files(name, data_dir)
    if damaged := ", ".join(str(path) for path, complete in files.items() if not complete):
        raise DataError(
            f"{name}: expected torchvision's files, but these are missing or damaged: {damaged}; use --download, "
            f"or {remedy}"
        )


def _packed(name: str, data_dir: Path) -> tuple[Split, Split]:
    """Return the training and test part from NAME.npz or sheets."""
    source = data_files.source(name, data_dir)
    if source is None:
        existing = ", ".join(sorted(file.name for file in data_dir.glob("*.npz"))) or "no .npz file"
        known = f"one of {', '.join(BUILT_IN)}, or a file {data_dir / name}.npz"
        raise DataError(f"expected {known}, but the folder has {existing}{did_you_mean(name, BUILT_IN)}")
    return _checked(source, *data_files.read(name, data_dir))


def _checked(source: Path | Reference, *arrays: npt.NDArray[Any]) -> tuple[Split, Split]:
    """Validate training images and labels, test images and labels, and convert them to splits."""
    train = _checked_split(f"{source}: expected train", *arrays[:2])
    test = _checked_split(f"{source}: expected test", *arrays[2:])
    train_shape, test_shape = train.images.shape[1:], test.images.shape[1:]
    if train_shape != test_shape:
        expected = f"{source}: expected test images of shape (C, H, W) {train_shape}, as in train"
        raise DataError(f"{expected}, but got {test_shape}")
    classes = np.unique(train.labels)
    if len(classes) < 2 or not np.array_equal(classes, np.arange(len(classes))):
        raise DataError(
            f"{source}: expected train labels of 2 or more classes, numbered from 0 without gaps, "
            f"but got {len(classes)} different labels from {classes[0]} to {classes[-1]}"
        )
    if unseen := np.setdiff1d(test.labels, classes).tolist():
        raise DataError(f"{source}: expected test labels that occur in train, but got {unseen[:10]}, which do not")
    return train, test


def _checked_split(expected: str, images: npt.NDArray[Any], labels: npt.NDArray[Any]) -> Split:
    grey = images.ndim == 3
    if images.dtype != np.uint8 or not images.size or not (grey or (images.ndim == 4 and images.shape[3] in (1, 3))):
        raise DataError(
            f"{expected} images to be uint8 of shape (N, H, W) or (N, H, W, C) with C 1 or 3 and no empty dimension, "
            f"but got {images.dtype} of shape {images.shape}"
        )
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise DataError(
            f"{expected} labels to be integers of shape {images.shape[:1]}, but got {labels.dtype} {labels.shape}"
        )
    channels_first = images[:, np.newaxis] if grey else images.transpose(0, 3, 1, 2)
    return Split(np.ascontiguousarray(channels_first), labels.astype(np.int64))
