"""The named grids: what reports rely on, and which grids share their runs."""

from dataclasses import replace

import pytest

from benchmarks import data, grids, protocols
from benchmarks.config import AttackSpec, LossSpec, Recipe

ALL = pytest.mark.parametrize("name", grids.GRIDS)
LONG, SHORT = ("mnist", "cifar10", "svhn"), ("mnist-short", "cifar10-short", "svhn-short")
STRONG = ("strong-digits", "strong-mnist", "strong-cifar10", "strong-svhn-grey")


def recipe_of(name: str) -> Recipe:
    """Return the only recipe of a grid."""
    ((_, recipe),) = grids.get(name).recipes
    return recipe


def keys(*names: str) -> set[str]:
    return {run.key() for name in names for run in grids.get(name).runs()}


@ALL
def test_a_grid_is_valid_and_no_two_of_its_runs_or_attacks_share_a_key(name: str) -> None:
    grid = grids.get(name)
    assert grid.name == name
    assert grid.seeds == (0, 1, 2, 3, 4), "the seeds 0, 1, ... that --seeds selects from"
    assert {dataset for dataset, _ in grid.recipes} <= {*data.BUILT_IN, "svhn_grey"}
    assert len(keys(name)) == len(grid.runs()) == len(grid.recipes) * len(grid.losses) * 5
    for attacks in (grid.attacks, *(recipe.curve_attacks for _, recipe in grid.recipes)):
        assert len({attack.key() for attack in attacks}) == len(attacks)


@ALL
def test_the_last_curve_point_is_of_the_trained_network_and_its_attacks_are_in_table_1(name: str) -> None:
    grid = grids.get(name)
    for _, recipe in grid.recipes:
        if recipe.curve_every:
            assert recipe.epochs % recipe.curve_every == 0
            assert recipe.epochs >= 2 * recipe.curve_every, "a curve needs two points at least"
            assert {replace(attack, images=0) for attack in recipe.curve_attacks} < set(grid.attacks)


def test_the_losses_of_a_seed_are_adjacent_so_that_an_interrupted_grid_has_complete_pairs() -> None:
    runs = grids.digits().runs()
    assert [(run.seed, run.loss.name) for run in runs[:4]] == [(0, "ce"), (0, "hr"), (1, "ce"), (1, "hr")]


def test_the_learning_rate_of_the_resnet_drops_at_the_epochs_of_the_keras_example() -> None:
    """Keras counts epochs from 0 and drops the rate after the epochs 80, 120, 160 and 180."""
    epochs = [0, 80, 81, 120, 121, 160, 161, 180, 181, 199]
    rates = [1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5, 1e-6, 1e-6, 5e-7, 5e-7]
    for name in ("cifar10", "svhn"):
        assert [recipe_of(name).lr_at(epoch) for epoch in epochs] == pytest.approx(rates, rel=1e-12)


def test_the_grid_paper_has_the_runs_of_the_three_long_grids() -> None:
    assert keys("paper") == keys(*LONG)
    assert all(grids.get(name).attacks == grids.get("paper").attacks for name in LONG)


@pytest.mark.parametrize("name", SHORT)
def test_a_short_grid_differs_from_its_long_grid_only_in_the_schedule(name: str) -> None:
    ((dataset, short),), ((same, long),) = (grids.get(n).recipes for n in (name, name.removesuffix("-short")))
    assert dataset == same
    schedule = ("epochs", "lr", "lr_drops", "curve_every", "curve_attacks")
    assert replace(short, **{field: getattr(long, field) for field in schedule}) == long
    assert short.epochs < long.epochs / 10


def test_learning_rate_times_epochs_of_mnist_short_is_the_papers_and_of_mnist_long_three_times_it() -> None:
    paper, short, long = (recipe_of(name) for name in ("mnist", "mnist-short", "mnist-long"))
    assert short.lr * short.epochs == pytest.approx(paper.lr * paper.epochs)
    assert long.epochs == 3 * short.epochs
    assert replace(long, epochs=short.epochs, curve_every=short.curve_every) == short


@pytest.mark.parametrize("name", ["cifar10", "svhn"])
def test_a_short_grid_drops_its_learning_rate_in_proportion(name: str) -> None:
    long, short = recipe_of(name), recipe_of(f"{name}-short")
    assert short.lr == long.lr
    assert 2 <= len(short.lr_drops) <= len(long.lr_drops)
    for (start, factor), (long_start, long_factor) in zip(short.lr_drops, long.lr_drops, strict=False):
        assert factor == long_factor
        assert abs(start - long_start / long.epochs * short.epochs) < 1, "drops can only be at whole epochs"
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
def test_a_strong_grid_shares_its_runs_with_another_grid_and_has_a_worst_case_at_every_eps(
    name: str, trained: str
) -> None:
    assert keys(name) == keys(trained)
    attacks = grids.get(name).attacks
    assert {attack for attack in grids.get(trained).attacks if attack.name != "worst-case"} < set(attacks)
    strong = [attack for attack in attacks if attack.images and attack.name not in ("none", "diagnostics")]
    (images,) = {attack.images for attack in strong if attack.units == "range"}
    assert AttackSpec("none", images=images) in attacks, "the clean accuracy on the same images"
    worst = {(attack.units, attack.eps) for attack in attacks if attack.name == "worst-case"}
    strengths = {(attack.units, attack.eps) for attack in strong}
    assert worst == strengths, "every strong attack has a worst case at its eps"
    units = {"range", "data"} if recipe_of(name).input_scale == 255 else {"range"}
    assert {(unit, eps) for unit in units for eps in (0.1, 0.25)} <= worst, "Table 1 shows these worst cases"
    reports = {(attack.eps, attack.loss) for attack in attacks if attack.name == "diagnostics"}
    assert reports
    assert reports == {(eps, loss) for eps, _ in reports for loss in ("clipped-ce", "ce")}
    assert {("range", eps) for eps, _ in reports} <= worst


@pytest.mark.parametrize("name", ["hardening-digits", "hardening-mnist"])
def test_each_defence_is_trained_with_both_losses_and_attacked_at_its_eps(name: str) -> None:
    grid = grids.get(name)
    kinds = {loss.hardening for loss in grid.losses}
    assert {replace(loss, hardening=kind) for loss in protocols.hardened(None, (1.6,)) for kind in kinds} <= set(
        grid.losses
    )
    assert {kind.eps for kind in kinds if kind} <= {a.eps for a in grid.attacks if a.name == "worst-case"}


def test_the_exact_protocol_at_eps_0_is_no_attack() -> None:
    assert protocols.exact("hr", 0.0) == AttackSpec("none")
    assert protocols.exact("ce", 0, "validation") == AttackSpec("none", split="validation")


@pytest.mark.parametrize("name", ["alpha", "alpha-digits"])
def test_alpha_grids_have_the_same_attacks_on_validation_and_test_images(name: str) -> None:
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


def test_alpha_grids_use_the_schedules_of_the_short_grids_without_curves() -> None:
    for dataset, recipe in (*grids.get("alpha").recipes, *grids.get("alpha-digits").recipes):
        like = recipe_of(dataset if dataset == "digits" else f"{dataset}-short")
        assert recipe == replace(like, curve_every=0, curve_attacks=())
