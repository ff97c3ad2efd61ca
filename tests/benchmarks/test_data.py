"""benchmarks.data on small files in the formats of each source; only the tables of checksums are replaced."""

import hashlib
import io
import pickle
import re
import shutil
import socket
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10, CIFAR100, EMNIST, KMNIST, MNIST, SVHN, FashionMNIST

from benchmarks import data, models
from benchmarks.config import ConfigError, Recipe
from benchmarks.data import DataError, Dataset, Split
from benchmarks.references import refer

SHAPES = {
    "mnist": (28, 28),
    "cifar10": (32, 32, 3),
    "svhn": (32, 32, 3),
    "fashion-mnist": (28, 28),
    "kmnist": (28, 28),
    "emnist-digits": (28, 28),
    "cifar100": (32, 32, 3),
}
FOLDERS = {
    "mnist": "MNIST/raw",
    "cifar10": "cifar-10-batches-py",
    "svhn": ".",
    "fashion-mnist": "FashionMNIST/raw",
    "kmnist": "KMNIST/raw",
    "emnist-digits": "EMNIST/raw",
    "cifar100": "cifar-100-python",
}
# Data sets for whose unpacked files torchvision states no MD5.
IDX_DATASETS = ("mnist", "fashion-mnist", "kmnist", "emnist-digits")
TRAIN, TEST, VALIDATION = 40, 20, 7


@pytest.fixture(autouse=True)
def network_calls(monkeypatch):
    """Block network access and return the list of attempts."""
    calls = []

    def refuse(*args, **kwargs):
        calls.append(args)
        raise OSError("network access is blocked in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return calls


def content(shape=(28, 28), seed=0):
    """Return arrays as in an .npz: every class from 0 to 9 in both parts."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for part, size in (("train", TRAIN), ("test", TEST)):
        arrays[f"x_{part}"] = rng.integers(0, 256, (size, *shape), dtype=np.uint8)
        arrays[f"y_{part}"] = rng.permutation(np.arange(size, dtype=np.uint8) % 10)
    return arrays


def canonical(arrays, part):
    images = arrays[f"x_{part}"]
    images = images[:, None] if images.ndim == 3 else np.moveaxis(images, -1, 1)
    return Split(images, arrays[f"y_{part}"].astype(np.int64))


def idx_writer(folder_name: str, prefix: str = "", test: str = "t10k"):
    """Return a function that writes files in MNIST's format."""

    def write(folder, arrays, monkeypatch):
        raw = folder / folder_name / "raw"
        raw.mkdir(parents=True)
        for part, stem in (("train", "train"), ("test", test)):
            images, labels = arrays[f"x_{part}"], arrays[f"y_{part}"]
            name = f"{prefix}{stem}"
            (raw / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, *images.shape) + images.tobytes())
            (raw / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, len(labels)) + labels.tobytes())

    return write


def write_cifar100(folder, arrays, monkeypatch):
    base = folder / "cifar-100-python"
    base.mkdir(parents=True)

    def write(file, entry):
        (base / file).write_bytes(pickle.dumps(entry, protocol=2))
        return [file, md5(base / file)]

    for part in ("train", "test"):
        images, labels = arrays[f"x_{part}"], arrays[f"y_{part}"]
        rows = np.moveaxis(images, -1, 1).reshape(len(images), -1)
        entry = {"data": rows, "fine_labels": labels.tolist(), "coarse_labels": (labels // 5).tolist()}
        monkeypatch.setattr(CIFAR100, f"{part}_list", [write(part, entry)])
    meta = write("meta", {"fine_label_names": list("abcdefghij")})
    monkeypatch.setattr(CIFAR100, "meta", {"filename": meta[0], "key": "fine_label_names", "md5": meta[1]})


def write_cifar10(folder, arrays, monkeypatch):
    base = folder / "cifar-10-batches-py"
    base.mkdir(parents=True)

    def batch(file, images, labels):
        return write(file, {"data": np.moveaxis(images, -1, 1).reshape(len(images), -1), "labels": labels.tolist()})

    def write(file, entry):
        (base / file).write_bytes(pickle.dumps(entry, protocol=2))
        return [file, md5(base / file)]

    parts = zip(np.split(arrays["x_train"], 5), np.split(arrays["y_train"], 5), strict=True)
    train_list = [batch(f"data_batch_{i}", *part) for i, part in enumerate(parts, start=1)]
    monkeypatch.setattr(CIFAR10, "train_list", train_list)
    monkeypatch.setattr(CIFAR10, "test_list", [batch("test_batch", arrays["x_test"], arrays["y_test"])])
    meta = write("batches.meta", {"label_names": list("abcdefghij")})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]})


