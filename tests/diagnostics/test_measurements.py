"""Tests of the measurements of the gradient masking report, each against a simple reference computation."""

import copy

import numpy as np
import pytest
import torch
from art.attacks import evasion
from art.defences.postprocessor.postprocessor import Postprocessor
from testing.networks import Recording
from torch import Tensor, nn

from art_hrloss import HRClassifier
from art_hrloss.attacks._constraints import margins
from art_hrloss.classifier import as_hr_classifier
from art_hrloss.diagnostics._measurements import Gradients, Target
from benchmarks.autoattack.masked import Around, Decoy, rounding, scaled


def target(classifier, x, y, *, eps=0.1, norm=np.inf, batch_size=128):
    return Target(as_hr_classifier(classifier), x, y, eps, norm, batch_size)


def flat_classifier(network, loss=None, *, features, classes=2, clip_values=(0.0, 1.0)):
    """Return a classifier with a network of flat features without parameters."""
    options = {"input_shape": (features,), "nb_classes": classes, "clip_values": clip_values, "device_type": "cpu"}
    return HRClassifier(network, loss or nn.CrossEntropyLoss(), **options)


def features(*values):
    """Return examples of one feature, one for each value."""
    return np.array(values, dtype=np.float32)[:, None]


@pytest.fixture
def images(digits):
    """The first 40 test images and their classes."""
    return digits.x_test[:40], digits.y_test[:40]


class Prescribed(nn.Module):
    """A loss whose gradient by the logits of an example is a row of a table, selected by the label."""

    def __init__(self, rows):
        super().__init__()
        self.rows = torch.tensor(rows, dtype=torch.float32)

    def forward(self, logits, labels):
        return (logits * self.rows[labels.argmax(1)]).sum(1)


class Band(nn.Module):
    """
    Network of one feature that is misclassified only in a band, with a gradient that is positive everywhere.

    The steps of an attack can therefore enter the band and leave it again.
    """

    def __init__(self, low, high):
        super().__init__()
        self.low, self.high = low, high

    def forward(self, x):
        wrong = ((x > self.low) & (x < self.high)).float()
        return torch.cat([1 - 2 * wrong + x.detach() - x, torch.zeros_like(x)], dim=1)


class OneAtATime(nn.Module):
    """A margin that decreases with the sum of the features, with a gradient for the smallest feature only."""

    def forward(self, x):
        smallest = x.min(1).values
        margin = 60 - x.sum(1).detach() + smallest.detach() - smallest
        return torch.stack([margin / 2, -margin / 2], dim=1)


# Gradients and FGSM


@pytest.mark.parametrize("batch_size", [3, 10, 100])
def test_useless_gradients_are_counted_by_kind(batch_size):
    tiny = float(np.finfo(np.float32).tiny)
    rows = np.ones((7, 7), dtype=np.float32)
    rows[0] = 0
    rows[1, 3] = np.nan
    rows[2, 6] = -np.inf
    rows[3] = [0, 1e-40, -1e-39, 0, 0, 0, 0]
    rows[4] = [1e-40, 0, 0, 0, 0, 0, -tiny]  # the smallest normal number is not useless
    rows[5] = [0, 0, 0, 0, 0, 1e-20, 0]
    labels = np.array([0, 0, 0, 1, 2, 3, 3, 4, 5, 6])
    classifier = flat_classifier(nn.Identity(), Prescribed(rows), features=7, classes=7)
    x = np.full((10, 7), 0.5, dtype=np.float32)
    _, gradients = target(classifier, x, labels, batch_size=batch_size).fgsm()
    assert gradients == Gradients(zero=0.3, nan=0.2, subnormal=0.2)


@pytest.mark.parametrize(("norm", "eps"), [(np.inf, 0.1), (2, 0.8)])
@pytest.mark.parametrize("make", ["hr_classifier", "art_classifier"])
def test_fgsm_equals_that_of_art(request, images, make, norm, eps):
    x, y = images
    classifier = request.getfixturevalue(make)(nn.CrossEntropyLoss())
    expected = evasion.FastGradientMethod(classifier, norm=norm, eps=eps, batch_size=40).generate(x, np.eye(10)[y])
    measured = target(classifier, x, y, eps=eps, norm=norm)
    stepped, gradients = measured.fgsm()
    np.testing.assert_allclose(stepped, expected, atol=0 if norm == np.inf else 1e-6)
    assert gradients == (0, 0, 0)
    np.testing.assert_array_equal(measured.correct(expected), classifier.predict(expected).argmax(1) == y)
    assert 0 < measured.correct(expected).mean() < 0.95


