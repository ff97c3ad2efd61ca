"""Tests of attacks._constraints: the feasible set, directions of steepest ascent, margins, and the units of eps."""

import numpy as np
import pytest
import torch

from art_hrloss.attacks._constraints import (
    FeasibleSet,
    at_least_one,
    check_eps,
    check_units,
    feasible,
    margins,
    over_largest,
    steepest_ascent,
)
from art_hrloss.attacks._losses import MarginLoss

X = torch.tensor(np.random.default_rng(0).uniform(0, 1, (30, 1, 4, 5)), dtype=torch.float32)
NORMS = pytest.mark.parametrize("norm", [np.inf, "inf", 1, 1.5, 2, 3], ids=str)
CHANGE = torch.tensor(np.random.default_rng(1).normal(0, 2, X.shape), dtype=torch.float32)


def sizes(change, norm):
    return np.linalg.norm(change.numpy().astype(np.float64).reshape(len(change), -1), ord=float(norm), axis=1)


@NORMS
@pytest.mark.parametrize("per_image", [False, True], ids=["one-eps", "eps-per-image"])
def test_projections_are_feasible_and_keep_feasible_points(norm, per_image):
    eps = np.linspace(0.1, 0.4, 30).reshape(-1, 1, 1, 1) if per_image else 0.3
    region = FeasibleSet(X, eps, norm=norm, clip_values=(0.0, 1.0))
    projected = region.project((X + CHANGE).clone())
    assert (sizes(projected - X, norm) <= np.ravel(eps) * (1 + 1e-5)).all()
    assert (sizes(projected - X, norm) > 0).all()
    assert projected.min() >= 0
    assert projected.max() <= 1
    torch.testing.assert_close(region.project(projected.clone()), projected, rtol=0, atol=1e-6)
    some = torch.arange(30) % 3 == 0
    torch.testing.assert_close(region.select(some).project((X + CHANGE)[some].clone()), projected[some], rtol=0, atol=0)


def test_projections_equal_values_computed_by_hand():
    x = torch.tensor([[0.5, 0.5]])
    assert FeasibleSet(x, 0.25, norm=np.inf, clip_values=(0, 1)).project(
        x + torch.tensor([[0.5, -0.125]])
    ).tolist() == [[0.75, 0.375]]
    moved = FeasibleSet(x, 0.5, norm=2, clip_values=None).project(x + torch.tensor([[3.0, 4.0]]))
    np.testing.assert_allclose(moved.numpy(), [[0.8, 0.9]], rtol=1e-6)
    moved = FeasibleSet(x, 0.5, norm=1, clip_values=None).project(x + torch.tensor([[3.0, 1.0]]))
    np.testing.assert_allclose(moved.numpy(), [[0.875, 0.625]], rtol=1e-6)


@pytest.mark.parametrize("norm", [np.inf, 1, 2])
def test_random_starts_are_feasible_and_respect_the_mask(norm):
    mask = torch.tensor(np.random.default_rng(2).integers(0, 2, X.shape), dtype=torch.float32)
    start = FeasibleSet(X, 0.3, norm=norm, clip_values=(0.0, 1.0)).random_start(mask)
    assert feasible(start.numpy(), X.numpy(), 0.3, norm, (0.0, 1.0)).all()
    assert torch.equal(start[mask == 0], X[mask == 0])
    assert (start != X).any(dim=(1, 2, 3)).all()


@NORMS
def test_no_other_direction_of_norm_1_has_a_steeper_ascent(norm):
    """The ascent is the dual norm of the gradient (Hoelder's inequality); a gradient of 0 or NaN has no direction."""
    gradient = CHANGE.clone()
    gradient[3] = 0
    direction = steepest_ascent(gradient.clone(), norm)
    order = float(norm)
    dual = {np.inf: 1, 1: np.inf}.get(order) or order / (order - 1)
    ascent = (direction * gradient).flatten(1).sum(1).numpy()
    np.testing.assert_allclose(ascent, sizes(gradient, dual), rtol=1e-5)
    np.testing.assert_allclose(np.delete(sizes(direction, norm), 3), 1, rtol=1e-5)
    assert (direction[3] == 0).all()


