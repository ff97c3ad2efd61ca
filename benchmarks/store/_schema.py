"""Formats of a run's files: encoding as bytes, and decoding with checks that name any damage."""

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

# Increment a version when the content of its files changes its meaning. Older files are then set aside, and their
# content is computed again.
STATE_VERSION = 1
RECORD_VERSION = 3

# Maximum length of a header in bytes, the limit of safetensors.
_MAX_HEADER_BYTES = 100_000_000
# Placeholder of a checksum while the checksum is computed.
NO_CHECKSUM = "0" * 64
_STATE_TYPES = {"model": dict, "optimizer": dict, "order": torch.Tensor, "curve": list}
# Arrays of a record that have one entry per image.
PER_IMAGE = ("labels", "logits", "robust", "zero_gradient", "found_by")
_EVENT_NUMBERS = {"epoch": ("epoch", "training", "seconds"), "record": ("seconds",)}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages on which results depend."""
    packages = ("art_hrloss", "torch", "adversarial-robustness-toolbox", "numpy")
    return {"python": platform.python_version(), **{package: _version(package) for package in packages}}


def _version(package: str) -> str:
    """Return the version of a package by pip's name, also if the package is on Python's path without metadata."""
    with suppress(PackageNotFoundError):
        return version(package)
    module = import_module({"adversarial-robustness-toolbox": "art"}.get(package, package))
    if hasattr(module, "__version__"):
        return str(module.__version__).split("+")[0]  # metadata lacks a local version label such as +cu130
    metadata = configparser.ConfigParser()  # setup.cfg of a clone of this project
    metadata.read(Path(str(module.__file__)).parents[1] / "setup.cfg")
    return metadata.get("metadata", "version", fallback="unknown")


def read_spec(path: Path) -> dict[str, Any] | None:
    """
    Return the specification of a run with the fingerprint of its data; None if the file does not exist.

    :raises DamagedError: If the file is damaged.
    """
    spec: dict[str, Any] | None = read_json(path, dict)
    if spec is not None and not (isinstance(spec.get("run"), dict) and isinstance(spec.get("data"), str)):
        raise DamagedError(path, f"should contain run and data, but contains {sorted(spec)}")
    return spec


def state_bytes(state: dict[str, Any]) -> bytes:
    """Return the state of a training (model, optimizer, order and curve) as a file of torch.save."""
    buffer = io.BytesIO()
    torch.save({"version": STATE_VERSION, **state}, buffer)
    return buffer.getvalue()


def read_state(path: Path) -> dict[str, Any] | None:
    """
    Return the state of a training; None if the file does not exist.

    Only tensors and plain containers are unpickled, so that a file of unknown origin cannot execute code.

    :raises DamagedError: If the file is damaged, or has another version.
    """
    data = read_bytes(path)
    if data is None:
        return None
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        # torch.save writes a checksum of each part, but torch.load does not check it.
        changed = zipfile.ZipFile(io.BytesIO(data)).testzip()
    except Exception as error:  # a damaged file can make the unpickler raise nearly anything
        raise DamagedError(path, f"cannot be read ({_first_line(error)})") from error
    if changed is not None:
        raise DamagedError(path, f"was modified after it was written (wrong checksum of {changed})")
    if not isinstance(state, dict):
        raise DamagedError(path, f"should contain a dict, but contains a {type(state).__name__}")
    _expect_version(path, state.get("version"), STATE_VERSION)
    for name, kind in _STATE_TYPES.items():
        if not isinstance(state.get(name), kind):
            problem = f"should contain {name}, a {kind.__name__}, but contains {sorted(map(str, state))}"
            raise DamagedError(path, problem)
    _expect_rows(path, state["curve"])
    return state


def weights_bytes(weights: Mapping[str, torch.Tensor]) -> bytes:
    """Return trained weights as a safetensors file with a checksum."""
    return tensors_bytes({name: tensor.contiguous() for name, tensor in weights.items()}, "sha256", NO_CHECKSUM)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """
    Return trained weights.

    :raises DamagedError: If the file is missing, damaged or modified.
    """
    data = read_bytes(path)
    if data is None:
        raise DamagedError(path, "does not exist")
    return _tensors(path, data)[0]


def record_bytes(record: Record) -> bytes:
    """Return a record as a safetensors file: arrays as tensors, and the other fields as JSON in the header."""
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in record.arrays().items()}
    fields = {"version": RECORD_VERSION, "names": record.names, "flags": record.flags and dict(record.flags)}
    return tensors_bytes(tensors, "record", json.dumps({"sha256": NO_CHECKSUM, **fields}))


def read_record(path: Path, attack: AttackSpec) -> Record | None:
    """
    Return the record of an evaluation; None if the file does not exist.

    :param path: The file.
    :param attack: The attack, which determines the required arrays.
    :raises DamagedError: If the file is damaged, or has another version.
    """
    data = read_bytes(path)
    if data is None:
        return None
    tensors, header = _tensors(path, data)
    fields = _record_fields(path, header)
    required = {"labels", "robust"} if attack.name == "diagnostics" else {"labels", "logits", "samples", "sampled"}
    if attack.loss is not None and attack.name != "diagnostics":
        required.add("zero_gradient")
    if missing := sorted(required - tensors.keys()):
        raise DamagedError(path, f"should contain {', '.join(sorted(required))}, but lacks {', '.join(missing)}")
    arrays = {name: tensors[name].numpy() for name in ARRAYS if name in tensors}
    n = len(arrays["labels"])
    for name, array in arrays.items():
        kind, dimensions = ARRAYS[name]
        if array.dtype != kind or array.ndim != dimensions or (name in PER_IMAGE and len(array) != n) or n == 0:
            actual = f"{array.dtype} of shape {array.shape}"
            raise DamagedError(path, f"should contain {name} as {kind} for its {n} images, but contains {actual}")
    record = Record(**arrays, names=tuple(fields["names"]), flags=fields["flags"])
    for name, indices, size in (
        ("labels", record.labels, n if record.logits is None else record.logits.shape[1]),
        ("sampled", record.sampled, n),
        ("found_by", record.found_by, len(record.names)),
    ):
        lowest = -1 if name == "found_by" else 0
        if indices is not None and not ((indices >= lowest) & (indices < size)).all():
            raise DamagedError(path, f"should contain {name} from {lowest} to {size - 1}, but contains other values")
    return record


def has_record(path: Path) -> bool:
    """
    Return whether a record exists; only the header, the version and the length of the file are checked.

    :raises DamagedError: If the file exists and is damaged.
    """
    header = read_header(path)
    return header is not None and bool(_record_fields(path, header))


def _record_fields(path: Path, header: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of a record that are stored in the header."""
    try:
        fields = json.loads(header.get("record", "null"))
    except (ValueError, RecursionError) as error:
        raise DamagedError(path, f"should have JSON in its header ({_first_line(error)})") from error
    if not isinstance(fields, dict):
        raise DamagedError(path, "should have the fields of a record in its header, but has none")
    _expect_version(path, fields.get("version"), RECORD_VERSION)
    if not isinstance(fields.get("names"), list) or not isinstance(fields.get("flags"), dict | None):
        raise DamagedError(path, f"should have names and flags in its header, but has {sorted(fields)}")
    return fields


