"""attacks._worst_case: who was attacked, what broke each example, what counts, and that it can be repeated."""

import random
import re

import numpy as np
import pytest
import torch
from art.attacks.evasion import (
    AutoConjugateGradient,
    BoundaryAttack,
    DeepFool,
    FastGradientMethod,
    HopSkipJump,
    ProjectedGradientDescentPyTorch,
    RescalingAutoConjugateGradient,
    SquareAttack,
)
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_hrloss import attack_view
from art_hrloss.attacks._constraints import allowed
from art_hrloss.attacks._losses import attack_loss
from art_hrloss.attacks._restarted import PGD, AutoPGD
from art_hrloss.attacks._worst_case import WorstCase, ensemble, worst_case

EPS = 0.1


@pytest.fixture
def x(digits):
    return digits.x_test[:60].copy()


@pytest.fixture
def y(digits):
    return digits.y_test[:60].copy()


class Spy:
    """An attack that returns what a function of the images and labels says, and notes what it was given."""

    def __init__(self, made=lambda x, y: x):
        self.made, self.x, self.y, self.calls = made, None, None, 0

    def generate(self, x, y):
        self.x, self.y, self.calls = x.copy(), y.copy(), self.calls + 1
        self.last = self.made(x, y)
        return self.last


class Threshold(nn.Module):
    """Logits (0.5 - x, x - 0.5) of an image of one pixel: class 1 above 0.5."""

    def forward(self, x):
        return torch.cat([0.5 - x, x - 0.5], 1)


@pytest.fixture
def threshold():
    return PyTorchClassifier(Threshold(), nn.CrossEntropyLoss(), (1,), 2, clip_values=(0.0, 1.0), device_type="cpu")


def column(*values):
    return np.array(values, dtype=np.float32)[:, np.newaxis]


def misclassified(classifier, images, labels):
    return classifier.predict(images).argmax(1) != labels


def shift(step):
    return Spy(lambda x, y: np.clip(x + step, 0, 1))


# ----------------------------------------------------------------------------------------------------------- by hand


def test_by_hand(threshold):
    # Of class 0, and wrong from the start is the last. A step of 0.05 breaks 0.47, one of 0.1 breaks 0.42 as well.
    x, y = column(0.1, 0.47, 0.42, 0.3, 0.6), np.zeros(5, dtype=np.int64)
    small, large, none = shift(0.05), shift(0.1), Spy()
    result = worst_case(threshold, x, y, eps=EPS, attacks={"small": small, "large": large, "none": none})
    assert result.names == ("no attack", "small", "large", "none")
    assert result.broken_by.tolist() == [-1, 1, 2, -1, 0]
    assert result.attacked == (5, 4, 3, 2)
    assert result.accuracy == 0.4
    assert result.accuracy_after == {"no attack": 0.8, "small": 0.6, "large": 0.4, "none": 0.4}
    np.testing.assert_array_equal(result.adversarial, column(0.1, 0.47, 0.42, 0.3, 0.6) + column(0, 0.05, 0.1, 0, 0))
    assert (result.eps, result.norm) == (EPS, np.inf)
    assert len(result.seconds) == 4
    assert min(result.seconds) >= 0
    # Each was given the survivors, with their labels, unchanged.
    np.testing.assert_array_equal(small.x, x[[0, 1, 2, 3]])
    np.testing.assert_array_equal(large.x, x[[0, 2, 3]])
    np.testing.assert_array_equal(none.x, x[[0, 3]])
    assert none.y.tolist() == [0, 0]


def test_none_left_midway(threshold):
    first, second = shift(0.1), shift(0.1)
    result = worst_case(threshold, column(0.45, 0.48), np.array([0, 0]), eps=EPS, attacks={"a": first, "b": second})
    assert (result.accuracy, result.attacked, second.calls) == (0, (2, 2, 0), 0)
    assert result.accuracy_after == {"no attack": 1, "a": 0, "b": 0}


