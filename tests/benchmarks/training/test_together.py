"""Runs that are trained at once leave what they leave when they are trained one by one."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from testing.killed import KilledError, StoreKilledAfter

from art_hrloss.attacks._constraints import margins
from benchmarks import grids, protocols
from benchmarks.config import AttackSpec, Hardening, LossSpec, Recipe, RunSpec
from benchmarks.data import Dataset
from benchmarks.evaluation import trained_classifier
from benchmarks.execution import InProcess, Job, Outcome, grouped, run_all
from benchmarks.execution import _jobs as runner
from benchmarks.report.results import load
from benchmarks.store import Store
from benchmarks.training import _loop as training
from benchmarks.training import train_together
from benchmarks.training._stack import Stack

CE, HR = LossSpec("ce"), LossSpec("hr", 1.6)
# Batches of 50 leave one of 20 images.
RECIPE = Recipe(model="small-cnn", epochs=1, batch_size=50, lr=0.1, validation_size=180)
ADAM = {"lr": 1e-3, "optimizer": "adam"}
KINDS = [
    pytest.param({}, id="sgd"),
    pytest.param({"momentum": 0.9, "l2": 1e-3}, id="momentum"),
    pytest.param(ADAM | {"l2": 1e-3}, id="adam"),
    pytest.param({"lr": 1e-2, "model": "resnet", "subtract_pixel_mean": True}, id="resnet"),
    pytest.param({"lr": 1e-4, "model": "resnet", "input_scale": 255.0}, id="scaled"),
]
# Adam divides a gradient by its own size: one that is nothing but rounding, as that of a bias before batch
# normalisation, moves the weight as far as any other. In float32 no two orders of summing agree on such steps.
KINDS_IN_FLOAT64 = [*KINDS, pytest.param(ADAM | {"model": "resnet", "subtract_pixel_mean": True}, id="resnet adam")]


def runs_of(*losses: LossSpec, seeds: int = 2, **changes) -> list[RunSpec]:
    return [RunSpec("digits", replace(RECIPE, **changes), loss, seed) for seed in range(seeds) for loss in losses]


def alone(runs: list[RunSpec], few: Dataset, root: Path) -> Store:
    for run in runs:
        training.train(run, few, Store(root))
    return Store(root)


def together(runs: list[RunSpec], few: Dataset, root: Path) -> Store:
    assert train_together(runs, few, Store(root)) == {}
    return Store(root)


def expect_alike(runs: list[RunSpec], one: Store, other: Store, *, within: float) -> None:
    """Equal curves and weights, to so much of each array's largest value."""
    for run in runs:
        for row, expected in zip(one.curve(run), other.curve(run), strict=True):
            assert row.keys() == expected.keys()
            assert (row["epoch"], row["lr"]) == (expected["epoch"], expected["lr"])
            assert row["train_loss"] == pytest.approx(expected["train_loss"], rel=within, abs=within)
            for name in ("train_accuracy", "validation_accuracy"):
                assert row[name] == pytest.approx(expected[name], abs=0.009)  # an image between two classes
        weights, expected = one.load_checkpoint(run), other.load_checkpoint(run)
        assert weights.keys() == expected.keys()
        for name, tensor in weights.items():
            scale = max(1.0, float(expected[name].double().abs().max()))
            difference = float((tensor - expected[name]).abs().max())
            assert difference <= within * scale, (str(run), name, difference, scale)


@pytest.mark.parametrize("changes", KINDS)
def test_the_first_steps_are_those_of_runs_alone(few: Dataset, tmp_path: Path, changes: dict) -> None:
    smooth = LossSpec("hr", 2.0, label_smoothing=0.1)
    runs = runs_of(CE, HR, smooth, **changes)
    kept = together(runs, few, tmp_path / "together")
    expect_alike(runs, kept, alone(runs, few, tmp_path / "alone"), within=1e-4)
    # Else nothing was learned, and all is alike whatever the stack does.
    fresh = training.Training(runs[0], few).model.state_dict()
    assert max(float((fresh[name] - w).abs().max()) for name, w in kept.load_checkpoint(runs[0]).items()) > 1e-6


@pytest.mark.parametrize("changes", KINDS_IN_FLOAT64)
def test_in_float64_an_epoch_is_that_of_networks_alone(digits: Dataset, few: Dataset, changes: dict) -> None:
    """So that what float32 makes of it later, where a ReLU or a maximum tips over, is rounding and nothing else."""
    runs, images_of = runs_of(CE, HR, **changes), few if "model" in changes else digits
    recipe, (alone, stacked) = runs[0].recipe, ([training.Training(run, images_of) for run in runs] for _ in range(2))
    for one in (*alone, *stacked):
        one.model.double()
        one.optimizer = training.build_optimizer(recipe, one.model)
    images, labels = images_of.train.tensors(torch.device("cpu"))
    stack = Stack(
        recipe,
        [one.model for one in stacked],
        [run.loss for run in runs],
        [one.optimizer for one in stacked],
        images.double(),
        labels,
    )
    rows = stack.epoch(torch.stack([one.shuffled() for one in stacked]), batch_size=50, lr=recipe.lr)
    # Rounding of 1e-14, over the 1e-8 that Adam adds to the size of a gradient, is 1e-6 of a step.
    within = 1e-6 * recipe.lr if recipe.optimizer == "adam" else 1e-12
    for one, other, row in zip(alone, stacked, rows, strict=True):
        batches = ((images[batch].double(), labels[batch]) for batch in one.shuffled().split(50))
        expected = training.train_epoch(one.model, one.loss, one.optimizer, batches)
        assert row == pytest.approx(expected, rel=1e-12)
        for name, tensor in one.model.state_dict().items():
            torch.testing.assert_close(other.model.state_dict()[name], tensor, rtol=1e-11, atol=within)


