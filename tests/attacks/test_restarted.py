"""attacks._restarted: PGD and AutoPGD against closed forms, against ART's own, and what they promise."""

import copy

import numpy as np
import pytest
import torch
from art.attacks.evasion import AutoProjectedGradientDescent, ProjectedGradientDescent
from art.estimators.classification import PyTorchClassifier
from testing.networks import Counting, Scaled
from torch import nn

from art_hrloss import HRClassifier, HRLoss
from art_hrloss.attacks._constraints import allowed, as_indices, checked_eps, predicted
from art_hrloss.attacks._losses import MarginLoss
from art_hrloss.attacks._restarted import PGD, AutoPGD
from art_hrloss.attacks._restarts import _Watched
from art_hrloss.classifier import shared_options

LOSSES = ("ce", "hr", "margin", "dlr")
ATTACKS = {
    "PGD": lambda c, loss="ce", **o: PGD(c, loss, **{"eps": 0.1, "max_iter": 5, **o}),
    "AutoPGD": lambda c, loss="ce", **o: AutoPGD(c, loss, **{"eps": 0.1, "max_iter": 5, **o}),
}
attacks = pytest.mark.parametrize("attack", [pytest.param(build, id=name) for name, build in ATTACKS.items()])


@pytest.fixture(autouse=True)
def starts():
    """The same random starts in every test."""
    state = np.random.get_state()  # noqa: NPY002  # ART draws from it
    seed(0)
    yield
    np.random.set_state(state)  # noqa: NPY002


def seed(number):
    np.random.seed(number)  # noqa: NPY002


@pytest.fixture
def x(digits):
    return digits.x_test[:60].copy()


@pytest.fixture
def y(digits):
    return digits.y_test[:60].copy()


def wrong(classifier, images, labels):
    return classifier.predict(images).argmax(1) != labels


# ---------------------------------------------------------------------------- a linear network, whose worst is known

SHAPE, SIZE = (1, 5, 6), 30
DIRECTION = np.random.default_rng(0).normal(size=SIZE)


def linear(offset, clip_values, scale=1):
    """Logits (-s, s, -100) with s = scale (w x - offset) / 2: a third class, far off, for DLR."""
    layer = nn.Linear(SIZE, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(scale / 2 * np.outer([-1, 1, 0], DIRECTION)))
        layer.bias.copy_(torch.tensor([scale / 2 * offset, -scale / 2 * offset, -100.0]))
    network = nn.Sequential(nn.Flatten(), layer)
    return PyTorchClassifier(network, nn.CrossEntropyLoss(), SHAPE, 3, clip_values=clip_values, device_type="cpu")


def greatest_change(x, eps, norm, clip_values):
    """The greatest w d over all d of that norm that leave x + d in the range: exact, or by bisection of its size."""
    low, high = (-np.inf, np.inf) if clip_values is None else (clip_values[0] - x, clip_values[1] - x)
    if norm == np.inf:
        return np.where(DIRECTION > 0, np.minimum(eps, high), np.maximum(-eps, low)) @ DIRECTION + np.zeros(len(x))
    if norm == 2 and clip_values is None:
        return np.full(len(x), eps * np.linalg.norm(DIRECTION))
    # The best d of its size is clip(t w): by Lagrange, each pixel goes as far along w as the range lets it.
    least, most = np.zeros((len(x), 1)), np.full((len(x), 1), 1e3)
    for _ in range(100):
        t = (least + most) / 2
        too_far = np.linalg.norm(np.clip(t * DIRECTION, low, high), axis=1, keepdims=True) > eps
        least, most = np.where(too_far, least, t), np.where(too_far, t, most)
    return np.clip(least * DIRECTION, low, high) @ DIRECTION


