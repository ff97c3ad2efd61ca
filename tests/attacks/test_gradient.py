"""attacks._gradient: the images of ART's own attacks, on real digits, and fewer passes through the network."""

import copy
import logging

import numpy as np
import pytest
import torch
from art.attacks import evasion as art_evasion
from art.attacks.evasion import fast_gradient
from art.attacks.evasion.projected_gradient_descent import projected_gradient_descent_pytorch
from art.defences.postprocessor import Postprocessor
from art.defences.preprocessor import SpatialSmoothing
from art.defences.trainer import AdversarialTrainer, AdversarialTrainerTRADESPyTorch
from art.summary_writer import SummaryWriterDefault
from torch import nn

from art_hrloss import HRClassifier, HRLoss
from art_hrloss.attacks._gradient import AutoProjectedGradientDescent, FastGradientMethod, ProjectedGradientDescent

ARTS = {
    FastGradientMethod: art_evasion.FastGradientMethod,
    ProjectedGradientDescent: art_evasion.ProjectedGradientDescentPyTorch,
    AutoProjectedGradientDescent: art_evasion.AutoProjectedGradientDescent,
}
DEFAULTS = {
    FastGradientMethod: {"eps": 0.15, "batch_size": 32},
    ProjectedGradientDescent: {"eps": 0.15, "eps_step": 0.04, "max_iter": 5, "batch_size": 32, "verbose": False},
    AutoProjectedGradientDescent: {
        "eps": 0.15,
        "eps_step": 0.3,
        "max_iter": 4,
        "nb_random_init": 2,
        "batch_size": 32,
        "verbose": False,
    },
}
EACH = pytest.mark.parametrize("attack", ARTS, ids=lambda attack: attack.__name__)
TWO = {"norm": 2, "eps": 1.2, "eps_step": 0.5}
ONE = {"norm": 1, "eps": 6.0, "eps_step": 2.0}
SIZES = np.linspace(0.05, 0.2, 64, dtype=np.float32).reshape(1, 8, 8)
EACH_ITS_SIZE = np.linspace(0.02, 0.3, 50).reshape(-1, 1, 1, 1)
LEFT_HALF = np.repeat([[True] * 4 + [False] * 4], 8, axis=0)[np.newaxis]
EACH_ITS_HALF = np.stack([np.roll(LEFT_HALF, shift, axis=2) for shift in range(50)]).astype(np.float64)


class Drilled(nn.Module):
    """Dropout and batch norm, in training: attacks find it so, and leave it so."""

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(216, 10)
        )

    def forward(self, x):
        return self.network(x)


class InPlace(nn.Module):
    """A network that begins with a step in place."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x.mul_(0.9))


@pytest.fixture
def batch(digits):
    """50 images, so that 32 does not divide them, and their labels."""
    return digits.x_test[:50].copy(), digits.y_test[:50].copy()


def one_hot(y):
    return np.eye(10, dtype=np.float32)[y]


def made(attack, classifier, x, y, *, seed=0, mask=None, **options):
    """The images that an attack makes, from the same state of all generators."""
    np.random.seed(seed)  # noqa: NPY002  # ART draws from the global one
    torch.manual_seed(seed)
    base = DEFAULTS.get(attack) or DEFAULTS[next(ours for ours, arts in ARTS.items() if arts is attack)]
    return attack(classifier, **{**base, **options}).generate(x, y, **({} if mask is None else {"mask": mask}))


def both(attack, classifier, x, y, **options):
    """The images that it makes, and those that ART's makes."""
    images = made(attack, classifier, x, y, **options)
    arts = made(ARTS[attack], classifier, x, y, **options)
    assert images.dtype == arts.dtype
    assert images.shape == arts.shape
    # The comparison is worth something: most images have changed.
    assert (np.abs(arts - x).reshape(len(x), -1).max(1) > 1e-3).mean() > 0.5
    return images, arts


