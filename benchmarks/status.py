"""Store -> how far a grid is, and how long the rest will take."""

from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal, get_args

from rich import box
from rich.table import Table

from benchmarks.config import AttackSpec, Grid, RunSpec
from benchmarks.store import DamagedError, Store

State = Literal["done", "running", "failed", "begun", "missing"]
STATES: tuple[State, ...] = get_args(State)


@dataclass(frozen=True)
class RunStatus:
    """How far a run is."""

    run: RunSpec
    state: State
    """"begun": some of it is there, and nobody works on it."""
    epochs: int
    """Epochs done."""
    records: int
    """Evaluations done."""
    accuracy: float | None
    """On the test images without attack, or, in training, on the validation images."""
    error: str
    """The last line of why it failed; empty if it did not."""
    seconds_left: float | None
    """Work left, in seconds of one worker; None while nothing like it has been timed."""


def status(grid: Grid, store: Store) -> list[RunStatus]:
    """How far each run of a grid is, in the grid's order."""
    logs = {run: store.log_entries(run) for run in grid.runs()}
    epoch_seconds = _seconds(logs, "epoch")
    record_seconds = _seconds(logs, "record")
    return [_status(grid, store, run, epoch_seconds(run), record_seconds(run)) for run in grid.runs()]


def seconds_left(states: Sequence[RunStatus], *, at_once: int | None = None) -> float | None:
    """
    Seconds until all runs are done, or None while that cannot be told.

    :param states: Of all the runs.
    :param at_once: Runs done at the same time. Default: as many as are running, at least one.
    """
    unfinished = [state for state in states if state.state != "done"]
    left = [state.seconds_left for state in unfinished]
    if any(seconds is None for seconds in left):
        return None
    workers = at_once or sum(state.state == "running" for state in unfinished) or 1
    return sum(seconds for seconds in left if seconds is not None) / max(1, min(workers, len(unfinished)))


def duration(seconds: float | None) -> str:
    """A length of time to be read: "40 s", "12 min", "3.5 h"; "not known yet" for None."""
    if seconds is None:
        return "not known yet"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def table(grid: Grid, states: Sequence[RunStatus]) -> Table:
    """The states for a terminal."""
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    for name in ("run", "state", "epochs", "records", "accuracy", "left", "error"):
        shown.add_column(name, overflow="fold")
    for state in states:
        shown.add_row(
            str(state.run),
            state.state,
            f"{state.epochs}/{state.run.recipe.epochs}",
            f"{state.records}/{len(grid.attacks)}",
            "" if state.accuracy is None else f"{state.accuracy:.3f}",
            "" if state.state == "done" else duration(state.seconds_left),
            state.error,
        )
    return shown


def _status(
    grid: Grid, store: Store, run: RunSpec, epoch_seconds: float | None, record_seconds: float | None
) -> RunStatus:
    epochs, accuracy, records = 0, None, 0
    with suppress(DamagedError):
        epochs = store.epochs_done(run)
        curve = store.curve(run)
        accuracy = curve[-1]["validation_accuracy"] if curve else None
    for attack in grid.attacks:
        with suppress(DamagedError):
            record = store.record(run, attack)
            records += record is not None
            if record is not None and attack == AttackSpec("none"):
                accuracy = record["correct"] / record["n"]
    error = store.error(run)
    missing_epochs, missing_records = run.recipe.epochs - epochs, len(grid.attacks) - records
    state: State = "missing" if not epochs else "begun"
    if not missing_epochs and not missing_records:
        state = "done"
    elif store.is_locked(run):
        state = "running"
    elif error is not None:
        state = "failed"
    parts = ((missing_epochs, epoch_seconds), (missing_records, record_seconds))
    return RunStatus(
        run,
        state,
        epochs,
        records,
        accuracy,
        error.strip().splitlines()[-1] if error and error.strip() and state == "failed" else "",
        None if any(n and s is None for n, s in parts) else sum(n * s for n, s in parts if s is not None),
    )


def _seconds(logs: dict[RunSpec, list[dict[str, Any]]], event: str) -> Callable[[RunSpec], float | None]:
    """Median seconds of an event: of the run's own, else of runs alike but for their seed, else but for their loss."""
    likenesses: tuple[Callable[[RunSpec], Hashable], ...] = (
        lambda run: run,
        lambda run: (run.dataset, run.recipe, run.loss),
        lambda run: (run.dataset, run.recipe),
    )
    timed: list[dict[Hashable, list[float]]] = [{} for _ in likenesses]
    for run, entries in logs.items():
        seconds = [entry["seconds"] for entry in entries if entry["event"] == event]
        for likeness, groups in zip(likenesses, timed, strict=True):
            groups.setdefault(likeness(run), []).extend(seconds)

    def of(run: RunSpec) -> float | None:
        for likeness, groups in zip(likenesses, timed, strict=True):
            if seconds := groups[likeness(run)]:
                return median(seconds)
        return None

    return of
