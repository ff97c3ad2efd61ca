"""Training with noise and with ART's adversarial trainers: images, steps, and bit-exact resumption."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from art.attacks.evasion import ProjectedGradientDescentPyTorch
from testing.killed import KilledError, StoreKilledAfter

from art_hrloss import HRClassifier, ProjectedGradientDescent, seeded
from art_hrloss.attacks._constraints import margins
from benchmarks import evaluation, models
from benchmarks.config import Hardening, LossSpec, Recipe, RunSpec
from benchmarks.data import Dataset, Split
from benchmarks.store import Store
from benchmarks.training import TrainingError, train
from benchmarks.training import _adversarial as hardening
from benchmarks.training import _loop as training
from benchmarks.training._adversarial import Whole, adversarial_epoch, noisy

RECIPE = Recipe(model="small-cnn", epochs=3, batch_size=40, lr=3e-3, optimizer="adam")
NOISE, MADRY = Hardening("noise", 0.1), Hardening("madry", 0.1, steps=2)
TRADES = Hardening("trades", 0.1, steps=2, beta=6.0)
EACH = pytest.mark.parametrize("kind", [NOISE, MADRY, TRADES], ids=str)
ADVERSARIAL = pytest.mark.parametrize("kind", [MADRY, TRADES], ids=str)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def few(few: Dataset) -> Dataset:
    """A hundred images: one batch of 100, or two batches of 50."""
    return replace(few, train=Split(few.train.images[:100], few.train.labels[:100]))


def run_of(kind: Hardening | None = None, loss: str = "hr", **changes) -> RunSpec:
    spec = LossSpec(loss, 1.6 if loss == "hr" else None, hardening=kind)
    return RunSpec("digits", replace(RECIPE, **changes), spec, 0)


def files(root: Path, run: RunSpec) -> list[bytes]:
    return [(Store(root).folder(run) / name).read_bytes() for name in ("model.safetensors", "curve.json")]


def generators() -> tuple:
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002


@pytest.mark.parametrize("model", ["small-cnn", "resnet"])
@EACH
def test_a_run_with_a_defence_resumes_to_the_same_bits_and_restores_the_random_generators(
    few: Dataset, tmp_path: Path, kind: Hardening, model: str, capfd
) -> None:
    """The ResNet's batch statistics are part of the training state."""
    run, before = run_of(kind, model=model), generators()
    train(run, few, Store(tmp_path / "whole"))
    assert generators() == before
    np.random.rand(3)  # noqa: NPY002  # other random numbers of the process have no effect
    for epoch in (1, 3):
        with pytest.raises(KilledError):
            train(run, few, StoreKilledAfter(tmp_path / "parts", epoch))
    train(run, few, Store(tmp_path / "parts"))
    assert files(tmp_path / "parts", run) == files(tmp_path / "whole", run)
    assert capfd.readouterr().err == "", "ART's progress bars are not shown"


@EACH
def test_a_defence_changes_the_trained_weights_and_not_the_initial_ones(
    few: Dataset, tmp_path: Path, kind: Hardening
) -> None:
    store = Store(tmp_path)
    runs = [run_of(kind), run_of(), run_of(replace(kind, eps=0.05)), run_of(kind, loss="ce")]
    for run in runs:
        train(run, few, store)
    weights = [store.load_checkpoint(run)["1.0.weight"] for run in runs]
    assert not any(torch.equal(weights[0], other) for other in weights[1:])


@EACH
def test_each_epoch_has_other_random_numbers(few: Dataset, tmp_path: Path, monkeypatch, kind: Hardening) -> None:
    drawn = []
    monkeypatch.setattr(training, "noisy", lambda images, _: drawn.append(torch.rand(1).item()) or images)
    monkeypatch.setattr(training, "adversarial_epoch", lambda *_, seed: drawn.append(seed))
    monkeypatch.setattr(training, "evaluate_epoch", lambda *_: {"train_loss": 0.0, "train_accuracy": 0.0})
    train(run_of(kind), few, Store(tmp_path))
    assert len(drawn) == len(set(drawn)) == (3 if kind.name != "noise" else 3 * 3), (
        "one seed per epoch, or one noise per batch"
    )


def test_noise_is_uniform_and_images_stay_in_the_pixel_range() -> None:
    images = torch.full((200, 1, 8, 8), 0.5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        moved = noisy(images, NOISE) - images
        assert not torch.equal(noisy(images, NOISE) - images, moved), "each call draws other noise"
        ends = noisy(torch.cat([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)]), NOISE)
    assert moved.abs().max() <= 0.1 + 1e-6
    # 12,800 draws from a uniform distribution: mean 0 and variance eps^2 / 3, each within 5 standard errors.
    assert moved.mean().abs() < 5 * 0.1 / (3 * 12_800) ** 0.5
    assert moved.var().item() == pytest.approx(0.01 / 3, rel=5 * (4 / 5 / 12_800) ** 0.5)
    assert (ends.min(), ends.max()) == (0, 1)


