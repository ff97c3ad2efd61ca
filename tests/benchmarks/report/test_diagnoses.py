"""Table of the reports on gradient masking: flags are counted over the seeds."""

from dataclasses import replace
from itertools import product

from testing import made_up
from testing.made_up import tables

from benchmarks import grids, protocols
from benchmarks.config import AttackSpec, RunSpec
from benchmarks.report.export import Report
from benchmarks.report.selection import Selection, where

ATTACKS = (AttackSpec("none", images=200), *protocols.diagnostics(0.2), *protocols.diagnostics(0.1))
GRID = replace(grids.strong_digits(), seeds=(0, 1, 2), attacks=ATTACKS)


def flags(run: RunSpec, attack: AttackSpec) -> dict[str, str]:
    """Return flags: the paper's attacker is flagged for HR with every seed, and for CE with one; exact never."""
    if attack.loss != "clipped-ce":
        return {}
    if run.loss == protocols.CE:
        return {"silent success": "PGD came by one"} if (attack.eps, run.seed) == (0.2, 1) else {}
    zero = {"zero gradients": f"{run.seed}% at eps {attack.eps}"}
    return zero | ({"masked gradients": "less", "NaN gradients": "some"} if run.seed else {})


def test_the_table_counts_the_seeds_that_raise_each_flag() -> None:
    (table,) = tables(made_up.results(GRID, flags=flags), "diagnostics")
    assert table.header == ("eps", "trained", "attacker", "verdict", "flags (seeds)")
    of_hr = ("flagged in 3 of 3 seeds", "zero gradients (3), NaN gradients (2), masked gradients (2)")
    assert table.rows == (
        ("0.1", "CE", "paper", "no flag", ""),
        ("", "CE", "exact", "no flag", ""),
        ("", "HR(1.6)", "paper", *of_hr),
        ("", "HR(1.6)", "exact", "no flag", ""),
        ("0.2", "CE", "paper", "flagged in 1 of 3 seeds", "silent success (1)"),
        ("", "CE", "exact", "no flag", ""),
        ("", "HR(1.6)", "paper", *of_hr),
        ("", "HR(1.6)", "exact", "no flag", ""),
    )
    assert f"the first {made_up.N} test images" in table.notes[0]


def test_missing_reports_are_shown() -> None:
    made = made_up.results(GRID, flags=flags, made=lambda run, attack: run.seed < 2 and attack.eps != 0.2)
    rows = tables(made, "diagnostics")[0].rows
    assert rows[0][3:] == ("no flag (n = 2)", "")
    assert rows[2][3:] == ("flagged in 2 of 2 seeds", "zero gradients (2), NaN gradients (1), masked gradients (1)")
    assert {row[3:] for row in rows[4:]} == {("not yet", "")}


def test_data_sets_have_separate_tables() -> None:
    grid = replace(GRID, recipes=(*GRID.recipes, ("mnist", GRID.recipes[0][1])))
    made = made_up.results(grid, flags=lambda run, attack: {"units of eps": "x"} if run.dataset == "mnist" else {})
    assert [{row[4] for row in table.rows} for table in tables(made, "diagnostics")] == [{""}, {"units of eps (3)"}]
    fewer = {
        key: replace(record, labels=record.labels[:5]) if key[0].dataset == "digits" else record
        for key, record in made.records.items()
    }
    assert "the first 5 test images" in tables(replace(made, records=fewer), "diagnostics")[0].notes[0]


def test_the_frame_has_the_evidence_of_every_flag() -> None:
    rows = made_up.results(GRID, flags=flags).flags
    for run, attack in product(GRID.runs(), ATTACKS[1:]):
        attacker = {"clipped-ce": "paper", "ce": "exact"}[attack.loss]
        of = where(rows, trained=str(run.loss), seed=run.seed, eps=attack.eps, attacker=attacker)
        assert dict(zip(of.flag, of.evidence, strict=True)) == (flags(run, attack) or {"": ""})
    assert rows[["trained", "seed", "eps", "attacker"]].drop_duplicates().shape[0] == len(GRID.runs()) * 4


def test_reports_are_not_drawn_and_do_not_count_as_attacked_images() -> None:
    made = made_up.results(GRID, flags=flags)
    assert [picture.name for picture in Report(made).pictures] == ["margins-digits"], "of no attack"
    records = {
        key: replace(record, labels=record.labels[:7]) if key[1].name == "diagnostics" else record
        for key, record in made.records.items()
    }
    assert Selection(replace(made, records=records), "digits").images == f"{made_up.N} test images"
    alone = {key: record for key, record in records.items() if key[1].name == "diagnostics"}
    assert Selection(replace(made, records=alone), "digits").images == "the test images"
