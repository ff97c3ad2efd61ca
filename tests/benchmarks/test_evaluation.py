"""Records of evaluations: comparison with plain torch loops, for every attack."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from art.attacks.evasion import FastGradientMethod
from testing import made_up
from testing.waits import Waits, waits_on_gpu

from art_hrloss import (
    AutoProjectedGradientDescent,
    HRClassifier,
    ProjectedGradientDescent,
    SquareAttack,
    attack_view,
    gradient_masking_report,
    seeded,
    worst_case,
)
from art_hrloss.attacks import ensemble, transfer
from benchmarks import attacks, data, evaluation, models
from benchmarks.config import AttackSpec, LossSpec, Recipe, RunSpec
from benchmarks.data import Dataset, Split
from benchmarks.losses import attack_loss
from benchmarks.protocols import BOUNDED, FIGURE_1_ATTACKS, QUERIES_PER_STEP, protocol
from benchmarks.record import Record
from benchmarks.references import refer
from benchmarks.store import Store
from benchmarks.training import train

CPU = torch.device("cpu")
RUN = RunSpec(
    "digits", Recipe(model="small-cnn", epochs=6, batch_size=50, lr=3e-3, optimizer="adam"), LossSpec("ce"), 0
)
SCALED = replace(RUN, recipe=replace(RUN.recipe, input_scale=255.0))
ATTACKS = [AttackSpec("none"), *(AttackSpec("fgm", loss, 0.1) for loss in ("ce", "hr", "torch-ce"))]
PAPER = [AttackSpec("fgm", loss, 0.1, units="data") for loss in ("clipped-ce", "clipped-hr")]
EVERY = [
    *ATTACKS,
    *PAPER,
    AttackSpec("fgm", "ce", 0.25),
    AttackSpec("none", split="validation"),
    *(AttackSpec("fgm", "ce", eps, split="validation") for eps in (0.1, 0.25)),
    AttackSpec("fgm", "clipped-ce", 0.25),
]


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return data.load("digits", data_dir=Path("none"), validation_size=180)


@pytest.fixture(scope="module")
def trained(digits: Dataset, tmp_path_factory) -> Store:
    store = Store(tmp_path_factory.mktemp("store"))
    train(RUN, digits, store)
    return store


@pytest.fixture
def fresh(trained: Store, tmp_path: Path) -> Store:
    """Store with the trained weights, without records, and with the same network for images in [0, 255]."""
    store = Store(tmp_path)
    weights = trained.load_checkpoint(RUN)
    store.save_checkpoint(RUN, weights)
    store.save_checkpoint(SCALED, {**weights, "1.0.weight": weights["1.0.weight"] / 255})
    return store


def load(run: RunSpec, digits: Dataset, store: Store) -> HRClassifier:
    model = models.build_for(run.recipe, digits)
    model.load_state_dict(store.load_checkpoint(run))
    return evaluation.as_classifier(model, run, digits)


def view_of(loss: str | None, classifier: HRClassifier) -> HRClassifier:
    return attack_view(classifier, attack_loss(loss or "ce"))


@pytest.fixture
def scaled(trained: Store, digits: Dataset) -> HRClassifier:
    """The trained network with its logits times 6: the same predictions, with margins above 17."""
    classifier = load(RUN, digits, trained)
    with torch.no_grad():
        for parameter in classifier.model[1][-1].parameters():
            parameter *= 6
    return classifier


def plain_fgsm(model, images: torch.Tensor, labels: torch.Tensor, loss: str, eps: float) -> torch.Tensor:
    """FGSM in plain torch, with the gradient in float64."""
    leaf = images.double().requires_grad_()
    log_q = model.double()(leaf).log_softmax(1)
    value = -log_q.gather(1, labels[:, None])
    if loss == "hr":
        value = value - (log_q.exp() * log_q).sum(1, keepdim=True)
    gradient = torch.autograd.grad(value.sum(), leaf)[0]
    model.float()
    return (images + eps * gradient.sign().float()).clamp(0, 1)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.key())
@pytest.mark.parametrize("split", ["test", "validation"])
def test_a_record_equals_the_result_of_plain_torch(
    fresh: Store, digits: Dataset, attack: AttackSpec, split: str
) -> None:
    attack = replace(attack, split=split)
    evaluation.evaluate(RUN, [attack], digits, fresh)
    model = models.build_for(RUN.recipe, digits).eval()
    model.load_state_dict(fresh.load_checkpoint(RUN))
    images, labels = getattr(digits, split).tensors(CPU)
    if attack.loss is not None:
        images = plain_fgsm(model, images, labels, "hr" if attack.loss == "hr" else "ce", attack.eps)
    record = fresh.record(RUN, attack)
    assert record.n == {"test": 360, "validation": 180}[split]
    assert record.right.sum() == int((model(images).argmax(1) == labels).sum())
    assert (None if record.zero_gradient is None else record.zero_gradient.sum()) == (
        None if attack.loss is None else 0
    )


def recomputed(attacked: np.ndarray, logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Compute the content of a record from adversarial images and logits, image by image, in float64."""
    classes = logits.shape[1]
    sums = [[0.0] * classes for _ in range(classes)]
    counts, margins, bins, samples, correct = [0] * classes, [], [0] * 80, {}, 0
    entropies, uncertain, of_label, squares = [], [], [], []
    for image, row, label in zip(attacked, logits.astype(float).tolist(), labels.tolist(), strict=True):
        odds = [math.exp(logit - max(row)) for logit in row]
        q = [odd / sum(odds) for odd in odds]
        prediction = row.index(max(row))
        correct += prediction == label
        counts[label] += 1
        entropies.append(-math.fsum(p * math.log(p) for p in q))
        uncertain.append(math.fsum(q[:prediction] + q[prediction + 1 :]))
        of_label.append(q[label])
        # Distribution of a noisy label: 0.91 for the label, and 0.01 for each of the nine other classes.
        squares.append(math.fsum(p * p / (0.91 if i == label else 0.01) for i, p in enumerate(q)))
        for i in range(classes):
            sums[i][label] += q[i]
        margins.append(row[label] - max(logit for i, logit in enumerate(row) if i != label))
        bins[min(max(math.floor(margins[-1]) + 40, 0), 79)] += 1
        if label not in samples:
            samples[label] = (np.rint(image * 255).astype(int).ravel().tolist(), prediction, q[prediction])
    margins.sort()
    percentiles = []
    for percent in (1, 50, 99):
        rank = percent / 100 * (len(margins) - 1)
        low = margins[math.floor(rank)]
        percentiles.append(low + (margins[math.ceil(rank)] - low) * (rank - math.floor(rank)))
    confusion = [[sums[i][j] / counts[j] if counts[j] else None for j in range(classes)] for i in range(classes)]
    return {
        "n": len(labels),
        "correct": correct,
        "confusion": confusion,
        "margins": bins,
        "margin_percentiles": percentiles,
        "samples": [samples[label] for label in sorted(samples)],
        "bounds": proposition_1(1 - correct / len(labels), *map(np.mean, (uncertain, entropies)), of_label, squares),
    }


