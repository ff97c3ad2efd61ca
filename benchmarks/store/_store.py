"""
Store of results on disk: one folder per run.

    STORE/runs/KEY/spec.json           the run's specification, the data's fingerprint, versions at the start of the run
    STORE/runs/KEY/state.pt            training state, to resume from; deleted when the run is trained
    STORE/runs/KEY/curve.json          learning curve: one row per epoch
    STORE/runs/KEY/model.safetensors   checkpoint: the trained weights, with their checksum
    STORE/runs/KEY/records/ATTACK.safetensors   record of one evaluation
    STORE/runs/KEY/log.jsonl           events, with time and duration
    STORE/runs/KEY/error.txt           error of a failed run
    STORE/runs/KEY/.lock               locked by the process that executes the run
    STORE/runs/KEY/NAME.bad            a damaged file, whose content was computed again
    STORE/reports/GRID/                tables and figures

All files except the log are written atomically. A process holds a run's lock while it changes the run's folder; the
operating system releases the lock when the process dies.
"""

import json
import platform
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from benchmarks.config import AttackSpec, RunSpec, canonical
from benchmarks.record import Record
from benchmarks.store._atomic import (
    DamagedError,
    StoreError,
    UnreadableError,
    append_line,
    expect_folder,
    expect_kind,
    read_bytes,
    set_aside,
    write_bytes,
    write_json,
    writing,
)
from benchmarks.store._schema import (
    has_record,
    read_curve,
    read_header,
    read_log,
    read_record,
    read_spec,
    read_state,
    read_weights,
    record_bytes,
    state_bytes,
    versions,
    weights_bytes,
)


