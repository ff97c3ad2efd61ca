"""What the files of a run hold: to bytes, and back again with every damage named."""

import configparser
import hashlib
import io
import json
import math
import platform
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from benchmarks.config import AttackSpec
from benchmarks.record import ARRAYS, Record
from benchmarks.store._atomic import DamagedError, read_bytes, read_json

# Raise these when what a file holds changes its meaning: older files are then set aside and made again.
STATE_VERSION = 1
RECORD_VERSION = 3

# Bytes that the header of weights may have, as safetensors has it.
_HEADER = 100_000_000
# What the place of a checksum holds while it is computed.
NO_CHECKSUM = "0" * 64
_OF_STATE = {"model": dict, "optimizer": dict, "order": torch.Tensor, "curve": list}
# Of a record's arrays, those with an entry for every image.
OF_EVERY_IMAGE = ("labels", "logits", "robust", "zero_gradient", "found_by")
_NUMBERS_OF_EVENT = {"epoch": ("epoch", "training", "seconds"), "record": ("seconds",)}


def versions() -> dict[str, str]:
    """The versions of what makes results."""
    packages = ("art_hrloss", "torch", "adversarial-robustness-toolbox", "numpy")
    return {"python": platform.python_version(), **{package: _version(package) for package in packages}}


def _version(package: str) -> str:
    """The version of a package by pip's name, also where it is on Python's path without having been installed."""
    with suppress(PackageNotFoundError):
        return version(package)
    module = import_module({"adversarial-robustness-toolbox": "art"}.get(package, package))
    if hasattr(module, "__version__"):
        return str(module.__version__).split("+")[0]  # what follows, such as cu130, is not in the metadata
    stated = configparser.ConfigParser()  # of a clone of this project
    stated.read(Path(str(module.__file__)).parents[1] / "setup.cfg")
    return stated.get("metadata", "version", fallback="unknown")


def read_spec(path: Path) -> dict[str, Any] | None:
    """
    What a run is, and the fingerprint of its data; None if the file is not there.

    :raises DamagedError: If it cannot be used.
    """
    spec: dict[str, Any] | None = read_json(path, dict)
    if spec is not None and not (isinstance(spec.get("run"), dict) and isinstance(spec.get("data"), str)):
        raise DamagedError(path, f"should hold run and data, but holds {sorted(spec)}")
    return spec


def state_bytes(state: dict[str, Any]) -> bytes:
    """Training's state: model, optimizer, order and curve, as a file of torch's."""
    buffer = io.BytesIO()
    torch.save({"version": STATE_VERSION, **state}, buffer)
    return buffer.getvalue()


def read_state(path: Path) -> dict[str, Any] | None:
    """
    Training's state; None if the file is not there.

    Only tensors and plain containers are read: a file from elsewhere cannot run code.

    :raises DamagedError: If it cannot be used, or is of another version.
    """
    data = read_bytes(path)
    if data is None:
        return None
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        # torch writes a checksum of each part, and does not look at it.
        changed = zipfile.ZipFile(io.BytesIO(data)).testzip()
    except Exception as error:  # a damaged file can make the unpickler raise nearly anything
        raise DamagedError(path, f"cannot be read ({_first_line(error)})") from error
    if changed is not None:
        raise DamagedError(path, f"was changed after it was written (the checksum of {changed} is another)")
    if not isinstance(state, dict):
        raise DamagedError(path, f"should hold a dict, but holds a {type(state).__name__}")
    _expect_version(path, state.get("version"), STATE_VERSION)
    for name, kind in _OF_STATE.items():
        if not isinstance(state.get(name), kind):
            raise DamagedError(path, f"should hold {name}, a {kind.__name__}, but holds {sorted(map(str, state))}")
    _expect_rows(path, state["curve"])
    return state


def weights_bytes(weights: Mapping[str, torch.Tensor]) -> bytes:
    """Trained weights as a file of safetensors's, with a checksum."""
    return tensors_bytes({name: tensor.contiguous() for name, tensor in weights.items()}, "sha256", NO_CHECKSUM)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """
    Trained weights.

    :raises DamagedError: If they are not there, cannot be read, or are not as they were written.
    """
    data = read_bytes(path)
    if data is None:
        raise DamagedError(path, "is not there")
    return _tensors(path, data)[0]


def record_bytes(record: Record) -> bytes:
    """A record as one file: its arrays, and in the header, as JSON, what else only the attack knows."""
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in record.arrays().items()}
    other = {"version": RECORD_VERSION, "names": record.names, "flags": record.flags and dict(record.flags)}
    return tensors_bytes(tensors, "record", json.dumps({"sha256": NO_CHECKSUM, **other}))


