"""Tests of attacks._base, for the three gradient attacks: inputs of all forms, restarts, keep_first and loss."""

import copy

import numpy as np
import pytest
import torch
from art.attacks import evasion
from art.defences.postprocessor import Postprocessor
from art.defences.preprocessor import SpatialSmoothing
from art.estimators.classification import PyTorchClassifier
from testing.networks import Curve, DropoutAndBatchNorm, in_place
from torch import nn

from art_hrloss import HRClassifier, HRLoss, attack_view
from art_hrloss.attacks import (
    AutoProjectedGradientDescent,
    FastGradientMethod,
    MarginLoss,
    ProjectedGradientDescent,
    attack_loss,
    seeded,
)
from art_hrloss.attacks._constraints import feasible
from benchmarks.autoattack.masked import scaled

LOSSES = ("ce", "hr", "margin", "dlr")
SIZES = np.linspace(0.05, 0.2, 64, dtype=np.float32).reshape(1, 8, 8)
# From the second attempt on, ART passes tensors to NumPy, which warns.
TENSORS_TO_NUMPY = "ignore:__array:DeprecationWarning"
norms = pytest.mark.parametrize(("norm", "eps"), [(np.inf, 0.1), (2, 0.6), (1, 3.0)], ids=["inf", "2", "1"])
STOPPING = {"first": {"keep_first": True}, "2": {"restarts": 2}, "2-first": {"restarts": 2, "keep_first": True}}
stopping = pytest.mark.parametrize("options", STOPPING.values(), ids=STOPPING)


def are_misclassified(classifier, images, labels):
    return classifier.predict(images).argmax(1) != labels


def one_hot(y):
    return np.eye(10, dtype=np.float32)[y]


def random_starts(kind, number):
    return {"nb_random_init" if kind is AutoProjectedGradientDescent else "num_random_init": number}


def right(classifier, digits, n):
    """Correctly classified images, and their labels."""
    rows = np.flatnonzero(~are_misclassified(classifier, digits.x_test, digits.y_test))[:n]
    return digits.x_test[rows], digits.y_test[rows]


# ------------------------------------------------------------------------------------ equality with ART for all inputs


def smoothed():
    return SpatialSmoothing(window_size=3, channels_first=True)


# Options of a classifier: also `loss`, and `build`, which constructs its network.
CLASSIFIERS = {
    "cross-entropy": {"loss": nn.CrossEntropyLoss()},
    "multi-margin": {"loss": nn.MultiMarginLoss(margin=30)},
    "one-hot": {"loss": nn.MSELoss()},
    "no clip values": {"clip_values": None},
    "clip values as arrays": {"clip_values": (np.zeros((1, 8, 8)), SIZES + 0.95)},
    "no preprocessing": {"preprocessing": None},
    "standardised": {"preprocessing": (0.3, 0.7)},
    "standardised by arrays": {"preprocessing": (SIZES, SIZES + 0.5)},
    "preprocessing in NumPy": {"preprocessing_defences": smoothed()},
    "dropout and batch norm": {"build": lambda network: DropoutAndBatchNorm().train()},
    "in place": {"build": in_place},
    "float64": {"build": lambda network: network.double()},
    "sequential": {"build": lambda network: nn.Sequential(network, nn.Identity())},
}


@pytest.mark.parametrize("options", CLASSIFIERS.values(), ids=CLASSIFIERS)
def test_images_equal_those_of_art_for_all_classifiers(hr_classifier, network, both, x, kind, options):
    if "preprocessing_defences" in options and kind is ProjectedGradientDescent:
        pytest.skip("ART's own in torch refuses it: see the test of that below")
    torch.manual_seed(0)
    classifier = hr_classifier(
        options.get("loss"),
        network=options.get("build", nn.Sequential)(network),
        **{name: value for name, value in options.items() if name not in ("loss", "build")},
    )
    np.testing.assert_array_equal(*both(kind, classifier, x, classifier.predict(x).argmax(1)))


