"""Tests of attacks._square: the Square attack in comparison with ART's, and its queries."""

import itertools

import numpy as np
import pytest
import torch
from art.attacks import evasion
from art.estimators.classification import BlackBoxClassifierNeuralNetwork, PyTorchClassifier
from testing.networks import Recording
from torch import nn

from art_hrloss.attacks._square import SquareAttack, is_for_square
from art_hrloss.attacks._worst_case import seeded

EPS = 0.15


@pytest.fixture
def x(digits):
    return digits.x_test[:100]


@pytest.fixture
def y(digits):
    return digits.y_test[:100]


def attacked(classifier, x, y, kind=SquareAttack, seed=3, **options):
    options = {"eps": EPS, "max_iter": 60, "verbose": False, **options}
    with seeded(seed):
        return kind(classifier, **options).generate(x, y)


def parameterless(network, shape, classes, **options):
    """A classifier with a network without parameters, and therefore without an optimizer."""
    options = {"clip_values": (0.0, 1.0), "device_type": "cpu", **options}
    return PyTorchClassifier(network, nn.CrossEntropyLoss(), shape, classes, **options)


def are_misclassified(classifier, images, y):
    return classifier.predict(images).argmax(1) != y


class Flat(nn.Module):
    """Constant logits: class 0 with the same margin for all images, so that no candidate is accepted."""

    def forward(self, x):
        return torch.tensor([1.0, 0.0, 0.0]).repeat(len(x), 1) + 0 * x.flatten(1).sum(1, keepdim=True)


class Mean(nn.Module):
    """Class 0 if the mean of the image is above a half; all pixels have the same effect on the margin."""

    def forward(self, x):
        mean = x.flatten(1).mean(1)
        return torch.stack([mean, 1 - mean], 1)


# ---------------------------------------------------------------------------------------------------------- strength


def test_it_succeeds_at_least_as_often_as_the_attack_of_art_with_equal_queries(art_classifier, x, y):
    classifier = art_classifier()
    ours, arts = (
        are_misclassified(classifier, attacked(classifier, x, y, kind, max_iter=40), y).sum()
        for kind in (SquareAttack, evasion.SquareAttack)
    )
    assert arts > 15
    assert ours >= arts


def test_it_finds_the_corner_of_the_smallest_margin():
    """The smallest mean is reached when all pixels decrease by eps; squares of one pixel are last in the schedule."""
    classifier = parameterless(Mean(), (1, 4, 4), 2)
    x = np.full((3, 1, 4, 4), 0.7, dtype=np.float32)
    images = attacked(classifier, x, np.zeros(3, dtype=int), max_iter=400)
    np.testing.assert_allclose(images, x - EPS, rtol=1e-6)


def test_restarts_attack_images_that_are_still_classified_correctly(art_classifier, x, y):
    classifier = art_classifier()
    one, five = (
        are_misclassified(classifier, attacked(classifier, x, y, max_iter=10, nb_restarts=n), y) for n in (1, 5)
    )
    assert (one <= five).all()
    assert one.sum() < five.sum()


# ------------------------------------------------------------------------------------------------------- constraints


@pytest.mark.parametrize("eps", [0.05, 0.4])
def test_images_are_within_eps_and_within_clip_values_per_pixel(art_classifier, x, y, eps):
    high = np.linspace(0.2, 1.2, 64, dtype=np.float32).reshape(1, 8, 8)
    low = high - 1
    x = np.clip(x, low, high)
    images = attacked(art_classifier(clip_values=(low, high)), x, y, eps=eps)
    assert images.dtype == np.float32
    assert (np.abs(images.astype(np.float64) - x) <= eps * (1 + 1e-6)).all()
    assert ((images >= low) & (images <= high)).all()
    assert (images != x).any()


def test_misclassified_images_are_returned_unchanged(art_classifier, x, y):
    classifier = art_classifier()
    y = np.where(np.arange(100) % 3, y, (y + 1) % 10)
    wrong = are_misclassified(classifier, x, y)
    images = attacked(classifier, x, y)
    assert 30 < wrong.sum() < 60
    np.testing.assert_array_equal(images[wrong], x[wrong])
    assert (images[~wrong] != x[~wrong]).any(axis=(1, 2, 3)).all()
    np.testing.assert_array_equal(attacked(classifier, x[wrong], y[wrong]), x[wrong])


@pytest.mark.parametrize("shape", [(1, 8, 32), (3, 20, 6), (1, 1, 1), (2, 4, 4)])
def test_images_with_unequal_sides(art_classifier, shape):
    network = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 3))
    classifier = art_classifier(network=network, input_shape=shape, nb_classes=3)
    x = np.random.default_rng(0).uniform(size=(10, *shape)).astype(np.float32)
    images = attacked(classifier, x, None, eps=0.01)
    assert (np.abs(images - x) <= 0.01 * (1 + 1e-5)).all()
    assert (images != x).any(axis=(1, 2, 3)).all()


