"""Tests of attacks._worst_case: the attacked examples, the successful attack of each, feasibility, reproducibility."""

import multiprocessing
import random
import sys

import numpy as np
import pytest
import torch
from art.attacks.evasion import (
    AutoAttack,
    AutoConjugateGradient,
    BoundaryAttack,
    DeepFool,
    FastGradientMethod,
    HopSkipJump,
    ProjectedGradientDescentPyTorch,
    RescalingAutoConjugateGradient,
)
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_hrloss import attack_view
from art_hrloss.attacks import (
    AutoProjectedGradientDescent,
    ProjectedGradientDescent,
    SquareAttack,
    WorstCase,
    attack_loss,
    ensemble,
    worst_case,
)
from benchmarks.autoattack.masked import rounding, scaled

EPS = 0.1


@pytest.fixture
def x(digits):
    return digits.x_test[:60].copy()


@pytest.fixture
def y(digits):
    return digits.y_test[:60].copy()


class Simple:
    """An attack defined by a function of images and labels, which records its arguments."""

    def __init__(self, images=lambda x, y: x):
        self.images, self.x, self.y, self.calls = images, None, None, 0

    def generate(self, x, y):
        self.x, self.y, self.calls = x.copy(), y.copy(), self.calls + 1
        self.last = self.images(x, y)
        return self.last


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def two_classes(function, clip_values=(0.0, 1.0)):
    """Return a classifier of images of one pixel."""
    options = {"clip_values": clip_values, "device_type": "cpu"}
    return PyTorchClassifier(Function(function), nn.CrossEntropyLoss(), (1,), 2, **options)


@pytest.fixture
def threshold():
    return two_classes(lambda x: torch.cat([0.5 - x, x - 0.5], 1))


def column(*values):
    return np.array(values, dtype=np.float32)[:, np.newaxis]


def misclassified(classifier, images, labels):
    return classifier.predict(images).argmax(1) != labels


def shift(step):
    return Simple(lambda x, y: np.clip(x + step, 0, 1))


# ------------------------------------------------------------------------------------------- values computed by hand


def test_values_computed_by_hand(threshold):
    # All are of class 0; the last is misclassified without attack. A step of 0.05 changes the class of 0.47, a step of
    # 0.1 also that of 0.42.
    x, y = column(0.1, 0.47, 0.42, 0.3, 0.6), np.zeros(5, dtype=np.int64)
    small, large, none = shift(0.05), shift(0.1), Simple()
    result = worst_case(threshold, x, y, eps=EPS, attacks={"small": small, "large": large, "none": none})
    assert result.names == ("no attack", "small", "large", "none")
    assert result.found_by.tolist() == [-1, 1, 2, -1, 0]
    assert result.attacked == (5, 4, 3, 2)
    assert result.accuracy == 0.4
    assert result.accuracy_after == {"no attack": 0.8, "small": 0.6, "large": 0.4, "none": 0.4}
    np.testing.assert_array_equal(result.adversarial, column(0.1, 0.47, 0.42, 0.3, 0.6) + column(0, 0.05, 0.1, 0, 0))
    assert (result.eps, result.norm) == (EPS, np.inf)
    assert len(result.seconds) == 4
    assert min(result.seconds) >= 0
    # Each attack got the examples that were still robust, with their labels, unchanged.
    np.testing.assert_array_equal(small.x, x[[0, 1, 2, 3]])
    np.testing.assert_array_equal(large.x, x[[0, 2, 3]])
    np.testing.assert_array_equal(none.x, x[[0, 3]])
    assert none.y.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("values", "found_by", "attacked"),
    [((0.45, 0.48), [1, 1], (2, 2, 0)), ((0.9, 0.8), [0, 0], (2, 0, 0)), ((0.1, 0.9), [-1, 0], (2, 1, 1))],
    ids=["none left midway", "wrong everywhere", "one left"],
)
def test_only_robust_examples_are_attacked(threshold, values, found_by, attacked):
    attacks = {"a": shift(0.1), "b": shift(0.1)}
    result = worst_case(threshold, column(*values), np.array([0, 0]), eps=EPS, attacks=attacks)
    assert (result.found_by.tolist(), result.attacked) == (found_by, attacked)
    assert [attack.calls for attack in attacks.values()] == [int(n > 0) for n in attacked[1:]]
    alone = worst_case(threshold, column(*values), np.array([0, 0]), eps=EPS, attacks={})
    assert (alone.names, alone.accuracy) == (("no attack",), found_by.count(-1) / 2 + found_by.count(1) / 2)


