"""Tables: entries agree with values computed by hand from the records."""

import io
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
from rich.console import Console
from testing import made_up

from benchmarks import grids, protocols
from benchmarks.config import AttackSpec, Grid, Hardening, LossSpec, RunSpec
from benchmarks.protocols import QUERIES_PER_STEP
from benchmarks.report.export import Report
from benchmarks.report.markup import Table
from benchmarks.report.results import Results, attacks
from benchmarks.report.selection import Selection, confusion_attacks

GRID = grids.mnist_short()
DIGITS = grids.digits()
SVHN = grids.svhn_short()
ALPHA = grids.alpha_digits()
ALPHAS = replace(DIGITS, losses=(*DIGITS.losses, LossSpec("hr", 3.0)))
CE, HR = GRID.losses
NONE = AttackSpec("none")
# The tables of each kind of grid.
BOTH = {"table_1", "confusion", "claims"}
TABLES = {
    "paper": BOTH,
    "digits": BOTH,
    "alphas": BOTH,
    "alpha-digits": BOTH | {"alpha"},
    "strong-svhn-grey": BOTH | {"strong", "diagnostics"},
    "hardening-digits": {"hardening", "claims"},  # it attacks a part of the test images only
}


def only(results: Results, name: str) -> Table:
    """Return the table of a grid with one data set."""
    (table,) = made_up.tables(results, name)
    return table


def interval(values: list[float]) -> str:
    """Return mean and half-width by scipy."""
    low, high = scipy.stats.t.interval(0.95, len(values) - 1, np.mean(values), scipy.stats.sem(values))
    return f"{np.mean(values):.3f} ± {(high - low) / 2:.3f}"


def entry(grid: Grid, trained: LossSpec, attack: AttackSpec, *, dataset: str = "mnist", seeds: int = 5) -> str:
    """Return an accuracy computed by hand."""
    runs = [run for run in grid.runs() if (run.dataset, run.loss) == (dataset, trained) and run.seed < seeds]
    return interval([made_up.distinct(grid, run, attack) / made_up.N for run in runs])


def under(protocol: str, loss: str, eps: float) -> AttackSpec:
    """Return an attack of Table 1."""
    return {
        "exact": AttackSpec("fgm", loss, eps),
        "torch's CE": AttackSpec("fgm", "torch-ce", eps),
        "paper": AttackSpec("fgm", f"clipped-{loss}", eps, units="data"),
    }[protocol]


# The columns of the paper's table.
PAIRS = ((CE, "ce"), (HR, "ce"), (HR, "hr"), (CE, "hr"))


def test_table_1_has_the_layout_and_the_numbers_of_the_paper() -> None:
    table = only(made_up.results(GRID, zero=lambda run, attack: 100), "table_1")
    assert table.title == "Table 1 on mnist: test accuracy"
    assert table.header == (
        "eps",
        "protocol",
        "CE trained, CE attack",
        "HR(1.6) trained, CE attack",
        "HR(1.6) trained, HR attack",
        "CE trained, HR attack",
    )

    def attacked(eps: float) -> tuple[tuple[str, ...], ...]:
        def row(protocol: str) -> tuple[str, ...]:
            return tuple(f"{entry(GRID, trained, under(protocol, loss, eps))} (0.1%)" for trained, loss in PAIRS)

        return (
            (f"{eps:g}", "exact", *row("exact")),
            ("", "torch's CE", *row("torch's CE")[:2], "", ""),
            ("", "paper", *row("paper")),
        )

    assert table.rows == (
        ("0", "no attack", *(entry(GRID, trained, NONE) for trained, _ in PAIRS)),
        ("", "printed", "0.985", "0.986", "0.986", "0.985"),
        *attacked(0.1),
        ("", "printed", "0.907", "0.945", "0.977", "0.977"),
        *attacked(0.25),
        ("", "printed", "0.852", "0.861", "0.974", "0.972"),
    )
    under_attack = [
        text for row in table.rows if row[1] in ("exact", "torch's CE", "paper") for text in row[2:] if text
    ]
    assert len(set(under_attack)) == len(under_attack) == 20, "no entry is another's"
    assert all(text in table.notes[0] for text in ("mnist", "100000 test images", "95%", "5 seeds"))