# ----------------------------------------------------------------------------------------------------------- queries


def queries_of(shape, n=6, channels_first=True, **options):
    """Return the images of each query, with the first prediction, for images of 0.5, so that bounds are 0.5 +- eps."""
    options = {"max_iter": 100, **options}
    recording = Recording(Flat())
    classifier = parameterless(recording, shape, 3, channels_first=channels_first)
    attacked(classifier, np.full((n, *shape), 0.5, dtype=np.float32), np.zeros(n, dtype=int), **options)
    return recording.inputs


@pytest.mark.parametrize("channels_first", [True, False])
def test_the_first_query_is_vertical_stripes(channels_first):
    shape = (3, 5, 7) if channels_first else (5, 7, 3)
    _, stripes, *_ = queries_of(shape, channels_first=channels_first)
    np.testing.assert_allclose(np.abs(stripes - 0.5), EPS, rtol=1e-6)
    columns = stripes if channels_first else stripes.transpose(0, 3, 1, 2)
    assert (columns == columns[:, :, :1]).all()
    assert len(np.unique(columns[:, :, 0].reshape(18, 7), axis=0)) > 10  # each image and channel has its stripes


@pytest.mark.parametrize("channels_first", [True, False])
def test_each_query_changes_a_square_of_the_scheduled_side_per_image(channels_first):
    shape = (3, 10, 12) if channels_first else (10, 12, 3)
    _, stripes, *candidates = queries_of(shape, channels_first=channels_first)
    assert len(candidates) == 100
    places = []
    for query, candidate in enumerate(candidates):
        changed = candidate != stripes
        changed = (changed if channels_first else changed.transpose(0, 3, 1, 2)).any(1)
        assert changed.any(axis=(1, 2)).all()  # no query is wasted
        # The schedule of the paper, for 10,000 queries.
        halvings = sum(query * 100 > end for end in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000))
        side = min(max(round((0.8 / 2**halvings * 120) ** 0.5), 1), 10)
        for image in changed:
            rows, columns = image.any(1).nonzero()[0], image.any(0).nonzero()[0]
            assert np.ptp(rows) < side
            assert np.ptp(columns) < side
            places.append((rows[0], columns[0]))
    assert {row for row, _ in places} == set(range(10))
    assert {column for _, column in places} == set(range(12))
    last = places[-6:]  # squares of a single entry
    assert len(set(last)) > 1


def test_a_candidate_equal_to_the_iterate_is_inverted():
    """A single pixel has only two candidates, so that every query must be the one that is not the iterate."""
    _, start, *candidates = queries_of((1, 1, 1))
    for candidate in candidates:
        np.testing.assert_allclose(candidate + start, 1, rtol=1e-6)


def test_only_images_that_are_still_classified_correctly_are_queried(art_classifier, network, x, y):
    recording = Recording(network)
    classifier = art_classifier(network=recording)
    attacked(classifier, x, y, max_iter=200)
    sizes = [len(query) for query in recording.inputs]
    assert sizes[0] == 100
    assert sizes == sorted(sizes, reverse=True)
    logits = [network(torch.tensor(query)).argmax(1) for query in recording.inputs[1:]]
    labels = torch.tensor(y)
    robust = labels[network(torch.tensor(x)).argmax(1) == labels]
    for predictions in logits:
        assert len(predictions) == len(robust)
        robust = robust[predictions == robust]


# ------------------------------------------------------------------------------------------------------- random draws