@pytest.mark.parametrize("changes", [KINDS[1], KINDS[3]])
def test_a_run_can_change_between_alone_and_together_at_any_epoch(few: Dataset, tmp_path: Path, changes: dict) -> None:
    runs = runs_of(CE, HR, **(changes | {"epochs": 3, "lr": changes["lr"] / 100 if "lr" in changes else 1e-3}))
    expected = alone(runs, few, tmp_path / "alone")
    for run in runs[:2]:  # these begin alone, and the others not at all
        with pytest.raises(KilledError):
            training.train(run, few, StoreKilledAfter(tmp_path / "mixed", 1))
    expect_alike(runs, together(runs, few, tmp_path / "mixed"), expected, within=1e-4)
    with pytest.raises(KilledError):  # all begin together, and all but the first are at the first epoch's end
        train_together(runs, few, StoreKilledAfter(tmp_path / "parted", 2))
    stood = [Store(tmp_path / "parted").epochs_done(run) for run in runs]
    assert sorted(set(stood)) in ([1, 2], [1], [2])
    expect_alike(runs, alone(runs, few, tmp_path / "parted"), expected, within=1e-4)


def test_resuming_together_ends_in_the_same_bits(few: Dataset, tmp_path: Path) -> None:
    attack = AttackSpec("fgm", "ce", 0.1)
    runs = runs_of(CE, HR, epochs=3, momentum=0.5, curve_every=2, curve_attacks=(attack,))
    whole = together(runs, few, tmp_path / "whole")
    recipe, trainings = runs[0].recipe, [training.Training(run, few) for run in runs]
    for end in (1, 2, 3):
        # What train_together does, an epoch at a time, each from what is on disk.
        for one in trainings:
            one.resume(Store(tmp_path / "parts"))
        stack = Stack(
            recipe,
            [one.model for one in trainings],
            [run.loss for run in runs],
            [one.optimizer for one in trainings],
            *trainings[0].train,
        )
        orders = torch.stack([one.shuffled() for one in trainings])
        for one, row in zip(trainings, stack.epoch(orders, batch_size=50, lr=recipe.lr), strict=True):
            one.keep(row, Store(tmp_path / "parts"))
        trainings = [training.Training(run, few) for run in runs]
        assert Store(tmp_path / "parts").epochs_done(runs[0]) == end
    for run in runs:
        state = Store(tmp_path / "parts").load_state(run)
        assert state is not None
        for name, tensor in whole.load_checkpoint(run).items():
            assert torch.equal(tensor, state["model"][name])
        assert [row["train_loss"] for row in state["curve"]] == [row["train_loss"] for row in whole.curve(run)]
        assert state["curve"][1]["attacks"] == whole.curve(run)[1]["attacks"]


def test_a_state_holds_one_run_alone(few: Dataset, tmp_path: Path) -> None:
    runs = runs_of(CE, HR, seeds=4, epochs=2, momentum=0.5)
    sizes = []
    for train in (train_together, lambda runs, few, store: training.train(runs[0], few, store)):
        store = StoreKilledAfter(tmp_path / str(len(sizes)), 1)
        with pytest.raises(KilledError):
            train(runs, few, store)
        sizes.append((store.folder(runs[0]) / "state.pt").stat().st_size)
    assert sizes[0] < 1.1 * sizes[1]


def test_a_run_whose_loss_is_lost_ends_and_the_others_go_on(few: Dataset, tmp_path: Path) -> None:
    runs = runs_of(CE, HR, epochs=2)
    healthy, store = together(runs, few, tmp_path / "healthy"), Store(tmp_path / "ill")
    for run in runs:
        with pytest.raises(KilledError):
            training.train(run, few, StoreKilledAfter(store.root, 1))
    state = store.load_state(runs[1])
    assert state is not None
    state["model"]["1.0.weight"].fill_(torch.nan)
    store.save_state(runs[1], state)
    failures = train_together(runs, few, store)
    assert list(failures) == [runs[1]]
    assert "became nan in epoch 2" in str(failures[runs[1]])
    assert not store.is_trained(runs[1])
    others = [runs[0], *runs[2:]]
    expect_alike(others, store, healthy, within=1e-4)