def _plain_losses(temperature):
    """Return the losses of the replays, computed from their definitions."""

    def margin(z, y):
        others = torch.where(nn.functional.one_hot(y, 10) == 1, torch.full_like(z, -1e30), z)
        return others.amax(1) - z[torch.arange(len(z)), y]

    def dlr(z, y):
        ordered = z.sort(1, descending=True).values
        return margin(z, y) / (ordered[:, 0] - ordered[:, 2] + 1e-12)

    def ce(z, y):  # in torch's cross-entropy, 1 - q_y is 0 in float64 beyond a margin of 37
        others = nn.functional.one_hot(y, 10) == 0
        return (z - z[torch.arange(len(z)), y, None])[others].reshape(len(z), 9).exp().sum(1).log1p()

    tempered = {"CE of logits / T": lambda z, y: ce(z / temperature, y)}
    return {"exact CE": ce, "margin": margin, "DLR": dlr} | tempered | {"CE in float64": ce}


@pytest.mark.parametrize(("factor", "temperature"), [(1.0, 2.5), (6.0, 15.0)])
def test_replays_use_the_losses_of_their_names(hr_classifier, network, images, factor, temperature):
    x, y = images
    steep = scaled(network, factor)
    measured = target(hr_classifier(network=steep), x, y)
    replays, losses = measured.replays(temperature), _plain_losses(temperature)
    assert list(replays) == list(losses)
    for name, loss in losses.items():
        leaf = torch.tensor(x, dtype=torch.float64, requires_grad=True)
        logits = copy.deepcopy(steep).double()(leaf)
        (gradient,) = torch.autograd.grad(loss(logits, torch.tensor(y)).sum(), leaf)
        stepped = (x + np.float32(0.1) * gradient.sign().numpy()).clip(0, 1).astype(np.float32)
        if name != "exact CE" or factor == 1:  # float32 rounds it to 0 beyond a margin of 87
            np.testing.assert_array_equal(replays[name], measured.correct(stepped), name)


def test_float64_replays_gradients_that_float32_rounds_to_0(hr_classifier, network, images):
    x, y = images
    margin = np.median(margins(hr_classifier(network=network).predict(x).astype(float), y))
    measured = target(hr_classifier(network=scaled(network, 300 / margin)), x, y)
    replays = measured.replays(300.0)
    assert measured.fgsm("ce")[1].zero > 0.5
    assert replays["CE in float64"].mean() < replays["exact CE"].mean() - 0.1


@pytest.mark.parametrize("margin", [-3.0, 0.2, np.nan])
def test_a_temperature_below_1_is_not_used(hr_classifier, images, margin):
    replays = target(hr_classifier(), *images).replays(margin)
    np.testing.assert_array_equal(replays["CE of logits / T"], replays["exact CE"])


def test_unsupported_replays_are_omitted(hr_classifier, network, images):
    single = target(hr_classifier(network=Around(network, Tensor.float)), *images)
    assert list(single.replays(2.0)) == ["exact CE", "margin", "DLR", "CE of logits / T"]
    two = target(flat_classifier(Band(0.4, 0.6), features=1), features(0.1, 0.9), np.array([0, 0]))
    assert list(two.replays(2.0)) == ["exact CE", "margin", "CE of logits / T", "CE in float64"]


# The trace of PGD


def test_silent_success_is_a_misclassified_iterate_that_is_not_the_last():
    # 4 steps of 0.25 upwards, at most 0.4 in total: 0.2 passes 0.45 and ends at 0.6; 0 ends in the band; 0.5 and 0.9
    # start above it; 0.04 reaches 0.44 and stays there.
    x, y = features(0.2, 0.0, 0.5, 0.9, 0.04), np.zeros(5, dtype=int)
    trace = target(flat_classifier(Band(0.38, 0.46), features=1), x, y, eps=0.4).pgd(4, 0.4)
    np.testing.assert_array_equal(trace.robust, [True, False, True, True, False])
    np.testing.assert_array_equal(trace.silent, [True, False, False, False, False])
    trace = target(flat_classifier(Band(0.38, 2.0), features=1), x, y, eps=0.4).pgd(4, 0.4)
    assert not (trace.robust | trace.silent).any()


