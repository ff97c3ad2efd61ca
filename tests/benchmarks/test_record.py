"""Metrics of calibration: definitions, known limits, and temperatures in closed form."""

import math

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from testing import oracle

from benchmarks.record import Record


def record(logits: object, labels: object) -> Record:
    return Record(np.asarray(labels, dtype=np.int64), np.asarray(logits, dtype=np.float32))


def random_record(scale: float, n: int = 60, classes: int = 5, seed: int = 0) -> Record:
    """Return a record of random logits whose predictions are mostly correct."""
    draw = np.random.default_rng(seed)
    labels, logits = draw.integers(classes, size=n), draw.normal(size=(n, classes))
    logits[np.arange(n), labels] += 1
    return record(scale * logits, labels)


def calibrated_record(scale: float, n: int = 20_000) -> Record:
    """Return a record of labels drawn from the probabilities, with logits that are multiplied afterwards."""
    draw = np.random.default_rng(1)
    logits = draw.normal(scale=2, size=(n, 4)).astype(np.float32)
    labels = (logits + draw.gumbel(size=logits.shape)).argmax(1)  # the Gumbel trick draws from a softmax
    return record(np.float32(scale) * logits, labels)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_metrics_equal_their_definitions(scale: float, temperature: float) -> None:
    rec = random_record(scale)
    logits, metrics = rec.logits.astype(np.float64) / temperature, rec.calibration(temperature)
    assert metrics["nll"] == pytest.approx(float(oracle.cross_entropy(logits, rec.labels)), rel=1e-12)
    assert metrics["brier"] == pytest.approx(float(oracle.brier_score(logits, rec.labels)), rel=1e-12)
    confidence = oracle.softmax(logits).max(1)
    assert metrics["confidence"] == pytest.approx(confidence.mean(), rel=1e-12)
    assert metrics["overconfidence"] == pytest.approx(confidence.mean() - rec.accuracy, abs=1e-12)
    # scikit-learn omits bins without images.
    accuracies, means = calibration_curve(rec.right, confidence, n_bins=15)
    counts = np.histogram(confidence, np.linspace(0, 1, 16))[0]
    ece = np.sum(counts[counts > 0] * np.abs(accuracies - means)) / rec.n
    assert metrics["ece"] == pytest.approx(ece, abs=1e-12)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_auroc_is_the_share_of_ordered_pairs_also_if_probabilities_round_to_1(scale: float) -> None:
    rec = random_record(scale, n=80)
    others = np.array([oracle.log_of_others_and_log_entropy(z)[0] for z in rec.logits.astype(np.float64)])
    pairs = others[rec.right][:, None] < others[~rec.right]  # less for others is more confidence
    assert rec.calibration()["auroc"] == pytest.approx(pairs.mean(), abs=1e-12)
    if scale == 100:
        assert (rec.probabilities.max(1) == 1).sum() > 10


def test_certain_and_correct_predictions_have_a_loss_of_0_and_no_auroc() -> None:
    metrics = record(1e4 * np.eye(3), [0, 1, 2]).calibration()
    assert math.isnan(metrics.pop("auroc"))
    assert metrics == {"confidence": 1, "overconfidence": 0, "nll": 0, "brier": 0, "ece": 0}


def test_the_loss_of_certain_and_wrong_predictions_is_the_margin() -> None:
    metrics = record(1e4 * np.eye(3), [1, 2, 0]).calibration()
    assert math.isnan(metrics.pop("auroc"))
    assert metrics == {"confidence": 1, "overconfidence": 1, "nll": 1e4, "brier": 2, "ece": 1}


def test_a_constant_network_has_the_metrics_of_a_random_guess() -> None:
    metrics = record(np.zeros((10, 4)), [0, 0, 0, 0, 0, 1, 1, 2, 2, 3]).calibration()
    expected = {"confidence": 1 / 4, "overconfidence": -1 / 4, "nll": math.log(4), "brier": 3 / 4, "ece": 1 / 4}
    assert metrics == pytest.approx(expected | {"auroc": 0.5}, abs=1e-12)


@pytest.mark.parametrize("temperature", [0.1, 100.0])
def test_with_two_classes_a_temperature_does_not_change_accuracy_and_auroc(temperature: float) -> None:
    rec = random_record(3.0, classes=2)
    scaled, plain = rec.calibration(temperature), rec.calibration()
    assert scaled["auroc"] == plain["auroc"]
    assert scaled["confidence"] - scaled["overconfidence"] == pytest.approx(rec.accuracy)
    assert (scaled["confidence"] < plain["confidence"]) == (temperature > 1)


def test_a_bin_includes_its_upper_edge() -> None:
    # Probabilities of exactly 1/3, and below and above the edge 8/15.
    rec = record([[0, 0, 0], [math.log(1.8), 0, -99], [-99, math.log(1.1), 0]], [0, 1, 1])
    bins = rec.reliability()
    places = [math.ceil(15 * p) - 1 for p in (1 / 3, 1.8 / 2.8, 1.1 / 2.1)]
    assert places == [4, 9, 7]
    assert np.flatnonzero(bins.images).tolist() == sorted(places)
    assert bins.right[places].tolist() == [1, 0, 1]
    np.testing.assert_allclose(bins.confidence[places], [1 / 3, 1.8 / 2.8, 1.1 / 2.1], rtol=1e-6)


def test_with_two_classes_and_one_margin_the_temperature_has_a_closed_form() -> None:
    # The probability of the prediction must equal the accuracy, 0.8.
    rec = record([[3.0, 0.0]] * 10, [0] * 8 + [1] * 2)
    assert rec.temperature == pytest.approx(3 / math.log(0.8 / 0.2), rel=1e-5)
    assert rec.calibration(rec.temperature)["ece"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("scale", [0.2, 1.0, 8.0])
def test_the_temperature_is_the_factor_of_a_calibrated_networks_logits(scale: float) -> None:
    rec = calibrated_record(scale)
    assert rec.temperature == pytest.approx(scale, rel=0.03)
    least, *others = (rec.calibration(rec.temperature * more)["nll"] for more in (1, 0.99, 1.01))
    assert least < min(others)
    assert rec.calibration(rec.temperature)["ece"] < 0.015
    assert (rec.calibration()["ece"] > 0.1) == (scale != 1)


@pytest.mark.parametrize(
    ("logits", "labels"),
    [(5 * np.eye(3), [0, 1, 2]), (np.eye(3), [1, 2, 0]), (np.zeros((3, 3)), [0, 1, 2])],
    ids=["all right", "below chance", "constant"],
)
def test_the_temperature_is_nan_if_the_likelihood_has_no_maximum(logits: np.ndarray, labels: list[int]) -> None:
    assert math.isnan(record(logits, labels).temperature)