def write_svhn(folder, arrays, monkeypatch):
    split_list = {}
    for part in ("train", "test"):
        file = folder / f"{part}_32x32.mat"
        labels = np.where(arrays[f"y_{part}"] == 0, 10, arrays[f"y_{part}"])  # SVHN stores the digit 0 as class 10
        savemat(file, {"X": arrays[f"x_{part}"].transpose(1, 2, 3, 0), "y": labels[:, None]})
        split_list[part] = [f"http://localhost/{file.name}", file.name, md5(file)]
    monkeypatch.setattr(SVHN, "split_list", split_list)


WRITERS = {
    "mnist": idx_writer("MNIST"),
    "cifar10": write_cifar10,
    "svhn": write_svhn,
    "fashion-mnist": idx_writer("FashionMNIST"),
    "kmnist": idx_writer("KMNIST"),
    "emnist-digits": idx_writer("EMNIST", "emnist-digits-", "test"),
    "cifar100": write_cifar100,
}
READERS = {
    "mnist": MNIST,
    "cifar10": CIFAR10,
    "svhn": SVHN,
    "fashion-mnist": FashionMNIST,
    "kmnist": KMNIST,
    "emnist-digits": EMNIST,
    "cifar100": CIFAR100,
}


def md5(file: Path) -> str:
    return hashlib.md5(file.read_bytes()).hexdigest()


def declare_official(name, arrays, monkeypatch):
    if name in data.OFFICIAL_SHA256:
        digest = data.digest(canonical(arrays, "train"), canonical(arrays, "test"))
        monkeypatch.setattr(data, "OFFICIAL_SHA256", {**data.OFFICIAL_SHA256, name: digest})


def load(name, folder, **options) -> Dataset:
    return data.load(name, data_dir=folder, **{"validation_size": VALIDATION, **options})


def examples(*splits: Split) -> list[bytes]:
    """Return each example's label and pixels, sorted, which does not depend on the partition."""
    pairs = (pair for split in splits for pair in zip(split.images, split.labels, strict=True))
    return sorted(bytes([label]) + image.tobytes() for image, label in pairs)


def assert_same(ours: Dataset, theirs: Dataset) -> None:
    for part in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(ours, part).images, getattr(theirs, part).images)
        np.testing.assert_array_equal(getattr(ours, part).labels, getattr(theirs, part).labels)
    assert ours.fingerprint == theirs.fingerprint


def assert_has_content(loaded: Dataset, arrays) -> None:
    """Check that the test part is unchanged, and that the other two parts divide the training examples."""
    np.testing.assert_array_equal(loaded.test.images, canonical(arrays, "test").images)
    np.testing.assert_array_equal(loaded.test.labels, canonical(arrays, "test").labels)
    assert examples(loaded.train, loaded.validation) == examples(canonical(arrays, "train"))
    assert len(loaded.validation) == VALIDATION
    for split in (loaded.train, loaded.validation, loaded.test):
        assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int64)
        assert split.images.flags.c_contiguous
        assert split.images.shape == (len(split), *loaded.image_shape)


