"""Tests of the gradient attacks' parameters: each has an effect or raises an error, as do invalid images and labels."""

import numpy as np
import pytest
from art.estimators.classification import BlackBoxClassifierNeuralNetwork
from art.summary_writer import SummaryWriter
from torch import nn

from art_hrloss import HRClassifier, HRLoss
from art_hrloss.attacks import AutoProjectedGradientDescent, FastGradientMethod, ProjectedGradientDescent
from benchmarks.autoattack.masked import Around

KINDS = (FastGradientMethod, ProjectedGradientDescent, AutoProjectedGradientDescent)


class Silent(SummaryWriter):
    """A summary writer that counts its calls."""

    def __init__(self):
        self.updates = 0

    def update(self, *args, **kwargs):
        self.updates += 1

    def reset(self):
        pass


# ------------------------------------------------------------------------- errors of the constructor and of set_params

PER_PIXEL = {"eps": np.full((1, 8, 8), 0.1), "eps_step": np.full((1, 8, 8), 0.1)}
REFUSED = [
    (KINDS, {}, {"eps": 8.0}, "range of clip_values"),
    (KINDS, {}, {"eps": 0.0}, "eps"),
    (KINDS, {}, {"eps": -0.1}, "eps"),
    (KINDS, {}, {"eps": np.nan}, "eps"),
    (KINDS, {}, {"eps": np.inf}, "eps"),
    (KINDS, {}, {"eps_step": 0.0}, "eps_step"),
    (KINDS, {}, {"eps_step": np.nan}, "eps_step"),
    (KINDS[:2], PER_PIXEL, {"eps": np.full((1, 8, 8), 8.0)}, "range of clip_values"),
    (KINDS[:2], PER_PIXEL, {"eps": np.zeros((1, 8, 8))}, "eps"),
    (KINDS, {}, {"norm": 0.5}, "norm|Norm"),
    (KINDS, {}, {"batch_size": 0}, "batch_size"),
    (KINDS, {}, {"targeted": "yes"}, "targeted"),
    (KINDS, {}, {"restarts": 0}, "restarts"),
    (KINDS, {}, {"restarts": 1.5}, "restarts"),
    (KINDS, {}, {"loss": "cw"}, "loss"),
    (KINDS[:2], {"num_random_init": 3}, {"restarts": 2}, "num_random_init"),
    (KINDS[2:], {"nb_random_init": 3}, {"restarts": 2}, "nb_random_init"),
    (KINDS[:2], {}, {"num_random_init": -1}, "random_init"),
    (KINDS[2:], {}, {"nb_random_init": 0}, "nb_random_init"),
    (KINDS[:1], {"minimal": True}, {"loss": "ce"}, "minimal"),
    (KINDS[:1], {"minimal": True}, {"restarts": 2}, "minimal"),
    (KINDS[:1], {"keep_first": True}, {"minimal": True}, "minimal"),
    (KINDS[1:2], {}, {"minimal": True}, "minimal"),
    (KINDS[1:2], {}, {"max_iter": -1}, "max_iter"),
    (KINDS[2:], {}, {"max_iter": 0}, "max_iter"),
    (KINDS[1:2], {}, {"decay": -0.1}, "decay"),
    (KINDS[1:], {}, {"verbose": 1}, "verbose"),
    (KINDS[:2], {"summary_writer": Silent()}, {"restarts": 1}, "summary_writer"),
    (KINDS[:2], {"summary_writer": Silent()}, {"keep_first": True}, "summary_writer"),
    (KINDS[2:], {}, {"loss_type": "cross_entropy"}, "loss_type"),
    (KINDS[2:], {}, {"loss_type": "difference_logits_ratio"}, "loss_type"),
    (KINDS[2:], {"keep_first": True}, {"target_classes": 10}, "target_classes"),
    (KINDS[2:], {"keep_first": True}, {"target_classes": -1}, "target_classes"),
    (KINDS[2:], {"keep_first": True}, {"target_classes": 1.5}, "target_classes"),
    (KINDS[2:], {}, {"target_classes": 2}, "keep_first"),
    (KINDS[2:], {"keep_first": True, "target_classes": 2}, {"loss": "ce"}, "target_classes"),
    (KINDS[2:], {"keep_first": True, "target_classes": 2}, {"targeted": True}, "target_classes"),
    (KINDS[2:], {"keep_first": True, "target_classes": 2}, {"restarts": 3}, "target_classes"),
    (KINDS[2:], {"keep_first": True, "target_classes": 2}, {"nb_random_init": 3}, "target_classes"),
    (KINDS[2:], {"keep_first": True, "target_classes": 2}, {"keep_first": False}, "target_classes"),
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_conflicting_parameters_raise_an_error_and_change_nothing(hr_classifier, kind):
    classifier = hr_classifier()
    for base, invalid, pattern in (
        (base, invalid, pattern) for kinds, base, invalid, pattern in REFUSED if kind in kinds
    ):
        with pytest.raises((TypeError, ValueError), match=pattern):
            kind(classifier, **{**base, **invalid})
        attack = kind(classifier, **base)
        before = dict(vars(attack))
        changes = {"loss": HRLoss(alpha=2.0)} | invalid if "minimal" not in base else invalid
        with pytest.raises((TypeError, ValueError), match=pattern):
            attack.set_params(batch_size=7, **changes)
        assert vars(attack).keys() == before.keys()
        assert all(vars(attack)[name] is value for name, value in before.items())


def test_an_unknown_parameter_raises_an_error(hr_classifier, attack, kind):
    with pytest.raises(TypeError, match="alpha"):
        attack(kind, hr_classifier(), alpha=1.0)
    instance = attack(kind, hr_classifier())
    with pytest.raises(ValueError, match="alpha"):
        instance.set_params(eps=0.01, alpha=1.0)
    assert instance.eps == 0.15


def test_random_eps_can_only_be_set_by_the_constructor(hr_classifier, attack):
    """ART draws eps from a distribution that its constructor sets, and would ignore another eps."""
    instance = attack(ProjectedGradientDescent, hr_classifier(), random_eps=True)
    for change in ({"eps": 0.1}, {"random_eps": True}):
        with pytest.raises(ValueError, match="random"):
            instance.set_params(**change)
    with pytest.raises(ValueError, match="random"):
        attack(ProjectedGradientDescent, hr_classifier()).set_params(random_eps=True)


def test_estimators_other_than_pytorch_classifiers_raise_an_error(kind):
    black_box = BlackBoxClassifierNeuralNetwork(lambda x: np.zeros((len(x), 10)), (1, 8, 8), 10)
    with pytest.raises(TypeError, match="PyTorchClassifier"):
        kind(black_box)


# --------------------------------------------------------------------------------------------------- errors of generate


@pytest.mark.parametrize("options", [{}, {"keep_first": True}], ids=["default", "keep-first"])
def test_images_outside_clip_values_or_not_finite_raise_an_error(hr_classifier, attacked, x, y, kind, options):
    for images, pattern in (
        (255 * x, "clip_values"),
        (x - 0.1, "clip_values"),
        (np.where(x == x.max(), np.nan, x), "finite"),
        (np.where(x == x.max(), np.inf, x), "finite"),
    ):
        with pytest.raises(ValueError, match=pattern):
            attacked(kind, hr_classifier(), images, y, **options)


@pytest.mark.parametrize("options", [{}, {"restarts": 1}], ids=str)
def test_a_targeted_attack_needs_targets(hr_classifier, attacked, x, kind, options):
    with pytest.raises(ValueError, match="targeted"):
        attacked(kind, hr_classifier(), x, None, targeted=True, **options)


def test_a_network_of_one_logit_raises_an_error(attacked, x, y):
    """The largest entry of a single output is always class 0."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    classifier = HRClassifier(network, nn.BCEWithLogitsLoss(), (1, 8, 8), 2, clip_values=(0, 1), device_type="cpu")
    for kind, labels, options in (
        (FastGradientMethod, None, {}),
        (ProjectedGradientDescent, None, {}),
        (FastGradientMethod, y % 2, {"keep_first": True}),
        (ProjectedGradientDescent, y % 2, {"restarts": 1}),
        (AutoProjectedGradientDescent, y % 2, {}),
    ):
        with pytest.raises(ValueError, match="one logit per class"):
            attacked(kind, classifier, x, labels, **options)
    assert (attacked(FastGradientMethod, classifier, x, y % 2) != x).any((1, 2, 3)).all()


@pytest.mark.parametrize(
    "mask",
    [np.ones((2, 50, 1, 8, 8)), np.ones((1, 8, 8), dtype=np.int64), -np.ones((1, 8, 8))],
    ids=["5-d", "int", "-1"],
)
@pytest.mark.parametrize("kind", KINDS[:2])
def test_invalid_masks_raise_an_error(hr_classifier, attacked, x, y, kind, mask):
    with pytest.raises(ValueError, match=r"[Mm]ask"):
        attacked(kind, hr_classifier(), x, y, mask=mask)


# --------------------------------------------------------------------------------------------- effect of each parameter

EFFECTS = {
    "norm": [({}, {"norm": 2})],
    "eps": [({}, {"eps": 0.1})],
    "eps_step": [({}, {"eps_step": 0.02})],
    "decay": [({}, {"decay": 0.9})],
    "max_iter": [({}, {"max_iter": 3})],
    "targeted": [({}, {"targeted": True})],
    "num_random_init": [({}, {"num_random_init": 1}), ({"num_random_init": 1}, {"num_random_init": 3})],
    "nb_random_init": [({"eps": 0.06, "nb_random_init": 1}, {"nb_random_init": 3})],
    "random_eps": [({}, {"random_eps": True})],
    "minimal": [({}, {"minimal": True})],
    "loss": [({}, {"loss": "margin"}), ({"loss": "ce"}, {"loss": "dlr"})],
    "restarts": [({"eps": 0.06}, {"restarts": 1}), ({"eps": 0.06, "restarts": 1}, {"restarts": 3})],
    "keep_first": [({}, {"keep_first": True})],
    "target_classes": [
        ({"keep_first": True}, {"target_classes": 3}),
        ({"keep_first": True, "target_classes": 1}, {"target_classes": 3}),
    ],
}
# These parameters do not change the images: the numbers of passes, the summary, the bar and the errors test them.
ELSEWHERE = {"batch_size", "summary_writer", "verbose", "loss_type"}


def test_the_tests_cover_all_parameters(kind):
    assert set(kind.attack_params) <= {*EFFECTS, *ELSEWHERE}


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param(kind, name, id=f"{kind.__name__}-{name}")
        for kind in KINDS
        for name in EFFECTS
        if name in kind.attack_params
    ],
)
def test_each_parameter_changes_images_also_by_set_params(hr_classifier, attack, x, y, kind, name):
    x, y = x[:20], y[:20]
    for base, change in EFFECTS[name]:
        if kind is FastGradientMethod and name == "eps_step":
            base = {"minimal": True}
        if name == "keep_first" and kind is FastGradientMethod:
            base = {"num_random_init": 1}
        images = []
        for options in (base, base | change):
            np.random.seed(0)  # noqa: NPY002
            images.append(attack(kind, hr_classifier(), **options).generate(x, y))
        assert (images[0] != images[1]).any()
        if name != "random_eps":
            instance = attack(kind, hr_classifier(), **base)
            instance.set_params(**change)
            np.random.seed(0)  # noqa: NPY002
            np.testing.assert_array_equal(instance.generate(x, y), images[1])


def test_batch_size_and_verbose(hr_classifier, passes, attack, x, y, kind, capfd):
    instance = attack(kind, hr_classifier(network=passes.network), batch_size=20)
    for options in ({}, {"keep_first": True}):
        instance.set_params(**options)
        passes.clear()
        instance.generate(x, y)
        assert max(passes.forward) == 20
        if kind is not FastGradientMethod:
            for verbose in (False, True):
                instance.set_params(verbose=verbose)
                capfd.readouterr()
                instance.generate(x, y)
                assert ("batch" in capfd.readouterr().err) == verbose
            instance.set_params(verbose=False)


@pytest.mark.parametrize("kind", [FastGradientMethod, ProjectedGradientDescent, AutoProjectedGradientDescent])
def test_ignored_arguments_of_generate_raise_an_error(hr_classifier, x, y, kind):
    attack = kind(hr_classifier(), eps=0.1, keep_first=True)
    with pytest.raises(TypeError, match="masks"):
        attack.generate(x, y, masks=np.zeros_like(x))
    with pytest.raises(ValueError, match="mask of finite"):
        attack.generate(x, y, mask=np.full_like(x, np.nan))
    for name, value in {"keep_first": "no", "norm": np.nan}.items():
        with pytest.raises(ValueError, match=name):
            attack.set_params(**{name: value})
    with pytest.raises(ValueError, match="margin"):
        attack.set_params(targeted=True, loss="dlr")


def test_a_network_without_gradient_raises_an_error(hr_classifier, network, x, y):
    detached = Around(network, lambda images: images.detach().round())
    with pytest.raises(ValueError, match="SquareAttack"):
        FastGradientMethod(hr_classifier(network=detached), eps=0.1).generate(x, y)
