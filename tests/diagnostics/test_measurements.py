"""diagnostics._measurements: each probe against a plain computation of what it measures."""

import copy

import numpy as np
import pytest
import torch
from art.attacks.evasion import FastGradientMethod
from art.defences.postprocessor.postprocessor import Postprocessor
from art.estimators.classification import PyTorchClassifier
from testing.networks import Counting, Scaled
from torch import Tensor, nn

from art_hrloss.attacks._constraints import margins
from art_hrloss.diagnostics._measurements import Gradients, Target


def target(classifier, x, y, *, eps=0.1, norm=np.inf, batch_size=128):
    return Target(classifier, x, y, eps, norm, batch_size)


def flat_classifier(network, loss=None, *, features, classes=2, clip_values=(0.0, 1.0)):
    """ART's classifier around a network of flat features that has nothing to train."""
    loss = nn.CrossEntropyLoss() if loss is None else loss
    options = {"input_shape": (features,), "nb_classes": classes, "clip_values": clip_values, "device_type": "cpu"}
    return PyTorchClassifier(network, loss, optimizer=None, **options)


def features(*values):
    """One example of one feature for each value."""
    return np.array(values, dtype=np.float32)[:, None]


class Prescribed(nn.Module):
    """A loss whose gradient by the logits of an example is the row of a table that belongs to its label."""

    def __init__(self, rows):
        super().__init__()
        self.rows = torch.tensor(rows, dtype=torch.float32)

    def forward(self, logits, labels):
        return (logits * self.rows[labels.argmax(1)]).sum()


class Climbing(nn.Module):
    """
    Of one feature, wrong in a band of it only, with a gradient that always leads to greater ones.

    As a rounding with the gradient of the identity has it: an attack may come by an adversarial image, and go on.
    """

    def __init__(self, low, high):
        super().__init__()
        self.low, self.high = low, high

    def forward(self, x):
        wrong = ((x > self.low) & (x < self.high)).float()
        falling = x.detach() - x
        return torch.cat([1 - 2 * wrong + falling, torch.zeros_like(x)], dim=1)


class OneAtATime(nn.Module):
    """Its margin falls with the sum of the features, its gradient moves but the smallest of them."""

    def forward(self, x):
        smallest = x.min(1).values
        margin = 60 - x.sum(1).detach() + smallest.detach() - smallest
        return torch.stack([margin / 2, -margin / 2], dim=1)


class Remembering(nn.Module):
    """A network that keeps what it was asked."""

    def __init__(self, network):
        super().__init__()
        self.network, self.asked = network, []

    def forward(self, x):
        self.asked.append(x.detach().numpy().copy())
        return self.network(x)


