"""Defences: table, files and figure have the accuracies and paired gains of the records, computed by hand."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer
from testing import made_up
from testing.made_up import tables

from benchmarks import grids, protocols, recipes
from benchmarks.config import AttackSpec, Hardening, LossSpec, RunSpec
from benchmarks.report import export
from benchmarks.report.dot_figures import hardening
from benchmarks.report.drawing import Picture
from benchmarks.report.export import Report
from benchmarks.report.results import Results
from benchmarks.report.selection import Selection
from benchmarks.report.tables import hardening_table

GRID = replace(grids.hardening_digits(), seeds=(0, 1))
MNIST = replace(grids.hardening_mnist(), seeds=(0, 1))
NAMES = {"none": "no attack", "clipped-ce": "FGSM, paper", "ce": "FGSM, exact", None: "worst case"}
# The 97.5% quantile of Student's t with one degree of freedom, tan(0.475 pi).
T_1 = math.tan(0.475 * math.pi)


def name_of(attack: AttackSpec) -> str:
    return NAMES["none" if attack.name == "none" else attack.loss]


def correct(run: RunSpec, attack: AttackSpec) -> int:
    """Return a number of correct images that differs between entries and seeds; gains over CE differ by seed."""
    place = GRID.losses.index(run.loss)
    base = {"no attack": 60_000, "FGSM, paper": 40_000, "FGSM, exact": 20_000, "worst case": 8_000}[name_of(attack)]
    return base + 330 * place - round(15_000 * attack.eps) + (500 + 10 * place) * run.seed


def made(**options: Any) -> Results:
    return made_up.results(GRID, correct, **options)


def shares(loss: LossSpec, attack: AttackSpec) -> tuple[float, float]:
    first, second = (correct(RunSpec("digits", recipes.DIGITS, loss, seed), attack) / made_up.N for seed in (0, 1))
    return first, second


def text(pair: tuple[float, ...]) -> str:
    """Return mean and half-width of two values, whose standard error is half their distance."""
    return f"{sum(pair) / 2:z.3f} ± {T_1 * abs(pair[0] - pair[1]) / 2:.3f}"


def test_rows_are_grouped_by_defence_with_gains_over_ce_with_the_same_defence() -> None:
    backwards = replace(GRID, losses=tuple(reversed(GRID.losses)))
    for grid in (GRID, backwards):
        (table,) = tables(replace(made(), grid=grid), "hardening")
        trades = [Hardening("trades", 0.1, 7, beta) for beta in (3.0, 6.0, 12.0)]
        kinds = [None, Hardening("noise", 0.1), Hardening("madry", 0.1, 7)]
        kinds += trades if grid is GRID else trades[::-1]
        expected = []
        for kind in kinds:
            title = "no defence" if kind is None else str(kind)
            ce, first = LossSpec("ce", hardening=kind), title
            for loss in (loss for loss in grid.losses if loss.hardening == kind):
                row = [first, str(replace(loss, hardening=None)), text(shares(loss, AttackSpec("none")))]
                for eps in (0.1, 0.2):
                    worst = AttackSpec("worst-case", eps=eps, steps=1)
                    attacks = (AttackSpec("fgm", "clipped-ce", eps), AttackSpec("fgm", "ce", eps), worst)
                    row += [text(shares(loss, attack)) for attack in attacks]
                    gain = [a - b for a, b in zip(shares(loss, worst), shares(ce, worst), strict=True)]
                    row.append("" if loss == ce else text(tuple(gain)))
                expected.append(tuple(row))
                first = ""
        assert table.rows == tuple(expected)
        assert len(table.rows) == 22
        entries = [entry for row in table.rows for entry in (*row[2:6], *row[7:10])]
        assert len({entry.split()[0] for entry in entries}) == len(entries), "no entry is another's"
    columns = ("FGSM, paper", "FGSM, exact", "worst case", "worst case, minus CE")
    at_eps = [f"eps {eps}: {column}" for eps in ("0.1", "0.2") for column in columns]
    assert table.header == ("defence", "trained", "no attack", *at_eps)


def test_gains_are_paired_over_the_common_seeds() -> None:
    ce, hr = LossSpec("ce"), LossSpec("hr", 1.0)
    missing = {(ce, 0), (hr, 1)}
    rows = tables(made(made=lambda run, attack: (run.loss, run.seed) not in missing), "hardening")[0].rows
    place = GRID.losses.index(hr)
    assert rows[0][5].endswith("(n = 1)")
    assert rows[place][5].endswith("(n = 1)")
    assert rows[place][6] == "not yet", "no seed has both"
    assert rows[1][6].endswith("(n = 1)")
    assert rows[0][6] == ""
    none = tables(made(made=lambda run, attack: False), "hardening")[0].rows
    assert {entry for row in none for entry in row[2:]} == {"not yet", ""}


def test_a_defence_without_ce_has_no_gains() -> None:
    losses = tuple(loss for loss in GRID.losses if str(loss) != "CE, Madry 0.1")
    rows = tables(replace(made(), grid=replace(GRID, losses=losses)), "hardening")[0].rows
    first = next(i for i, row in enumerate(rows) if row[0] == "Madry 0.1")
    assert [(row[1], row[6]) for row in rows[first : first + 3]] == [("HR(1)", ""), ("HR(1.6)", ""), ("HR(3)", "")]
    assert rows[1][6] != ""


def test_marks_of_zero_gradients_have_a_note() -> None:
    assert not any("†" in text for text in tables(made(), "hardening")[0].notes)
    results = made_up.results(MNIST, zero=lambda run, attack: 101 * (attack.loss == "clipped-ce"))
    (table,) = tables(results, "hardening")
    assert [row[0] for row in table.rows if row[0]][1:] == ["Madry 0.2", *(f"TRADES 0.2, beta {b}" for b in (3, 6, 12))]
    assert table.notes[-1].startswith("†")
    assert [{row[i].endswith("†") for row in table.rows} for i in range(2, 7)] == [{False}, {True}, *[{False}] * 3]


def test_without_a_worst_case_there_is_no_table_and_no_figure() -> None:
    fgsm = tuple(attack for attack in GRID.attacks if attack.name != "worst-case")
    selection = Selection(made_up.results(replace(GRID, attacks=fgsm)), "digits")
    assert hardening_table(selection) is None
    assert hardening(selection) is None


def test_files_have_every_entry_and_its_gain_unrounded(tmp_path: Path) -> None:
    export.write_tables(Report(made()), tmp_path, command="make it")
    assert "on digits" in (tmp_path / "hardening.md").read_text().splitlines()[0]
    assert not (tmp_path / "strong.md").exists()
    rows = pd.read_csv(tmp_path / "hardening.csv")
    assert len(rows) == 22 * 7
    found = rows.set_index(["trained", "protocol", "eps"])
    for loss in GRID.losses:
        for attack in GRID.attacks:
            row = found.loc[(str(loss), protocols.protocol(attack)[0], attack.eps)]
            a, b = shares(loss, attack)
            assert (row.accuracy, row.half_width_95) == pytest.approx(((a + b) / 2, T_1 * (b - a) / 2), rel=1e-5)
            assert row.seeds == 2
            if loss.name == "ce" and loss in (LossSpec("ce"), LossSpec("ce", hardening=loss.hardening)):
                assert math.isnan(row.less_ce)
                assert row.pairs == 0
            else:
                c, d = shares(LossSpec("ce", hardening=loss.hardening), attack)
                gain = ((a - c + b - d) / 2, T_1 * abs(a - c - b + d) / 2)
                assert (row.less_ce, row.less_ce_half_width_95) == pytest.approx(gain, rel=1e-5)
                assert row.pairs == 2
            assert math.isnan(row.zero_gradient) == (attack.loss is None)


def drawn(results: Results) -> Picture:
    picture = hardening(Selection(results, "digits"))
    assert picture is not None
    return picture


def dots(axes: Axes) -> dict[str, dict[float, tuple[float, float, float]]]:
    """Return the mean of each dot and the ends of its bar, by label and row."""
    found: dict[str, dict[float, tuple[float, float, float]]] = {}
    for container in axes.containers:
        assert isinstance(container, ErrorbarContainer)
        line, _, (bars,) = container.lines
        ends = [tuple(segment[:, 0]) for segment in bars.get_segments()]
        values = zip(line.get_ydata(), line.get_xdata(), ends, strict=True)
        found[container.get_label()] = {round(float(y)): (float(x), *map(float, end)) for y, x, end in values}
    return found


def test_the_figure_draws_every_loss_in_its_row_at_every_eps() -> None:
    picture = drawn(made())
    assert [axes.get_title() for axes in picture.figure.axes] == ["eps 0.1", "eps 0.2"]
    labels = [label.get_text() for label in picture.figure.axes[0].get_yticklabels()]
    heads = {str(loss.hardening or "no defence"): loss.hardening for loss in GRID.losses}
    rows, kind = {}, None
    for y, label in enumerate(labels):
        if label in heads:
            kind = heads[label]
        else:
            rows[y] = next(
                loss for loss in GRID.losses if (loss.hardening, str(replace(loss, hardening=None))) == (kind, label)
            )
    assert list(rows.values()) == list(GRID.losses)
    assert len(labels) == 22 + 6
    for axes, eps in zip(picture.figure.axes, (0.1, 0.2), strict=True):
        found = dots(axes)
        attacks = {name_of(attack): attack for attack in GRID.attacks if attack.eps in (0, eps)}
        assert list(found) == list(attacks)
        for name, attack in attacks.items():
            assert list(found[name]) == list(rows)
            for y, (mean, low, high) in found[name].items():
                a, b = shares(rows[y], attack)
                half = T_1 * (b - a) / 2
                assert (mean, low, high) == pytest.approx(((a + b) / 2, (a + b) / 2 - half, (a + b) / 2 + half))
        assert axes.yaxis_inverted()
    assert f"the first {made_up.N} test images" in picture.caption
    assert "2 seeds; bars: 95%" in picture.caption
    a, b = shares(GRID.losses[-1], next(a for a in GRID.attacks if (a.name, a.eps) == ("worst-case", 0.2)))
    assert picture.alt.endswith(f"worst case {(a + b) / 2:.3f}.")


def test_dots_have_different_markers_and_do_not_overlap() -> None:
    (axes, _) = drawn(made()).figure.axes
    lines = [container.lines[0] for container in axes.containers]
    assert len({line.get_marker() for line in lines}) == 4
    assert {to_hex(line.get_color()) for line in lines} <= {"#000000", "#0072b2", "#d55e00"}
    heights = sorted(float(y) for line in lines for y in line.get_ydata())
    assert min(b - a for a, b in pairwise(heights)) > 0.15


def test_the_figure_draws_the_records_that_exist() -> None:
    noisy = next(loss for loss in GRID.losses if str(loss) == "HR(3), noise 0.1")
    results = made(made=lambda run, attack: run.loss == noisy and run.seed == 1 and attack.name != "worst-case")
    picture = drawn(results)
    labels = [label.get_text() for label in picture.figure.axes[0].get_yticklabels()]
    assert labels == ["noise 0.1", "HR(3)"]
    found = dots(picture.figure.axes[1])
    assert found["worst case"] == {}
    x = correct(RunSpec("digits", recipes.DIGITS, noisy, 1), AttackSpec("fgm", "ce", 0.2)) / made_up.N
    assert found["FGSM, exact"] == {1: pytest.approx((x, x, x))}
    assert "One seed" in picture.caption
    box = picture.figure.get_tightbbox()
    assert box.x0 >= -0.02
    assert box.x1 <= picture.figure.get_figwidth() + 0.02


def test_other_figures_draw_losses_without_defence_and_count_the_others() -> None:
    selection = Selection(made(), "digits")
    assert selection.losses == [LossSpec("ce"), LossSpec("hr", 1.6)]
    assert "20 other" in selection.left_out
    smoothed = LossSpec("ce", label_smoothing=0.1)
    only = replace(selection.results, grid=replace(GRID, losses=(smoothed, LossSpec("ce"))))
    assert Selection(only, "digits").losses == [LossSpec("ce")]
