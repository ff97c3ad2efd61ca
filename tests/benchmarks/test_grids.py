"""The named grids are the paper's recipes, and say in their docstrings what they are."""

import re
from dataclasses import replace

import pytest

from benchmarks import data, grids, protocols
from benchmarks.config import AttackSpec, ConfigError, Grid, LossSpec, Recipe

ALL = pytest.mark.parametrize("name", grids.GRIDS)
LONG, SHORT = ("mnist", "cifar10", "svhn", "paper"), ("mnist-short", "cifar10-short", "svhn-short")
NO_ATTACK = AttackSpec("none")


def recipe_of(name: str) -> Recipe:
    """The one recipe of a grid."""
    ((_, recipe),) = grids.get(name).recipes
    return recipe


def keys(*names: str) -> set[str]:
    return {run.key() for name in names for run in grids.get(name).runs()}


def documentation(name: str) -> str:
    return " ".join(grids.GRIDS[name].__doc__.split())


@ALL
def test_a_grid_is_valid_and_goes_by_its_name(name: str) -> None:
    grid = grids.get(name)
    assert isinstance(grid, Grid)
    assert grid.name == name
    assert {dataset for dataset, _ in grid.recipes} <= {*data.BUILT_IN, "svhn_grey"}


@ALL
def test_no_two_runs_of_a_grid_share_a_key(name: str) -> None:
    grid = grids.get(name)
    assert len(keys(name)) == len(grid.runs()) == len(grid.recipes) * len(grid.losses) * 5


@ALL
def test_no_two_attacks_of_a_grid_share_a_file(name: str) -> None:
    grid = grids.get(name)
    attacked = [grid.attacks, *(recipe.curve_attacks for _, recipe in grid.recipes)]
    assert all(len({attack.key() for attack in attacks}) == len(attacks) for attacks in attacked)


@ALL
def test_the_first_seeds_of_a_grid_are_those_that_the_command_line_takes(name: str) -> None:
    assert grids.get(name).seeds == (0, 1, 2, 3, 4)


@pytest.mark.parametrize("name", ["mnist", "cifar10", *SHORT])
def test_a_docstring_gives_the_recipes_epochs(name: str) -> None:
    """Those given after it are of what it shortens."""
    long = recipe_of(name.removesuffix("-short")).epochs
    given = re.findall(r"(\d+) (?:epochs|at 0\.001)", documentation(name))
    assert int(given[0]) == recipe_of(name).epochs
    if name in ("cifar10-short", "svhn-short"):
        assert f"{given[0]} epochs in place of {long}" in documentation(name)


def test_mnist_shorts_docstring_gives_its_learning_rate() -> None:
    recipe = recipe_of("mnist-short")
    assert f"{recipe.epochs} epochs at learning rate {recipe.lr}" in documentation("mnist-short")
    assert f"{recipe_of('mnist').epochs} at {recipe_of('mnist').lr}" in documentation("mnist-short")


def test_an_unknown_grid_lists_those_there_are() -> None:
    names = ["alpha", "alpha-digits", "cifar10", "cifar10-short", "digits", "hardening-digits", "hardening-mnist"]
    names += ["mnist", "mnist-long", "mnist-short", "paper", "strong-cifar10", "strong-digits", "strong-mnist"]
    names += ["strong-svhn-grey", "svhn", "svhn-grey", "svhn-short"]
    expected = f"expected grid to be one of {names}, but got 'mnits'"
    with pytest.raises(ConfigError, match=re.escape(expected)):
        grids.get("mnits")


def test_the_losses_of_a_seed_stand_together() -> None:
    # So that an interrupted grid holds whole pairs.
    runs = grids.digits().runs()
    assert [(run.seed, run.loss.name) for run in runs[:4]] == [(0, "ce"), (0, "hr"), (1, "ce"), (1, "hr")]


@pytest.mark.parametrize("name", ["digits", *LONG, *SHORT])
def test_table_1_compares_cross_entropy_and_hr_at_alpha_1_6(name: str) -> None:
    assert grids.get(name).losses == (LossSpec("ce"), LossSpec("hr", 1.6))


def test_mnist_is_the_papers_recipe() -> None:
    assert replace(recipe_of("mnist"), curve_every=0, curve_attacks=()) == Recipe(
        model="lenet",
        epochs=1000,
        batch_size=100,
        optimizer="sgd",
        momentum=0.0,
        lr=0.001,
        lr_drops=(),
        l2=0.0,
        subtract_pixel_mean=False,
        input_scale=1.0,
        validation_size=5000,
        device="cpu",
    )