def test_a_data_set_that_is_not_in_the_paper_has_no_printed_numbers() -> None:
    table = only(made_up.results(DIGITS), "table_1")
    assert {row[1] for row in table.rows} == {"no attack", "exact", "torch's CE", "paper"}
    assert not any(note.startswith("printed") for note in table.notes)


@pytest.mark.parametrize(("grid", "units"), [(SVHN, True), (GRID, False)])
def test_the_note_gives_the_units_of_eps_if_they_are_not_the_pixel_range(grid: Grid, units: bool) -> None:
    (note,) = [note for note in only(made_up.results(grid), "table_1").notes if note.startswith("paper:")]
    assert ("0.1/255" in note) == units


@pytest.mark.parametrize(("zero", "share", "flagged"), [(0, "0.0%", 0), (100, "0.1%", 0), (101, "0.1%", 1)])
def test_entries_with_more_than_one_zero_gradient_in_a_thousand_are_marked(zero: int, share: str, flagged: int) -> None:
    table = only(made_up.results(GRID, zero=lambda run, attack: zero), "table_1")
    texts = [text for row in table.rows if row[1] in ("exact", "torch's CE", "paper") for text in row[2:] if text]
    assert {text.split()[-1] for text in texts} == {f"({share})"}
    assert {text.split()[2].count("†") for text in texts} == {flagged}
    assert sum(note.startswith("†") for note in table.notes) == flagged
    assert not any(character in text for text in table.rows[0] for character in "†%"), "nothing is attacked at eps 0"


def test_a_single_marked_entry_has_its_note_and_its_share() -> None:
    marked = (HR, AttackSpec("fgm", "clipped-hr", 0.25, units="data"))
    # 0, 1000, ..., 4000 of 100,000 images each: 2% over the seeds.
    zero = made_up.results(GRID, zero=lambda run, attack: 1000 * run.seed * ((run.loss, attack) == marked))
    table = only(zero, "table_1")
    assert [text for row in table.rows for text in row if "†" in text] == [f"{entry(GRID, *marked)}† (2.0%)"]
    assert table.rows[-2][4].endswith("† (2.0%)")
    assert any(note.startswith("†") for note in table.notes)


def test_missing_seeds_are_counted_and_entries_without_seeds_are_marked() -> None:
    some = made_up.results(GRID, made=lambda run, attack: run.seed < 3)
    partial = only(some, "table_1")
    assert partial.rows[0][2] == f"{entry(GRID, CE, NONE, seeds=3)} (n = 3)"
    assert partial.rows[2][2] == f"{entry(GRID, CE, under('exact', 'ce', 0.1), seeds=3)} (0.0%, n = 3)"
    assert only(some, "confusion").rows[0][1] == "0.200 ± 0.000 (n = 3)"
    empty = only(made_up.results(GRID, made=lambda run, attack: False), "table_1")
    texts = [text for row in empty.rows if row[1] != "printed" for text in row[2:]]
    assert set(texts) == {"not yet", ""}
    assert texts.count("not yet") == 24


def test_one_seed_has_no_interval() -> None:
    grid = replace(GRID, seeds=(0,))
    results = made_up.results(grid)
    for made in (only(results, "table_1"), only(results, "confusion")):
        assert not any("±" in text or "n =" in text for row in made.rows for text in row)
        assert "One seed" in made.notes[0]
    assert only(results, "table_1").rows[0][2] == "0.200"


def test_data_sets_and_alphas_have_separate_entries() -> None:
    losses = (*GRID.losses, LossSpec("hr", 3.0))
    grid = replace(GRID, recipes=GRID.recipes + DIGITS.recipes, losses=losses)
    made = made_up.tables(made_up.results(grid), "table_1")
    assert [table.title for table in made] == [
        f"Table 1 on {dataset}: test accuracy" for dataset in ("mnist", "digits")
    ]
    pairs = [*((loss, "ce") for loss in losses), *((loss, "hr") for loss in reversed(losses))]
    for table, dataset in zip(made, ("mnist", "digits"), strict=True):
        assert table.header[2:] == tuple(f"{loss} trained, {attack.upper()} attack" for loss, attack in pairs)
        row = next(row for row in table.rows if row[:2] == ("0.1", "exact"))
        attacked = [(loss, under("exact", attack, 0.1)) for loss, attack in pairs]
        assert row[2:] == tuple(f"{entry(grid, *pair, dataset=dataset)} (0.0%)" for pair in attacked)
    printed = ("printed", "0.985", "0.986", "", "", "0.986", "0.985")
    assert made[0].rows[1][1:] == printed, "the paper has no alpha of 3"