@pytest.mark.parametrize("dtype", [np.float64, np.uint8, np.float16])
def test_images_equal_those_of_art_for_all_forms_of_images_and_labels(hr_classifier, network, both, x, y, kind, dtype):
    """Images as whole numbers from 0 to 16, or as float64 numbers that float32 must round."""
    labels = {np.float64: None, np.uint8: one_hot(y).astype(np.int64), np.float16: 0.7 * one_hot(y) + 0.03}[dtype]
    x = (16 * x).astype(dtype) + (dtype(0.1) if dtype is np.float64 else dtype(0))
    classifier = hr_classifier(network=nn.Sequential(scaled(nn.Identity(), 1 / 16), network), clip_values=(0, 17))
    options = {"eps": 2.4, **({} if kind is FastGradientMethod else {"eps_step": 1.3})}
    np.testing.assert_array_equal(*both(kind, classifier, x, labels, **options))


def test_pgd_supports_preprocessing_in_numpy(hr_classifier, x, y):
    classifier = hr_classifier(preprocessing_defences=smoothed())
    steps = {"eps": 0.1, "eps_step": 0.04, "max_iter": 5, "verbose": False}
    ours = ProjectedGradientDescent(classifier, **steps).generate(x, y)
    np.testing.assert_array_equal(ours, evasion.ProjectedGradientDescentNumpy(classifier, **steps).generate(x, y))


class Rolled(Postprocessor):
    """A postprocessing defence that moves each logit to the next class."""

    params = []  # noqa: RUF012  # ART's own declaration

    def __init__(self):
        super().__init__(is_fitted=True, apply_fit=False, apply_predict=True)

    def __call__(self, preds):
        return np.roll(preds, 1, axis=1)


@pytest.mark.filterwarnings(TENSORS_TO_NUMPY)
def test_postprocessing_is_part_of_the_predictions(hr_classifier, both, attacked, x, kind):
    """Success is judged by the postprocessed outputs, which may differ from the outputs of the network."""
    classifier = hr_classifier(postprocessing_defences=Rolled())
    y, eps = classifier.predict(x).argmax(1), 0.5 if kind is FastGradientMethod else 0.1
    np.testing.assert_array_equal(*both(kind, classifier, x, y, eps=eps, **random_starts(kind, 3)))
    # With keep_first, no image is adversarial before the attack, and all images are adversarial after it.
    assert (attacked(kind, classifier, x, y, eps=1e-3, keep_first=True) != x).any((1, 2, 3)).all()
    np.testing.assert_array_equal(attacked(kind, classifier, x, (y - 1) % 10, keep_first=True), x)


def test_no_images_at_all(hr_classifier, attacked, x, y, kind):
    for options in ({}, {"keep_first": True}):
        assert attacked(kind, hr_classifier(), x[:0], y[:0], **options).shape == (0, 1, 8, 8)


def test_it_is_a_subclass_of_the_attack_of_art_with_additional_parameters(hr_classifier, attack, arts, kind):
    instance = attack(kind, hr_classifier())
    assert isinstance(instance, arts[kind])
    assert set(instance.attack_params) >= {"loss", "restarts", "keep_first", *arts[kind].attack_params} - (
        {"minimal"} if kind is ProjectedGradientDescent else set()  # ART's attack accepts and ignores it
    )
    instance.set_params(eps=np.float32(0.25), targeted=True, loss="margin")
    assert (instance.eps, instance.targeted, instance.loss) == (0.25, True, "margin")


# -------------------------------------------------------------------------------------------------------- side effects


