"""
Data sets in files that are no library's own: NAME.npz, or, a little over half as large, sheets of images.

Sheets are lossless WebP files. NAME-train-00.webp and so on have the images in order, NAME-labels.npz the labels and
the images' shape, so that it is known how many sheets there must be. A sheet is a square of images, row by row; the end
of the last one is black. They may come in several folders, for where only so much can be copied at once: CIFAR-10's
184 MB are 101 MB of sheets.
"""

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

# Images along each side of a sheet: of CIFAR-10's, 2,500 make some 4 MB.
SIDE = 50
# Bytes of a folder of sheets, at most; half of CIFAR-10's are fewer.
PART = 52_000_000

Array = npt.NDArray[Any]


class DataError(ValueError):
    """A data set that cannot be used; the message names the file, what was expected and what came."""


def pack(name: str, arrays: dict[str, Array], folder: Path) -> list[Path]:
    """
    Write a data set as sheets into FOLDER/NAME-1, FOLDER/NAME-2 and so on, each of at most PART bytes.

    :param name: The data set's name.
    :param arrays: x_train and x_test, uint8 of shape (N, H, W) or (N, H, W, C) with C 1 or 3; y_train, y_test.
    :return: The files.
    :raises DataError: If a sheet of such images is more than the format can hold.
    """
    shape = arrays["x_train"].shape[1:]
    if SIDE * max(shape[:2]) > 16383:  # the most that the format has
        raise DataError(f"{name}: expected images of at most {16383 // SIDE} pixels a side, but got shape {shape}")
    files = [(f"{name}-labels.npz", _npz_bytes(y_train=arrays["y_train"], y_test=arrays["y_test"], shape=shape))]
    for part in ("test", "train"):
        sheets = enumerate(_sheets(arrays[f"x_{part}"]))
        files += [(f"{name}-{part}-{i:02d}.webp", sheet) for i, sheet in sheets]
    written, number, size = [], 1, 0
    for file, content in files:
        size += len(content)
        if size > PART:
            number, size = number + 1, len(content)
        written.append(folder / f"{name}-{number}" / file)
        written[-1].parent.mkdir(parents=True, exist_ok=True)
        written[-1].write_bytes(content)
    return written


def find(name: str, folder: Path) -> list[Path]:
    """Return the files that a data set may be read from: NAME.npz, there or not, and the sheets that are there."""
    return [folder / f"{name}.npz", *_sheet_files(name, folder).values()]


def source(name: str, folder: Path) -> Path | None:
    """Return the file that :func:`read` begins with; None if there is none."""
    npz, *sheets = find(name, folder)
    if npz.exists():
        return npz
    return next((path for path in sheets if path.name == f"{name}-labels.npz"), sheets[0]) if sheets else None


def read(name: str, folder: Path) -> list[Array]:
    """
    Return training images and labels, test images and labels, bit for bit as they were packed.

    :raises DataError: If a file is damaged, or a sheet is missing.
    """
    npz = folder / f"{name}.npz"
    if npz.exists():
        return _arrays(npz, "x_train", "y_train", "x_test", "y_test")
    files, labels_file = _sheet_files(name, folder), f"{name}-labels.npz"
    y_train, y_test, shape = _arrays(files.get(labels_file, folder / labels_file), "y_train", "y_test", "shape")
    arrays = []
    with reading(folder / labels_file):
        for part, labels in (("train", y_train), ("test", y_test)):
            names = [f"{name}-{part}-{i:02d}.webp" for i in range(-(-len(labels) // SIDE**2))]
            if missing := [file for file in names if file not in files]:
                found = f"no {', '.join(missing)} in {folder} or a folder in it"
                raise DataError(f"{name}: expected {len(names)} sheets of {part} images, but got {found}")
            images = np.concatenate([_images(files[file], *shape.tolist()) for file in names])
            arrays += [images[: len(labels)], labels]
    return arrays


@contextmanager
def reading(source: object) -> Iterator[None]:
    """Turn what a reader raises on a damaged file, which can be nearly anything, into a DataError that names it."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{source}: expected a readable data set, but got {error!r}") from error


def _sheet_files(name: str, folder: Path) -> dict[str, Path]:
    """Return the sheets and their labels, by the files' names: those in a folder, and in the folders in it."""
    patterns = (f"{name}-train-*.webp", f"{name}-test-*.webp", f"{name}-labels.npz")
    files = [path for pattern in patterns for path in (*folder.glob(pattern), *folder.glob(f"*/{pattern}"))]
    return {path.name: path for path in sorted(files)}


def _arrays(path: Path, *names: str) -> list[Array]:
    """Return arrays of an .npz."""
    with reading(path), path.open("rb") as file:
        if not zipfile.is_zipfile(file):  # numpy.load would take it for a pickle, and advise to allow that
            raise DataError(f"{path}: expected a zip of arrays, but got a file that is none, or is cut short")
        file.seek(0)
        arrays = np.load(file, allow_pickle=False)
        if missing := [name for name in names if name not in arrays]:
            raise DataError(f"{path}: expected arrays {', '.join(names)}, but got no {', '.join(missing)}")
        return [np.asarray(arrays[name]) for name in names]


def _npz_bytes(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def _sheets(images: Array) -> Iterator[bytes]:
    """Yield the images' sheets, as files."""
    count, height, width = images.shape[:3]
    for first in range(0, count, SIDE**2):
        sheet = np.zeros((SIDE**2, height, width, 3), np.uint8)
        # Grey becomes three equal colours.
        sheet[: count - first] = images[first : first + SIDE**2].reshape(-1, height, width, images[0, 0, 0].size)
        rows = sheet.reshape(SIDE, SIDE, height, width, 3).transpose(0, 2, 1, 3, 4)
        buffer = io.BytesIO()
        image = Image.fromarray(rows.reshape(SIDE * height, SIDE * width, 3))
        image.save(buffer, "WEBP", lossless=True, quality=80, method=4)
        yield buffer.getvalue()


def _images(path: Path, height: int, width: int, *channels: int) -> Array:
    """Return the images of a sheet."""
    expected = SIDE * width, SIDE * height
    with reading(path), Image.open(path, formats=("WEBP",)) as sheet:
        if sheet.size != expected:
            raise DataError(f"{path}: expected a sheet of {expected} pixels, but got one of {sheet.size}")
        pixels = np.asarray(sheet.convert("RGB"))
    images = pixels.reshape(SIDE, height, SIDE, width, 3).transpose(0, 2, 1, 3, 4).reshape(-1, height, width, 3)
    return images[..., : channels[0]] if channels else images[..., 0]