class TestDigits:
    def test_parts_divide_the_whole_set(self, tmp_path):
        digits = load("digits", tmp_path, validation_size=100)
        levels, labels = load_digits(return_X_y=True)
        images = np.array([round(v * 255 / 16) for v in levels.ravel()], np.uint8).reshape(-1, 1, 8, 8)
        assert examples(digits.train, digits.validation, digits.test) == examples(Split(images, labels))
        assert (len(digits.train), len(digits.validation), len(digits.test)) == (1337, 100, 360)
        assert (digits.name, digits.classes, digits.image_shape) == ("digits", 10, (1, 8, 8))
        for split in (digits.train, digits.validation, digits.test):
            assert set(split.labels) == set(range(10))

    def test_grey_levels_use_the_whole_range(self, tmp_path):
        images = load("digits", tmp_path).train.images
        assert (images.dtype, images.min(), images.max(), len(np.unique(images))) == (np.uint8, 0, 255, 17)

    def test_the_same_seed_gives_the_same_arrays(self, tmp_path):
        assert_same(load("digits", tmp_path), load("digits", tmp_path))

    def test_another_seed_gives_other_parts(self, tmp_path):
        first, second = load("digits", tmp_path), load("digits", tmp_path, split_seed=2020)
        assert examples(first.test) != examples(second.test)
        assert examples(first.validation) != examples(second.validation)

    def test_validation_size_does_not_change_the_test_part(self, tmp_path):
        few, many = load("digits", tmp_path, validation_size=1), load("digits", tmp_path, validation_size=700)
        np.testing.assert_array_equal(few.test.images, many.test.images)


class TestNpz:
    @pytest.mark.parametrize("shape", [(5, 4), (5, 4, 1), (5, 4, 3)], ids=["grey", "one channel", "colour"])
    @pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.uint64, ">i2"])
    def test_npz_is_read(self, tmp_path, shape, dtype):
        arrays = content(shape)
        for part in ("train", "test"):
            arrays[f"y_{part}"] = arrays[f"y_{part}"].astype(dtype)
        np.savez_compressed(tmp_path / "own.set-1.npz", **arrays)
        loaded = load("own.set-1", tmp_path)
        assert_has_content(loaded, arrays)
        assert loaded.image_shape == ((*shape, 1)[2], 5, 4)
        assert loaded.classes == 10

    def test_split_depends_only_on_the_seed(self, tmp_path):
        np.savez(tmp_path / "own.npz", **content())
        first, again, other = (load("own", tmp_path, split_seed=seed) for seed in (1, 1, 2))
        assert_same(first, again)
        assert examples(first.validation) != examples(other.validation)
        np.testing.assert_array_equal(first.test.images, other.test.images)

    def test_fingerprint_depends_only_on_the_content(self, tmp_path):
        arrays = content()
        np.savez(tmp_path / "one.npz", **arrays)
        np.savez_compressed(tmp_path / "same.npz", **arrays)
        arrays["x_test"][3, 2, 1] ^= 1
        np.savez(tmp_path / "other.npz", **arrays)
        one, same, other = (load(name, tmp_path).fingerprint for name in ("one", "same", "other"))
        assert re.fullmatch("[0-9a-f]{64}", one)
        assert one == same != other

    @pytest.mark.parametrize("size", [0, -1, TRAIN - 10, TRAIN])
    def test_validation_size_out_of_range_is_refused(self, tmp_path, size):
        np.savez(tmp_path / "own.npz", **content())
        with pytest.raises(
            DataError,
            match=f"own: expected validation_size from 1 to less than 30, but got {size}: .*--validation-size",
        ):
            load("own", tmp_path, validation_size=size)
        assert len(load("own", tmp_path, validation_size=29).train) == 11


