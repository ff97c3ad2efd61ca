"""Attacks of the package beside ART's own, on 50 real digits, from the same state of all random generators."""

import numpy as np
import pytest
import torch
from art.attacks import evasion

from art_hrloss.attacks import AutoProjectedGradientDescent, FastGradientMethod, ProjectedGradientDescent
from benchmarks.autoattack.measuring import Passes

ARTS = {
    FastGradientMethod: evasion.FastGradientMethod,
    ProjectedGradientDescent: evasion.ProjectedGradientDescentPyTorch,
    AutoProjectedGradientDescent: evasion.AutoProjectedGradientDescent,
}
STEPS = {"eps": 0.15, "batch_size": 32, "verbose": False}
DEFAULTS = {
    evasion.FastGradientMethod: {"eps": 0.15, "batch_size": 32},
    evasion.ProjectedGradientDescentPyTorch: {"eps_step": 0.04, "max_iter": 5, **STEPS},
    evasion.AutoProjectedGradientDescent: {"eps_step": 0.3, "max_iter": 4, **STEPS},
}


@pytest.fixture(params=ARTS, ids=lambda kind: kind.__name__)
def kind(request):
    """Each of the package's gradient attacks."""
    return request.param


@pytest.fixture
def x(digits):
    return digits.x_test[:50].copy()


@pytest.fixture
def y(digits):
    return digits.y_test[:50].copy()


@pytest.fixture
def arts():
    """ART's class of each of the package's gradient attacks."""
    return ARTS


@pytest.fixture
def passes(network):
    """A copy of the trained network, with the sizes of the batches that pass through it."""
    return Passes(network)


@pytest.fixture
def attack():
    """Call it for an attack: (kind, classifier, **parameters); the others are those of the defaults above."""

    def build(kind, classifier, **options):
        return kind(classifier, **{**DEFAULTS[ARTS.get(kind, kind)], **options})

    return build


@pytest.fixture
def attacked(attack):
    """Call it for adversarial images: (kind, classifier, x, y, *, seed=0, mask=None, **parameters)."""

    def images(kind, classifier, x, y, *, seed=0, mask=None, **options):
        np.random.seed(seed)  # noqa: NPY002  # ART draws from the global generator
        torch.manual_seed(seed)
        return attack(kind, classifier, **options).generate(x, y, **({} if mask is None else {"mask": mask}))

    state = np.random.get_state()  # noqa: NPY002
    yield images
    np.random.set_state(state)  # noqa: NPY002


@pytest.fixture
def both(attacked):
    """Call it, as `attacked`, for the images of the package's attack and of ART's."""

    def images(kind, classifier, x, y, **options):
        ours, arts = (attacked(one, classifier, x, y, **options) for one in (kind, ARTS[kind]))
        assert ours.dtype == arts.dtype
        # The comparison is worth something: most images have changed.
        assert (np.abs(arts - x).reshape(len(x), -1).max(1) > 1e-3).mean() > 0.5
        return ours, arts

    return images
