"""
Results on disk: one folder per run, and nothing in it that is half written.

    STORE/runs/KEY/spec.json           what the run is, and the fingerprint of its data
    STORE/runs/KEY/state.pt            training so far: to resume from; gone once the run is trained
    STORE/runs/KEY/curve.json          one row per epoch
    STORE/runs/KEY/model.safetensors   the trained weights
    STORE/runs/KEY/records/ATTACK.json one evaluation each
    STORE/runs/KEY/error.txt           why the run failed, if it did
    STORE/reports/GRID/                tables made from the records

Every file is written beside its place and moved there once it is whole.
"""

import io
import json
import os
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from benchmarks.config import AttackSpec, RunSpec, canonical


class StoreError(RuntimeError):
    """A file of the store that cannot be used; says which and what to do."""


class Store:
    """The results under one folder; made as they come."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, run: RunSpec) -> Path:
        """Where a run keeps its files."""
        return self.root / "runs" / run.key()

    def report_folder(self, grid_name: str) -> Path:
        """Where the tables of a grid go."""
        return self.root / "reports" / grid_name

    def open(self, run: RunSpec, data_fingerprint: str) -> None:
        """
        Make the run's folder, or check that the one that is there was made from the same data.

        :raises StoreError: If the data of that name have changed since.
        """
        path = self.folder(run) / "spec.json"
        if path.exists():
            kept = _read_json(path).get("data")
            if kept != data_fingerprint:
                raise StoreError(
                    f"{path} was made from data with fingerprint {kept}, but {run.dataset} now has {data_fingerprint}: "
                    "give the changed data another name, or use another store"
                )
        else:
            write_json(path, {"run": canonical(run), "data": data_fingerprint})
        (self.folder(run) / "error.txt").unlink(missing_ok=True)
        if self.is_trained(run):  # a process killed between the last two steps of a training leaves its state behind
            (self.folder(run) / "state.pt").unlink(missing_ok=True)

    def save_state(self, run: RunSpec, state: dict[str, Any]) -> None:
        """Keep training's state after an epoch, and its curve where others can read it."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        # The curve first: a process killed between the two then repeats the epoch instead of losing its row.
        write_json(self.folder(run) / "curve.json", state["curve"])
        write_bytes(self.folder(run) / "state.pt", buffer.getvalue())

    def load_state(self, run: RunSpec) -> dict[str, Any] | None:
        """
        The state to resume from, or None; an unreadable one is set aside and training starts anew.

        Only tensors and plain containers are read: a file from elsewhere cannot run code.
        """
        path = self.folder(run) / "state.pt"
        if not path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception:  # whatever a damaged file makes the unpickler raise, the answer is the same
            os.replace(path, path.with_suffix(".pt.bad"))
            return None
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

        :raises StoreError: If the file is damaged.
        """
        path = self.folder(run) / "model.safetensors"
        try:
            return safetensors.torch.load_file(path)
        except (SafetensorError, OSError) as error:
            raise StoreError(f"{path} cannot be read ({error}): remove it to train the run again") from error

    def epochs_done(self, run: RunSpec) -> int:
        """How many epochs of the run are behind it."""
        if self.is_trained(run):
            return run.recipe.epochs
        path = self.folder(run) / "curve.json"
        return len(_read_json(path)) if path.exists() else 0

    def curve(self, run: RunSpec) -> list[dict[str, float]]:
        """One row per epoch done: see benchmarks/training.py."""
        rows: list[dict[str, float]] = _read_json(self.folder(run) / "curve.json")
        return rows

    def save_record(self, run: RunSpec, attack: AttackSpec, record: dict[str, Any]) -> None:
        """Keep one evaluation."""
        write_json(self._record_path(run, attack), record)

    def record(self, run: RunSpec, attack: AttackSpec) -> dict[str, Any] | None:
        """One evaluation, or None if it is not there yet."""
        path = self._record_path(run, attack)
        if not path.exists():
            return None
        record: dict[str, Any] = _read_json(path)
        return record

    def save_error(self, run: RunSpec, message: str) -> None:
        """Keep why a run failed."""
        write_bytes(self.folder(run) / "error.txt", message.encode())

    def _record_path(self, run: RunSpec, attack: AttackSpec) -> Path:
        return self.folder(run) / "records" / f"{attack.key()}.json"


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, whole or not at all."""
    write_bytes(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all: beside its place first, then moved there once it is on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise StoreError(f"{path} is not valid JSON ({error}): remove it to have it made again") from error