def test_over_largest_divides_by_the_largest_entry():
    gradient = torch.tensor([[2.0, -4.0], [0.0, 0.0], [1e-30, 5e-31]])
    np.testing.assert_allclose(over_largest(gradient).numpy(), [[0.5, -1.0], [0.0, 0.0], [1.0, 0.5]], rtol=1e-6)


def test_feasible_depends_on_norm_and_clip_values():
    x = np.zeros((4, 2, 2), dtype=np.float32)
    change = np.array([[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.5, 0.5, 0.5, 0.5], [-0.3, 0.1, 0, 0]], dtype=np.float32)
    moved = x + change.reshape(4, 2, 2)
    assert feasible(moved, x, 1.0, 1, None).tolist() == [True, True, False, True]
    assert feasible(moved, x, 0.8, 2, None).tolist() == [False, True, False, True]
    for norm in (np.inf, "inf"):
        assert feasible(moved, x, 0.5, norm, None).tolist() == [False, True, True, True]
    assert feasible(moved, x, 0.5, np.inf, (0.0, 1.0)).tolist() == [False, True, True, False]
    assert feasible(moved, x, 0.5, np.inf, (-1.0, 0.4)).tolist() == [False, False, False, True]
    low, high = np.zeros((2, 2)), np.array([[1.0, 1.0], [0.2, 0.2]])
    assert feasible(moved, x, 1.0, np.inf, (low, high)).tolist() == [True, True, False, False]
    moved[1] = np.nan
    assert feasible(moved, x, 1.0, 1, None).tolist() == [True, False, False, True]


@pytest.mark.parametrize("scale", [1.0, 255.0, 1e-3])
@pytest.mark.parametrize("share", [0.001, 0.1])
def test_the_rounding_of_float32_is_feasible_in_any_unit(scale, share):
    random = np.random.default_rng(0)
    x = (scale * random.uniform(0, 1, (50, 100))).astype(np.float32)
    eps = share * scale
    direction = np.sign(random.normal(size=x.shape))
    for excess, expected in ((0, True), (2e-3, False)):
        moved = (x + (1 + excess) * eps * direction).astype(np.float32)
        assert feasible(moved, x, eps, np.inf, None).all() == expected
        assert feasible(moved, x, 10 * eps, 2, None).all() == expected


def test_margins_are_the_true_logit_minus_the_largest_other_logit():
    logits = np.random.default_rng(0).normal(size=(40, 5))
    labels = np.random.default_rng(1).integers(0, 5, 40)
    others = [max(z[k] for k in range(5) if k != y) for z, y in zip(logits, labels, strict=True)]
    np.testing.assert_array_equal(margins(logits, labels), logits[np.arange(40), labels] - others)
    ours = MarginLoss()(torch.tensor(logits), torch.tensor(labels))
    np.testing.assert_array_equal(margins(logits, labels), -ours.numpy())


@pytest.mark.parametrize("eps", [0, -0.1, np.inf, np.nan, np.float32(0), 1.1, 8, 8 / 255 * 255])
def test_invalid_eps_raises_an_error(eps):
    with pytest.raises(ValueError, match="eps"):
        check_eps(eps, np.inf, (0.0, 1.0))
    with pytest.raises(ValueError, match="eps"):
        check_units(np.full((2, 3), eps), np.inf, (np.zeros(3), np.ones(3)))


def test_eps_is_returned_as_a_python_float():
    for eps in (np.float32(0.5), np.float64(0.5), torch.tensor(0.5), np.array(0.5)):
        assert type(check_eps(eps, np.inf, (0.0, 1.0))) is float
    assert check_eps(1, np.inf, (0, 1)) == 1.0
    assert check_eps(8, np.inf, (0, 255)) == check_eps(8, np.inf, None) == check_eps(8, 2, (0, 1)) == 8.0
    check_units(np.array([0.0, 0.5]), np.inf, (0.0, 1.0))  # eps is 0 for some pixels


def test_whole_numbers_from_1():
    assert [at_least_one("steps", value) for value in (1, 2.0, np.int64(3))] == [1, 2, 3]
    for value in (0, -1, 1.5):
        with pytest.raises(ValueError, match="steps"):
            at_least_one("steps", value)