@pytest.mark.parametrize(
    ("name", "first", "protocols_with"),
    [
        ("strong-mnist", {"range": 1000}, {"exact": "range"}),
        ("strong-svhn-grey", {"range": 1000, "data": 300}, {"exact": "range", "paper": "data"}),
    ],
)
def test_table_1_shows_the_worst_case_in_the_row_of_the_protocol_with_its_units(
    name: str, first: dict[str, int], protocols_with: dict[str, str]
) -> None:
    grid = grids.get(name)
    dataset, _ = grid.recipes[0]
    table = only(made_up.results(grid), "table_1")
    pairs = [f"{loss} trained, {attack.upper()} attack" for loss, attack in PAIRS]
    assert table.header[2:] == (*pairs, "CE trained, worst case", "HR(1.6) trained, worst case")
    eps = ""
    seen = []
    for row in table.rows:
        eps = row[0] or eps
        units = protocols_with.get(row[1])
        place = {"units": units or "range", "images": first[units or "range"]}
        worst = AttackSpec("worst-case", eps=float(eps) or 1.0, steps=50, **place)
        by_hand = [entry(grid, loss, worst, dataset=dataset) for loss in (CE, HR)] if units else ["", ""]
        assert list(row[6:]) == by_hand
        seen += [(eps, row[1])] if units else []
    assert seen == [(eps, label) for eps in ("0.1", "0.25") for label in protocols_with]
    (note,) = (note for note in table.notes if note.startswith("Worst case"))
    assert ", ".join(f"the first {n}" for n in sorted(first.values())) in note


def test_the_notes_have_the_numbers_of_the_recipe_and_of_the_worst_case() -> None:
    grid = grids.strong_cifar10()
    (_, recipe), (worst, *_) = grid.recipes[0], attacks(grid.attacks, "worst case")
    numbers = {recipe.epochs, recipe.batch_size, recipe.lr, recipe.l2, recipe.validation_size}
    numbers |= {number for start, factor in recipe.lr_drops for number in (start + 1, factor)}
    budget = {worst.steps, worst.steps * QUERIES_PER_STEP}
    for beginning, expected in (("Training", numbers), ("Worst case", budget)):
        (note,) = (note for note in only(made_up.results(grid), "strong").notes if note.startswith(beginning))
        assert {f"{number:g}" for number in expected} <= set(re.findall(r"\d[\d.e-]*\d|\d", note)), note


def test_a_worst_case_without_records_is_shown_as_missing() -> None:
    grid = grids.strong_digits()
    table = only(made_up.results(grid, made=lambda run, attack: attack.name != "worst-case"), "table_1")
    exact = next(row for row in table.rows if row[:2] == ("0.25", "exact"))
    assert exact[6:] == ("not yet", "not yet")
    assert "not yet" not in "".join(exact[:6])


def test_attacks_that_a_grid_does_not_have_give_no_row_and_no_column() -> None:
    grid = replace(GRID, attacks=(NONE, AttackSpec("fgm", "hr", 0.1)))
    table = only(made_up.results(grid), "table_1")
    assert table.header[2:] == ("HR(1.6) trained, HR attack", "CE trained, HR attack")
    assert [row[:2] for row in table.rows] == [("0", "no attack"), ("", "printed"), ("0.1", "exact"), ("", "printed")]
    assert table.rows[2][2:] == tuple(f"{entry(grid, loss, AttackSpec('fgm', 'hr', 0.1))} (0.0%)" for loss in (HR, CE))
    assert not any(note.startswith(("paper", "torch's CE")) for note in table.notes)


