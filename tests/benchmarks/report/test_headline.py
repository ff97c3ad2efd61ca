"""Headline: the verdict follows its rules, quotes the numbers of the cells, and is missing without measurements."""

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from testing import made_up

from benchmarks import grids
from benchmarks.config import AttackSpec, Grid, RunSpec
from benchmarks.protocols import CE, HR
from benchmarks.report.headline import EXACT, PAPER, WORST, ZEROS, Headline, answer, headline, headline_table
from benchmarks.report.results import Results
from benchmarks.report.selection import Selection
from benchmarks.report.statistics import corrected, judge

STRONG = grids.strong_digits()
# Images that CE classifies correctly in the worst case, of 100,000. Synthetic results have two classes, so random
# guessing is right on half of the images.
WORST_OF_CE = {0.1: 70_000, 0.15: 60_000, 0.2: 45_000, 0.25: 40_000}
Gain = Callable[[RunSpec, AttackSpec], int]


def headline_of_gain(gain: Gain, grid: Grid = STRONG, **options: object) -> Headline | None:
    """Return the headline of results in which HR classifies more images correctly than CE by a given number."""

    def correct(run: RunSpec, attack: AttackSpec) -> int:
        base = WORST_OF_CE.get(attack.eps, 90_000) if attack.name == "worst-case" else 80_000
        return base + 100 * run.seed + (gain(run, attack) if run.loss == HR else 0)

    return headline_of(made_up.results(grid, correct, zero=zeros, **options))


def headline_of(results: Results) -> Headline | None:
    return headline(Selection(results, results.datasets[0]))


def zeros(run: RunSpec, attack: AttackSpec) -> int:
    clipped = attack.loss is not None and attack.loss.startswith("clipped")
    return 0 if not clipped else 48_300 if run.loss == HR else 400


def in_worst_case(by_eps: Callable[[float], int], spread: int = 5) -> Gain:
    """Return a gain by eps in the worst case, with a spread over the seeds, and a gain in the paper protocol."""

    def gain(run: RunSpec, attack: AttackSpec) -> int:
        if attack.name != "worst-case":
            return {0.1: 5_000, 0.25: 15_000}.get(attack.eps, 0) if attack.loss == "clipped-ce" else 0
        return by_eps(attack.eps) + spread * (run.seed - 2)

    return gain


@pytest.mark.parametrize(
    ("gain", "conclusion"),
    [
        (in_worst_case(lambda eps: 1000), "more"),
        (in_worst_case(lambda eps: 1000 if eps == 0.1 else 0), "more"),
        (in_worst_case(lambda eps: -1000), "less"),
        (in_worst_case(lambda eps: 1000 if eps == 0.1 else -1000 if eps == 0.15 else 0), "mixed"),
        (in_worst_case(lambda eps: 0), "not robust"),
        (in_worst_case(lambda eps: 3, spread=500), "not robust"),
        (in_worst_case(lambda eps: 12_000 if eps == 0.25 else 0, spread=12_000), "no gain"),
    ],
)
def test_the_conclusion_counts_only_intervals_that_exclude_0(gain: Gain, conclusion: str) -> None:
    assert answer(headline_of_gain(gain)).conclusion == conclusion


def test_the_conclusion_is_corrected_for_the_number_of_eps() -> None:
    # At eps 0.2 the mean is 3.5 standard errors from 0: more than Student's t for one comparison, 2.8, less than for
    # four, 4.3.
    gain = in_worst_case(lambda eps: 111 if eps == 0.2 else 0, spread=45)
    summary = headline_of_gain(gain)
    assert judge(summary.informative.hr.gain) == "supported"
    assert answer(summary).conclusion == "not robust"
    wide = corrected(summary.informative.hr.gain, 4)
    assert f"± {wide.half_width:.3f}" in answer(summary).evidence


def test_a_decided_difference_is_quoted_with_its_eps_and_with_the_difference_without_attack() -> None:
    def gain(run: RunSpec, attack: AttackSpec) -> int:
        worst = in_worst_case(lambda eps: 1000 if eps in (0.1, 0.2) else 0)
        return -3000 if attack.name == "none" else worst(run, attack)

    result = answer(headline_of_gain(gain))
    assert result.verdict.endswith("at eps 0.1, 0.2")
    assert "-0.030 ± 0.000" in result.evidence
    undecided = answer(headline_of_gain(lambda run, attack: -3000 if attack.name == "none" else 0))
    assert "-0.030" not in str(undecided)


def test_the_largest_gain_in_the_paper_protocol_is_limited_to_the_papers_eps_and_the_text_says_so() -> None:
    def larger_at(eps: float) -> Gain:
        paper = {0.1: 5_000, 0.25: 15_000, eps: 20_000}
        return lambda run, attack: paper.get(attack.eps, 0) if attack.loss == "clipped-ce" else 0

    among = "among the paper's eps"
    for eps, quoted, limited in ((0.15, "0.25", True), (0.1, "0.1", False)):
        summary = headline_of_gain(larger_at(eps))
        assert summary.largest_paper_gain.eps == quoted
        for text in (str(answer(summary)), "".join(headline_table(summary).notes)):
            assert (among in text) == limited