def changed(**changes):
    """Return the bytes of an .npz in which some arrays are replaced, or missing where None."""
    file = io.BytesIO()
    np.savez(file, **{name: array for name, array in {**content(), **changes}.items() if array is not None})
    return file.getvalue()


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def labels(*last, size=TRAIN):
    return np.array([*range(10), *[0] * (size - 10 - len(last)), *last])


def flip_a_byte_of_the_data(npz):
    return npz[:5000] + bytes([npz[5000] ^ 1]) + npz[5001:]


OBJECTS = np.array([None] * TRAIN)
CORRUPTIONS = {
    "empty file": (b"", "an .npz file, but got"),
    "not a zip": (b"<html>404 Not Found</html>", "an .npz file, but got"),
    "a pickle": (pickle.dumps(content()), "an .npz file, but got"),
    "one array": (npy(np.zeros(3)), "an .npz file, but got"),
    "truncated": (changed()[:-1000], "an .npz file, but got"),
    "damaged inside": (flip_a_byte_of_the_data(changed()), "BadZipFile.*CRC"),
    "central directory amiss": (b"PK\x03\x04" + b"\0" * 40 + b"PK\x05\x06" + b"\xff" * 18, "got BadZipFile"),
    "missing arrays": (changed(x_test=None, y_test=None), "but got no x_test, y_test"),
    "object images": (changed(x_train=OBJECTS), "Object arrays cannot be loaded"),
    "object labels": (changed(y_train=OBJECTS), "Object arrays cannot be loaded"),
    "float images": (changed(x_train=np.zeros((TRAIN, 28, 28))), "train images to be uint8 .* got float64"),
    "flat images": (changed(x_test=np.zeros((TEST, 784), np.uint8)), r"test images .* of shape \(20, 784\)"),
    "channels first": (changed(x_train=np.zeros((TRAIN, 3, 32, 32), np.uint8)), "train images .* C 1 or 3"),
    "four channels": (changed(x_train=np.zeros((TRAIN, 8, 8, 4), np.uint8)), "train images .* C 1 or 3"),
    "no images": (changed(x_test=np.zeros((0, 28, 28), np.uint8), y_test=labels()[:0]), "test .* no empty dimension"),
    "no pixels": (changed(x_train=np.zeros((TRAIN, 28, 0), np.uint8)), "train images .* no empty dimension"),
    "float labels": (changed(y_train=labels() / 1), "train labels to be integers .* got float64"),
    "boolean labels": (changed(y_train=labels() > 1), "train labels to be integers .* got bool"),
    "column of labels": (changed(y_train=labels()[:, None]), r"integers of shape \(40,\), but got int64 \(40, 1\)"),
    "too few labels": (changed(y_test=labels()[:-30]), r"test labels .* \(20,\), but got int64 \(10,\)"),
    "negative label": (changed(y_train=labels(-1)), "got 11 different labels from -1 to 9"),
    "negative test label": (changed(y_test=labels(-1, size=TEST)), r"test labels .*\[-1\]"),
    "huge label": (changed(y_train=labels(2**40)), f"got 11 different labels from 0 to {2**40}"),
    "class left out": (changed(y_train=labels(11)), "got 11 different labels from 0 to 11"),
    "one class": (changed(y_train=labels() * 0), "got 1 different labels from 0 to 0"),
    "class unseen in training": (changed(y_test=labels(10, size=TEST)), r"test labels that occur in train.*\[10\]"),
    "two image shapes": (changed(x_test=np.zeros((TEST, 28, 27), np.uint8)), r"\(1, 28, 28\), as in train"),
    "grey and colour": (changed(x_test=np.zeros((TEST, 28, 28, 3), np.uint8)), r"but got \(3, 28, 28\)"),
}


@pytest.mark.parametrize(("npz", "message"), CORRUPTIONS.values(), ids=CORRUPTIONS.keys())
@pytest.mark.parametrize("name", ["own", "mnist"])
def test_unusable_npz_is_refused(tmp_path, name, npz, message):
    path = tmp_path / f"{name}.npz"
    path.write_bytes(npz)
    with pytest.raises(DataError, match=f"^{re.escape(str(path))}: expected .*{message}"):
        load(name, tmp_path)