# ------------------------------------------------------------------------------------------------- the same images


EXACT = [
    pytest.param(FastGradientMethod, {}, id="FGM"),
    pytest.param(FastGradientMethod, {"norm": "inf", "num_random_init": 1}, id="FGM-random"),
    pytest.param(FastGradientMethod, {"num_random_init": 4}, id="FGM-4-random"),
    pytest.param(FastGradientMethod, {"eps": SIZES, "eps_step": SIZES}, id="FGM-eps-per-pixel"),
    pytest.param(FastGradientMethod, {"mask": LEFT_HALF, "num_random_init": 1}, id="FGM-mask"),
    pytest.param(FastGradientMethod, {"mask": EACH_ITS_HALF}, id="FGM-mask-per-image"),
    pytest.param(FastGradientMethod, {"minimal": True, "eps_step": 0.05}, id="FGM-minimal"),
    pytest.param(FastGradientMethod, {"batch_size": 7}, id="FGM-batches-of-7"),
    pytest.param(ProjectedGradientDescent, {}, id="PGD"),
    pytest.param(ProjectedGradientDescent, {"num_random_init": 1}, id="PGD-random"),
    pytest.param(ProjectedGradientDescent, {"num_random_init": 3, "max_iter": 2}, id="PGD-3-random"),
    pytest.param(ProjectedGradientDescent, {"num_random_init": 1, **TWO}, id="PGD-L2"),
    pytest.param(ProjectedGradientDescent, {**TWO, "eps": 1}, id="PGD-L2-whole-eps"),
    pytest.param(ProjectedGradientDescent, {"num_random_init": 1, **ONE}, id="PGD-L1"),
    pytest.param(ProjectedGradientDescent, {**TWO, "norm": 1.5}, id="PGD-L1.5"),
    pytest.param(ProjectedGradientDescent, {"decay": 0.9}, id="PGD-momentum"),
    pytest.param(ProjectedGradientDescent, {"decay": 0.5, **TWO}, id="PGD-momentum-L2"),
    pytest.param(ProjectedGradientDescent, {"eps": SIZES, "eps_step": SIZES / 3}, id="PGD-eps-per-pixel"),
    pytest.param(
        ProjectedGradientDescent, {"eps": EACH_ITS_SIZE, "eps_step": EACH_ITS_SIZE / 3}, id="PGD-eps-per-image"
    ),
    pytest.param(
        ProjectedGradientDescent,
        {"norm": 2, "eps": 9 * EACH_ITS_SIZE, "eps_step": 3 * EACH_ITS_SIZE},
        id="PGD-L2-eps-per-image",
    ),
    pytest.param(ProjectedGradientDescent, {"mask": LEFT_HALF, "num_random_init": 1}, id="PGD-mask"),
    pytest.param(ProjectedGradientDescent, {"mask": EACH_ITS_HALF, **TWO}, id="PGD-L2-mask-per-image"),
    pytest.param(ProjectedGradientDescent, {"random_eps": True}, id="PGD-random-eps"),
    pytest.param(ProjectedGradientDescent, {"batch_size": 7, "max_iter": 2}, id="PGD-batches-of-7"),
    pytest.param(AutoProjectedGradientDescent, {"max_iter": 8}, id="AutoPGD"),
    pytest.param(AutoProjectedGradientDescent, {"max_iter": 1}, id="AutoPGD-1-step"),
    pytest.param(AutoProjectedGradientDescent, {"max_iter": 20, "eps": 0.1, "nb_random_init": 1}, id="AutoPGD-20"),
    pytest.param(AutoProjectedGradientDescent, {"mask": LEFT_HALF, "eps": 0.25}, id="AutoPGD-mask"),
    pytest.param(
        AutoProjectedGradientDescent, {"batch_size": 17, "nb_random_init": 4, "max_iter": 3}, id="AutoPGD-4-random"
    ),
]
# From the second attempt on ART hands tensors to NumPy, which warns of it.
TENSORS_TO_NUMPY = "ignore:__array:DeprecationWarning"
ROUNDED = [
    pytest.param(FastGradientMethod, {"eps": EACH_ITS_SIZE, "eps_step": EACH_ITS_SIZE}, id="FGM-eps-per-image-float64"),
    pytest.param(FastGradientMethod, {**TWO, "num_random_init": 1}, id="FGM-L2"),
    pytest.param(FastGradientMethod, ONE, id="FGM-L1"),
    pytest.param(FastGradientMethod, {**TWO, "norm": 3}, id="FGM-L3"),
    pytest.param(AutoProjectedGradientDescent, {**TWO, "eps_step": 2.4, "max_iter": 3}, id="AutoPGD-L2"),
    pytest.param(AutoProjectedGradientDescent, {**ONE, "eps_step": 12.0, "max_iter": 3}, id="AutoPGD-L1"),
]


