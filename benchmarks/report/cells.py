"""
Records -> cells: what the store holds of a grid, read once, and its entries aggregated over seeds.

Every table and figure is a function of :class:`Results`; nothing is trained or attacked for it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from benchmarks.config import AttackSpec, Grid, LossSpec, RunSpec
from benchmarks.report.statistics import Interval, mean_interval
from benchmarks.store import DamagedError, Store


@dataclass(frozen=True)
class Cell:
    """A table entry: the evaluations of one training loss under one attack, over the seeds."""

    accuracy: Interval | None
    """None where no seed has been evaluated yet."""
    zero_gradient: float
    """Share of the images, over all seeds, whose input gradient is exactly 0; NaN without attack or record."""
    images: int
    """Images per seed."""


@dataclass(frozen=True)
class Results:
    """What there is of a grid."""

    grid: Grid
    records: Mapping[tuple[RunSpec, AttackSpec], Mapping[str, Any]]
    """As benchmarks/evaluation.py writes them; those not yet made are not there."""
    curves: Mapping[RunSpec, list[dict[str, Any]]]
    """As benchmarks/training.py writes them; empty for a run that was not begun."""
    epoch_seconds: Mapping[RunSpec, float]
    """Median seconds of training per epoch, without evaluations; for runs with at least one epoch in their log."""
    problems: tuple[str, ...] = ()
    """Files that could not be used, and why."""

    @property
    def datasets(self) -> tuple[str, ...]:
        """The grid's data sets."""
        return tuple(dataset for dataset, _ in self.grid.recipes)

    def runs(self, dataset: str, loss: LossSpec) -> list[RunSpec]:
        """The runs of a training loss on a data set, one per seed, in the order of seeds."""
        return [run for run in self.grid.runs() if run.dataset == dataset and run.loss == loss]

    def accuracies(self, dataset: str, loss: LossSpec, attack: AttackSpec) -> dict[int, float]:
        """Accuracy by seed, for the seeds that have been evaluated."""
        found = {run.seed: self.records.get((run, attack)) for run in self.runs(dataset, loss)}
        return {seed: record["correct"] / record["n"] for seed, record in found.items() if record is not None}

    def cell(self, dataset: str, loss: LossSpec, attack: AttackSpec) -> Cell:
        """One entry, from the records that are there."""
        records = [self.records[run, attack] for run in self.runs(dataset, loss) if (run, attack) in self.records]
        # A report on masked gradients is along a loss, but counts no gradients.
        counted = [record for record in records if "zero_gradient" in record] if attack.loss else []
        images = sum(record["n"] for record in counted)
        return Cell(
            mean_interval([record["correct"] / record["n"] for record in records]) if records else None,
            sum(record["zero_gradient"] for record in counted) / images if counted else float("nan"),
            records[0]["n"] if records else 0,
        )

    def confusions(self, dataset: str, loss: LossSpec, attack: AttackSpec) -> dict[int, npt.NDArray[np.float64]]:
        """The semi-empirical confusion matrix by seed: entry [i, j] is the mean probability of class i at class j."""
        found = {run.seed: self.records.get((run, attack)) for run in self.runs(dataset, loss)}
        return {seed: np.array(r["confusion"], dtype=float) for seed, r in found.items() if r and "confusion" in r}

    def record_frame(self) -> pd.DataFrame:
        """One row per evaluation that is there: how many of n images are classified right."""
        rows = [
            (run.dataset, str(run.loss), run.seed, *_columns(attack).values(), *map(record.get, _COUNTS))
            for (run, attack), record in self.records.items()
        ]
        columns = ["dataset", "trained", "seed", *_columns(AttackSpec("none")), *_COUNTS]
        return pd.DataFrame(rows, columns=columns).astype({"zero_gradient": "Int64"})

    def cell_frame(self) -> pd.DataFrame:
        """One row per entry, over the seeds; reports on masked gradients are no entries."""
        rows = []
        for dataset in self.datasets:
            for loss in self.grid.losses:
                for attack in (attack for attack in self.grid.attacks if attack.name != "diagnostics"):
                    cell = self.cell(dataset, loss, attack)
                    rows.append(
                        {
                            "dataset": dataset,
                            "trained": str(loss),
                            **_columns(attack),
                            "accuracy": cell.accuracy.mean if cell.accuracy else float("nan"),
                            "half_width_95": cell.accuracy.half_width if cell.accuracy else float("nan"),
                            "seeds": cell.accuracy.n if cell.accuracy else 0,
                            "n": cell.images,
                            "zero_gradient": cell.zero_gradient,
                        }
                    )
        return pd.DataFrame(rows)


_COUNTS = ("n", "correct", "zero_gradient")


def _columns(attack: AttackSpec) -> dict[str, object]:
    return {
        "attack": attack.name,
        "attack_loss": attack.loss,
        "eps": attack.eps,
        "units": attack.units,
        "split": attack.split,
        "steps": attack.steps,
        "images": attack.images,
    }


def load(grid: Grid, store: Store) -> Results:
    """Read all that a store holds of a grid; files that cannot be used are named and counted as missing."""
    records: dict[tuple[RunSpec, AttackSpec], dict[str, Any]] = {}
    curves: dict[RunSpec, list[dict[str, Any]]] = {}
    seconds: dict[RunSpec, float] = {}
    problems: list[str] = []
    for run in grid.runs():
        curves[run] = []
        try:
            curves[run] = store.curve(run)
        except DamagedError as error:
            problems.append(str(error))
        # Of runs that were trained at once, nobody knows which took how long.
        alone = (e for e in store.log_entries(run) if e["event"] == "epoch" and "together" not in e)
        epochs = {e["epoch"]: e["training"] for e in alone}
        if epochs:
            seconds[run] = median(epochs.values())
        for attack in grid.attacks:
            try:
                record = store.record(run, attack)
            except DamagedError as error:
                problems.append(str(error))
            else:
                if record is not None:
                    records[run, attack] = record
    return Results(grid, records, curves, seconds, tuple(problems))
