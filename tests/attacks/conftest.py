"""Fixtures: the package's attacks and ART's, on 50 real digits, with the same state of all random generators."""

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
    """The gradient attacks of the package, one after another."""
    return request.param


@pytest.fixture
def x(digits):
    return digits.x_test[:50].copy()


@pytest.fixture
def y(digits):
    return digits.y_test[:50].copy()


@pytest.fixture
def arts():
    """The ART class of each gradient attack of the package."""
    return ARTS


@pytest.fixture
def passes(network):
    """A copy of the trained network that records the sizes of the batches that pass through it."""
    return Passes(network)


@pytest.fixture
def attack():
    """A function (kind, classifier, **parameters) that returns an attack; the defaults are those above."""

    def build(kind, classifier, **options):
        return kind(classifier, **{**DEFAULTS[ARTS.get(kind, kind)], **options})

    return build


@pytest.fixture
def attacked(attack):
    """A function (kind, classifier, x, y, *, seed=0, mask=None, **parameters) that returns adversarial images."""

    def images(kind, classifier, x, y, *, seed=0, mask=None, **options):
        np.random.seed(seed)  # noqa: NPY002  # ART draws from the global generator
        torch.manual_seed(seed)
        return attack(kind, classifier, **options).generate(x, y, **({} if mask is None else {"mask": mask}))

    state = np.random.get_state()  # noqa: NPY002
    yield images
    np.random.set_state(state)  # noqa: NPY002


@pytest.fixture
def both(attacked):
    """A function like `attacked` that returns the images of the package's attack and of ART's attack."""

    def images(kind, classifier, x, y, **options):
        ours, arts = (attacked(one, classifier, x, y, **options) for one in (kind, ARTS[kind]))
        assert ours.dtype == arts.dtype
        # The comparison is meaningful only if most images have changed.
        assert (np.abs(arts - x).reshape(len(x), -1).max(1) > 1e-3).mean() > 0.5
        return ours, arts

    return images