@pytest.mark.filterwarnings(TENSORS_TO_NUMPY)
@pytest.mark.parametrize(("attack", "options"), EXACT)
@pytest.mark.parametrize("targeted", [False, True], ids=["untargeted", "targeted"])
def test_images_are_arts_bit_for_bit(hr_classifier, batch, attack, options, targeted):
    x, y = batch
    images, arts = both(attack, hr_classifier(), x, (y + 1) % 10 if targeted else y, targeted=targeted, **options)
    np.testing.assert_array_equal(images, arts)


@pytest.mark.parametrize(("attack", "options"), ROUNDED)
@pytest.mark.parametrize("targeted", [False, True], ids=["untargeted", "targeted"])
def test_images_are_arts_but_for_rounding(hr_classifier, batch, attack, options, targeted):
    x, y = batch
    images, arts = both(attack, hr_classifier(), x, (y + 1) % 10 if targeted else y, targeted=targeted, **options)
    np.testing.assert_allclose(images, arts, rtol=0, atol=1e-6)


@EACH
@pytest.mark.parametrize(
    "labels",
    [
        pytest.param(lambda y: None, id="none"),
        pytest.param(one_hot, id="one-hot"),
        pytest.param(lambda y: one_hot(y).astype(np.int64), id="one-hot-int64"),
        pytest.param(lambda y: y[:, np.newaxis], id="column"),
        pytest.param(lambda y: 0.7 * one_hot(y) + 0.03, id="probabilities"),
    ],
)
def test_labels_in_every_form(hr_classifier, batch, attack, labels):
    x, y = batch
    np.testing.assert_array_equal(*both(attack, hr_classifier(), x, labels(y)))


@EACH
@pytest.mark.parametrize(
    "loss",
    [nn.CrossEntropyLoss(), nn.MultiMarginLoss(margin=30), nn.MSELoss()],
    ids=["cross-entropy", "multi-margin", "one-hot"],
)
def test_other_losses(hr_classifier, batch, attack, loss):
    np.testing.assert_array_equal(*both(attack, hr_classifier(loss), *batch))


@EACH
@pytest.mark.parametrize("dtype", [np.float64, np.uint8, np.int64, np.float16])
def test_images_of_other_dtypes(hr_classifier, network, batch, attack, dtype):
    """In whole numbers 0 to 16, or such in float64 that float32 must round."""
    x, y = batch
    x = (16 * x).astype(dtype) + (dtype(0.1) if dtype is np.float64 else dtype(0))
    classifier = hr_classifier(network=nn.Sequential(Scale(1 / 16), network), clip_values=(0, 17))
    options = {"eps": 2.4, **({} if attack is FastGradientMethod else {"eps_step": 1.3})}
    np.testing.assert_array_equal(*both(attack, classifier, x, y, **options))


