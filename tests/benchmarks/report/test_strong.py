"""Table of strong attacks: accuracies and paired differences, compared with values computed by hand."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
from testing import made_up
from testing.made_up import tables

from benchmarks import grids, protocols
from benchmarks.config import AttackSpec, Hardening, RunSpec
from benchmarks.report import export
from benchmarks.report.export import Report
from benchmarks.report.selection import strong_attacks

GRID = replace(grids.strong_digits(), seeds=(0, 1))


# Images that HR classifies correctly in addition to those of CE: another number for each column, in the table's order.
GAINS = {
    ("fgm", "clipped-ce"): 10_000,
    ("fgm", "ce"): 3_000,
    ("worst-case", None): 1_000,
}


def correct(run: RunSpec, attack: AttackSpec) -> int:
    """Return a number of correct images that decreases with eps, and is larger with the seed and for HR."""
    gain = GAINS.get((attack.name, attack.loss), 0) if run.loss == protocols.HR else 0
    return 40_000 - round(40_000 * attack.eps) + 2_000 * run.seed + gain


def test_rows_are_the_accuracies_and_the_gains_of_hr() -> None:
    made = made_up.results(GRID, correct, zero=lambda run, attack: 200 * (attack.loss == "clipped-ce"))
    (table,) = tables(made, "strong")
    assert table.header == (
        "eps",
        "trained",
        "FGSM, paper",
        "FGSM, exact",
        "worst case",
    )
    assert [row[:2] for row in table.rows[:4]] == [("0.1", "CE"), ("", "HR(1.6)"), ("", "HR(1.6) - CE"), ("0.15", "CE")]
    # The quantile of Student's t with one degree of freedom, times half the seeds' distance.
    half_width = 12.7062 * 0.01
    for place, eps in enumerate(protocols.STRONG_EPS):
        ce, hr, gain = (row[2:] for row in table.rows[3 * place : 3 * place + 3])
        base = 0.41 - 0.4 * eps
        for i, more in enumerate(GAINS.values()):
            mark = "†" if i == 0 else ""
            assert ce[i] == f"{base:.3f} ± {half_width:.3f}{mark}"
            assert hr[i] == f"{base + more / made_up.N:.3f} ± {half_width:.3f}{mark}"
            assert gain[i] == f"{more / made_up.N:.3f} ± 0.000"
    assert f"the first {made_up.N} test images" in table.notes[0]
    assert [note.startswith("†") for note in table.notes] == [False, False, False, True, False]
    assert not any("†" in note for note in tables(made_up.results(GRID, correct), "strong")[0].notes)


def test_grids_with_defences_have_another_table() -> None:
    plain, noisy = (protocols.hardened(kind, (1.6,)) for kind in (None, Hardening("noise", 0.1)))
    assert tables(made_up.results(replace(GRID, losses=plain)), "strong")
    assert not tables(made_up.results(replace(GRID, losses=(*plain, noisy[0]))), "strong")


def test_missing_records_are_shown() -> None:
    made = made_up.results(GRID, correct, made=lambda run, attack: run.seed == 0 and attack.name != "worst-case")
    ce, hr, gain = tables(made, "strong")[0].rows[:3]
    assert ce[2] == "0.360 (n = 1)"
    assert (ce[-1], hr[-1], gain[-1]) == ("not yet",) * 3
    assert gain[2] == "0.100 (n = 1)"


def test_attacks_on_other_images_or_in_other_units_are_not_compared() -> None:
    others = (AttackSpec("apgd", "ce", 0.1, steps=9, images=5), protocols.worst_case(0.1, 360, 9, "data"))
    assert strong_attacks(replace(GRID, attacks=(*GRID.attacks, *others))) == strong_attacks(GRID)


def test_an_eps_with_a_worst_case_only_is_shown_in_table_1_only() -> None:
    grid = grids.strong_cifar10()
    assert protocols.worst_case(0.25, 1000, 50) in grid.attacks
    assert tuple(strong_attacks(grid)) == protocols.STRONG_EPS_OF_PHOTOGRAPHS


def test_files_count_the_adversarial_examples_by_attack(tmp_path: Path) -> None:
    made = made_up.results(GRID, correct)
    broken = {"no attack": 3, "AutoPGD on CE": 5}
    records = {
        key: replace(record, counts=broken) if key[1].name == "worst-case" else record
        for key, record in made.records.items()
    }
    export.write_tables(Report(replace(made, records=records)), tmp_path, command="make it")
    rows = pd.read_csv(tmp_path / "broken_by.csv")
    assert len(rows) == 2 * 2 * 4 * 2
    assert rows.groupby("attack").broken.unique().map(list).to_dict() == {"no attack": [3], "AutoPGD on CE": [5]}
    cells = pd.read_csv(tmp_path / "strong.csv")
    assert (cells.images == 360).sum() == 2 * (1 + 4 * 3), "a report on masked gradients is no accuracy"


def test_adversarial_examples_are_summed_over_the_seeds_in_the_order_of_the_attacks() -> None:
    grid = replace(grids.strong_svhn_grey(), seeds=(0, 1))
    found = {"no attack": 3, "AutoPGD on CE": 5, "Square": 0}
    made = made_up.results(grid, lambda run, attack: 40 + run.seed + (run.loss == protocols.HR))
    records = {
        key: replace(record, counts=found) if key[1].name == "worst-case" else record
        for key, record in made.records.items()
    }
    (table,) = tables(replace(made, records=records), "broken_by")
    assert table.header == ("eps", "trained", "images", "no attack", "AutoPGD on CE", "Square", "robust")
    assert [row[0] for row in table.rows[::2]] == [
        "0.1/255",
        "0.25/255",
        *(f"{n}/255" for n in (1, 2, 4, 8)),
        "0.1",
        "0.25",
    ]
    for ce, hr in zip(table.rows[::2], table.rows[1::2], strict=True):
        assert ce[1:] == ("CE", "200000", "6", "10", "0", "81")
        assert hr == ("", "HR(1.6)", "200000", "6", "10", "0", "83")
