"""Tests of attacks._auto_pgd: equality with ART's Auto-PGD, the paper's step-size rule, and targeted attempts."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from testing.networks import Counting, Curve, Root
from torch import nn

from art_hrloss.attacks import AutoProjectedGradientDescent, seeded
from art_hrloss.attacks._auto_pgd import checkpoints
from art_hrloss.attacks._constraints import feasible
from benchmarks.autoattack.masked import scaled

LEFT_HALF = np.repeat([[True] * 4 + [False] * 4], 8, axis=0)[np.newaxis]
MASK_PER_IMAGE = np.stack([np.roll(LEFT_HALF, shift, axis=2) for shift in range(50)]).astype(np.float64)
EXACT = [
    pytest.param({"max_iter": 8}, id="8-steps"),
    pytest.param({"max_iter": 1}, id="1-step"),
    pytest.param({"max_iter": 20, "eps": 0.1, "nb_random_init": 1}, id="20-steps"),
    pytest.param({"norm": "inf", "batch_size": 17, "nb_random_init": 3, "max_iter": 3}, id="3-random"),
    pytest.param({"mask": LEFT_HALF, "eps": 0.25}, id="mask"),
    pytest.param({"mask": MASK_PER_IMAGE[:1], "eps": 0.25, "batch_size": 50}, id="mask-of-one-image"),
]
ROUNDED = [
    pytest.param({"norm": 2, "eps": 1.2, "eps_step": 2.4, "max_iter": 3}, id="L2"),
    pytest.param({"norm": 1, "eps": 6.0, "eps_step": 6.0, "max_iter": 3}, id="L1"),
]


def are_misclassified(classifier, images, labels):
    return classifier.predict(images).argmax(1) != labels


# -------------------------------------------------------------------------------------------------------- ART's images


@pytest.mark.parametrize(
    ("options", "exact", "classifier", "targeted"),
    [
        pytest.param(*p.values, p in EXACT, classifier, targeted, id=f"{classifier}-{p.id}-{targeted}")
        for classifier, targeted, chosen in (
            ("HRClassifier", False, EXACT + ROUNDED),
            ("HRClassifier", True, [EXACT[0], ROUNDED[0]]),
            ("ART's", False, [EXACT[0], *ROUNDED]),
        )
        for p in chosen
    ],
)
def test_images_equal_those_of_art_bit_for_bit(
    hr_classifier, art_classifier, both, x, y, classifier, options, exact, targeted
):
    """Images are equal up to rounding in finite norms: float32 rounding of steps of length `eps_step`."""
    sums = nn.CrossEntropyLoss(reduction="sum")  # in ART's classifier, its gradient is that of each image's own loss
    estimator = hr_classifier() if classifier == "HRClassifier" else art_classifier(sums)
    labels = (y + 1) % 10 if targeted else y
    ours, arts = both(AutoProjectedGradientDescent, estimator, x, labels, targeted=targeted, **options)
    np.testing.assert_allclose(ours, arts, rtol=0, atol=0 if exact else 1e-6 * options["eps_step"])


def test_it_ends_like_the_attack_of_art_if_all_losses_are_0(hr_classifier, network, both, attacked, arts, x, y):
    """A loss like the cross-entropy of a network that is so confident that float32 rounds its loss to 0."""
    classifier = hr_classifier(nn.CrossEntropyLoss(), network=scaled(network, 1e4))
    sure = np.flatnonzero(classifier.predict(x).argmax(1) == y)[:10]
    ours, theirs = (
        attacked(kind, classifier, x[sure], y[sure], eps=1e-4, eps_step=1e-4, nb_random_init=1)
        for kind in (AutoProjectedGradientDescent, arts[AutoProjectedGradientDescent])
    )
    assert classifier.compute_loss(x[sure], y[sure]).max() == 0
    np.testing.assert_array_equal(ours, theirs)


class Clamped(nn.Module):
    """A loss that is exactly 0 for correctly classified images, with the gradient of the margin."""

    def forward(self, logits, labels):
        margin = logits[:, 1] - logits[:, 0]
        return margin - margin.detach() + margin.detach().clamp(min=0)


def test_keep_first_does_not_stop_at_a_loss_of_0():
    """ART's attack ends for the same reason, batch by batch."""
    network = Curve(lambda x: x - 0.75)
    classifier = PyTorchClassifier(network, nn.CrossEntropyLoss(), (1,), 2, clip_values=(0.0, 1.0), device_type="cpu")
    x, y = np.full((1, 1), 0.5, dtype=np.float32), np.zeros(1, dtype=np.int64)
    options = {"eps": 0.4, "eps_step": 0.05, "max_iter": 30, "loss": Clamped(), "verbose": False}
    for keep_first in (True, False):
        attack = AutoProjectedGradientDescent(classifier, nb_random_init=1, keep_first=keep_first, **options)
        with seeded(0):
            assert are_misclassified(classifier, attack.generate(x, y), y).all() == keep_first


