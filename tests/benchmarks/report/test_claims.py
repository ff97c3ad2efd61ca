"""Claims: effects agree with values computed by hand, and verdicts follow from the intervals."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from testing import made_up

from benchmarks import grids
from benchmarks.config import AttackSpec, Grid, Hardening, LossSpec, RunSpec
from benchmarks.report.claims import CLAIMS, claims, claims_table, overall

GRID = grids.mnist_short()
CE, HR = GRID.losses
ALPHA = grids.alpha_digits()
# The side of 0 on which an effect is, and the verdict on the claim that it is above 0.
SIDES = pytest.mark.parametrize(("side", "verdict"), [(1, "supported"), (-1, "contradicted")])


def named(found: pd.DataFrame, *names: str) -> list[Any]:
    return [*found[found.claim.isin(names)].itertuples()]


def on(dataset: str) -> Grid:
    """Return the grid of MNIST for a data set with another name."""
    return replace(GRID, recipes=((dataset, GRID.recipes[0][1]),))


def accuracies(share: Callable[[RunSpec, AttackSpec], float]) -> Callable[[RunSpec, AttackSpec], int]:
    """Return accuracies as numbers of images, with an effect of the seed that is common to all entries."""
    return lambda run, attack: round(made_up.N * (share(run, attack) + 0.05 * run.seed))


# Not the same for every seed, so that there is an interval: mean 0.02, sample variance 2.5e-6.
def noise(run: RunSpec) -> float:
    return 0.018 + 0.001 * run.seed


def test_effects_of_c1_and_c2_agree_with_values_computed_by_hand() -> None:
    def share(run: RunSpec, attack: AttackSpec) -> float:
        losses = [None, "ce", "hr", "clipped-ce", "clipped-hr", "torch-ce"]
        more = 0.01 * (1 + losses.index(attack.loss)) + attack.eps / 10 + 0.001 * run.seed**2
        return 0.3 + (more if run.loss == HR else 0)

    found = claims(made_up.results(GRID, accuracies(share)))
    wheres = ["HR(1.6), no attack"]
    expected = [0.01]
    for protocol, first in (("exact", 2), ("paper", 4)):
        for eps in (0.1, 0.25):
            for i, loss in enumerate(("CE", "HR")):
                wheres.append(f"HR(1.6), {loss} attack, eps {eps:g}, {protocol}")
                expected.append(0.01 * (first + i) + eps / 10)
    rows = named(found, "C1", "C2")
    assert [claim.where for claim in rows] == wheres
    squares = 0.001 * np.arange(5) ** 2
    half_width = scipy.stats.t.ppf(0.975, 4) * scipy.stats.sem(squares)
    for claim, effect in zip(rows, expected, strict=True):
        # The mean of the squares is 6. The common effect of a seed, 0.05 times its number, cancels in mean and width.
        assert (claim.effect, claim.half_width_95) == pytest.approx((effect + 0.006, half_width))
        assert (claim.pairs, claim.seeds, claim.dataset, claim.verdict) == (5, "0 1 2 3 4", "mnist", "supported")


@SIDES
def test_c1_and_c2_have_the_same_direction_on_all_data(side: int, verdict: str) -> None:
    def share(run: RunSpec, attack: AttackSpec) -> float:
        return 0.3 + (side * noise(run) if run.loss == HR else 0)

    for dataset in ("mnist", "cifar10", "digits"):
        found = claims(made_up.results(on(dataset), accuracies(share)))
        assert {claim.verdict for claim in named(found, "C1", "C2")} == {verdict}


@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize(
    ("dataset", "sign"), [("mnist", -1), ("cifar10", 1), ("svhn", 1), ("svhn_grey", 0), ("digits", 0)]
)
def test_c3_has_the_direction_of_its_data(dataset: str, sign: int, side: int) -> None:
    def share(run: RunSpec, attack: AttackSpec) -> float:
        by_ce = attack.loss in ("ce", "clipped-ce")
        return 0.3 + (side * noise(run) * (2 if run.loss == HR else 1) if by_ce else 0)

    found = named(claims(made_up.results(on(dataset), accuracies(share))), "C3")
    assert {claim.where for claim in found} == {
        f"{loss} trained, eps {eps}, {protocol}"
        for loss in ("CE", "HR(1.6)")
        for eps in ("0.1", "0.25")
        for protocol in ("exact", "paper")
    }
    for claim in found:
        assert claim.effect == pytest.approx(side * 0.02 * (2 if claim.where.startswith("HR") else 1))
        assert claim.verdict == {1: "supported", -1: "contradicted", 0: "no claim"}[sign * side]


def curve(reaches: int, final: float, epochs: int = 20) -> list[float]:
    """0.1 before an epoch, and from it on the final accuracy."""
    return [0.1] * (reaches - 1) + [final] * (epochs - reaches + 1)


def test_c4_counts_epochs_to_the_accuracy_that_both_reach() -> None:
    def validation(run: RunSpec) -> list[float]:
        if run.loss == CE:
            return curve(12 + run.seed % 2, 0.9)
        # The threshold is 0.99 * 0.9 = 0.891: 0.89 in epoch 3 is below it, 0.892 in epoch 5 above, 0.95 much later.
        return [0.1, 0.1, 0.89, 0.88, 0.892, *[0.9] * 10, *[0.95] * 5]

    (claim,) = named(claims(made_up.results(GRID, validation=validation)), "C4")
    # CE needs 12, 13, 12, 13, 12 epochs and HR 5.
    half_width = scipy.stats.t.ppf(0.975, 4) * scipy.stats.sem([7, 8, 7, 8, 7])
    assert (claim.effect, claim.half_width_95) == pytest.approx((7.4, half_width))
    assert claim.verdict == "supported"


@pytest.mark.parametrize(("more", "verdict"), [(3, "contradicted"), (0, "undecided")])
def test_c4_is_contradicted_if_hr_is_slower_and_undecided_if_it_is_as_fast(more: int, verdict: str) -> None:
    def validation(run: RunSpec) -> list[float]:
        return curve(8 + run.seed + (more if run.loss == HR else 0), 0.9)

    (claim,) = named(claims(made_up.results(GRID, validation=validation)), "C4")
    assert (claim.effect, claim.half_width_95, claim.verdict) == (-more, 0, verdict)


def test_c4_skips_pairs_with_an_unfinished_run() -> None:
    def validation(run: RunSpec) -> list[float]:
        full = curve(9 if run.loss == CE else 4, 0.9)
        return full[:19] if (run.loss, run.seed) == (HR, 1) else [] if (run.loss, run.seed) == (CE, 2) else full

    (claim,) = named(claims(made_up.results(GRID, validation=validation)), "C4")
    assert (claim.seeds, claim.pairs, claim.effect) == ("0 3 4", 3, 5)


@SIDES
def test_effects_of_c5_agree_with_values_computed_by_hand(side: int, verdict: str) -> None:
    def uncertainty(run: RunSpec, attack: AttackSpec) -> float:
        # At eps 0.1 the difference CE - HR has this sign and, in the norm, twice this size; otherwise the other sign.
        less = {"ce": 1.0, "clipped-ce": 2.0}.get(attack.loss, -1.0) * (1 if attack.eps == 0.1 else -1)
        return 0.2 + 0.01 * run.seed + (side * less * noise(run) if run.loss == CE else 0)

    found = named(claims(made_up.results(GRID, uncertainty=uncertainty)), "C5")
    assert [claim.where for claim in found] == ["HR(1.6), eps 0.1, exact", "HR(1.6), eps 0.1, paper"]
    assert [claim.effect for claim in found] == pytest.approx([side * 0.04, side * 0.08])
    assert {claim.verdict for claim in found} == {verdict}


def test_c6_compares_on_test_images_with_the_alpha_chosen_on_validation_in_the_same_protocol() -> None:
    # By units (which differ between the protocols) and eps: the alpha that is best on validation, and the loss of test
    # accuracy of alpha 1.6 compared with it.
    best = {("range", 0.0): (2.0, 0.005), ("range", 0.1): (3.0, 0.02), ("range", 0.25): (1.6, 0.0)}
    best |= {("data", 0.1): (1.8, 0.03), ("data", 0.25): (2.5, 0.001)}

    def share(run: RunSpec, attack: AttackSpec) -> float:
        chosen, loses = best[attack.units, attack.eps]
        if attack.split == "validation":
            return 0.5 if run.loss.alpha == chosen else 0.4
        # Another alpha is better on test images, which must have no influence.
        return 0.6 + (0.1 if run.loss.alpha == 4 else loses if run.loss.alpha == chosen else 0) + 1e-4 * run.seed

    found = named(claims(made_up.results(ALPHA, accuracies(share))), "C6")
    assert [claim.where for claim in found] == [
        "eps 0, chosen: 2, exact",
        "eps 0.1, chosen: 3, exact",
        "eps 0.25, chosen: 1.6, exact",
        "eps 0.1, chosen: 1.8, paper",
        "eps 0.25, chosen: 2.5, paper",
    ]
    assert [claim.effect for claim in found] == pytest.approx([-0.005, -0.02, 0, -0.03, -0.001])
    assert [claim.verdict for claim in found] == ["supported", "contradicted", "supported", "contradicted", "supported"]
    assert {claim.seeds for claim in found} == {"0 1 2 3 4"}


def test_c6_needs_alphas_to_choose_from_and_1_6_among_them() -> None:
    assert not named(claims(made_up.results(GRID)), "C6")
    without = replace(ALPHA, losses=tuple(loss for loss in ALPHA.losses if loss.alpha != 1.6))
    found = claims(made_up.results(without))
    assert not named(found, "C6")
    assert named(found, "C1")[0].where == "HR(1.8), no attack", "the nearest there is"


@pytest.mark.parametrize(
    ("more", "verdict"), [(-0.2, "supported"), (0.04, "supported"), (0.05, "undecided"), (0.06, "contradicted")]
)
def test_c7_is_a_ratio_within_a_margin(more: float, verdict: str) -> None:
    def seconds(run: RunSpec) -> float:
        # Runs take 1, 2, ... seconds with CE; the ratio increases by 0.001 per seed.
        ratio = 1 if run.loss == CE else 1 + more + 0.001 * (run.seed - 2)
        return (1 + run.seed) * ratio

    (claim,) = named(claims(made_up.results(GRID, seconds=seconds)), "C7")
    half_width = 2.7764451 * 0.001 * math.sqrt(2.5 / 5)
    assert (claim.effect, claim.half_width_95) == pytest.approx((more, half_width))
    assert claim.verdict == verdict


def test_c7_needs_the_seconds_of_both() -> None:
    def seconds(run: RunSpec) -> float:
        return 0 if (run.loss, run.seed) in ((CE, 0), (HR, 3)) else 2 if run.loss == HR else 1

    (claim,) = named(claims(made_up.results(GRID, seconds=seconds)), "C7")
    assert (claim.seeds, claim.effect, claim.half_width_95) == ("1 2 4", 1, 0)


def test_claims_use_the_alpha_of_the_paper_and_losses_without_defences() -> None:
    def share(run: RunSpec, attack: AttackSpec) -> float:
        return {None: 0.3, 1.6: 0.4, 3.0: 0.1}[run.loss.alpha]

    others = (
        LossSpec("hr", 3.0, hardening=Hardening("noise", 0.1)),
        LossSpec("hr", 1.6, label_smoothing=0.1),
        LossSpec("hr", 3.0),
    )
    found = claims(made_up.results(replace(GRID, losses=(*others, CE, HR)), accuracies(share)))
    (claim,) = named(found, "C1")
    assert (claim.where, claim.effect) == ("HR(1.6), no attack", pytest.approx(0.1))
    assert not found["where"].str.contains("HR(3)", regex=False).any()
    found = claims(made_up.results(replace(GRID, losses=(*others, CE)), accuracies(share)))
    assert {claim.where.split(",")[0] for claim in named(found, "C1", "C2")} == {"HR(3)"}


@pytest.mark.parametrize("losses", [(CE,), (HR,), (CE, LossSpec("hr", 1.6, label_smoothing=0.1))])
def test_a_grid_without_ce_or_hr_without_defence_has_no_claims(losses: tuple[LossSpec, ...]) -> None:
    assert claims(made_up.results(replace(GRID, losses=losses))).empty


def test_only_pairs_of_seeds_count() -> None:
    def made(run: RunSpec, attack: AttackSpec) -> bool:
        return run.seed in ((0, 1, 3) if run.loss == CE else (1, 3, 4))

    found = claims(made_up.results(GRID, made=made))
    assert {(claim.seeds, claim.pairs) for claim in named(found, "C1", "C2", "C5")} == {("1 3", 2)}
    # C3 compares two attacks on one network, so every seed is a pair.
    assert {claim.seeds for claim in named(found, "C3")} == {"0 1 3", "1 3 4"}


@pytest.mark.parametrize("seeds", [0, 1])
@pytest.mark.parametrize("name", ["paper", "alpha-digits", "strong-svhn-grey", "hardening-digits"])
def test_fewer_than_two_seeds_are_undecided(name: str, seeds: int) -> None:
    grid = grids.get(name)
    results = made_up.results(
        grid,
        made=lambda run, attack: run.seed < seeds,
        seconds=lambda run: float(run.seed < seeds),
        validation=lambda run: curve(1, 0.9, run.recipe.epochs) if run.seed < seeds else [],
    )
    found = claims(results)
    assert set(found.verdict) <= {"undecided", "no claim"}
    assert set(found.pairs) == {seeds}
    assert found.effect.isna().all() == (not seeds)
    assert set(found.dataset) == set(results.datasets)
    assert ("not yet" in claims_table(found).markdown()) == (not seeds)


def test_c2_in_the_worst_case_agrees_with_values_computed_by_hand() -> None:
    grid = grids.strong_svhn_grey()
    places = {attack.key(): place for place, attack in enumerate(a for a in grid.attacks if a.name == "worst-case")}

    def share(run: RunSpec, attack: AttackSpec) -> float:
        return 0.3 + (0.01 * places.get(attack.key(), 20) - 0.05 + noise(run) if run.loss == HR else 0)

    found = claims(made_up.results(grid, accuracies(share)))
    found = found[found.claim == "C2"]
    worst = named(found[found.protocol == "worst case"], "C2")
    texts = ("1/255", "2/255", "4/255", "8/255", "0.1", "0.25", "0.1/255", "0.25/255")
    assert [claim.where for claim in worst] == [f"HR(1.6), eps {eps}, worst case" for eps in texts]
    verdicts = ["contradicted"] * 3 + ["undecided"] + ["supported"] * 4
    for place, (claim, verdict) in enumerate(zip(worst, verdicts, strict=True)):
        assert claim.effect == pytest.approx(0.01 * place - 0.03)
        assert claim.verdict == verdict
    overall_rows = [(line[2], line[-2]) for line in claims_table(found).rows if line[1] == "all"]
    assert overall_rows == [
        ("all rows, exact", "supported"),
        ("all rows, paper", "supported"),
        ("all rows, worst case", "contradicted"),
    ]


def test_attacks_that_a_grid_does_not_have_are_not_judged() -> None:
    found = claims(made_up.results(replace(GRID, attacks=(AttackSpec("fgm", "hr", 0.1),))))
    assert [*zip(found.claim, found["where"], strict=True)] == [
        ("C2", "HR(1.6), HR attack, eps 0.1, exact"),
        ("C4", "HR(1.6), validation images"),
        ("C7", "HR(1.6), per epoch"),
    ]


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["supported", "supported"], "supported"),
        (["supported", "undecided"], "undecided"),
        (["supported", "contradicted", "undecided"], "contradicted"),
        (["supported", "no claim"], "supported"),
        (["no claim"], "no claim"),
        (["undecided", "no claim"], "undecided"),
    ],
)
def test_a_claim_is_supported_only_by_all_of_its_judged_rows(verdicts: list[str], expected: str) -> None:
    assert overall(verdicts) == expected
    found = pd.DataFrame({"claim": "C1", "dataset": "mnist", "where": "here", "protocol": "", "verdict": verdicts})
    found = found.assign(effect=-0.0001, half_width_95=0.1, pairs=2, seeds="0 1")
    for number, text in ((7.0, "7"), (float("inf"), "over 1000"), (float("nan"), "")):
        assert claims_table(found.assign(seeds_to_decide=number)).rows == (
            ("C1", "", *CLAIMS["C1"], "", expected, ""),
            *(("", "mnist", "here", "+0.000 ± 0.100", "2", verdict, text) for verdict in verdicts),
        )


@pytest.mark.parametrize(
    ("effect", "half_width", "text"),
    [
        (-0.00016, 0.00031, "-1.6e-04 ± 3.1e-04"),
        (0.0004, float("nan"), "+4.0e-04"),
        (0.0004, 0.0005, "+0.000 ± 0.001"),
        (0.0005, 0.0001, "+0.001 ± 0.000"),
        (0.0, 0.0, "+0.000 ± 0.000"),
    ],
)
def test_an_effect_that_three_decimals_would_show_as_zero_keeps_its_sign(
    effect: float, half_width: float, text: str
) -> None:
    found = pd.DataFrame({"claim": ["C3"], "dataset": "mnist", "where": "here", "protocol": "", "verdict": "undecided"})
    found = found.assign(effect=effect, half_width_95=half_width, pairs=2, seeds="0 1", seeds_to_decide=7.0)
    assert claims_table(found).rows[1][3] == text


def test_the_table_has_every_claim_and_names_the_seeds_and_the_margins() -> None:
    both = tuple(dict.fromkeys([*ALPHA.attacks, *GRID.attacks]))
    grid = replace(ALPHA, attacks=both, seeds=(0, 1, 7))
    found = claims(made_up.results(grid, validation=lambda run: curve(3, 0.9, run.recipe.epochs)))
    table = claims_table(found)
    assert [line[0] for line in table.rows if line[0]] == ["C1", "C2", "C3", "C4", "C5", "C6", "C7"]
    of_protocols = [line for line in table.rows if line[1] == "all"]
    expected = [(name, protocol) for name in ("C2", "C3", "C5", "C6") for protocol in ("exact", "paper")]
    for line, (name, protocol) in zip(of_protocols, expected, strict=True):
        rows = found[(found.claim == name) & found["where"].str.endswith(f", {protocol}")]
        assert line == ("", "all", f"all rows, {protocol}", "", "", overall(rows.verdict), "")
    assert len(table.rows) == 7 + len(of_protocols) + len(found)
    notes = " ".join(table.notes)
    assert all(text in notes for text in ("0, 1, 7", "not corrected", "-0.01", "+0.05", "99%"))