@pytest.mark.parametrize(
    ("value", "counts"),
    [(0.5001, True), (0.55, True), (0.56, False), (0.4, False), (np.nan, False), (np.inf, False)],
    ids=str,
)
def test_only_misclassified_images_within_eps_count(threshold, value, counts):
    attack = Simple(lambda x, y: np.full_like(x, value))
    result = worst_case(threshold, column(0.45), np.array([0]), eps=EPS, attacks={"a": attack})
    assert result.found_by.tolist() == [1 if counts else -1]
    assert result.adversarial[0, 0] == np.float32(value if counts else 0.45)
    # An image outside clip_values does not count either.
    for clip_values, found_by in (((0.0, 1.0), -1), (None, 1), ((0.0, 1.5), 1)):
        classifier = two_classes(lambda x: torch.cat([1 - x, x - 1], 1), clip_values)
        up = Simple(lambda x, y: x + np.float32(0.08))
        result = worst_case(classifier, column(0.95), np.array([0]), eps=EPS, attacks={"up": up})
        assert result.found_by[0] == found_by


def test_text_and_frame_have_a_row_per_attack():
    result = WorstCase(
        names=("no attack", "PGD on CE", "Square"),
        found_by=np.array([-1, 0, 1, 1, -1, 2, -1, -1]),
        adversarial=np.zeros((8, 1), dtype=np.float32),
        attacked=(8, 7, 5),
        seconds=(0.04, 1.26, 123.46),
        eps=0.1,
        norm=np.inf,
    )
    frame = result.to_frame()
    assert list(frame.columns) == ["attack", "attacked", "found", "accuracy", "seconds"]
    assert frame.to_numpy().tolist() == [
        ["no attack", 8, 1, 0.875, 0.04],
        ["PGD on CE", 7, 2, 0.625, 1.26],
        ["Square", 5, 1, 0.5, 123.46],
    ]
    rows = str(result).splitlines()[2:]
    assert [row.split()[-4:-1] for row in rows] == [["8", "1", "0.875"], ["7", "2", "0.625"], ["5", "1", "0.500"]]


# ------------------------------------------------------------------------------------------------------- real attacks


def without_chance(classifier):
    """Attacks that draw no random numbers."""
    ce, margin = (attack_view(classifier, attack_loss(name)) for name in ("ce", "margin"))
    return {
        "FGM": FastGradientMethod(ce, eps=EPS),
        "half": FastGradientMethod(ce, eps=EPS / 2),
        "PGD": ProjectedGradientDescentPyTorch(margin, eps=EPS, eps_step=0.03, max_iter=5, verbose=False),
        "DeepFool": DeepFool(classifier, max_iter=5, batch_size=64, verbose=False),
    }


def test_the_order_of_attacks_changes_found_by_but_not_the_robust_examples(art_classifier, x, y):
    classifier = art_classifier()
    attacks = without_chance(classifier)
    forth = worst_case(classifier, x, y, eps=EPS, attacks=attacks)
    back = worst_case(classifier, x, y, eps=EPS, attacks=dict(reversed(attacks.items())))
    np.testing.assert_array_equal(forth.found_by < 0, back.found_by < 0)
    assert 0.1 < forth.accuracy < 0.9
    assert list(back.names[1:]) == list(forth.names[:0:-1])
    # No attack finds more on its own, and each example is credited to the first attack that finds it on its own.
    alone = [
        worst_case(classifier, x, y, eps=min(EPS, getattr(attack, "eps", EPS)), attacks={"one": attack})
        for attack in attacks.values()
    ]
    successes = np.array([single.found_by >= 0 for single in alone])
    expected = np.where(successes.any(0), successes.argmax(0) + 1, -1)
    expected[misclassified(classifier, x, y)] = 0
    np.testing.assert_array_equal(forth.found_by, expected)


