"""Part "training" of the speed benchmark: all contenders do the same training, and the readings are correct."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import grids
from benchmarks.config import AttackSpec, LossSpec, RunSpec
from benchmarks.protocols import CE, HR
from benchmarks.recipes import DIGITS, MNIST_SHORT
from benchmarks.speed import growth, subjects, training
from benchmarks.speed.measuring import SECONDS, Settings, frame, reading
from benchmarks.speed.subjects import TrainingSubject, training_subjects
from benchmarks.speed.training import Start, art_fit, bare_loop, loader_loop, trained
from benchmarks.store import Store
from benchmarks.training import build_optimizer

CPU = torch.device("cpu")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(tmp_path, quick=True, seconds=0.1)


@pytest.fixture
def subject(settings: Settings) -> TrainingSubject:
    (digits,) = training_subjects(settings)
    return digits


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# --------------------------------------------------------------------------------------------------- the ways to train


@pytest.mark.parametrize("loss", [CE, HR], ids=str)
def test_whole_run_gives_the_weights_of_the_bare_loop(subject: TrainingSubject, loss: LossSpec, tmp_path: Path) -> None:
    """Initial weights, order and steps are the same, so the weights agree to the bit, in every repetition."""
    start = Start(subject, loss)
    start.training.optimizer = build_optimizer(subject.recipe, start.training.model)
    before = start.fresh()[0].state_dict()
    bare = bare_loop(start).state_dict()
    assert not same(before, bare)
    assert same(start.fresh()[0].state_dict(), before)
    assert same(bare_loop(start).state_dict(), bare)
    for followed in (False, True):
        store = trained([subject.run(loss)], subject.data, tmp_path, followed=followed)
        assert same(store.load_checkpoint(subject.run(loss)), bare)
        curve = store.curve(subject.run(loss))
        assert [row["epoch"] for row in curve] == [1, 2]
        assert all("validation_accuracy" in row and "attacks" not in row for row in curve)


def steps_of(train: Callable[[Start], nn.Module], start: Start) -> list[int]:
    """Return the sizes of the batches of a training."""
    sizes: list[int] = []
    start.loss.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    network = train(start)
    assert not same(network.state_dict(), start.fresh()[0].state_dict())
    return sizes


@pytest.mark.parametrize("train", [bare_loop, loader_loop, art_fit])
def test_every_contender_has_the_same_number_and_sizes_of_batches(
    train: Callable[[Start], nn.Module], subject: TrainingSubject
) -> None:
    """6 batches of 50 and one of 14 make the 314 training images, in each of two epochs."""
    assert steps_of(train, Start(subject, CE)) == 2 * [*[50] * 6, 14]
    assert subject.images == 2 * 314


def test_all_contenders_give_the_same_weights_if_the_order_of_images_has_no_effect(subject: TrainingSubject) -> None:
    """There is a single batch, so the orders of DataLoader and ART change only the rounding of sums."""
    start = Start(replace(subject, recipe=replace(subject.recipe, batch_size=314)), CE)
    bare = bare_loop(start).state_dict()
    for train in (loader_loop, art_fit):
        torch.testing.assert_close(dict(train(start).state_dict()), dict(bare))


def test_large_data_sets_are_cut_to_a_share_on_a_cpu_and_missing_ones_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each split has a tenth of its images on a CPU, and all of them on a GPU."""
    generator = np.random.default_rng(0)
    sizes = {"train": 300, "test": 70}
    arrays = {f"x_{part}": generator.integers(0, 256, (n, 28, 28), np.uint8) for part, n in sizes.items()}
    labels = {f"y_{part}": np.arange(n) % 10 for part, n in sizes.items()}
    np.savez(tmp_path / "small.npz", **arrays, **labels)
    recipe = replace(MNIST_SHORT, validation_size=100)
    networks = {"small CNN": ("digits", DIGITS), "small": ("small", recipe), "none": ("nothing", recipe)}
    monkeypatch.setattr(subjects, "NETWORKS", networks)
    monkeypatch.setitem(subjects.SHARES, "small", 0.1)
    monkeypatch.setitem(subjects.EPOCHS, "small", 3)
    for device, sizes_left in ((CPU, [20, 10, 7]), (torch.device("cuda"), [200, 100, 70])):
        digits, small = training_subjects(Settings(tmp_path, seconds=20, device=device))
        assert "none, nothing" in digits.note
        assert [len(part) for part in (small.data.train, small.data.validation, small.data.test)] == sizes_left
        assert small.images == 3 * sizes_left[0]
        assert small.recipe.device == ("cpu" if device == CPU else "gpu")


# ---------------------------------------------------------------------------------------------------------- throughput


def test_throughput_is_images_per_second_and_its_ratio_is_to_the_bare_loop(subject: TrainingSubject) -> None:
    """628 images in 2 s, 4 s; the bare loop in 1 s, 3 s, so that the ratios are 1/2 and 3/4."""
    times = {training.BARE["HR"]: [1.0, 3.0], training.OURS["HR"]: [2.0, 4.0]}
    readings = frame(training.throughputs("digits", times, subject))
    ours = readings[readings.contender == training.OURS["HR"]].set_index("quantity")
    assert ours.loc[training.RELATIVE, "against"] == training.BARE["HR"]
    shown = ours[["median", "lower", "upper", "n"]]
    assert shown.loc[training.IMAGES].tolist() == [235.5, 196.25, 274.75, 2]
    assert shown.loc[training.RELATIVE].tolist() == [0.625, 0.5625, 0.6875, 2]


# --------------------------------------------------------------------------------------------------------------- Fig. 1


def test_share_of_the_attacks_counts_every_repetition_during_training() -> None:
    """The digits' recipe attacks 5 times in 50 epochs: 5 x 2 s beside 50 x 0.2 s."""
    (recipe,) = training.recipes("digits").values()
    assert training.share(recipe, 2.0, 0.2) == pytest.approx(0.5)
    assert list(training.recipes("mnist")) == ["mnist-short", "mnist"]
    assert training.recipes("cifar10")["cifar10"] == dict(grids.get("cifar10").recipes)["cifar10"]


# --------------------------------------------------------------------------------------------------------------- growth


def test_pool_finishes_every_run_and_raises_an_error_for_failed_ones(tmp_path: Path) -> None:
    runs = [RunSpec("digits", replace(DIGITS, epochs=1), loss, seed=0) for loss in (CE, HR)]
    attacks = (AttackSpec("none"),)
    store = Store(growth.pooled(1, runs, attacks, tmp_path, tmp_path))
    assert all(store.is_done(run, attacks) for run in runs)
    with pytest.raises(RuntimeError, match="expected all of 1 runs to be done, but 1 failed"):
        growth.pooled(1, [replace(runs[0], dataset="nothing")], attacks, tmp_path, tmp_path)


@pytest.mark.parametrize(("cpus", "counts"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_worker_counts(cpus: int, counts: list[int]) -> None:
    assert growth.worker_counts(cpus) == counts


def test_fixed_time_and_time_per_epoch_are_fitted() -> None:
    """0.5 s and 2 s an epoch."""
    readings = [reading(growth.BY_EPOCHS, "a", SECONDS, [0.5 + 2 * x], x=x) for x in (1, 2, 5)]
    assert growth.fixed_and_each(frame(readings), "a") == pytest.approx((0.5, 2.0))