def read_record(path: Path, attack: AttackSpec) -> Record | None:
    """
    One evaluation; None if the file is not there.

    :param path: The file.
    :param attack: What it is of: one along a loss says which gradients were 0, a report which flags were raised.
    :raises DamagedError: If it cannot be used, or is of another version.
    """
    data = read_bytes(path)
    if data is None:
        return None
    tensors, header = _tensors(path, data)
    other = _of_record(path, header)
    needed = {"labels", "robust"} if attack.name == "diagnostics" else {"labels", "logits", "samples", "sampled"}
    if attack.loss is not None and attack.name != "diagnostics":
        needed.add("zero_gradient")
    if missing := sorted(needed - tensors.keys()):
        raise DamagedError(path, f"should hold {', '.join(sorted(needed))}, but lacks {', '.join(missing)}")
    arrays = {name: tensors[name].numpy() for name in ARRAYS if name in tensors}
    n = len(arrays["labels"])
    for name, array in arrays.items():
        kind, dimensions = ARRAYS[name]
        if array.dtype != kind or array.ndim != dimensions or (name in OF_EVERY_IMAGE and len(array) != n) or n == 0:
            shown = f"{array.dtype} of shape {array.shape}"
            raise DamagedError(path, f"should hold {name} as {kind} for each of its {n} images, but holds {shown}")
    record = Record(**arrays, names=tuple(other["names"]), flags=other["flags"])
    for name, indices, size in (
        ("labels", record.labels, n if record.logits is None else record.logits.shape[1]),
        ("sampled", record.sampled, n),
        ("found_by", record.found_by, len(record.names)),
    ):
        lowest = -1 if name == "found_by" else 0
        if indices is not None and not ((indices >= lowest) & (indices < size)).all():
            raise DamagedError(path, f"should hold {name} from {lowest} to {size - 1}, but holds others")
    return record


def has_record(path: Path) -> bool:
    """
    Whether a record is there, as long as its header says, and of this version; nothing else of it is looked at.

    :raises DamagedError: If it is there and cannot be used.
    """
    header = read_header(path)
    return header is not None and bool(_of_record(path, header))


def _of_record(path: Path, header: Mapping[str, str]) -> dict[str, Any]:
    """What a record's header says."""
    try:
        other = json.loads(header.get("record", "null"))
    except (ValueError, RecursionError) as error:
        raise DamagedError(path, f"should have JSON in its header ({_first_line(error)})") from error
    if not isinstance(other, dict):
        raise DamagedError(path, "should say in its header what the record is, but does not")
    _expect_version(path, other.get("version"), RECORD_VERSION)
    if not isinstance(other.get("names"), list) or not isinstance(other.get("flags"), dict | None):
        raise DamagedError(path, f"should have names and flags in its header, but has {sorted(other)}")
    return other


def tensors_bytes(tensors: Mapping[str, torch.Tensor], name: str, text: str) -> bytes:
    """
    A file of safetensors's, with a checksum of the whole of it but for the checksum's place.

    :param tensors: What it holds.
    :param name: Of the header's one entry: of several, safetensors would write the order at random.
    :param text: The entry, with NO_CHECKSUM where the checksum goes.
    """
    data: bytes = safetensors.torch.save(dict(tensors), {name: text})
    return data.replace(NO_CHECKSUM.encode(), hashlib.sha256(data).hexdigest().encode(), 1)


def _tensors(path: Path, data: bytes) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors and the header's words; a file from elsewhere may come without a checksum."""
    try:
        tensors: dict[str, torch.Tensor] = safetensors.torch.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
        kept = str((header if "sha256" in header else json.loads(header["record"]))["sha256"]) if header else None
    except Exception as error:  # a damaged header can make the readers raise nearly anything
        raise DamagedError(path, f"cannot be read ({_first_line(error)})") from error
    if kept is not None:
        checked = data.replace(kept.encode(), NO_CHECKSUM.encode(), 1)
        if hashlib.sha256(checked).hexdigest() != kept:
            raise DamagedError(path, "was changed after it was written (its checksum is another)")
    return tensors, header


def read_header(path: Path) -> dict[str, Any] | None:
    """
    What the header of a file of tensors says beside the tensors; None if the file is not there.

    :raises DamagedError: If it has no header, or is not as long as that says.
    """
    # Without safetensors.safe_open, which takes no path that is not UTF-8.
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length <= _HEADER else None
            if not isinstance(header, dict):
                raise ValueError("no header")
            ends = [part["data_offsets"][1] for name, part in header.items() if name != "__metadata__"]
            came, expected = path.stat().st_size, 8 + length + max(ends, default=0)
            if came != expected:
                raise ValueError(f"{came} bytes, where its header says {expected}")
            return dict(header.get("__metadata__", {}))
    except FileNotFoundError:
        return None
    except (ValueError, OSError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(path, f"cannot be read ({_first_line(error)})") from error


def read_curve(path: Path) -> list[dict[str, Any]]:
    """
    The rows of a learning curve, one per epoch from the first; none if the file is not there.

    :raises DamagedError: If it cannot be used.
    """
    rows: list[dict[str, Any]] = read_json(path, list) or []
    _expect_rows(path, rows)
    return rows


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """
    The entries of a log, oldest first; none if the file is not there, or cannot be read.

    Each has an event; an epoch has its number, and its seconds of training and in all, a record its seconds. Lines
    that a killed process left unfinished, or that say less, are skipped.
    """
    data = None
    with suppress(DamagedError):
        data = read_bytes(path)
    for line in (data or b"").decode(errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict) and isinstance(event := entry.get("event"), str):
            numbers = [entry.get(name) for name in _NUMBERS_OF_EVENT.get(event, ())]
            if all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
                yield entry


def _expect_rows(path: Path, rows: list[Any]) -> None:
    for epoch, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or row.get("epoch") != epoch:
            raise DamagedError(path, f"should have the row of epoch {epoch} in place {epoch}, but has {row!s:.60}")
        if not isinstance(row.get("validation_accuracy"), float):
            raise DamagedError(path, f"should have a validation_accuracy for epoch {epoch}, but has none")


def _expect_version(path: Path, came: object, expected: int) -> None:
    if came != expected:
        raise DamagedError(path, f"is of version {came}, where this program writes version {expected}")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
