"""Files of a report: they have the numbers of the tables and the command."""

import json
import platform
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from testing import made_up

from benchmarks import grids
from benchmarks.config import AttackSpec
from benchmarks.execution import Job
from benchmarks.execution._jobs import execute
from benchmarks.report import export
from benchmarks.report.claims import claims
from benchmarks.report.headline import answer, headline, headline_table
from benchmarks.report.provenance import provenance
from benchmarks.report.results import Results
from benchmarks.report.selection import Selection
from benchmarks.store import Store, StoreError

GRID = grids.mnist_short()
TESTED = [attack for attack in GRID.attacks if attack.split == "test"]
DIGITS = grids.digits()
ALPHA = grids.alpha_digits()


def write_tables(results: Results, folder: Path, *, command: str = "make it") -> list[Path]:
    return [folder / name for name in export.write_tables(export.Report(results), folder, command=command)]


def files(folder: Path, *names: str) -> list[Path]:
    endings = ("md", "tex", "csv")
    whole = [folder / name for name in ("headline.md", "records.csv", "results.csv", "results.json")]
    return sorted([*whole, *(folder / f"{name}.{ending}" for name in names for ending in endings)])


def test_table_1_has_the_same_numbers_in_every_file(tmp_path: Path) -> None:
    written = write_tables(made_up.results(GRID, zero=lambda run, attack: 50), tmp_path / "new")
    assert sorted(written) == files(tmp_path / "new", "table_1", "confusion", "claims") == sorted(tmp_path.rglob("*.*"))
    text = (tmp_path / "new/table_1.md").read_text()
    assert text.endswith("\nMade by `make it`\n")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    records = pd.read_csv(tmp_path / "new/records.csv", keep_default_na=False)
    assert len(records) == len(GRID.runs()) * len(GRID.attacks)
    cells = pd.read_csv(tmp_path / "new/table_1.csv", keep_default_na=False)
    assert len(cells) == 2 * len(TESTED)
    latex = (tmp_path / "new/table_1.tex").read_text()
    for cell in cells.itertuples():
        same = (records.trained == cell.trained) & (records.attack_loss == cell.attack_loss) & (records.eps == cell.eps)
        same &= records.split == "test"
        seeds = records[same]
        assert sorted(seeds.seed) == [0, 1, 2, 3, 4]
        share = seeds.correct / seeds.n
        half_width = scipy.stats.t.ppf(0.975, 4) * scipy.stats.sem(share)
        assert (cell.accuracy, cell.half_width_95) == pytest.approx((share.mean(), half_width), rel=1e-5)
        assert (cell.seeds, cell.n) == (5, made_up.N)
        assert f"| {share.mean():.3f} ± {half_width:.3f}" in text
        assert rf"& {share.mean():.3f} $\pm$ {half_width:.3f}" in latex
        assert cell.zero_gradient == ("" if cell.attack == "none" else "0.0005")


def test_every_record_has_its_seed_in_the_file(tmp_path: Path) -> None:
    write_tables(made_up.results(GRID), tmp_path)
    rows = pd.read_csv(tmp_path / "records.csv", keep_default_na=False)
    found = rows.set_index(["trained", "seed", "attack_loss", "eps", "split"]).correct
    for run in GRID.runs():
        for attack in GRID.attacks:
            place = str(run.loss), run.seed, attack.loss or "", attack.eps, attack.split
            assert found[place] == made_up.distinct(GRID, run, attack)


def test_data_sets_follow_one_another_in_a_file(tmp_path: Path) -> None:
    grid = replace(GRID, recipes=GRID.recipes + DIGITS.recipes)
    write_tables(made_up.results(grid), tmp_path, command="make them")
    for name, title in (("table_1", "Table 1 on {}: test accuracy"), ("confusion", "Confusion on {}: the Frobenius")):
        text, latex = ((tmp_path / f"{name}.{ending}").read_text() for ending in ("md", "tex"))
        places = [text.index(title.format(dataset)) for dataset in ("mnist", "digits")]
        assert places == sorted(places)
        assert text.count("Made by `make them`") == 1
        assert latex.startswith("% Made by `make them`.")
        assert latex.count(r"\begin{table}") == latex.count(r"\end{table}") == 2
    cells = pd.read_csv(tmp_path / "table_1.csv")
    assert cells.groupby(["dataset", "trained"]).size().to_dict() == {
        (dataset, trained): len(TESTED) for dataset in ("mnist", "digits") for trained in ("CE", "HR(1.6)")
    }
    assert cells.accuracy.nunique() == len(cells), "no entry is another's"
    assert set(pd.read_csv(tmp_path / "claims.csv").dataset) == {"mnist", "digits"}


def test_the_file_of_norms_has_a_row_per_seed(tmp_path: Path) -> None:
    def uncertainty(run: object, attack: object) -> float:
        return 0.01 * (1 + run.seed) + attack.eps + (0.3 if attack.units == "data" else 0)

    write_tables(made_up.results(GRID, uncertainty=uncertainty), tmp_path)
    norms = pd.read_csv(tmp_path / "confusion.csv")
    assert len(norms) == 2 * 3 * 5
    expected = 2 * (0.01 * (1 + norms.seed) + norms.eps + np.where(norms.units == "data", 0.3, 0))
    assert norms.value.to_numpy() == pytest.approx(expected.to_numpy())
    assert set(norms.eps) == {0, 0.1}


