"""Tables are what a hand would make of the records."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from benchmarks import grids, report
from benchmarks.config import AttackSpec, Grid, LossSpec, RunSpec
from benchmarks.statistics import mean_interval
from benchmarks.store import Store

GRID = grids.mnist_short()
DIGITS = grids.digits()


def correct(run: RunSpec, attack: AttackSpec) -> int:
    """Of 1000 images: a number that differs for every entry and seed."""
    base = {"none": 980, "ce": 900, "hr": 910, "torch-ce": 940, "clipped-ce": 950, "clipped-hr": 960}[
        attack.loss or "none"
    ]
    base -= {None: 0, 1.6: 3, 3.0: 6}[run.loss.alpha] + (300 if run.dataset == "digits" else 0)
    return base - round(410 * attack.eps) + 5 * run.seed


def filled(grid: Grid, root: Path, *, zero: int = 0, seeds: int = 5) -> Store:
    store = Store(root)
    for run in grid.runs():
        if run.seed < seeds:
            for attack in grid.attacks:
                record = {"n": 1000, "correct": correct(run, attack)}
                store.save_record(run, attack, record | ({} if attack.loss is None else {"zero_gradient": zero}))
    return store


def column(trained: str, loss: str | None, eps: float, seeds: int = 5) -> str:
    """An entry by hand."""
    attack = AttackSpec("fgm", loss, eps) if loss else AttackSpec("none")
    runs = [run for run in GRID.runs() if run.loss.name == trained and run.seed < seeds]
    values = [correct(run, attack) / 1000 for run in runs]
    interval = mean_interval(values)
    assert interval.mean == pytest.approx(np.mean(values))
    return f"{np.mean(values):.3f} ± {interval.half_width:.3f}"


def test_table_1_has_the_papers_layout_and_numbers(tmp_path: Path) -> None:
    table = report.table_1(GRID, filled(GRID, tmp_path, zero=1), "mnist")
    assert table.header == (
        "eps",
        "",
        "CE trained, CE attack",
        "HR(1.6) trained, CE attack",
        "HR(1.6) trained, HR attack",
        "CE trained, HR attack",
    )
    pairs = (("ce", "ce"), ("hr", "ce"), ("hr", "hr"), ("ce", "hr"))
    clean = tuple(column(trained, None, 0) for trained, _ in pairs)

    def attacked(eps: float) -> tuple[tuple[str, ...], ...]:
        return (
            (f"{eps:g}", "sound", *(column(trained, loss, eps) for trained, loss in pairs)),
            ("", "torch's CE", column("ce", "torch-ce", eps), column("hr", "torch-ce", eps), "", ""),
            ("", "clipped", *(column(trained, f"clipped-{loss}", eps) for trained, loss in pairs)),
            ("", "zero grad.", *("0.1%",) * 4),
        )

    assert table.rows == (
        ("0", "sound", *clean),
        ("", "paper", "0.985", "0.986", "0.986", "0.985"),
        *attacked(0.1),
        ("", "paper", "0.907", "0.945", "0.977", "0.977"),
        *attacked(0.25),
        ("", "paper", "0.852", "0.861", "0.974", "0.972"),
    )
    assert "mnist, 1000 test images; mean and 95% t interval over 5 seeds" in table.notes[0]


def test_data_that_the_paper_does_not_have_get_no_number_of_its(tmp_path: Path) -> None:
    table = report.table_1(DIGITS, filled(DIGITS, tmp_path), "digits")
    assert not any(row[1] == "paper" for row in table.rows)


@pytest.mark.parametrize(("zero", "flagged"), [(0, False), (1, False), (2, True)])
def test_entries_with_more_than_a_thousandth_of_zero_gradients_are_marked(
    tmp_path: Path, zero: int, flagged: bool
) -> None:
    table = report.table_1(GRID, filled(GRID, tmp_path, zero=zero), "mnist")
    marked = [text.endswith("†") for row in table.rows if row[0] not in ("", "0") for text in row[2:]]
    assert all(marked) if flagged else not any(marked)
    assert any(note.startswith("†") for note in table.notes) == flagged
    assert not any("†" in text for text in table.rows[0]), "nothing is attacked at eps 0"


def test_missing_seeds_are_counted_and_none_is_said(tmp_path: Path) -> None:
    partial = report.table_1(GRID, filled(GRID, tmp_path / "some", seeds=3), "mnist")
    assert partial.rows[0][2] == f"{column('ce', None, 0, seeds=3)} (n = 3)"
    empty = report.table_1(GRID, Store(tmp_path / "none"), "mnist")
    assert all(text in ("not yet", "") for row in empty.rows if row[1] != "paper" for text in row[2:])


def test_one_seed_claims_no_interval(tmp_path: Path) -> None:
    grid = replace(GRID, seeds=(0,))
    table = report.table_1(grid, filled(grid, tmp_path), "mnist")
    assert table.rows[0][2] == "0.980"
    assert "one seed, so without an interval" in table.notes[0]


def test_the_files_hold_the_same_numbers_and_their_command(tmp_path: Path) -> None:
    store = filled(GRID, tmp_path)
    markdown, csv, records = report.write(GRID, store, command="make it")
    text = markdown.read_text()
    assert "Made by `make it`" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert column("hr", "torch-ce", 0.25) in text
    frame = pd.read_csv(csv, keep_default_na=False)
    assert len(frame) == 2 * 11
    entry = frame[(frame.trained == "HR(1.6)") & (frame.attack_loss == "hr") & (frame.eps == 0.25)].iloc[0]
    assert f"{float(entry.accuracy):.3f} ± {float(entry.half_width_95):.3f}" == column("hr", "hr", 0.25)
    assert (entry.seeds, entry.test_images) == (5, 1000)
    rows = pd.read_csv(records, keep_default_na=False)
    assert len(rows) == len(GRID.runs()) * len(GRID.attacks)
    seeds = rows[(rows.trained == "HR(1.6)") & (rows.attack_loss == "hr") & (rows.eps == 0.25)]
    assert f"{np.mean(seeds.correct / seeds.n):.3f}" == f"{float(entry.accuracy):.3f}"


def test_the_terminal_shows_every_entry_in_80_columns(tmp_path: Path) -> None:
    output = io.StringIO()
    table = report.table_1(GRID, filled(GRID, tmp_path, zero=500), "mnist")
    Console(file=output, width=80).print(table.rich())
    shown = output.getvalue()
    assert all(text in shown for row in table.rows for text in row)


def test_data_sets_and_alphas_are_kept_apart(tmp_path: Path) -> None:
    grid = replace(GRID, recipes=GRID.recipes + DIGITS.recipes, losses=(*GRID.losses, LossSpec("hr", 3.0)))
    store = filled(grid, tmp_path / "both")
    for part, dataset in ((GRID, "mnist"), (DIGITS, "digits")):
        alone = report.table_1(part, filled(part, tmp_path / dataset), dataset)
        assert report.table_1(replace(grid, losses=part.losses), store, dataset) == alone
    markdown, csv, _ = report.write(grid, store, command="make them")
    assert all(f"**Table 1 on {dataset}: test accuracy**" in markdown.read_text() for dataset in ("mnist", "digits"))
    frame = pd.read_csv(csv)
    assert frame.groupby(["dataset", "trained"]).size().to_dict() == {
        (dataset, trained): 11 for dataset in ("mnist", "digits") for trained in ("CE", "HR(1.6)", "HR(3)")
    }
    assert frame.accuracy.nunique() == len(frame), "no entry is another's"


def test_a_single_marked_entry_brings_its_note(tmp_path: Path) -> None:
    store, attack = filled(GRID, tmp_path), AttackSpec("fgm", "clipped-ce", 0.25)
    for run in GRID.runs():
        if run.loss.name == "ce":
            store.save_record(run, attack, {"n": 1000, "correct": 900, "zero_gradient": 10 * run.seed})
    table = report.table_1(GRID, store, "mnist")
    assert sum("†" in text for row in table.rows for text in row) == 1
    assert any(note.startswith("†") for note in table.notes)
    # 0, 10, 20, 30 and 40 of 1000 images each.
    assert [row for row in table.rows if row[1] == "zero grad."][-1][2:] == ("2.0%", "0.0%", "0.0%", "0.0%")
    shares = report.cell_frame(GRID, store).zero_gradient
    assert shares.max() == pytest.approx(0.02)


def test_every_record_stands_under_its_own_seed(tmp_path: Path) -> None:
    rows = report.record_frame(GRID, filled(GRID, tmp_path))
    seeds = {str(run.loss): {} for run in GRID.runs()}
    for run in GRID.runs():
        seeds[str(run.loss)][run.seed] = correct(run, AttackSpec("none"))
    for trained, expected in seeds.items():
        clean = rows[(rows.trained == trained) & (rows.attack == "none")]
        assert dict(zip(clean.seed, clean.correct, strict=True)) == expected


def test_attacks_that_a_grid_does_not_have_get_no_row(tmp_path: Path) -> None:
    grid = replace(GRID, attacks=(AttackSpec("none"), AttackSpec("fgm", "hr", 0.1)))
    table = report.table_1(grid, filled(grid, tmp_path), "mnist")
    assert [row[:2] for row in table.rows] == [("0", "sound"), ("", "paper"), ("0.1", "sound"), ("", "paper")]
    assert table.rows[2][2:] == ("", "", column("hr", "hr", 0.1), column("ce", "hr", 0.1))