def near_the_worst(eps, norm, clip_values):
    """24 images of the linear network, its offset, and how far each can be moved and has to be, nearly equal."""
    random = np.random.default_rng(1)
    points = random.uniform(0, 1, (4000, SIZE))
    points = np.where(random.random(points.shape) < 0.3, points.round(), points).astype(np.float32).astype(np.float64)
    change = greatest_change(points, eps, norm, clip_values)
    if clip_values is not None:
        assert (change < 0.95 * greatest_change(points, eps, norm, None)).any()  # the range bites
    offset = np.median(points @ DIRECTION) + change.mean()
    margin = offset - points @ DIRECTION
    ratio = np.abs(margin / change - 1)
    near = np.flatnonzero((ratio > 0.004) & (ratio < 0.05))[:24]
    assert 5 < (margin < change)[near].sum() < 19  # there are both kinds
    return points[near], offset, margin[near], change[near]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("clip_values", [None, (0.0, 1.0)], ids=["free", "clipped"])
@pytest.mark.parametrize("norm", [np.inf, 2], ids=["inf", "2"])
@attacks
def test_meets_the_closed_form_on_a_linear_network(attack, norm, clip_values, loss):
    eps = 0.1 if norm == np.inf else 0.4
    points, offset, margin, change = near_the_worst(eps, norm, clip_values)
    classifier = linear(offset, clip_values)
    x, y = points.reshape(-1, *SHAPE).astype(np.float32), np.zeros(24, dtype=np.int64)
    options = {"max_iter": 60}
    if norm == 2 and attack is ATTACKS["PGD"]:
        # Across w it decays only by eps_step / eps a step; and ART's projection into ball and range needs small steps.
        options = {"eps_step": 0.03 * eps, "max_iter": 200}
    for restarts in (1, 2):
        made = attack(classifier, loss, eps=eps, norm=norm, restarts=restarts, **options).generate(x, y)
        np.testing.assert_array_equal(wrong(classifier, made, y), margin < change)
        assert allowed(made, x, eps, norm, clip_values).all()
        if attack is ATTACKS["PGD"]:  # AutoPGD returns a random point where it fails
            gained = (made.reshape(24, -1) - points) @ DIRECTION
            standing = margin > change
            assert (gained[standing] > 0.996 * change[standing]).all()
            assert (gained <= change * (1 + 1e-5)).all()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("norm", [np.inf, 2], ids=["inf", "2"])
@attacks
def test_meets_it_at_a_margin_where_float32_loses_the_cross_entropy(attack, norm, loss):
    eps = 0.1 if norm == np.inf else 0.4
    points, offset, margin, change = near_the_worst(eps, norm, None)
    classifier = linear(offset, None, scale=20)
    x, y = points.reshape(-1, *SHAPE).astype(np.float32), np.zeros(24, dtype=np.int64)
    logits = torch.tensor(classifier.predict(x))
    assert (logits[:, 0] - logits[:, 1] > 30).all()
    assert (nn.functional.cross_entropy(logits, torch.tensor(y), reduction="none") == 0).all()
    options = {"eps_step": 0.03 * eps, "max_iter": 200} if attack is ATTACKS["PGD"] else {"max_iter": 60}
    made = attack(classifier, loss, eps=eps, norm=norm, **options).generate(x, y)
    np.testing.assert_array_equal(wrong(classifier, made, y), margin < change)


# ------------------------------------------------------------------------------------------------- keeping the first


class Curve(nn.Module):
    """Logits (0, f(x)) of an image of one pixel: class 1 where f is above 0."""

    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, x):
        return torch.cat([torch.zeros_like(x), self.f(x)], 1)


def of_one_pixel(f):
    return PyTorchClassifier(Curve(f), nn.CrossEntropyLoss(), (1,), 2, clip_values=(0.0, 1.0), device_type="cpu")