def proposition_1(error: float, uncertainty: float, entropy: float, of_label: list[float], squares: list[float]) -> Any:
    """Compute (1) at alpha = 1.6 with true labels, and (5) at alpha = 3 with noisy labels, for ten classes."""
    scaled = math.log(np.mean(np.power(of_label, -0.6))) / 0.6
    reverse = math.log(np.mean(squares)) / 2
    return {
        "labels": {
            "error": error,
            "uncertainty": uncertainty,
            "conditional_entropy": entropy,
            "cross_entropy": -np.mean(np.log(of_label)),
            "renyi_divergence": scaled / 1.6,
            "log_upper_bound": 0.6 / 1.6 * (math.log(1 - math.exp(-entropy)) + scaled),
            "log_relaxed_bound": 0.6 / 1.6 * (entropy + scaled - 1),
        },
        "noisy_labels": {
            "error": 0.9 * error + 0.1 * 0.9,
            "reverse_divergence": reverse,
            "log_comparison_lower_bound": 2 * math.log(uncertainty) - 2 * reverse,
        },
    }


def assert_has_content(record: Record, expected: dict[str, Any], split: Split) -> None:
    assert (record.n, int(record.right.sum())) == (expected["n"], expected["correct"])
    assert record.histogram.tolist() == expected["margins"]
    percentiles = list(record.margin_percentiles.values())
    assert percentiles == pytest.approx(expected["margin_percentiles"], rel=1e-12, abs=1e-12)
    confusion = np.array(expected["confusion"], dtype=float)
    assert record.confusion == pytest.approx(confusion, rel=1e-12, abs=1e-300, nan_ok=True)
    assert [sample.label for sample in record.shown()] == sorted(set(split.labels.tolist()))
    for sample, (pixels, prediction, confidence) in zip(record.shown(), expected["samples"], strict=True):
        assert sample.pixels.ravel().tolist() == pixels
        assert sample.pixels.shape == split.images.shape[1:]
        assert sample.prediction == prediction
        assert sample.confidence == pytest.approx(confidence, rel=1e-12)
    if len(record.confusion) == 10:  # the recomputed bounds are for ten classes
        for labels, bounds in expected["bounds"].items():
            actual = record.bounds(labels)
            assert {name: actual[name] for name in bounds} == pytest.approx(bounds, rel=1e-9)
        assert record.bounds()["log_lower_bound"] == -math.inf, "the lower bound is vacuous for certain labels"


