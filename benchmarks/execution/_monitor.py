"""Store -> how far a grid is and how long the rest will take, once or on one display while it is in work."""

import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import fmean, median
from types import MappingProxyType
from typing import Any, Literal, get_args

from rich import box
from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from benchmarks.config import AttackSpec, Grid, RunSpec
from benchmarks.execution._jobs import Outcome
from benchmarks.execution._local import OnEnd
from benchmarks.store import DamagedError, Store

# Of the parts of a run: "epoch", or the key of an attack.
Seconds = Mapping[str, float]
Costs = Mapping[RunSpec, Seconds]

State = Literal["done", "running", "failed", "begun", "missing"]
STATES: tuple[State, ...] = get_args(State)


@dataclass(frozen=True)
class RunStatus:
    """How far a run is."""

    run: RunSpec
    state: State = "missing"
    """"begun": some of it is there, and nobody works on it."""
    epochs: int = 0
    """Epochs done."""
    records: int = 0
    """Evaluations done."""
    accuracy: float | None = None
    """On the test images without attack, or, in training, on the validation images."""
    error: str = ""
    """Of an unfinished run: the last line of why it failed, or which file cannot be used; empty if all is well."""
    seconds: Seconds = field(default_factory=dict, compare=False)
    """Mean length of the run's parts of which any was timed; means, for some epochs end with attacks."""
    left: Mapping[str, int] = field(default_factory=dict, compare=False)
    """The parts that are missing, and how many times."""
    seconds_left: float | None = None
    """Work left, in seconds of one worker; None while nothing like it has been timed."""
    untimed: bool = field(default=False, compare=False)
    """Whether the time left is a guess, because some of the parts were timed in no run like this one."""


def status(
    grid: Grid,
    store: Store,
    *,
    before: Sequence[RunStatus] = (),
    costs: Costs = MappingProxyType({}),
) -> list[RunStatus]:
    """
    How far each run of a grid is, in the grid's order. The store is read, and nothing in it changes.

    The time left of a run is that of the epochs and evaluations it lacks: for each part the run's own mean, else that
    of runs that differ in the seed alone, else in seed and loss, else what is expected. Evaluations by an attack that
    was nowhere timed nor expected count as the others, or as nothing, being short beside the training.

    :param grid: Whose runs.
    :param store: Where they are.
    :param before: What an earlier call gave: the runs that were done then are not read again.
    :param costs: What parts of a run are expected to take as long as nothing like them has been timed.
    """
    done = {state.run: state for state in before if state.state == "done"}
    states = [done.get(run) or _look(grid, store, run) for run in grid.runs()]
    timed = _timed(states)
    return [_with_time_left(state, [*timed(state.run), costs.get(state.run, {})]) for state in states]


def seconds_left(states: Sequence[RunStatus], *, at_once: int | None = None) -> float | None:
    """
    Seconds until all runs are done, or None while that cannot be told.

    :param states: Of all the runs.
    :param at_once: Runs done at the same time. Default: as many as are running, at least one.
    """
    unfinished = [state for state in states if state.state != "done"]
    left = [state.seconds_left for state in unfinished if state.seconds_left is not None]
    if len(left) < len(unfinished):
        return None
    workers = at_once or sum(state.state == "running" for state in unfinished) or 1
    # However many workers there are, a run is done by one of them.
    return max(sum(left) / workers, max(left, default=0.0))


def duration(seconds: float | None) -> str:
    """
    A length of time to be read; "unknown" for None.

    >>> duration(40), duration(700), duration(12600), duration(300000)
    ('40 s', '12 min', '3.5 h', '3.5 days')
    """
    if seconds is None:
        return "unknown"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if seconds < 99.5 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 2 * 86400 else f"{seconds / 86400:.1f} days"


def table(grid: Grid, states: Sequence[RunStatus]) -> RenderableType:
    """The states for a terminal of 80 columns or more; what is wrong with a run stands below them."""
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    shown.add_column("run", overflow="fold")
    shown.add_column("state", no_wrap=True)
    for name in ("epochs", "records", "accuracy", "left"):
        shown.add_column(name, justify="right", no_wrap=True)
    for state in states:
        shown.add_row(
            Text(str(state.run)),
            state.state,
            f"{state.epochs}/{state.run.recipe.epochs}",
            f"{state.records}/{len(grid.attacks)}",
            "" if state.accuracy is None else f"{state.accuracy:.3f}",
            "" if state.state == "done" else duration(state.seconds_left),
        )
    return Group(shown, *(Text(f"{state.run}: {state.error}") for state in states if state.error))