@pytest.mark.parametrize(
    ("form", "dtype"),
    [(lambda y: np.eye(10)[y], np.float32), (lambda y: y[:, None], np.float64)],
    ids=["1hot", "col"],
)
def test_adversarial_examples_are_misclassified_and_feasible(art_classifier, x, y, form, dtype):
    classifier = art_classifier()
    images, labels = x.astype(dtype), form(y)
    images.setflags(write=False)
    labels.setflags(write=False)
    attacks = ensemble(classifier, eps=EPS, max_iter=5, target_classes=1, square_iter=20)
    result = worst_case(classifier, images, labels, eps=EPS, attacks=attacks)
    successes = result.found_by >= 0
    assert 0.2 < successes.mean() < 1
    np.testing.assert_array_equal(misclassified(classifier, result.adversarial, y), successes)
    np.testing.assert_array_equal(result.adversarial[result.found_by < 1], x[result.found_by < 1])
    assert np.abs(result.adversarial.astype(np.float64) - x).max() <= EPS * (1 + 1e-5)
    assert result.adversarial.min() >= 0
    assert result.adversarial.max() <= 1
    assert result.adversarial.dtype == np.float32
    counts = [int((result.found_by == i).sum()) for i in range(len(result.names))]
    assert list(result.attacked) == [60, *(60 - np.cumsum(counts))[:-1]]
    assert list(result.accuracy_after.values()) == [(60 - count) / 60 for count in np.cumsum(counts)]


def global_states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002


def drawing(x, y):
    """Perturbations drawn from all three generators that ART's attacks use."""
    step = np.random.uniform(-1, 1, x.shape) + torch.rand(x.shape).numpy() + random.uniform(-1, 1)  # noqa: NPY002
    return np.clip(x + EPS * np.clip(step, -1, 1), 0, 1)


def test_a_seed_makes_it_reproducible_and_global_state_is_restored(art_classifier, x, y):
    classifier = art_classifier()
    options = {"max_iter": 2, "target_classes": 1, "square_iter": 5, "hop_skip_jump_iter": 1}
    attacks = ensemble(classifier, eps=EPS, transfer_from={"itself": classifier}, **options)
    attacks["HopSkipJump"].set_params(max_eval=50, init_eval=10)
    attacks["drawing"] = Simple(drawing)
    results, draws = [], []
    for seed in (3, 3, 4):
        random.seed(seed + len(results))
        np.random.seed(seed + len(results))  # noqa: NPY002
        torch.manual_seed(seed + len(results))
        before = global_states()
        results.append(worst_case(classifier, x[:25], y[:25], eps=EPS, attacks=attacks, seed=seed))
        assert global_states() == before
        draws.append(attacks["drawing"].last)
    np.testing.assert_array_equal(results[0].adversarial, results[1].adversarial)
    np.testing.assert_array_equal(results[0].found_by, results[1].found_by)
    np.testing.assert_array_equal(draws[0], draws[1])
    assert (results[0].adversarial != results[2].adversarial).any()


def test_the_modes_of_the_networks_are_restored(art_classifier, network, x, y):
    network.train()
    network.fc1.eval()
    modes = [module.training for module in network.modules()]
    classifier, other = art_classifier(network=network), art_classifier()
    other.model.train()
    attacks = ensemble(classifier, eps=EPS, max_iter=1, square_iter=1, transfer_from={"other": other})
    worst_case(classifier, x[:10], y[:10], eps=EPS, attacks=attacks)
    assert [module.training for module in network.modules()] == modes
    assert all(module.training for module in other.model.modules())


def test_minimal_attacks_count_only_within_eps(art_classifier, x, y):
    classifier = art_classifier()
    x, y = x[:18], y[:18]
    hop = ensemble(classifier, eps=EPS, max_iter=1, square_iter=0, hop_skip_jump_iter=2)["HopSkipJump"]
    hop.set_params(max_eval=50, init_eval=10)
    for attack in (hop, DeepFool(classifier, max_iter=10, batch_size=12, verbose=False)):
        wide, none = (worst_case(classifier, x, y, eps=e, attacks={"a": attack}, seed=1) for e in (1.0, 1e-4))
        assert (wide.found_by == 1).sum() > 5
        assert (none.found_by < 1).all()
        distance = np.abs(wide.adversarial - x).max((1, 2, 3))
        eps = np.median(distance[wide.found_by == 1])
        result = worst_case(classifier, x, y, eps=eps, attacks={"a": attack}, seed=1)
        near = (wide.found_by == 1) & (distance <= eps)
        assert 2 < near.sum() < (wide.found_by == 1).sum()
        np.testing.assert_array_equal(result.found_by == 1, near)