class Scale(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


@EACH
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"clip_values": None}, id="no-clip"),
        pytest.param({"clip_values": (np.zeros((1, 8, 8)), SIZES + 0.8)}, id="clip-arrays"),
        pytest.param({"preprocessing": None}, id="no-preprocessing"),
        pytest.param({"preprocessing": (0.3, 0.7)}, id="standardised"),
        pytest.param({"preprocessing": (SIZES, SIZES + 0.5)}, id="standardised-by-arrays"),
    ],
)
def test_classifiers_made_with_other_options(hr_classifier, batch, attack, options):
    np.testing.assert_array_equal(*both(attack, hr_classifier(**options), *batch))


@EACH
@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda network: Drilled().train(), id="dropout-batch-norm"),
        pytest.param(InPlace, id="in-place"),
        pytest.param(lambda network: network.double(), id="float64"),
        pytest.param(lambda network: nn.Sequential(network, nn.Identity()), id="sequential"),
    ],
)
def test_other_networks(hr_classifier, network, batch, attack, build):
    torch.manual_seed(0)
    x, _ = batch
    classifier = hr_classifier(network=build(network))
    y = classifier.predict(x).argmax(1)
    np.testing.assert_array_equal(*both(attack, classifier, x, y))


def test_preprocessing_in_numpy(hr_classifier, batch):
    """ProjectedGradientDescentPyTorch refuses it, as ART's does."""
    classifier = hr_classifier(preprocessing_defences=SpatialSmoothing(window_size=3, channels_first=True))
    for attack in (FastGradientMethod, AutoProjectedGradientDescent):
        np.testing.assert_array_equal(*both(attack, classifier, *batch))
    with pytest.raises(NotImplementedError):
        ProjectedGradientDescent(classifier)


def test_auto_pgd_stops_where_every_loss_is_0(hr_classifier, network, batch):
    """As the loss of a network does that is sure of itself beyond float32."""
    x, y = batch
    classifier = hr_classifier(nn.CrossEntropyLoss(), network=nn.Sequential(network, Scale(1e4)))
    sure = np.flatnonzero(classifier.predict(x).argmax(1) == y)[:10]
    images, arts = (
        made(attack, classifier, x[sure], y[sure], eps=1e-4, eps_step=1e-4, nb_random_init=1)
        for attack in (AutoProjectedGradientDescent, art_evasion.AutoProjectedGradientDescent)
    )
    assert classifier.compute_loss(x[sure], y[sure]).max() == 0
    np.testing.assert_array_equal(images, arts)


@pytest.mark.parametrize("attack", [FastGradientMethod, ProjectedGradientDescent])
@pytest.mark.parametrize("norm", [np.inf, 2])
def test_nan_in_a_gradient_counts_as_0_and_is_warned_of(hr_classifier, network, batch, attack, norm, caplog):
    """The root at 0 has an infinite slope, times the 0 of its square."""
    x, y = batch
    classifier = hr_classifier(network=nn.Sequential(Rooted(), network))
    assert np.isnan(classifier.loss_gradient(x, y)).any()
    images, arts = both(attack, classifier, x, y, norm=norm)
    np.testing.assert_allclose(images, arts, rtol=0, atol=0 if norm == np.inf else 1e-6)
    assert {record.name for record in caplog.records} == {
        (fast_gradient if attack is FastGradientMethod else projected_gradient_descent_pytorch).logger.name
    }
    assert "NaN" in caplog.text
    caplog.clear()
    made(attack, hr_classifier(), x, y, norm=norm)
    assert caplog.records == []


class Rooted(nn.Module):
    def forward(self, x):
        return (x * x).sqrt()


# ---------------------------------------------------------------------------------------- how often the network runs


@pytest.fixture
def passes(network):
    """The sizes of the batches that go forward through the network, and back; and the network."""
    forward, back = [], []

    def note(module, inputs, output):
        forward.append(len(output))
        if output.requires_grad:
            output.register_hook(lambda gradient: back.append(len(gradient)))

    network.register_forward_hook(note)
    return network, forward, back