@pytest.mark.parametrize("name", ["paper", "alpha-digits"])
def test_a_terminal_of_80_columns_shows_every_entry(name: str) -> None:
    made = Report(made_up.results(grids.get(name), zero=lambda run, attack: 50_000)).tables
    for table in [table for kind in ("table_1", "alpha", "claims") for table in made.get(kind, [])]:
        if len(table.header) > 6:
            continue  # several alphas under two attacks
        output = io.StringIO()
        Console(file=output, width=80).print(table.rich())
        words = [word for row in table.rows if row[1] for text in row for word in text.split(" (")]
        assert all(word in output.getvalue() for word in words)


@pytest.mark.parametrize("made", [True, False], ids=["full", "empty"])
@pytest.mark.parametrize("name", TABLES)
def test_every_grid_has_its_tables_with_and_without_records(name: str, made: bool) -> None:
    grid = ALPHAS if name == "alphas" else grids.get(name)
    results = made_up.results(grid, made=lambda run, attack: made)
    found = Report(results).tables
    assert set(found) == TABLES[name]
    for table in [table for kind in TABLES[name] - {"claims"} for table in found[kind]]:
        assert {len(row) for row in table.rows} == {len(table.header)}
        assert any("not yet" in text for row in table.rows for text in row) != made
    for kind in TABLES[name] - {"claims"}:  # the choice of alpha has one for each protocol
        assert len(found[kind]) == len(results.datasets) * (2 if kind == "alpha" else 1)


def uncertain(run: RunSpec, attack: AttackSpec) -> float:
    """Return half of the norm: a base for each attack, plus a spread over the seeds for each loss."""
    base = {None: 0.0, "ce": 0.1, "clipped-ce": 0.15}.get(attack.loss, 0.9) + attack.eps
    return base + (0.05 if run.loss == CE else 0.02) * (1 + run.seed)


def test_confusion_norms_and_their_paired_differences() -> None:
    table = only(made_up.results(GRID, uncertainty=uncertain), "confusion")
    assert table.header == ("trained", "no attack", "eps 0.1, exact", "eps 0.1, paper", "printed")
    seeds = np.arange(1, 6)
    # The norm is twice the uncertainty.
    bases = np.array([0.0, 0.4, 0.5])
    assert table.rows == (
        ("CE", *(interval(list(base + 0.1 * seeds)) for base in bases), "0.40"),
        ("HR(1.6)", *(interval(list(base + 0.04 * seeds)) for base in bases), "0.23"),
        ("CE - HR(1.6)", *[interval(list(0.06 * seeds))] * 3, ""),
    )
    # Mean 0.18; the standard deviation of 0.06 (1, ..., 5) is 0.06 sqrt(2.5); Student's t is 2.776.
    assert table.rows[2][1] == f"0.180 ± {2.7764451 * 0.06 * math.sqrt(2.5 / 5):.3f}"


def test_confusion_has_only_the_attacks_of_the_grid() -> None:
    assert [*confusion_attacks(DIGITS)] == ["no attack", "exact", "paper"]
    assert {attack.eps for attack in confusion_attacks(DIGITS).values()} == {0.0, 0.1}
    later = replace(GRID, attacks=(under("exact", "ce", 0.25), under("paper", "ce", 0.3)))
    table = only(made_up.results(later), "confusion")
    assert table.header == ("trained", "eps 0.25, exact"), "nothing is printed of another eps"
    assert made_up.tables(made_up.results(replace(GRID, attacks=(under("exact", "hr", 0.1),))), "confusion") == []
    alone = replace(GRID, losses=(HR,))
    assert [row[0] for row in only(made_up.results(alone), "confusion").rows] == ["HR(1.6)"]


def chosen_by(accuracy: dict[tuple[float | None, float], float], grid: Grid = ALPHA) -> Results:
    """Results whose accuracy on validation is given by (alpha, eps), and on test is 0.1 less."""

    def correct(run: RunSpec, attack: AttackSpec) -> int:
        share = accuracy.get((run.loss.alpha, attack.eps), 0.5) - (0.1 if attack.split == "test" else 0)
        return round(share * made_up.N) + 100 * run.seed

    return made_up.results(grid, correct)


