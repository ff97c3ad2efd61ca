"""The named grids hold what results and reports rely on, and share trainings where they are to."""

from dataclasses import replace

import pytest

from benchmarks import data, grids, protocols
from benchmarks.config import AttackSpec, LossSpec, Recipe

ALL = pytest.mark.parametrize("name", grids.GRIDS)
LONG, SHORT = ("mnist", "cifar10", "svhn"), ("mnist-short", "cifar10-short", "svhn-short")
STRONG = ("strong-digits", "strong-mnist", "strong-cifar10", "strong-svhn-grey")


def recipe_of(name: str) -> Recipe:
    """The one recipe of a grid."""
    ((_, recipe),) = grids.get(name).recipes
    return recipe


def keys(*names: str) -> set[str]:
    return {run.key() for name in names for run in grids.get(name).runs()}


@ALL
def test_a_grid_is_valid_and_no_two_of_its_runs_or_attacks_share_a_key(name: str) -> None:
    grid = grids.get(name)
    assert grid.name == name
    assert grid.seeds == (0, 1, 2, 3, 4), "those that the command line takes"
    assert {dataset for dataset, _ in grid.recipes} <= {*data.BUILT_IN, "svhn_grey"}
    assert len(keys(name)) == len(grid.runs()) == len(grid.recipes) * len(grid.losses) * 5
    for attacks in (grid.attacks, *(recipe.curve_attacks for _, recipe in grid.recipes)):
        assert len({attack.key() for attack in attacks}) == len(attacks)


@ALL
def test_the_last_point_of_a_curve_is_of_the_trained_network_and_stands_in_table_1(name: str) -> None:
    grid = grids.get(name)
    for _, recipe in grid.recipes:
        if recipe.curve_every:
            assert recipe.epochs % recipe.curve_every == 0
            assert recipe.epochs >= 2 * recipe.curve_every, "there are points to draw a line through"
            assert {replace(attack, images=0) for attack in recipe.curve_attacks} < set(grid.attacks)


def test_the_losses_of_a_seed_stand_together_so_that_an_interrupted_grid_holds_whole_pairs() -> None:
    runs = grids.digits().runs()
    assert [(run.seed, run.loss.name) for run in runs[:4]] == [(0, "ce"), (0, "hr"), (1, "ce"), (1, "hr")]


def test_the_resnets_rate_drops_as_in_kerass_example() -> None:
    """Keras counts epochs from 0 and drops the rate after the epochs 80, 120, 160 and 180."""
    epochs = [0, 80, 81, 120, 121, 160, 161, 180, 181, 199]
    rates = [1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5, 1e-6, 1e-6, 5e-7, 5e-7]
    for name in ("cifar10", "svhn"):
        assert [recipe_of(name).lr_at(epoch) for epoch in epochs] == pytest.approx(rates, rel=1e-12)


def test_paper_is_the_three_long_grids_and_shares_their_results() -> None:
    assert keys("paper") == keys(*LONG)
    assert all(grids.get(name).attacks == grids.get("paper").attacks for name in LONG)


@pytest.mark.parametrize("name", SHORT)
def test_a_short_grid_differs_from_its_long_one_in_the_schedule_alone(name: str) -> None:
    ((dataset, short),), ((same, long),) = (grids.get(n).recipes for n in (name, name.removesuffix("-short")))
    assert dataset == same
    schedule = ("epochs", "lr", "lr_drops", "curve_every", "curve_attacks")
    assert replace(short, **{field: getattr(long, field) for field in schedule}) == long
    assert short.epochs < long.epochs / 10


def test_mnist_short_moves_as_far_as_the_papers_schedule_and_mnist_long_three_times_as_far() -> None:
    paper, short, long = (recipe_of(name) for name in ("mnist", "mnist-short", "mnist-long"))
    assert short.lr * short.epochs == pytest.approx(paper.lr * paper.epochs)
    assert long.epochs == 3 * short.epochs
    assert replace(long, epochs=short.epochs, curve_every=short.curve_every) == short


@pytest.mark.parametrize("name", ["cifar10", "svhn"])
def test_a_short_grid_drops_its_rate_in_proportion(name: str) -> None:
    long, short = recipe_of(name), recipe_of(f"{name}-short")
    assert short.lr == long.lr
    assert 2 <= len(short.lr_drops) <= len(long.lr_drops)
    for (start, factor), (long_start, long_factor) in zip(short.lr_drops, long.lr_drops, strict=False):
        assert factor == long_factor
        assert abs(start - long_start / long.epochs * short.epochs) < 1, "an epoch is the least there is"
        assert 0 < start < short.epochs


