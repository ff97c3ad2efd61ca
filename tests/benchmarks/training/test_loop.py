"""Training of one run: recipe, pairs of losses with one seed, learning curve, and bit-exact resumption."""

import math
import random
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from testing.killed import KilledError, StoreKilledAfter

from benchmarks import evaluation, models
from benchmarks.config import AttackSpec, LossSpec, Recipe, RunSpec
from benchmarks.data import Dataset
from benchmarks.protocols import BOUNDED, protocol
from benchmarks.store import Store
from benchmarks.store import _store as store_module
from benchmarks.training import _loop as training
from benchmarks.training import train

RECIPE = Recipe(model="small-cnn", epochs=4, batch_size=50, lr=0.1, momentum=0.5, lr_drops=((2, 0.1),))
CPU = torch.device("cpu")
CURVE_ATTACKS = (
    AttackSpec("none"),
    AttackSpec("fgm", "ce", 0.1),
    AttackSpec("fgm", "ce", 0.25),
    AttackSpec("fgm", "hr", 0.1, split="validation"),
    AttackSpec("fgm", "clipped-ce", 0.1, units="data"),
)
CURVE = {"curve_every": 2, "curve_attacks": CURVE_ATTACKS}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def run_of(loss: str = "hr", seed: int = 0, **changes) -> RunSpec:
    spec = LossSpec("hr", 1.6) if loss == "hr" else LossSpec("ce")
    return RunSpec("digits", replace(RECIPE, **changes), spec, seed)


RESUMED = [
    pytest.param({"lr": 0.1}, id="sgd"),
    pytest.param({"lr": 1e-3, "optimizer": "adam"}, id="adam"),
    pytest.param({"lr": 1e-3, "optimizer": "adam", "model": "resnet", "subtract_pixel_mean": True}, id="resnet"),
]


def files(store: Store, run: RunSpec) -> list[bytes]:
    return [(store.folder(run) / name).read_bytes() for name in ("model.safetensors", "curve.json")]


@pytest.mark.parametrize("changes", RESUMED)
def test_a_run_that_is_killed_after_any_epoch_resumes_to_the_same_bytes(
    few: Dataset, tmp_path: Path, changes: dict
) -> None:
    run = run_of(**changes, **CURVE)
    whole, often = Store(tmp_path / "whole"), tmp_path / "often"
    train(run, few, whole)
    for epoch in (1, 2, 3, 4):
        once = tmp_path / f"once-{epoch}"
        for root in (once, often):
            with pytest.raises(KilledError):
                train(run, few, StoreKilledAfter(root, epoch))
            assert not Store(root).is_trained(run)
        train(run, few, Store(once))
        assert files(Store(once), run) == files(whole, run)
    train(run, few, Store(often))
    assert files(Store(often), run) == files(whole, run)


def test_the_losses_of_a_seed_have_the_same_initial_weights_and_order(
    digits: Dataset, store: Store, monkeypatch
) -> None:
    seen: dict[str, list] = {"ce": [], "hr": []}

    def spy(model, loss, optimizer, batches):
        name = "hr" if hasattr(loss, "alpha") else "ce"
        weights = torch.cat([p.detach().reshape(-1).clone() for p in model.parameters()])
        seen[name].append((weights, torch.cat([labels for _, labels in batches])))
        return {"train_loss": 0.0, "train_accuracy": 0.0}

    monkeypatch.setattr(training, "train_epoch", spy)
    for name in seen:
        train(run_of(name, epochs=2), digits, store)
    for ce, hr in zip(*seen.values(), strict=True):
        assert torch.equal(ce[0], hr[0])
        assert torch.equal(ce[1], hr[1])
    assert not torch.equal(seen["ce"][0][1], seen["ce"][1][1]), "each epoch has another order"


@pytest.mark.parametrize("loss", ["ce", "hr"])
def test_training_learns_real_digits(digits: Dataset, store: Store, loss: str) -> None:
    run = run_of(loss, epochs=8, optimizer="adam", lr=3e-3, lr_drops=())
    train(run, digits, store)
    curve = store.curve(run)
    assert [row["epoch"] for row in curve] == list(range(1, 9))
    assert curve[-1]["train_loss"] < curve[0]["train_loss"] / 2
    model = models.build_for(run.recipe, digits)
    model.load_state_dict(store.load_checkpoint(run))
    assert curve[-1]["validation_accuracy"] == training.accuracy(model, *digits.validation.tensors(CPU))
    assert training.accuracy(model, *digits.test.tensors(CPU)) > 0.9