@pytest.mark.parametrize(
    ("attack", "options", "forward", "back"),
    [
        pytest.param(FastGradientMethod, {}, [32, 18], [32, 18], id="FGM"),
        pytest.param(FastGradientMethod, {"num_random_init": 1}, [32, 18], [32, 18], id="FGM-random"),
        pytest.param(ProjectedGradientDescent, {}, [32] * 5 + [18] * 5, [32] * 5 + [18] * 5, id="PGD"),
        # The clean prediction once, and one of each further attempt.
        pytest.param(
            ProjectedGradientDescent,
            {"num_random_init": 3, "batch_size": 50},
            [50] * 5 + [50] + 2 * ([50] * 5 + [50]),
            [50] * 15,
            id="PGD-3-random",
        ),
    ],
)
def test_passes_through_the_network(hr_classifier, passes, batch, attack, options, forward, back):
    network, went, came = passes
    made(attack, hr_classifier(network=network), *batch, **options)
    assert (went, came) == (forward, back)


def test_passes_of_auto_pgd(hr_classifier, passes, batch):
    """A prediction, and then each point once: the start and the end of every step, with no gradient at the last."""
    x, y = batch
    network, forward, back = passes
    classifier = hr_classifier(network=network)
    x = x[classifier.predict(x).argmax(1) == y][:40]
    y = classifier.predict(x).argmax(1)
    attack = AutoProjectedGradientDescent(classifier, **DEFAULTS[AutoProjectedGradientDescent])
    attack.set_params(nb_random_init=1, eps=0.01, eps_step=0.02, max_iter=8)
    del forward[:], back[:]
    attack.generate(x, y)
    assert forward == [40] + [32] * 9 + [8] * 9
    assert back == [32] * 8 + [8] * 8


def test_the_success_rate_is_logged_for_who_reads_the_log(hr_classifier, batch, caplog):
    classifier = hr_classifier()
    quiet = made(ProjectedGradientDescent, classifier, *batch)
    assert "Success rate" not in caplog.text
    with caplog.at_level(logging.INFO, projected_gradient_descent_pytorch.logger.name):
        np.testing.assert_array_equal(made(ProjectedGradientDescent, classifier, *batch), quiet)
        rate = caplog.messages[-1]
        made(art_evasion.ProjectedGradientDescentPyTorch, classifier, *batch)
    assert rate == caplog.messages[-1]
    assert rate.startswith("Success rate of attack:")


# ------------------------------------------------------------------------------------------------ what is left to ART


class Halved(HRClassifier):
    """A classifier with gradients of its own."""

    def loss_gradient(self, x, y, *args, **kwargs):
        gradient = super().loss_gradient(x, y, *args, **kwargs)
        gradient[..., :4] = 0
        return gradient


class Shifted(HRClassifier):
    """A classifier with predictions of its own."""

    def predict(self, x, *args, **kwargs):
        return np.roll(super().predict(x, *args, **kwargs), 1, axis=1)


@EACH
@pytest.mark.parametrize("kind", [Halved, Shifted])
def test_classifiers_that_answer_for_themselves(network, batch, attack, kind):
    x, _ = batch
    classifier = kind(network, HRLoss(), (1, 8, 8), 10, clip_values=(0, 1), device_type="cpu")
    images, arts = both(attack, classifier, x, classifier.predict(x).argmax(1), eps=0.1)
    np.testing.assert_array_equal(images, arts)
    if kind is Halved and attack is not AutoProjectedGradientDescent:
        assert (images[..., :4] == x[..., :4]).all()


@EACH
def test_a_method_replaced_on_the_object(hr_classifier, batch, attack):
    classifier, asked = hr_classifier(), []
    own = classifier.loss_gradient
    classifier.loss_gradient = lambda x, y, **options: asked.append(len(x)) or own(x, y, **options)
    made(attack, classifier, *batch)
    assert asked