class InSingle(nn.Module):
    """A network that has float32 written into it."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x.float())


def test_gradients_counts_examples_by_what_is_wrong_with_their_gradient():
    tiny = float(np.finfo(np.float32).tiny)
    rows = np.ones((7, 7), dtype=np.float32)
    rows[0] = 0
    rows[1, 3] = np.nan
    rows[2, 6] = -np.inf
    rows[3] = [0, 1e-40, -1e-39, 0, 0, 0, 0]
    rows[4] = [1e-40, 0, 0, 0, 0, 0, -tiny]  # the smallest normal number is of use
    rows[5] = [0, 0, 0, 0, 0, 1e-20, 0]
    labels = np.array([0, 0, 0, 1, 2, 3, 3, 4, 5, 6])
    classifier = flat_classifier(nn.Identity(), Prescribed(rows), features=7, classes=7)
    x = np.full((10, 7), 0.5, dtype=np.float32)
    for batch_size in (3, 10, 100):
        found = target(classifier, x, labels, batch_size=batch_size).gradients()
        assert found == Gradients(zero=0.3, nan=0.2, subnormal=0.2)


def test_margins_are_the_true_logit_less_the_largest_other():
    logits = np.random.default_rng(0).normal(size=(50, 4))
    labels = np.arange(50) % 4
    before = logits.copy()
    expected = [row[y] - max(row[k] for k in range(4) if k != y) for row, y in zip(logits, labels, strict=True)]
    np.testing.assert_array_equal(margins(logits, labels), expected)
    np.testing.assert_array_equal(logits, before)
    np.testing.assert_array_equal(margins(np.array([[1.0, 3.0], [2.0, 2.0]]), np.array([0, 1])), [-2.0, 0.0])


@pytest.mark.parametrize(("norm", "eps"), [(np.inf, 0.1), (2, 0.8)])
def test_fgsm_is_that_of_art(hr_classifier, art_classifier, digits, norm, eps):
    x, y = digits.x_test[:60], digits.y_test[:60]
    for classifier in (hr_classifier(), art_classifier(nn.CrossEntropyLoss())):
        attack = FastGradientMethod(classifier, norm=norm, eps=eps, batch_size=60)
        expected = attack.generate(x, np.eye(10, dtype=np.float32)[y])
        probe = target(classifier, x, y, eps=eps, norm=norm)
        np.testing.assert_array_equal(probe.fgsm(), expected)
        right = classifier.predict(expected).argmax(1) == y
        np.testing.assert_array_equal(probe.standing(expected), right)
        assert 0 < right.mean() < 0.95


def _plain_losses(temperature):
    """The losses of the views, from their definitions."""

    def margin(z, y):
        others = torch.where(nn.functional.one_hot(y, 10) == 1, torch.full_like(z, -1e30), z)
        return others.amax(1) - z[torch.arange(len(z)), y]

    def dlr(z, y):
        ordered = z.sort(1, descending=True).values
        return margin(z, y) / (ordered[:, 0] - ordered[:, 2] + 1e-12)

    def ce(z, y):  # as torch has it, 1 - q_y is 0 in float64 past a margin of 37
        others = nn.functional.one_hot(y, 10) == 0
        return (z - z[torch.arange(len(z)), y, None])[others].reshape(len(z), 9).exp().sum(1).log1p()

    return {
        "exact CE": ce,
        "the margin": margin,
        "DLR": dlr,
        "CE of logits / T": lambda z, y: ce(z / temperature, y),
        "CE in float64": ce,
    }


@pytest.mark.parametrize(("factor", "temperature"), [(1.0, 2.5), (6.0, 15.0)])
def test_views_climb_the_losses_they_are_named_after(art_classifier, network, digits, factor, temperature):
    """In float64 by autograd; where float32 is no good, as for cross-entropy past a margin of 87, only float64 is."""
    x, y = digits.x_test[:60], digits.y_test[:60]
    scaled = Scaled(network, factor)
    probe = target(art_classifier(nn.CrossEntropyLoss(), network=scaled), x, y)
    views, losses = probe.views(temperature), _plain_losses(temperature)
    assert list(views) == list(losses)
    for name, loss in losses.items():
        images = torch.tensor(x, dtype=torch.float64, requires_grad=True)
        logits = copy.deepcopy(scaled).double()(images)
        (gradient,) = torch.autograd.grad(loss(logits, torch.tensor(y)).sum(), images)
        largest = gradient.abs().amax((1, 2, 3), keepdim=True)
        clear = (gradient.abs() > 1e-3 * largest).numpy()  # of the others rounding decides the sign
        if name == "exact CE":
            clear &= (largest > 1e-30).numpy()
        expected = (x + 0.1 * gradient.sign().numpy()).clip(0, 1)
        found = probe.fgsm(views[name])
        assert found.dtype == np.float32
        assert clear.mean() > 0.1  # few exact ones are left where most margins are past 87
        np.testing.assert_allclose(found[clear], expected[clear], atol=1e-6)


def test_float64_sees_gradients_that_float32_rounds_to_0(art_classifier, network, digits):
    x, y = digits.x_test[:60], digits.y_test[:60]
    scaled = Scaled(network, 300 / np.median(margins(_logits(network, x), y)))
    probe = target(art_classifier(nn.CrossEntropyLoss(), network=scaled), x, y)
    assert probe.gradients().zero > 0.5
    views = probe.views(300.0)
    changed = {name: (probe.fgsm(view) != x).any((1, 2, 3)) for name, view in views.items()}
    assert changed["exact CE"].mean() < 0.5
    assert changed["CE in float64"][margins(probe.logits(x), y) < 650].all()


def _logits(network, x):
    with torch.no_grad():
        return network(torch.tensor(x)).numpy().astype(float)


def test_a_temperature_below_1_is_not_used(art_classifier, digits):
    x, y = digits.x_test[:20], digits.y_test[:20]
    probe = target(art_classifier(nn.CrossEntropyLoss()), x, y)
    for margin in (-3.0, 0.2, np.nan):
        views = probe.views(margin)
        np.testing.assert_array_equal(probe.fgsm(views["CE of logits / T"]), probe.fgsm(views["exact CE"]))


def test_views_leave_out_what_there_cannot_be(art_classifier, network, digits):
    x, y = digits.x_test[:5], digits.y_test[:5]
    single = target(art_classifier(nn.CrossEntropyLoss(), network=InSingle(network)), x, y)
    assert list(single.views(2.0)) == ["exact CE", "the margin", "DLR", "CE of logits / T"]
    two = target(flat_classifier(Climbing(0.4, 0.6), features=1), features(0.1, 0.9), np.array([0, 0]))
    assert list(two.views(2.0)) == ["exact CE", "the margin", "CE of logits / T", "CE in float64"]


def test_silent_success_is_an_adversarial_image_that_the_attack_went_past():
    # 4 steps of 0.25, all upwards, no further than 0.4: 0.2 ends at 0.6 through 0.45; 0 ends within the band; 0.5 and
    # 0.9 begin above it and go on; 0.04 comes to 0.44 and stays.
    x = features(0.2, 0.0, 0.5, 0.9, 0.04)
    probe = target(flat_classifier(Climbing(0.38, 0.46), features=1), x, np.zeros(5, dtype=int), eps=0.4)
    trace = probe.pgd(4)
    np.testing.assert_array_equal(trace.standing, [True, False, True, True, False])
    np.testing.assert_array_equal(trace.silent, [True, False, False, False, False])
    honest = target(flat_classifier(Climbing(0.38, 2.0), features=1), x, np.zeros(5, dtype=int), eps=0.4).pgd(4)
    assert not honest.standing.any()
    assert not honest.silent.any()


def test_moving_is_a_margin_that_still_falls_at_the_end():
    """Ten features that move one after the other, so that each of ten steps lowers the margin by as much."""
    x = np.linspace(0.1, 0.2, 10, dtype=np.float32)[None]
    network, labels = OneAtATime(), np.zeros(1, dtype=int)
    assert target(flat_classifier(network, features=10), x, labels, eps=0.6).pgd(10).moving.all()
    # A single feature is at its bound after four of the ten.
    assert not target(flat_classifier(network, features=1), x[:, :1], labels, eps=0.6).pgd(10).moving.any()
    # Of a hundred steps the last ten are a tenth of the way, and no single feature is ever at its bound.
    many = np.linspace(0.1, 0.2, 100, dtype=np.float32)[None]
    assert target(flat_classifier(network, features=100), many, labels, eps=0.6).pgd(100).moving.all()
    # Wrong in the end: whatever still moves is of no interest.
    wrong = target(flat_classifier(network, features=10), x, np.ones(1, dtype=int), eps=0.6).pgd(10)
    assert not wrong.standing.any()
    assert not wrong.moving.any()


def _path_by_hand(network, x, y, eps, steps, *, bias=0):
    """
    The margins of all iterates of projected gradient descent along cross-entropy, shape (steps + 1, n).

    :param bias: What is added to the logits where they count as predictions.
    """
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
def test_a_trace_is_what_a_plain_loop_gives(art_classifier, network, digits, batch_size):
    x, y = digits.x_test[:40], digits.y_test[:40]
    probe = target(art_classifier(nn.CrossEntropyLoss(), network=network), x, y, batch_size=batch_size)
    trace, path = probe.pgd(5), _path_by_hand(network, x, y, 0.1, 5)
    standing = path[-1] > 0
    assert 0.1 < standing.mean() < 0.9
    np.testing.assert_array_equal(trace.standing, standing)
    np.testing.assert_array_equal(trace.silent, standing & (path < 0).any(0))
    np.testing.assert_array_equal(
        trace.moving, standing & (path[:-1].min(0) - path.min(0) > 0.05 * (path[0] - path.min(0)))
    )
    assert 0 < trace.moving.mean() < standing.mean()


def test_moving_is_of_the_last_tenth_of_the_steps():
    x = np.random.default_rng(0).uniform(size=(60, 3)).astype(np.float32)
    y, network = np.zeros(60, dtype=int), OneAtATime()
    path = _path_by_hand(network, x, y, 0.6, 20)

    def falls_after(steps):
        return path[: steps + 1].min(0) - path.min(0) > 0.05 * (path[0] - path.min(0))

    moving = target(flat_classifier(network, features=3), x, y, eps=0.6).pgd(20).moving
    np.testing.assert_array_equal(moving, falls_after(18))
    assert 0 < moving.mean() < falls_after(16).mean()


def test_a_trace_asks_the_network_once_per_image_and_step(art_classifier, network, digits):
    counting = Counting(network)
    probe = target(art_classifier(nn.CrossEntropyLoss(), network=counting), digits.x_test[:40], digits.y_test[:40])
    probe.pgd(5)
    assert (counting.forwards, counting.backwards) == (6 * 40, 5 * 40)


class Biased(PyTorchClassifier):
    """A classifier whose predictions are not what its network gives: class 0 has more."""

    def predict(self, x, *args, **kwargs):
        return super().predict(x, *args, **kwargs) + BIAS


BIAS = 12 * np.eye(10)[0]


@pytest.mark.parametrize("kind", ["a method of its own", "a method of its class", "a defence"])
def test_a_trace_is_of_the_predictions(art_classifier, network, digits, kind):
    """Also where they are not what the network gives to the attack: then it is asked for them at every step."""
    x, y = digits.x_test[:40], digits.y_test[:40]
    options = {"input_shape": (1, 8, 8), "nb_classes": 10, "clip_values": (0.0, 1.0), "device_type": "cpu"}
    if kind == "a method of its own":
        classifier = art_classifier(nn.CrossEntropyLoss(), network=network)
        predict = classifier.predict
        classifier.predict = lambda *args, **kwargs: predict(*args, **kwargs) + BIAS
    elif kind == "a method of its class":
        classifier = Biased(network, nn.CrossEntropyLoss(), **options)
    else:
        classifier = art_classifier(nn.CrossEntropyLoss(), network=network, postprocessing_defences=AddBias())
    trace, path = target(classifier, x, y).pgd(5), _path_by_hand(network, x, y, 0.1, 5, bias=BIAS)
    plain = _path_by_hand(network, x, y, 0.1, 5)
    assert ((path[-1] > 0) != (plain[-1] > 0)).any()
    np.testing.assert_array_equal(trace.standing, path[-1] > 0)
    np.testing.assert_array_equal(trace.silent, (path[-1] > 0) & (path < 0).any(0))


class AddBias(Postprocessor):
    """The same as a postprocessing defence."""

    def __init__(self):
        super().__init__(is_fitted=True, apply_fit=False, apply_predict=True)

    def __call__(self, preds):
        return preds + BIAS


def test_the_gradients_are_those_of_fgsm_and_made_once(art_classifier, network, digits):
    counting = Counting(network)
    classifier = art_classifier(nn.CrossEntropyLoss(), network=counting)
    x, y = digits.x_test[:40], digits.y_test[:40]
    probe = target(classifier, x, y, batch_size=15)
    images, gradients = probe.fgsm(), probe.gradients()
    assert (counting.forwards, counting.backwards) == (40, 40)
    assert gradients == Gradients(zero=0, nan=0, subnormal=0)
    plain = FastGradientMethod(classifier, norm=np.inf, eps=0.1, batch_size=15).generate(x, np.eye(10)[y])
    np.testing.assert_array_equal(images, plain)


def test_clean_predictions_are_made_once(art_classifier, network, digits):
    counting = Counting(network)
    probe = target(art_classifier(nn.CrossEntropyLoss(), network=counting), digits.x_test[:40], digits.y_test[:40])
    np.testing.assert_array_equal(probe.clean, probe.logits(digits.x_test[:40]))
    before = counting.forwards
    probe.unstable(0.1, 3, np.random.default_rng(0))
    assert counting.forwards - before == 3 * 40


def test_pgd_takes_another_eps(art_classifier, network, digits):
    x, y = digits.x_test[:40], digits.y_test[:40]
    probe = target(art_classifier(nn.CrossEntropyLoss(), network=network), x, y)
    np.testing.assert_array_equal(probe.pgd(5, 0.05).standing, _path_by_hand(network, x, y, 0.05, 5)[-1] > 0)
    left = probe.pgd(10, probe.unbounded_eps).standing
    assert left.mean() <= 0.1  # chance


def test_what_breaks_the_rules_breaks_no_example(art_classifier, network, digits):
    """Another classifier without clip values makes images that are out of the range of this one."""
    x, y = digits.x_test[:40], digits.y_test[:40]
    loss = nn.CrossEntropyLoss()
    probe = target(art_classifier(loss, network=network), x, y, eps=0.3)
    unclipped = art_classifier(loss, network=network, clip_values=None)
    assert not probe.transfer(art_classifier(loss, network=network), 5).all()
    assert (probe.transfer(unclipped, 5) == probe.standing(x)).all()


def test_strong_and_square_are_attacks(art_classifier, network, digits):
    x, y = digits.x_test[:40], digits.y_test[:40]
    probe = target(art_classifier(nn.CrossEntropyLoss(), network=network), x, y, eps=0.2)
    clean = probe.standing(x).mean()
    assert probe.strong(10).mean() < 0.5 < clean
    assert probe.square(60).mean() < clean - 0.2


def test_strong_takes_probabilities(art_classifier, network, digits):
    """Auto-PGD itself refuses them."""
    x, y = digits.x_test[:40], digits.y_test[:40]
    network = nn.Sequential(network, nn.Softmax(1))
    assert target(art_classifier(nn.CrossEntropyLoss(), network=network), x, y, eps=0.2).strong(10).mean() < 0.5


@pytest.mark.parametrize(
    ("shape", "options", "norm", "fits"),
    [
        ((1, 8, 8), {}, np.inf, True),
        ((1, 8, 8), {}, "inf", True),
        ((1, 8, 8), {}, 2, False),
        ((1, 10, 10), {}, 2, True),
        ((1, 10, 12), {}, 2, False),
        ((1, 11, 11), {}, 2, False),
        ((1, 11, 11), {}, np.inf, True),
        ((1, 4, 4), {}, np.inf, False),
        ((1, 10, 28), {}, np.inf, False),
        ((10, 10, 1), {"channels_first": False}, np.inf, True),
        ((10, 10, 1), {"channels_first": False}, 2, True),
        ((10, 10, 1), {}, 2, False),
        ((1, 8, 8), {"clip_values": None}, np.inf, False),
        ((64,), {}, np.inf, False),
    ],
)
def test_where_the_square_attack_can_run(art_classifier, shape, options, norm, fits):
    linear = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 10))
    classifier = art_classifier(nn.CrossEntropyLoss(), network=linear, input_shape=shape, **options)
    x = np.random.default_rng(0).uniform(size=(6, *shape)).astype(np.float32)
    probe = target(classifier, x, classifier.predict(x).argmax(1), eps=1.0, norm=norm)
    assert probe.is_for_square == fits
    if fits:
        assert probe.square(10).shape == (6,)


def test_noise_moves_every_pixel_by_its_size(art_classifier, network, digits):
    x, y = digits.x_test[:30], digits.y_test[:30]
    spy = Remembering(network)
    probe = target(art_classifier(nn.CrossEntropyLoss(), network=spy), x, y)
    standing = probe.noise(0.3, np.random.default_rng(1))
    (noisy,) = spy.asked
    up, down = np.isclose(noisy, (x + 0.3).clip(0, 1)), np.isclose(noisy, (x - 0.3).clip(0, 1))
    assert (up | down).all()
    assert 0.3 < up.mean() < 0.9
    assert 0.3 < down.mean() < 0.9
    np.testing.assert_array_equal(standing, _logits(network, noisy).argmax(1) == y)
    np.testing.assert_array_equal(standing, probe.noise(0.3, np.random.default_rng(1)))
    probe.noise(0.3, np.random.default_rng(2))
    assert (spy.asked[2] != noisy).any()


def test_unstable_is_the_share_of_predictions_that_noise_changes():
    class Half(nn.Module):
        def forward(self, x):
            return torch.cat([x - 0.5, 0.5 - x], dim=1)

    x = features(0.1, 0.495, 0.505, 0.6, 0.9)
    probe = target(flat_classifier(Half(), features=1), x, np.zeros(5, dtype=int))
    assert probe.unstable(0.05, 50, np.random.default_rng(0)) == 0.4
    assert probe.unstable(0.2, 50, np.random.default_rng(0)) == 0.6
    assert probe.unstable(0.004, 50, np.random.default_rng(0)) == 0.0
    assert probe.unstable(0.05, 0, np.random.default_rng(0)) == 0.0
    once = [probe.unstable(0.01, 1, np.random.default_rng(seed)) for seed in range(20)]
    assert once == [probe.unstable(0.01, 1, np.random.default_rng(seed)) for seed in range(20)]
    assert len(set(once)) > 1


@pytest.mark.parametrize(
    ("clip_values", "expected"), [((0.0, 1.0), 1.0), ((-1.0, 3.0), 4.0), (None, 0.75), ((np.zeros(4), np.ones(4)), 1.0)]
)
def test_sizes(clip_values, expected):
    x = np.array([[0.25, 0.5, 0.0, 0.75]], dtype=np.float32)
    classifier = flat_classifier(nn.Identity(), features=4, classes=4, clip_values=clip_values)
    linf, l2 = (target(classifier, x, np.zeros(1, dtype=int), eps=0.3, norm=norm) for norm in ("inf", 2))
    assert linf.pixel_range == l2.pixel_range == expected
    assert linf.unbounded_eps == expected
    assert l2.unbounded_eps == 2 * expected  # the diagonal of a cube of 4 dimensions
    assert linf.noise_size == 0.3
    assert l2.noise_size == pytest.approx(0.15)


class FailsLater(nn.Module):
    """A network that fails once it has been asked for some gradients."""

    def __init__(self, network, after):
        super().__init__()
        self.network, self.after = network, after

    def forward(self, x: Tensor) -> Tensor:
        self.after -= x.requires_grad
        if self.after < 0:
            raise ArithmeticError("this network fails")
        return self.network(x)


def test_the_watch_leaves_the_classifier_as_it_was(art_classifier, network, digits):
    x, y = digits.x_test[:10], digits.y_test[:10]
    classifier = art_classifier(nn.CrossEntropyLoss(), network=FailsLater(network, 4))
    before = dict(vars(classifier))
    probe = target(classifier, x, y)
    probe.pgd(2)
    assert vars(classifier) == before
    with pytest.raises(ArithmeticError, match="this network fails"):
        probe.pgd(3)
    assert vars(classifier) == before


def test_the_watch_keeps_a_gradient_of_the_classifiers_own(art_classifier, digits):
    """One that somebody has set on the object itself."""
    x, y = digits.x_test[:10], digits.y_test[:10]
    classifier = art_classifier(nn.CrossEntropyLoss())
    calls = []

    def own(x, y, **options):
        calls.append(len(x))
        return PyTorchClassifier.loss_gradient(classifier, x, y, **options)

    classifier.loss_gradient = own
    target(classifier, x, y).pgd(3)
    assert calls == [10, 10, 10]
    assert classifier.loss_gradient is own