@pytest.mark.parametrize("make", ["hr_classifier", "art_classifier"])
@pytest.mark.filterwarnings(TENSORS_TO_NUMPY)
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (kind, options)
        for kind in (FastGradientMethod, ProjectedGradientDescent, AutoProjectedGradientDescent)
        for options in ({}, {"keep_first": True, "loss": "ce"}, random_starts(kind, 3))
    ]
    + [(FastGradientMethod, {"minimal": True})],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_network_and_arrays_are_not_modified(request, attack, x, y, kind, make, options):
    torch.manual_seed(0)
    network = DropoutAndBatchNorm().train()
    network.network[1].eval()
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    state, modes = copy.deepcopy(network.state_dict()), [module.training for module in network.modules()]
    classifier = request.getfixturevalue(make)(nn.CrossEntropyLoss(), network=network)
    instance = attack(kind, classifier, **options)
    for labels in (y, None):
        images = x.copy()
        images.setflags(write=False)
        instance.generate(images, labels)
        np.testing.assert_array_equal(images, x)
        assert all(bool((parameter.grad == 7.0).all()) for parameter in network.parameters())
        assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
        assert [module.training for module in network.modules()] == modes


class Recording(HRClassifier):
    """A subclass that records copies of the images that attacks evaluate."""

    def evaluate(self, x, labels, **options):
        point = super().evaluate(x, labels, **options)
        parts = [x, *(part for part in point if part is not None)]
        self.recorded = [*getattr(self, "recorded", []), *((part, part.clone()) for part in parts)]
        self.points = [*getattr(self, "points", []), x.clone()]
        return point


@norms
@pytest.mark.parametrize("more", [{}, {"targeted": True}, {"keep_first": True}], ids=str)
def test_observers_and_subclasses_get_all_iterates_unmodified(network, attacked, x, y, kind, norm, eps, more):
    classifier = Recording(network, HRLoss(), (1, 8, 8), 10, clip_values=(0, 1), device_type="cpu")
    observed = []
    with classifier.observed_by(lambda x, labels, point: observed.append((x.clone(), point.logits.clone()))):
        images = attacked(kind, classifier, x, y, norm=norm, eps=eps, eps_step=eps / 4, **more)
    assert all(torch.equal(part, copied) for part, copied in classifier.recorded)
    assert len(observed) == len(classifier.points) >= 2
    assert all(torch.equal(points, seen) for points, (seen, _) in zip(classifier.points, observed, strict=True))
    if more.get("keep_first"):  # every returned image has been evaluated, or was misclassified before the attack
        seen = {image.tobytes() for points, _ in observed for image in points.numpy()}
        assert all(image.tobytes() in seen for image in images[~are_misclassified(classifier, x, y)])


# ----------------------------------------------------------------------- a linear network, whose worst case is known

SHAPE, SIZE = (1, 5, 6), 30
DIRECTION = np.random.default_rng(0).normal(size=SIZE)


def linear(offset, clip_values, scale=1):
    """Return a classifier with logits (-s, s, -100), s = scale (w x - offset) / 2; DLR needs a third class."""
    layer = nn.Linear(SIZE, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(scale / 2 * np.outer([-1, 1, 0], DIRECTION)))
        layer.bias.copy_(torch.tensor([scale / 2 * offset, -scale / 2 * offset, -100.0]))
    network = nn.Sequential(nn.Flatten(), layer)
    return PyTorchClassifier(network, nn.CrossEntropyLoss(), SHAPE, 3, clip_values=clip_values, device_type="cpu")


def greatest_change(x, eps, norm, clip_values):
    """Return the largest w d over all feasible d of the norm, exactly or by bisection."""
    low, high = (-np.inf, np.inf) if clip_values is None else (clip_values[0] - x, clip_values[1] - x)
    if norm == np.inf:
        return np.where(DIRECTION > 0, np.minimum(eps, high), np.maximum(-eps, low)) @ DIRECTION + np.zeros(len(x))
    if clip_values is None:
        return np.full(len(x), eps * np.linalg.norm(DIRECTION))
    # By Lagrange, the best d of its size is clip(t w): each pixel moves along w as far as the range allows.
    least, most = np.zeros((len(x), 1)), np.full((len(x), 1), 1e3)
    for _ in range(100):
        t = (least + most) / 2
        too_far = np.linalg.norm(np.clip(t * DIRECTION, low, high), axis=1, keepdims=True) > eps
        least, most = np.where(too_far, least, t), np.where(too_far, t, most)
    return np.clip(least * DIRECTION, low, high) @ DIRECTION


