"""
Files of data sets: NAME.npz; sheets of images, which take a little over half the space; and torchvision's files.

Sheets are lossless WebP files. NAME-train-00.webp and so on contain the images in order. NAME-labels.npz contains the
labels and the images' shape, from which the number of sheets follows. A sheet is a square of images, row by row; unused
images of the last sheet are black. Sheets may be distributed over several folders, for machines to which only a limited
size can be copied at a time: CIFAR-10's 184 MB are 101 MB of sheets.
"""

import io
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

# Number of images along each side of a sheet. A sheet of 2,500 CIFAR-10 images has about 4 MB.
SIDE = 50
# Maximum size of a folder of sheets in bytes, so that CIFAR-10 fits into two folders.
MAX_FOLDER_BYTES = 52_000_000
# Maximum width and height of a WebP image in pixels.
MAX_WEBP_PIXELS = 16383

# Torchvision's data sets: the name of the class, and the arguments that select a variant.
TORCHVISION: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "mnist": ("MNIST", {}),
    "cifar10": ("CIFAR10", {}),
    "svhn": ("SVHN", {}),
    "fashion-mnist": ("FashionMNIST", {}),
    "kmnist": ("KMNIST", {}),
    "emnist-digits": ("EMNIST", {"split": "digits"}),
    "cifar100": ("CIFAR100", {}),
}

Array = npt.NDArray[Any]


class DataError(ValueError):
    """A data set that cannot be used; the message names the file, what was expected and what it got."""


def pack(name: str, arrays: dict[str, Array], folder: Path) -> list[Path]:
    """
    Write a data set as sheets into FOLDER/NAME-1, FOLDER/NAME-2 and so on, each of at most MAX_FOLDER_BYTES bytes.

    :param name: The data set's name.
    :param arrays: x_train and x_test, uint8 of shape (N, H, W) or (N, H, W, C) with C 1 or 3; y_train, y_test.
    :return: The files.
    :raises DataError: If the images are too large for a sheet.
    """
    shape = arrays["x_train"].shape[1:]
    if SIDE * max(shape[:2]) > MAX_WEBP_PIXELS:
        limit = MAX_WEBP_PIXELS // SIDE
        raise DataError(f"{name}: expected images of at most {limit} x {limit} pixels, but got shape {shape}")
    files = [(f"{name}-labels.npz", _npz_bytes(y_train=arrays["y_train"], y_test=arrays["y_test"], shape=shape))]
    for part in ("test", "train"):
        sheets = enumerate(_sheets(arrays[f"x_{part}"]))
        files += [(f"{name}-{part}-{i:02d}.webp", sheet) for i, sheet in sheets]
    written, number, size = [], 1, 0
    for file, content in files:
        size += len(content)
        if size > MAX_FOLDER_BYTES:
            number, size = number + 1, len(content)
        written.append(folder / f"{name}-{number}" / file)
        written[-1].parent.mkdir(parents=True, exist_ok=True)
        written[-1].write_bytes(content)
    return written


def find(name: str, folder: Path) -> list[Path]:
    """Return the files of a data set: NAME.npz, whether it exists or not, and the existing sheets."""
    return [folder / f"{name}.npz", *_sheet_files(name, folder).values()]


def source(name: str, folder: Path) -> Path | None:
    """Return the file that :func:`read` reads first; None if the data set has no file."""
    npz, *sheets = find(name, folder)
    if npz.exists():
        return npz
    return next((path for path in sheets if path.name == f"{name}-labels.npz"), sheets[0]) if sheets else None


def read(name: str, folder: Path) -> list[Array]:
    """
    Return training images and labels, test images and labels, identical to the arrays that were packed.

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
            if missing := ", ".join(file for file in names if file not in files):
                expected = f"{name}: expected {len(names)} sheets of {part} images in {folder} or its subfolders"
                raise DataError(f"{expected}, but these are missing: {missing}")
            images = np.concatenate([_images(files[file], *shape.tolist()) for file in names])
            arrays += [images[: len(labels)], labels]
    return arrays


@contextmanager
def reading(source: object) -> Iterator[None]:
    """Convert any exception of a reader into a DataError that names the source; a damaged file can raise anything."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{source}: expected a readable data set, but got {error!r}") from error


def _sheet_files(name: str, folder: Path) -> dict[str, Path]:
    """Return the existing sheets and labels of a folder and its subfolders, by file name."""
    patterns = (f"{name}-train-*.webp", f"{name}-test-*.webp", f"{name}-labels.npz")
    files = [path for pattern in patterns for path in (*folder.glob(pattern), *folder.glob(f"*/{pattern}"))]
    return {path.name: path for path in sorted(files)}


def _arrays(path: Path, *names: str) -> list[Array]:
    """Return the named arrays of an .npz file."""
    with reading(path), path.open("rb") as file:
        # numpy.load would take another file for a pickle, and advise the user to allow pickles, which can run code.
        if not zipfile.is_zipfile(file):
            raise DataError(f"{path}: expected an .npz file, but got a file that is no zip archive, or is truncated")
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
    """Yield the sheets of the images, as contents of WebP files."""
    count, height, width = images.shape[:3]
    for first in range(0, count, SIDE**2):
        sheet = np.zeros((SIDE**2, height, width, 3), np.uint8)
        # WebP has no grey mode: a grey image becomes three equal channels.
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


def torchvision_files(name: str, data_dir: Path) -> dict[Path, bool]:
    """Return torchvision's files, each with True if it exists and has the MD5 that torchvision states, if any."""
    from torchvision.datasets.utils import check_integrity

    return {path: check_integrity(path, md5) for path, md5 in torchvision_md5s(name, data_dir).items()}


def torchvision_md5s(name: str, data_dir: Path) -> dict[Path, str | None]:
    """Return the paths of torchvision's files, each with the MD5 that torchvision states, or None."""
    reader = _reader(name)
    if name == "svhn":
        return {data_dir / file: md5 for _, file, md5 in (reader.split_list[part] for part in ("train", "test"))}
    if name.startswith("cifar"):
        batches = [*reader.train_list, *reader.test_list, (reader.meta["filename"], reader.meta["md5"])]
        return {data_dir / reader.base_folder / file: md5 for file, md5 in batches}
    raw = data_dir / reader.__name__ / "raw"
    if name == "emnist-digits":  # torchvision downloads one archive, which contains other splits as well
        parts = ("train-images-idx3", "train-labels-idx1", "test-images-idx3", "test-labels-idx1")
        return {raw / f"{name}-{part}-ubyte": None for part in parts}
    return {raw / Path(archive).stem: None for archive, _ in reader.resources}


def torchvision_arrays(name: str, data_dir: Path, *, download: bool) -> list[Array]:
    """Return training images, (N, H, W) or (N, H, W, C), and labels, test images and labels."""
    reader, (_, options) = _reader(name), TORCHVISION[name]
    if name == "svhn":
        svhn = [reader(data_dir, split=split, download=download) for split in ("train", "test")]
        return [array for part in svhn for array in (part.data.transpose(0, 2, 3, 1), part.labels)]
    # torchvision's CIFAR readers compare the MD5 of each file before they unpickle it.
    parts = [reader(data_dir, train=train, download=download, **options) for train in (True, False)]
    return [np.asarray(array) for part in parts for array in (part.data, part.targets)]


def _reader(name: str) -> Any:
    from torchvision import datasets

    return getattr(datasets, TORCHVISION[name][0])
