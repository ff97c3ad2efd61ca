"""One display of a grid in work: a live line in a terminal, plain lines elsewhere."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from benchmarks.config import Grid, RunSpec
from benchmarks.runner import OnEnd, Outcome
from benchmarks.status import RunStatus, duration, seconds_left, status
from benchmarks.store import DamagedError, Store

# Seconds between two looks at the store, and between two plain lines where there is no terminal.
LIVE, PLAIN = 1.0, 60.0


@contextmanager
def following(grid: Grid, store: Store, console: Console, *, at_once: int | None) -> Iterator[OnEnd]:
    """
    Show how far a grid is, whoever works on it, and a line for each run that ends.

    :param grid: What is in work.
    :param store: Where it goes; it is read, and nothing else.
    :param console: Where to show it.
    :param at_once: Runs done at the same time, for the time left; None for as many as are seen to run.
    """
    stop = threading.Event()
    columns = (BarColumn(bar_width=20), TextColumn("{task.description}"))
    with Progress(*columns, console=console, disable=not console.is_terminal) as live:
        task = live.add_task("", total=sum(run.recipe.epochs + len(grid.attacks) for run in grid.runs()))

        def follow() -> None:
            states: list[RunStatus] = []
            pause = 0.0
            while not stop.wait(pause):
                pause = LIVE if console.is_terminal else PLAIN
                states = status(grid, store, before=states)
                line = _line(states, at_once)
                live.update(task, completed=sum(state.epochs + state.records for state in states), description=line)
                if not console.is_terminal:
                    console.print(line, soft_wrap=True)

        def ended(run: RunSpec, outcome: Outcome) -> None:
            for message in outcome.messages:
                console.print(f"{run}: {message}", soft_wrap=True)
            console.print(f"{run}: {_told(grid, store, run, outcome)}", soft_wrap=True)

        follower = threading.Thread(target=follow, daemon=True)
        follower.start()
        try:
            yield ended
        finally:
            stop.set()
            follower.join()


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
    return f"accuracy {clean['correct'] / clean['n']:.3f}" if clean else "done"
