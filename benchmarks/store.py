"""
Results on disk: one folder per run, and nothing in it that is half written.

    STORE/runs/KEY/spec.json           what the run is, the fingerprint of its data, and the versions that began it
    STORE/runs/KEY/state.pt            training so far: to resume from; gone once the run is trained
    STORE/runs/KEY/curve.json          one row per epoch
    STORE/runs/KEY/model.safetensors   the trained weights
    STORE/runs/KEY/records/ATTACK.json one evaluation each
    STORE/runs/KEY/log.jsonl           what happened when, and how long it took
    STORE/runs/KEY/error.txt           why the run failed, if it did
    STORE/runs/KEY/.lock               held by the process that works on the run
    STORE/reports/GRID/                tables and figures made from the records

Every file but the log is written beside its place and moved there once it is whole. Who changes a run's folder holds
its lock, which the operating system takes back when its holder dies.
"""

import errno
import io
import json
import os
import platform
import shutil
import time
import uuid
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open

from benchmarks.config import AttackSpec, RunSpec, canonical

# Raise these when what a file holds changes its meaning: older files are then set aside and made again.
STATE_VERSION = 1
RECORD_VERSION = 1


class StoreError(RuntimeError):
    """A file of the store that cannot be used or written; says which and what to do."""


class DamagedError(StoreError):
    """A file that cannot be used as it is, but can be made again."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"{path} {what}")
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:  # it comes back from workers, and has more than a message
        return DamagedError, (self.path, str(self).removeprefix(f"{self.path} "))


class Store:
    """The results under one folder; made as they come."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, run: RunSpec) -> Path:
        """Where a run keeps its files."""
        return self.root / "runs" / run.key()

    def report_folder(self, grid_name: str) -> Path:
        """Where the tables and figures of a grid go."""
        return self.root / "reports" / grid_name

    def lock(self, run: RunSpec) -> FileLock:
        """The lock that whoever changes the run's folder must hold; across processes, and across a shared disk."""
        self.folder(run).mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder(run) / ".lock")

    def is_locked(self, run: RunSpec) -> bool:
        """Whether some process works on the run at this moment."""
        if not (self.folder(run) / ".lock").exists():
            return False
        try:
            with self.lock(run).acquire(timeout=0):
                return False
        except Timeout:
            return True

    def check(self, run: RunSpec, data_fingerprint: str) -> None:
        """
        Make sure that what is kept of the run, if anything, was made from the same data.

        :raises StoreError: If the data of that name have changed since.
        :raises DamagedError: If that cannot be read.
        """
        path = self.folder(run) / "spec.json"
        if not path.exists():
            return
        kept = _read_json(path, dict).get("data")
        if kept != data_fingerprint:
            raise StoreError(
                f"{path} was made from data with fingerprint {kept}, but {run.dataset} now has {data_fingerprint}: "
                "give the changed data another name, or use another store"
            )

    def open(self, run: RunSpec, data_fingerprint: str) -> None:
        """
        Make the run's folder ready for work, its lock being held; what an earlier, killed process left is cleared.

        :raises StoreError: As :meth:`check`.
        """
        self.check(run, data_fingerprint)
        folder = self.folder(run)
        for part in folder.rglob(".*.part"):
            part.unlink()
        if not (folder / "spec.json").exists():
            spec = {"run": canonical(run), "data": data_fingerprint, "made_with": versions()}
            write_json(folder / "spec.json", spec)
        (folder / "error.txt").unlink(missing_ok=True)
        if self.is_trained(run):  # a process killed between the last two steps of a training leaves its state behind
            (folder / "state.pt").unlink(missing_ok=True)

    def log(self, run: RunSpec, event: str, **values: object) -> None:
        """Add a line to the run's log, its lock being held."""
        entry = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "host": platform.node(), "event": event, **values}
        with (self.folder(run) / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def log_entries(self, run: RunSpec) -> list[dict[str, Any]]:
        """The run's log, oldest first; lines that a killed process left unfinished are skipped."""
        path = self.folder(run) / "log.jsonl"
        entries = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                entries.append(entry)
        return entries

    def save_state(self, run: RunSpec, state: dict[str, Any]) -> None:
        """Keep training's state after an epoch, and its curve where others can read it."""
        buffer = io.BytesIO()
        torch.save({"version": STATE_VERSION, **state}, buffer)
        # The curve first: a process killed between the two then repeats the epoch instead of losing its row.
        write_json(self.folder(run) / "curve.json", state["curve"])
        write_bytes(self.folder(run) / "state.pt", buffer.getvalue())

    def load_state(self, run: RunSpec) -> dict[str, Any] | None:
        """
        The state to resume from, or None.

        Only tensors and plain containers are read: a file from elsewhere cannot run code.

        :raises DamagedError: If it cannot be read, or is of another version.
        """
        path = self.folder(run) / "state.pt"
        if not path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            kept = state["version"]
        except Exception as error:  # a damaged file can make the unpickler raise nearly anything
            raise DamagedError(path, f"cannot be read ({str(error).splitlines()[0]})") from error
        _expect_version(path, kept, STATE_VERSION)
        return state

    def save_checkpoint(self, run: RunSpec, weights: dict[str, torch.Tensor]) -> None:
        """Keep the trained weights; the training state is then no longer needed."""
        data = safetensors.torch.save({name: tensor.contiguous() for name, tensor in weights.items()})
        write_bytes(self.folder(run) / "model.safetensors", data)
        (self.folder(run) / "state.pt").unlink(missing_ok=True)

    def is_trained(self, run: RunSpec) -> bool:
        """Whether the trained weights are there."""
        return (self.folder(run) / "model.safetensors").exists()

    def load_checkpoint(self, run: RunSpec) -> dict[str, torch.Tensor]:
        """
        The trained weights.

        :raises DamagedError: If they cannot be read.
        """
        path = self.folder(run) / "model.safetensors"
        try:
            return safetensors.torch.load_file(path)
        except (SafetensorError, OSError) as error:
            raise DamagedError(path, f"cannot be read ({error})") from error

    def epochs_done(self, run: RunSpec) -> int:
        """How many epochs of the run are behind it."""
        if self.is_trained(run):
            return run.recipe.epochs
        return len(self.curve(run))

    def curve(self, run: RunSpec) -> list[dict[str, Any]]:
        """
        One row per epoch done: see benchmarks/training.py.

        :raises DamagedError: If it cannot be read.
        """
        path = self.folder(run) / "curve.json"
        rows: list[dict[str, Any]] = _read_json(path, list) if path.exists() else []
        return rows

    def save_record(self, run: RunSpec, attack: AttackSpec, record: dict[str, Any]) -> None:
        """Keep one evaluation."""
        write_json(self._record_path(run, attack), {"version": RECORD_VERSION, **record})

    def record(self, run: RunSpec, attack: AttackSpec) -> dict[str, Any] | None:
        """
        One evaluation, or None if it is not there yet.

        :raises DamagedError: If it cannot be read, or is of another version.
        """
        path = self._record_path(run, attack)
        if not path.exists():
            return None
        record: dict[str, Any] = _read_json(path, dict)
        _expect_version(path, record.get("version"), RECORD_VERSION)
        return record

    def save_error(self, run: RunSpec, message: str) -> None:
        """Keep why a run failed."""
        write_bytes(self.folder(run) / "error.txt", message.encode())

    def error(self, run: RunSpec) -> str | None:
        """Why the run failed when it was last tried, or None if it did not."""
        path = self.folder(run) / "error.txt"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else None

    def set_damaged_aside(self, run: RunSpec, attacks: tuple[AttackSpec, ...]) -> list[str]:
        """
        Set aside every file of the run that cannot be used, so that it is made again, its lock being held.

        A training whose curve or weights are lost is done again; the records it has stay, for it ends in the same bits.

        :return: For each file a sentence that says what was wrong and where it is now.
        """
        messages: list[str] = []

        def check(read: Callable[..., object], *arguments: object) -> None:
            try:
                read(*arguments)
            except DamagedError as error:
                aside = error.path.with_name(f"{error.path.name}.bad")
                os.replace(error.path, aside)
                messages.append(f"{error}: set aside as {aside.name}, and made again")
                self.log(run, "set aside", message=str(error))

        check(self._check_spec, run)
        check(self.load_state, run)
        check(self.curve, run)
        check(self._check_weights, run)
        for attack in attacks:
            check(self.record, run, attack)
        if self.is_trained(run) and len(self.curve(run)) != run.recipe.epochs:
            (self.folder(run) / "model.safetensors").unlink()
        return messages

    def _check_spec(self, run: RunSpec) -> None:
        path = self.folder(run) / "spec.json"
        if path.exists():
            _read_json(path, dict)

    def _check_weights(self, run: RunSpec) -> None:
        path = self.folder(run) / "model.safetensors"
        if not path.exists():
            return
        try:
            with safe_open(path, framework="pt"):  # which checks the header, and the length it foretells
                pass
        except (SafetensorError, OSError) as error:
            raise DamagedError(path, f"cannot be read ({error})") from error

    def _record_path(self, run: RunSpec, attack: AttackSpec) -> Path:
        return self.folder(run) / "records" / f"{attack.key()}.json"


def versions() -> dict[str, str]:
    """The versions of what makes results."""
    packages = ("art_hrloss", "torch", "adversarial-robustness-toolbox", "numpy")
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, whole or not at all."""
    write_bytes(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def write_bytes(path: Path, data: bytes) -> None:
    """
    Write a file, whole or not at all: beside its place first, then moved there once it is on disk.

    :raises StoreError: If the disk is full, or the place cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own: on a shared disk another machine may have a process of the same number.
        part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
        try:
            with part.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        hint = "make it writable"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            hint = f"make room ({shutil.disk_usage(path.parent).free / 1e6:.1f} MB are free on its disk)"
        raise StoreError(
            f"{path} cannot be written ({error.strerror}): {hint}, and give the same command again; "
            "what was there before is as it was"
        ) from error


def _read_json(path: Path, kind: type) -> Any:
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise DamagedError(path, f"is not valid JSON ({error})") from error
    if not isinstance(value, kind):
        raise DamagedError(path, f"should hold a {kind.__name__}, but holds a {type(value).__name__}")
    return value


def _expect_version(path: Path, came: object, expected: int) -> None:
    if came != expected:
        raise DamagedError(path, f"is of version {came}, where this program writes version {expected}")
