"""Tables of Proposition 1: entries agree with values computed by hand from the records."""

import math
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import scipy.stats
from testing import made_up
from testing.made_up import tables

from benchmarks import grids, protocols
from benchmarks.config import AttackSpec, RunSpec
from benchmarks.report import export
from benchmarks.report.export import Report
from benchmarks.report.results import Results

GRID = replace(grids.digits(), seeds=(0, 1, 2))
# Fields of ErrorBounds, in the order of the columns.
UPPER = ["log_markov_bound", "log_comparison_upper_bound", "log_upper_bound", "log_relaxed_bound"]
LOWER = ["log_comparison_lower_bound", "log_lower_bound", "log_printed_lower_bound", "log_tightest_lower_bound"]


def made(run: RunSpec, attack: AttackSpec) -> dict[str, dict[str, Any]]:
    """Return bounds that differ between entries, seeds and fields; at eps 0.25 all upper bounds are vacuous."""
    error = 0.01 * (1 + run.seed) + (run.loss == protocols.HR) * 0.1 + attack.eps * 0.8
    upper = {
        name: math.log(error * (2 + i) if attack.eps < 0.2 else 10.0**i + run.seed) for i, name in enumerate(UPPER)
    }
    lower = {name: math.log(error) * (2 + i) for i, name in enumerate(LOWER)}
    best = {"log_tightest_upper_bound": 0.0 if attack.eps else math.log(error * 1.5)}
    alpha = 1.0 if attack.eps else (math.inf if run.loss == protocols.HR and run.seed == 2 else 2.0 + run.seed)
    return {
        "labels": {"error": error, "tightest_alpha": alpha, **upper, **best},
        "noisy_labels": {"error": error / 2, "tightest_alpha": 1.0, **lower},
    }


def results(grid: Any = GRID) -> Results:
    empty = made_up.results(grid)
    return replace(empty, records={key: replace(record, values=made(*key)) for key, record in empty.records.items()})


def mean(values: list[float]) -> str:
    half_width = scipy.stats.t.ppf(0.975, len(values) - 1) * scipy.stats.sem(values)
    return f"{sum(values) / len(values):.3g} ± {half_width:.3g}"


def test_entries_are_means_over_the_seeds() -> None:
    found = results()
    for table, labels, fields in zip(
        tables(found, "bounds"),
        ("labels", "noisy_labels"),
        (["error", *UPPER], ["error", *LOWER]),
        strict=True,
    ):
        for place, row in enumerate(table.rows):
            eps, loss = (0.0, 0.1, 0.25)[place // 2], (protocols.CE, protocols.HR)[place % 2]
            assert row[:2] == ("" if place % 2 else f"{eps:g}", str(loss))
            bounds = [made(run, protocols.exact("ce", eps))[labels] for run in found.runs("digits", loss)]
            for entry, field in zip(row[2:], fields, strict=False):
                values = [b[field] if field == "error" else math.exp(b[field]) for b in bounds]
                if len(set(values)) > 1:
                    assert entry == mean(values)
                else:
                    assert entry == f"{values[0]:.3g}"
        assert "3 seeds" in table.notes[0]
        assert f"Data: digits, {made_up.N} test images" in table.notes[0]


def test_the_best_alphas_are_shown_as_a_range_and_a_bound_of_1_without_an_interval() -> None:
    rows = tables(results(), "bounds")[0].rows
    assert [row[-1] for row in rows] == ["2 to 4", "2 to inf", "1", "1", "1", "1"]
    assert [row[-2] for row in rows[2:]] == ["1"] * 4
    assert rows[0][-2] == mean([0.015, 0.03, 0.045])


def test_a_vacuous_lower_bound_counts_as_0() -> None:
    found = results()
    run, attack = GRID.runs()[0], AttackSpec("none")
    found.records[run, attack].values["noisy_labels"]["log_lower_bound"] = -math.inf
    entry = tables(found, "bounds")[1].rows[0][4]
    assert entry == mean([0.0, *(math.exp(3 * math.log(0.01 * (1 + seed))) for seed in (1, 2))])


def test_missing_records_are_shown_and_a_grid_without_bounds_has_no_table() -> None:
    complete = results()
    assert tables(made_up.results(GRID), "bounds") == []
    of_seed_0 = {key: record for key, record in complete.records.items() if key[0].seed == 0}
    rows = tables(replace(complete, records=of_seed_0), "bounds")[0].rows
    assert (rows[0][2], rows[0][-1]) == ("0.01 (n = 1)", "2")
    of_ce = {key: record for key, record in complete.records.items() if key[0].loss == protocols.CE}
    rows = tables(replace(complete, records=of_ce), "bounds")[0].rows
    assert rows[1][2:] == ("not yet",) * 6 + ("",)
    unattacked = replace(GRID, attacks=(AttackSpec("none"), protocols.paper("ce", 0.1)))
    assert [row[0] for row in tables(results(unattacked), "bounds")[0].rows] == ["0", ""]


def test_files_hold_every_field_of_every_network(tmp_path: Path) -> None:
    export.write_tables(Report(results()), tmp_path, command="make it")
    assert "lower bounds on P\\_e" in (tmp_path / "bounds.tex").read_text()
    rows = pd.read_csv(tmp_path / "bounds.csv").set_index(["trained", "seed", "eps", "labels"])
    assert len(rows) == 6 * 3 * 2
    for run, eps, labels in product(GRID.runs(), (0, 0.1, 0.25), ("labels", "noisy_labels")):
        row, expected = rows.loc[(str(run.loss), run.seed, eps, labels)], made(run, protocols.exact("ce", eps))[labels]
        for field in {*UPPER, *LOWER, "error", "tightest_alpha"}:
            value = expected.get(field, math.inf)
            assert row[field] == pytest.approx(math.nan if math.isinf(value) else value, rel=1e-5, nan_ok=True)