def test_folder_instead_of_an_npz_is_refused(tmp_path):
    (tmp_path / "own.npz").mkdir()
    with pytest.raises(DataError, match=r"own\.npz: expected a readable data set"):
        load("own", tmp_path)


class TestOfficial:
    @pytest.fixture(params=WRITERS)
    def name(self, request):
        return request.param

    @pytest.fixture
    def folder(self, tmp_path):
        folder = tmp_path / "data"
        folder.mkdir()
        return folder

    @pytest.fixture
    def arrays(self, name, folder, monkeypatch):
        """The content of torchvision's files in the folder, declared official."""
        arrays = content(SHAPES[name])
        WRITERS[name](folder, arrays, monkeypatch)
        declare_official(name, arrays, monkeypatch)
        return arrays

    @pytest.mark.parametrize("download", [False, True], ids=["no download", "download"])
    def test_torchvision_files_are_read(self, name, arrays, folder, network_calls, download):
        loaded = load(name, folder, download=download)
        assert_has_content(loaded, arrays)
        assert (loaded.name, loaded.classes) == (name, 10)
        assert network_calls == []

    @pytest.mark.parametrize("damage", ["missing", "truncated", "altered"])
    @pytest.mark.parametrize("which", [min, max], ids=["first file", "last file"])
    def test_damaged_file_is_detected(self, name, arrays, folder, damage, which):
        before = load(name, folder).fingerprint
        file = which((folder / FOLDERS[name]).iterdir())
        np.savez(folder / f"{name}.npz", **arrays)
        whole = file.read_bytes()
        if damage == "missing":
            file.unlink()
        else:
            file.write_bytes(whole[:-1] + (b"" if damage == "truncated" else bytes([whole[-1] ^ 1])))
        if damage == "altered" and name in IDX_DATASETS and name != "mnist":
            # Without a checksum the change is not detected here, but the store detects it by the fingerprint.
            assert load(name, folder).fingerprint != before
            return
        # Torchvision states no MD5 of MNIST's unpacked files, so the error names only their folder.
        named = file.parent if name in IDX_DATASETS and damage != "missing" else file
        with pytest.raises(DataError, match=re.escape(str(named))):
            load(name, folder)

    def test_missing_files_are_named_with_the_option_to_download(self, name, folder, network_calls):
        with pytest.raises(DataError, match="use --download") as caught:
            load(name, folder)
        assert str(folder / FOLDERS[name]) in str(caught.value)
        assert f"{name}.npz" in str(caught.value)
        assert network_calls == []

    def test_failed_download_is_reported(self, name, folder, network_calls):
        into = re.escape(str(folder / FOLDERS[name]))
        with pytest.raises(DataError, match=rf"{name}: expected to download .*; put them into {into}.*{name}\.npz"):
            load(name, folder, download=True)
        assert network_calls

    def test_failed_repair_is_reported(self, name, arrays, folder, network_calls):
        max((folder / FOLDERS[name]).iterdir()).unlink()
        with pytest.raises(DataError, match=f"{name}: expected to download"):
            load(name, folder, download=True)
        assert network_calls

    @pytest.mark.parametrize("present", ["nothing", "all but one file"])
    def test_missing_files_are_downloaded(self, name, arrays, folder, tmp_path, monkeypatch, present):
        fresh = tmp_path / "fresh"
        if present != "nothing":
            shutil.copytree(folder, fresh)
            max((fresh / FOLDERS[name]).iterdir()).unlink()
        monkeypatch.setattr(READERS[name], "download", lambda self: shutil.copytree(folder, fresh, dirs_exist_ok=True))
        assert_has_content(load(name, fresh, download=True), arrays)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_npz_and_torchvision_files_give_the_same_data_set(tmp_path, monkeypatch, name, network_calls):
    arrays = content(SHAPES[name])
    declare_official(name, arrays, monkeypatch)
    np.savez(tmp_path / f"{name}.npz", **arrays)
    from_npz = load(name, tmp_path, download=True)
    (tmp_path / f"{name}.npz").unlink()
    WRITERS[name](tmp_path, arrays, monkeypatch)
    assert_same(from_npz, load(name, tmp_path))
    assert_has_content(from_npz, arrays)
    assert network_calls == []


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
@pytest.mark.parametrize("source", ["npz", "torchvision"])
@pytest.mark.parametrize("change", ["x_train", "y_train", "x_test", "y_test", "order"])
def test_unofficial_content_is_refused(tmp_path, monkeypatch, name, source, change):
    arrays = content(SHAPES[name])
    declare_official(name, arrays, monkeypatch)
    if change == "order":
        arrays["x_train"], arrays["y_train"] = arrays["x_train"][::-1], arrays["y_train"][::-1]
    else:
        arrays[change].flat[0] ^= 1
    if source == "npz":
        np.savez(tmp_path / f"{name}.npz", **arrays)
    else:
        WRITERS[name](tmp_path, arrays, monkeypatch)
    with pytest.raises(DataError, match=f"is not the official {name}: .* rename it"):
        load(name, tmp_path)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_official_digests_are_checked(tmp_path, name):
    np.savez(tmp_path / f"{name}.npz", **content(SHAPES[name]))
    with pytest.raises(DataError, match=rf"{name}\.npz is not the official {name}: expected content of SHA-256"):
        load(name, tmp_path)