def test_moving_is_a_margin_that_still_decreases_at_the_end():
    """Ten features that change one after another, so that each of ten steps decreases the margin by the same amount."""
    ten, hundred = (np.linspace(0.1, 0.2, n, dtype=np.float32)[None] for n in (10, 100))

    def moving(x, max_iter, label=0):
        classifier = flat_classifier(OneAtATime(), features=x.shape[1])
        return target(classifier, x, np.array([label]), eps=0.6).pgd(max_iter, 0.6).moving.all()

    assert moving(ten, 10)
    assert moving(hundred, 100)
    assert not moving(ten[:, :1], 10)  # a single feature reaches its bound after four of ten steps
    assert not moving(ten, 10, label=1)  # misclassified
    assert not moving(ten, 1)  # with one step there is no last tenth


def _plain_path(network, x, y, eps, steps, *, bias=0):
    """Return the margins at all iterates of PGD along cross-entropy, ``(steps + 1, n)``, with a bias of the logits."""
    start, images, path = torch.tensor(x), torch.tensor(x), []
    for step in range(steps + 1):
        images.requires_grad_()
        logits = network(images)
        path.append(margins(logits.detach().numpy().astype(float) + bias, y))
        if step < steps:
            (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(logits, torch.tensor(y)), images)
            moved = (images.detach() + 2.5 * eps / steps * gradient.sign()).clamp(0, 1)
            images = start + (moved - start).clamp(-eps, eps)
    return np.array(path)


@pytest.mark.parametrize("batch_size", [7, 40])
@pytest.mark.parametrize("make", ["hr_classifier", "art_classifier"])
def test_a_trace_equals_that_of_a_simple_loop(request, network, images, make, batch_size):
    classifier = request.getfixturevalue(make)(nn.CrossEntropyLoss(), network=network)
    trace = target(classifier, *images, batch_size=batch_size).pgd(5, 0.1)
    path = _plain_path(network, *images, 0.1, 5)
    robust, before = path[-1] > 0, path[:-1]
    moving = before[:-1].min(0) - before.min(0) > 0.05 * (before[0] - before.min(0))
    np.testing.assert_array_equal(trace.robust, robust)
    np.testing.assert_array_equal(trace.silent, robust & (before < 0).any(0))
    np.testing.assert_array_equal(trace.moving, robust & moving)
    assert 0 < trace.moving.mean() < robust.mean() < 0.9


def test_moving_considers_the_last_tenth_of_the_steps():
    x = np.random.default_rng(0).uniform(size=(60, 3)).astype(np.float32)
    y, network = np.zeros(60, dtype=int), OneAtATime()
    path = _plain_path(network, x, y, 0.6, 20)[:-1]

    def falls_after(steps):
        return path[:steps].min(0) - path.min(0) > 0.05 * (path[0] - path.min(0))

    moving = target(flat_classifier(network, features=3), x, y, eps=0.6).pgd(20, 0.6).moving
    np.testing.assert_array_equal(moving, falls_after(18))
    assert 0 < moving.mean() < falls_after(16).mean()


BIAS = 12 * np.eye(10)[0]


class AddBias(Postprocessor):
    """A defence that favours class 0."""

    def __init__(self):
        super().__init__(is_fitted=True, apply_fit=False, apply_predict=True)

    def __call__(self, preds):
        return preds + BIAS


def test_a_trace_uses_predictions_after_postprocessing(hr_classifier, network, images):
    classifier = hr_classifier(nn.CrossEntropyLoss(), network=network, postprocessing_defences=AddBias())
    trace, path = target(classifier, *images).pgd(5, 0.1), _plain_path(network, *images, 0.1, 5, bias=BIAS)
    assert ((path > 0) != (_plain_path(network, *images, 0.1, 5) > 0)).any()
    np.testing.assert_array_equal(trace.robust, path[-1] > 0)
    np.testing.assert_array_equal(trace.silent, (path[-1] > 0) & (path[:-1] < 0).any(0))


# Other attacks and noise


def test_infeasible_images_count_as_originals(hr_classifier, network, images):
    """The adversarial images of a source without clip_values leave the range of this classifier."""
    measured = target(hr_classifier(network=network), *images, eps=0.3)
    assert not measured.transfer(hr_classifier(network=network), 5).all()
    unclipped = hr_classifier(network=network, clip_values=None)
    np.testing.assert_array_equal(measured.transfer(unclipped, 5), measured.correct(images[0]))


