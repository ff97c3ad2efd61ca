"""Progress of a grid and the time left, read from the store: as a table, or as a display while runs are executed."""

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

# Seconds by part of a run: "epoch", or the key of an attack.
Seconds = Mapping[str, float]
Costs = Mapping[RunSpec, Seconds]

State = Literal["done", "running", "failed", "started", "missing"]
STATES: tuple[State, ...] = get_args(State)


@dataclass(frozen=True)
class RunStatus:
    """Progress of a run."""

    run: RunSpec
    state: State = "missing"
    """State of the run; a run is "started" if it has some results and no process is executing it."""
    epochs: int = 0
    """Number of finished epochs."""
    records: int = 0
    """Number of finished evaluations."""
    accuracy: float | None = None
    """Clean accuracy on the test images, or, during training, on the validation images."""
    error: str = ""
    """For an unfinished run: the last line of its error, or the damaged file; empty if there is none."""
    seconds: Seconds = field(default_factory=dict, compare=False)
    """Mean seconds of the run's timed parts; a mean, because some epochs include attacks."""
    left: Mapping[str, int] = field(default_factory=dict, compare=False)
    """Number of missing epochs and evaluations, by part."""
    seconds_left: float | None = None
    """Remaining time in seconds of one worker; None if no similar run has been timed."""
    untimed: bool = field(default=False, compare=False)
    """Whether the remaining time is uncertain, because some parts have not been timed in a similar run."""


def status(
    grid: Grid,
    store: Store,
    *,
    before: Sequence[RunStatus] = (),
    costs: Costs = MappingProxyType({}),
) -> list[RunStatus]:
    """
    Return the progress of each run of a grid, in the grid's order, without changing the store.

    The time left is the time of the missing epochs and evaluations. The time of a part is the run's mean; else the
    median over runs that differ in the seed only; else over runs that differ in seed and loss; else the estimate in
    `costs`. An attack without timing and estimate counts as the mean of the other attacks, or as 0 if there is none,
    because evaluations are short compared with training.

    :param grid: The grid.
    :param store: The store.
    :param before: The result of an earlier call; runs that were done are not read again.
    :param costs: Estimates for parts that have not been timed in a similar run.
    """
    done = {state.run: state for state in before if state.state == "done"}
    states = [done.get(run) or _read(grid, store, run) for run in grid.runs()]
    timed = _timed(states)
    return [_with_time_left(state, [*timed(state.run), costs.get(state.run, {})]) for state in states]


def seconds_left(states: Sequence[RunStatus], *, at_once: int | None = None) -> float | None:
    """
    Return the seconds until all runs are done, or None if a run has no estimate.

    :param states: The states of all runs.
    :param at_once: The number of simultaneous runs. Default: the number of running runs, at least one.
    """
    unfinished = [state for state in states if state.state != "done"]
    left = [state.seconds_left for state in unfinished if state.seconds_left is not None]
    if len(left) < len(unfinished):
        return None
    workers = at_once or sum(state.state == "running" for state in unfinished) or 1
    # A run is executed by one worker, so the time is at least that of the longest run.
    return max(sum(left) / workers, max(left, default=0.0))


def duration(seconds: float | None) -> str:
    """
    Return a duration as text; "unknown" for None.

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
    """Return a table of the states for a terminal of at least 80 columns, with the errors of runs below it."""
    rows = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    rows.add_column("run", overflow="fold")
    rows.add_column("state", no_wrap=True)
    for name in ("epochs", "records", "accuracy", "time left"):
        rows.add_column(name, justify="right", no_wrap=True)
    for state in states:
        rows.add_row(
            Text(str(state.run)),
            state.state,
            f"{state.epochs}/{state.run.recipe.epochs}",
            f"{state.records}/{len(grid.attacks)}",
            "" if state.accuracy is None else f"{state.accuracy:.3f}",
            "" if state.state == "done" else duration(state.seconds_left),
        )
    return Group(rows, *(Text(f"{state.run}: {state.error}") for state in states if state.error))


def _read(grid: Grid, store: Store, run: RunSpec) -> RunStatus:
    """Return the progress of a run from its files, without the time left."""
    left = {"epoch": run.recipe.epochs, **{attack.key(): 1 for attack in grid.attacks}}
    if not store.folder(run).exists():  # fast path: a large grid has many runs that have not been started
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
    state, error = _state(grid, store, run, started=bool(curve or records), complete=not left)
    return RunStatus(run, state, len(curve), records, accuracy, error, _seconds(store, run), left)


def _state(grid: Grid, store: Store, run: RunSpec, *, started: bool, complete: bool) -> tuple[State, str]:
    """Return a run's state and its error; `started` if it has an epoch or a record, `complete` if it has all."""
    if complete and store.is_done(run, ()):
        return "done", ""
    if store.is_locked(run):
        return "running", ""
    failure = store.error(run)
    if failure is not None:
        return "failed", (failure.strip().splitlines() or ["unknown error"])[-1]
    damaged = "; ".join(str(error) for error in store.damaged(run, grid.attacks))
    return "started" if started or damaged else "missing", damaged