@pytest.mark.parametrize(("name", "mean", "scale"), [("cifar10", True, 1.0), ("svhn", False, 255.0)])
def test_cifar10_and_svhn_are_the_papers_resnet_with_kerass_schedule(name: str, mean: bool, scale: float) -> None:
    recipe = recipe_of(name)
    assert (recipe.model, recipe.blocks, recipe.epochs, recipe.batch_size) == ("resnet", 1, 200, 128)
    assert (recipe.optimizer, recipe.lr, recipe.l2) == ("adam", 0.001, 1e-4)
    assert (recipe.subtract_pixel_mean, recipe.input_scale) == (mean, scale)
    # Keras counts from 0 and drops in the epochs after number 80, 120, 160 and 180.
    epochs = [0, 80, 81, 120, 121, 160, 161, 180, 181, 199]
    rates = [1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5, 1e-6, 1e-6, 5e-7, 5e-7]
    assert [recipe.lr_at(epoch) for epoch in epochs] == pytest.approx(rates, rel=1e-12)


def test_paper_is_the_three_together_and_shares_their_results() -> None:
    assert [dataset for dataset, _ in grids.get("paper").recipes] == ["mnist", "cifar10", "svhn"]
    assert keys("paper") == keys("mnist", "cifar10", "svhn")
    assert len(keys("paper")) == 30
    assert all(grids.get(name).attacks == grids.get("paper").attacks for name in LONG)


def test_the_short_grids_share_nothing_with_the_long_ones() -> None:
    assert not keys(*SHORT) & keys(*LONG)
    assert len(keys(*SHORT)) == 30


@pytest.mark.parametrize("name", SHORT)
def test_a_short_grid_differs_from_its_long_one_in_the_schedule_alone(name: str) -> None:
    ((dataset, short),), ((same, long),) = (grids.get(n).recipes for n in (name, name.removesuffix("-short")))
    assert dataset == same
    schedule = ("epochs", "lr", "lr_drops", "curve_every", "curve_attacks")
    assert replace(short, **{field: getattr(long, field) for field in schedule}) == long
    assert short.epochs < long.epochs / 10
    if short.curve_every:
        assert short.epochs % short.curve_every == 0, "the last point is of the trained network"
        assert short.epochs >= 2 * short.curve_every, "there are points to draw a line through"


def test_mnist_short_is_the_papers_recipe_in_a_fiftieth_of_its_epochs() -> None:
    recipe = recipe_of("mnist-short")
    assert (recipe.model, recipe.batch_size) == ("lenet", 100)
    assert recipe.epochs == 1000 / 50
    assert recipe.lr * recipe.epochs == pytest.approx(0.001 * 1000)


def test_mnist_long_is_mnist_short_with_three_times_its_epochs() -> None:
    short, long = recipe_of("mnist-short"), recipe_of("mnist-long")
    assert long.epochs == 3 * short.epochs == 60
    assert replace(long, epochs=short.epochs, curve_every=short.curve_every) == short
    assert long.epochs % long.curve_every == 0, "the last point is of the trained network"
    assert f"{long.epochs} epochs at learning rate {long.lr}" in documentation("mnist-long")


def test_svhn_grey_is_svhns_recipe_on_other_data() -> None:
    ((dataset, recipe),) = grids.get("svhn-grey").recipes
    assert dataset == "svhn_grey"
    assert (recipe.model, recipe.blocks, recipe.input_scale, recipe.subtract_pixel_mean) == ("resnet", 1, 255.0, False)
    assert f"{recipe.epochs} epochs" in documentation("svhn-grey")


@pytest.mark.parametrize("name", ["cifar10", "svhn"])
def test_a_short_grid_drops_its_rate_in_proportion(name: str) -> None:
    long, short = recipe_of(name), recipe_of(f"{name}-short")
    assert short.lr == long.lr
    assert 2 <= len(short.lr_drops) <= len(long.lr_drops)
    for (start, factor), (long_start, long_factor) in zip(short.lr_drops, long.lr_drops, strict=False):
        assert factor == long_factor
        assert abs(start - long_start / long.epochs * short.epochs) < 1, "an epoch is the least there is"
        assert 0 < start < short.epochs


