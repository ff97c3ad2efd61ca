"""Calibration: table, sentences and diagram agree with the records."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from testing import made_up

from benchmarks import grids
from benchmarks.config import AttackSpec, Grid, LossSpec, RunSpec
from benchmarks.protocols import ALPHA_ATTACKS, CE, HR, TABLE_1_ATTACKS, exact, paper
from benchmarks.record import Record
from benchmarks.report import export
from benchmarks.report.calibration import FEWEST, calibration_table, reliability, sentences
from benchmarks.report.drawing import Picture, style
from benchmarks.report.markup import Table
from benchmarks.report.results import Results
from benchmarks.report.selection import Selection

((DATASET, RECIPE),) = grids.digits().recipes
PLAIN = replace(RECIPE, epochs=1, curve_every=0, curve_attacks=())
GRID = replace(grids.digits(), recipes=((DATASET, PLAIN),), seeds=(0, 1, 2), attacks=TABLE_1_ATTACKS)
NONE, VALIDATION = AttackSpec("none"), AttackSpec("none", split="validation")
# The rows of the table: eps and attack.
ROWS = {
    ("0", "no attack"): NONE,
    **{(f"{eps:g}", name): of("ce", eps) for eps in (0.1, 0.25) for name, of in (("exact", exact), ("paper", paper))},
}
SCORES = {"confidence": "confidence", "NLL": "nll", "Brier": "brier", "ECE": "ece", "AUROC": "auroc"}


def drawn_record(run: RunSpec, attack: AttackSpec) -> Record:
    """Return a random record, with some wrong predictions without attack and many under attack."""
    draw = np.random.default_rng([run.seed, run.loss == HR, *attack.key().encode()])
    labels, logits = np.arange(300) % 10, draw.normal(scale=2, size=(300, 10)).astype(np.float32)
    logits[np.arange(300), labels] += 6 - 25 * attack.eps + 2 * (run.loss == HR)
    return Record(labels, logits, samples=np.zeros((1, 1, 8, 8), np.uint8), sampled=np.arange(1))


def made(grid: Grid) -> Results:
    return Results(grid, {(run, a): drawn_record(run, a) for run in grid.runs() for a in grid.attacks}, {}, {})


@pytest.fixture(scope="module")
def results() -> Results:
    return made(GRID)


def only(results: Results) -> Table:
    table = calibration_table(Selection(results, DATASET))
    assert table is not None
    assert {len(row) for row in table.rows} == {len(table.header)}
    return table


def entries(table: Table) -> dict[tuple[str, str, str, str], str]:
    """Return the entries by eps, attack, row and column."""
    found, eps = {}, ""
    for first, attack, trained, *texts in table.rows:
        eps = first or eps
        found |= {(eps, attack, trained, name): text for name, text in zip(table.header[3:], texts, strict=True)}
    return found


def interval(values: list[float], sign: str = "") -> str:
    half_width = scipy.stats.t.ppf(0.975, len(values) - 1) * scipy.stats.sem(values)
    return f"{np.mean(values):{sign}z.3f} ± {half_width:.3f}"


def without(results: Results, drop: Callable[[RunSpec, AttackSpec], bool]) -> Results:
    return replace(results, records={key: record for key, record in results.records.items() if not drop(*key)})


def test_entries_are_the_metrics_of_the_records_and_their_paired_differences(results: Results) -> None:
    found, records = entries(only(results)), results.records
    seen = 0
    for place, attack in ROWS.items():
        for column, metric in SCORES.items():
            by_loss = {
                loss: [records[run, attack].calibration()[metric] for run in results.runs(DATASET, loss)]
                for loss in (CE, HR)
            }
            assert found[*place, "CE", column] == interval(by_loss[CE])
            assert found[*place, "HR(1.6)", column] == interval(by_loss[HR])
            differences = [hr - ce for ce, hr in zip(*by_loss.values(), strict=True)]
            assert found[*place, "HR(1.6) - CE", column] == interval(differences, "+")
            seen += 1
        rights = [records[run, attack].accuracy for run in results.runs(DATASET, CE)]
        sure = [records[run, attack].probabilities.max(1).mean() for run in results.runs(DATASET, CE)]
        assert found[*place, "CE", "accuracy"] == interval(rights)
        over = [a - b for a, b in zip(sure, rights, strict=True)]
        assert found[*place, "CE", "confidence - accuracy"] == interval(over)
    assert seen == len(ROWS) * len(SCORES)
    assert {key[:2] for key in found} == ROWS.keys(), "no validation images, no HR attack, no torch's CE"


def test_temperatures_are_fitted_to_the_validation_images_and_used_on_the_test_images(results: Results) -> None:
    found, records = entries(only(results)), results.records
    for loss in (CE, HR):
        runs = results.runs(DATASET, loss)
        temperatures = [records[run, VALIDATION].temperature for run in runs]
        for place, attack in ROWS.items():
            scaled = [records[run, attack].calibration(t) for run, t in zip(runs, temperatures, strict=True)]
            assert found[*place, str(loss), "T"] == ("" if attack.eps else interval(temperatures))
            assert found[*place, str(loss), "NLL at T"] == interval([values["nll"] for values in scaled])
            assert found[*place, str(loss), "ECE at T"] == interval([values["ece"] for values in scaled])


def test_without_validation_images_only_the_temperatures_are_missing(results: Results) -> None:
    whole, table = only(results), only(without(results, lambda run, attack: attack == VALIDATION))
    assert set(whole.header) - set(table.header) == {"T", "NLL at T", "ECE at T"}
    assert entries(table).items() < entries(whole).items()
    assert len(table.notes) == len(whole.notes) - 1
    some = only(without(results, lambda run, attack: attack == VALIDATION and run.seed == 2))
    assert entries(some)["0", "no attack", "CE", "T"].endswith("(n = 2)")


def test_missing_records_and_metrics_without_a_value_are_shown_differently(results: Results) -> None:
    right = Record(np.arange(10), np.eye(10, dtype=np.float32))
    nearly = {key: right if key[1] == NONE and key[0].loss == HR else r for key, r in results.records.items()}
    found = entries(only(without(replace(results, records=nearly), lambda run, a: a.eps == 0.25 and run.loss == HR)))
    assert found["0", "no attack", "HR(1.6)", "AUROC"] == found["0", "no attack", "HR(1.6) - CE", "AUROC"] == "-"
    assert found["0", "no attack", "HR(1.6)", "accuracy"].startswith("1.000")
    assert {text for key, text in found.items() if key[0] == "0.25" and "HR" in key[2] and key[3] != "T"} == {"not yet"}
    assert "±" in found["0.25", "exact", "CE", "AUROC"]


def test_the_table_shows_the_alpha_nearest_to_the_papers() -> None:
    alphas = replace(GRID, losses=(CE, LossSpec("hr", 3.0), HR), attacks=ALPHA_ATTACKS)
    table = only(results := made(alphas))
    assert {row[2] for row in table.rows} == {"CE", "HR(1.6)", "HR(1.6) - CE"}
    others = without(results, lambda run, attack: run.loss in (CE, HR))
    assert calibration_table(Selection(others, DATASET)) is None
    alone = made(replace(GRID, losses=(HR,)))
    assert {row[2] for row in only(alone).rows} == {"HR(1.6)"}
    assert sentences(Selection(alone, DATASET)) == []


def test_a_grid_without_attacks_of_all_test_images_has_no_calibration(results: Results) -> None:
    for empty in (
        without(results, lambda run, attack: attack.split == "test"),
        made_up.results(grids.hardening_digits(), made=lambda run, attack: run.seed == 0),
    ):
        selection = Selection(empty, DATASET)
        assert calibration_table(selection) is None
        assert reliability(selection) is None


def test_files_hold_every_metric_of_every_network(results: Results, tmp_path: Path) -> None:
    export.write_tables(export.Report(results), tmp_path, command="make it")
    rows = pd.read_csv(tmp_path / "calibration.csv").set_index(["trained", "seed", "protocol", "eps"])
    assert len(rows) == 2 * 3 * len(ROWS)
    for run in GRID.runs():
        temperature = results.records[run, VALIDATION].temperature
        for (eps, name), attack in ROWS.items():
            row, record = rows.loc[(str(run.loss), run.seed, name, float(eps))], results.records[run, attack]
            scaled = {f"scaled.{metric}": value for metric, value in record.calibration(temperature).items()}
            expected = {"accuracy": record.accuracy} | record.calibration() | scaled
            expected["temperature"] = math.nan if attack.eps else temperature
            assert row[list(expected)].to_dict() == pytest.approx(expected, rel=1e-5, abs=1e-9, nan_ok=True)
    whole = pd.read_csv(tmp_path / "results.csv", keep_default_na=False)
    assert {"nll", "scaled.ece", "temperature"} < set(whole.metric)
    assert (tmp_path / "calibration.md").read_text().endswith("\nMade by `make it`\n")
    assert r"\begin{tabular}{lllllllllllll}" in (tmp_path / "calibration.tex").read_text()


def judged(before: list[float], after: list[float], *, sure: float = 0.02) -> str:
    """Return the sentences on no attack, for given over-confidences of HR by seed; that of CE is 0.1."""
    grid = replace(GRID, attacks=(NONE, VALIDATION))

    def record(run: RunSpec, attack: AttackSpec) -> Record:
        hr = run.loss == HR
        over = {"confidence": 0.9 + hr * sure, "overconfidence": before[run.seed] if hr else 0.1}
        left = {"overconfidence": after[run.seed] if hr else 0.1} if after else {}
        values = {"calibration": over, "scaled": left}
        return made_up.made_record(10, 8, values=values, temperature=2.0 if after else math.nan)

    records = {(run, attack): record(run, attack) for run in grid.runs() for attack in grid.attacks}
    (text,) = sentences(Selection(Results(grid, records, {}, {}), DATASET))
    return text


MORE, LESS, SAME = [0.12, 0.13, 0.14], [0.03, 0.02, 0.04], [0.05, 0.1, 0.15]
UNDER = [-0.03, -0.02, -0.04]


@pytest.mark.parametrize(
    ("before", "after", "differs", "left"),
    [
        (MORE, MORE, "higher for HR", "does not remove"),
        (LESS, LESS, "lower for HR", "does not remove"),
        (MORE, SAME, "higher for HR", "undecided"),
        (MORE, LESS, "higher for HR", "reverses"),
        (SAME, SAME, "undecided", "undecided"),
        (SAME, MORE, "undecided", "higher for HR"),
    ],
)
def test_a_difference_is_decided_only_if_its_interval_excludes_0(
    before: list[float], after: list[float], differs: str, left: str
) -> None:
    text = judged(before, after)
    gain = interval([value - 0.1 for value in before], "+")
    before_scaling, after_scaling = text.split("With temperature scaling")
    assert gain in before_scaling
    assert before_scaling.rstrip(" .)").endswith(differs)
    assert interval([value - 0.1 for value in after], "+") in after_scaling
    assert left in after_scaling.rpartition("(")[2]


def test_over_confidence_is_confidence_minus_accuracy() -> None:
    text = judged(UNDER, [])
    assert f"{interval(UNDER, '+')} for HR(1.6) (under-confident)" in text
    assert "+0.100 ± 0.000 for CE (over-confident)" in text
    assert "for HR(1.6) (undecided)" in judged([-0.1, 0.1, 0.05], [])
    for sure, verdict in ((0.02, "less uncertain"), (-0.02, "more uncertain")):
        text = judged(MORE, [], sure=sure)
        assert verdict in text
        assert f"{sure:+.3f} ± 0.000" in text
    assert "temperature" not in judged(MORE, [])


def test_one_seed_is_undecided(results: Results) -> None:
    texts = sentences(Selection(without(results, lambda run, attack: run.seed > 0), DATASET))
    assert len(texts) == 2
    assert not any(word in text for text in texts for word in ("±", "over-confident"))
    assert all("undecided whether HR(1.6) is less uncertain" in text for text in texts)


def drawn(results: Results) -> Picture:
    with style():
        picture = reliability(Selection(results, DATASET))
    assert picture is not None
    return picture


def pooled(results: Results, loss: LossSpec, attack: AttackSpec, *, scaled: bool) -> np.ndarray:
    """Return number of images, accuracy and mean confidence of each bin, over all seeds, by a loop over images."""
    bins = np.zeros((3, 15))
    for run in results.runs(DATASET, loss):
        record = results.records[run, attack]
        temperature = results.records[run, VALIDATION].temperature if scaled else 1.0
        powers = np.exp(record.logits.astype(np.float64) / temperature)
        for right, row in zip(record.right, powers, strict=True):
            confidence = row.max() / row.sum()
            bins[:, math.ceil(15 * confidence) - 1] += (1, right, confidence)
    with np.errstate(invalid="ignore"):
        return np.stack([bins[0], bins[1] / bins[0], bins[2] / bins[0]])


def test_diagrams_draw_the_bins_of_all_seeds(results: Results) -> None:
    figure = drawn(results).figure
    panels = {axes.get_title(): (axes, below) for axes, below in zip(*column(figure.axes), strict=True)}
    assert list(panels) == [
        f"{loss} trained, {name}" for name in ("no attack", "CE attack, eps 0.1") for loss in (CE, HR)
    ]
    left_out = 0
    for title, (axes, below) in panels.items():
        loss, attack = (HR if "HR" in title else CE), (NONE if "no attack" in title else exact("ce", 0.1))
        diagonal, *lines = axes.get_lines()
        assert list(diagonal.get_xdata()) == list(diagonal.get_ydata()) == [0, 1]
        for line, steps, scaled in zip(lines, below.patches, (False, True), strict=True):
            images, accuracy, confidence = pooled(results, loss, attack, scaled=scaled)
            shown = images >= FEWEST
            left_out += (images[~shown] > 0).sum()
            assert line.get_xdata() == pytest.approx(confidence[shown])
            assert line.get_ydata() == pytest.approx(accuracy[shown])
            assert steps.get_data().values.tolist() == images.tolist()
        ece = [results.records[run, attack].calibration()["ece"] for run in results.runs(DATASET, loss)]
        assert interval(ece) in axes.texts[0].get_text()
    assert left_out > 0


def column(axes: list) -> tuple[list, list]:
    """Return the diagrams, and the histograms under them, of a figure with four diagrams."""
    return axes[0:2] + axes[4:6], axes[2:4] + axes[6:8]


def test_a_diagram_shows_the_records_that_exist(results: Results) -> None:
    def drop(run: RunSpec, attack: AttackSpec) -> bool:
        return attack == VALIDATION or attack.eps > 0 or run.loss == HR

    picture = drawn(without(results, drop))
    diagram, below = picture.figure.axes
    assert len(diagram.get_lines()) == 2, "the diagonal and the bins"
    assert len(below.patches) == 1
    assert "at T" not in picture.alt