@pytest.mark.parametrize(
    ("loss", "clip_values", "scale"),
    [("ce", None, 20), ("hr", None, 1), ("margin", None, 1), ("dlr", None, 20), ("ce", (0.0, 1.0), 1)],
    ids=str,
)
@pytest.mark.parametrize(("norm", "eps"), [(np.inf, 0.1), (2, 0.4)], ids=["inf", "2"])
@pytest.mark.parametrize("kind", [ProjectedGradientDescent, AutoProjectedGradientDescent])
def test_it_reaches_the_closed_form_of_a_linear_network(kind, norm, eps, clip_values, scale, loss):
    """24 images, about half of which have an adversarial example; with the scale, float32 cross-entropy rounds to 0."""
    random = np.random.default_rng(1)
    points = random.uniform(0, 1, (4000, SIZE))
    points = np.where(random.random(points.shape) < 0.3, points.round(), points).astype(np.float32).astype(np.float64)
    change = greatest_change(points, eps, norm, clip_values)
    offset = np.median(points @ DIRECTION) + change.mean()
    margin = offset - points @ DIRECTION
    near = np.flatnonzero((np.abs(margin / change - 1) > 0.004) & (np.abs(margin / change - 1) < 0.05))[:24]
    points, margin, change = points[near], margin[near], change[near]
    assert 5 < (margin < change).sum() < 19
    classifier = linear(offset, clip_values, scale)
    x, y = points.reshape(-1, *SHAPE).astype(np.float32), np.zeros(24, dtype=np.int64)
    options = {"eps_step": 2 * eps, "max_iter": 60}
    if kind is ProjectedGradientDescent:  # ART's projection into ball and range needs small steps in norm 2
        options = (
            {"eps_step": 0.05 * eps, "max_iter": 60} if norm == np.inf else {"eps_step": 0.03 * eps, "max_iter": 200}
        )
    with seeded(0):
        attack = kind(classifier, eps=eps, norm=norm, loss=loss, restarts=1, keep_first=True, verbose=False, **options)
        images = attack.generate(x, y)
    np.testing.assert_array_equal(are_misclassified(classifier, images, y), margin < change)
    assert feasible(images, x, eps, norm, clip_values).all()
    gained = (images.reshape(24, -1) - points) @ DIRECTION
    assert (gained[margin > change] > 0.99 * change[margin > change]).all()
    assert (gained <= change * (1 + 1e-5)).all()


# ---------------------------------------------------------------------------------------------------------- keep_first


def one_pixel(f):
    return PyTorchClassifier(Curve(f), nn.CrossEntropyLoss(), (1,), 2, clip_values=(0.0, 1.0), device_type="cpu")


def test_pgd_returns_the_first_adversarial_iterate_if_the_last_is_not_adversarial():
    """Class 1 is the interval (0.5, 0.56). The gradient is positive everywhere, so paths end beyond it, at 0.8."""
    classifier = one_pixel(lambda x: torch.where(x < 0.56, 5 * (x - 0.5), x - 2))
    x, y = np.full((40, 1), 0.3, dtype=np.float32), np.zeros(40, dtype=np.int64)
    options = {"eps": 0.5, "eps_step": 0.04, "max_iter": 40, "num_random_init": 1, "verbose": False}
    with seeded(0):
        last = ProjectedGradientDescent(classifier, **options).generate(x, y)
    np.testing.assert_allclose(last, 0.8, rtol=1e-6)
    with seeded(0):
        first = ProjectedGradientDescent(classifier, keep_first=True, **options).generate(x, y)
    with seeded(0):
        start = np.clip(0.3 + np.random.uniform(-0.5, 0.5, (40, 1)), 0, 1)  # noqa: NPY002
    expected = []
    for (point,) in start:
        for _ in range(40):
            if 0.5 < point < 0.56:
                break
            point = min(point + 0.04, 0.8)
        expected.append([point])
    assert 10 < (np.array(expected) < 0.56).sum() < 35
    np.testing.assert_allclose(first, expected, atol=1e-5)
    more = ProjectedGradientDescent(classifier, keep_first=True, **{**options, "num_random_init": 0, "restarts": 12})
    with seeded(0):
        assert are_misclassified(classifier, more.generate(x, y), y).all()