def test_wrong_everywhere(threshold):
    spy, x = shift(0.1), column(0.9, 0.8)
    result = worst_case(threshold, x, np.array([0, 0]), eps=EPS, attacks={"a": spy})
    assert (result.accuracy, result.broken_by.tolist(), result.attacked, spy.calls) == (0, [0, 0], (2, 0), 0)
    np.testing.assert_array_equal(result.adversarial, x)


def test_no_attacks(threshold):
    result = worst_case(threshold, column(0.1, 0.9), np.array([0, 0]), eps=EPS, attacks={})
    assert (result.names, result.accuracy) == (("no attack",), 0.5)


@pytest.mark.parametrize(
    ("made", "counts"),
    [(0.5001, True), (0.55, True), (0.56, False), (0.4, False), (np.nan, False), (np.inf, False)],
    ids=str,
)
def test_what_counts_is_misclassified_and_within_eps(threshold, made, counts):
    spy = Spy(lambda x, y: np.full_like(x, made))
    result = worst_case(threshold, column(0.45), np.array([0]), eps=EPS, attacks={"a": spy})
    assert result.broken_by.tolist() == [1 if counts else -1]
    assert result.adversarial[0, 0] == np.float32(made if counts else 0.45)


def test_an_image_outside_the_range_does_not_count():
    class Above(nn.Module):
        def forward(self, x):
            return torch.cat([1 - x, x - 1], 1)

    options = {"loss": nn.CrossEntropyLoss(), "input_shape": (1,), "nb_classes": 2, "device_type": "cpu"}
    spy = Spy(lambda x, y: x + np.float32(0.08))
    x, y = column(0.95), np.array([0])
    for clip_values, broken_by in (((0.0, 1.0), -1), (None, 1), ((0.0, 1.5), 1)):
        classifier = PyTorchClassifier(Above(), clip_values=clip_values, **options)
        assert worst_case(classifier, x, y, eps=EPS, attacks={"a": spy}).broken_by[0] == broken_by


def test_allowed_by_norm():
    x = np.zeros((4, 2, 2), dtype=np.float32)
    change = np.array([[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.5, 0.5, 0.5, 0.5], [-0.3, 0.1, 0, 0]], dtype=np.float32)
    made = x + change.reshape(4, 2, 2)
    assert allowed(made, x, 1.0, 1, None).tolist() == [True, True, False, True]
    assert allowed(made, x, 0.8, 2, None).tolist() == [False, True, False, True]
    assert allowed(made, x, 0.5, np.inf, None).tolist() == [False, True, True, True]
    assert allowed(made, x, 0.5, "inf", None).tolist() == [False, True, True, True]
    assert allowed(made, x, 0.5, np.inf, (0.0, 1.0)).tolist() == [False, True, True, False]
    assert allowed(made, x, 0.5, np.inf, (-1.0, 0.4)).tolist() == [False, False, False, True]
    low, high = np.zeros((2, 2)), np.array([[1.0, 1.0], [0.2, 0.2]])
    assert allowed(made, x, 1.0, np.inf, (low, high)).tolist() == [True, True, False, False]


@pytest.mark.parametrize("scale", [1.0, 255.0, 1e-3])
@pytest.mark.parametrize("share", [0.001, 0.1])
def test_the_rounding_of_float32_is_allowed_in_any_unit(scale, share):
    random_ = np.random.default_rng(0)
    x = (scale * random_.uniform(0, 1, (50, 100))).astype(np.float32)
    eps = share * scale
    direction = np.sign(random_.normal(size=x.shape))
    for excess, expected in ((0, True), (2e-3, False)):
        made = (x + (1 + excess) * eps * direction).astype(np.float32)
        assert allowed(made, x, eps, np.inf, None).all() == expected
        assert allowed(made, x, 10 * eps, 2, None).all() == expected


def test_str_exactly():
    result = WorstCase(
        names=("no attack", "PGD on CE", "Square"),
        broken_by=np.array([-1, 0, 1, 1, -1, 2, -1, -1]),
        adversarial=np.zeros((8, 1), dtype=np.float32),
        attacked=(8, 7, 5),
        seconds=(0.04, 1.26, 123.46),
        eps=0.1,
        norm=np.inf,
    )
    assert str(result) == (
        "Worst case of 8 examples, eps 0.1, norm inf\n"
        "attack     attacked  broken  accuracy  seconds\n"
        "no attack         8       1     0.875      0.0\n"
        "PGD on CE         7       2     0.625      1.3\n"
        "Square            5       1     0.500    123.5"
    )