def _look(grid: Grid, store: Store, run: RunSpec) -> RunStatus:
    """A run as it is on disk, without the time left."""
    left = {"epoch": run.recipe.epochs, **{attack.key(): 1 for attack in grid.attacks}}
    if not store.folder(run).exists():  # which spares a look for every file of a large grid's runs
        return RunStatus(run, left=left)
    curve: list[dict[str, Any]] = []
    with suppress(DamagedError):
        curve = store.curve(run)
    left["epoch"] -= len(curve)
    accuracy = curve[-1]["validation_accuracy"] if curve else None
    for attack in grid.attacks:
        with suppress(DamagedError):
            left[attack.key()] -= store.has_record(run, attack)
            if attack == AttackSpec("none") and (record := store.record(run, attack)) is not None:
                accuracy = record.accuracy
    left = {part: times for part, times in left.items() if times}
    records = len(grid.attacks) - len(left.keys() - {"epoch"})
    state, error = _state(grid, store, run, begun=bool(curve or records), whole=not left)
    return RunStatus(run, state, len(curve), records, accuracy, error, _seconds(store, run), left)


def _state(grid: Grid, store: Store, run: RunSpec, *, begun: bool, whole: bool) -> tuple[State, str]:
    """Its state, and what is wrong with it; whole, if every epoch and record was just found to be there."""
    if whole and store.is_done(run, ()):
        return "done", ""
    if store.is_locked(run):
        return "running", ""
    failure = store.error(run)
    if failure is not None:
        return "failed", (failure.strip().splitlines() or ["for an unknown reason"])[-1]
    damaged = "; ".join(str(error) for error in store.damaged(run, grid.attacks))
    return "begun" if begun or damaged else "missing", damaged


def _seconds(store: Store, run: RunSpec) -> Seconds:
    timed: dict[str, list[float]] = {}
    for entry in store.log_entries(run):
        part = {"epoch": "epoch", "record": entry.get("attack")}.get(entry["event"])
        if isinstance(part, str):
            timed.setdefault(part, []).append(entry["seconds"])
    return {part: fmean(seconds) for part, seconds in timed.items()}


_LIKENESSES: tuple[Callable[[RunSpec], Hashable], ...] = (
    lambda run: run,
    lambda run: (run.dataset, run.recipe, run.loss),
    lambda run: (run.dataset, run.recipe),
)


def _timed(states: Sequence[RunStatus]) -> Callable[[RunSpec], Iterator[Seconds]]:
    """For a run the seconds of its parts: its own, the medians of runs that are most alike, and so on."""
    groups: dict[Hashable, dict[str, list[float]]] = {}
    for state in states:
        if state.seconds:
            for likeness in _LIKENESSES:
                parts = groups.setdefault(likeness(state.run), {})
                for part, seconds in state.seconds.items():
                    parts.setdefault(part, []).append(seconds)
    medians = {group: {part: median(all_of) for part, all_of in parts.items()} for group, parts in groups.items()}
    return lambda run: (medians[group] for likeness in _LIKENESSES if (group := likeness(run)) in medians)


def _with_time_left(state: RunStatus, sources: Sequence[Seconds]) -> RunStatus:
    """The state with its time left, each part at what the first source that has it says."""
    if state.state == "done":
        return replace(state, seconds_left=0.0)
    known = {part: seconds for source in reversed(sources) for part, seconds in source.items()}
    untimed = [part for part in state.left if part not in known]
    records = [seconds for part, seconds in known.items() if part != "epoch"]
    if "epoch" in untimed or (untimed and not records and "epoch" not in state.left):
        return replace(state, untimed=True)
    total = sum(times * known[part] for part, times in state.left.items() if part in known)
    total += len(untimed) * fmean(records or [0.0])
    return replace(state, seconds_left=total, untimed=bool(untimed))


# Seconds between two looks at the store, and between two plain lines where there is no terminal.
LIVE, PLAIN = 1.0, 60.0
# Times the seconds that a look took, in which there is no other.
REST = 20.0


@contextmanager
def following(
    grid: Grid, store: Store, console: Console, *, at_once: int | None, costs: Costs = MappingProxyType({})
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

    def __init__(self, grid: Grid, store: Store, costs: Costs) -> None:
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