def test_the_chosen_alpha_is_marked_in_every_entry_of_its_eps(tmp_path: Path) -> None:
    best = {0.0: 2.5, 0.1: 1.0, 0.25: 1.6}

    def correct(run: object, attack: object) -> int:
        return 60_000 if run.loss.alpha == best[attack.eps] and attack.split == "validation" else 50_000

    written = write_tables(made_up.results(ALPHA, correct), tmp_path)
    assert sorted(written) == files(tmp_path, "alpha", "claims", "confusion", "table_1")
    entries = pd.read_csv(tmp_path / "alpha.csv")
    assert len(entries) == 10 * 10
    for units, by_eps in (("range", best), ("data", {0.1: 1.0, 0.25: 1.6})):
        chosen = entries[entries.chosen & (entries.units == units)]
        assert sorted(zip(chosen.eps, chosen.trained, chosen.split, strict=True)) == sorted(
            (eps, f"HR({alpha:g})", split) for eps, alpha in by_eps.items() for split in ("validation", "test")
        )


def test_claims_are_written_with_their_effects_and_verdicts(tmp_path: Path) -> None:
    results = made_up.results(GRID)
    write_tables(results, tmp_path)
    written = pd.read_csv(tmp_path / "claims.csv")
    found = claims(results)
    columns = ["claim", "where", "verdict"]
    assert written[columns].to_numpy().tolist() == found[columns].to_numpy().tolist()
    assert written.effect.to_numpy() == pytest.approx(found.effect.to_numpy(), rel=1e-5, nan_ok=True)
    assert re.search(r"^\| C1 \| .* \| supported \|  \|$", (tmp_path / "claims.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", ["paper", "alpha-digits", "strong-svhn-grey", "hardening-digits"])
def test_a_single_record_is_enough_for_a_report(tmp_path: Path, name: str) -> None:
    grid = grids.get(name)
    first = (grid.runs()[0], grid.attacks[0])
    results = made_up.results(grid, made=lambda run, attack: (run, attack) == first, seconds=lambda run: 0)
    written = write_tables(results, tmp_path)
    assert len(pd.read_csv(tmp_path / "records.csv")) == 1
    assert all(path.read_text() for path in written)


def test_writing_a_report_again_gives_the_same_bytes(tmp_path: Path) -> None:
    first = [path.read_bytes() for path in write_tables(made_up.results(GRID), tmp_path)]
    again = [path.read_bytes() for path in write_tables(made_up.results(GRID), tmp_path)]
    assert first == again


def test_a_folder_that_cannot_be_written_is_named_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(StoreError, match="taken"):
        write_tables(made_up.results(GRID), tmp_path / "taken")


def test_the_page_counts_missing_evaluations_and_names_damaged_files(tmp_path: Path) -> None:
    results = made_up.results(DIGITS, made=lambda run, attack: run.seed < 4)
    results = replace(results, problems=("x.json is not valid JSON",))
    page = export.write(results, tmp_path, command="make it", facts={"Made": "on a day"})
    assert page == tmp_path / "index.html"
    shown = page.read_text()
    assert all(text in shown for text in ("112 of 140 evaluations", "x.json is not valid JSON", "on a day"))
    assert json.loads((tmp_path / "summary.json").read_bytes())["made"] == "on a day"
    figures = {path.stem for path in tmp_path.glob("*.svg")}
    assert figures == {path.stem for path in tmp_path.glob("*.png")}
    assert shown.count("<figure>") == len(figures) > 0


def test_provenance_has_date_versions_and_machine(tmp_path: Path) -> None:
    store, (dataset, recipe) = Store(tmp_path), DIGITS.recipes[0]
    recipe = replace(recipe, epochs=1, curve_every=0, curve_attacks=())
    grid = replace(DIGITS, recipes=((dataset, recipe),), seeds=(0,), attacks=DIGITS.attacks[:1])
    assert provenance(grid, store) == {}
    execute(Job(grid.runs()[0], grid.attacks, store.root, store.root))
    facts = provenance(grid, store)
    assert facts["Made"].startswith(str(datetime.now(UTC).year))
    assert torch.__version__.split("+")[0] in facts["Versions"]
    assert platform.node() in facts["Machine"]


def test_a_users_own_attacks_have_a_table(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def noise(classifier, eps=0.1): ...")
    name = f"{tmp_path}/mine.py:noise"
    grid = replace(DIGITS, attacks=(*DIGITS.attacks, AttackSpec(name, eps=0.2), AttackSpec(name, "ce", units="data")))
    (table,) = made_up.tables(made_up.results(grid), "own_attacks")
    names = [("0", "no attack"), ("", "noise with ce"), ("0.2", "noise")]
    assert [row[:3] for row in table.rows] == [(*pair, str(made_up.N)) for pair in names]
    shares = [made_up.distinct(grid, run, grid.attacks[-2]) / made_up.N for run in grid.runs() if run.loss.name == "hr"]
    assert table.rows[-1][4].startswith(f"{np.mean(shares):.3f} ±")


def test_the_headline_file_has_the_answer_and_the_numbers_of_each_data_set(tmp_path: Path) -> None:
    results = made_up.results(grids.paper_grid())
    write_tables(results, tmp_path)
    text = (tmp_path / "headline.md").read_text()
    for dataset in results.datasets:
        found = headline(Selection(results, dataset))
        assert f"{dataset}: {answer(found)}" in text
        assert headline_table(found).markdown() in text
    assert text.endswith("\nMade by `make it`\n")
    nothing = tmp_path / "nothing"
    write_tables(made_up.results(GRID, made=lambda run, attack: False), nothing)
    assert not (nothing / "headline.md").exists()