def test_margins_are_scaled_as_alone(digits: Dataset, tmp_path: Path) -> None:
    runs = runs_of(LossSpec("ce", margin=5.0), LossSpec("hr", 1.6, margin=3.0), epochs=2, optimizer="adam", lr=0.003)
    store = together(runs, digits, tmp_path)
    for run in runs:
        classifier = trained_classifier(run, digits, store)
        images, labels = digits.validation.tensors(torch.device("cpu"))
        found = margins(classifier.predict(images.numpy()).astype(np.float64), labels.numpy())
        assert np.median(found) == pytest.approx(run.loss.margin, rel=1e-5)


def test_what_cannot_be_stacked_is_refused(few: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one data set and recipe"):
        train_together([*runs_of(CE), *runs_of(CE, lr=0.2)], few, Store(tmp_path))
    with pytest.raises(ValueError, match="stacked"):
        train_together(runs_of(CE, LossSpec("ce", hardening=Hardening("noise", 0.1))), few, Store(tmp_path))


def test_groups_are_of_one_recipe_in_order(tmp_path: Path) -> None:
    hardened = LossSpec("ce", hardening=Hardening("noise", 0.1))
    runs = [*runs_of(CE, HR, hardened, seeds=3), *runs_of(CE, lr=0.2)]
    jobs = [Job(run, (), tmp_path, tmp_path) for run in runs]
    for together, sizes in ((1, [1] * 11), (4, [4, 1, 2, 1, 1, 2]), (10, [6, 1, 1, 1, 2])):
        groups = grouped(jobs, together)
        assert sorted((len(g.jobs) for g in groups), reverse=True) == sorted(sizes, reverse=True)
        assert {job for group in groups for job in group.jobs} == set(jobs)
        for group in groups:
            assert len({job.run.recipe for job in group.jobs}) == 1
            assert [jobs.index(job) for job in group.jobs] == sorted(jobs.index(job) for job in group.jobs)
            assert len(group.jobs) == 1 or not any(job.run.loss.hardening for job in group.jobs)


def test_a_grid_done_together_has_the_same_files_and_nearly_the_same_records(tmp_path: Path) -> None:
    grid = replace(grids.digits(), seeds=(0, 1), attacks=protocols.TABLE_1_ATTACKS)
    recipe = replace(grid.recipes[0][1], epochs=2, curve_every=2)
    small = replace(grid, recipes=(("digits", recipe),))
    runs = small.runs()
    ended: dict[int, list[Outcome]] = {1: [], 3: []}
    for at_once, outcomes in ended.items():
        jobs = [Job(run, grid.attacks, tmp_path / str(at_once), tmp_path) for run in runs]
        failures = run_all(
            jobs,
            lambda: nullcontext(InProcess()),
            lambda run, outcome, outcomes=outcomes: outcomes.append(outcome),
            together=at_once,
        )
        assert failures == 0
        assert outcomes == [Outcome()] * 4

    def names(root: Path) -> list[str]:
        return sorted(str(path.relative_to(root)) for path in root.rglob("*"))

    assert names(tmp_path / "1") == names(tmp_path / "3")
    stores = [Store(tmp_path / str(at_once)) for at_once in ended]
    logged = [entry.get("together") for entry in stores[1].log_entries(runs[0]) if entry["event"] == "epoch"]
    assert logged == [3, 3]
    assert load(small, stores[1]).epoch_seconds.keys() == {runs[3]}  # the only one that was trained alone
    for run in runs:
        for attack in grid.attacks:
            one, other = (store.record(run, attack) for store in stores)
            assert one is not None
            assert other is not None
            assert one.n == other.n
            assert abs(int(one.right.sum()) - int(other.right.sum())) <= 4  # of 360 images, after 44 steps


def test_of_a_group_what_fails_fails_alone(tmp_path: Path) -> None:
    runs = runs_of(CE, HR, seeds=1)
    lost = RunSpec("digits", runs[0].recipe, LossSpec("ce", margin=5.0), 1)  # no median margin above 0 so soon
    jobs = [Job(run, (AttackSpec("none"),), tmp_path, tmp_path) for run in (*runs, lost)]
    store = Store(tmp_path)
    with store.lock(runs[1]):  # as another process would
        outcomes = runner.execute_together(runner.Group(tuple(jobs)))
    assert outcomes[0] == Outcome()
    assert outcomes[1] == Outcome(busy=True)
    assert isinstance(outcomes[2].error, training.TrainingError)
    assert "median margin above 0" in (store.error(lost) or "")
    assert store.record(runs[0], AttackSpec("none")) is not None
    assert store.record(runs[1], AttackSpec("none")) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a recorded step wants a GPU")
def test_recorded_steps_are_the_steps(few: Dataset, tmp_path: Path) -> None:
    runs = runs_of(CE, HR, epochs=6, device="gpu", optimizer="adam", lr=1e-3, lr_drops=((5, 0.1),))
    expect_alike(runs, together(runs, few, tmp_path / "a"), alone(runs, few, tmp_path / "b"), within=1e-3)