# ------------------------------------------------------------------------------------------------------- real attacks


def cheap(classifier):
    """Attacks without chance."""
    return {
        "FGM": FastGradientMethod(attack_view(classifier, attack_loss("ce")), eps=EPS),
        "half": FastGradientMethod(attack_view(classifier, attack_loss("ce")), eps=EPS / 2),
        "PGD": ProjectedGradientDescentPyTorch(
            attack_view(classifier, attack_loss("margin")), eps=EPS, eps_step=0.03, max_iter=5, verbose=False
        ),
        "DeepFool": DeepFool(classifier, max_iter=5, batch_size=64, verbose=False),
    }


def test_the_order_of_the_attacks_changes_who_is_credited_but_not_the_set(art_classifier, x, y):
    classifier = art_classifier()
    attacks = cheap(classifier)
    forth = worst_case(classifier, x, y, eps=EPS, attacks=attacks)
    back = worst_case(classifier, x, y, eps=EPS, attacks=dict(reversed(attacks.items())))
    np.testing.assert_array_equal(forth.broken_by < 0, back.broken_by < 0)
    assert 0.1 < forth.accuracy < 0.9
    assert list(back.names[1:]) == list(forth.names[:0:-1])
    # Each alone breaks no more, and each example is credited to the first that breaks it alone.
    alone = [worst_case(classifier, x, y, eps=EPS, attacks={name: attack}) for name, attack in attacks.items()]
    breaks = np.array([one.broken_by >= 0 for one in alone])
    expected = np.where(breaks.any(0), breaks.argmax(0) + 1, -1)
    expected[misclassified(classifier, x, y)] = 0
    np.testing.assert_array_equal(forth.broken_by, expected)