@pytest.mark.parametrize(("norm", "dtype"), [(np.inf, np.float64), (2, np.float32)])
def test_hop_skip_jump_under_numpy_2(art_classifier, x, y, norm, dtype):
    attack = ensemble(art_classifier(), eps=EPS, norm=norm, square_iter=0, hop_skip_jump_iter=1)["HopSkipJump"]
    attack.set_params(max_eval=50, init_eval=10)
    images = attack.generate(x[:5].astype(dtype), y[:5])
    assert misclassified(art_classifier(), images, y[:5]).sum() >= 3


def test_hop_skip_jump_returns_the_original_without_a_start():
    classifier = two_classes(lambda x: torch.cat([x * 0 + 2, x * 0], 1))
    attack = ensemble(classifier, eps=EPS, square_iter=0, hop_skip_jump_iter=1)["HopSkipJump"]
    np.testing.assert_array_equal(attack.generate(column(0.3), np.array([0])), column(0.3))


def test_auto_attack_of_art_is_a_valid_member(art_classifier, x, y, monkeypatch):
    """
    Its parameter `targeted` adds targeted attacks to the untargeted ones.

    ART imports a fork of Python's multiprocessing, which it does not install, and which this test does not need.
    """
    monkeypatch.setitem(sys.modules, "multiprocess", multiprocessing)
    classifier = art_classifier(nn.CrossEntropyLoss())
    attacks = [attack for name, attack in without_chance(classifier).items() if name != "half"]
    for targeted in (False, True):
        attack = AutoAttack(classifier, eps=EPS, attacks=attacks, targeted=targeted)
        result = worst_case(classifier, x[:20], y[:20], eps=EPS, attacks={"AutoAttack": attack})
        assert (result.found_by == 1).sum() > 3


def test_transfer_attacks_also_images_that_its_source_misclassifies(art_classifier, trained_network, x, y):
    """The source is the same network, except that it never predicts one of the classes."""
    classifier = art_classifier()
    source = type(trained_network)()
    source.load_state_dict(trained_network.state_dict())
    with torch.no_grad():
        source.fc2.bias[3] -= 1e3
    assert ((y == 3) & ~misclassified(classifier, x, y)).sum() >= 3
    options = {"max_iter": 10, "target_classes": 0, "square_iter": 0}
    attack = ensemble(classifier, eps=EPS, transfer_from={"blind": art_classifier(network=source)}, **options)[
        "transfer from blind"
    ]
    assert attack.eps_step == pytest.approx(0.025)
    assert (attack.generate(x, y) != x).any((1, 2, 3)).all()
    result = worst_case(classifier, x, y, eps=EPS, attacks={"transfer": attack})
    assert (result.found_by == 1).sum() > 15


# ---------------------------------------------------------------------------------------------------------- ensemble


def test_the_members_of_the_ensemble(art_classifier, hr_classifier):
    classifier, other = art_classifier(), hr_classifier()
    options = {"max_iter": 7, "restarts": 3, "target_classes": 2, "square_iter": 11, "hop_skip_jump_iter": 13}
    attacks = ensemble(classifier, eps=np.float32(0.5), transfer_from={"CE": other}, batch_size=9, **options)
    auto = AutoProjectedGradientDescent
    assert [type(attack) for attack in attacks.values()][:-1] == [*[auto] * 4, ProjectedGradientDescent, SquareAttack]
    assert isinstance(attacks["HopSkipJump"], HopSkipJump)
    assert list(attacks)[4:] == ["transfer from CE", "Square", "HopSkipJump"]
    assert [attack.max_iter for attack in attacks.values()] == [7, 7, 7, 1, 7, 11, 13]
    assert [attack.restarts for attack in list(attacks.values())[:4]] == [3, 3, None, None]
    assert {attack.batch_size for attack in attacks.values()} == {9}
    assert {attack.norm for attack in attacks.values()} == {np.inf}
    assert {attack.eps for attack in list(attacks.values())[:-1]} == {0.5}
    white_box = list(attacks.values())[:5]
    assert [attack.loss for attack in white_box] == ["ce", "hr", None, "margin", "ce"]
    assert [attack.keep_first for attack in white_box] == [True] * 4 + [False]
    assert [attack.target_classes for attack in white_box[:4]] == [0, 0, 2, 2]
    models = [attack.estimator.model for attack in attacks.values()]
    assert models == [classifier.model] * 4 + [other.model] + [classifier.model] * 2
    few = ensemble(classifier, eps=0.5, target_classes=0, square_iter=0)
    assert list(few) == list(attacks)[:2]
    many = ensemble(classifier, eps=0.5, target_classes=99, square_iter=0)
    assert [attack.target_classes for attack in many.values()] == [0, 0, 5, 9]