def test_a_loss_that_is_not_finite_stops_the_run(digits: Dataset, store: Store) -> None:
    with pytest.raises(training.TrainingError, match=r"the loss of digits, HR\(1.6\), seed 0 became nan in epoch"):
        train(run_of(lr=1e30), digits, store)
    assert not store.is_trained(run_of(lr=1e30))


def test_the_penalty_is_the_gradient_of_l2_times_the_kernels_squares(digits: Dataset) -> None:
    run = run_of(l2=1e-2, lr=1.0, momentum=0.0)
    model = models.build_for(run.recipe, digits, seed=1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    training.build_optimizer(run.recipe, model).step()
    for name, p in model.named_parameters():
        convolution = before[name].ndim == 4
        torch.testing.assert_close(p.detach(), before[name] * (1 - 2e-2 if convolution else 1.0))


def record_epochs(monkeypatch, run: RunSpec, data: Dataset, store: Store) -> list[dict]:
    """Train, and return each epoch's initial weights, images, labels and learning rates."""
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
    train(run, data, store)
    return epochs


def test_an_epoch_has_every_training_image_once_with_its_label(digits: Dataset, store: Store, monkeypatch) -> None:
    (epoch,) = record_epochs(monkeypatch, run_of(epochs=1), digits, store)
    assert epoch["sizes"] == [50] * 25 + [7]
    images, labels = digits.train.tensors(CPU)

    def sorted_pairs(images: torch.Tensor, labels: torch.Tensor) -> list[list[float]]:
        return sorted(torch.cat([labels[:, None].float(), images.flatten(1)], dim=1).tolist())

    assert sorted_pairs(epoch["images"], epoch["labels"]) == sorted_pairs(images, labels)
    assert not torch.equal(epoch["labels"], labels), "the order is random"


def test_seeds_have_different_weights_and_orders(digits: Dataset, tmp_path: Path, monkeypatch) -> None:
    ((one,), (other,)) = (
        record_epochs(monkeypatch, run_of(epochs=1, seed=seed), digits, Store(tmp_path)) for seed in (0, 1)
    )
    assert not torch.equal(one["weights"], other["weights"])
    assert not torch.equal(one["labels"], other["labels"])


def test_weights_and_orders_use_different_seeds_of_torch(digits: Dataset, store: Store, monkeypatch) -> None:
    drawn: list[int] = []
    build = models.build

    def watch(*args, seed: int, **options) -> torch.nn.Module:
        drawn.append(seed)
        return build(*args, seed=seed, **options)

    monkeypatch.setattr(models, "build", watch)
    orders = [record_epochs(monkeypatch, run_of(epochs=1, seed=seed), digits, store)[0]["labels"] for seed in (0, 1)]
    labels = torch.from_numpy(digits.train.labels)
    # The seed of a run's weights is not the seed of an order, neither of its own nor of another run.
    for seed in drawn:
        permutation = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        assert not any(torch.equal(order, labels[permutation]) for order in orders)


def test_each_epoch_uses_its_learning_rate(digits: Dataset, store: Store, monkeypatch) -> None:
    epochs = record_epochs(monkeypatch, run_of(), digits, store)
    expected = [0.1, 0.1, 0.01, 0.01]
    for epoch, rate in zip(epochs, expected, strict=True):
        assert epoch["rates"] == pytest.approx([rate, rate]), "both groups of parameters have the learning rate"
    assert [row["lr"] for row in store.curve(run_of())] == pytest.approx(expected, rel=1e-12)


def test_an_epoch_consists_of_sgd_steps_with_momentum_and_its_metrics_are_means(digits: Dataset) -> None:
    run = run_of("ce")
    model, plain = (models.build_for(run.recipe, digits, seed=3) for _ in range(2))
    images, labels = digits.train.tensors(CPU)
    # With batches of unequal sizes, the loss is a mean over batches, and the accuracy a mean over images.
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


def test_batch_statistics_are_updated_in_training_and_fixed_in_evaluation(digits: Dataset) -> None:
    run = run_of(model="resnet", batch_size=25)
    model = models.build_for(run.recipe, digits)
    mean = model[1][1].running_mean
    images, labels = digits.train.tensors(CPU)
    model.eval()
    optimizer = training.build_optimizer(run.recipe, model)
    training.train_epoch(model, training.training_loss(run.loss), optimizer, iter([(images[:25], labels[:25])]))
    learnt = mean.clone()
    assert learnt.any()
    training.accuracy(model, images[:25], labels[:25])
    assert torch.equal(mean, learnt)


def test_a_run_that_is_killed_before_its_last_row_is_written_ends_with_a_complete_curve(
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
            train(run, digits, store)
    train(run, digits, store)
    assert [row["epoch"] for row in store.curve(run)] == [1, 2]


@pytest.mark.parametrize("every", [1, 2, 3, 4, 5])
def test_the_attacks_of_the_curve_are_computed_at_the_interval_of_the_recipe(
    few: Dataset, store: Store, every: int
) -> None:
    run = run_of(curve_every=every, curve_attacks=CURVE_ATTACKS)
    train(run, few, store)
    curve = store.curve(run)
    assert [row["epoch"] for row in curve if "attacks" in row] == [e for e in (1, 2, 3, 4) if e % every == 0]
    plain = {"epoch", "lr", "train_loss", "train_accuracy", "validation_accuracy"}
    for row in curve:
        assert set(row) - {"attacks", "bounds"} == plain
        if "attacks" in row:
            assert set(row["attacks"]) == {spec.key() for spec in CURVE_ATTACKS}


@pytest.mark.parametrize("input_scale", [1.0, 255.0])
def test_the_last_point_of_the_curve_equals_the_records(digits: Dataset, store: Store, input_scale: float) -> None:
    run = run_of(optimizer="adam", lr=1e-3, input_scale=input_scale, **CURVE)
    train(run, digits, store)
    evaluation.evaluate(run, CURVE_ATTACKS, digits, store)
    records = {spec.key(): store.record(run, spec) for spec in CURVE_ATTACKS}
    *_, last = store.curve(run)
    assert last["attacks"] == {key: record.accuracy for key, record in records.items()}
    shown = {spec.key() for spec in CURVE_ATTACKS if protocol(spec) in BOUNDED}
    assert last["bounds"].keys() == shown, "bounds exist for the attacks for which reports show them"
    for key, bounds in last["bounds"].items():
        expected = records[key].bounds()
        assert bounds == {name: value if math.isfinite(value) else None for name, value in expected.items()}
    assert {record.n for record in records.values()} == {180, 360}
    assert 0 < last["attacks"]["fgm-ce-0.25"] < last["attacks"]["fgm-ce-0.1"] < last["attacks"]["none"] < 1
    if input_scale == 255:
        assert last["attacks"]["fgm-clipped-ce-0.1-data"] > last["attacks"]["fgm-ce-0.1"]


def test_a_point_of_the_curve_is_measured_on_the_network_at_its_epoch(digits: Dataset, store: Store) -> None:
    run = run_of(curve_every=1, curve_attacks=CURVE_ATTACKS)
    for epoch in (1, 2, 3):
        # Also a resumed run attacks the network that it trains.
        with pytest.raises(KilledError):
            train(run, digits, StoreKilledAfter(store.root, epoch))
        state = store.load_state(run)
        model = models.build_for(run.recipe, digits)
        model.load_state_dict(state["model"])
        measured = evaluation.measure_all(CURVE_ATTACKS, evaluation.as_classifier(model, run, digits), digits)
        expected = {spec.key(): record.accuracy for spec, record in measured}
        assert state["curve"][-1]["attacks"] == expected
    train(run, digits, store)
    points = [tuple(row["attacks"].values()) for row in store.curve(run)]
    assert len(set(points)) == 4, "each epoch has another point"


@pytest.mark.parametrize("model", ["small-cnn", "resnet"])
def test_attacks_during_training_change_no_weight(few: Dataset, store: Store, model: str) -> None:
    plain = run_of(model=model, optimizer="adam", lr=1e-3)
    attacked = replace(plain, recipe=replace(plain.recipe, curve_every=1, curve_attacks=CURVE_ATTACKS))
    for run in (plain, attacked):
        train(run, few, store)
    ours, theirs = store.load_checkpoint(attacked), store.load_checkpoint(plain)
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    measured = ("attacks", "bounds")
    bare = [{name: value for name, value in row.items() if name not in measured} for row in store.curve(attacked)]
    assert bare == store.curve(plain)


def test_the_log_has_the_seconds_of_each_epoch_with_and_without_its_attacks(
    few: Dataset, store: Store, monkeypatch
) -> None:
    pause = 0.05
    train_epoch, curve_point = training.train_epoch, training.curve_point

    def slow_epoch(*args):
        time.sleep(pause)
        return train_epoch(*args)

    def slow_attacks(*args, **options):
        time.sleep(pause)
        return curve_point(*args, **options)

    monkeypatch.setattr(training, "train_epoch", slow_epoch)
    monkeypatch.setattr(training, "curve_point", slow_attacks)
    run = run_of(**CURVE)
    train(run, few, store)
    entries = [entry for entry in store.log_entries(run) if entry["event"] == "epoch"]
    assert [entry["epoch"] for entry in entries] == [1, 2, 3, 4]
    for entry in entries:
        assert pause <= entry["training"] <= entry["seconds"]
        if entry["epoch"] % 2 == 0:
            # Both values are rounded to milliseconds.
            assert entry["seconds"] - entry["training"] >= pause - 0.001


def generators() -> tuple:
    """Return the states of the global random generators of torch, NumPy and Python."""
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002


def test_training_restores_the_global_random_generators(few: Dataset, store: Store) -> None:
    before = generators()
    train(run_of(model="resnet"), few, store)
    assert generators() == before


def test_training_and_its_attacks_do_not_use_the_global_random_generators(few: Dataset, tmp_path: Path) -> None:
    run = run_of(model="resnet", **CURVE)
    ends = []
    for seed in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            before = generators()
            train(run, few, Store(tmp_path / str(seed)))
            # Torch's generator is not compared: torch's data loader, which ART uses, draws from it.
            assert generators()[1:] == before[1:]
        ends.append(files(Store(tmp_path / str(seed)), run))
    assert ends[0] == ends[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to train on")
def test_a_missing_gpu_is_not_replaced_by_the_cpu(few: Dataset, store: Store) -> None:
    run = run_of(device="gpu")
    with pytest.raises((AssertionError, RuntimeError), match=r"CUDA|NVIDIA"):
        train(run, few, store)
    assert not store.is_trained(run)


@pytest.mark.parametrize("batch_size", [1, 7, 120, 500])
def test_accuracy_does_not_depend_on_the_batch_size(few: Dataset, batch_size: int) -> None:
    model = models.build_for(RECIPE, few, seed=2).train()
    images, labels = few.test.tensors(CPU)
    expected = (model(images).argmax(1) == labels).float().mean().item()
    assert 0 < expected < 1
    assert training.accuracy(model, images, labels, batch_size=batch_size) == pytest.approx(expected, abs=1e-6)
    assert not model.training


def test_a_network_with_dropout_resumes_to_the_same_bits(few: Dataset, tmp_path, monkeypatch) -> None:
    """Dropout depends on the run's seed and the epoch, and not on earlier random numbers of the process."""
    build, run = models.build_for, run_of(epochs=2)

    def with_dropout(*args, **kwargs) -> torch.nn.Module:
        return torch.nn.Sequential(build(*args, **kwargs), torch.nn.Dropout(0.2))

    monkeypatch.setattr(models, "build_for", with_dropout)
    whole, parts = Store(tmp_path / "whole"), StoreKilledAfter(tmp_path / "parts", 1)
    train(run, few, whole)
    with pytest.raises(KilledError):
        train(run, few, parts)
    torch.rand(3)
    train(run, few, Store(parts.root))
    resumed = parts.load_checkpoint(run)
    assert all(torch.equal(weights, resumed[name]) for name, weights in whole.load_checkpoint(run).items())