@EACH
def test_arts_own_classifier(art_classifier, batch, attack):
    for loss in (nn.CrossEntropyLoss(), HRLoss()):
        np.testing.assert_array_equal(*both(attack, art_classifier(loss), *batch))


@pytest.mark.parametrize("loss_type", ["cross_entropy", "difference_logits_ratio"])
def test_arts_own_losses(hr_classifier, batch, loss_type):
    np.testing.assert_array_equal(
        *both(AutoProjectedGradientDescent, hr_classifier(), *batch, loss_type=loss_type, max_iter=4)
    )


class Rolled(Postprocessor):
    """Each logit handed to the next class."""

    params = []  # noqa: RUF012  # ART's own declaration

    def __init__(self):
        super().__init__(is_fitted=True, apply_fit=False, apply_predict=True)

    def __call__(self, preds):
        return np.roll(preds, 1, axis=1)


@pytest.mark.filterwarnings(TENSORS_TO_NUMPY)
@EACH
def test_postprocessing_is_in_the_predictions(hr_classifier, batch, attack):
    """Here an attempt has succeeded where the network itself is right, or wrong in another way."""
    classifier = hr_classifier(postprocessing_defences=Rolled())
    options = {"eps": 0.5 if attack is FastGradientMethod else 0.1}
    restarts = {"nb_random_init" if attack is AutoProjectedGradientDescent else "num_random_init": 3}
    y = classifier.predict(batch[0]).argmax(1)
    np.testing.assert_array_equal(*both(attack, classifier, batch[0], y, **options, **restarts))


@pytest.mark.parametrize("attack", [FastGradientMethod, ProjectedGradientDescent])
def test_a_summary_writer_is_told_of_every_step(hr_classifier, batch, attack):
    told = []

    class Noting(SummaryWriterDefault):
        def __init__(self):
            """Without the files of the one it is."""

        def update(self, batch_id, global_step, **kwargs):
            told.append((batch_id, global_step))

        def reset(self):
            pass

    made(attack, hr_classifier(), *batch, summary_writer=Noting())
    steps = 1 if attack is FastGradientMethod else 5
    assert told == [(batch_id, step) for batch_id in range(2) for step in range(steps)]


# ----------------------------------------------------------------------------------------- ART's places for its attacks


@EACH
def test_it_is_arts_attack_in_all_but_speed(hr_classifier, attack):
    classifier = hr_classifier()
    one = attack(classifier, **DEFAULTS[attack])
    assert isinstance(one, ARTS[attack])
    assert attack.__name__ in (ARTS[attack].__name__, "ProjectedGradientDescent")
    assert one.attack_params == ARTS[attack].attack_params
    one.set_params(eps=0.2, targeted=True)
    assert (one.eps, one.targeted) == (0.2, True)
    with pytest.raises(ValueError, match="need to be provided for a targeted attack"):
        one.generate(np.zeros((1, 1, 8, 8), dtype=np.float32))
    with pytest.raises((ValueError, TypeError)):
        one.set_params(eps=-1.0)


@pytest.mark.parametrize("trainer", [AdversarialTrainer, AdversarialTrainerTRADESPyTorch], ids=["Madry", "TRADES"])
@pytest.mark.parametrize("attack", [FastGradientMethod, ProjectedGradientDescent])
def test_arts_trainers_take_it(hr_classifier, digits, trainer, attack):
    """And are given the images that ART's gives them. One step, for training adds up in the order memory lies in."""
    given, learned = [], []
    for one in (attack, ARTS[attack]):
        classifier = hr_classifier(nn.CrossEntropyLoss())
        inner = one(classifier, **{**DEFAULTS[attack], "batch_size": 64})
        made_inside = inner.generate
        inner.generate = lambda x, y=None, made_inside=made_inside: given.append(made_inside(x, y)) or given[-1]
        options = {"ratio": 1.0} if trainer is AdversarialTrainer else {"beta": 1.0}
        np.random.seed(0)  # noqa: NPY002
        torch.manual_seed(0)
        x, y = digits.x_train[:64], one_hot(digits.y_train[:64])
        trainer(classifier, inner, **options).fit(x, y, batch_size=64, nb_epochs=1)
        learned.append(classifier.predict(digits.x_test[:50]))
    np.testing.assert_array_equal(*given)
    np.testing.assert_allclose(*learned, rtol=0, atol=1e-4)
    assert not np.allclose(learned[0], hr_classifier().predict(digits.x_test[:50]), atol=1e-2)