@pytest.mark.parametrize("name", ["digits", *LONG, *SHORT, "mnist-long", "svhn-grey"])
def test_table_1_has_both_losses_at_both_eps_in_both_protocols(name: str) -> None:
    assert {attack for attack in grids.get(name).attacks if attack.name != "worst-case"} == {
        AttackSpec("none"),
        AttackSpec("none", split="validation"),  # for temperatures
        *(AttackSpec("fgm", loss, eps) for loss in ("ce", "hr", "torch-ce") for eps in (0.1, 0.25)),
        *(AttackSpec("fgm", f"clipped-{loss}", eps, units="data") for loss in ("ce", "hr") for eps in (0.1, 0.25)),
    }


@pytest.mark.parametrize(
    ("name", "trained"), list(zip(STRONG, ["digits", "mnist-long", "cifar10-short", "svhn-grey"], strict=True))
)
def test_strong_attacks_are_on_trained_networks_of_another_grid_and_end_in_the_worst_case(
    name: str, trained: str
) -> None:
    assert keys(name) == keys(trained)
    attacks = grids.get(name).attacks
    assert {attack for attack in grids.get(trained).attacks if attack.name != "worst-case"} < set(attacks)
    strong = [attack for attack in attacks if attack.images and attack.name not in ("none", "diagnostics")]
    (images,) = {attack.images for attack in strong if attack.units == "range"}
    assert AttackSpec("none", images=images) in attacks, "what they are compared with"
    worst = {(attack.units, attack.eps) for attack in attacks if attack.name == "worst-case"}
    strengths = {(attack.units, attack.eps) for attack in strong}
    assert worst == strengths, "none is a verdict by itself"
    units = {"range", "data"} if recipe_of(name).input_scale == 255 else {"range"}
    assert {(unit, eps) for unit in units for eps in (0.1, 0.25)} <= worst, "Table 1 has a column of them"
    reports = {(attack.eps, attack.loss) for attack in attacks if attack.name == "diagnostics"}
    assert reports
    assert {(eps, loss) for eps, _ in reports for loss in ("clipped-ce", "ce")} == reports
    assert {("range", eps) for eps, _ in reports} <= worst


@pytest.mark.parametrize("name", ["hardening-digits", "hardening-mnist"])
def test_a_hardened_loss_has_its_like_of_cross_entropy_and_meets_the_eps_it_was_hardened_at(name: str) -> None:
    grid = grids.get(name)
    kinds = {loss.hardening for loss in grid.losses}
    assert {replace(loss, hardening=kind) for loss in protocols.hardened(None, (1.6,)) for kind in kinds} <= set(
        grid.losses
    )
    assert {kind.eps for kind in kinds if kind} <= {a.eps for a in grid.attacks if a.name == "worst-case"}


def test_a_protocol_at_eps_0_is_no_attack() -> None:
    assert protocols.exact("hr", 0.0) == AttackSpec("none")
    assert protocols.exact("ce", 0, "validation") == AttackSpec("none", split="validation")


@pytest.mark.parametrize("name", ["alpha", "alpha-digits"])
def test_alpha_is_chosen_on_validation_images_and_judged_on_the_same_attacks_of_test_images(name: str) -> None:
    grid = grids.get(name)
    validation = {replace(attack, split="test") for attack in grid.attacks if attack.split == "validation"}
    assert validation == {
        AttackSpec("none"),
        *(by("ce", eps) for by in (protocols.exact, protocols.paper) for eps in (0.1, 0.25)),
    }
    assert validation == set(grid.attacks) - {a for a in grid.attacks if a.split == "validation"}
    first, *rest = grid.losses
    assert first == LossSpec("ce")
    assert LossSpec("hr", 1.6) in rest


def test_alpha_is_chosen_on_the_short_grids_schedules_without_their_curves() -> None:
    for dataset, recipe in (*grids.get("alpha").recipes, *grids.get("alpha-digits").recipes):
        like = recipe_of(dataset if dataset == "digits" else f"{dataset}-short")
        assert recipe == replace(like, curve_every=0, curve_attacks=())