def _seconds(store: Store, run: RunSpec) -> Seconds:
    timed: dict[str, list[float]] = {}
    for entry in store.log_entries(run):
        part = {"epoch": "epoch", "record": entry.get("attack")}.get(entry["event"])
        if isinstance(part, str):
            timed.setdefault(part, []).append(entry["seconds"])
    return {part: fmean(seconds) for part, seconds in timed.items()}


# Groups of similar runs, from the most to the least similar: the run itself, other seeds, other seeds and losses.
_GROUPINGS: tuple[Callable[[RunSpec], Hashable], ...] = (
    lambda run: run,
    lambda run: (run.dataset, run.recipe, run.loss),
    lambda run: (run.dataset, run.recipe),
)


def _timed(states: Sequence[RunStatus]) -> Callable[[RunSpec], Iterator[Seconds]]:
    """Return a function that yields, for a run, the median seconds of its parts in each group of similar runs."""
    groups: dict[Hashable, dict[str, list[float]]] = {}
    for state in states:
        if state.seconds:
            for grouping in _GROUPINGS:
                timings = groups.setdefault(grouping(state.run), {})
                for part, seconds in state.seconds.items():
                    timings.setdefault(part, []).append(seconds)
    medians = {group: {part: median(values) for part, values in timings.items()} for group, timings in groups.items()}
    return lambda run: (medians[group] for grouping in _GROUPINGS if (group := grouping(run)) in medians)


def _with_time_left(state: RunStatus, sources: Sequence[Seconds]) -> RunStatus:
    """Return the state with its time left; the seconds of a part are those of the first source that has the part."""
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


# Interval of updates in seconds: on a terminal, and without a terminal, where each update is a new line.
TERMINAL_INTERVAL, PLAIN_INTERVAL = 1.0, 60.0
# Pause after a query of the store, as a multiple of the query's duration: queries take at most a twentieth of the time.
PAUSE_FACTOR = 20.0


@contextmanager
def following(
    grid: Grid, store: Store, console: Console, *, at_once: int | None, costs: Costs = MappingProxyType({})
) -> Iterator[OnEnd]:
    """
    Show the progress of a grid, including runs of other processes, and a line with the time left for each ended run.

    :param grid: The grid.
    :param store: The store, which is only read.
    :param console: The console.
    :param at_once: The number of simultaneous runs, for the time left; None for the number of running runs.
    :param costs: Estimates for parts that have not been timed in a similar run.
    """
    stop = threading.Event()
    cache = _CachedStatus(grid, store, costs)
    columns = (BarColumn(bar_width=20), TextColumn("{task.description}"))
    with Progress(*columns, console=console, disable=not console.is_terminal) as live:
        task = live.add_task("", total=sum(run.recipe.epochs + len(grid.attacks) for run in grid.runs()))

        def follow() -> None:
            pause = 0.0
            while not stop.wait(pause):
                pause = TERMINAL_INTERVAL if console.is_terminal else PLAIN_INTERVAL
                states = cache.latest()
                line = _line(states, at_once)
                live.update(task, completed=sum(state.epochs + state.records for state in states), description=line)
                if not console.is_terminal:
                    console.print(line, soft_wrap=True)

        def on_end(run: RunSpec, outcome: Outcome) -> None:
            for message in outcome.messages:
                console.print(f"{run}: {message}", soft_wrap=True)
            left = duration(seconds_left(cache.latest(), at_once=at_once))
            console.print(f"{run}: {_result(grid, store, run, outcome)}; time left: {left}", soft_wrap=True)

        follower = threading.Thread(target=follow, daemon=True)
        follower.start()
        try:
            yield on_end
        finally:
            stop.set()
            follower.join()


class _CachedStatus:
    """Cache of a grid's status: a query takes long for a large grid, so it is not repeated on every call."""

    def __init__(self, grid: Grid, store: Store, costs: Costs) -> None:
        self._query = partial(status, grid, store, costs=costs)
        self._states: list[RunStatus] = []
        self._next = 0.0
        self._lock = threading.Lock()

    def latest(self) -> list[RunStatus]:
        """Return the states of all runs; they are queried again after a pause (see PAUSE_FACTOR)."""
        with self._lock:
            start = time.monotonic()
            if start >= self._next:
                self._states = self._query(before=self._states)
                end = time.monotonic()
                self._next = end + PAUSE_FACTOR * (end - start)
            return self._states


def _line(states: Sequence[RunStatus], at_once: int | None) -> str:
    epochs, total = (sum(n) for n in zip(*((s.epochs, s.run.recipe.epochs) for s in states), strict=True))
    done = sum(state.state == "done" for state in states)
    latest = [state.accuracy for state in states if state.accuracy is not None and state.state == "running"]
    left = duration(seconds_left(states, at_once=at_once))
    accuracy = f", latest accuracy {latest[-1]:.3f}" if latest else ""
    return f"{done}/{len(states)} runs, {epochs}/{total} epochs, time left: {left}{accuracy}"


def _result(grid: Grid, store: Store, run: RunSpec, outcome: Outcome) -> str:
    if outcome.error is not None:
        return f"failed: {outcome.error or type(outcome.error).__name__}"
    record = None
    clean = [attack for attack in grid.attacks if attack.name == "none" and attack.split == "test"]
    with suppress(DamagedError):
        record = store.record(run, clean[0]) if clean else None
    return f"accuracy {record.accuracy:.3f}" if record else "done"