def test_ensemble_is_the_default_of_worst_case(hr_classifier, x, y):
    """All images are misclassified without attack, so that no attack of the ensemble runs."""
    classifier = hr_classifier()
    labels = (classifier.predict(x).argmax(1) + 1) % 10
    result = worst_case(classifier, x, labels, eps=np.float32(0.5))
    assert result.names[1:] == tuple(ensemble(classifier, eps=0.5))
    assert (result.attacked[1:], result.accuracy) == ((0,) * len(result.names[1:]), 0.0)


def test_the_ensemble_succeeds_on_a_saturated_network(hr_classifier, network, x, y):
    """The cross-entropy of logits times 1000 rounds to 0, as do its gradients, so that PGD in float32 mostly fails."""
    classifier = hr_classifier(nn.CrossEntropyLoss(), network=scaled(network, 1e3))
    pgd = ProjectedGradientDescentPyTorch(classifier, eps=EPS, eps_step=0.02, max_iter=10, verbose=False)
    attacks = ensemble(classifier, eps=EPS, max_iter=10, target_classes=2, square_iter=0)
    by_pgd, by_ensemble = (worst_case(classifier, x, y, eps=EPS, attacks=a) for a in ({"PGD": pgd}, attacks))
    assert by_pgd.accuracy > by_ensemble.accuracy + 0.2


def test_black_box_attacks_succeed_where_gradient_attacks_fail(art_classifier, network, x, y):
    classifier = art_classifier(network=rounding(network))
    attacks = ensemble(classifier, eps=EPS, max_iter=3, target_classes=1, square_iter=200)
    result = worst_case(classifier, x, y, eps=EPS, attacks=attacks)
    frame = result.to_frame().set_index("attack")
    assert frame.loc["Square", "found"] > 10
    assert result.accuracy < result.accuracy_after["AutoPGD to other classes"] - 0.2


def test_the_ensemble_of_two_classes_has_one_target_class(x):
    torch.manual_seed(0)
    network, options = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), {"clip_values": (0.0, 1.0), "device_type": "cpu"}
    classifier = PyTorchClassifier(network, nn.CrossEntropyLoss(), (1, 8, 8), 2, **options)
    attacks = ensemble(classifier, eps=0.3, max_iter=3, square_iter=3)
    assert [attack.target_classes for attack in list(attacks.values())[:4]] == [0, 0, 1, 1]
    labels = classifier.predict(x).argmax(1)
    assert worst_case(classifier, x, labels, eps=0.3, attacks=attacks).accuracy < 1


@pytest.mark.parametrize(
    ("shape", "norm", "clip_values"),
    [((1, 8, 8), np.inf, None), ((64,), np.inf, (0.0, 1.0)), ((1, 8, 8), 2, (0.0, 1.0))],
    ids=["no-clip-values", "flat", "small-in-norm-2"],
)
def test_the_square_attack_raises_an_error_for_unsupported_classifiers(shape, norm, clip_values):
    network, options = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), {"clip_values": clip_values}
    classifier = PyTorchClassifier(network, nn.CrossEntropyLoss(), shape, 3, device_type="cpu", **options)
    with pytest.raises(ValueError, match="square_iter=0"):
        ensemble(classifier, eps=0.1, norm=norm)
    assert "Square" not in ensemble(classifier, eps=0.1, norm=norm, square_iter=0)


# ------------------------------------------------------------------------------------------------------------ errors