class Store:
    """Results under one folder, which is created with the first result."""

    def __init__(self, root: Path) -> None:
        """Raise a StoreError if the root exists and is not a folder."""
        expect_folder(root)
        self.root = root
        self._folders: dict[RunSpec, Path] = {}

    def folder(self, run: RunSpec) -> Path:
        """Return the folder of a run."""
        if run not in self._folders:  # cached: computing a key takes long, compared with a query of a file
            self._folders[run] = self.root / "runs" / run.key()
        return self._folders[run]

    def report_folder(self, grid_name: str) -> Path:
        """Return the folder of a grid's tables and figures."""
        return self.root / "reports" / grid_name

    def lock(self, run: RunSpec) -> FileLock:
        """
        Return the lock of a run's folder, which works across processes and machines that share a disk.

        A process must hold the lock while it changes the folder.

        :raises StoreError: If the folder cannot be created.
        """
        with writing(self.folder(run)):
            self.folder(run).mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder(run) / ".lock")

    def is_locked(self, run: RunSpec) -> bool:
        """Return whether a process is executing the run; False if there is no permission to query the lock."""
        path = self.folder(run) / ".lock"
        try:
            if path.exists():
                with FileLock(path).acquire(timeout=0):
                    pass
        except Timeout:
            return True
        except OSError:
            pass
        return False

    def check(self, run: RunSpec, data_fingerprint: str) -> None:
        """
        Make sure that existing results of the run were computed from the same data.

        :raises StoreError: If the data of that name have changed, or if the specification cannot be read.
        """
        spec = read_spec(self.folder(run) / "spec.json")
        if spec is not None and spec["data"] != data_fingerprint:
            raise StoreError(
                f"{self.folder(run) / 'spec.json'} has data with fingerprint {spec['data']}, but {run.dataset} now has "
                f"{data_fingerprint}: rename the changed data, or use another store"
            )

    def open(self, run: RunSpec, data_fingerprint: str) -> None:
        """
        Prepare a run's folder for execution, and remove partial files of a killed process; the lock must be held.

        :raises StoreError: See :meth:`check`.
        """
        self.check(run, data_fingerprint)
        folder = self.folder(run)
        with writing(folder):
            for part in folder.rglob(".*.part"):
                part.unlink()
            (folder / "error.txt").unlink(missing_ok=True)
        if not (folder / "spec.json").exists():
            spec = {"run": canonical(run), "data": data_fingerprint, "made_with": versions()}
            write_json(folder / "spec.json", spec)
        self._make_consistent(run)

    def other_versions(self, run: RunSpec) -> str:
        """Return the versions at the start of the run that differ from the present ones, such as "torch 2.8.0"."""
        initial = self.made_with(run)
        return ", ".join(f"{name} {initial.get(name)}" for name, now in versions().items() if initial.get(name) != now)

    def made_with(self, run: RunSpec) -> dict[str, str]:
        """
        Return the versions at the start of the run, by name; an empty dict if the run has not been started.

        :raises DamagedError: If the specification cannot be read.
        """
        initial = (read_spec(self.folder(run) / "spec.json") or {}).get("made_with")
        return initial if isinstance(initial, dict) else {}

    def _make_consistent(self, run: RunSpec) -> None:
        """
        Make curve, state and weights consistent after a killed process or a damage.

        A training whose weights or curve are lost resumes from its state, or else restarts.
        """
        folder = self.folder(run)
        if self.is_trained(run) and len(self.curve(run)) == run.recipe.epochs:
            return
        state = self.load_state(run)
        with writing(folder):
            if state is None or len(state["curve"]) < run.recipe.epochs:
                (folder / "model.safetensors").unlink(missing_ok=True)
            if state is None:
                (folder / "curve.json").unlink(missing_ok=True)
        if state is not None:
            write_json(folder / "curve.json", state["curve"])
        elif run.recipe.device != "cpu" and (folder / "records").exists():
            # A training that is repeated on the CPU gives identical weights, so that records stay valid. On a GPU it
            # does not, so records of the lost weights are invalid.
            set_aside(folder / "records")

    def log(self, run: RunSpec, event: str, **values: object) -> None:
        """
        Append an entry to the run's log; the lock must be held.

        :raises StoreError: If the disk is full, or the log cannot be written.
        """
        entry = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "host": platform.node(), "event": event, **values}
        append_line(self.folder(run) / "log.jsonl", json.dumps(entry))

    def log_entries(self, run: RunSpec) -> list[dict[str, Any]]:
        """Return the entries of the run's log, oldest first, without partial lines of a killed process."""
        return list(read_log(self.folder(run) / "log.jsonl"))

    def save_state(self, run: RunSpec, state: dict[str, Any]) -> None:
        """Store the training state after an epoch (model, optimizer, order, curve), and the curve as a file as well."""
        # The curve is first: a process that is killed between the two writes repeats the epoch, and no row is lost.
        write_json(self.folder(run) / "curve.json", state["curve"])
        write_bytes(self.folder(run) / "state.pt", state_bytes(state))

    def load_state(self, run: RunSpec) -> dict[str, Any] | None:
        """Return the training state to resume from, or None; raise a DamagedError if it is damaged."""
        return read_state(self.folder(run) / "state.pt")

    def save_checkpoint(self, run: RunSpec, weights: dict[str, torch.Tensor]) -> None:
        """Store the trained weights, then delete the training state, which is no longer needed."""
        write_bytes(self.folder(run) / "model.safetensors", weights_bytes(weights))
        with writing(self.folder(run) / "state.pt"):
            (self.folder(run) / "state.pt").unlink(missing_ok=True)

    def is_trained(self, run: RunSpec) -> bool:
        """Return whether the run is trained: the weights exist, and the training state has been deleted."""
        folder = self.folder(run)
        return (folder / "model.safetensors").exists() and not (folder / "state.pt").exists()

    def load_checkpoint(self, run: RunSpec) -> dict[str, torch.Tensor]:
        """Return the trained weights; raise a DamagedError if they are missing or damaged."""
        return read_weights(self.folder(run) / "model.safetensors")

    def epochs_done(self, run: RunSpec) -> int:
        """Return the number of finished epochs; raise a DamagedError if the curve cannot be read."""
        return len(self.curve(run))

    def curve(self, run: RunSpec) -> list[dict[str, Any]]:
        """Return the learning curve, one row per finished epoch; raise a DamagedError if it cannot be read."""
        return read_curve(self.folder(run) / "curve.json")

    def save_record(self, run: RunSpec, attack: AttackSpec, record: Record) -> None:
        """Store the record of one evaluation."""
        write_bytes(self._record_path(run, attack), record_bytes(record))

    def record(self, run: RunSpec, attack: AttackSpec) -> Record | None:
        """Return the record of an evaluation, or None if it does not exist; raise a DamagedError if it is damaged."""
        return read_record(self._record_path(run, attack), attack)

    def has_record(self, run: RunSpec, attack: AttackSpec) -> bool:
        """Return whether a record exists, by the header of its file; raise a DamagedError if that is damaged."""
        return has_record(self._record_path(run, attack))

    def is_done(self, run: RunSpec, attacks: tuple[AttackSpec, ...]) -> bool:
        """Return whether the run is trained, all records exist, and a quick check finds no damage."""
        return (
            self.is_trained(run)
            and all(self._record_path(run, attack).exists() for attack in attacks)
            and next(self.damaged(run, attacks, quick=True), None) is None
        )

    def damaged(self, run: RunSpec, attacks: tuple[AttackSpec, ...], *, quick: bool = False) -> Iterator[DamagedError]:
        """
        Check every existing file of the run, and yield an error for each damaged file.

        :param quick: Whether to check only headers and lengths of large files.
        """
        folder = self.folder(run)
        weights = folder / "model.safetensors"
        checks: list[Callable[[], object]] = [
            partial(expect_kind, folder / "log.jsonl"),  # first, because damage of the other files is logged in it
            partial(expect_kind, folder / "error.txt"),
            partial(expect_kind, folder / "records", folder=True),
            partial(read_spec, folder / "spec.json"),
            partial(expect_kind if quick else read_state, folder / "state.pt"),
            lambda: weights.exists() and (read_header if quick else read_weights)(weights),
            partial(self._check_curve, run),
            *(partial(self.has_record if quick else self.record, run, attack) for attack in attacks),
        ]
        for check in checks:
            try:
                check()
            except DamagedError as error:
                yield error

    def save_error(self, run: RunSpec, message: str) -> None:
        """Store the error of a failed run."""
        write_bytes(self.folder(run) / "error.txt", message.encode())

    def error(self, run: RunSpec) -> str | None:
        """Return the error of the run's last execution, or None if it did not fail."""
        try:
            data = read_bytes(self.folder(run) / "error.txt")
        except DamagedError as error:
            return str(error)
        return None if data is None else data.decode(errors="replace")

    def set_damaged_aside(self, run: RunSpec, attacks: tuple[AttackSpec, ...]) -> list[str]:
        """
        Set aside every damaged file of the run, so that its content is computed again; the lock must be held.

        :return: One message for each file, with the damage and the file's new name.
        :raises UnreadableError: If a file cannot be read for lack of permission.
        """
        messages: list[str] = []
        for error in self.damaged(run, attacks):
            if isinstance(error, UnreadableError):
                raise error
            renamed = f"renamed to {set_aside(error.path).name}, and computed again" if error.path.exists() else ""
            messages.append(f"{error}: {renamed or 'the run is trained again'}")
            self.log(run, "set aside", message=str(error))
        return messages

    def _check_curve(self, run: RunSpec) -> None:
        trained = self.is_trained(run)  # queried before the curve: another process may finish the run in between
        rows = len(self.curve(run))
        if trained and rows != run.recipe.epochs:
            path = self.folder(run) / "curve.json"
            raise DamagedError(path, f"has {rows} of {run.recipe.epochs} rows, though the run is trained")

    def _record_path(self, run: RunSpec, attack: AttackSpec) -> Path:
        return self.folder(run) / "records" / f"{attack.key()}.safetensors"
