"""Synthetic results with known values, to test tables and figures."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch

from benchmarks.config import AttackSpec, Grid, RunSpec
from benchmarks.protocols import BOUNDED, protocol
from benchmarks.record import CONFIDENCE_BINS, Record, Reliability
from benchmarks.report.export import TABLES
from benchmarks.report.markup import Table
from benchmarks.report.results import Results
from benchmarks.report.selection import Selection
from benchmarks.store._schema import NO_CHECKSUM, tensors_bytes

N = 100_000


def distinct(grid: Grid, run: RunSpec, attack: AttackSpec) -> int:
    """Return a number of N images that is unique among entries and seeds, also after averaging and rounding."""
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
    Return results of a grid from the values of its records and curves.

    The confusion matrix has two classes, which are confused with the probability `uncertainty`: the
    four entries of I - C have this absolute value, and its norm is twice as large.
    """

    def record(run: RunSpec, attack: AttackSpec) -> Made:
        wrong = uncertainty(run, attack)
        hits = distinct(grid, run, attack) if correct is None else correct(run, attack)
        if attack.name == "diagnostics":
            return made_record(N, hits, flags=flags(run, attack))
        zeros = None if attack.loss is None else zero(run, attack)
        return made_record(N, hits, zeros, confusion=np.array([[1 - wrong, wrong], [wrong, 1 - wrong]]))

    runs = grid.runs()
    return Results(
        grid,
        {(run, attack): record(run, attack) for run in runs for attack in grid.attacks if made(run, attack)},
        {run: [{"epoch": e, "validation_accuracy": a} for e, a in enumerate(validation(run), 1)] for run in runs},
        {run: seconds(run) for run in runs if seconds(run)},
    )


def tables(results: Results, name: str) -> list[Table]:
    """Return the tables with a name, one for each data set."""
    selections = [Selection(results, dataset) for dataset in results.datasets]
    return [table for of in selections for maker in TABLES[name] if (table := maker(of))]


def measured(grid: Grid) -> Results:
    """Return results of real records with random logits, with curves, so that all figures of the grid can be drawn."""
    n = 360

    def drawn(run: RunSpec, attack: AttackSpec, *more: int) -> Record:
        place = [grid.losses.index(run.loss), *attack.key().encode()]
        draw = np.random.default_rng([run.seed, *more, *place])
        labels, logits = np.arange(n) % 10, draw.normal(size=(n, 10)).astype(np.float32)
        logits[np.arange(n), labels] += 5 - 20 * attack.eps + (run.loss.name == "hr")
        samples = draw.integers(0, 256, size=(4, 1, 8, 8), dtype=np.uint8)
        zeros = None if attack.loss is None else draw.random(n) < 0.01
        return Record(labels, logits, zero_gradient=zeros, samples=samples, sampled=np.arange(4))

    def row(run: RunSpec, epoch: int) -> dict[str, Any]:
        records = {attack: drawn(run, attack, epoch) for attack in run.recipe.curve_attacks}
        errors = {a.key(): 1 - record.accuracy for a, record in records.items() if protocol(a) in BOUNDED}
        factors = {"log_tightest_upper_bound": 2, "log_markov_bound": 3, "log_upper_bound": 4}
        bounds = {
            key: {"error": error} | {name: math.log(factor * (error + 0.01)) for name, factor in factors.items()}
            for key, error in errors.items()
        }
        values = {"train_loss": 1 / (1 + epoch + run.seed), "validation_accuracy": 1 - 1 / (2 + epoch + run.seed)}
        accuracies = {attack.key(): record.accuracy for attack, record in records.items()}
        return {"epoch": epoch, **values, "attacks": accuracies, "bounds": bounds}

    runs = grid.runs()
    records = {(run, attack): drawn(run, attack) for run in runs for attack in grid.attacks}
    curves = {run: [row(run, epoch) for epoch in range(1, run.recipe.epochs + 1)] for run in runs}
    return Results(grid, records, curves, {run: 1.0 + run.seed for run in runs})


@dataclass(frozen=True, eq=False)
class Made(Record):
    """A record with prescribed metrics instead of logits."""

    right: Any = None
    confusion: Any = None
    values: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """The bounds by kind of labels, the calibration, and the calibration with "scaled" logits."""
    temperature: Any = math.nan
    counts: Mapping[str, int] = field(default_factory=dict)
    """For each attack of an ensemble, the number of images for which it was the first to succeed."""
    histogram = np.eye(80, dtype=int)[40]
    margins = np.zeros(1)

    @property
    def found(self) -> dict[str, int]:
        return dict(self.counts)

    def bounds(self, labels: str = "labels") -> dict[str, float]:
        return dict(self.values.get(labels, {}))

    def calibration(self, temperature: float = 1.0) -> dict[str, float]:
        return dict(self.values.get("calibration" if temperature == 1 else "scaled", {}))

    def reliability(self, temperature: float = 1.0) -> Reliability:
        """Return a diagram with all images in the last bin, with confidence 1."""
        last = np.arange(CONFIDENCE_BINS) == CONFIDENCE_BINS - 1
        return Reliability(last * self.n, last * self.right.sum(), last * self.n)


@lru_cache
def _places(n: int) -> np.ndarray:
    return np.arange(n)


def made_record(n: int, correct: int, zero: int | None = None, **more: Any) -> Made:
    """Return a record of n images with numbers of correct images and of zero gradients."""
    images = _places(n)
    zeros = None if zero is None else images < zero
    return Made(images, right=images < correct, zero_gradient=zeros, **({"confusion": np.eye(2)} | more))


def record(n: int, correct: int, zero: int | None = None) -> Record:
    """Return a small real record of two classes and n images with numbers of correct images and of zero gradients."""
    labels = np.arange(n) % 2
    right = np.arange(n) < correct
    logits = np.where(right[:, None] == (labels[:, None] == np.arange(2)), 1.0, -1.0).astype(np.float32)
    sampled = np.arange(min(n, 2))
    zeros = None if zero is None else np.arange(n) < zero
    samples = np.zeros((len(sampled), 1, 2, 2), np.uint8)
    return Record(labels, logits, zero_gradient=zeros, samples=samples, sampled=sampled)


def rewrite(path: Path, header: Mapping[str, object], drop: str = "", **arrays: np.ndarray) -> None:
    """Rewrite the file of a record with another header, without an array, or with other arrays."""
    kept = {name: array for name, array in safetensors.numpy.load_file(path).items() if name != drop}
    tensors = {name: torch.from_numpy(array) for name, array in (kept | arrays).items()}
    path.write_bytes(tensors_bytes(tensors, "record", json.dumps({"sha256": NO_CHECKSUM} | header)))


def same(one: Record | None, other: Record | None) -> bool:
    """Return True if two records are equal bit for bit."""
    if one is None or other is None:
        return one is other
    ours, theirs = one.arrays(), other.arrays()
    return (
        ours.keys() == theirs.keys()
        and all(np.array_equal(ours[name], theirs[name]) for name in ours)
        and (one.names, one.flags) == (other.names, other.flags)
    )