def test_auto_pgd_and_square_misclassify(hr_classifier, network, images):
    measured = target(hr_classifier(network=network), *images, eps=0.2)
    clean = measured.correct(images[0]).mean()
    assert measured.auto_pgd(10).mean() < 0.5 < clean
    assert measured.square(60).mean() < clean - 0.2


def test_noise_changes_every_pixel_by_its_size(hr_classifier, network, images):
    x, y = images
    recording = Recording(network)
    measured = target(hr_classifier(network=recording), x, y)
    correct = measured.noise(0.3, np.random.default_rng(1))
    (noisy,) = recording.inputs
    up, down = np.isclose(noisy, (x + 0.3).clip(0, 1)), np.isclose(noisy, (x - 0.3).clip(0, 1))
    assert (up | down).all()
    assert min(up.mean(), down.mean()) > 0.3
    np.testing.assert_array_equal(correct, measured.correct(noisy))
    np.testing.assert_array_equal(correct, measured.noise(0.3, np.random.default_rng(1)))


# Instability


class Steps(nn.Module):
    """Two classes and one feature: the margin is steep, and drops by 1 at a feature of 0.5."""

    def __init__(self, slope, height=1.0):
        super().__init__()
        self.slope, self.height = slope, height

    def forward(self, x):
        margin = self.slope * x - self.height * (x > 0.5)
        return torch.cat([margin, torch.zeros_like(x)], dim=1)


def unstable(network, x, size=0.01, draws=20, seed=0, classes=2):
    classifier = flat_classifier(network, features=x.shape[1], classes=classes)
    measured = target(classifier, x, np.zeros(len(x), dtype=int), batch_size=3)
    return measured.unstable(size, draws, np.random.default_rng(seed))


def test_a_jump_is_unstable_and_a_steep_slope_is_not():
    x = features(0.3, 0.495, 0.505, 0.52, 0.9)
    np.testing.assert_array_equal(unstable(Steps(1.0), x), [False, True, True, False, False])
    np.testing.assert_array_equal(unstable(Steps(1.0), x, size=0.05), [False, True, True, True, False])
    for slope in (1e-3, 1.0, 1e3):
        assert not unstable(Steps(slope, height=0.0), x).any()
    # The noise changes the margin by 0.005 on average, and the jump, which half of the draws cross, is much smaller.
    assert not unstable(Steps(1.0, height=1e-3), x).any()


def test_a_gradient_of_another_function_is_unstable():
    x = np.random.default_rng(0).random((30, 20), dtype=np.float32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = nn.Linear(20, 3), nn.Linear(20, 3)
    assert unstable(Decoy(first, second), x, classes=3).mean() > 0.9
    assert not unstable(first, x, classes=3).any()
    assert not unstable(nn.Linear(20, 3).requires_grad_(False), x, draws=0, classes=3).any()


def test_a_constant_margin_is_not_unstable_and_a_rounded_one_is(hr_classifier, network, images):
    x, y = images
    assert not unstable(Steps(0.0, height=0.0), features(0.1, 0.7)).any()
    random = np.random.default_rng(0)
    assert not target(hr_classifier(network=network), x, y).unstable(1 / 255, 20, random).any()
    assert target(hr_classifier(network=rounding(network)), x, y).unstable(1 / 255, 20, random).mean() > 0.5


def test_noise_of_the_instability_stays_inside_the_clip_values():
    recording = Recording(Steps(1.0))
    unstable(recording, features(0.0, 1.0), size=0.5)
    values = np.concatenate(recording.inputs)
    assert values.min() == 0
    assert values.max() == 1
    assert len(np.unique(values)) > 5


# Sizes and safety


@pytest.mark.parametrize(
    ("clip_values", "expected"), [((0.0, 1.0), 1.0), ((-1.0, 3.0), 4.0), (None, 0.75), ((np.zeros(4), np.ones(4)), 1.0)]
)
def test_sizes(clip_values, expected):
    x = np.array([[0.25, 0.5, 0.0, 0.75]], dtype=np.float32)
    classifier = flat_classifier(nn.Identity(), features=4, classes=4, clip_values=clip_values)
    linf, l2 = (target(classifier, x, np.zeros(1, dtype=int), norm=norm) for norm in (np.inf, 2.0))
    assert linf.pixel_range == l2.pixel_range == expected
    assert (linf.size_of_ones, l2.size_of_ones) == (1, 2)  # the diagonal of a cube in 4 dimensions