@pytest.mark.parametrize("kind", [None, MADRY, TRADES], ids=str)
def test_without_noise_images_are_unchanged(kind: Hardening | None) -> None:
    images = torch.rand(3, 1, 8, 8)
    assert noisy(images, kind) is images


class RecordingClassifier(HRClassifier):
    """Classifier that records its training images instead of training, and counts queries of gradients."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.batches: list = []
        self.gradient_queries = 0

    def fit(self, x, y, *args, **kwargs) -> None:
        self.batches.append((x, y))

    def loss_gradient(self, x, y, *args, **kwargs):
        self.gradient_queries += 1
        return super().loss_gradient(x, y, *args, **kwargs)


@pytest.mark.parametrize("steps", [1, 4])
def test_madry_training_uses_images_of_higher_loss_within_eps_of_each_training_image(
    few: Dataset, monkeypatch, steps: int
) -> None:
    monkeypatch.setattr(evaluation, "HRClassifier", RecordingClassifier)
    model = models.build_for(RECIPE, few, seed=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    classifier = evaluation.as_classifier(Whole(model), run_of(MADRY), few, optimizer)
    images, labels = few.train.tensors(CPU)
    adversarial_epoch(replace(MADRY, steps=steps), classifier, images, labels, 40, seed=0)
    assert [len(x) for x, _ in classifier.batches] == [40, 40, 20]
    assert classifier.gradient_queries == 3 * steps, "batches of the recipe's size instead of ART's default of 32"
    seen = np.concatenate([x for x, _ in classifier.batches])
    classes = np.concatenate([y for _, y in classifier.batches])
    classes = classes.argmax(1) if classes.ndim == 2 else classes
    originals = images.numpy()
    distance = np.abs(seen[:, None] - originals[None]).reshape(len(seen), len(seen), -1).max(2)
    nearest = distance.argmin(1)
    assert sorted(nearest) == list(range(len(seen))), "each image is used once"
    assert (classes == labels.numpy()[nearest]).all()
    moved = distance.min(1)
    assert (moved <= 0.1 + 1e-6).all()
    assert (moved > 0.05).all()
    before = classifier.compute_loss(originals[nearest], classes, "none")
    after = classifier.compute_loss(seen, classes, "none")
    assert (after > before).mean() > 0.9


def test_the_step_size_of_madry_training_is_two_and_a_half_eps_divided_by_the_steps() -> None:
    classifier = HRClassifier(torch.nn.Linear(4, 3), torch.nn.CrossEntropyLoss(), (4,), 3, clip_values=(0, 1))
    trainer = hardening._trainer(Hardening("madry", 0.3, steps=5), classifier, 16)
    settings = {name: getattr(trainer.attack, name) for name in ("eps", "eps_step", "max_iter", "num_random_init")}
    assert settings == {"eps": 0.3, "eps_step": pytest.approx(0.15), "max_iter": 5, "num_random_init": 1}


@pytest.mark.parametrize("loss", ["ce", "hr"])
def test_a_step_of_trades_minimises_the_loss_plus_beta_times_the_divergence(
    few: Dataset, monkeypatch, loss: str
) -> None:
    adversarial, generate = [], ProjectedGradientDescentPyTorch.generate

    def noted(self, x, y=None, **kwargs):
        attacked = generate(self, x, y=y, **kwargs)
        adversarial.append((x.copy(), y, attacked))
        return attacked

    monkeypatch.setattr(ProjectedGradientDescentPyTorch, "generate", noted)
    run = run_of(TRADES, loss)
    model, oracle = (models.build_for(RECIPE, few, seed=3) for _ in range(2))
    classifier = evaluation.as_classifier(Whole(model), run, few, torch.optim.SGD(model.parameters(), lr=0.5))
    images, labels = few.train.tensors(CPU)
    adversarial_epoch(TRADES, classifier, images, labels, 100, seed=0)
    ((x, y, attacked),) = adversarial
    assert 0.05 < np.abs(attacked - x).max() <= 0.1 + 1e-6
    target = torch.tensor(y.argmax(1) if y.ndim == 2 else y)
    log_p, log_q = (oracle(torch.tensor(part)).double().log_softmax(1) for part in (x, attacked))
    true = log_p.gather(1, target[:, None])[:, 0]
    if loss == "ce":
        value = -true.mean()
    else:  # for hard labels, alpha times the divergence is log E[q^(1 - alpha)] / (alpha - 1)
        value = -(log_p.exp() * log_p).sum(1).mean() + (-0.6 * true).exp().mean().log() / 0.6
    divergence = (log_p.exp() * (log_p - log_q)).sum(1).mean()
    gradients = torch.autograd.grad(value + 6 * divergence, list(oracle.parameters()))
    for ours, theirs, gradient in zip(model.parameters(), oracle.parameters(), gradients, strict=True):
        assert torch.allclose(ours, theirs - 0.5 * gradient, atol=2e-5)


def test_adversarial_training_gives_a_higher_robust_accuracy_than_noise(digits: Dataset, tmp_path: Path) -> None:
    images, labels = digits.test.images[:200].astype(np.float32) / 255, digits.test.labels[:200]
    robust = {}
    for kind in (NOISE, replace(MADRY, steps=4)):
        run = run_of(kind, "hr", epochs=8)
        train(run, digits, Store(tmp_path))
        classifier = evaluation.trained_classifier(run, digits, Store(tmp_path))
        with seeded(0):
            options = {"eps": 0.1, "eps_step": 0.025, "max_iter": 10, "restarts": 1, "keep_first": True}
            attack = ProjectedGradientDescent(classifier, loss="ce", verbose=False, **options)
            attacked = attack.generate(images, labels)
        robust[kind.name] = (classifier.predict(attacked).argmax(1) == labels).mean()
    assert robust["madry"] > robust["noise"] + 0.05


def median_margin(run: RunSpec, digits: Dataset, store: Store) -> tuple[float, np.ndarray]:
    """Return the median margin on the validation images, and their logits."""
    images, labels = digits.validation.tensors(CPU)
    logits = evaluation.trained_classifier(run, digits, store).predict(images.numpy()).astype(np.float64)
    return float(np.median(margins(logits, labels.numpy()))), logits


def test_the_margin_is_scaled_on_the_validation_images_and_predictions_are_unchanged(
    few: Dataset, tmp_path: Path
) -> None:
    store, plain = Store(tmp_path), run_of(loss="ce", epochs=8, lr=1e-2)
    scaled = replace(plain, loss=LossSpec("ce", margin=30.0))
    for run in (plain, scaled):
        train(run, few, store)
    (before, logits), (after, larger) = (median_margin(run, few, store) for run in (plain, scaled))
    assert after == pytest.approx(30, rel=1e-4)
    assert np.allclose(larger, logits * 30 / before, rtol=1e-4, atol=1e-3)
    assert store.curve(plain) == store.curve(scaled)


def test_the_margin_of_a_run_that_is_killed_before_scaling_is_scaled_once(few: Dataset, tmp_path: Path) -> None:
    run = replace(run_of(loss="ce", epochs=8, lr=1e-2), loss=LossSpec("ce", margin=30.0))
    train(run, few, Store(tmp_path / "whole"))
    with pytest.raises(KilledError):
        train(run, few, StoreKilledAfter(tmp_path / "parts", 8))
    train(run, few, Store(tmp_path / "parts"))
    assert files(tmp_path / "parts", run) == files(tmp_path / "whole", run)


def test_a_network_with_a_negative_median_margin_cannot_be_scaled(few: Dataset, tmp_path: Path) -> None:
    run = replace(run_of(epochs=1, lr=1e-9), loss=LossSpec("hr", 1.6, margin=30.0))
    message = r"expected a median margin above 0, to be scaled to 30 for digits, HR\(1.6\), margin 30, .* but got -"
    with pytest.raises(TrainingError, match=message):
        train(run, few, Store(tmp_path))
    assert not Store(tmp_path).is_trained(run)


@pytest.mark.parametrize("model", ["small-cnn", "resnet"])
@ADVERSARIAL
def test_the_metrics_of_an_adversarial_epoch_are_measured_on_clean_images_after_it(
    few: Dataset, tmp_path: Path, kind: Hardening, model: str
) -> None:
    """The network is in evaluation mode, which matters for the ResNet's batch statistics."""
    run = run_of(kind, "ce", epochs=2, batch_size=50, model=model)
    train(run, few, Store(tmp_path))
    classifier = evaluation.trained_classifier(run, few, Store(tmp_path))
    images, labels = few.train.tensors(CPU)
    logits = torch.tensor(classifier.predict(images.numpy()))
    row = Store(tmp_path).curve(run)[-1]
    assert row["train_loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-4)
    assert row["train_accuracy"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())


@ADVERSARIAL
def test_a_loss_that_is_not_finite_stops_adversarial_training(few: Dataset, tmp_path: Path, kind: Hardening) -> None:
    run = run_of(kind, lr=1e30, optimizer="sgd")
    with pytest.raises(TrainingError, match=r"the loss of digits, .* became (nan|inf) in epoch"):
        train(run, few, Store(tmp_path))
