"""Results of a grid, read once from a store: one tidy frame, from which every table, claim and figure is computed."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from statistics import median
from typing import Any

import pandas as pd

from benchmarks.config import AttackSpec, Grid, LossSpec, RunSpec
from benchmarks.protocols import BOUNDED, protocol
from benchmarks.record import Record
from benchmarks.report.statistics import distance_to_identity
from benchmarks.store import DamagedError, Store

# The columns that describe an attack. The column epoch is empty if the attacked network is the fully trained one.
ATTACK = ["key", "attack", "attack_loss", "protocol", "attacker", "eps", "units", "split", "steps", "images", "source"]
COLUMNS = ["dataset", "model", "trained", "seed", "epoch", *ATTACK, "metric", "value"]


@dataclass(frozen=True)
class Results:
    """Records and learning curves of a grid, as far as they exist."""

    grid: Grid
    records: Mapping[tuple[RunSpec, AttackSpec], Record]
    """Finished evaluations; missing ones have no entry."""
    curves: Mapping[RunSpec, list[dict[str, Any]]]
    """The rows of each run's learning curve; empty for a run that has not started."""
    epoch_seconds: Mapping[RunSpec, float]
    """Median seconds of training per epoch, without evaluations; for runs with at least one epoch in their log."""
    problems: tuple[str, ...] = ()
    """Messages on files that could not be used."""

    @cached_property
    def frame(self) -> pd.DataFrame:
        """
        Measurements as rows: data set, model, training loss, seed, epoch, attack, its parameters, metric, value.

        The metrics of an evaluation are n, correct, accuracy, zero_gradient (a count), confusion_norm, margin_1,
        margin_50 and margin_99 (percentiles), and found: NAME (the count of adversarial examples by the attack NAME);
        those of an epoch are the fields of its row in the learning curve; a run has seconds_per_epoch.
        """
        return _frame(self._rows())

    @cached_property
    def bounds(self) -> pd.DataFrame:
        """
        Bounds of Proposition 1 without attack and under the exact CE attack, in the form of `frame`, on demand.

        Metrics are the fields of ErrorBounds as labels.FIELD and noisy_labels.FIELD.
        """
        bounded = exact_attacks(self.grid.attacks)
        return _frame(
            row
            for (run, attack), record in self.records.items()
            if attack in bounded
            for labels in ("labels", "noisy_labels")
            for row in _rows_of(run, {f"{labels}.{k}": v for k, v in record.bounds(labels).items()}, attack)
        )

    @cached_property
    def calibration(self) -> pd.DataFrame:
        """
        Calibration without attack and under the CE attacks, in the form of `frame`; computed on demand.

        Metrics are those of Record.calibration; the temperature, fitted to the validation images without attack (in
        the row without attack); and scaled.NAME, the metrics at that temperature. NaN values are left out.
        """
        return _frame(
            row
            for run in self.grid.runs()
            for attack in ce_attacks(self.grid.attacks)
            if (record := self.records.get((run, attack))) is not None
            for row in _rows_of(run, _calibration(record, self.temperature(run), attack), attack)
        )

    def temperature(self, run: RunSpec) -> float:
        """Return the temperature fitted to a network's validation images without attack; NaN without their record."""
        record = self.records.get((run, AttackSpec("none", split="validation")))
        return math.nan if record is None else record.temperature

    @cached_property
    def flags(self) -> pd.DataFrame:
        """Raised flags with their evidence, one per row, by run and report; a report without flags has an empty row."""
        columns = ["dataset", "trained", "seed", "eps", "attacker", "n", "flag", "evidence"]
        rows = [
            (run.dataset, str(run.loss), run.seed, attack.eps, protocol(attack)[1], record.n, flag, evidence)
            for (run, attack), record in self.records.items()
            if record.flags is not None
            for flag, evidence in (record.flags or {"": ""}).items()
        ]
        return pd.DataFrame(rows, columns=columns)

    @property
    def datasets(self) -> tuple[str, ...]:
        """The grid's data sets."""
        return tuple(dataset for dataset, _ in self.grid.recipes)

    def runs(self, dataset: str, loss: LossSpec) -> list[RunSpec]:
        """Return the runs of a training loss on a data set, one per seed, in the order of seeds."""
        return [run for run in self.grid.runs() if run.dataset == dataset and run.loss == loss]

    def values(self, dataset: str, loss: LossSpec, attack: AttackSpec, metric: str = "accuracy") -> dict[int, float]:
        """Return a metric of the trained networks by seed, for the seeds that have been evaluated."""
        return self._values.get((dataset, str(loss), attack.key(), metric), {})

    @cached_property
    def trained(self) -> pd.DataFrame:
        """The rows of `frame` on fully trained networks."""
        return self.frame[self.frame.epoch.isna()]

    @cached_property
    def _values(self) -> dict[tuple[str, ...], dict[int, float]]:
        return by_seed(self.trained)

    def _rows(self) -> Iterator[tuple[object, ...]]:
        for run in self.grid.runs():
            for row in self.curves.get(run, []):
                metrics = {metric: value for metric, value in row.items() if isinstance(value, float)}
                yield from _rows_of(run, metrics, epoch=row["epoch"])
                for attack in run.recipe.curve_attacks:
                    yield from _rows_of(run, dict(_of_epoch(row, attack)), attack, epoch=row["epoch"])
            if run in self.epoch_seconds:
                yield from _rows_of(run, {"seconds_per_epoch": self.epoch_seconds[run]})
            for attack in self.grid.attacks:
                if (record := self.records.get((run, attack))) is not None:
                    yield from _rows_of(run, measured(record), attack)