@pytest.mark.parametrize("name", ["mnist", "cifar10", "svhn"])
def test_the_curve_has_a_point_every_10_epochs_as_in_fig_1(name: str) -> None:
    recipe = recipe_of(name)
    assert recipe.curve_every == 10
    assert recipe.epochs % recipe.curve_every == 0, "the last point is of the trained network"


@pytest.mark.parametrize("name", ["digits", *LONG, "mnist-short", "mnist-long", "cifar10-short"])
def test_fig_1_has_the_cross_entropy_attack_in_both_protocols_at_the_eps_of_table_1(name: str) -> None:
    for _, recipe in grids.get(name).recipes:
        images = 2000 if name.endswith(("-short", "-long")) else 0
        assert {attack.images for attack in recipe.curve_attacks} == {images}
        assert {replace(attack, images=0) for attack in recipe.curve_attacks} == {
            NO_ATTACK,
            *(AttackSpec("fgm", "ce", eps) for eps in (0.1, 0.25)),
            *(AttackSpec("fgm", "clipped-ce", eps, units="data") for eps in (0.1, 0.25)),
        }
        on_all = {replace(attack, images=0) for attack in recipe.curve_attacks}
        assert on_all < set(grids.get(name).attacks), "the table has the curve's last point, on all images"


@pytest.mark.parametrize("name", ["digits", *LONG, *SHORT, "mnist-long", "svhn-grey"])
def test_table_1_has_both_losses_at_both_eps_in_both_protocols(name: str) -> None:
    attacks = [attack for attack in grids.get(name).attacks if attack.name != "worst-case"]
    assert len(attacks) == 11
    assert set(attacks) == {
        NO_ATTACK,
        *(AttackSpec("fgm", loss, eps) for loss in ("ce", "hr", "torch-ce") for eps in (0.1, 0.25)),
        *(AttackSpec("fgm", f"clipped-{loss}", eps, units="data") for loss in ("ce", "hr") for eps in (0.1, 0.25)),
    }


STRONG = {
    ("fgm", "clipped-ce"),
    ("fgm", "ce"),
    ("pgd", "ce"),
    *(("apgd", loss) for loss in ("ce", "hr", "margin", "dlr")),
    ("square", None),
    ("transfer", None),
    ("worst-case", None),
}


@pytest.mark.parametrize(
    ("name", "trained", "images", "strengths"),
    [
        ("strong-digits", "digits", 360, (0.1, 0.2, 0.3, 0.5)),
        ("strong-mnist", "mnist-long", 300, (0.1, 0.2, 0.3, 0.5)),
        ("strong-cifar10", "cifar10-short", 100, (0.004, 0.008, 0.016, 0.03)),
        ("strong-svhn-grey", "svhn-grey", 100, (0.004, 0.008, 0.016, 0.03)),
    ],
)
def test_strong_attacks_are_on_the_networks_of_the_grid_they_are_named_for(
    name: str, trained: str, images: int, strengths: tuple[float, ...]
) -> None:
    assert keys(name) == keys(trained)
    others = ("none", "diagnostics")
    table_1 = {attack for attack in grids.get(trained).attacks if attack.name != "worst-case"}
    assert table_1 < set(grids.get(name).attacks)
    attacks = [a for a in grids.get(name).attacks if a.name not in others and a not in table_1]
    # In Table 1's column of worst cases; of a network that is given [0, 255], in its units as well.
    scale = grids.get(name).recipes[0][1].input_scale
    beside = {("range", eps) for eps in (0.1, 0.25)} | (
        {("data", eps) for eps in (0.1, 0.25)} if scale == 255 else set()
    )
    worst = {(a.units, a.eps) for a in attacks if a.name == "worst-case"}
    assert worst == beside | {("range", eps) for eps in strengths}
    attacks = [a for a in attacks if a.units == "range" and a.eps in strengths]
    assert {(attack.images, attack.split) for attack in attacks} == {(images, "test")}
    assert tuple(sorted({attack.eps for attack in attacks})) == strengths
    for eps in strengths:
        assert {(attack.name, attack.loss) for attack in attacks if attack.eps == eps} == STRONG
    assert AttackSpec("none", images=images) in grids.get(name).attacks


@pytest.mark.parametrize("name", ["strong-digits", "strong-mnist", "strong-cifar10", "strong-svhn-grey"])
def test_a_strong_grid_reports_on_the_gradients_of_both_protocols_at_a_strength_it_attacks_with(name: str) -> None:
    attacks = grids.get(name).attacks
    reports = [attack for attack in attacks if attack.name == "diagnostics"]
    for eps in {report.eps for report in reports}:
        assert {report.loss for report in reports if report.eps == eps} == {"clipped-ce", "ce"}
    assert reports
    assert {report.eps for report in reports} <= {attack.eps for attack in attacks if attack.name == "worst-case"}