@EACH
def test_network_and_arrays_are_left_alone(hr_classifier, batch, attack):
    torch.manual_seed(0)
    network = Drilled().train()
    network.network[1].eval()
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    state, modes = copy.deepcopy(network.state_dict()), [module.training for module in network.modules()]
    classifier = hr_classifier(network=network)
    x, y = batch
    attack_object = attack(classifier, **DEFAULTS[attack])  # ART's Auto-PGD predicts here already
    network.train()
    network.network[1].eval()
    given, labels = x.copy(), y.copy()
    attack_object.generate(given, labels)
    np.testing.assert_array_equal(given, x)
    np.testing.assert_array_equal(labels, y)
    assert all(bool((parameter.grad == 7.0).all()) for parameter in network.parameters())
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    if attack is not AutoProjectedGradientDescent:  # which predicts, and ART's predict leaves evaluation mode behind
        assert [module.training for module in network.modules()] == modes


class Remembering(HRClassifier):
    """A classifier that keeps what attacks ask and what they are told, and copies of it."""

    def evaluate(self, x, labels, *, gradient=True):
        point = super().evaluate(x, labels, gradient=gradient)
        kept = [x, *(part for part in point if part is not None)]
        self.told = [*getattr(self, "told", []), *((part, part.clone()) for part in kept)]
        return point


@EACH
@pytest.mark.parametrize("options", [{}, {"norm": 2, "eps": 1.2}], ids=["Linf", "L2"])
@pytest.mark.parametrize("targeted", [False, True], ids=["untargeted", "targeted"])
def test_steps_in_place_leave_alone_what_is_not_theirs(network, batch, attack, options, targeted):
    """Points that were evaluated, and what was said of them, are the classifier's."""
    classifier = Remembering(network, HRLoss(), (1, 8, 8), 10, clip_values=(0, 1), device_type="cpu")
    x, y = batch
    made(attack, classifier, x, (y + 1) % 10 if targeted else y, targeted=targeted, **options)
    assert len(classifier.told) >= 8
    assert all(torch.equal(part, copied) for part, copied in classifier.told)


@EACH
@pytest.mark.parametrize("size", [1, 7])
def test_images_do_not_depend_on_the_batch_size(hr_classifier, network, batch, attack, size):
    """In float64, where a gradient near 0 does not round to either sign."""
    classifier = hr_classifier(network=network.double())
    x, y = batch[0][:10], batch[1][:10]
    together = made(attack, classifier, x, y, batch_size=10)
    np.testing.assert_array_equal(made(attack, classifier, x, y, batch_size=size), together)


def test_no_images_at_all(hr_classifier, batch):
    x, y = batch[0][:0], batch[1][:0]
    for attack in (FastGradientMethod, ProjectedGradientDescent, AutoProjectedGradientDescent):
        assert made(attack, hr_classifier(), x, y).shape == (0, 1, 8, 8)


def test_pgd_of_no_steps_gives_the_images_back(hr_classifier, batch):
    x, y = batch
    images = made(ProjectedGradientDescent, hr_classifier(), x, y, max_iter=0, num_random_init=1)
    np.testing.assert_array_equal(images, x)
    assert not np.shares_memory(images, x)
