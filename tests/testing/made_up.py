"""Results that were never measured, for tables and figures to be held against."""

from collections.abc import Callable
from typing import Any

from benchmarks.config import AttackSpec, Grid, RunSpec
from benchmarks.report.cells import Results

N = 100_000


def distinct(grid: Grid, run: RunSpec, attack: AttackSpec) -> int:
    """Of N images: a number that no other entry has, nor another seed of this one, nor their means to 3 digits."""
    datasets = [dataset for dataset, _ in grid.recipes]
    row = datasets.index(run.dataset) * len(grid.losses) + grid.losses.index(run.loss)
    entry = row * len(grid.attacks) + grid.attacks.index(attack)
    return 20_000 + 400 * entry + (30 + 3 * entry) * run.seed


def results(
    grid: Grid,
    correct: Callable[[RunSpec, AttackSpec], int] | None = None,
    *,
    zero: Callable[[RunSpec, AttackSpec], int] = lambda run, attack: 0,
    uncertainty: Callable[[RunSpec, AttackSpec], float] = lambda run, attack: 0.1,
    validation: Callable[[RunSpec], list[float]] = lambda run: [],
    seconds: Callable[[RunSpec], float] = lambda run: 1.0,
    flags: Callable[[RunSpec, AttackSpec], dict[str, str]] = lambda run, attack: {},
    made: Callable[[RunSpec, AttackSpec], bool] = lambda run, attack: True,
) -> Results:
    """
    Results of a grid, from what its records and curves are to hold.

    The confusion matrix has two classes, each of which is taken for the other with the probability `uncertainty`: the
    four entries of I - C are that large, and its norm is twice that.
    """

    def record(run: RunSpec, attack: AttackSpec) -> dict[str, Any]:
        wrong = uncertainty(run, attack)
        hits = distinct(grid, run, attack) if correct is None else correct(run, attack)
        if attack.name == "diagnostics":
            return {"n": N, "correct": hits, "flags": flags(run, attack)}
        values = {"n": N, "correct": hits, "confusion": [[1 - wrong, wrong], [wrong, 1 - wrong]]}
        return values if attack.loss is None else values | {"zero_gradient": zero(run, attack)}

    runs = grid.runs()
    return Results(
        grid,
        {(run, attack): record(run, attack) for run in runs for attack in grid.attacks if made(run, attack)},
        {run: [{"validation_accuracy": accuracy} for accuracy in validation(run)] for run in runs},
        {run: seconds(run) for run in runs if seconds(run)},
    )


def record(n: int, correct: int, **more: int) -> dict[str, Any]:
    """A record of so many images that says no more than it must."""
    empty: dict[str, Any] = {"confusion": [], "margins": [], "margin_percentiles": [], "bounds": {}, "samples": []}
    return {"n": n, "correct": correct, **empty, **more}
