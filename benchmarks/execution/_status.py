"""Store -> how far a grid is, and how long the rest will take."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from statistics import fmean, median
from types import MappingProxyType
from typing import Any, Literal, get_args

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from benchmarks.config import AttackSpec, Grid, RunSpec
from benchmarks.store import DamagedError, Store

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
    epoch_seconds: float | None = None
    """Mean length of the run's epochs; None if none was timed."""
    record_seconds: float | None = None
    """Mean length of the run's evaluations; None if none was timed."""
    seconds_left: float | None = None
    """Work left, in seconds of one worker; None while nothing like it has been timed."""


@dataclass(frozen=True)
class Cost:
    """What a run is expected to take, in seconds of one worker: see benchmarks/estimate.py."""

    epoch: float
    """One epoch, and its share of the curve's attacks."""
    record: float
    """One evaluation, on the average."""


def status(
    grid: Grid,
    store: Store,
    *,
    before: Sequence[RunStatus] = (),
    costs: Mapping[RunSpec, Cost] = MappingProxyType({}),
) -> list[RunStatus]:
    """
    How far each run of a grid is, in the grid's order. The store is read, and nothing in it changes.

    The time left of a run is the epochs and evaluations it lacks at their mean length: its own, else that of runs
    that differ in the seed alone, else in seed and loss, else what it is expected to be. As long as no evaluation of
    the kind has been timed or expected, they count as nothing, being short beside the training.

    :param grid: Whose runs.
    :param store: Where they are.
    :param before: What an earlier call gave: the runs that were done then are not read again.
    :param costs: What runs are expected to take as long as nothing like them has been timed.
    """
    done = {state.run: state for state in before if state.state == "done"}
    states = [done.get(run) or _look(grid, store, run) for run in grid.runs()]
    epoch_seconds = _seconds_of_alike({state.run: state.epoch_seconds for state in states})
    record_seconds = _seconds_of_alike({state.run: state.record_seconds for state in states})

    def left(state: RunStatus) -> float | None:
        epoch, record, cost = epoch_seconds(state.run), record_seconds(state.run), costs.get(state.run)
        if cost is not None:
            epoch, record = cost.epoch if epoch is None else epoch, cost.record if record is None else record
        return _left(grid, state, epoch, record)

    return [replace(state, seconds_left=left(state)) for state in states]


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
    if not store.folder(run).exists():  # which spares a look for every file of a large grid's runs
        return RunStatus(run)
    curve: list[dict[str, Any]] = []
    with suppress(DamagedError):
        curve = store.curve(run)
    accuracy = curve[-1]["validation_accuracy"] if curve else None
    records = 0
    for attack in grid.attacks:
        with suppress(DamagedError):
            record = store.record(run, attack)
            records += record is not None
            if record is not None and attack == AttackSpec("none"):
                accuracy = record.accuracy
    state, error = _state(grid, store, run, begun=bool(curve or records))
    epoch_seconds, record_seconds = _mean_seconds(store, run)
    return RunStatus(run, state, len(curve), records, accuracy, error, epoch_seconds, record_seconds)


def _state(grid: Grid, store: Store, run: RunSpec, *, begun: bool) -> tuple[State, str]:
    """Its state, and what is wrong with it."""
    if store.is_done(run, grid.attacks):
        return "done", ""
    if store.is_locked(run):
        return "running", ""
    failure = store.error(run)
    if failure is not None:
        return "failed", (failure.strip().splitlines() or ["for an unknown reason"])[-1]
    damaged = "; ".join(str(error) for error in store.damaged(run, grid.attacks))
    return "begun" if begun or damaged else "missing", damaged


def _mean_seconds(store: Store, run: RunSpec) -> tuple[float | None, float | None]:
    """Of an epoch and of an evaluation of the run: means, for some epochs end with attacks, and attacks differ."""
    timed: dict[str, list[float]] = {"epoch": [], "record": []}
    for entry in store.log_entries(run):
        if entry["event"] in timed:
            timed[entry["event"]].append(entry["seconds"])
    epoch, record = (fmean(seconds) if seconds else None for seconds in timed.values())
    return epoch, record


def _seconds_of_alike(own: dict[RunSpec, float | None]) -> Callable[[RunSpec], float | None]:
    """Own seconds of a run, else the median of runs alike but for their seed, else but for seed and loss."""
    likenesses: tuple[Callable[[RunSpec], Hashable], ...] = (
        lambda run: run,
        lambda run: (run.dataset, run.recipe, run.loss),
        lambda run: (run.dataset, run.recipe),
    )
    groups: dict[Hashable, list[float]] = {}
    for run, seconds in own.items():
        if seconds is not None:
            for likeness in likenesses:
                groups.setdefault(likeness(run), []).append(seconds)
    medians = {group: median(seconds) for group, seconds in groups.items()}

    def of(run: RunSpec) -> float | None:
        return next((medians[group] for likeness in likenesses if (group := likeness(run)) in medians), None)

    return of


def _left(grid: Grid, state: RunStatus, epoch_seconds: float | None, record_seconds: float | None) -> float | None:
    if state.state == "done":
        return 0.0
    epochs, records = state.run.recipe.epochs - state.epochs, len(grid.attacks) - state.records
    if (epochs and epoch_seconds is None) or (not epochs and records and record_seconds is None):
        return None
    return epochs * (epoch_seconds or 0.0) + records * (record_seconds or 0.0)