def test_pgd_keeps_an_iterate_of_a_narrow_band_that_arts_walks_through():
    # Class 1 lies in (0.5, 0.56) only; the gradient points up everywhere, and so every path ends beyond it, at 0.8.
    classifier = of_one_pixel(lambda x: torch.where(x < 0.56, 5 * (x - 0.5), x - 2))
    x, y = np.full((40, 1), 0.3, dtype=np.float32), np.zeros(40, dtype=np.int64)
    options = {"eps": 0.5, "eps_step": 0.04, "max_iter": 40}
    seed(0)
    theirs = ProjectedGradientDescent(classifier, num_random_init=1, batch_size=128, verbose=False, **options)
    last = theirs.generate(x, y)
    np.testing.assert_allclose(last, 0.8, rtol=1e-6)
    assert not wrong(classifier, last, y).any()

    seed(0)
    ours = PGD(classifier, "ce", **options).generate(x, y)
    seed(0)
    start = np.clip(0.3 + np.random.uniform(-0.5, 0.5, (40, 1)), 0, 1)  # noqa: NPY002
    passes = (start < 0.56)[:, 0]
    assert 10 < passes.sum() < 35
    np.testing.assert_array_equal(wrong(classifier, ours, y), passes)
    assert ((ours[passes] > 0.5) & (ours[passes] < 0.56)).all()
    np.testing.assert_array_equal(ours[~passes], last[~passes])
    # It is the first such iterate: where the start lies in the band it is the start, else what a step of 0.04 reaches.
    below = np.maximum(start[passes], 0.5 + (start[passes] - 0.5) % 0.04)
    np.testing.assert_allclose(ours[passes], below, atol=1e-5)
    # Restarts go on with what still stands, and find the rest.
    assert wrong(classifier, PGD(classifier, "ce", restarts=12, **options).generate(x, y), y).all()


def test_auto_pgd_keeps_an_iterate_that_arts_leaves():
    # The first step goes to 0.8, into class 1; there the gradient points down, and the second step leaves it.
    classifier = of_one_pixel(lambda x: torch.where(x > 0.78, 1 - x, x - 3))
    x, y = np.full((40, 1), 0.3, dtype=np.float32), np.zeros(40, dtype=np.int64)
    theirs = AutoProjectedGradientDescent(
        classifier, eps=0.5, eps_step=1.0, max_iter=2, nb_random_init=1, loss_type="cross_entropy", verbose=False
    )
    seed(0)
    at_random = wrong(classifier, theirs.generate(x, y), y)
    seed(0)
    ours = AutoPGD(classifier, "ce", eps=0.5, max_iter=2).generate(x, y)
    assert at_random.sum() < 5  # those that began in class 1
    assert wrong(classifier, ours, y).all()


def test_an_iterate_that_auto_pgd_only_asks_the_loss_of_is_looked_at(art_classifier, x, y):
    """At its checkpoints it may go back to an earlier one, and of the last it needs no gradient."""
    classifier = art_classifier()
    x, y = x[~wrong(classifier, x, y)], y[~wrong(classifier, x, y)]
    made = PGD(classifier, "ce", eps=0.1).generate(x, y)
    options = shared_options(classifier)
    watched = _Watched(classifier.model, attack_loss=MarginLoss(), images=x, labels=y, **options)
    with watched.attacking():
        watched.evaluate(torch.from_numpy(made), watched.attack_labels(y, len(y)), gradient=False)
    broken = wrong(classifier, made, y)
    assert 10 < broken.sum() < len(y)
    np.testing.assert_array_equal(watched.found, broken)
    np.testing.assert_array_equal(watched.adversarial, np.where(broken[:, None, None, None], made, x))


@attacks
def test_every_iterate_goes_through_the_network_once(art_classifier, network, x, y, attack):
    """Those of what is right to begin with; all are asked about once more, before, and after it by PGD the last."""
    counting = Counting(network)
    classifier = art_classifier(network=counting)
    right = int((~wrong(classifier, x, y)).sum())
    made = attack(classifier, eps=0.01, max_iter=6, batch_size=25)
    counting.forwards = counting.backwards = 0
    images = made.generate(x, y)
    assert (counting.forwards, counting.backwards) == (60 + 7 * right, 6 * right)
    assert 60 > right > (~wrong(classifier, images, y)).sum() - 5


def test_labels_that_are_predictions_are_predicted_once(art_classifier, network, x):
    counting = Counting(network)
    PGD(art_classifier(network=counting), "ce", eps=0.01, max_iter=6).generate(x)
    assert counting.forwards == 8 * 60