def test_one_seed_is_undecided_and_has_no_interval() -> None:
    result = answer(headline_of_gain(in_worst_case(lambda eps: 20_000), replace(STRONG, seeds=(0,))))
    assert result.conclusion == "undecided"
    assert "±" not in str(result)


@pytest.mark.parametrize("name", ["svhn", "alpha-digits", "mnist-short"])
def test_without_a_worst_case_robustness_is_not_measured(name: str) -> None:
    summary = headline_of_gain(in_worst_case(lambda eps: 20_000), grids.get(name))
    assert answer(summary).conclusion == "not measured"
    assert WORST not in {row[1] for row in headline_table(summary).rows}


def test_without_records_of_the_worst_case_of_hr_robustness_is_not_measured() -> None:
    gain = in_worst_case(lambda eps: 20_000)
    summary = headline_of_gain(gain, made=lambda run, attack: attack.name != "worst-case" or run.loss == CE)
    assert answer(summary).conclusion == "not measured"


def test_without_records_of_both_losses_there_is_no_verdict_and_no_table() -> None:
    gain = in_worst_case(lambda eps: 0)
    for summary in (
        headline_of_gain(gain, made=lambda run, attack: False),
        headline_of_gain(gain, made=lambda run, attack: run.loss == CE),
        headline_of_gain(gain, replace(STRONG, losses=(CE,))),
    ):
        assert answer(summary).conclusion == "nothing"
        assert headline_table(summary) is None


def test_text_and_table_have_the_numbers_of_the_cells() -> None:
    summary = headline_of_gain(in_worst_case(lambda eps: 3, spread=500))
    text, table = str(answer(summary)), headline_table(summary)
    # At eps 0.2 the worst case of CE, 45,000, is nearest to a half; at 0.25 HR gains most in the paper protocol.
    worst = next(a for a in STRONG.attacks if (a.name, a.eps) == ("worst-case", 0.2))
    cells = [str(summary.selection.cell(loss, worst).accuracy) for loss in (CE, HR)]
    gain = summary.selection.cell(HR, worst).gain
    difference = f"{gain.mean:+.3f} ± {gain.half_width:.3f}"
    for number in (*cells, difference, "5 seeds", "95%", "all 4 eps", "+0.150 ± 0.000", "eps 0.25", "48.3%", "0.4%"):
        assert number in text
    rows = dict(zip(named(table.rows), table.rows, strict=True))
    names = (PAPER, ZEROS, EXACT, WORST)
    assert list(rows) == [("0", "no attack"), *((eps, name) for eps in ("0.2", "0.25") for name in names)]
    assert rows["0.2", WORST][2:] == (*cells, difference)
    assert rows["0.25", ZEROS][2:] == ("0.4%", "48.3%", "")
    assert rows["0.25", PAPER][4] == "+0.150 ± 0.000"


def named(rows: tuple[tuple[str, ...], ...]) -> list[tuple[str, str]]:
    """Return the first two entries of every row; an empty first entry is replaced by that of the row above."""
    eps = ""
    return [(eps := row[0] or eps, row[1]) for row in rows]


def test_all_attacks_of_an_eps_use_the_images_of_the_worst_case_if_the_grid_has_them() -> None:
    def correct(run: RunSpec, attack: AttackSpec) -> int:
        if attack.images == 0:
            return 10_000 + run.seed  # the accuracy on all images
        return (50_000 if attack.eps == 0.2 else 20_000) + run.seed

    table = headline_table(headline_of(made_up.results(grids.strong_mnist(), correct)))
    rows = dict(zip(named(table.rows), table.rows, strict=True))
    assert [rows["0.2", name][2].split()[0] for name in (PAPER, EXACT, WORST)] == ["0.500"] * 3


def test_eps_in_units_of_the_input_is_shown_with_its_units() -> None:
    table = headline_table(headline_of_gain(in_worst_case(lambda eps: 0), grids.strong_svhn_grey()))
    assert "0.25/255" in {row[0] for row in table.rows}


def test_comparisons_with_defences_are_counted() -> None:
    def correct(run: RunSpec, attack: AttackSpec) -> int:
        hardening = run.loss.hardening
        above = run.loss.name == "hr" and hardening is not None and hardening.name == "noise"
        return 50_000 + 100 * run.seed + above * (1000 + run.seed)

    text = str(answer(headline_of(made_up.results(grids.hardening_digits(), correct))))
    # At two eps: three alphas with noise, with Madry and with TRADES at one beta, and one alpha at two more betas.
    assert re.search(r"in 6 of 22 comparisons\D*0\D*16\D", text)
