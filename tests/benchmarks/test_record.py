"""Metrics of calibration: against definitions written out, in limits that are known, and a temperature known before."""

import math

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from testing import oracle

from benchmarks.record import Record


def record(logits: object, labels: object) -> Record:
    return Record(np.asarray(labels, dtype=np.int64), np.asarray(logits, dtype=np.float32))


def drawn(scale: float, n: int = 60, classes: int = 5, seed: int = 0) -> Record:
    """Logits of networks that are right more often than not."""
    draw = np.random.default_rng(seed)
    labels, logits = draw.integers(classes, size=n), draw.normal(size=(n, classes))
    logits[np.arange(n), labels] += 1
    return record(scale * logits, labels)


def sampled(scale: float, n: int = 20_000) -> Record:
    """Labels drawn from the network's own probabilities, and its logits multiplied after that."""
    draw = np.random.default_rng(1)
    logits = draw.normal(scale=2, size=(n, 4)).astype(np.float32)
    labels = (logits + draw.gumbel(size=logits.shape)).argmax(1)  # Gumbel's way to draw from a softmax
    return record(np.float32(scale) * logits, labels)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_scores_are_those_of_the_definitions(scale: float, temperature: float) -> None:
    made = drawn(scale)
    logits, found = made.logits.astype(np.float64) / temperature, made.calibration(temperature)
    assert found["nll"] == pytest.approx(float(oracle.cross_entropy(logits, made.labels)), rel=1e-12)
    assert found["brier"] == pytest.approx(float(oracle.brier_score(logits, made.labels)), rel=1e-12)
    confidence = oracle.softmax(logits).max(1)
    assert found["confidence"] == pytest.approx(confidence.mean(), rel=1e-12)
    assert found["overconfidence"] == pytest.approx(confidence.mean() - made.accuracy, abs=1e-12)
    # scikit-learn leaves out the bins without images.
    accuracies, means = calibration_curve(made.right, confidence, n_bins=15)
    counts = np.histogram(confidence, np.linspace(0, 1, 16))[0]
    ece = np.sum(counts[counts > 0] * np.abs(accuracies - means)) / made.n
    assert found["ece"] == pytest.approx(ece, abs=1e-12)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_auroc_is_the_share_of_pairs_in_order_also_where_probabilities_round_to_1(scale: float) -> None:
    made = drawn(scale, n=80)
    others = np.array([oracle.log_of_others_and_log_entropy(z)[0] for z in made.logits.astype(np.float64)])
    pairs = others[made.right][:, None] < others[~made.right]  # less for the others is more confidence
    assert made.calibration()["auroc"] == pytest.approx(pairs.mean(), abs=1e-12)
    if scale == 100:
        assert (made.probabilities.max(1) == 1).sum() > 10


def test_a_network_that_is_right_and_certain_has_no_loss_and_no_auroc() -> None:
    found = record(1e4 * np.eye(3), [0, 1, 2]).calibration()
    assert math.isnan(found.pop("auroc"))
    assert found == {"confidence": 1, "overconfidence": 0, "nll": 0, "brier": 0, "ece": 0}


def test_a_network_that_is_wrong_and_certain_has_the_margin_as_its_loss() -> None:
    found = record(1e4 * np.eye(3), [1, 2, 0]).calibration()
    assert math.isnan(found.pop("auroc"))
    assert found == {"confidence": 1, "overconfidence": 1, "nll": 1e4, "brier": 2, "ece": 1}


def test_a_constant_network_is_as_sure_as_a_guess() -> None:
    found = record(np.zeros((10, 4)), [0, 0, 0, 0, 0, 1, 1, 2, 2, 3]).calibration()
    expected = {"confidence": 1 / 4, "overconfidence": -1 / 4, "nll": math.log(4), "brier": 3 / 4, "ece": 1 / 4}
    assert found == pytest.approx(expected | {"auroc": 0.5}, abs=1e-12)


@pytest.mark.parametrize("temperature", [0.1, 100.0])
def test_of_two_classes_a_temperature_leaves_accuracy_and_auroc(temperature: float) -> None:
    made = drawn(3.0, classes=2)
    scaled, plain = made.calibration(temperature), made.calibration()
    assert scaled["auroc"] == plain["auroc"]
    assert scaled["confidence"] - scaled["overconfidence"] == pytest.approx(made.accuracy)
    assert (scaled["confidence"] < plain["confidence"]) == (temperature > 1)


def test_a_bin_holds_its_upper_edge() -> None:
    # Probabilities of exactly 1/3, and of less and more than the edge 8/15.
    made = record([[0, 0, 0], [math.log(1.8), 0, -99], [-99, math.log(1.1), 0]], [0, 1, 1])
    bins = made.reliability()
    places = [math.ceil(15 * p) - 1 for p in (1 / 3, 1.8 / 2.8, 1.1 / 2.1)]
    assert places == [4, 9, 7]
    assert np.flatnonzero(bins.images).tolist() == sorted(places)
    assert bins.right[places].tolist() == [1, 0, 1]
    np.testing.assert_allclose(bins.confidence[places], [1 / 3, 1.8 / 2.8, 1.1 / 2.1], rtol=1e-6)


def test_of_two_classes_and_one_margin_the_temperature_has_a_closed_form() -> None:
    # The probability of what is predicted is to be 0.8, as often as it is right.
    made = record([[3.0, 0.0]] * 10, [0] * 8 + [1] * 2)
    assert made.temperature == pytest.approx(3 / math.log(0.8 / 0.2), rel=1e-5)
    assert made.calibration(made.temperature)["ece"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("scale", [0.2, 1.0, 8.0])
def test_the_temperature_undoes_what_the_logits_of_a_calibrated_network_were_multiplied_by(scale: float) -> None:
    made = sampled(scale)
    assert made.temperature == pytest.approx(scale, rel=0.03)
    least, *others = (made.calibration(made.temperature * more)["nll"] for more in (1, 0.99, 1.01))
    assert least < min(others)
    assert made.calibration(made.temperature)["ece"] < 0.015
    assert (made.calibration()["ece"] > 0.1) == (scale != 1)


@pytest.mark.parametrize(
    ("logits", "labels"),
    [(5 * np.eye(3), [0, 1, 2]), (np.eye(3), [1, 2, 0]), (np.zeros((3, 3)), [0, 1, 2])],
    ids=["all right", "below chance", "constant"],
)
def test_where_no_temperature_is_best_there_is_none(logits: np.ndarray, labels: list[int]) -> None:
    assert math.isnan(record(logits, labels).temperature)