def test_pgd_is_arts_from_the_same_start_where_that_succeeds_or_nothing_does(art_classifier, digits):
    classifier = art_classifier(nn.CrossEntropyLoss())
    right = ~wrong(classifier, digits.x_test, digits.y_test)
    x, y = digits.x_test[right][:100], digits.y_test[right][:100]
    options = {"eps": 0.1, "eps_step": 0.02, "max_iter": 15, "batch_size": 32}
    seed(1)
    theirs = ProjectedGradientDescent(classifier, num_random_init=1, verbose=False, **options).generate(x, y)
    seed(1)
    ours = PGD(classifier, nn.CrossEntropyLoss(), **options).generate(x, y)
    broken = wrong(classifier, theirs, y)
    assert 20 < broken.sum() < 80
    same = broken | ~wrong(classifier, ours, y)
    assert same.mean() > 0.9
    np.testing.assert_array_equal(ours[same], theirs[same])


def arts(classifier, **options):
    """ART's AutoPGD on the cross-entropy, from one random start, with the steps of ours."""
    return AutoProjectedGradientDescent(
        classifier,
        eps_step=2 * options["eps"],
        nb_random_init=1,
        loss_type="cross_entropy",
        verbose=False,
        **options,
    )


@pytest.mark.parametrize("factor", [1, 20])
def test_auto_pgd_breaks_whatever_arts_breaks_from_the_same_start(art_classifier, network, digits, factor):
    """
    With torch's own cross-entropy and norm inf, where both walk the same path to the bit: 128 images that are right to
    begin with, so that both draw the same starts, in batches of 64, so that ART's mean scales its gradients by a power
    of 2. With the factor some of ART's underflow by that: the paths part here and there, and yet ours breaks no less.
    """
    classifier = art_classifier(nn.CrossEntropyLoss(), network=Scaled(network, factor))
    right = ~wrong(classifier, digits.x_test, digits.y_test)
    x, y = digits.x_test[right][:128], digits.y_test[right][:128]
    options = {"eps": 0.1, "max_iter": 15, "batch_size": 64}
    more = 0
    for number in range(4):
        seed(number)
        theirs = arts(classifier, **options).generate(x, y)
        seed(number)
        ours = AutoPGD(classifier, nn.CrossEntropyLoss(reduction="none"), **options).generate(x, y)
        broken, theirs_broken = wrong(classifier, ours, y), wrong(classifier, theirs, y)
        assert 10 < theirs_broken.sum() < 120
        assert (broken >= theirs_broken).all()
        if factor == 1:
            np.testing.assert_array_equal(ours[theirs_broken], theirs[theirs_broken])
        more += broken.sum() - theirs_broken.sum()
    assert factor == 1 or more > 0


@pytest.mark.parametrize("factor", [1, 20])
@pytest.mark.parametrize("norm", [np.inf, 2], ids=["inf", "2"])
def test_auto_pgd_is_on_average_not_weaker_than_arts_and_stronger_where_float32_masks(
    art_classifier, network, digits, norm, factor
):
    classifier = art_classifier(nn.CrossEntropyLoss(), network=Scaled(network, factor))
    x, y = digits.x_test[:150], digits.y_test[:150]
    options = {"eps": 0.1 if norm == np.inf else 0.6, "norm": norm, "max_iter": 15, "batch_size": 150}
    broken = []
    for number in range(4):
        pair = []
        for attack in (arts(classifier, **options), AutoPGD(classifier, "ce", **options)):
            seed(number)
            pair.append(wrong(classifier, attack.generate(x, y), y).mean())
        broken.append(pair)
    by_arts, by_ours = np.mean(broken, axis=0)
    # With norm 2 the paths differ by rounding, which moves single images of the 600 in either direction.
    assert by_ours >= by_arts - (1 / 300 if norm == 2 else 0)
    assert factor == 1 or by_ours > by_arts + {np.inf: 0.02, 2: 0.15}[norm]