@pytest.mark.parametrize("form", [lambda y: y, lambda y: np.eye(10)[y], lambda y: y[:, None]], ids=["i", "1hot", "col"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_adversarial_image_is_one(art_classifier, x, y, form, dtype):
    classifier = art_classifier()
    images, labels = x.astype(dtype), form(y)
    images.setflags(write=False)
    labels.setflags(write=False)
    attacks = ensemble(classifier, eps=EPS, max_iter=5, square_iter=20, hop_skip_jump_iter=0)
    result = worst_case(classifier, images, labels, eps=EPS, attacks=attacks)
    broken = result.broken_by >= 0
    assert 0.2 < broken.mean() < 1
    np.testing.assert_array_equal(misclassified(classifier, result.adversarial, y), broken)
    np.testing.assert_array_equal(result.adversarial[~broken], x[~broken])
    np.testing.assert_array_equal(result.adversarial[result.broken_by == 0], x[result.broken_by == 0])
    assert np.abs(result.adversarial.astype(np.float64) - x).max() <= EPS * (1 + 1e-5)
    assert result.adversarial.min() >= 0
    assert result.adversarial.max() <= 1
    assert result.adversarial.dtype == np.float32
    counted = [int((result.broken_by == i).sum()) for i in range(len(result.names))]
    assert list(result.attacked) == [60, *(60 - np.cumsum(counted))[:-1]]
    assert list(result.accuracy_after.values()) == [(60 - broken) / 60 for broken in np.cumsum(counted)]


def global_states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002


def drawing(x, y):
    """Perturbations from all three of the generators that ART's attacks draw from."""
    step = np.random.uniform(-1, 1, x.shape) + torch.rand(x.shape).numpy() + random.uniform(-1, 1)  # noqa: NPY002
    return np.clip(x + EPS * np.clip(step, -1, 1), 0, 1)


def test_a_seed_repeats_it_and_no_global_state_is_changed(art_classifier, x, y):
    classifier = art_classifier()
    attacks = ensemble(
        classifier, eps=EPS, max_iter=2, square_iter=5, hop_skip_jump_iter=1, transfer_from={"itself": classifier}
    )
    attacks["HopSkipJump"].set_params(max_eval=50, init_eval=10)
    attacks["drawing"] = Spy(drawing)
    results, drawn = [], []
    for seed in (3, 3, 4):
        random.seed(seed + len(results))
        np.random.seed(seed + len(results))  # noqa: NPY002
        torch.manual_seed(seed + len(results))
        before = global_states()
        result = worst_case(classifier, x[:25], y[:25], eps=EPS, attacks=attacks, seed=seed)
        assert global_states() == before
        results.append(result)
        drawn.append(attacks["drawing"].last)
    np.testing.assert_array_equal(results[0].adversarial, results[1].adversarial)
    np.testing.assert_array_equal(results[0].broken_by, results[1].broken_by)
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (results[0].adversarial != results[2].adversarial).any()


def test_the_global_state_is_restored_after_a_failure(threshold):
    def fail(x, y):
        np.random.uniform()  # noqa: NPY002
        torch.rand(1)
        random.random()
        raise ArithmeticError("this attack fails")

    before = global_states()
    with pytest.raises(ArithmeticError, match="this attack fails"):
        worst_case(threshold, column(0.1), np.array([0]), eps=EPS, attacks={"a": Spy(fail)})
    assert global_states() == before


def test_the_network_keeps_its_mode(art_classifier, network, x, y):
    network.train()
    network.fc1.eval()
    modes = [module.training for module in network.modules()]
    classifier = art_classifier(network=network)
    attacks = ensemble(classifier, eps=EPS, max_iter=1, square_iter=1, hop_skip_jump_iter=0)
    worst_case(classifier, x[:10], y[:10], eps=EPS, attacks=attacks)
    assert [module.training for module in network.modules()] == modes


def test_attacks_for_the_nearest_image_count_only_within_eps(art_classifier, x, y):
    classifier = art_classifier()
    x, y = x[:20], y[:20]
    hop = ensemble(classifier, eps=EPS, max_iter=1, square_iter=0, hop_skip_jump_iter=2)["HopSkipJump"]
    hop.set_params(max_eval=100, init_eval=20)
    for attack in (hop, DeepFool(classifier, batch_size=20, verbose=False)):
        wide, none = (worst_case(classifier, x, y, eps=e, attacks={"a": attack}, seed=1) for e in (1.0, 1e-4))
        assert (wide.broken_by == 1).sum() > 10
        assert (none.broken_by < 1).all()
        distance = np.abs(wide.adversarial - x).max((1, 2, 3))
        eps = np.median(distance[wide.broken_by == 1])
        result = worst_case(classifier, x, y, eps=eps, attacks={"a": attack}, seed=1)
        near = (wide.broken_by == 1) & (distance <= eps)
        assert 5 < near.sum() < (wide.broken_by == 1).sum()
        np.testing.assert_array_equal(result.broken_by == 1, near)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("norm", [np.inf, 2], ids=["inf", "2"])
def test_hop_skip_jump_under_numpy_2(art_classifier, x, y, norm, dtype):
    attack = ensemble(art_classifier(), eps=EPS, norm=norm, square_iter=0, hop_skip_jump_iter=1)["HopSkipJump"]
    attack.set_params(max_eval=50, init_eval=10)
    made = attack.generate(x[:5].astype(dtype), y[:5])
    assert misclassified(art_classifier(), made, y[:5]).sum() >= 3


def test_hop_skip_jump_returns_the_image_where_no_start_is_found(threshold):
    class Constant(nn.Module):
        def forward(self, x):
            return torch.cat([x * 0 + 2, x * 0], 1)

    classifier = PyTorchClassifier(Constant(), nn.CrossEntropyLoss(), (1,), 2, clip_values=(0, 1), device_type="cpu")
    attack = ensemble(classifier, eps=EPS, square_iter=0, hop_skip_jump_iter=1)["HopSkipJump"]
    np.testing.assert_array_equal(attack.generate(column(0.3), np.array([0])), column(0.3))


def test_square_on_digits(art_classifier, x, y):
    classifier = art_classifier()
    attack = ensemble(classifier, eps=EPS, square_iter=100, hop_skip_jump_iter=0)["Square"]
    result = worst_case(classifier, x, y, eps=EPS, attacks={"Square": attack})
    assert (result.broken_by == 1).sum() > 10


def test_transfer_attacks_what_the_other_gets_wrong_as_well(art_classifier, trained_network, x, y):
    classifier = art_classifier()
    # The other is the same network, but for a class that it never predicts: it gets those images wrong unattacked.
    blind = type(trained_network)()
    blind.load_state_dict(trained_network.state_dict())
    with torch.no_grad():
        blind.fc2.bias[3] -= 1e3
    other = art_classifier(network=blind)
    of_3 = (y == 3) & ~misclassified(classifier, x, y)
    assert of_3.sum() >= 3
    attacks = ensemble(
        classifier, eps=EPS, max_iter=10, square_iter=0, hop_skip_jump_iter=0, transfer_from={"blind": other}
    )
    transfer = attacks["transfer from blind"]
    assert transfer.eps_step == pytest.approx(0.025)
    made = transfer.generate(x, y)
    assert (made != x).any((1, 2, 3)).all()
    result = worst_case(classifier, x, y, eps=EPS, attacks={"transfer from blind": transfer})
    assert (result.broken_by == 1).sum() > 15


def test_two_classes(x, y):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    classifier = PyTorchClassifier(
        network, nn.CrossEntropyLoss(), (1, 8, 8), 2, clip_values=(0.0, 1.0), device_type="cpu"
    )
    labels = classifier.predict(x).argmax(1)
    attacks = ensemble(classifier, eps=0.3, max_iter=3, square_iter=3, hop_skip_jump_iter=0)
    assert list(attacks) == ["PGD on CE", "AutoPGD on CE", "AutoPGD on the margin", "AutoPGD on HR", "Square"]
    assert worst_case(classifier, x, labels, eps=0.3, attacks=attacks).accuracy < 1


# ---------------------------------------------------------------------------------------------------------- ensemble


def test_the_ensemble(art_classifier, hr_classifier):
    classifier, other = art_classifier(), hr_classifier()
    attacks = ensemble(
        classifier,
        eps=np.float32(0.5),
        max_iter=7,
        restarts=3,
        square_iter=11,
        hop_skip_jump_iter=13,
        transfer_from={"CE": other},
        batch_size=9,
    )
    assert list(attacks) == [
        "PGD on CE",
        "AutoPGD on CE",
        "AutoPGD on the margin",
        "AutoPGD on DLR",
        "AutoPGD on HR",
        "transfer from CE",
        "Square",
        "HopSkipJump",
    ]
    kinds = [PGD, *[AutoPGD] * 4, ProjectedGradientDescentPyTorch, SquareAttack, HopSkipJump]
    assert all(isinstance(attack, kind) for attack, kind in zip(attacks.values(), kinds, strict=True))
    assert [attack.max_iter for attack in attacks.values()] == [7] * 6 + [11, 13]
    assert [attack.restarts for attack in list(attacks.values())[:5]] == [3] * 5
    assert {attack.batch_size for attack in attacks.values()} == {9}
    assert {attack.norm for attack in attacks.values()} == {np.inf}
    assert {attack.eps for attack in list(attacks.values())[:-1]} == {0.5}
    losses = [type(attack.estimator.attack_loss).__name__ for attack in list(attacks.values())[:6]]
    assert losses == ["ExactCrossEntropy", "ExactCrossEntropy", "MarginLoss", "DLRLoss", "HRLoss", "ExactCrossEntropy"]
    models = [attack.estimator.model for attack in attacks.values()]
    assert models == [classifier.model] * 5 + [other.model] + [classifier.model] * 2
    few = ensemble(classifier, eps=0.5, square_iter=0, hop_skip_jump_iter=0)
    assert list(few) == list(attacks)[:5]


def test_the_ensemble_is_the_default(art_classifier, x, y, monkeypatch):
    asked = {}

    def fake(classifier, **options):
        asked.update(options, classifier=classifier)
        return {"a": Spy()}

    monkeypatch.setattr("art_hrloss.attacks._worst_case.ensemble", fake)
    classifier = art_classifier()
    assert worst_case(classifier, x, y, eps=np.float32(0.5), norm=2, batch_size=17).names == ("no attack", "a")
    assert asked == {"classifier": classifier, "eps": 0.5, "norm": 2, "batch_size": 17}
    assert type(asked["eps"]) is float


def image_classifier(shape, **options):
    network = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 3))
    options = {"clip_values": (0.0, 1.0), "device_type": "cpu", **options}
    return PyTorchClassifier(network, nn.CrossEntropyLoss(), shape, 3, **options)


