"""Command certify on small networks of the digits: bounds, tables, figure, resuming, and randomized smoothing."""

import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from torch import nn

from art_hrloss import HRClassifier, HRLoss
from benchmarks.__main__ import main
from benchmarks.certified import measuring, publishing
from benchmarks.certified.measuring import EPS, RADII, SIGMAS, BracketError, Plan, Step, Subject
from benchmarks.certified.zonotopes import ZonotopeNetwork
from benchmarks.data import Dataset, Split

NETWORKS = ["CE", "HR(1.6)", "CE, Madry 0.1"]
SMALL = ["certify", "--epochs", "2", "--seeds", "1", "--images", "4", "--smoothed-images", "2", "--workers", "1"]
SMALL += ["--max-iter", "2", "--square-iter", "5"]


class Finished(NamedTuple):
    """Folders of a finished command."""

    store: Path
    output: Path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Run the command once for all tests."""
    store, output = tmp_path_factory.mktemp("store"), tmp_path_factory.mktemp("output")
    assert main([*SMALL, "--store", str(store), "--output", str(output)]) == 0
    return Finished(store, output)


@pytest.fixture
def accuracies(finished: Finished) -> pd.DataFrame:
    return pd.read_csv(finished.output / "certified-digits.csv")


def test_every_network_and_seed_has_both_bounds_at_every_radius(finished: Finished, accuracies: pd.DataFrame) -> None:
    assert accuracies.network.unique().tolist() == NETWORKS
    stored = list(finished.store.glob("certified/*/*.json"))
    assert len(stored) == len(NETWORKS) * (len(EPS) + len(RADII["digits"]) + len(SIGMAS))
    for _, of_network in accuracies.groupby(["network", "seed"]):
        by_bound = of_network.groupby("bound").radius.apply(list)
        assert by_bound["certified"] == by_bound["attacked"] == [0.0, *EPS]
        assert by_bound["attacked, L2"] == by_bound["smoothed, sigma 0.25"] == [0.0, *RADII["digits"]]


def test_certified_accuracy_is_at_most_that_under_attacks_and_both_fall_with_eps(accuracies: pd.DataFrame) -> None:
    l_infinity = accuracies[accuracies.bound.isin(["certified", "attacked"])]
    wide = l_infinity.pivot(index=["network", "seed", "radius"], columns="bound", values="accuracy")
    assert (wide.certified <= wide.attacked).all()
    assert wide.certified.groupby(level=[0, 1]).apply(lambda column: column.is_monotonic_decreasing).all()
    assert wide.attacked.groupby(level=[0, 1]).apply(lambda column: column.is_monotonic_decreasing).all()
    madry = wide.loc["CE, Madry 0.1"]
    assert madry.certified.loc[:, EPS[0]].mean() > 0.3  # otherwise these tests would compare zeros
    assert madry.certified.loc[:, EPS[-1]].max() < madry.attacked.loc[:, EPS[0]].min()


def test_the_table_has_means_intervals_and_paired_differences(accuracies: pd.DataFrame) -> None:
    """Two seeds are compared, of which the second has random accuracies."""
    drawn = np.random.default_rng(0).random(len(accuracies))
    both = pd.concat([accuracies, accuracies.assign(seed=1, accuracy=drawn)])
    plan = Plan("digits", Path(), Path(), seeds=2, images=4, smoothed_images=2, max_iter=2, square_iter=5)
    rows = publishing.tables(publishing.Bounds(both), plan)[0].rows
    first = next(i for i, row in enumerate(rows) if row[0] == "0.01")
    section = {row[1]: row[2:] for row in rows[first : first + 4]}
    for column, bound in enumerate(("certified", "attacked")):
        values = both[(both.radius == 0.01) & (both.bound == bound)]
        values = values.pivot(index="seed", columns="network", values="accuracy")
        for name, column_values in {**values, "HR(1.6) - CE, paired": values["HR(1.6)"] - values["CE"]}.items():
            half_width = scipy.stats.t.ppf(0.975, 1) * column_values.std() / np.sqrt(2)
            mean, spread = section[name][column].split(" ± ")
            assert (float(mean), float(spread)) == pytest.approx((column_values.mean(), half_width), abs=6e-4)


def test_the_figure_is_written_as_png_and_svg(finished: Finished) -> None:
    assert (finished.output / "certified-digits.png").read_bytes()[:4] == b"\x89PNG"
    svg = (finished.output / "certified-digits.svg").read_text()
    assert svg.count('id="axes_') == 2 * len(NETWORKS)


def test_a_rerun_measures_only_missing_or_damaged_results(finished: Finished, capsys: pytest.CaptureFixture) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.store.rglob("*.json")}
    table = (finished.output / "certified-digits.md").read_bytes()
    missing, damaged = sorted(finished.store.glob("certified/*/*.json"))[::20][:2]
    missing.unlink()
    damaged.write_text("{")
    assert main([*SMALL, "--store", str(finished.store), "--output", str(finished.output)]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"Networks: 3\D+0\b", shown)
    assert re.search(r"Measurements: 12\D+2\b", shown)
    after = {path: path.stat().st_mtime_ns for path in finished.store.rglob("*.json")}
    assert {path for path in after if after[path] != before[path]} == {missing, damaged}
    assert (finished.output / "certified-digits.md").read_bytes() == table


@pytest.mark.parametrize(
    ("option", "value"), [("--images", "361"), ("--seeds", "0"), ("--square-iter", "-1"), ("--workers", "0")]
)
def test_a_number_out_of_range_is_named(
    option: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["certify", option, value]) == 2
    assert value in capsys.readouterr().err
    assert not os.listdir(tmp_path)


# ---------------------------------------------------------------------------------------- single measurements


def linear_subject(weights: np.ndarray, images: np.ndarray) -> Subject:
    """Return a linear network of two classes, with images that it classifies correctly."""
    linear = nn.Linear(weights.shape[1], 2)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor(weights))
        linear.bias.copy_(torch.tensor([0.0, -float(weights[1].sum() / 2)]))
    network = nn.Sequential(nn.Flatten(), linear)
    stored = Split((images * 255).round().astype(np.uint8), np.zeros(len(images), np.int64))
    with torch.no_grad():
        labels = network(stored.tensors(torch.device("cpu"))[0]).argmax(1).numpy()
    split = Split(stored.images, labels)
    classifier = HRClassifier(network, HRLoss(), images.shape[1:], 2, clip_values=(0, 1), device_type="cpu")
    return Subject(classifier, Dataset("linear", 2, split, split, split))


@pytest.fixture
def subject() -> Subject:
    generator = np.random.default_rng(0)
    weights = np.stack([np.zeros(16), generator.normal(size=16)])
    return linear_subject(weights, generator.random((40, 1, 4, 4)))


def test_on_a_linear_network_both_bounds_are_the_robust_accuracy(subject: Subject) -> None:
    """Images that are decided at another eps are not tried again, and this changes neither bound."""
    result, tried, radii = None, 0, (0.002, 0.005, 0.02, 0.08)
    for i, eps in enumerate(radii, start=1):
        result = subject.measured(Step("L-infinity", radii[:i], 40, max_iter=20), result)
        certified = ZonotopeNetwork(subject.classifier.model).certified(subject.images, subject.labels, eps)
        assert result["certified"] == result["robust"] == certified.tolist()
        tried += result["tried"]
    assert 3 < sum(result["certified"]) < 37
    assert tried < 3 * 40


def test_a_misclassified_image_that_is_certified_is_an_error(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """A faulty certifier that accepts every image is detected by the first adversarial example."""
    monkeypatch.setattr(ZonotopeNetwork, "certified", lambda self, images, labels, eps: np.ones(len(images), bool))
    with pytest.raises(BracketError, match=r"eps 0\.1"):
        subject.measured(Step("L-infinity", (0.1,), 40, max_iter=5), None)


def test_a_smoothed_linear_network_is_certified_up_to_slightly_less_than_the_distance_to_its_boundary(
    subject: Subject,
) -> None:
    """Smoothing does not move the decision boundary of a linear network."""
    sigma = 0.25
    radius = np.array(subject.measured(Step("smoothed", (sigma,), 40), None)["radius"])
    logits = subject.classifier.predict(subject.images.numpy()).astype(np.float64)
    weight = next(values for values in subject.classifier.model.parameters() if values.ndim == 2)
    distance = np.abs(logits[:, 0] - logits[:, 1]) / (weight[1] - weight[0]).norm().item()
    # If each sample is right with probability p, all of 1000 are right with probability 0.001 = p ** 1000.
    reached = sigma * scipy.stats.norm.ppf(0.001 ** (1 / 1000))
    assert (radius <= distance).all()
    assert radius.max() <= reached + 1e-9
    near = (distance > 0.1) & (distance < 0.4)
    assert near.sum() > 5
    assert (radius[near] > 0.5 * distance[near]).all()


def test_the_networks_are_those_of_the_grids() -> None:
    """The runs have the keys of the grids, so that no network in a store is trained again."""
    plan = Plan("digits", Path(), Path(), seeds=1, images=1, smoothed_images=1, max_iter=1, square_iter=0)
    plain, defended = (build() for build in measuring.GRIDS["digits"])
    assert [str(run.loss) for run in plan.runs] == NETWORKS
    assert set(plan.runs[:2]) <= set(plain.runs())
    assert plan.runs[2] in defended.runs()