def tensors_bytes(tensors: Mapping[str, torch.Tensor], name: str, text: str) -> bytes:
    """
    Return a safetensors file with a checksum of its content, in which the checksum is replaced by zeros.

    :param tensors: The tensors.
    :param name: Name of the header's only entry. With several entries, safetensors would write them in random order,
        and equal content would not give equal files.
    :param text: Text of the entry, with NO_CHECKSUM at the position of the checksum.
    """
    data: bytes = safetensors.torch.save(dict(tensors), {name: text})
    return data.replace(NO_CHECKSUM.encode(), hashlib.sha256(data).hexdigest().encode(), 1)


def _tensors(path: Path, data: bytes) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return the tensors and the header after a check of the checksum; files of other programs may have none."""
    try:
        tensors: dict[str, torch.Tensor] = safetensors.torch.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
        checksum = str((header if "sha256" in header else json.loads(header["record"]))["sha256"]) if header else None
    except Exception as error:  # a damaged header can make the readers raise nearly anything
        raise DamagedError(path, f"cannot be read ({_first_line(error)})") from error
    if checksum is not None:
        content = data.replace(checksum.encode(), NO_CHECKSUM.encode(), 1)
        if hashlib.sha256(content).hexdigest() != checksum:
            raise DamagedError(path, "was modified after it was written (wrong checksum)")
    return tensors, header


def read_header(path: Path) -> dict[str, Any] | None:
    """
    Return the metadata in the header of a safetensors file; None if the file does not exist.

    :raises DamagedError: If the file has no header, or another length than the header states.
    """
    # safetensors.safe_open does not support paths that are not UTF-8.
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length <= _MAX_HEADER_BYTES else None
            if not isinstance(header, dict):
                raise ValueError("no header")
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            actual, expected = path.stat().st_size, 8 + length + max(ends, default=0)
            if actual != expected:
                raise ValueError(f"expected {expected} bytes by its header, but got {actual}")
            return dict(header.get("__metadata__", {}))
    except FileNotFoundError:
        return None
    except (ValueError, OSError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(path, f"cannot be read ({_first_line(error)})") from error


def read_curve(path: Path) -> list[dict[str, Any]]:
    """
    Return the rows of a learning curve, one per epoch from the first; an empty list if the file does not exist.

    :raises DamagedError: If the file is damaged.
    """
    rows: list[dict[str, Any]] = read_json(path, list) or []
    _expect_rows(path, rows)
    return rows


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """
    Yield the entries of a log, oldest first; nothing if the file does not exist or cannot be read.

    Each entry has an event. An epoch has its number, its seconds of training and its total seconds; a record has its
    seconds. Partial lines, which a killed process leaves, and entries without these numbers are skipped.
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
            numbers = [entry.get(name) for name in _EVENT_NUMBERS.get(event, ())]
            if all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
                yield entry


def _expect_rows(path: Path, rows: list[Any]) -> None:
    for epoch, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or row.get("epoch") != epoch:
            raise DamagedError(path, f"should have the row of epoch {epoch} at position {epoch}, but has {row!s:.60}")
        if not isinstance(row.get("validation_accuracy"), float):
            raise DamagedError(path, f"should have a validation_accuracy for epoch {epoch}, but has none")


def _expect_version(path: Path, actual: object, expected: int) -> None:
    if actual != expected:
        raise DamagedError(path, f"has version {actual}, but this program reads version {expected}")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
