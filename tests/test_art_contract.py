"""ART's stock attacks and trainers with the HR loss, on real digits: which follow it, and what they depend on."""

import copy

import numpy as np
import pytest
import torch
from art.attacks.evasion import (
    AutoConjugateGradient,
    AutoProjectedGradientDescent,
    BasicIterativeMethod,
    DeepFool,
    FastGradientMethod,
    FrameSaliencyAttack,
    LowProFool,
    MomentumIterativeMethod,
    ProjectedGradientDescent,
    ProjectedGradientDescentNumpy,
    ProjectedGradientDescentPyTorch,
    RescalingAutoConjugateGradient,
    ShadowAttack,
    SquareAttack,
    UniversalPerturbation,
    Wasserstein,
)
from art.defences.trainer import (
    AdversarialTrainer,
    AdversarialTrainerAWPPyTorch,
    AdversarialTrainerFBFPyTorch,
    AdversarialTrainerMadryPGD,
    AdversarialTrainerTRADESPyTorch,
)
from torch import nn

from art_hrloss import HRLoss, hr_loss, seeded

EPS = 0.15
ITERATIVE = {"eps": EPS, "eps_step": 0.03, "max_iter": 10, "verbose": False}
AUTO = {"max_iter": 10, "loss_type": None, "verbose": False}

# The attacks whose images are a function of image and label. Each maps (classifier, batch size) to an attack.
DETERMINISTIC = {
    "FGM": lambda c, n=32: FastGradientMethod(c, eps=EPS, batch_size=n),
    "BIM": lambda c, n=32: BasicIterativeMethod(c, batch_size=n, **ITERATIVE),
    "MIM": lambda c, n=32: MomentumIterativeMethod(c, batch_size=n, **ITERATIVE),
    "PGD-torch": lambda c, n=32: ProjectedGradientDescentPyTorch(c, batch_size=n, **ITERATIVE),
    "PGD-numpy": lambda c, n=32: ProjectedGradientDescentNumpy(c, batch_size=n, **ITERATIVE),
}
# Those with a random start, the same for one seed at every batch size.
RANDOM = {
    "PGD-random": lambda c, n=32: ProjectedGradientDescent(c, num_random_init=1, batch_size=n, **ITERATIVE),
    "AutoPGD": lambda c, n=32: AutoProjectedGradientDescent(
        c, eps=EPS, eps_step=2 * EPS, nb_random_init=2, batch_size=n, **AUTO
    ),
}
# ACG and RACG leave out the sign step of L-inf: L2 is where they are attacks.
EUCLIDEAN = {
    "PGD-L2": lambda c, n=32: ProjectedGradientDescent(
        c, norm=2, eps=1.0, eps_step=0.3, max_iter=10, batch_size=n, verbose=False
    ),
    **{
        f"{name}-L2": lambda c, n=32, kind=kind: kind(
            c, norm=2, eps=1.0, eps_step=2.0, nb_random_init=1, batch_size=n, **AUTO
        )
        for name, kind in {
            "AutoPGD": AutoProjectedGradientDescent,
            "ACG": AutoConjugateGradient,
            "RACG": RescalingAutoConjugateGradient,
        }.items()
    },
}
# What else follows loss_gradient. Wasserstein in L2 balls: at its default regularization its Sinkhorn iterations
# overflow in float32.
OTHERS = {
    "Wasserstein": lambda c: Wasserstein(
        c, norm="2", ball="2", eps=1.0, eps_step=0.3, max_iter=10, batch_size=32, verbose=False
    ),
    "FrameSaliency": lambda c: FrameSaliencyAttack(
        c, FastGradientMethod(c, eps=EPS), frame_index=2, batch_size=32, verbose=False
    ),
}


def named(*tables):
    """Parameters with readable ids."""
    return [pytest.param(build, id=name) for table in tables for name, build in table.items()]


@pytest.fixture
def images(digits):
    return digits.x_test[:100].copy()


@pytest.fixture
def labels(digits):
    return digits.y_test[:100].copy()


class Negated(HRLoss):
    """An attack that follows this loss makes the network surer."""

    def forward(self, input, target):
        return -super().forward(input, target)