def test_svhn_npz_is_refused(tmp_path):
    np.savez(tmp_path / "svhn.npz", **content((32, 32, 3)))
    with pytest.raises(DataError, match=r"svhn\.npz is not accepted.* svhn_grey\.npz"):
        load("svhn", tmp_path)


def test_cifar100_has_100_classes_and_networks_for_them(tmp_path, monkeypatch):
    arrays = content(SHAPES["cifar100"])
    for part in ("train", "test"):
        images = arrays[f"x_{part}"]
        arrays[f"x_{part}"], arrays[f"y_{part}"] = np.repeat(images, 5, 0), np.arange(5 * len(images)) % 100
    write_cifar100(tmp_path, arrays, monkeypatch)
    loaded = load("cifar100", tmp_path)
    assert loaded.classes == 100
    recipe = Recipe(model="resnet", epochs=1, batch_size=10, lr=0.1)
    images, _ = loaded.test.tensors(torch.device("cpu"))
    assert models.build_for(recipe, loaded)(images[:2]).shape == (2, 100)


OWN = "import numpy as np\ndef load({parameters}):\n    arrays = dict(np.load({path!r}))\n    return {returned}\n"
RETURNED = "arrays['x_train'], arrays['y_train'], arrays['x_test'], arrays['y_test']"


class TestUserFunction:
    @pytest.fixture
    def own(self, tmp_path):
        """Return a factory of references to functions that return the arrays of an .npz."""
        np.savez(tmp_path / "behind.npz", **content())

        def make(returned=RETURNED, call="load", parameters=""):
            source = OWN.format(path=str(tmp_path / "behind.npz"), returned=returned, parameters=parameters)
            (tmp_path / "mine.py").write_text(source)
            return refer(f"{tmp_path}/mine.py:{call}")

        return make

    def test_its_arrays_are_read_like_those_of_an_npz(self, own, tmp_path):
        np.savez(tmp_path / "same.npz", **content())
        loaded = load(own(), tmp_path / "nowhere")
        assert_same(loaded, load("same", tmp_path))
        assert loaded.name == "mine.py:load"

    def test_it_is_called_with_its_parameters(self, own, tmp_path):
        call, returned = "load(n=30)", RETURNED.replace("_train']", "_train'][:n]")
        loaded = load(own(returned, call, "n"), tmp_path)
        assert len(loaded.train) + len(loaded.validation) == 30

    @pytest.mark.parametrize(
        ("returned", "words"),
        [
            ("arrays", "mine.py:load.*tuple.*dict"),
            ("(arrays['x_train'], arrays['y_train'])", "mine.py:load.*2 values"),
            (RETURNED.replace("arrays['x_test']", "arrays['x_test'] / 255"), "mine.py:load.*test images.*float64"),
            (RETURNED.replace("arrays['y_train']", "arrays['y_train'] + 1"), "mine.py:load.*labels"),
        ],
    )
    def test_invalid_arrays_are_refused_with_the_functions_name(self, own, tmp_path, returned, words):
        with pytest.raises((DataError, ConfigError), match=words):
            load(own(returned), tmp_path)