def test_fgsm_returns_a_start_that_is_adversarial():
    classifier = one_pixel(lambda x: torch.where(x < 0.56, 5 * (x - 0.5), x - 2))
    x, y = np.full((40, 1), 0.5, dtype=np.float32), np.zeros(40, dtype=np.int64)
    with seeded(0):
        images = FastGradientMethod(classifier, eps=0.06, num_random_init=1, keep_first=True).generate(x, y)
        start = np.random.RandomState(0).uniform(-0.06, 0.06, (40, 1)) + 0.5
    np.testing.assert_allclose(images, np.where(start > 0.5, start, start + 0.06), atol=1e-5)


class Lower(MarginLoss):
    """The margin, minus 100 for misclassified images, so that an adversarial iterate is never the best iterate."""

    def forward(self, logits, labels):
        margin = super().forward(logits, labels)
        return torch.where(margin > 0, margin - 100, margin)


@pytest.mark.parametrize("max_iter", [1, 2, 4])
def test_auto_pgd_returns_adversarial_iterates_that_a_checkpoint_discards(hr_classifier, attacked, digits, max_iter):
    """All of the 4 steps except the first end at a checkpoint, where an image returns to its best iterate."""
    classifier = hr_classifier()
    x, y = right(classifier, digits, 64)
    visited = []
    options = {"eps": 0.1, "eps_step": 0.03, "max_iter": max_iter, "loss": Lower(), "batch_size": 64}
    with classifier.observed_by(lambda x, labels, point: visited.append(point.logits.argmax(1).numpy())):
        images = attacked(AutoProjectedGradientDescent, classifier, x, y, keep_first=True, restarts=1, **options)
    rows = np.arange(64)
    for predicted in visited:  # each evaluation has the images without an earlier adversarial iterate
        assert len(predicted) == len(rows)
        rows = rows[predicted == y[rows]]
    assert 0 < len(rows) < 64
    np.testing.assert_array_equal(np.flatnonzero(~are_misclassified(classifier, images, y)), rows)
    last = attacked(AutoProjectedGradientDescent, classifier, x, y, nb_random_init=1, **options)
    assert are_misclassified(classifier, last, y).sum() <= 64 - len(rows)


@stopping
def test_images_misclassified_without_attack_are_returned_unchanged(hr_classifier, attacked, x, y, kind, options):
    classifier = hr_classifier()
    labels = np.where(np.arange(50) % 3 == 0, (classifier.predict(x).argmax(1) + 1) % 10, y)
    already = are_misclassified(classifier, x, labels)
    images = attacked(kind, classifier, x, labels, **options)
    np.testing.assert_array_equal(images[already], x[already])
    assert (images[~already] != x[~already]).any((1, 2, 3)).all()
    everywhere = (classifier.predict(x).argmax(1) + 1) % 10
    np.testing.assert_array_equal(attacked(kind, classifier, x, everywhere, **options), x)