def test_the_same_seed_gives_the_same_images(art_classifier, x, y):
    classifier = art_classifier()
    first, again, other = (attacked(classifier, x, y, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_batch_size_changes_no_image(art_classifier, x, y):
    """The rounding of float64 logits, which depends on the batch, does not decide about a change."""
    classifier = art_classifier()
    classifier.model.double()
    classifier.predict = lambda images, **_: classifier.model(torch.tensor(images).double()).detach().numpy()
    whole, parts = (attacked(classifier, x, y, batch_size=size) for size in (100, 7))
    np.testing.assert_array_equal(whole, parts)


def test_the_attack_on_an_image_does_not_depend_on_the_other_images(art_classifier, x, y):
    """The labels of the other images are changed, so that these are misclassified at other queries."""
    classifier = art_classifier()
    correct = ~are_misclassified(classifier, x, y)
    x, y = x[correct], y[correct]
    images = attacked(classifier, x, y)
    slow = np.concatenate([x[:1], np.clip(x[1:], 0.45, 0.55)])
    labels = np.concatenate([y[:1], classifier.predict(slow[1:]).argmax(1)])
    np.testing.assert_allclose(attacked(classifier, slow, labels)[0], images[0], rtol=1e-6)


# ---------------------------------------------------------------------------------------------------------- patience


def test_patience_ends_an_attempt_without_new_adversarial_examples():
    for patience in (1, 7):
        queries = queries_of((1, 4, 4), patience=patience)
        assert len(queries) == 2 + patience  # after the prediction and the stripes


def test_patience_restarts_with_each_adversarial_example(art_classifier, network, x, y):
    recording = Recording(network)
    attacked(art_classifier(network=recording), x, y, max_iter=1000, patience=25)
    sizes = np.array([len(query) for query in recording.inputs[1:]])
    runs = [len(list(run)) for _, run in itertools.groupby(sizes)]
    assert len(runs) > 5
    assert max(runs[:-1]) <= 25
    assert runs[-1] in (25, 26)
    assert len(sizes) < 1000


# ------------------------------------------------------------------------------------------------ labels, classifiers


def test_without_labels_the_predicted_classes_are_attacked(art_classifier, x):
    classifier = art_classifier()
    predictions = classifier.predict(x).argmax(1)
    np.testing.assert_array_equal(attacked(classifier, x, None), attacked(classifier, x, predictions))


def test_hr_classifier_and_a_black_box_give_the_same_images(art_classifier, hr_classifier, x, y):
    classifier = art_classifier()
    black_box = BlackBoxClassifierNeuralNetwork(classifier.predict, (1, 8, 8), 10, clip_values=(0, 1))
    expected = attacked(classifier, x, y)
    for other in (hr_classifier(network=classifier.model), black_box):
        np.testing.assert_array_equal(attacked(other, x, y), expected)


# ----------------------------------------------------------------------------------------------- ART's implementation


@pytest.fixture
def large(digits):
    """Images of 16 x 16 pixels, because the attack in norm 2 refuses smaller ones."""
    return np.kron(digits.x_test[:40], np.ones((2, 2), dtype=np.float32)), digits.y_test[:40]


@pytest.mark.filterwarnings("ignore:.*encountered in divide")  # of ART's attack, for squares without a change
@pytest.mark.parametrize(
    "options",
    [
        {"norm": 2, "eps": 2.5},
        {"loss": lambda x, y: x.mean(axis=(1, 2, 3))},
        {"adv_criterion": lambda predictions, y: predictions.argmax(1) == (y.argmax(1) + 1) % 10},
    ],
    ids=["norm 2", "loss", "criterion"],
)
def test_the_implementation_of_art_runs(art_classifier, trained_network, large, options):
    x, y = large
    network = nn.Sequential(nn.AvgPool2d(2), trained_network)
    classifier = art_classifier(network=network, input_shape=(1, 16, 16))
    ours, arts = (attacked(classifier, x, y, kind, **options) for kind in (SquareAttack, evasion.SquareAttack))
    np.testing.assert_array_equal(ours, arts)
    assert (ours != x).any()
    with pytest.raises(ValueError, match="patience"):
        SquareAttack(classifier, patience=5, **options)


# ------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("shape", "norm", "options", "expected"),
    [
        ((1, 8, 8), np.inf, {}, True),
        ((1, 4, 4), "inf", {}, True),
        ((1, 8, 32), np.inf, {}, True),
        ((64,), np.inf, {}, False),
        ((1, 8, 8), np.inf, {"clip_values": None}, False),
        ((1, 28, 28), 2, {}, True),
        ((28, 28, 1), 2, {"channels_first": False}, True),
        ((1, 9, 9), 2, {}, False),
        ((1, 20, 28), 2, {}, False),
        ((1, 28, 28), 1, {}, False),
    ],
)
def test_is_for_square_by_shape_norm_and_clip_values(art_classifier, shape, norm, options, expected):
    network = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 10))
    classifier = art_classifier(network=network, input_shape=shape, **options)
    assert is_for_square(classifier, norm) == expected
    if expected:
        SquareAttack(classifier, norm=norm)
    else:
        with pytest.raises(ValueError, match="expected images of three dimensions"):
            SquareAttack(classifier, norm=norm)


def test_set_params_checks_as_the_constructor(art_classifier, x, y):
    attack = SquareAttack(art_classifier(), eps=EPS, max_iter=60, verbose=False)
    attack.set_params(patience=5, max_iter=30)
    assert (attack.patience, attack.max_iter) == (5, 30)
    for parameters in ({"patience": 0}, {"norm": 2}, {"max_iter": 0}):
        attack = SquareAttack(art_classifier(), verbose=False)
        with pytest.raises(ValueError, match=r"patience|expected images|max_iter"):
            attack.set_params(**parameters)


def test_images_of_another_shape_raise_an_error(art_classifier, x, y):
    with pytest.raises(ValueError, match="expected images of shape"):
        SquareAttack(art_classifier(), verbose=False).generate(x.reshape(100, 64), y)
