"""One display of a grid in work: a live line in a terminal, plain lines elsewhere."""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from types import MappingProxyType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from benchmarks.config import Grid, RunSpec
from benchmarks.execution._jobs import Outcome
from benchmarks.execution._runner import OnEnd
from benchmarks.execution._status import Cost, RunStatus, duration, seconds_left, status
from benchmarks.store import DamagedError, Store

# Seconds between two looks at the store, and between two plain lines where there is no terminal.
LIVE, PLAIN = 1.0, 60.0
# Times the seconds that a look took, in which there is no other.
REST = 20.0


@contextmanager
def following(
    grid: Grid,
    store: Store,
    console: Console,
    *,
    at_once: int | None,
    costs: Mapping[RunSpec, Cost] = MappingProxyType({}),
) -> Iterator[OnEnd]:
    """
    Show how far a grid is, whoever works on it, and a line for each run that ends, with the time that is then left.

    :param grid: What is in work.
    :param store: Where it goes; it is read, and nothing else.
    :param console: Where to show it.
    :param at_once: Runs done at the same time, for the time left; None for as many as are seen to run.
    :param costs: What runs are expected to take as long as nothing like them has been timed.
    """
    stop = threading.Event()
    looks = _Looks(grid, store, costs)
    columns = (BarColumn(bar_width=20), TextColumn("{task.description}"))
    with Progress(*columns, console=console, disable=not console.is_terminal) as live:
        task = live.add_task("", total=sum(run.recipe.epochs + len(grid.attacks) for run in grid.runs()))

        def follow() -> None:
            pause = 0.0
            while not stop.wait(pause):
                pause = LIVE if console.is_terminal else PLAIN
                states = looks.latest()
                line = _line(states, at_once)
                live.update(task, completed=sum(state.epochs + state.records for state in states), description=line)
                if not console.is_terminal:
                    console.print(line, soft_wrap=True)

        def ended(run: RunSpec, outcome: Outcome) -> None:
            for message in outcome.messages:
                console.print(f"{run}: {message}", soft_wrap=True)
            left = duration(seconds_left(looks.latest(), at_once=at_once))
            console.print(f"{run}: {_told(grid, store, run, outcome)}; left: {left}", soft_wrap=True)

        follower = threading.Thread(target=follow, daemon=True)
        follower.start()
        try:
            yield ended
        finally:
            stop.set()
            follower.join()


class _Looks:
    """What was last seen of a grid: of a large one a look takes long, and is not taken whenever somebody asks."""

    def __init__(self, grid: Grid, store: Store, costs: Mapping[RunSpec, Cost]) -> None:
        self._look = partial(status, grid, store, costs=costs)
        self._states: list[RunStatus] = []
        self._next = 0.0
        self._lock = threading.Lock()

    def latest(self) -> list[RunStatus]:
        """The states of all runs, looked at anew unless that would take more than a twentieth of the time."""
        with self._lock:
            begun = time.monotonic()
            if begun >= self._next:
                self._states = self._look(before=self._states)
                ended = time.monotonic()
                self._next = ended + REST * (ended - begun)
            return self._states


def _line(states: Sequence[RunStatus], at_once: int | None) -> str:
    epochs, total = (sum(n) for n in zip(*((s.epochs, s.run.recipe.epochs) for s in states), strict=True))
    done = sum(state.state == "done" for state in states)
    latest = [state.accuracy for state in states if state.accuracy is not None and state.state == "running"]
    return (
        f"{done}/{len(states)} runs, {epochs}/{total} epochs, left: {duration(seconds_left(states, at_once=at_once))}"
        + (f", last accuracy {latest[-1]:.3f}" if latest else "")
    )


def _told(grid: Grid, store: Store, run: RunSpec, outcome: Outcome) -> str:
    if outcome.error is not None:
        return f"failed: {outcome.error or type(outcome.error).__name__}"
    clean = None
    unattacked = [attack for attack in grid.attacks if attack.name == "none" and attack.split == "test"]
    with suppress(DamagedError):
        clean = store.record(run, unattacked[0]) if unattacked else None
    return f"accuracy {clean.accuracy:.3f}" if clean else "done"