def test_images_leave_the_batch_at_their_first_adversarial_iterate(hr_classifier, passes, attack, digits):
    """The passes of PGD are those of a simple loop in which each image stops at its first adversarial iterate."""
    classifier = hr_classifier(network=passes.network)
    x, y = right(classifier, digits, 40)
    instance = attack(
        ProjectedGradientDescent, classifier, eps=0.1, eps_step=0.02, max_iter=10, loss="margin", keep_first=True
    )
    passes.clear()
    images = instance.generate(x, y)
    counted = list(passes.forward)
    expected, first, points = [32, 8], x.copy(), x.copy()
    for rows in (np.arange(32), np.arange(32, 40)):
        for _ in range(10):
            expected.append(len(rows))
            wrong = are_misclassified(classifier, points[rows], y[rows])
            first[rows[wrong]], rows = points[rows[wrong]], rows[~wrong]
            if not len(rows):
                break
            with_margin = attack_view(classifier, MarginLoss())
            step = np.float32(0.02) * np.sign(with_margin.loss_gradient(points[rows], y[rows]))
            points[rows] = (
                np.clip(np.clip(points[rows] + step, 0, 1) - x[rows], -np.float32(0.1), np.float32(0.1)) + x[rows]
            )
        else:
            expected.append(len(rows))  # the last iterates
            first[rows] = points[rows]
    assert len(set(counted)) > 5
    assert counted == expected
    np.testing.assert_allclose(images, first, atol=1e-6)


@pytest.mark.parametrize(
    ("norm", "eps", "targeted"), [(np.inf, 0.1, False), (np.inf, 0.1, True), (2, 0.6, False), (1, 3.0, True)], ids=str
)
def test_it_succeeds_at_least_as_often_as_the_attack_of_art_and_is_feasible(
    hr_classifier, attacked, arts, digits, kind, norm, eps, targeted
):
    classifier = hr_classifier(nn.CrossEntropyLoss())
    x, y = right(classifier, digits, 64)
    labels = classifier.predict(x).argsort(1)[:, -2] if targeted else y
    sizes = {"norm": norm, "eps": eps, "eps_step": eps / 4, "targeted": targeted, "batch_size": 64}
    theirs = attacked(arts[kind], classifier, x, labels, **random_starts(kind, 1), **sizes)
    images = attacked(kind, classifier, x, labels, keep_first=True, **random_starts(kind, 1), **sizes)
    assert images.dtype == np.float32
    assert feasible(images, x, eps, norm, (0.0, 1.0)).all()
    ours, arts_success = (
        are_misclassified(classifier, candidates, labels) != targeted for candidates in (images, theirs)
    )
    assert 0 < ours.sum() < 64
    assert ours.sum() >= arts_success.sum()
    if norm == np.inf and kind is not AutoProjectedGradientDescent:  # the same path, up to rounding in other norms
        assert (ours >= arts_success).all()


@pytest.mark.parametrize("options", [{}, *STOPPING.values()], ids=["default", *STOPPING])
def test_the_same_seed_gives_the_same_images_for_all_batch_sizes(hr_classifier, network, attacked, x, y, kind, options):
    """The network is float64, so that gradients near 0 keep their sign; ART draws equal starts for one image only."""
    classifier = hr_classifier(network=network.double())
    options = options if options else random_starts(kind, 1)
    images = [attacked(kind, classifier, x, y, batch_size=size, loss="margin", **options) for size in (50, 50, 7)]
    np.testing.assert_array_equal(images[0], images[1])
    # Starts are drawn image by image, independent of the batch size.
    np.testing.assert_array_equal(images[1], images[2])
    if options.get("restarts"):
        other = attacked(kind, classifier, x, y, seed=1, batch_size=50, loss="margin", **options)
        assert (other != images[0]).any()