@pytest.mark.parametrize("run", [RUN, SCALED], ids=["in [0, 1]", "in [0, 255]"])
@pytest.mark.parametrize("spec", EVERY, ids=lambda attack: attack.key())
def test_a_record_is_computed_from_the_adversarial_images(
    fresh: Store, digits: Dataset, run: RunSpec, spec: AttackSpec
) -> None:
    evaluation.evaluate(run, [spec], digits, fresh)
    split = digits.validation if spec.split == "validation" else digits.test
    classifier = load(run, digits, fresh)
    images = split.images.astype(np.float32) / 255
    if spec.loss is not None:
        eps = spec.eps / 255 if (run, spec.units) == (SCALED, "data") else spec.eps
        fgsm = FastGradientMethod(view_of(spec.loss, classifier), norm=np.inf, eps=eps, batch_size=250)
        images = fgsm.generate(images, split.labels)
    with torch.no_grad():
        # In the batches of the evaluation, so that sums are rounded equally.
        logits = torch.cat([classifier.model.eval()(batch) for batch in torch.from_numpy(images).split(250)]).numpy()
    assert_has_content(fresh.record(run, spec), recomputed(images, logits, split.labels), split)


class PixelsAsLogits(torch.nn.Module):
    """Network whose logits are the pixels, from -100 for black to 100 for white."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images.flatten(1) * 255).round() * (200 / 255) - 100 + self.unused


def prescribed(pixels: list[list[int]], labels: list[int]) -> tuple[Record, Split]:
    split = Split(np.array(pixels, np.uint8)[:, None, None], np.array(labels))
    classes = len(pixels[0])
    classifier = HRClassifier(
        PixelsAsLogits(), torch.nn.CrossEntropyLoss(), (1, 1, classes), classes, clip_values=(0, 1)
    )
    return evaluation.measure(AttackSpec("none"), classifier, split), split


def test_outer_bins_contain_margins_beyond_the_edges_and_a_class_without_images_is_nan() -> None:
    # A level of a pixel changes the logit by 200 / 255 = 0.784.
    pixels = [[255, 0, 0, 0], [0, 0, 255, 0], [51, 0, 0, 0], [0, 51, 0, 0], [7, 7, 0, 0], [8, 7, 0, 0], [3, 4, 5, 0]]
    labels = [0, 0, 0, 0, 1, 0, 2]
    record, split = prescribed(pixels, labels)
    margins = [200, -200, 40, -40, 0, 200 / 255, 200 / 255]
    assert {i: count for i, count in enumerate(record.histogram) if count} == {79: 2, 0: 2, 40: 3}
    assert record.histogram.sum() == record.n == 7
    assert record.margin_percentiles[50] == pytest.approx(sorted(margins)[3], abs=1e-4)
    assert record.right.sum() == 4, "among equal logits the first class is predicted"
    assert np.isnan(record.confusion[:, 3]).all()
    assert record.confusion[:, :3].sum(0) == pytest.approx(np.ones(3), abs=1e-12)
    # Row: predicted class, column: true class.
    assert record.confusion[0, 1] == pytest.approx(1 / (2 + 2 * math.exp(-7 * 200 / 255)), rel=1e-5)
    logits = np.array(pixels, np.float32) * np.float32(200 / 255) - 100
    assert_has_content(record, recomputed(np.array(pixels)[:, None, None] / 255, logits, split.labels), split)


@pytest.mark.parametrize(
    ("run", "spec", "eps"),
    [
        *((SCALED, spec, 0.1 / 255) for spec in PAPER),
        *((SCALED, spec, 0.1) for spec in ATTACKS[1:]),
        *((RUN, spec, 0.1) for spec in PAPER),
    ],
    ids=lambda value: value.key() if isinstance(value, AttackSpec) else None,
)
def test_an_attack_changes_pixels_by_eps_in_its_units(
    fresh: Store, digits: Dataset, run: RunSpec, spec: AttackSpec, eps: float
) -> None:
    view = view_of(spec.loss, load(run, digits, fresh))
    clean = digits.test.tensors(CPU)[0].numpy()
    scale = run.recipe.input_scale
    attacked = attacks.build(spec, view, batch_size=100, input_scale=scale).generate(clean, digits.test.labels)
    assert attacked.dtype == np.float32
    assert attacked.min() >= 0
    assert attacked.max() <= 1
    change = np.abs(attacked.astype(np.float64) - clean)
    # Both images are float32 numbers below 1, so each may have a rounding error of 2^-24.
    assert change.max() == pytest.approx(eps, rel=0, abs=2**-23)
    assert (change.max((1, 2, 3)) > eps - 2**-23).mean() > 0.9
    # A pixel with a gradient changes by eps, or up to the end of the pixel range.
    part = (change > 2**-23) & (change < eps - 2**-23)
    assert np.isin(attacked[part], (0, 1)).all()
    # The record is computed from these images.
    record = evaluation.measure(spec, view, digits.test, scale)
    logits = view.predict(attacked, batch_size=evaluation.BATCH_SIZE)
    assert_has_content(record, recomputed(attacked, logits, digits.test.labels), digits.test)


@pytest.mark.parametrize("batch_size", [1, 7])
def test_adversarial_images_do_not_depend_on_the_batch_size(fresh: Store, digits: Dataset, batch_size: int) -> None:
    classifier = load(RUN, digits, fresh)
    classifier.model.double()  # in float64 the division of sums changes no sign of a gradient
    view = view_of("hr", classifier)
    clean, labels = digits.test.tensors(CPU)[0].numpy()[:30], digits.test.labels[:30]
    whole, parts = (attacks.build(ATTACKS[2], view, batch_size=n).generate(clean, labels) for n in (30, batch_size))
    assert (whole != clean).any()
    np.testing.assert_array_equal(parts, whole)


@pytest.mark.parametrize("run", [RUN, SCALED], ids=["in [0, 1]", "in [0, 255]"])
def test_attacks_give_the_same_records_together_and_one_by_one(
    fresh: Store, digits: Dataset, tmp_path: Path, run: RunSpec
) -> None:
    alone = {}
    for spec in EVERY:
        view = view_of(spec.loss, load(run, digits, fresh))
        split = digits.validation if spec.split == "validation" else digits.test
        alone[spec] = evaluation.measure(spec, view, split, run.recipe.input_scale)
    scale = run.recipe.input_scale
    for order in (EVERY, EVERY[::-1]):
        together = list(evaluation.measure_all(order, load(run, digits, fresh), digits, scale))
        assert sorted(spec.key() for spec, _ in together) == sorted(spec.key() for spec in EVERY)
        for spec, record in together:
            assert made_up.same(record, alone[spec])
    # The files are equal, too.
    evaluation.evaluate(run, EVERY, digits, fresh)
    for spec in EVERY:
        assert made_up.same(fresh.record(run, spec), alone[spec])


def test_parts_with_the_same_first_or_last_image_are_distinguished(fresh: Store, digits: Dataset) -> None:
    test = Split(digits.test.images[:40], digits.test.labels[:40])
    inner = (slice(100, 138), slice(1, 39))
    images, labels = test.images.copy(), test.labels.copy()
    images[inner[1]], labels[inner[1]] = digits.test.images[inner[0]], digits.test.labels[inner[0]]
    few = replace(digits, test=test, validation=Split(images, labels))
    classifier = load(RUN, digits, fresh)
    for spec, record in evaluation.measure_all(EVERY, classifier, few):
        split = few.validation if spec.split == "validation" else few.test
        assert made_up.same(record, evaluation.measure(spec, view_of(spec.loss, classifier), split))


def test_attacks_along_one_loss_share_their_gradients(fresh: Store, digits: Dataset) -> None:
    classifier = load(RUN, digits, fresh)
    passes = []
    classifier.model[1].register_forward_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    specs = [AttackSpec("fgm", "ce", eps) for eps in (0.05, 0.1, 0.25)]
    list(evaluation.measure_all(specs, classifier, digits))
    assert sum(passes) == 2, "one backward pass per batch of 250"
    assert len(passes) - sum(passes) == 2 * 3, "one forward pass per batch of adversarial images"


@pytest.mark.parametrize("run", [RUN, SCALED], ids=["in [0, 1]", "in [0, 255]"])
def test_a_point_of_a_curve_has_the_accuracies_and_bounds_of_records(
    fresh: Store, digits: Dataset, run: RunSpec
) -> None:
    specs = [*EVERY, AttackSpec("pgd", "ce", 0.1, steps=3, images=40), AttackSpec("square", eps=0.1, steps=5, images=9)]
    scale, classifier = run.recipe.input_scale, load(run, digits, fresh)
    records = dict(evaluation.measure_all(specs, classifier, digits, scale))
    row = evaluation.curve_point(specs, classifier, digits, scale).row()
    assert row["attacks"] == {spec.key(): record.accuracy for spec, record in records.items()}
    bounded = {spec.key(): record.bounds() for spec, record in records.items() if protocol(spec) in BOUNDED}
    assert len(bounded) == 6, "no attack, and FGSM along CE at two eps, on test and validation images"
    assert row["bounds"] == {
        key: {name: value if math.isfinite(value) else None for name, value in bounds.items()}
        for key, bounds in bounded.items()
    }


def test_curve_points_synchronise_with_the_device_once(
    fresh: Store, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = load(RUN, digits, fresh)
    waits = {}
    for batch_size in (360, 40):
        monkeypatch.setattr(evaluation, "BATCH_SIZE", batch_size)
        with Waits() as waits[batch_size]:
            point = evaluation.curve_point(FIGURE_1_ATTACKS, classifier, digits)
        assert len(point.bounded) == 3
        counted = [name for name in waits[batch_size].names if name in Waits.COPIES]
        assert counted == ["tolist"], "one tensor with all counts"
    assert waits[40].names == waits[360].names


def on_gpu(digits: Dataset, store: Store) -> HRClassifier:
    model = models.build_for(RUN.recipe, digits)
    model.load_state_dict(store.load_checkpoint(RUN))
    return evaluation.as_classifier(model, replace(RUN, recipe=replace(RUN.recipe, device="gpu")), digits)


@pytest.mark.gpu
def test_records_and_curve_points_are_equal_on_gpu_and_cpu(fresh: Store, digits: Dataset) -> None:
    specs = [*EVERY, *(AttackSpec(name, "ce", 0.1, steps=3, images=40) for name in ("pgd", "apgd"))]
    specs.append(AttackSpec("worst-case", eps=0.1, steps=3, images=20))
    with torch.backends.cudnn.flags(
        enabled=False
    ):  # cuDNN may use less than float32, and other algorithms for other batches
        theirs, ours = (
            dict(evaluation.measure_all(specs, classifier, digits))
            for classifier in (load(RUN, digits, fresh), on_gpu(digits, fresh))
        )
        point = evaluation.curve_point(EVERY, on_gpu(digits, fresh), digits)
    for spec, record in ours.items():
        assert set(record.arrays()) == set(theirs[spec].arrays())
        assert record.labels.tolist() == theirs[spec].labels.tolist()
        # A gradient near 0 may have the other sign.
        assert abs(int(record.right.sum()) - int(theirs[spec].right.sum())) <= 2
        if spec.name == "none":
            np.testing.assert_allclose(record.logits, theirs[spec].logits, rtol=1e-4, atol=1e-4)
            assert record.samples.tolist() == theirs[spec].samples.tolist()
    assert point.accuracies == {spec.key(): ours[spec].accuracy for spec in EVERY}


@pytest.mark.gpu
def test_the_number_of_synchronisations_does_not_depend_on_the_number_of_batches(
    fresh: Store, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier, counts = on_gpu(digits, fresh), []
    monkeypatch.setattr(evaluation, "BATCH_SIZE", 40)
    for images in (360, 360, 40):  # the first call includes the set-up of libraries, and is not counted
        monkeypatch.setattr(evaluation, "GPU_BATCH_VALUES", 64 * images)
        counts.append(waits_on_gpu(lambda: evaluation.curve_point(FIGURE_1_ATTACKS, classifier, digits)))
    assert counts[1] == counts[2] < 40


@pytest.mark.gpu
def test_images_on_a_gpu_equal_those_on_the_cpu_and_are_cached(digits: Dataset) -> None:
    images, labels = digits.test.tensors(torch.device("cuda"))
    assert images.is_cuda
    assert torch.equal(images.cpu(), digits.test.tensors(CPU)[0])
    assert labels.tolist() == digits.test.labels.tolist()
    assert digits.test.tensors(torch.device("cuda:0"))[0] is images


def test_an_attack_that_modifies_its_input_does_not_affect_other_attacks(
    fresh: Store, digits: Dataset, tmp_path: Path
) -> None:
    source = tmp_path / "careless.py"
    source.write_text(
        "class Careless:\n"
        "    def __init__(self, classifier, eps):\n        pass\n"
        "    def generate(self, x, y):\n        x[:] = 0\n        y[:] = 0\n        return x\n"
    )
    classifier, before = load(RUN, digits, fresh), digits.test.tensors(CPU)[0].clone()
    careless = AttackSpec(refer(f"{source}:Careless"), eps=1.0)
    (_, record), (_, clean) = evaluation.measure_all([careless, AttackSpec("none")], classifier, digits)
    assert not record.samples.any()
    assert record.labels.tolist() == digits.test.labels.tolist()
    assert torch.equal(digits.test.tensors(CPU)[0], before)
    assert clean.accuracy > record.accuracy


def test_gradients_are_not_cached_across_calls(fresh: Store, digits: Dataset) -> None:
    classifier = load(RUN, digits, fresh)
    before = dict(evaluation.measure_all(EVERY, classifier, digits))
    with torch.no_grad():
        for parameter in classifier.model.parameters():
            parameter.add_(0.02)
    after = dict(evaluation.measure_all(EVERY, classifier, digits))
    for spec in EVERY:
        split = digits.validation if spec.split == "validation" else digits.test
        assert after[spec] != before[spec]
        assert made_up.same(after[spec], evaluation.measure(spec, view_of(spec.loss, classifier), split))


def test_an_evaluation_does_not_change_the_network(digits: Dataset) -> None:
    run = replace(RUN, recipe=replace(RUN.recipe, model="resnet"))
    model = models.build_for(run.recipe, digits).train()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    few = replace(digits, test=Split(digits.test.images[:20], digits.test.labels[:20]))
    list(evaluation.measure_all(ATTACKS, evaluation.as_classifier(model, run, few), few))
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_a_classifier_has_the_loss_and_device_of_the_run_and_the_shape_of_the_data(
    digits: Dataset, device: str
) -> None:
    run = replace(RUN, recipe=replace(RUN.recipe, device=device), loss=LossSpec("hr", 2.5))
    classifier = evaluation.as_classifier(models.build_for(run.recipe, digits), run, digits)
    assert classifier.loss.alpha == 2.5
    assert classifier.device_type == device
    assert (classifier.input_shape, classifier.nb_classes) == ((1, 8, 8), 10)
    assert tuple(classifier.clip_values) == (0, 1)


def test_only_torchs_cross_entropy_shows_masking_from_float32_saturation(scaled: HRClassifier, digits: Dataset) -> None:
    """At margins above 17, torch's float32 gradient has a wrong direction."""
    images, labels = digits.test.tensors(CPU)
    correct = {
        spec.loss: int(evaluation.measure(spec, view_of(spec.loss, scaled), digits.test).right.sum())
        for spec in ATTACKS[1:]
    }
    for loss in ("ce", "hr"):
        attacked = plain_fgsm(scaled.model.eval(), images, labels, loss, 0.1)
        exact = int((scaled.model(attacked).argmax(1) == labels).sum())
        # The network computes in float32, so a gradient near 0 may have the other sign.
        assert abs(correct[loss] - exact) <= 2
    assert correct["torch-ce"] > correct["ce"] + 10