@pytest.mark.parametrize("norm", [np.inf, 2], ids=["inf", "2"])
@pytest.mark.parametrize("loss", ["margin", "dlr"])
@attacks
def test_a_factor_on_the_logits_hides_nothing_from_the_margin_and_dlr(
    art_classifier, network, digits, attack, loss, norm
):
    x, y = digits.x_test[:150], digits.y_test[:150]
    broken = []
    for factor in (1, 64):
        classifier = art_classifier(network=Scaled(network, factor))
        seed(0)
        made = attack(classifier, loss, eps=0.1 if norm == np.inf else 0.6, norm=norm).generate(x, y)
        broken.append(wrong(classifier, made, y))
    assert broken[0].mean() > 0.3
    assert (broken[0] != broken[1]).mean() < 0.02  # a power of 2: no rounding but in the 1e-12 and ART's 1e-7


# ------------------------------------------------------------------------------------------------ what is promised


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("norm", [np.inf, "inf", 1, 2], ids=["inf", "inf-text", "1", "2"])
@attacks
def test_every_image_is_allowed_and_misclassified_more_often(art_classifier, x, y, attack, norm, loss):
    classifier = art_classifier()
    eps = {1: 2.0, 2: 0.5}.get(norm, 0.1)
    made = attack(classifier, loss, eps=eps, norm=norm).generate(x, y)
    assert made.dtype == np.float32
    assert made.shape == x.shape
    assert made.min() >= 0
    assert made.max() <= 1
    change = (made.astype(np.float64) - x).reshape(60, -1)
    assert (np.linalg.norm(change, ord=float(norm), axis=1) <= eps * (1 + 1e-5)).all()
    assert wrong(classifier, made, y).sum() > wrong(classifier, x, y).sum()


@attacks
def test_a_float32_as_eps(art_classifier, x, y, attack):
    seed(0)
    expected = attack(art_classifier(), eps=float(np.float32(0.1))).generate(x, y)
    seed(0)
    np.testing.assert_array_equal(attack(art_classifier(), eps=np.float32(0.1)).generate(x, y), expected)


@attacks
def test_forms_of_images_and_labels(art_classifier, x, y, attack):
    made = attack(art_classifier())
    one_hot = np.eye(10)[y]
    inputs = {
        "indices": (x, y),
        "float64": (x.astype(np.float64), y),
        "one-hot": (x, one_hot),
        "one-hot float32": (x, one_hot.astype(np.float32)),
        "column": (x, y[:, np.newaxis]),
        "floats": (x, y.astype(np.float32)),
    }
    results = {}
    for name, (images, labels) in inputs.items():
        seed(0)
        results[name] = made.generate(images, labels)
    for name, result in results.items():
        np.testing.assert_array_equal(result, results["indices"], err_msg=name)


@attacks
def test_images_of_float64_that_float32_cannot_hold(art_classifier, x, y, attack):
    images = (x.astype(np.float64) * 0.9 + 1e-9).clip(0, 1)
    made = attack(art_classifier()).generate(images, y)
    assert made.dtype == np.float32
    assert np.abs(made - images).max() <= 0.1 + 1e-6


@attacks
def test_without_labels_the_predictions_are_attacked(art_classifier, x, attack):
    classifier = art_classifier()
    predictions = predicted(classifier, x, 128)
    seed(0)
    made = attack(classifier).generate(x)
    seed(0)
    np.testing.assert_array_equal(made, attack(classifier).generate(x, predictions))
    assert (made != x).any((1, 2, 3)).all()  # none is misclassified to begin with


@attacks
def test_what_is_misclassified_already_is_returned_unchanged(art_classifier, x, y, attack):
    classifier = art_classifier()
    labels = y.copy()
    labels[::3] = (classifier.predict(x[::3]).argmax(1) + 1) % 10
    already = wrong(classifier, x, labels)
    assert already.sum() >= 20
    made = attack(classifier).generate(x, labels)
    np.testing.assert_array_equal(made[already], x[already])
    assert (made[~already] != x[~already]).any((1, 2, 3)).all()
    # And where nothing stands there is nothing to do.
    everywhere = (predicted(classifier, x, 128) + 1) % 10
    np.testing.assert_array_equal(attack(classifier, restarts=2).generate(x, everywhere), x)