def test_restarts_attack_only_images_without_an_adversarial_example(
    hr_classifier, passes, attack, attacked, x, y, kind
):
    classifier = hr_classifier(network=passes.network)
    options = {"eps": 0.07, "loss": "margin", "batch_size": 50}
    once = attacked(kind, classifier, x, y, restarts=1, **options)
    instance = attack(kind, classifier, restarts=2, **options)
    passes.clear()
    with seeded(0):
        instance.generate(x, y)
    counted = list(passes.forward)
    first = int((~are_misclassified(classifier, x, y)).sum())
    left = int((~are_misclassified(classifier, once, y)).sum())
    assert 0 < left < first
    # FGSM has 1 step, PGD 5, and Auto-PGD 4, the last iterate of which is also the last evaluation.
    steps = {FastGradientMethod: 2, ProjectedGradientDescent: 6, AutoProjectedGradientDescent: 5}[kind]
    assert counted == [50] + [first] * steps + [left] * steps
    np.testing.assert_array_equal(
        attacked(kind, classifier, x, y, restarts=5, **options)[are_misclassified(classifier, once, y)],
        once[are_misclassified(classifier, once, y)],
    )


@pytest.mark.parametrize("shape", [(50, 1, 8, 8), (1, 8, 8), (8, 8)], ids=["per-image", "shared", "rows"])
def test_pixels_outside_a_mask_do_not_change(hr_classifier, attacked, x, y, kind, shape):
    """The random start of Auto-PGD also respects the mask with restarts or keep_first."""
    mask = np.random.default_rng(0).integers(0, 2, shape).astype(bool if shape == (1, 8, 8) else np.float32)
    images = attacked(kind, hr_classifier(), x, y, mask=mask, batch_size=20, restarts=2, keep_first=True)
    hidden = np.broadcast_to(mask == 0, x.shape)
    np.testing.assert_array_equal(images[hidden], x[hidden])
    assert (images != x).mean() > 0.3


# ---------------------------------------------------------------------------------------------------------------- loss


class OneHotMargin(nn.Module):
    """A loss without a reduction; HRClassifier passes one-hot labels to it."""

    def forward(self, logits, labels):
        assert labels.shape == logits.shape
        return MarginLoss()(logits, labels.argmax(1))


@pytest.mark.parametrize(
    ("loss", "make"),
    [(loss, "hr_classifier") for loss in (*LOSSES, HRLoss(), OneHotMargin())] + [("ce", "art_classifier")],
    ids=lambda value: str(value)[:7],
)
def test_a_loss_gives_the_images_of_a_view_along_that_loss(request, attacked, x, y, kind, loss, make):
    x, y = x[:20], y[:20]
    classifier = request.getfixturevalue(make)()
    for norm, eps in ((np.inf, 0.1), (2, 0.6)):
        options = {"norm": norm, "eps": eps, "eps_step": eps / 4, **random_starts(kind, 1)}
        images = attacked(kind, classifier, x, y, loss=loss, **options)
        expected = attacked(kind, attack_view(classifier, attack_loss(loss)), x, y, **options)
        assert (np.abs(images - x).reshape(20, -1).max(1) > 1e-3).mean() > 0.5
        np.testing.assert_allclose(images, expected, rtol=0, atol=0 if norm == np.inf else 1e-5)


@norms
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (FastGradientMethod, {"restarts": 1}),
        (ProjectedGradientDescent, {}),
        (ProjectedGradientDescent, {"decay": 0.5, "keep_first": True}),
        (AutoProjectedGradientDescent, {}),
    ],
    ids=["FGM", "PGD", "PGD-momentum", "AutoPGD"],
)
def test_a_gradient_of_1e_minus_30_has_full_effect(hr_classifier, network, attacked, x, y, kind, options, norm, eps):
    """The squares of the gradient underflow in float32. Scaling by a power of 2 causes no rounding."""
    options = {**options, "norm": norm, "eps": eps, "eps_step": eps / 4, "loss": "margin"}
    images, expected = (
        attacked(kind, hr_classifier(network=scaled(network, factor)), x, y, **options) for factor in (2.0**-100, 1)
    )
    np.testing.assert_allclose(images, expected, atol=1e-6)
    assert (images != x).any((1, 2, 3)).mean() > 0.8