def test_the_alpha_chosen_on_validation_is_marked_at_every_eps() -> None:
    # CE is best at eps 0.25, but is no alpha.
    results = chosen_by({(2.0, 0.0): 0.9, (1.0, 0.1): 0.8, (4.0, 0.25): 0.6, (None, 0.25): 0.7})
    assert chosen(results, 0, 0.1, 0.25) == [2.0, 1.0, 4.0]
    table, paper = made_up.tables(results, "alpha")
    assert [row[0] for row in paper.rows if row[0]] == ["0.1", "0.25"]
    assert table.header == ("eps", "trained", "validation", "test")
    assert len(table.rows) == 3 * 10
    eps = ""
    marked = []
    for row in table.rows:
        eps = row[0] or eps
        assert "‡" not in row[3]
        if "‡" in row[2]:
            marked.append((eps, *row[1:]))
    spread = f"{2.7764451 * 0.001 * math.sqrt(2.5 / 5):.3f}"
    assert marked == [
        ("0", "HR(2)", f"0.902 ± {spread}‡", f"0.802 ± {spread}"),
        ("0.1", "HR(1)", f"0.802 ± {spread} (0.0%)‡", f"0.702 ± {spread} (0.0%)"),
        ("0.25", "HR(4)", f"0.602 ± {spread} (0.0%)‡", f"0.502 ± {spread} (0.0%)"),
    ]


def chosen(results: Results, *eps: float) -> list[float | None]:
    losses = [Selection(results, "digits").chosen_alpha(each) for each in eps]
    return [loss and loss.alpha for loss in losses]


def test_the_smaller_of_equally_accurate_alphas_is_chosen_and_only_common_seeds_count() -> None:
    backwards = replace(ALPHA, losses=tuple(reversed(ALPHA.losses)))
    assert chosen(chosen_by({}, backwards), 0.1) == [1.0]
    full = chosen_by({(2.0, 0.0): 0.6})
    # Alpha 4 would be far better, but only on a seed that is missing for the others.
    records = {
        key: made_up.made_record(made_up.N, made_up.N) if key[0].loss.alpha == 4 and key[0].seed == 4 else record
        for key, record in full.records.items()
        if key[0].seed < 2 or key[0].loss.alpha == 4
    }
    assert chosen(replace(full, records=records), 0.0) == [2.0]
    none = replace(full, records={key: record for key, record in records.items() if key[0].loss.alpha != 3})
    assert chosen(none, 0.0) == [None]
    assert not any("‡" in text for row in made_up.tables(none, "alpha")[0].rows for text in row)


def test_alpha_is_chosen_among_losses_without_other_options() -> None:
    noisy = LossSpec("hr", 2.0, hardening=Hardening("noise", 0.1))
    more = replace(ALPHA, losses=(CE, LossSpec("hr", 1.2), noisy, HR))

    def correct(run: RunSpec, attack: AttackSpec) -> int:
        return {noisy: 90_000, HR: 80_000}.get(run.loss, 10_000)

    assert chosen(made_up.results(more, correct), 0.1) == [1.6]
    # A loss with a defence and without records does not prevent the choice of alpha.
    assert chosen(made_up.results(more, correct, made=lambda run, attack: run.loss != noisy), 0.1) == [1.6]


def test_reports_on_gradient_masking_are_not_shown_in_table_1() -> None:
    alone = replace(
        DIGITS, attacks=(under("exact", "hr", 0.1), *protocols.diagnostics(0.1), *protocols.diagnostics(0.3))
    )
    table = only(made_up.results(alone), "table_1")
    assert table.header[2:] == ("HR(1.6) trained, HR attack", "CE trained, HR attack")
    assert [row[:2] for row in table.rows] == [("0.1", "exact")]


@pytest.mark.parametrize(
    ("grid", "has"),
    [
        (replace(ALPHA, losses=(CE, HR)), False),
        (
            replace(ALPHA, losses=(CE, LossSpec("hr", 1.2), LossSpec("hr", 2.0, hardening=Hardening("noise", 0.1)))),
            False,
        ),
        (replace(ALPHA, attacks=(*ALPHA.attacks, under("exact", "hr", 0.1))), True),
    ],
    ids=["one alpha", "one plain alpha", "more attacks"],
)
def test_a_grid_with_one_alpha_or_no_validation_has_no_table_of_alphas(grid: Grid, has: bool) -> None:
    assert bool(made_up.tables(made_up.results(grid), "alpha")) == has