@attacks
def test_neither_network_nor_input_is_touched(art_classifier, network, x, y, attack):
    network.train()
    network.conv1.eval()
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    before = copy.deepcopy(network.state_dict())
    modes = [module.training for module in network.modules()]
    classifier = art_classifier(network=network)
    images, labels = x.copy(), y.copy()
    images.setflags(write=False)
    labels.setflags(write=False)
    attack(classifier, restarts=2).generate(images, labels)
    np.testing.assert_array_equal(images, x)
    assert [module.training for module in network.modules()] == modes
    assert all((parameter.grad == 7).all() for parameter in network.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


class Raising(nn.Module):
    def forward(self, logits, labels):
        raise ArithmeticError("this loss fails")


@attacks
def test_an_attack_that_fails_leaves_itself_and_the_network_as_they_were(art_classifier, network, x, y, attack):
    network.train()
    made = attack(art_classifier(network=network), Raising())
    view = made.estimator
    with pytest.raises(ArithmeticError, match="this loss fails"):
        made.generate(x, y)
    assert made.estimator is view
    assert network.training


@attacks
def test_the_starts_alone_depend_on_batches(art_classifier, x, y, attack):
    # ART draws a uniform start pixel by pixel, so the draws are the same in any batches, and then so are the images.
    results = []
    for batch_size in (60, 7):
        seed(0)
        results.append(attack(art_classifier(), batch_size=batch_size).generate(x, y))
    near = np.abs(results[0] - results[1]).max((1, 2, 3)) < 1e-6
    assert near.mean() > 0.9  # rounding, which batches do change, can turn a sign and with it a path


def test_the_order_changes_no_image_but_by_its_start(art_classifier, x, y, monkeypatch):
    classifier = art_classifier()
    # Without the random start an image's path is its own.
    monkeypatch.setattr(np.random, "uniform", lambda low, high, size: np.zeros(size))
    order = np.random.default_rng(0).permutation(60)
    there = PGD(classifier, "margin", eps=0.1, max_iter=5).generate(x, y)
    back = PGD(classifier, "margin", eps=0.1, max_iter=5, batch_size=11).generate(x[order], y[order])
    assert (np.abs(there[order] - back).max((1, 2, 3)) < 1e-6).mean() > 0.9


@attacks
def test_restarts_break_no_less_and_draw_anew_for_what_stands(art_classifier, digits, attack):
    classifier = art_classifier()
    x, y = digits.x_test[:200], digits.y_test[:200]
    seed(0)
    once = attack(classifier, eps=0.07, max_iter=3).generate(x, y)
    seed(0)
    often = attack(classifier, eps=0.07, max_iter=3, restarts=5).generate(x, y)
    first, all_five = wrong(classifier, once, y), wrong(classifier, often, y)
    assert (all_five >= first).all()
    assert all_five.sum() > first.sum()
    np.testing.assert_array_equal(often[first], once[first])


def spied(classifier):
    """An HRClassifier on the same network, with the number of images of each call of its loss."""
    sizes = []

    class Counting(MarginLoss):
        def forward(self, logits, labels):
            sizes.append(len(logits))
            return super().forward(logits, labels)

    return Counting(), sizes


def test_restarts_attack_only_what_stands(art_classifier, x, y):
    classifier = art_classifier()
    loss, sizes = spied(classifier)
    seed(0)
    once = PGD(classifier, "margin", eps=0.1, max_iter=5).generate(x, y)
    seed(0)
    PGD(classifier, loss, eps=0.1, max_iter=5, restarts=2, batch_size=25).generate(x, y)
    right = 60 - wrong(classifier, x, y).sum()
    still = 60 - wrong(classifier, once, y).sum()
    first = [25] * 5 + [25] * 5 + [right - 50] * 5
    assert sizes[:15] == first
    assert len(sizes) > 15
    assert abs(sum(sizes[15:]) - 5 * still) <= 5  # by rounding, in other batches, one more or less may stand


@pytest.mark.parametrize(
    "loss",
    [nn.CrossEntropyLoss(), nn.CrossEntropyLoss(reduction="sum"), nn.CrossEntropyLoss(reduction="none")],
    ids=["mean", "sum", "none"],
)
@attacks
def test_a_loss_of_torch_is_taken_per_example_whatever_its_reduction(art_classifier, x, y, attack, loss):
    seed(0)
    made = attack(art_classifier(), loss).generate(x, y)
    seed(0)
    expected = attack(art_classifier(), nn.CrossEntropyLoss(reduction="none")).generate(x, y)
    np.testing.assert_array_equal(made, expected)


@attacks
def test_the_hr_loss_of_a_batch_is_taken_per_example(art_classifier, x, y, attack):
    seed(0)
    made = attack(art_classifier(), HRLoss()).generate(x, y)
    seed(0)
    np.testing.assert_array_equal(made, attack(art_classifier(), "hr").generate(x, y))


class OneHotMargin(nn.Module):
    """A loss without a reduction, which HRClassifier hands one-hot labels."""

    def forward(self, logits, labels):
        assert labels.shape == logits.shape
        return MarginLoss()(logits, labels.argmax(1))


@attacks
def test_a_module_is_handed_labels_as_hr_classifier_hands_them(art_classifier, x, y, attack):
    seed(0)
    made = attack(art_classifier(), OneHotMargin()).generate(x, y)
    seed(0)
    np.testing.assert_array_equal(made, attack(art_classifier(), "margin").generate(x, y))


@attacks
def test_the_loss_is_hr_by_default(art_classifier, x, y, attack):
    build = PGD if attack is ATTACKS["PGD"] else AutoPGD
    seed(0)
    made = build(art_classifier(), eps=0.1, max_iter=5).generate(x, y)
    seed(0)
    np.testing.assert_array_equal(made, attack(art_classifier(), "hr").generate(x, y))


def test_defaults():
    pgd = PGD(linear(0.0, None), eps=0.2)
    assert (pgd.eps_step, pgd.max_iter, pgd.restarts, pgd.batch_size) == (pytest.approx(2.5 * 0.2 / 40), 40, 1, 128)
    auto = AutoPGD(linear(0.0, None), eps=0.2)
    assert (auto.eps_step, auto.max_iter, auto.restarts, auto.batch_size) == (0.4, 100, 1, 128)
    assert isinstance(pgd.estimator, HRClassifier)


def test_one_step_from_the_start():
    """The step is that of the arguments, and there are as many as are asked for."""
    classifier = linear(1e3, None)  # far from class 1: nothing is broken
    x, y = np.zeros((6, *SHAPE), dtype=np.float32), np.zeros(6, dtype=np.int64)
    seed(3)
    made = PGD(classifier, "margin", eps=0.5, eps_step=0.01, max_iter=3).generate(x, y)
    seed(3)
    start = np.random.uniform(-0.5, 0.5, (6, SIZE))  # noqa: NPY002
    expected = np.clip(start + 0.03 * np.sign(DIRECTION), -0.5, 0.5)
    np.testing.assert_allclose(made.reshape(6, -1), expected, atol=1e-6)


# --------------------------------------------------------------------------------------- networks that are no function


class AlwaysDropout(nn.Module):
    """Dropout that evaluation mode does not switch off."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(nn.functional.dropout(x, 0.3, training=True))


@attacks
def test_a_network_that_answers_at_random(art_classifier, network, x, y, attack):
    classifier = art_classifier(network=AlwaysDropout(network))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = attack(classifier, restarts=2, batch_size=25).generate(x, y)
    assert allowed(made, x, 0.1, np.inf, (0.0, 1.0)).all()


# ------------------------------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize("per_image", [False, True], ids=["one-mask", "a-mask-per-image"])
def test_pgd_changes_nothing_outside_a_mask(art_classifier, x, y, per_image):
    random = np.random.default_rng(0)
    mask = random.integers(0, 2, x.shape if per_image else x.shape[1:]).astype(np.float32)
    made = PGD(art_classifier(), "ce", eps=0.1, max_iter=5, batch_size=25, restarts=2).generate(x, y, mask=mask)
    hidden = np.broadcast_to(mask == 0, x.shape)
    np.testing.assert_array_equal(made[hidden], x[hidden])
    assert (made != x).mean() > 0.3


def test_auto_pgd_takes_no_mask(art_classifier, x, y):
    with pytest.raises(NotImplementedError, match=r"expected no mask, because ART's Auto-PGD starts at a random point"):
        AutoPGD(art_classifier(), "ce", eps=0.1).generate(x, y, mask=np.ones_like(x))


# ------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize("eps", [0, -0.1, np.inf, np.nan, np.float32(0)])
@attacks
def test_eps_that_is_none(art_classifier, attack, eps):
    with pytest.raises(ValueError, match="expected eps to be finite and above 0, but got"):
        attack(art_classifier(), eps=eps)


def test_checked_eps():
    assert type(checked_eps(np.float32(0.5))) is float
    assert type(checked_eps(1)) is float


@pytest.mark.parametrize("restarts", [0, -1, 1.5])
@attacks
def test_no_restarts_are_no_attack(art_classifier, attack, restarts):
    with pytest.raises(ValueError, match=f"expected restarts to be a whole number of at least 1, but got {restarts}"):
        attack(art_classifier(), restarts=restarts)


def test_no_steps_are_no_attack(art_classifier):
    with pytest.raises(ValueError, match="expected max_iter to be a whole number of at least 1, but got 0"):
        PGD(art_classifier(), eps=0.1, max_iter=0)
    with pytest.raises(ValueError, match="max_iter has to be of type int and larger than zero"):
        AutoPGD(art_classifier(), eps=0.1, max_iter=0)


@attacks
def test_losses_that_are_none(art_classifier, attack):
    with pytest.raises(ValueError, match=r"one of \['ce', 'hr', 'margin', 'dlr'\], but got 'cw'"):
        attack(art_classifier(), "cw")
    with pytest.raises(ValueError, match="expected the attack's loss to be one of"):
        attack(art_classifier(), None)


def test_dlr_of_two_classes():
    classifier = of_one_pixel(lambda x: x)
    with pytest.raises(ValueError, match="expected at least 3 classes for the DLR loss, but got 2"):
        PGD(classifier, "dlr", eps=0.1).generate(np.zeros((1, 1), dtype=np.float32), np.array([0]))


@attacks
def test_labels_that_are_none(art_classifier, x, attack):
    made = attack(art_classifier())
    with pytest.raises(ValueError, match="expected as many labels as images, but got 1 and 60"):
        made.generate(x, np.array([3]))
    with pytest.raises(ValueError, match="expected labels as class indices from 0 to 9 or rows of 10, but got"):
        made.generate(x, np.full(60, 10))


@pytest.mark.parametrize(
    "y", [[0, 1, 3], [-1, 0, 1], [0.5, 0, 1], [np.nan, 0, 1], np.zeros((3, 2)), np.zeros((3, 3, 1)), 1], ids=str
)
def test_as_indices_refuses(y):
    with pytest.raises(ValueError, match="expected labels as class indices from 0 to 2 or rows of 3, but got"):
        as_indices(np.array(y), 3)


def test_as_indices():
    expected = np.array([0, 2, 1])
    for y in (expected, [0, 2, 1], expected.astype(np.float32), expected[:, np.newaxis], np.eye(3)[expected]):
        indices = as_indices(y, 3)
        assert indices.dtype == np.int64
        np.testing.assert_array_equal(indices, expected)
    np.testing.assert_array_equal(as_indices([[0.2, 0.5, 0.3]], 3), [1])
    assert as_indices(np.zeros(0), 3).shape == (0,)
