"""Results -> how tight Proposition 1 is, as tables: its bounds beside the error probability that they bound."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from benchmarks.config import AttackSpec, Grid, RunSpec
from benchmarks.evaluation import LABEL_NOISE, LOWER_ALPHA, UPPER_ALPHA
from benchmarks.protocols import sound
from benchmarks.report.cells import Results
from benchmarks.report.markup import Table
from benchmarks.report.statistics import mean_interval
from benchmarks.report.tables import over_seeds

# Columns and the fields of ErrorBounds behind them; a field whose name begins with log_ is shown as a probability.
UPPER = {
    "P_e": "error",
    "CE / log 2": "log_markov_bound",
    "by P_u (5)": "log_comparison_upper_bound",
    "by H (1)": "log_upper_bound",
    "by the HR loss (11)": "log_relaxed_bound",
    "(1) at its best alpha": "log_tightest_upper_bound",
}
LOWER = {
    "P_e": "error",
    "by P_u (5)": "log_comparison_lower_bound",
    "by H (2)": "log_lower_bound",
    "(2) as printed": "log_printed_lower_bound",
    "(2) at its best alpha": "log_tightest_lower_bound",
}


def bounds_tables(results: Results, dataset: str) -> list[Table]:
    """
    The upper and the lower bounds of Proposition 1 on the test images, without attack and under the sound CE attacks.

    :param results: What there is of a grid.
    :param dataset: One of its data sets.
    :return: Two tables; none where the grid has no such evaluation yet.
    """
    images = [record["n"] for (run, _), record in _bounded(results) if run.dataset == dataset]
    if not images:
        return []
    common = (
        f"Data: {dataset}, {max(images)} test images; FGSM by the CE loss (sound protocol). "
        f"{over_seeds(results.grid)} A mean of bounds bounds the mean."
    )
    upper = (
        common,
        f"Orders: alpha = {UPPER_ALPHA:g}, but for the last two columns. A bound of 1 or more says nothing; where no "
        "alpha gives less, the best is 1. (5), (1) and (11) are the paper's steps, each weaker than the one before; "
        "CE / log 2 is Markov's inequality, and no part of the paper.",
    )
    lower = (
        common,
        f"Orders: alpha = {LOWER_ALPHA:g}, but for the last column. With certain labels every lower bound is 0: these "
        f"are for labels that are, with probability {LABEL_NOISE:g}, drawn anew from all classes, and P_e with them.",
    )
    return [
        _table(results, dataset, "upper bounds on", "labels", UPPER, upper),
        _table(results, dataset, "lower bounds on", "noisy_labels", LOWER, lower),
    ]


def bounded_attacks(grid: Grid) -> list[AttackSpec]:
    """No attack, and the sound CE attacks on the test images: those that a grid has, by eps."""
    found = [attack for attack in grid.attacks if attack == sound("ce", attack.eps)]
    return sorted(found, key=lambda attack: attack.eps)


def bounds_frame(results: Results) -> pd.DataFrame:
    """All fields of ErrorBounds, per network, attack and kind of labels; empty where a value is not finite."""
    return pd.DataFrame(
        {"dataset": run.dataset, "trained": str(run.loss), "seed": run.seed, "eps": attack.eps, "labels": labels}
        | values
        for (run, attack), record in _bounded(results)
        for labels, values in record["bounds"].items()
    )


def _bounded(results: Results) -> Iterator[tuple[tuple[RunSpec, AttackSpec], Mapping[str, Any]]]:
    """The records that the tables are made of."""
    for run in results.grid.runs():
        for attack in bounded_attacks(results.grid):
            record = results.records.get((run, attack), {})
            if "bounds" in record:
                yield (run, attack), record


def _table(
    results: Results, dataset: str, what: str, labels: str, columns: Mapping[str, str], notes: tuple[str, ...]
) -> Table:
    rows: list[tuple[str, ...]] = []
    for attack in bounded_attacks(results.grid):
        for loss in results.grid.losses:
            found = [
                record["bounds"][labels]
                for (run, made), record in _bounded(results)
                if (run.dataset, run.loss, made) == (dataset, loss, attack)
            ]
            first = f"{attack.eps:g}" if loss == results.grid.losses[0] else ""
            texts = [_text([bounds[field] for bounds in found], field, results.grid) for field in columns.values()]
            alphas = [_range([bounds["tightest_alpha"] for bounds in found])] if columns is UPPER else []
            rows.append((first, str(loss), *texts, *alphas))
    last = ("best alpha",) if columns is UPPER else ()
    return Table(f"Proposition 1 on {dataset}: {what} P_e", ("eps", "trained", *columns, *last), tuple(rows), notes)


def _text(values: Sequence[float | None], field: str, grid: Grid) -> str:
    if not values:
        return "not yet"
    # A lower bound that says nothing is kept as None: the logarithm of 0.
    numbers = [(0.0 if v is None else math.exp(v)) if field.startswith("log_") else v or 0.0 for v in values]
    interval = mean_interval(numbers)
    # A single seed has no interval, and a bound that says nothing has the same value for all.
    text = f"{interval.mean:.3g}" + (f" ± {interval.half_width:.3g}" if interval.half_width > 0 else "")
    return text + ("" if interval.n == len(grid.seeds) else f" (n = {interval.n})")


def _range(alphas: Sequence[float | None]) -> str:
    if not alphas:
        return ""
    least, most = (f"{edge:.3g}" for edge in (min(a or math.inf for a in alphas), max(a or math.inf for a in alphas)))
    return least if least == most else f"{least} to {most}"