def test_existing_records_are_not_computed_again(fresh: Store, digits: Dataset) -> None:
    marked = made_up.record(360, 1)
    fresh.save_record(RUN, ATTACKS[0], marked)
    missing = AttackSpec("fgm", "ce", 0.2)
    evaluation.evaluate(RUN, [ATTACKS[0], missing], digits, fresh)
    assert made_up.same(fresh.record(RUN, ATTACKS[0]), marked)
    assert fresh.record(RUN, missing) is not None
    assert [(entry["event"], entry["attack"]) for entry in fresh.log_entries(RUN)] == [("record", missing.key())]
    assert all(entry["seconds"] >= 0 for entry in fresh.log_entries(RUN))


def test_weights_are_not_read_if_no_record_is_missing(trained: Store, digits: Dataset, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save_record(RUN, ATTACKS[0], made_up.record(360, 1))
    evaluation.evaluate(RUN, ATTACKS[:1], digits, store)
    assert not store.is_trained(RUN)


class DeadWhereDark(torch.nn.Module):
    """Network whose gradient is 0 for black images, and in the top row of all images."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        black = (images == 0).flatten(1).all(1, keepdim=True)
        logits = self.network(torch.cat([images[:, :, :1].detach(), images[:, :, 1:]], dim=2))
        return torch.where(black, logits.detach(), logits)


def test_zero_gradients_are_counted(digits: Dataset) -> None:
    network = DeadWhereDark(models.build_for(RUN.recipe, digits))
    classifier = HRClassifier(network, torch.nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0, 1))
    images = digits.test.images.copy()
    images[::12] = 0
    record = evaluation.measure(ATTACKS[1], classifier, Split(images, digits.test.labels))
    assert np.flatnonzero(record.zero_gradient).tolist() == list(range(0, 360, 12))


def test_splits_are_attacked_at_their_true_labels(trained: Store, digits: Dataset) -> None:
    """FGSM with wrong labels increases the accuracy, which shows that the attack uses the labels."""
    classifier = load(RUN, digits, trained)
    images = digits.test.tensors(CPU)[0].numpy()
    wrong = Split(digits.test.images, (digits.test.labels + 1) % 10)
    attacked = attacks.build(ATTACKS[1], classifier, batch_size=100).generate(images, wrong.labels)
    robust = (classifier.predict(attacked).argmax(1) == digits.test.labels).mean()
    assert robust > evaluation.measure(ATTACKS[1], classifier, digits.test).accuracy


def test_zero_gradients_are_those_of_the_attack_loss(scaled: HRClassifier, digits: Dataset) -> None:
    """At large margins clipped cross-entropy is saturated at many images, and exact cross-entropy at none."""
    images, labels = digits.test.tensors(CPU)
    leaf = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(attack_loss("clipped-ce")(scaled.model.eval()(leaf), labels).sum(), leaf)
    masked = int((gradient == 0).flatten(1).all(1).sum())
    assert 36 < masked < 324, "some images of each batch, and not all"
    specs = [AttackSpec("fgm", loss, 0.1) for loss in ("clipped-ce", "ce")]
    counted = {
        spec.loss: int(record.zero_gradient.sum()) for spec, record in evaluation.measure_all(specs, scaled, digits)
    }
    # With another batch size, rounding may move a margin across the edge of saturation.
    assert abs(counted["clipped-ce"] - masked) <= 1
    assert counted["ce"] == 0


@pytest.mark.parametrize("name", ["pgd", "apgd"])
@pytest.mark.parametrize("loss", ["ce", "hr", "margin", "dlr"])
def test_an_iterative_attack_is_the_plugins_attack_along_the_loss(
    fresh: Store, digits: Dataset, name: str, loss: str
) -> None:
    spec = AttackSpec(name, loss, 0.1, steps=5, images=60)
    evaluation.evaluate(RUN, [spec], digits, fresh)
    record, classifier = fresh.record(RUN, spec), load(RUN, digits, fresh)
    images, labels = digits.test.images[:60].astype(np.float32) / 255, digits.test.labels[:60]
    kind = {"pgd": ProjectedGradientDescent, "apgd": AutoProjectedGradientDescent}[name]
    options = {"eps": 0.1, "eps_step": {"pgd": 0.05, "apgd": 0.2}[name], "max_iter": 5, "verbose": False}
    with seeded(0):
        attack = kind(classifier, loss=loss, restarts=1, keep_first=True, batch_size=250, **options)
        attacked = attack.generate(images, labels)
    assert record.n == 60
    assert record.right.sum() == int((classifier.predict(attacked).argmax(1) == labels).sum())
    assert not record.zero_gradient.any()
    single = evaluation.measure(AttackSpec("fgm", loss, 0.1, images=60), view_of(loss, classifier), digits.test)
    assert record.right.sum() <= single.right.sum() + 1


def test_the_worst_case_is_at_most_as_accurate_as_its_attacks_and_names_the_first_successful_attack(
    fresh: Store, digits: Dataset
) -> None:
    spec = AttackSpec("worst-case", eps=0.1, steps=5, images=40)
    parts = [AttackSpec("apgd", loss, 0.1, steps=5, images=40) for loss in ("ce", "hr")]
    evaluation.evaluate(RUN, [spec, *parts], digits, fresh)
    record = fresh.record(RUN, spec)
    assert record.n == record.right.sum() + sum(record.found.values()) == 40
    assert record.zero_gradient is None
    assert record.accuracy <= min(fresh.record(RUN, part).accuracy for part in parts)
    again = Store(fresh.root / "again")
    again.save_checkpoint(RUN, fresh.load_checkpoint(RUN))
    evaluation.evaluate(RUN, [spec], digits, again)
    assert made_up.same(again.record(RUN, spec), record)


def test_the_worst_case_uses_the_ensemble_of_the_package(fresh: Store, digits: Dataset) -> None:
    classifier, spec = load(RUN, digits, fresh), AttackSpec("worst-case", eps=0.1, steps=5, images=40)
    images, labels = digits.test.images[:40].astype(np.float32) / 255, digits.test.labels[:40]
    by_hand = worst_case(
        classifier,
        images,
        labels,
        eps=0.1,
        attacks=ensemble(classifier, eps=0.1, max_iter=5, square_iter=5 * QUERIES_PER_STEP, batch_size=250),
        verbose=False,
    )
    record = evaluation.measure(spec, classifier, digits.test)
    assert record.names == by_hand.names
    assert record.found_by.tolist() == by_hand.found_by.tolist()


SOURCE_SEED = 7
TRANSFER = AttackSpec("transfer", eps=0.1, steps=5, images=60, source=SOURCE_SEED)


@pytest.fixture(scope="module")
def source_weights(digits: Dataset, tmp_path_factory) -> dict[str, torch.Tensor]:
    """Weights of the source network of RUN's transfer attacks."""
    store, run = Store(tmp_path_factory.mktemp("source")), replace(RUN, seed=SOURCE_SEED)
    train(run, digits, store)
    return store.load_checkpoint(run)


def test_a_transfer_attack_uses_the_source_network_only(
    fresh: Store, digits: Dataset, source_weights: dict[str, torch.Tensor]
) -> None:
    source = RUN.source(SOURCE_SEED)
    fresh.save_checkpoint(source, source_weights)
    # The attacked network has another training loss; its source network has plain cross-entropy.
    attacked = replace(RUN, loss=LossSpec("hr", 1.6, label_smoothing=0.1))
    fresh.save_checkpoint(attacked, fresh.load_checkpoint(RUN))
    evaluation.evaluate(attacked, [TRANSFER], digits, fresh)
    images, labels = digits.test.images[:60].astype(np.float32) / 255, digits.test.labels[:60]
    with seeded(0):
        adversarial = transfer(load(source, digits, fresh), eps=0.1, max_iter=5).generate(images, labels)
    record, victim = fresh.record(attacked, TRANSFER), load(RUN, digits, fresh)
    assert record.right.sum() == int((victim.predict(adversarial).argmax(1) == labels).sum())
    assert record.zero_gradient is None
    white = evaluation.measure(AttackSpec("pgd", "ce", 0.1, steps=5, images=60), victim, digits.test)
    assert white.right.sum() < record.right.sum() < 60, "weaker than the white-box attack, and not without effect"


def test_a_source_classifier_is_required_if_and_only_if_the_attack_names_a_source(
    digits: Dataset, trained: Store
) -> None:
    classifier = load(RUN, digits, trained)
    for spec, source in ((TRANSFER, None), (ATTACKS[1], classifier)):
        with pytest.raises(ValueError, match="source classifier for the attack"):
            evaluation.measure(spec, classifier, digits.test, source=source)


def test_a_worst_case_with_a_source_includes_the_transfer_attack(
    fresh: Store, digits: Dataset, source_weights: dict[str, torch.Tensor]
) -> None:
    fresh.save_checkpoint(RUN.source(SOURCE_SEED), source_weights)
    spec = AttackSpec("worst-case", eps=0.05, steps=2, images=30, source=SOURCE_SEED)
    evaluation.evaluate(RUN, [spec], digits, fresh)
    counts = fresh.record(RUN, spec).found
    assert f"transfer from {attacks.SOURCE_NAME}" in counts


def test_the_square_attack_has_as_many_queries_as_steps(fresh: Store, digits: Dataset) -> None:
    spec = AttackSpec("square", eps=0.2, steps=30, images=40)
    evaluation.evaluate(RUN, [spec], digits, fresh)
    classifier = load(RUN, digits, fresh)
    images, labels = digits.test.images[:40].astype(np.float32) / 255, digits.test.labels[:40]
    with seeded(0):
        attack = SquareAttack(classifier, norm=np.inf, eps=0.2, max_iter=30, nb_restarts=1, verbose=False)
        adversarial = attack.generate(images, labels)
    record = fresh.record(RUN, spec)
    assert record.right.sum() == int((classifier.predict(adversarial).argmax(1) == labels).sum())
    assert record.right.sum() < 40
    assert record.zero_gradient is None


def test_a_report_flags_the_paper_protocol_at_large_margins_and_not_the_exact_one(
    scaled: HRClassifier, digits: Dataset
) -> None:
    specs = [AttackSpec("diagnostics", loss, 0.1, steps=10, images=60) for loss in ("clipped-ce", "ce")]
    (_, paper), (_, exact) = evaluation.measure_all(specs, scaled, digits)
    assert "zero gradients" in paper.flags
    assert "zero gradients" not in exact.flags
    images, labels = digits.test.images[:60].astype(np.float32) / 255, digits.test.labels[:60]
    options = {"eps": 0.1, "max_iter": 10, "square_iter": evaluation.REPORT_QUERIES, "batch_size": 250}
    report = gradient_masking_report(view_of("clipped-ce", scaled), images, labels, **options)
    assert paper.flags == {flag.name: flag.evidence for flag in report.flags}
    assert paper.right.tolist() == report.robust.tolist()
    assert paper.right.sum() < report.single_step["as given"].sum()


def test_a_report_is_stored_and_read(fresh: Store, digits: Dataset) -> None:
    spec = AttackSpec("diagnostics", "ce", 0.1, steps=2, images=10)
    evaluation.evaluate(RUN, [spec], digits, fresh)
    record = fresh.record(RUN, spec)
    assert record.flags is not None
    assert set(record.arrays()) == {"labels", "robust"}


def test_fgsm_without_clipping_changes_every_pixel_with_a_gradient_by_eps(fresh: Store, digits: Dataset) -> None:
    clipped = AttackSpec("fgm", "ce", 0.1, images=40)
    free = replace(clipped, clip=False)
    assert free.key() != clipped.key()
    classifier = load(RUN, digits, fresh)
    images, labels = digits.test.images[:40].astype(np.float32) / 255, digits.test.labels[:40]
    gradients = view_of("ce", classifier).loss_gradient(images, labels)
    adversarial = images + np.float32(0.1) * np.sign(gradients)
    assert adversarial.min() < 0, "some pixels leave the pixel range"
    record = evaluation.measure(free, classifier, digits.test)
    with torch.no_grad():
        assert np.allclose(record.logits, classifier.model.eval()(torch.from_numpy(adversarial)).numpy(), atol=1e-4)