def test_nan_in_a_gradient_is_replaced_by_0_with_a_warning(hr_classifier, network, attacked, x, y, caplog):
    """ART's Auto-PGD returns images that contain NaN."""
    classifier = hr_classifier(network=nn.Sequential(Root(), network))
    for options in ({}, {"norm": 2, "eps": 1.2, "loss": "ce"}, {"keep_first": True}):
        caplog.clear()
        images = attacked(AutoProjectedGradientDescent, classifier, np.round(x), y, **options)
        assert feasible(images, np.round(x), options.get("eps", 0.15), options.get("norm", np.inf), (0, 1)).all()
        assert "NaN" in caplog.text


def test_each_iterate_is_evaluated_once(hr_classifier, passes, attack, digits):
    """The passes are a prediction, the start, and the end of each step; the last needs no gradient."""
    classifier = hr_classifier(network=passes.network)
    x = digits.x_test[~are_misclassified(classifier, digits.x_test, digits.y_test)][:40]
    y = classifier.predict(x).argmax(1)
    instance = attack(AutoProjectedGradientDescent, classifier, nb_random_init=1, eps=0.01, eps_step=0.02, max_iter=8)
    passes.clear()
    instance.generate(x, y)
    assert passes.forward == [32, 8] + [32] * 9 + [8] * 9
    assert passes.backward == [32] * 8 + [8] * 8
    # For an image without an adversarial iterate, keep_first needs no additional passes.
    instance.set_params(keep_first=True)
    passes.clear()
    instance.generate(x, y)
    assert passes.forward == [32, 8] + [32] * 9 + [8] * 9
    assert passes.backward == [32] * 8 + [8] * 8


# ------------------------------------------------------------------------------------------------- the step-size rule


@pytest.mark.parametrize("max_iter", [1, 5, 22, 40, 100, 1000])
def test_checkpoints_equal_those_of_the_paper(max_iter):
    """w_j = ceil(p_j N) with p_0 = 0, p_1 = 0.22, p_(j+1) = p_j + max(p_j - p_(j-1) - 0.03, 0.06)(section 3)."""
    p = [Fraction(0), Fraction(22, 100)]
    while (following := p[-1] + max(p[-1] - p[-2] - Fraction(3, 100), Fraction(6, 100))) <= 1:
        p.append(following)
    assert p[-1] == Fraction(99, 100)
    expected = sorted({math.ceil(share * max_iter) for share in p[1:]})
    intervals = checkpoints(max_iter)
    # In floating point, as in ART, a product that is a whole number may round to slightly more.
    assert len(intervals) == len(expected)
    assert all(0 <= ours - exact <= 1 for ours, exact in zip(sorted(intervals), expected, strict=True))
    steps = sorted(intervals)
    assert [intervals[step] for step in steps] == np.diff([0, *steps]).tolist()


def walk(f, slope, x, start, *, eps, step, max_iter):
    """
    Return the iterates of Auto-PGD on one pixel x without clip values: the paper's algorithm 1, in plain Python.

    As in ART, the rule of checkpoint w_j is applied after step w_j + 1, and counts new best losses, not increases.
    """

    def project(z):
        return min(max(z, x - eps), x + eps)

    current, previous, best, previous_of_best, path = start, x, start, x, [start]
    f_best = f_at_checkpoint = f(start)
    count, intervals = 0, checkpoints(max_iter)
    for k in range(max_iter):
        ahead = project(current + step * np.sign(slope(current)))
        new = ahead if k == 0 else project(current + 0.75 * (ahead - current) + 0.25 * (current - previous))
        path.append(new)
        better = f(new) > f_best
        count += better
        if better:
            f_best, best, previous_of_best = f(new), new, (x if k == 0 else current)
        current, previous = new, current
        if k in intervals:
            if count < 0.75 * intervals[k] or f_best == f_at_checkpoint:
                step, current, previous = step / 2, best, previous_of_best
            count, f_at_checkpoint = 0, f_best
    return path