@pytest.mark.parametrize(
    ("shape", "norm", "options"),
    [
        ((1, 8, 8), np.inf, {"clip_values": None}),
        ((64,), np.inf, {}),
        ((1, 4, 4), np.inf, {}),
        ((1, 8, 32), np.inf, {}),
        ((8, 32, 1), np.inf, {"channels_first": False}),
        ((1, 8, 8), 2, {}),
    ],
    ids=["no-clip", "flat", "small", "oblong", "channels-last", "norm-2"],
)
def test_square_is_refused_where_arts_cannot_work(shape, norm, options):
    classifier = image_classifier(shape, **options)
    with pytest.raises(ValueError, match=re.escape(f"but got {shape} and ") + r".*leave it out .*square_iter=0\)"):
        ensemble(classifier, eps=0.1, norm=norm)
    assert "Square" not in ensemble(classifier, eps=0.1, norm=norm, square_iter=0)


@pytest.mark.filterwarnings("ignore:.*encountered in divide")  # of norm 2, where a square has not moved yet
@pytest.mark.parametrize(
    ("shape", "norm"),
    [((1, 5, 5), np.inf), ((3, 10, 10), 2), ((1, 28, 28), 2), ((3, 32, 32), np.inf), ((1, 9, 10), np.inf)],
)
def test_square_works_where_it_is_not_refused(shape, norm):
    classifier = image_classifier(shape)
    x = np.random.default_rng(0).uniform(0, 1, (4, *shape)).astype(np.float32)
    attack = ensemble(classifier, eps=0.5, norm=norm, square_iter=30, hop_skip_jump_iter=0)["Square"]
    made = attack.generate(x, classifier.predict(x).argmax(1))
    assert np.isfinite(made).all()
    assert allowed(made, x, 0.5, norm, (0.0, 1.0)).all()
    assert (made != x).any()


