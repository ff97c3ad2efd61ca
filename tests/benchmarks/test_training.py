"""Training does what the recipe says, pairs the losses of a seed, and resumes to the same bits."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import data, models, training
from benchmarks import store as store_module
from benchmarks.config import LossSpec, Recipe, RunSpec
from benchmarks.data import Dataset, Split
from benchmarks.store import Store

RECIPE = Recipe(model="small-cnn", epochs=4, batch_size=50, lr=0.1, momentum=0.5, lr_drops=((2, 0.1),))
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return data.load("digits", data_dir=Path("none"), validation_size=180)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def run_of(loss: str = "hr", seed: int = 0, **changes) -> RunSpec:
    spec = LossSpec("hr", 1.6) if loss == "hr" else LossSpec("ce")
    return RunSpec("digits", replace(RECIPE, **changes), spec, seed)


class KilledError(Exception):
    """Stands for whatever ends a process between two epochs."""


class StoreKilledAfter(Store):
    """A store whose process dies right after it has kept its so-manieth epoch."""

    def __init__(self, root: Path, epoch: int) -> None:
        super().__init__(root)
        self.epoch = epoch

    def save_state(self, run: RunSpec, state: dict) -> None:
        super().save_state(run, state)
        if len(state["curve"]) == self.epoch:
            raise KilledError


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_resuming_ends_in_the_bits_of_an_uninterrupted_run(digits: Dataset, tmp_path: Path, optimizer: str) -> None:
    run = run_of(optimizer=optimizer, lr=0.1 if optimizer == "sgd" else 1e-3)
    whole = Store(tmp_path / "whole")
    training.train(run, digits, whole, device=CPU)
    for epoch in (1, 3):
        with pytest.raises(KilledError):
            training.train(run, digits, StoreKilledAfter(tmp_path / "parts", epoch), device=CPU)
        assert Store(tmp_path / "parts").epochs_done(run) == epoch
    training.train(run, digits, Store(tmp_path / "parts"), device=CPU)
    for name in ("model.safetensors", "curve.json"):
        assert (tmp_path / "parts/runs" / run.key() / name).read_bytes() == (whole.folder(run) / name).read_bytes()


def test_the_losses_of_a_seed_share_weights_and_order(digits: Dataset, store: Store, monkeypatch) -> None:
    seen: dict[str, list] = {"ce": [], "hr": []}

    def spy(model, loss, optimizer, batches):
        name = "hr" if hasattr(loss, "alpha") else "ce"
        weights = torch.cat([p.detach().reshape(-1).clone() for p in model.parameters()])
        seen[name].append((weights, torch.cat([labels for _, labels in batches])))
        return {"train_loss": 0.0, "train_accuracy": 0.0}

    monkeypatch.setattr(training, "train_epoch", spy)
    for name in seen:
        training.train(run_of(name, epochs=2), digits, store, device=CPU)
    for ce, hr in zip(*seen.values(), strict=True):
        assert torch.equal(ce[0], hr[0])
        assert torch.equal(ce[1], hr[1])
    assert not torch.equal(seen["ce"][0][1], seen["ce"][1][1]), "every epoch has an order of its own"


@pytest.mark.parametrize("loss", ["ce", "hr"])
def test_it_learns_real_digits(digits: Dataset, store: Store, loss: str) -> None:
    run = run_of(loss, epochs=8, optimizer="adam", lr=3e-3, lr_drops=())
    training.train(run, digits, store, device=CPU)
    curve = store.curve(run)
    assert [row["epoch"] for row in curve] == list(range(1, 9))
    assert curve[-1]["train_loss"] < curve[0]["train_loss"] / 2
    model = training.new_model(run, digits)
    model.load_state_dict(store.load_checkpoint(run))
    assert curve[-1]["validation_accuracy"] == training.accuracy(model, digits.validation, CPU)
    assert training.accuracy(model, digits.test, CPU) > 0.9


def test_the_learning_rate_of_each_epoch_is_the_recipes(digits: Dataset, store: Store) -> None:
    training.train(run_of(), digits, store, device=CPU)
    assert [row["lr"] for row in store.curve(run_of())] == pytest.approx([0.1, 0.1, 0.01, 0.01], rel=1e-12)


def test_a_loss_that_is_no_longer_finite_stops_the_run(digits: Dataset, store: Store) -> None:
    with pytest.raises(training.TrainingError, match=r"the loss of digits, HR\(1.6\), seed 0 became nan in epoch"):
        training.train(run_of(lr=1e30), digits, store, device=CPU)
    assert not store.is_trained(run_of(lr=1e30))


def test_the_penalty_is_the_gradient_of_l2_times_the_kernels_squares(digits: Dataset) -> None:
    run = run_of(l2=1e-2, lr=1.0, momentum=0.0)
    model = training.new_model(run, digits, seed=1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    training.build_optimizer(run.recipe, model).step()
    for name, p in model.named_parameters():
        convolution = before[name].ndim == 4
        torch.testing.assert_close(p.detach(), before[name] * (1 - 2e-2 if convolution else 1.0))


def test_the_pixel_mean_is_that_of_the_training_images(digits: Dataset) -> None:
    model = training.new_model(run_of(subtract_pixel_mean=True), digits)
    expected = torch.from_numpy(digits.train.images.astype(np.float64).mean(0) / 255).float()
    torch.testing.assert_close(model[0].mean, expected)


def test_images_become_floats_between_0_and_1() -> None:
    split = Split(np.array([[[[0, 128, 255]]]], np.uint8), np.array([3]))
    images, labels = training.tensors(split, CPU)
    assert images.dtype == torch.float32
    assert images.flatten().tolist() == pytest.approx([0, 128 / 255, 1])
    assert labels.tolist() == [3]


def watched(monkeypatch, run: RunSpec, data: Dataset, store: Store) -> list[dict]:
    """Train, and tell of each epoch the weights it began with, its images and labels, and its learning rates."""
    epochs: list[dict] = []

    def watch(model, loss, optimizer, batches):
        batches = list(batches)
        epochs.append(
            {
                "weights": torch.cat([p.detach().reshape(-1).clone() for p in model.parameters()]),
                "images": torch.cat([images for images, _ in batches]),
                "labels": torch.cat([labels for _, labels in batches]),
                "sizes": [len(labels) for _, labels in batches],
                "rates": [group["lr"] for group in optimizer.param_groups],
            }
        )
        return {"train_loss": 0.0, "train_accuracy": 0.0}

    monkeypatch.setattr(training, "train_epoch", watch)
    training.train(run, data, store, device=CPU)
    return epochs


def test_an_epoch_is_every_training_image_once_with_its_label_and_no_other(
    digits: Dataset, store: Store, monkeypatch
) -> None:
    (epoch,) = watched(monkeypatch, run_of(epochs=1), digits, store)
    assert epoch["sizes"] == [50] * 25 + [7]
    images, labels = training.tensors(digits.train, CPU)

    def sorted_pairs(images: torch.Tensor, labels: torch.Tensor) -> list[list[float]]:
        return sorted(torch.cat([labels[:, None].float(), images.flatten(1)], dim=1).tolist())

    assert sorted_pairs(epoch["images"], epoch["labels"]) == sorted_pairs(images, labels)
    assert not torch.equal(epoch["labels"], labels), "the order is drawn"


def test_seeds_share_neither_weights_nor_order(digits: Dataset, tmp_path: Path, monkeypatch) -> None:
    ((one,), (other,)) = (watched(monkeypatch, run_of(epochs=1, seed=seed), digits, Store(tmp_path)) for seed in (0, 1))
    assert not torch.equal(one["weights"], other["weights"])
    assert not torch.equal(one["labels"], other["labels"])


def test_no_seed_of_torchs_is_used_twice(digits: Dataset, store: Store, monkeypatch) -> None:
    drawn: list[int] = []
    build = models.build

    def watch(*args, seed: int, **options) -> torch.nn.Module:
        drawn.append(seed)
        return build(*args, seed=seed, **options)

    monkeypatch.setattr(models, "build", watch)
    orders = [watched(monkeypatch, run_of(epochs=1, seed=seed), digits, store)[0]["labels"] for seed in (0, 1)]
    labels = torch.from_numpy(digits.train.labels)
    # The seed of a run's weights draws no order: not its own, nor that of the run before it.
    for seed in drawn:
        permutation = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        assert not any(torch.equal(order, labels[permutation]) for order in orders)


def test_each_epoch_is_trained_at_its_learning_rate(digits: Dataset, store: Store, monkeypatch) -> None:
    epochs = watched(monkeypatch, run_of(), digits, store)
    expected = [0.1, 0.1, 0.01, 0.01]
    for epoch, rate in zip(epochs, expected, strict=True):
        assert epoch["rates"] == pytest.approx([rate, rate]), "for kernels and the rest alike"


def test_an_epoch_is_steps_of_sgd_with_momentum_and_its_figures_are_means(digits: Dataset) -> None:
    run = run_of("ce")
    model, plain = (training.new_model(run, digits, seed=3) for _ in range(2))
    images, labels = training.tensors(digits.train, CPU)
    # Of unequal sizes: the loss is a mean over batches, the accuracy one over images.
    batches = [(images[:50], labels[:50]), (images[50:60], labels[50:60])]
    row = training.train_epoch(
        model, training.training_loss(run.loss), training.build_optimizer(run.recipe, model), iter(batches)
    )
    losses, hits = [], 0
    steps = [torch.zeros_like(parameter) for parameter in plain.parameters()]
    for x, y in batches:
        logits = plain(x)
        loss = torch.nn.functional.cross_entropy(logits, y)
        gradients = torch.autograd.grad(loss, list(plain.parameters()))
        with torch.no_grad():
            for parameter, step, gradient in zip(plain.parameters(), steps, gradients, strict=True):
                step.mul_(run.recipe.momentum).add_(gradient)
                parameter -= run.recipe.lr * step
        losses.append(loss.item())
        hits += int((logits.argmax(1) == y).sum())
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert row == pytest.approx({"train_loss": np.mean(losses), "train_accuracy": hits / 60})


def test_batch_statistics_are_learnt_in_training_and_used_as_they_are_in_evaluation(digits: Dataset) -> None:
    run = run_of(model="resnet", batch_size=25)
    model = training.new_model(run, digits)
    mean = model[1][1].running_mean
    images, labels = training.tensors(digits.train, CPU)
    model.eval()
    optimizer = training.build_optimizer(run.recipe, model)
    training.train_epoch(model, training.training_loss(run.loss), optimizer, iter([(images[:25], labels[:25])]))
    learnt = mean.clone()
    assert learnt.any()
    training.accuracy(model, Split(digits.train.images[:25], digits.train.labels[:25]), CPU)
    assert torch.equal(mean, learnt)


def test_a_run_killed_before_its_last_row_is_written_ends_with_a_whole_curve(
    digits: Dataset, store: Store, monkeypatch
) -> None:
    run, write = run_of(epochs=2), store_module.write_json

    def killed(path: Path, value: object) -> None:
        if isinstance(value, list) and len(value) == 2:
            raise KilledError
        write(path, value)

    with monkeypatch.context() as until_killed:
        until_killed.setattr(store_module, "write_json", killed)
        with pytest.raises(KilledError):
            training.train(run, digits, store, device=CPU)
    training.train(run, digits, store, device=CPU)
    assert [row["epoch"] for row in store.curve(run)] == [1, 2]