@pytest.mark.parametrize("name", ["strong-digits", "hardening-digits", "hardening-mnist"])
def test_images_are_made_on_a_network_that_the_grid_does_not_attack(name: str) -> None:
    grid = grids.get(name)
    (source,) = {attack.source for attack in grid.attacks if attack.name in ("transfer", "worst-case")}
    runs = grid.runs()
    assert {run.source(source).key() for run in runs}.isdisjoint(run.key() for run in runs)
    assert {run.source(source).loss for run in runs} == {LossSpec("ce")}


def test_hardening_tries_each_loss_with_each_hardening_and_the_baselines_with_none() -> None:
    found: dict[str, set[LossSpec]] = {}
    for loss in grids.hardening_digits().losses:
        found.setdefault(str(loss.hardening), set()).add(replace(loss, hardening=None))
    pair, every = set(protocols.hardened(None, (1.6,))), set(protocols.hardened(None, (1.0, 1.6, 3.0)))
    assert pair == {LossSpec("ce"), LossSpec("hr", 1.6)}
    assert found == {
        "None": every | {LossSpec("ce", label_smoothing=0.1), LossSpec("ce", margin=14.5)},
        "noise 0.1": every,
        "Madry 0.1": every,
        "TRADES 0.1, beta 3": pair,
        "TRADES 0.1, beta 6": every,
        "TRADES 0.1, beta 12": pair,
    }
    assert {loss.hardening.eps for loss in grids.hardening_mnist().losses if loss.hardening} == {0.2}
    for grid in (grids.hardening_digits(), grids.hardening_mnist()):
        strengths = {attack.eps for attack in grid.attacks if attack.name == "worst-case"}
        assert {loss.hardening.eps for loss in grid.losses if loss.hardening} <= strengths


@pytest.mark.parametrize("loss", ["ce", "hr"])
def test_the_protocols_are_what_they_are_called(loss: str) -> None:
    assert protocols.exact(loss, 0.25) == AttackSpec("fgm", loss, 0.25, units="range", split="test")
    assert protocols.exact(loss, 0.25, "validation") == AttackSpec("fgm", loss, 0.25, split="validation")
    assert protocols.exact(loss, 0.0) == NO_ATTACK
    assert protocols.exact(loss, 0, "validation") == AttackSpec("none", split="validation")
    assert protocols.paper(loss, 0.25) == AttackSpec("fgm", f"clipped-{loss}", 0.25, units="data", split="test")
    assert protocols.torch_ce(0.25) == AttackSpec("fgm", "torch-ce", 0.25, units="range", split="test")


@pytest.mark.parametrize("name", ["alpha", "alpha-digits"])
def test_alpha_is_tried_from_1_to_4_beside_cross_entropy(name: str) -> None:
    first, *rest = grids.get(name).losses
    assert first == LossSpec("ce")
    assert {loss.name for loss in rest} == {"hr"}
    alphas = [loss.alpha for loss in rest]
    assert alphas == sorted(alphas)
    assert (alphas[0], alphas[-1]) == (1.0, 4.0)
    assert 1.6 in alphas


@pytest.mark.parametrize("name", ["alpha", "alpha-digits"])
def test_alpha_is_judged_with_and_without_attack_on_validation_and_test_images(name: str) -> None:
    attacks = grids.get(name).attacks
    assert len(attacks) == 8
    assert set(attacks) == {
        AttackSpec(*attack, split=split)
        for split in ("validation", "test")
        for attack in (("none",), ("fgm", "ce", 0.1), ("fgm", "ce", 0.25))
    } | {AttackSpec("fgm", "clipped-ce", eps, units="data") for eps in (0.1, 0.25)}


def test_alpha_is_chosen_on_the_short_grids_schedules_without_their_curves() -> None:
    for dataset, recipe in grids.get("alpha").recipes:
        assert recipe == replace(recipe_of(f"{dataset}-short"), curve_every=0, curve_attacks=())
    assert recipe_of("alpha-digits") == replace(recipe_of("digits"), curve_every=0, curve_attacks=())
    assert [dataset for dataset, _ in grids.get("alpha").recipes] == ["mnist", "cifar10", "svhn"]