class Wave(nn.Module):
    """Logits (0, f(x)), where f oscillates around an upward trend; in float64, so that steps are not rounded."""

    def __init__(self, frequency):
        super().__init__()
        self.frequency = nn.Parameter(torch.tensor(frequency, dtype=torch.float64))

    def forward(self, x):
        return torch.cat([torch.zeros_like(x), torch.sin(self.frequency * x) + 0.3 * x - 9], 1)


# In the last three runs, condition 2 of the paper alone causes exactly one halving.
@pytest.mark.parametrize(
    ("frequency", "seed"), [(5.0, 0), (5.0, 1), (13.0, 0), (13.0, 1), (5.0, 16), (3.0, 6), (23.0, 3)]
)
def test_iterates_equal_those_of_the_paper_algorithm(hr_classifier, frequency, seed):
    classifier = hr_classifier(network=Wave(frequency), input_shape=(1,), nb_classes=2, clip_values=None)
    sizes = {"eps": 1.0, "max_iter": 60}
    attack = AutoProjectedGradientDescent(
        classifier, eps_step=0.7, loss="margin", keep_first=True, verbose=False, nb_random_init=1, **sizes
    )
    visited = []
    with seeded(seed), classifier.observed_by(lambda x, labels, point: visited.append(x.item())):
        attack.generate(np.full((1, 1), 0.5, dtype=np.float32), [0])
    path = walk(
        lambda z: math.sin(frequency * z) + 0.3 * z,
        lambda z: frequency * math.cos(frequency * z) + 0.3,
        0.5,
        visited[0],
        step=0.7,
        **sizes,
    )
    assert len({round(abs(b - a), 4) for a, b in itertools.pairwise(path)}) > 10  # steps of many lengths
    np.testing.assert_allclose(visited, path, atol=1e-4)


# ------------------------------------------------------------------------------------------------------- target_classes


def test_target_classes_are_attacked_in_order_of_likelihood(hr_classifier, x, y):
    classifier = hr_classifier()
    x, y = (values[~are_misclassified(classifier, x, y)] for values in (x, y))
    calls = []
    attack = AutoProjectedGradientDescent(
        classifier, eps=1e-3, eps_step=2e-3, max_iter=3, target_classes=9, keep_first=True, batch_size=64, verbose=False
    )
    with classifier.observed_by(lambda x, labels, point: calls.append(labels.numpy())):
        attack.generate(x, y)
    targeted = [labels for labels in calls if labels.ndim == 2]
    assert len(targeted) == 9 * 4
    order = np.argsort(-classifier.predict(x), axis=1)
    others = np.array([[k for k in row if k != label] for row, label in zip(order, y, strict=True)])
    for attempt in range(9):
        for labels in targeted[4 * attempt : 4 * attempt + 4]:
            np.testing.assert_array_equal(labels, np.stack([y, others[:, attempt]], axis=1))


def test_more_target_classes_misclassify_no_fewer_images(hr_classifier, attacked, digits):
    classifier, x, y = hr_classifier(), digits.x_test[:150], digits.y_test[:150]
    options = {"eps": 0.08, "eps_step": 0.16, "max_iter": 6, "keep_first": True}
    wrong = [
        are_misclassified(
            classifier, attacked(AutoProjectedGradientDescent, classifier, x, y, target_classes=count, **options), y
        )
        for count in (1, 9)
    ]
    assert (wrong[1] >= wrong[0]).all()
    assert wrong[1].sum() > wrong[0].sum()


def test_targeted_attempts_skip_images_that_are_already_adversarial(art_classifier, network, digits):
    counting = Counting(network)
    classifier = art_classifier(network=counting)
    x, y = digits.x_test[:100], digits.y_test[:100]
    options = {"eps": 0.1, "eps_step": 0.2, "max_iter": 6, "keep_first": True, "batch_size": 100, "verbose": False}
    passes = []
    for count in (1, 2):
        attack = AutoProjectedGradientDescent(classifier, target_classes=count, **options)
        counting.forwards = 0
        with seeded(0):
            images = attack.generate(x, y)
        passes.append(counting.forwards)
        if count == 1:
            left = (~are_misclassified(classifier, images, y)).sum()
    assert 0 < left < 60
    assert passes[1] - passes[0] <= 8 * left  # the clean logits, the start and 6 steps