def attacks(known: Iterable[AttackSpec], *protocols: str, split: object = "test", **fields: object) -> list[AttackSpec]:
    """
    Return the known attacks of the given protocols, or of all protocols, in order of eps.

    :param protocols: Protocols, as :func:`benchmarks.protocols.protocol` returns them first.
    :param split: The part of the data set that is attacked, or a tuple of several.
    :param fields: Values of other columns of the frame, each a value or a tuple of several.
    """
    wanted = fields | {"split": split} | ({"protocol": protocols} if protocols else {})
    columns = {attack: attack_columns(attack) for attack in known}
    matching = [
        attack
        for attack, values in columns.items()
        if all(values[k] in v if isinstance(v, tuple) else values[k] == v for k, v in wanted.items())
    ]
    return sorted(matching, key=lambda attack: attack.eps)


def by_seed(frame: pd.DataFrame) -> dict[tuple[str, ...], dict[int, float]]:
    """Return the values of a frame by seed, for each data set, training loss, attack key and metric."""
    values: dict[tuple[str, ...], dict[int, float]] = {}
    columns = (frame[name] for name in ("dataset", "trained", "key", "metric", "seed", "value"))
    for *key, seed, value in zip(*columns, strict=True):
        values.setdefault(tuple(key), {})[seed] = value
    return values


def ce_attacks(known: Iterable[AttackSpec], *protocols: str, **fields: object) -> list[AttackSpec]:
    """
    Return no attack and FGSM with the CE loss, on all images, among the known attacks.

    :param known: Attacks.
    :param protocols: As for :func:`attacks`; by default "no attack", "exact" and "paper".
    :param fields: As for :func:`attacks`.
    """
    return attacks(known, *(protocols or ("no attack", "exact", "paper")), images=0, attacker=("", "CE"), **fields)


def exact_attacks(known: Iterable[AttackSpec], split: object = "test") -> list[AttackSpec]:
    """Return no attack and FGSM with the exact gradient of CE, on all images of a split, among the known attacks."""
    return [attack for attack in attacks(known, split=split, images=0) if protocol(attack) in BOUNDED]


def measured(record: Record) -> dict[str, float]:
    """Return every metric of an evaluation that is one number."""
    values: dict[str, float] = {"n": record.n, "correct": int(record.right.sum()), "accuracy": record.accuracy}
    if record.flags is not None:
        return values
    if record.zero_gradient is not None:
        values["zero_gradient"] = int(record.zero_gradient.sum())
    values["confusion_norm"] = distance_to_identity(record.confusion)
    values |= {f"margin_{p}": value for p, value in record.margin_percentiles.items()}
    values |= {f"found: {name}": count for name, count in record.found.items()}
    return values


def _calibration(record: Record, temperature: float, attack: AttackSpec) -> dict[str, float]:
    values = record.calibration()
    if not math.isnan(temperature):
        values |= {f"scaled.{name}": value for name, value in record.calibration(temperature).items()}
        values |= {} if attack.eps else {"temperature": temperature}
    return {name: value for name, value in values.items() if not math.isnan(value)}


def _rows_of(
    run: RunSpec, metrics: Mapping[str, object], attack: AttackSpec | None = None, *, epoch: int | None = None
) -> list[tuple[object, ...]]:
    columns = [None] * len(ATTACK) if attack is None else attack_columns(attack).values()
    prefix = (run.dataset, run.recipe.model, str(run.loss), run.seed, epoch, *columns)
    return [(*prefix, metric, value) for metric, value in metrics.items()]


def _frame(rows: Iterable[tuple[object, ...]]) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=COLUMNS).astype({"epoch": "Int64"})


@cache
def attack_columns(attack: AttackSpec) -> dict[str, object]:
    """Return the columns of the frame that describe an attack."""
    parameters = (attack.eps, attack.units, attack.split, attack.steps, attack.images, attack.source)
    return dict(zip(ATTACK, (attack.key(), attack.name, attack.loss, *protocol(attack), *parameters), strict=True))


def _of_epoch(row: Mapping[str, Any], attack: AttackSpec) -> Iterator[tuple[str, float]]:
    """Yield the accuracy and the bounds under an attack in a row of a learning curve."""
    if attack.key() in row.get("attacks", {}):
        yield "accuracy", row["attacks"][attack.key()]
    for field, value in row.get("bounds", {}).get(attack.key(), {}).items():
        if value is not None:
            yield f"labels.{field}", value


def load(grid: Grid, store: Store) -> Results:
    """Read the results of a grid from a store; files that cannot be used are named and counted as missing."""
    records: dict[tuple[RunSpec, AttackSpec], Record] = {}
    curves: dict[RunSpec, list[dict[str, Any]]] = {}
    seconds: dict[RunSpec, float] = {}
    problems: list[str] = []
    for run in grid.runs():
        curves[run] = []
        try:
            curves[run] = store.curve(run)
        except DamagedError as error:
            problems.append(str(error))
        # Runs that are trained in one vectorised step ("together") share its time, which cannot be split among them.
        separate = (e for e in store.log_entries(run) if e["event"] == "epoch" and "together" not in e)
        epochs = {e["epoch"]: e["training"] for e in separate}
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