PIXELS = np.full((1, 8, 8), 0.11)
# Functions from a classifier to an attack that is not valid in a worst case within EPS, and a part of the message.
REFUSED = {
    "targeted by default": (lambda c: BoundaryAttack(c, verbose=False), "it is BoundaryAttack with targeted=True"),
    "targeted": (lambda c: ProjectedGradientDescent(c, eps=EPS, targeted=True), "it is Projected.* with targeted=True"),
    "conjugate gradient": (lambda c: AutoConjugateGradient(c, eps=EPS, norm=np.inf, verbose=False), "sign"),
    "and rescaled": (lambda c: RescalingAutoConjugateGradient(c, eps=EPS, norm="inf", verbose=False), "sign"),
    "too far": (lambda c: FastGradientMethod(c, eps=0.11), r"it is FastGradientMethod with eps 0\.11"),
    "at some pixel": (lambda c: FastGradientMethod(c, eps=PIXELS, eps_step=PIXELS), r"with eps 0\.11"),
    "too far in norm 'inf'": (lambda c: ProjectedGradientDescent(c, eps=0.9, norm="inf"), r"with eps 0\.9"),
    "not near enough": (lambda c: FastGradientMethod(c, eps=0.0999), "eps"),
    "a class": (lambda c: FastGradientMethod, "generate"),
    "too few images": (lambda c: Simple(lambda x, y: x[:1]), "from it"),
    "of another shape": (lambda c: Simple(lambda x, y: x[..., None]), "from it"),
}


@pytest.mark.parametrize(("attack", "message"), REFUSED.values(), ids=REFUSED)
def test_invalid_attacks_raise_an_error(art_classifier, x, y, attack, message):
    classifier = art_classifier()
    with pytest.raises((TypeError, ValueError), match=message):
        worst_case(classifier, x, y, eps=EPS, attacks={"it": attack(classifier)})


def test_minimal_attacks_and_other_norms_may_have_a_larger_eps(art_classifier, x, y):
    classifier = art_classifier()
    attacks = {
        "minimal": FastGradientMethod(classifier, eps=0.5, eps_step=0.05, minimal=True),
        "exact": FastGradientMethod(classifier, eps=float(np.float32(EPS))),
        "other": FastGradientMethod(classifier, eps=0.5, norm=2),
    }
    assert worst_case(classifier, x, y, eps=EPS, attacks=attacks).names[1:] == tuple(attacks)
    with pytest.raises(ValueError, match=r"other is FastGradientMethod with eps 0\.5"):
        worst_case(classifier, x, y, eps=EPS, norm=2.0, attacks=attacks)
    conjugate = AutoConjugateGradient(
        attack_view(classifier, attack_loss("ce")),
        eps=0.5,
        eps_step=1.0,
        norm=2,
        max_iter=5,
        nb_random_init=1,
        verbose=False,
    )
    in_norm_2 = worst_case(classifier, x, y, eps=0.5, norm=2, attacks={"ACG": conjugate})
    result = worst_case(classifier, x, y, eps=0.2, attacks={"ACG": conjugate})
    assert 0 < (result.found_by == 1).sum() < (in_norm_2.found_by == 1).sum()
    assert np.abs(result.adversarial - x).max() <= 0.2 * (1 + 1e-5)


def test_invalid_arguments_raise_an_error_before_an_attack_runs(threshold):
    def call(eps=EPS, attacks=None, **options):
        return worst_case(threshold, column(0.1), np.array([0]), eps=eps, attacks=attacks or {}, **options)

    attack = Simple()
    for name in ("no attack", 1, None):
        with pytest.raises(ValueError, match=str(name)):
            call(attacks={"first": attack, name: attack})
    with pytest.raises(ValueError, match="expected eps"):
        call(eps=8, attacks={"first": attack})
    with pytest.raises(ValueError, match="norm"):
        call(norm=3, attacks={"first": attack})
    with pytest.raises(TypeError, match="by name"):
        call(attacks=[attack])
    assert attack.calls == 0
    for options, pattern in (({"eps": 8}, "expected eps"), ({"eps": EPS, "norm": 1}, "norm to be")):
        with pytest.raises(ValueError, match=pattern):
            ensemble(threshold, **options)
