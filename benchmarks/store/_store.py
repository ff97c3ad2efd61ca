"""
Results on disk: one folder per run, and nothing in it that is half written.

    STORE/runs/KEY/spec.json           what the run is, the fingerprint of its data, and the versions that began it
    STORE/runs/KEY/state.pt            training so far: to resume from; gone once the run is trained
    STORE/runs/KEY/curve.json          one row per epoch
    STORE/runs/KEY/model.safetensors   the trained weights, with their checksum
    STORE/runs/KEY/records/ATTACK.safetensors   one evaluation each
    STORE/runs/KEY/log.jsonl           what happened when, and how long it took
    STORE/runs/KEY/error.txt           why the run failed, if it did
    STORE/runs/KEY/.lock               held by the process that works on the run
    STORE/runs/KEY/NAME.bad            a file that could not be used, and was made again
    STORE/reports/GRID/                tables and figures made from the records

Every file but the log is written beside its place and moved there once it is whole. Who changes a run's folder holds
its lock, which the operating system takes back when its holder dies.
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

__all__ = ["DamagedError", "Store", "StoreError", "UnreadableError", "write_bytes", "write_json"]


class Store:
    """The results under one folder; made as they come."""

    def __init__(self, root: Path) -> None:
        """Raise StoreError if the root is something else than a folder."""
        expect_folder(root)
        self.root = root
        self._folders: dict[RunSpec, Path] = {}

    def folder(self, run: RunSpec) -> Path:
        """Where a run keeps its files."""
        if run not in self._folders:  # a key takes long to make, next to a look at a file
            self._folders[run] = self.root / "runs" / run.key()
        return self._folders[run]

    def report_folder(self, grid_name: str) -> Path:
        """Where the tables and figures of a grid go."""
        return self.root / "reports" / grid_name

    def lock(self, run: RunSpec) -> FileLock:
        """
        The lock that whoever changes the run's folder must hold; across processes, and across a shared disk.

        :raises StoreError: If the folder, which is made, cannot be.
        """
        with writing(self.folder(run)):
            self.folder(run).mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder(run) / ".lock")

    def is_locked(self, run: RunSpec) -> bool:
        """Whether some process works on the run at this moment; False where the system does not let us ask."""
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
        Make sure that what is kept of the run, if anything, was made from the same data.

        :raises StoreError: If the data of that name have changed since, or it cannot be read.
        """
        kept = read_spec(self.folder(run) / "spec.json")
        if kept is not None and kept["data"] != data_fingerprint:
            raise StoreError(
                f"{self.folder(run) / 'spec.json'} was made from data with fingerprint {kept['data']}, but "
                f"{run.dataset} now has {data_fingerprint}: give the changed data another name, or use another store"
            )

    def open(self, run: RunSpec, data_fingerprint: str) -> None:
        """
        Make the run's folder ready for work, its lock being held; what an earlier, killed process left is cleared.

        :raises StoreError: As :meth:`check`.
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
        """What began the run, such as "torch 2.8.0", where it is of another version than what goes on with it."""
        kept = self.made_with(run)
        return ", ".join(f"{name} {kept.get(name)}" for name, now in versions().items() if kept.get(name) != now)

    def made_with(self, run: RunSpec) -> dict[str, str]:
        """
        The versions that began the run, by name; empty where nothing is there.

        :raises DamagedError: If that cannot be read.
        """
        kept = (read_spec(self.folder(run) / "spec.json") or {}).get("made_with")
        return kept if isinstance(kept, dict) else {}

    def _make_consistent(self, run: RunSpec) -> None:
        """
        Make curve, state and weights tell the same, whatever of them a killed process or a damage left.

        A training whose weights or curve are lost is done again from its state, else from its beginning.
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
            # On the CPU the weights come back to the bit, and what was measured on them holds. On a GPU they do not.
            set_aside(folder / "records")

    def log(self, run: RunSpec, event: str, **values: object) -> None:
        """
        Add a line to the run's log, its lock being held.

        :raises StoreError: If the disk is full, or the log cannot be written.
        """
        entry = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "host": platform.node(), "event": event, **values}
        append_line(self.folder(run) / "log.jsonl", json.dumps(entry))

    def log_entries(self, run: RunSpec) -> list[dict[str, Any]]:
        """The run's log, oldest first: what :meth:`log` added, without lines that a killed process left unfinished."""
        return list(read_log(self.folder(run) / "log.jsonl"))

    def save_state(self, run: RunSpec, state: dict[str, Any]) -> None:
        """Keep training's state after an epoch (model, optimizer, order, curve), and the curve to be read by others."""
        # The curve first: a process killed between the two then repeats the epoch instead of losing its row.
        write_json(self.folder(run) / "curve.json", state["curve"])
        write_bytes(self.folder(run) / "state.pt", state_bytes(state))

    def load_state(self, run: RunSpec) -> dict[str, Any] | None:
        """The state to resume from, or None; DamagedError as of read_state."""
        return read_state(self.folder(run) / "state.pt")

    def save_checkpoint(self, run: RunSpec, weights: dict[str, torch.Tensor]) -> None:
        """Keep the trained weights; the training state is then no longer needed."""
        write_bytes(self.folder(run) / "model.safetensors", weights_bytes(weights))
        with writing(self.folder(run) / "state.pt"):
            (self.folder(run) / "state.pt").unlink(missing_ok=True)

    def is_trained(self, run: RunSpec) -> bool:
        """Whether the trained weights are there, and with them the training's state is gone."""
        folder = self.folder(run)
        return (folder / "model.safetensors").exists() and not (folder / "state.pt").exists()

    def load_checkpoint(self, run: RunSpec) -> dict[str, torch.Tensor]:
        """The trained weights; DamagedError as of read_weights, which names those that are not there as well."""
        return read_weights(self.folder(run) / "model.safetensors")

    def epochs_done(self, run: RunSpec) -> int:
        """How many epochs of the run are behind it; DamagedError if its curve cannot be read."""
        return len(self.curve(run))

    def curve(self, run: RunSpec) -> list[dict[str, Any]]:
        """One row per epoch done, as the training left it; DamagedError if it cannot be read."""
        return read_curve(self.folder(run) / "curve.json")

    def save_record(self, run: RunSpec, attack: AttackSpec, record: Record) -> None:
        """Keep one evaluation."""
        write_bytes(self._record_path(run, attack), record_bytes(record))

    def record(self, run: RunSpec, attack: AttackSpec) -> Record | None:
        """One evaluation, or None if it is not there yet; DamagedError as of read_record."""
        return read_record(self._record_path(run, attack), attack)

    def has_record(self, run: RunSpec, attack: AttackSpec) -> bool:
        """Whether an evaluation is there, by a look at the header of its file; DamagedError if it is of no use."""
        return has_record(self._record_path(run, attack))

    def is_done(self, run: RunSpec, attacks: tuple[AttackSpec, ...]) -> bool:
        """Whether the run is trained, every record is there, and :meth:`damaged` finds nothing at a glance."""
        return (
            self.is_trained(run)
            and all(self._record_path(run, attack).exists() for attack in attacks)
            and next(self.damaged(run, attacks, at_a_glance=True), None) is None
        )

    def damaged(
        self, run: RunSpec, attacks: tuple[AttackSpec, ...], *, at_a_glance: bool = False
    ) -> Iterator[DamagedError]:
        """
        Look at every file of the run that is there, and tell of each that cannot be used.

        :param at_a_glance: Look at large files no further than at their headers and lengths.
        """
        folder = self.folder(run)
        weights = folder / "model.safetensors"
        checks: list[Callable[[], object]] = [
            partial(expect_kind, folder / "log.jsonl"),  # first, for the others are noted in it
            partial(expect_kind, folder / "error.txt"),
            partial(expect_kind, folder / "records", folder=True),
            partial(read_spec, folder / "spec.json"),
            partial(expect_kind if at_a_glance else read_state, folder / "state.pt"),
            lambda: weights.exists() and (read_header if at_a_glance else read_weights)(weights),
            partial(self._check_curve, run),
            *(partial(self.has_record if at_a_glance else self.record, run, attack) for attack in attacks),
        ]
        for check in checks:
            try:
                check()
            except DamagedError as error:
                yield error

    def save_error(self, run: RunSpec, message: str) -> None:
        """Keep why a run failed."""
        write_bytes(self.folder(run) / "error.txt", message.encode())

    def error(self, run: RunSpec) -> str | None:
        """Why the run failed when it was last tried, or None if it did not."""
        try:
            data = read_bytes(self.folder(run) / "error.txt")
        except DamagedError as error:
            return str(error)
        return None if data is None else data.decode(errors="replace")

    def set_damaged_aside(self, run: RunSpec, attacks: tuple[AttackSpec, ...]) -> list[str]:
        """
        Set aside every file of the run that cannot be used, so that it is made again, its lock being held.

        :return: For each file a sentence that says what was wrong and where it is now.
        :raises UnreadableError: If the system does not let us read a file.
        """
        messages: list[str] = []
        for error in self.damaged(run, attacks):
            if isinstance(error, UnreadableError):
                raise error
            aside = f"set aside as {set_aside(error.path).name}, and made again" if error.path.exists() else ""
            messages.append(f"{error}: {aside or 'the run is trained again'}")
            self.log(run, "set aside", message=str(error))
        return messages

    def _check_curve(self, run: RunSpec) -> None:
        trained = self.is_trained(run)  # asked first: another process may just be finishing the run
        rows = len(self.curve(run))
        if trained and rows != run.recipe.epochs:
            path = self.folder(run) / "curve.json"
            raise DamagedError(path, f"has {rows} of {run.recipe.epochs} rows, though the run is trained")

    def _record_path(self, run: RunSpec, attack: AttackSpec) -> Path:
        return self.folder(run) / "records" / f"{attack.key()}.safetensors"