class Trap:
    """Object whose unpickling creates a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return Path.mkdir, (self.folder,)


@pytest.mark.parametrize("file", ["data_batch_1", "test_batch", "batches.meta"])
def test_an_unverified_pickle_is_not_opened(tmp_path, monkeypatch, file):
    write_cifar10(tmp_path, content(SHAPES["cifar10"]), monkeypatch)
    (tmp_path / "cifar-10-batches-py" / file).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(DataError, match=f"missing or damaged: .*{file}"):
        load("cifar10", tmp_path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["", ".", "..", ".own", "a/b", "../own", "/own", "a\\b", "C:own", "own\n", "a b"])
def test_name_that_is_not_plain_is_refused(tmp_path, name):
    with pytest.raises(DataError, match=f"expected a plain data set name .* got {re.escape(repr(name))}"):
        load(name, tmp_path)


@pytest.mark.parametrize(("present", "existing"), [((), "no .npz file"), (("one", "two"), "one.npz, two.npz")])
def test_unknown_name_is_refused_with_the_existing_files(tmp_path, present, existing):
    for name in present:
        (tmp_path / f"{name}.npz").touch()
    missing = re.escape(str(tmp_path / "three.npz"))
    with pytest.raises(DataError, match=f"digits, mnist, .*, or a file {missing}, but the folder has {existing}"):
        load("three", tmp_path)


def test_missing_folder_is_reported(tmp_path):
    with pytest.raises(DataError, match=r"the folder has no \.npz file"):
        load("three", tmp_path / "nowhere")


class TestTensors:
    def test_images_become_floats_from_0_to_1(self):
        split = Split(np.array([[[[0, 128, 255]]]], np.uint8), np.array([3]))
        images, labels = split.tensors(torch.device("cpu"))
        assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
        assert images.shape == (1, 1, 1, 3)
        assert images.flatten().tolist() == pytest.approx([0, 128 / 255, 1])
        assert labels.tolist() == [3]

    def test_every_level_is_exact_and_the_arrays_are_not_modified(self):
        levels = np.arange(256, dtype=np.uint8).reshape(2, 2, 8, 8)
        split = Split(levels.copy(), np.array([1, 0]))
        images, _ = split.tensors(torch.device("cpu"))
        np.testing.assert_array_equal(np.rint(images.numpy() * 255), levels)
        images.zero_()
        np.testing.assert_array_equal(split.images, levels)

    def test_tensors_are_cached_and_not_pickled(self):
        split = Split(np.zeros((5, 1, 2, 2), np.uint8), np.arange(5))
        before, first = len(pickle.dumps(split)), split.tensors(torch.device("cpu"))
        assert split.tensors(torch.device("cpu")) is first
        assert len(pickle.dumps(split)) == before
        again = pickle.loads(pickle.dumps(split))
        assert (again.images.tolist(), again.labels.tolist()) == (split.images.tolist(), split.labels.tolist())
        assert torch.equal(again.tensors(torch.device("cpu"))[0], first[0])
