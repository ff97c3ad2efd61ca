"""Store that simulates the end of its process between two epochs."""

from pathlib import Path

from benchmarks.config import RunSpec
from benchmarks.store import Store


class KilledError(Exception):
    """Replaces any event that ends a process between two epochs."""


class StoreKilledAfter(Store):
    """A store that raises KilledError right after it has stored the state of a given epoch."""

    def __init__(self, root: Path, epoch: int) -> None:
        super().__init__(root)
        self.epoch = epoch

    def save_state(self, run: RunSpec, state: dict) -> None:
        super().save_state(run, state)
        if len(state["curve"]) == self.epoch:
            raise KilledError
