"""Specs say what they mean, reject what means nothing, and keep their keys."""

from dataclasses import dataclass, replace

import pytest

from benchmarks import grids
from benchmarks.config import AttackSpec, ConfigError, Grid, LossSpec, Recipe, RunSpec, canonical

RECIPE = Recipe(model="lenet", epochs=2, batch_size=10, lr=0.1)
RUN = RunSpec("mnist", RECIPE, LossSpec("hr", 1.6), seed=3)


def test_a_key_is_the_same_today_and_tomorrow() -> None:
    # Computed once and written down: a change here orphans every result that users hold.
    assert RUN.key() == "7c8dea85c4df8452"


@pytest.mark.parametrize(
    "other",
    [
        replace(RUN, dataset="digits"),
        replace(RUN, seed=4),
        replace(RUN, loss=LossSpec("ce")),
        replace(RUN, loss=LossSpec("hr", 1.7)),
        replace(RUN, recipe=replace(RECIPE, lr=0.2)),
        replace(RUN, recipe=replace(RECIPE, lr_drops=((1, 0.1),))),
        # A zero where the default is another value: it must not pass for "not given".
        replace(RUN, recipe=replace(RECIPE, split_seed=0)),
        replace(RUN, recipe=replace(RECIPE, threads=2)),
    ],
    ids=["dataset", "seed", "loss", "alpha", "lr", "lr_drops", "split_seed", "threads"],
)
def test_whatever_changes_a_run_changes_its_key(other: RunSpec) -> None:
    assert other.key() != RUN.key()


def test_a_field_added_later_at_its_default_changes_no_key() -> None:
    @dataclass(frozen=True)
    class LossSpecOfTomorrow(LossSpec):
        temperature: float = 1.0

    assert canonical(LossSpecOfTomorrow("hr", 1.6)) == canonical(LossSpec("hr", 1.6))
    assert canonical(LossSpecOfTomorrow("hr", 1.6, temperature=2.0)) != canonical(LossSpec("hr", 1.6))


@pytest.mark.parametrize("grid", [make() for make in grids.GRIDS.values()], ids=list(grids.GRIDS))
def test_no_two_runs_of_a_grid_share_a_key(grid: Grid) -> None:
    assert len({run.key() for run in grid.runs()}) == len(grid.runs()) == 10


@pytest.mark.parametrize("grid", [make() for make in grids.GRIDS.values()], ids=list(grids.GRIDS))
def test_the_first_seeds_of_a_grid_are_those_that_the_command_line_takes(grid: Grid) -> None:
    assert grid.seeds == tuple(range(len(grid.seeds)))


def test_the_losses_of_a_seed_stand_together() -> None:
    # So that an interrupted grid holds whole pairs.
    runs = grids.digits().runs()
    assert [(run.seed, run.loss.name) for run in runs[:4]] == [(0, "ce"), (0, "hr"), (1, "ce"), (1, "hr")]


def test_mnist_short_is_the_papers_recipe_in_a_fiftieth_of_its_epochs() -> None:
    ((dataset, recipe),) = grids.mnist_short().recipes
    assert (dataset, recipe.model, recipe.batch_size) == ("mnist", "lenet", 100)
    assert recipe.epochs == 1000 / 50
    assert recipe.lr * recipe.epochs == pytest.approx(0.001 * 1000)


def test_the_learning_rate_follows_the_drops_in_any_order() -> None:
    recipe = replace(RECIPE, lr=1.0, lr_drops=((120, 0.01), (80, 0.1)))
    assert [recipe.lr_at(epoch) for epoch in (0, 79, 80, 119, 120, 500)] == [1, 1, 0.1, 0.1, 0.01, 0.01]


def test_attack_keys_can_name_files_and_tell_eps_apart() -> None:
    keys = [AttackSpec("fgm", "hr", eps).key() for eps in (0.1, 0.1000001, 0.25)]
    assert len(set(keys)) == 3
    assert keys[0] == "fgm-hr-0.1"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LossSpec("mse"), r"loss to be one of \['ce', 'hr'\], but got 'mse'"),
        (lambda: LossSpec("hr"), "an alpha for the loss hr"),
        (lambda: LossSpec("ce", 1.6), "for no other"),
        (lambda: LossSpec("hr", -1.0), "alpha above 0"),
        (lambda: replace(RECIPE, model="vgg"), "model to be one of"),
        (lambda: replace(RECIPE, optimizer="lion"), "optimizer to be one of"),
        (lambda: replace(RECIPE, epochs=0), "epochs above 0, but got 0"),
        (lambda: replace(RECIPE, lr=float("nan")), "lr above 0, but got nan"),
        (lambda: replace(RECIPE, momentum=-0.1), "momentum to be at least 0"),
        (lambda: AttackSpec("fgm"), "the attack's loss to be one of"),
        (lambda: AttackSpec("fgm", "hr", 0.0), "eps above 0"),
        (lambda: AttackSpec("none", "ce"), "no loss and no eps"),
        (lambda: replace(grids.digits(), name="../x"), "lower-case letters"),
        (lambda: replace(grids.digits(), seeds=()), "seeds of grid digits to be distinct and not empty"),
        (lambda: replace(grids.digits(), seeds=(1, 1)), "distinct"),
        (lambda: replace(RECIPE, lr=float("inf")), "lr above 0, but got inf"),
        (lambda: replace(RECIPE, epochs=1.5), "epochs to be a whole number, but got 1.5"),
        (lambda: AttackSpec("fgm", "hr", float("inf")), "eps above 0"),
        (
            lambda: replace(grids.digits(), recipes=(("digits", RECIPE), ("digits", replace(RECIPE, lr=1.0)))),
            r"one recipe per data set in grid digits, but got \['digits', 'digits'\]",
        ),
        (lambda: grids.get("mnits"), r"one of \['digits', 'mnist-short'\], but got 'mnits'"),
    ],
)
def test_what_describes_no_experiment_is_refused(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
