"""Sheets of images: lossless, in one or several folders, with missing and damaged files named."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import data, data_files
from benchmarks.config import DATA_DIR
from benchmarks.data import DataError, Dataset

CIFAR10 = DATA_DIR.expanduser() / "cifar10.npz"


def load(name: str, folder: Path) -> Dataset:
    return data.load(name, data_dir=folder, validation_size=100)


def noise(path: Path, shape: tuple[int, ...]) -> None:
    """Write a data set of random images: 2600 training images, which fill two sheets, and 30 test images."""
    generator = np.random.default_rng(0)
    sizes = {"train": 2600, "test": 30}
    images = {f"x_{part}": generator.integers(0, 256, (n, *shape), np.uint8) for part, n in sizes.items()}
    np.savez(path, **images, **{f"y_{part}": np.arange(n) % 10 for part, n in sizes.items()})


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """Sheets of the data set "own" in parts/own-1, and the same data set as whole/own.npz."""
    (tmp_path / "whole").mkdir()
    noise(tmp_path / "whole/own.npz", (6, 5, 3))
    data.pack("own", data_dir=tmp_path / "whole", folder=tmp_path / "parts")
    return tmp_path


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 1), (6, 5, 3)], ids=["grey", "one channel", "colour"])
def test_sheets_are_lossless(tmp_path: Path, shape: tuple[int, ...]) -> None:
    noise(tmp_path / "own.npz", shape)
    names = [path.name for path in data.pack("own", data_dir=tmp_path, folder=tmp_path / "parts")]
    assert names == ["own-labels.npz", "own-test-00.webp", "own-train-00.webp", "own-train-01.webp"]
    assert load("own", tmp_path / "parts").fingerprint == load("own", tmp_path).fingerprint


@pytest.mark.skipif(not CIFAR10.exists(), reason="needs CIFAR-10 in the data folder")
def test_sheets_of_photographs_are_lossless_and_smaller(tmp_path: Path) -> None:
    with np.load(CIFAR10) as whole:
        cut = {name: whole[name][: 2600 if name.endswith("train") else 100] for name in whole}
    np.savez(tmp_path / "photos.npz", **cut)
    written = data.pack("photos", data_dir=tmp_path, folder=tmp_path / "parts")
    assert sum(path.stat().st_size for path in written) < 0.65 * sum(
        cut[f"x_{part}"].size for part in ("train", "test")
    )
    assert load("photos", tmp_path / "parts").fingerprint == load("photos", tmp_path).fingerprint


def test_folders_of_sheets_are_limited_in_size_and_can_be_merged(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, size = load("own", packed / "whole"), sum(path.stat().st_size for path in packed.glob("parts/*/*"))
    monkeypatch.setattr(data_files, "MAX_FOLDER_BYTES", size - 1)
    several, one = packed / "several", packed / "one"
    written = data.pack("own", data_dir=packed / "whole", folder=several)
    folders = sorted({path.parent for path in written})
    assert [folder.name for folder in folders] == ["own-1", "own-2"]
    assert all(sum(path.stat().st_size for path in folder.iterdir()) < size for folder in folders)
    one.mkdir()
    for path in written:
        (one / path.name).write_bytes(path.read_bytes())
    for folder in (several, one):
        assert load("own", folder).fingerprint == whole.fingerprint


def test_an_npz_file_takes_precedence_over_sheets(packed: Path) -> None:
    sheets = packed / "parts"
    listed = data.files("own", sheets)
    assert listed == (sheets / "own.npz", *sorted(sheets.glob("*/own-*")))
    noise(sheets / "own.npz", (4, 4))
    assert load("own", sheets).image_shape == (1, 4, 4)


def test_sheets_under_the_name_of_an_official_data_set_must_have_its_content(packed: Path) -> None:
    for path in [*packed.glob("parts/own-1/*")]:
        path.rename(packed / "parts" / path.name.replace("own", "mnist"))
    with pytest.raises(DataError, match=f"mnist-labels.npz is not the official mnist.*{data.OFFICIAL_SHA256['mnist']}"):
        load("mnist", packed / "parts")


@pytest.mark.parametrize("missing", ["own-train-01.webp", "own-test-00.webp", "own-labels.npz"])
def test_missing_file_is_named(packed: Path, missing: str) -> None:
    (packed / "parts/own-1" / missing).unlink()
    with pytest.raises(DataError, match=missing):
        load("own", packed / "parts")


@pytest.mark.parametrize("damaged", ["own-train-01.webp", "own-test-00.webp", "own-labels.npz"])
@pytest.mark.parametrize("left", [0, 40, 0.5], ids=["empty", "header", "half"])
def test_truncated_file_is_named(packed: Path, damaged: str, left: float) -> None:
    path = packed / "parts/own-1" / damaged
    content = path.read_bytes()
    path.write_bytes(content[: round(left * len(content)) if left < 1 else left])
    with pytest.raises(DataError, match=damaged):
        load("own", packed / "parts")


def test_sheet_of_other_images_is_named(packed: Path) -> None:
    noise(packed / "whole/other.npz", (8, 8, 3))
    data.pack("other", data_dir=packed / "whole", folder=packed)
    (packed / "other-1/other-train-00.webp").rename(packed / "parts/own-1/own-train-00.webp")
    with pytest.raises(DataError, match=r"own-train-00\.webp.*\(250, 300\).*\(400, 400\)"):
        load("own", packed / "parts")


def test_images_too_large_for_a_sheet_are_refused(tmp_path: Path) -> None:
    noise(tmp_path / "wide.npz", (1, 330))
    with pytest.raises(DataError, match=r"wide.*327.*330"):
        data.pack("wide", data_dir=tmp_path, folder=tmp_path / "parts")
    assert not (tmp_path / "parts").exists()