# ------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize("kind", [AutoConjugateGradient, RescalingAutoConjugateGradient])
@pytest.mark.parametrize("norm", [np.inf, "inf"])
def test_acg_of_norm_inf_is_refused(art_classifier, x, y, kind, norm):
    classifier = art_classifier()
    attack = kind(classifier, eps=EPS, norm=norm, verbose=False)
    match = rf"but conj is {kind.__name__}, which for the L-infinity norm leaves out the sign of its step"
    for against in (np.inf, 2):
        with pytest.raises(ValueError, match=match):
            worst_case(classifier, x, y, eps=EPS, norm=against, attacks={"conj": attack})


def test_acg_of_norm_2_is_accepted(art_classifier, x, y):
    classifier = art_classifier()
    attack = AutoConjugateGradient(
        attack_view(classifier, attack_loss("ce")),
        eps=0.5,
        eps_step=1.0,
        norm=2,
        max_iter=5,
        nb_random_init=1,
        verbose=False,
    )
    assert (worst_case(classifier, x, y, eps=0.5, norm=2, attacks={"ACG": attack}).broken_by == 1).any()
    assert worst_case(classifier, x, y, eps=0.4, norm=np.inf, attacks={"ACG": attack}).names[1] == "ACG"


def test_targeted_attacks_are_refused(art_classifier, x, y):
    classifier = art_classifier()
    attack = BoundaryAttack(classifier, verbose=False)  # by ART's own default
    with pytest.raises(ValueError, match="not targeted, but edge is BoundaryAttack with targeted=True"):
        worst_case(classifier, x, y, eps=EPS, attacks={"edge": attack})