class Recording(HRLoss):
    """The HR loss, which records every call; its copies write to the same list."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, input, target):
        self.calls.append((self.reduction, len(input)))
        return super().forward(input, target)


def one_hot(y, dtype=np.float32):
    return np.eye(10, dtype=dtype)[y]


def accuracy(classifier, x, y):
    return (classifier.predict(x).argmax(1) == y).mean()


def attacked(attack, x, y):
    with seeded(0):
        return attack.generate(x, y=y)


# ---------------------------------------------------------------------------------------- attacks that follow the loss


@pytest.mark.parametrize("build", named(DETERMINISTIC, RANDOM, EUCLIDEAN, OTHERS))
def test_an_attack_succeeds_inside_its_ball(hr_classifier, images, labels, build):
    classifier = hr_classifier()
    x_adv = attacked(build(classifier), images, labels)
    assert accuracy(classifier, images, labels) > 0.9
    assert accuracy(classifier, x_adv, labels) < (0.4 if build in OTHERS.values() else 0.3)
    assert x_adv.min() >= -1e-6  # in L2 ART clips before it projects, which costs a rounding
    assert x_adv.max() <= 1.0 + 1e-6
    if build in EUCLIDEAN.values():
        assert np.linalg.norm((x_adv - images).reshape(len(images), -1), axis=1).max() <= 1.0 + 1e-5
    elif build not in OTHERS.values():
        assert x_adv.dtype == np.float32
        assert np.abs(x_adv - images).max() <= EPS + 1e-6


@pytest.mark.parametrize("build", named(DETERMINISTIC, RANDOM, EUCLIDEAN, OTHERS))
def test_an_attack_follows_the_attack_loss(hr_classifier, images, labels, build):
    """Along the negated loss the same attacks leave the network right (0.98 without them, a random start included)."""
    classifier = hr_classifier(attack_loss=Negated())
    assert accuracy(classifier, attacked(build(classifier), images, labels), labels) > 0.9


def test_shadow_attack_follows_the_loss(hr_classifier, images, labels):
    """Without labels: a label makes this attack a targeted one, towards that label."""
    outcomes = {}
    for loss in (HRLoss(), Negated()):
        classifier = hr_classifier(attack_loss=loss)
        attack = ShadowAttack(classifier, sigma=0.1, nb_steps=30, batch_size=16, lambda_tv=0.1, verbose=False)
        x_adv = np.concatenate([attacked(attack, image[None], None) for image in images[:10]])
        outcomes[type(loss)] = accuracy(classifier, x_adv, labels[:10])
    assert outcomes[HRLoss] <= 0.2
    assert outcomes[Negated] >= 0.8


def test_a_universal_perturbation_follows_the_loss(hr_classifier, images, labels):
    """One perturbation for all the images, put together from those of the inner attack that succeed."""
    outcomes = {}
    for loss in (HRLoss(), Negated()):
        classifier = hr_classifier(attack_loss=loss)
        attack = UniversalPerturbation(
            classifier, attacker="fgsm", attacker_params={"eps": EPS}, max_iter=2, eps=0.3, verbose=False
        )
        outcomes[type(loss)] = accuracy(classifier, attacked(attack, images, labels), labels)
    assert outcomes[HRLoss] < outcomes[Negated] - 0.2


def test_low_pro_fool_follows_the_loss(hr_classifier, network, images, labels):
    """An attack for tables: the digits as 64 columns. It is targeted, and depends on the size of the gradient."""
    target = (labels + 1) % 10
    outcomes = {}
    for loss in (HRLoss(), Negated()):
        table_network = nn.Sequential(nn.Unflatten(1, (1, 8, 8)), copy.deepcopy(network))
        classifier = hr_classifier(attack_loss=loss, network=table_network, input_shape=(64,))
        attack = LowProFool(classifier, n_steps=30, threshold=None, eta=0.05, lambd=0.5)
        attack.fit_importances(importance_array=np.ones(64))
        x_adv = attacked(attack, images.reshape(-1, 64), one_hot(target)).astype(np.float32)
        outcomes[type(loss)] = accuracy(classifier, x_adv, target)
    assert outcomes[HRLoss] > 0.9
    assert outcomes[Negated] < 0.1


@pytest.mark.parametrize(
    "attack", [ProjectedGradientDescentPyTorch, ProjectedGradientDescentNumpy], ids=["PGD-torch", "PGD-numpy"]
)
def test_a_targeted_attack_reaches_its_target(hr_classifier, images, labels, attack):
    classifier = hr_classifier()
    target = (labels + 1) % 10
    assert accuracy(classifier, images, target) < 0.05
    assert accuracy(classifier, attacked(attack(classifier, targeted=True, **ITERATIVE), images, target), target) > 0.25


# --------------------------------------------------------------------------- what an adversarial image depends on


@pytest.mark.parametrize("build", named(DETERMINISTIC, RANDOM, EUCLIDEAN))
def test_labels_in_every_form_that_art_takes_give_the_same_images(hr_classifier, images, labels, build):
    attack = build(hr_classifier())
    expected = attacked(attack, images, labels)
    for form in (one_hot(labels), one_hot(labels, np.int64), labels[:, None], labels.astype(np.uint16)):
        np.testing.assert_array_equal(attacked(attack, images, form), expected)


@pytest.mark.parametrize("name", [*DETERMINISTIC, *RANDOM, "PGD-L2", "AutoPGD-L2", "ACG-L2"])
def test_images_do_not_depend_on_the_batch_size(hr_classifier, network, images, labels, name):
    """
    Bit for bit, in a float64 network: in float32 a gradient near 0 may round to either sign. Not so RACG and
    Wasserstein, which themselves compute over the batch: RACG a norm, Wasserstein a success rate.
    """
    build = {**DETERMINISTIC, **RANDOM, **EUCLIDEAN}[name]
    classifier = hr_classifier(network=network.double())
    x, y = images[:40], labels[:40]
    expected = attacked(build(classifier, 128), x, y)
    for size in (1, 7):
        np.testing.assert_array_equal(attacked(build(classifier, size), x, y), expected)


@pytest.mark.parametrize("build", named(DETERMINISTIC))
def test_images_do_not_depend_on_their_order(hr_classifier, network, images, labels, build):
    attack = build(hr_classifier(network=network.double()), 7)
    order = np.random.default_rng(0).permutation(len(images))
    shuffled = attacked(attack, images[order], labels[order])
    np.testing.assert_array_equal(shuffled, attacked(attack, images, labels)[order])


def test_fgm_is_one_signed_step_on_h_minus_log_q(hr_classifier, network, images, labels):
    """Against plain PyTorch in float64, where the textbook log-softmax is exact enough."""
    network = network.double()
    x, y = torch.tensor(images).double().requires_grad_(), torch.tensor(labels)
    log_q = network(x).log_softmax(1)
    loss = -(log_q.exp() * log_q).sum(1) - log_q.gather(1, y[:, None]).squeeze(1)
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    expected = (x + EPS * gradient.sign()).clamp(0, 1).detach().numpy()
    x_adv = FastGradientMethod(hr_classifier(network=network), eps=EPS).generate(images, labels)
    np.testing.assert_allclose(x_adv, expected, rtol=0, atol=1e-6)


def test_fgm_of_eps_0_returns_the_images(hr_classifier, images, labels):
    x_adv = FastGradientMethod(hr_classifier(), eps=0.0).generate(images, labels)
    np.testing.assert_array_equal(x_adv, images)


# ------------------------------------------------------------------------- attacks with an objective of their own


@pytest.mark.parametrize(
    "build",
    named(
        {
            "AutoPGD-CE": lambda c: AutoProjectedGradientDescent(
                c, eps=EPS, max_iter=5, nb_random_init=1, loss_type="cross_entropy", verbose=False
            ),
            "AutoPGD-DLR": lambda c: AutoProjectedGradientDescent(
                c, eps=EPS, max_iter=5, nb_random_init=1, loss_type="difference_logits_ratio", verbose=False
            ),
            "DeepFool": lambda c: DeepFool(c, max_iter=10, nb_grads=3, batch_size=100, verbose=False),
            "Square": lambda c: SquareAttack(c, eps=EPS, max_iter=20, nb_restarts=1, verbose=False),
        }
    ),
)
def test_an_attack_with_an_objective_of_its_own_ignores_the_loss(hr_classifier, images, labels, build):
    classifier = hr_classifier()
    x_adv = attacked(build(classifier), images, labels)
    np.testing.assert_array_equal(attacked(build(hr_classifier(attack_loss=Negated())), images, labels), x_adv)
    assert accuracy(classifier, x_adv, labels) < accuracy(classifier, images, labels) - 0.1


# ------------------------------------------------------------------------------ HRLoss in ART's own PyTorchClassifier


@pytest.mark.parametrize("name", [*DETERMINISTIC, *RANDOM])
def test_an_attack_on_a_plain_classifier_succeeds_and_is_weaker(hr_classifier, art_classifier, images, labels, name):
    """
    It follows eq. (3) of each batch. As soon as one image of it is misclassified, that image has nearly all the weight
    in the batch's divergence, and for the others only the entropy is left: they stop at the decision boundary.
    """
    classifiers = art_classifier(), hr_classifier()
    points = [attacked({**DETERMINISTIC, **RANDOM}[name](classifier), images, labels) for classifier in classifiers]
    coupled, per_example = (accuracy(c, x_adv, labels) for c, x_adv in zip(classifiers, points, strict=True))
    assert np.abs(points[0] - images).max() <= EPS + 1e-6
    assert coupled < 0.6
    if name in ("BIM", "MIM", "PGD-torch", "PGD-numpy"):
        assert per_example < coupled - 0.1


@pytest.mark.parametrize("form", [lambda y: y, one_hot], ids=["indices", "one-hot"])
def test_a_plain_classifier_trains_on_the_batch_loss(art_classifier, network, images, labels, form):
    """One step of SGD on eq. (3) of the batch."""
    hr_loss(network(torch.tensor(images)), torch.tensor(labels)).backward()
    expected = [(parameter - 0.1 * parameter.grad).detach().numpy() for parameter in network.parameters()]
    trained = copy.deepcopy(network)
    classifier = art_classifier(network=trained, optimizer=torch.optim.SGD(trained.parameters(), lr=0.1))
    classifier.fit(images, form(labels), nb_epochs=1, batch_size=100)
    for parameter, value in zip(trained.parameters(), expected, strict=True):
        np.testing.assert_allclose(parameter.detach().numpy(), value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_a_plain_classifier_computes_every_reduction(art_classifier, network, images, labels, reduction):
    loss = HRLoss()
    actual = art_classifier(loss).compute_loss(images, labels, reduction=reduction)
    with torch.no_grad():
        expected = hr_loss(network(torch.tensor(images)), torch.tensor(labels), reduction=reduction).numpy()
    assert actual.shape == ((100,) if reduction == "none" else ())
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    assert loss.reduction == "batch"


# ------------------------------------------------------------------------------------------------------- trainers


def inner_attack(classifier):
    return ProjectedGradientDescent(classifier, eps=0.1, eps_step=0.05, max_iter=3, batch_size=128, verbose=False)


def awp(classifier, proxy, mode):
    """AWP perturbs its weights through a second classifier, with a network and an optimizer of its own."""
    attack = inner_attack(classifier)
    return AdversarialTrainerAWPPyTorch(classifier, proxy(), attack, mode=mode, gamma=0.005, beta=1.0, warmup=1)


TRAINERS = {
    "AdversarialTrainer": lambda c, _: AdversarialTrainer(c, inner_attack(c), ratio=0.5),
    "MadryPGD": lambda c, _: AdversarialTrainerMadryPGD(c, eps=0.1, eps_step=0.05, max_iter=3),
    "TRADES": lambda c, _: AdversarialTrainerTRADESPyTorch(c, inner_attack(c), beta=1.0),
    "FBF": lambda c, _: AdversarialTrainerFBFPyTorch(c, eps=0.1),
    "AWP-PGD": lambda c, proxy: awp(c, proxy, "PGD"),
    "AWP-TRADES": lambda c, proxy: awp(c, proxy, "TRADES"),
}


@pytest.fixture
def untrained(hr_classifier, network):
    """Call it for a classifier on a new network. FBF sets its own learning rate, which is too high for Adam."""

    def make(loss=None, *, fbf=False):
        torch.manual_seed(0)
        fresh = type(network)()
        momentum, adam = (
            torch.optim.SGD(fresh.parameters(), momentum=0.9),
            torch.optim.Adam(fresh.parameters(), lr=0.01),
        )
        return hr_classifier(loss, network=fresh, optimizer=momentum if fbf else adam)

    return make


@pytest.mark.parametrize("name", TRAINERS)
def test_a_trainer_trains_with_the_loss_unchanged(untrained, digits, name):
    """Clean and robust accuracy rise far above chance."""
    loss = Recording()
    classifier = untrained(loss, fbf=name == "FBF")
    trainer = TRAINERS[name](classifier, untrained)
    batch_size, epochs = (32, 5) if name == "FBF" else (64, 4)
    with seeded(0):
        trainer.fit(digits.x_train, one_hot(digits.y_train), batch_size=batch_size, nb_epochs=epochs)

    # The parameters learn from eq. (3) of each whole batch; the images are attacked through the per-example loss.
    full, rest = divmod(len(digits.x_train), batch_size)
    learned = sorted(size for reduction, size in loss.calls if reduction == "batch")
    assert learned == sorted(([batch_size] * full + [rest]) * epochs)
    assert {reduction for reduction, _ in loss.calls} == {"batch", "none"}
    assert loss.reduction == "batch"

    x, y = digits.x_test[:200], digits.y_test[:200]
    assert accuracy(classifier, x, y) > 0.5
    assert accuracy(classifier, inner_attack(classifier).generate(x, y), y) > 0.25
