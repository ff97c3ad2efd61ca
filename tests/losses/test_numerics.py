"""Tests of losses._numerics: the loss and its parts over the full range of float64 and float32."""

import itertools
import math

import numpy as np
import pytest
import torch
from testing import oracle
from testing.losses import REDUCTIONS, WEIGHT, as_target, batch, close
from torch.autograd import gradcheck
from torch.nn.functional import cross_entropy

from art_hrloss import hr_loss
from art_hrloss.losses._functional import conditional_entropy, renyi_divergence, softmax_entropy
from art_hrloss.losses._numerics import log_entropy, log_of_others, log_softmax

INF, NAN = math.inf, math.nan


@pytest.mark.parametrize("kind", ["indices", "probabilities"])
@pytest.mark.parametrize("classes", [1, 2, 5])
def test_overflowed_logits_give_nan_as_in_cross_entropy(classes: int, kind: str) -> None:
    # A finite loss with a gradient of 0 would look like a failed attack.
    target = as_target(kind, torch.zeros(2, dtype=torch.long), classes)
    for bad, reduction in itertools.product((NAN, INF), REDUCTIONS):
        logits = torch.zeros(2, classes, dtype=torch.float64)
        logits[0, 0] = bad
        assert cross_entropy(logits, target, reduction="none").isnan().tolist() == [True, False]
        value = hr_loss(logits, target, reduction=reduction)
        assert value.isnan().tolist() == ([True, False] if reduction == "none" else True)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("where", ["target", "weight"])
def test_nan_in_labels_or_weights_is_nan(where: str, reduction: str) -> None:
    logits, labels = batch(3)
    target, weight = as_target("probabilities", labels), WEIGHT.clone()
    (target if where == "target" else weight)[0] = NAN
    assert hr_loss(logits, target, weight=weight, reduction=reduction).isnan().any()


@pytest.mark.parametrize("bad", [NAN, INF])
def test_overflow_is_nan_in_all_functions(bad: float) -> None:
    logits = torch.tensor([[bad, 0.0], [1.0, 0.0]])
    assert softmax_entropy(logits).isnan().tolist() == [True, False]
    assert conditional_entropy(logits).isnan()
    log_q = torch.tensor([0.25, 0.75]).log()
    for alpha in (0.1, 0.5, 1.0, 1.6):
        assert renyi_divergence(torch.tensor([NAN, 0.0]), log_q, alpha=alpha).isnan()
        assert renyi_divergence(log_q, torch.tensor([NAN, 0.0]), alpha=alpha).isnan()


# The numerics under P_u and H

MARGINS = [0.0, 1e-12, 0.5, 5.0, 17.0, 39.0, 39.9, 40.1, 41.0, 80.0, 200.0, 700.0, 1500.0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_log_of_others_and_log_entropy_to_margins_at_which_they_underflow(dtype: torch.dtype) -> None:
    for margin in MARGINS:
        for row in ([margin, 0.0], [0.0, margin, 0.0], [1.0, margin + 1, margin + 0.5], [0.0] * 5 + [margin] * 2):
            logits = torch.tensor(row, dtype=dtype)
            others, entropy = oracle.log_of_others_and_log_entropy(logits.double())
            log_q = log_softmax(logits)
            # The rounding error of a margin of m nats, and of its sums, is eps m / 2; that of 1 - s is eps.
            atol = 8 * torch.finfo(dtype).eps * (1 + margin)
            assert abs(log_of_others(log_q).double() - others) <= atol
            assert abs(log_entropy(log_q).double() - entropy) <= atol


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_log_of_others_and_log_entropy_at_their_limits(dtype: torch.dtype) -> None:
    one_hot = log_softmax(torch.tensor([[0.0, -INF, -INF], [-INF, -INF, 3.0]], dtype=dtype))
    assert (log_of_others(one_hot) == -INF).all()
    assert (log_entropy(one_hot) == -INF).all()
    for classes in (2, 10, 1000):
        uniform = log_softmax(torch.zeros(2, 3, classes, dtype=dtype))
        tolerance = 8 * torch.finfo(dtype).eps
        close(log_of_others(uniform), np.full((2, 3), math.log(1 - 1 / classes)), rtol=tolerance * classes)
        close(log_entropy(uniform), np.full((2, 3), math.log(math.log(classes))), rtol=tolerance * 5)
        assert log_entropy(uniform).dtype == log_of_others(uniform).dtype == dtype


def test_log_of_others_and_log_entropy_are_differentiable() -> None:
    for row in ([1.0, 0.0, 2.0], [30.0, 0.0, 1.0], [45.0, 0.0, 1.0]):
        logits = torch.tensor(row, dtype=torch.float64, requires_grad=True)
        for function in (log_of_others, log_entropy):
            assert gradcheck(lambda z, f=function: f(log_softmax(z)), logits)