def test_attacks_for_more_than_eps_are_refused(art_classifier, x, y):
    classifier = art_classifier()
    with pytest.raises(ValueError, match=r"made for eps 0.1, but far is FastGradientMethod with eps 0.11"):
        worst_case(classifier, x, y, eps=EPS, attacks={"far": FastGradientMethod(classifier, eps=0.11)})
    minimal = FastGradientMethod(classifier, eps=0.5, eps_step=0.05, minimal=True)
    exact = FastGradientMethod(classifier, eps=float(np.float32(EPS)))
    other_norm = FastGradientMethod(classifier, eps=0.5, norm=2)
    attacks = {"minimal": minimal, "exact": exact, "other": other_norm}
    assert worst_case(classifier, x, y, eps=EPS, attacks=attacks).names[1:] == tuple(attacks)


@pytest.mark.parametrize("eps", [0, -1, np.nan, np.inf])
def test_eps_that_is_none(threshold, eps):
    with pytest.raises(ValueError, match="expected eps to be finite and above 0, but got"):
        worst_case(threshold, column(0.1), np.array([0]), eps=eps, attacks={})
    with pytest.raises(ValueError, match="expected eps to be finite and above 0, but got"):
        ensemble(threshold, eps=eps)


def test_numbers_of_labels_and_images(threshold):
    with pytest.raises(ValueError, match="as many labels as images, and at least one, but got 1 and 2"):
        worst_case(threshold, column(0.1, 0.2), np.array([0]), eps=EPS, attacks={})
    with pytest.raises(ValueError, match="as many labels as images, and at least one, but got 0 and 0"):
        worst_case(threshold, column(), np.zeros(0), eps=EPS, attacks={})
    with pytest.raises(ValueError, match="expected labels as class indices from 0 to 1 or rows of 2"):
        worst_case(threshold, column(0.1), np.array([2]), eps=EPS, attacks={})


def test_more_than_eps_is_refused_however_the_norm_is_written(art_classifier, x, y):
    classifier = art_classifier()
    for own, norm in ((2, 2.0), (np.inf, "inf"), ("inf", np.inf)):
        attack = PGD(classifier, eps=5.0, norm=own)
        with pytest.raises(ValueError, match=r"made for eps 0\.1, but far is PGD with eps 5"):
            worst_case(classifier, x, y, eps=EPS, norm=norm, attacks={"far": attack})


@pytest.mark.parametrize(
    ("last", "message"),
    [
        (nn.Linear(10, 1), r"predictions of shape \(n, M\), a logit for each class, but got \(60, 1\)"),
        (nn.Softmax(1), "predicts logits, but each of its rows is a distribution: take the softmax out"),
    ],
    ids=["one column", "softmax"],
)
def test_predictions_that_are_no_logits_are_refused(art_classifier, trained_network, x, y, last, message):
    classifier = art_classifier(nn.CrossEntropyLoss(), network=nn.Sequential(trained_network, last))
    with pytest.raises(ValueError, match=message):
        worst_case(classifier, x, y, eps=EPS, attacks={"FGM": FastGradientMethod(classifier, eps=EPS)})
    with pytest.raises(ValueError, match=message):
        PGD(classifier, "margin", eps=EPS, max_iter=1).generate(x, y)


def test_the_network_of_a_transfer_is_left_in_its_mode(art_classifier, x, y):
    classifier, other = art_classifier(), art_classifier()
    other.model.train()
    attacks = ensemble(
        classifier, eps=EPS, max_iter=2, square_iter=0, hop_skip_jump_iter=0, transfer_from={"other": other}
    )
    worst_case(classifier, x, y, eps=EPS, attacks=attacks)
    assert all(module.training for module in other.model.modules())


def test_an_ensemble_has_no_norm_1(art_classifier):
    with pytest.raises(ValueError, match=r"norm to be numpy\.inf or 2, but got 1"):
        ensemble(art_classifier(), eps=EPS, norm=1)
