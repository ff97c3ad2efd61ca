"""Tests of losses._functional against the paper's equations (oracle.py), torch's cross-entropy, and invariances."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from testing import oracle
from testing.losses import (
    ALPHAS,
    CLASSES,
    OPTIONS,
    REDUCTIONS,
    TARGETS,
    WEIGHT,
    as_target,
    batch,
    check_derivatives,
    close,
    compiler,
    forward_mode,
    value_and_gradient,
)
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import grad, vmap
from torch.nn.functional import cross_entropy, one_hot

from art_hrloss import hr_loss
from art_hrloss.losses._functional import conditional_entropy, hr_loss_terms, renyi_divergence, softmax_entropy

INF, NAN = math.inf, math.nan


# The value


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options_define_the_joint_distribution(options: dict[str, Any], kind: str) -> None:
    """Compare the fused loss and the reference, the sum of the two terms, with the oracle."""
    logits, labels = batch(scale=1000.0 if not options else 2.0)
    target = as_target(kind, labels)
    for reduction, alpha in itertools.product(REDUCTIONS, (0.5, 1.0, 1.6, 50.0)):
        chosen = {"alpha": alpha, "reduction": reduction, **options}
        expected = oracle.hr_loss(logits, target, **chosen)
        for z in (logits, logits.float()):
            close(hr_loss(z, target, **chosen), expected)
            close(sum(hr_loss_terms(z, target, **chosen)), expected)


@pytest.mark.parametrize("shape", [(), (6,), (3, 2), (2, 3, 2)], ids=["C", "NC", "NCd", "NCdd"])
def test_each_position_is_an_example(shape: tuple[int, ...]) -> None:
    flat_logits, flat_labels = batch(max(1, math.prod(shape)))

    def shaped(rows: Tensor) -> Tensor:
        """Return rows (N * d, C) with the shape (N, C, d), and a row (1, C) with the shape (C,)."""
        return rows.reshape(*shape, CLASSES).movedim(-1, 1) if shape else rows[0]

    for kind, reduction in itertools.product(TARGETS, REDUCTIONS):
        flat_target = as_target(kind, flat_labels)
        target = flat_target.reshape(shape) if kind == "indices" else shaped(flat_target)
        expected = hr_loss(flat_logits, flat_target, reduction=reduction)
        expected = expected.reshape(shape) if reduction == "none" else expected
        close(hr_loss(shaped(flat_logits), target, reduction=reduction), expected)


@pytest.mark.parametrize("kind", ["one-hot", "probabilities"])
def test_the_two_terms_equal_conditional_entropy_and_divergence(kind: str) -> None:
    logits, labels = batch()
    target, share = as_target(kind, labels), -math.log(len(logits))
    terms = hr_loss_terms(logits, target)
    log_joint = (logits.log_softmax(1) + share).flatten()
    close(terms.conditional_entropy, oracle.conditional_entropy(logits))
    log_p = (target.double().log() + share).flatten()
    close(terms.renyi_divergence, 1.6 * renyi_divergence(log_p, log_joint, alpha=1.6))


@pytest.mark.parametrize("shape", [(CLASSES,), (4, CLASSES), (4, CLASSES, 3)], ids=["C", "NC", "NCd"])
def test_softmax_entropy_is_per_example_and_conditional_entropy_their_mean(shape: tuple[int, ...]) -> None:
    logits = torch.from_numpy(np.random.default_rng(0).normal(scale=3.0, size=shape))
    rows = logits.reshape(1, -1) if len(shape) == 1 else logits.movedim(1, -1).reshape(-1, CLASSES)
    expected = torch.stack([torch.from_numpy(oracle.conditional_entropy([row])) for row in rows])
    close(softmax_entropy(logits), expected.reshape(shape[:1][: len(shape) - 1] + shape[2:]))
    close(conditional_entropy(logits), oracle.conditional_entropy(rows))


# At alpha = 1, torch's cross-entropy


@pytest.mark.parametrize("options", [OPTIONS[name] for name in ("plain", "weight", "ignore", "smoothing")], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_at_alpha_1_the_loss_is_cross_entropy_plus_entropy(reduction: str, options: dict[str, Any]) -> None:
    logits, labels = batch()
    smoothing = options.get("label_smoothing", 0.0)
    smoothed = (1 - smoothing) * one_hot(labels, CLASSES).double() + smoothing / CLASSES
    share = options.get("weight", torch.ones(CLASSES).double())[labels] * (labels != options.get("ignore_index"))
    entropy = share * (softmax_entropy(logits) - torch.special.entr(smoothed).sum(1))
    entropy = {"none": entropy, "sum": entropy.sum(), "mean": entropy.sum() / share.sum()}[reduction]
    expected = entropy + cross_entropy(logits, labels, reduction=reduction, **options)
    close(hr_loss(logits, labels, alpha=1, reduction=reduction, **options), expected)
    if reduction == "mean":
        close(hr_loss(logits, labels, alpha=1, reduction="batch", **options), expected)


# The gradient


@forward_mode
@pytest.mark.parametrize("kind", ["indices", "probabilities"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_first_and_second_derivatives_by_finite_differences(options: dict[str, Any], kind: str) -> None:
    logits, labels = batch(3)
    target = as_target(kind, labels)
    for alpha, reduction in ((1.6, "batch"), (1.6, "none"), (1.0, "mean")):
        check_derivatives(lambda z, a=alpha, r=reduction: hr_loss(z, target, alpha=a, reduction=r, **options), logits)


@forward_mode
@pytest.mark.parametrize(("alpha", "reduction"), [(1.6, "batch"), (1.0, "batch"), (1.6, "none"), (1.0, "mean")])
def test_derivatives_by_the_label_probabilities(alpha: float, reduction: str) -> None:
    logits, target = batch(2)[0], torch.softmax(batch(2, seed=1)[0], 1)
    for options in (OPTIONS["plain"], OPTIONS["all"]):
        check_derivatives(lambda z, p, o=options: hr_loss(z, p, alpha=alpha, reduction=reduction, **o), logits, target)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.6, 3.0])
def test_a_label_of_probability_0_does_not_change_other_gradients(alpha: float) -> None:
    # The gradient by the label 0 is infinite up to alpha = 1; those by the other labels equal those for a tiny label.
    logits, _ = batch(1)
    gradients = []
    for least in (0.0, 1e-40):
        row = torch.tensor([[0.5, least, 0.3, 0.2, least]], dtype=torch.float64, requires_grad=True)
        gradients.append(torch.autograd.grad(hr_loss(logits, row, alpha=alpha), row)[0][:, [0, 2, 3]])
    close(gradients[0], gradients[1], atol=1e-15)


# The range of numbers


@pytest.mark.parametrize("kind", TARGETS)
def test_a_logit_of_minus_infinity_is_probability_0(kind: str) -> None:
    others = [0, 1, 3, 4]
    few, few_labels = batch(classes=len(others))
    few_target = as_target(kind, few_labels, len(others))
    logits = torch.full((len(few), CLASSES), -INF, dtype=torch.float64)
    logits[:, others] = few
    if kind == "indices":
        target = torch.tensor(others)[few_labels]
    else:
        target = torch.zeros(len(few), CLASSES, dtype=torch.float64)
        target[:, others] = few_target.double()
    for alpha in ALPHAS:
        value, gradient = value_and_gradient(logits, target, alpha=alpha)
        close(value, oracle.hr_loss(few, few_target, alpha))
        close(gradient[:, others], value_and_gradient(few, few_target, alpha=alpha)[1], atol=1e-15)
        assert (gradient[:, 2] == 0).all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_label_of_probability_0_is_inf_without_an_exception(reduction: str) -> None:
    logits = torch.tensor([[0.0, -INF, 1.0], [0.0, 1.0, 2.0]], dtype=torch.float64)
    for alpha in (1.0, 1.6, 50.0):
        chosen = {"alpha": alpha, "reduction": reduction}
        value = hr_loss(logits, torch.tensor([1, 0]), **chosen)
        close(value, oracle.hr_loss(logits, [1, 0], **chosen))
        assert value.max() == INF
        assert hr_loss(logits, torch.tensor([0, 0]), label_smoothing=0.1, **chosen).max() == INF


def test_below_alpha_1_the_loss_is_inf_only_if_all_labels_have_probability_0() -> None:
    # E[q^(1 - alpha)] then has a term that is zero, not infinite.
    logits = torch.tensor([[0.0, -INF, 1.0], [0.0, 1.0, 2.0]], dtype=torch.float64)
    close(hr_loss(logits, torch.tensor([1, 0]), alpha=0.5), oracle.hr_loss(logits, [1, 0], 0.5))
    assert hr_loss(logits[:1], torch.tensor([1]), alpha=0.5) == INF


# Batches without mass, and NaN


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("labels", [[], [-100, -100]], ids=["empty", "all-ignored"])
def test_an_empty_batch_is_as_in_cross_entropy(labels: list[int], reduction: str) -> None:
    target = torch.tensor(labels, dtype=torch.long)
    logits = torch.ones(len(labels), 3, requires_grad=True)
    for smoothing in (0.0, 0.1):
        as_torch = cross_entropy(
            logits, target, reduction="mean" if reduction == "batch" else reduction, label_smoothing=smoothing
        )
        value, gradient = value_and_gradient(logits, target, reduction=reduction, label_smoothing=smoothing)
        torch.testing.assert_close(value, as_torch.detach(), rtol=0, atol=0, equal_nan=True)
        assert value.isnan().all() or reduction in ("sum", "none")
        assert torch.equal(gradient, torch.zeros_like(logits))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_an_example_of_weight_0_or_ignored_gets_no_gradient(reduction: str) -> None:
    logits, labels = batch(4)
    labels[:3] = torch.tensor([2, -100, 0])  # class 2 has weight 0
    logits[0, 2] = -INF  # even if its label has probability 0
    value, gradient = value_and_gradient(logits, labels, weight=WEIGHT, reduction=reduction)
    assert value.isfinite().all()
    assert (gradient[:2] == 0).all()
    assert (gradient[2:] != 0).all()


# Transformations of the function


@compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "kind", "options", "sizes", "graphs"),
    [
        ("inductor", "indices", {}, (7, 7, 7), 1),
        ("aot_eager", "indices", {"alpha": 1.0}, (7, 7), 1),
        # The last batch of an epoch is smaller: the second size makes the batch dimension dynamic, for all later sizes.
        ("aot_eager", "probabilities", {**OPTIONS["all"], "reduction": "none"}, (8, 7, 6, 5), 2),
    ],
    ids=["to-machine-code", "at-the-limit", "for-every-batch-size"],
)
def test_the_loss_compiles_to_one_graph(
    backend: str, kind: str, options: dict[str, Any], sizes: tuple[int, ...], graphs: int
) -> None:
    torch.compiler.reset()
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(hr_loss, fullgraph=True, backend=counter)
    for seed, n in enumerate(sizes):
        logits, labels = batch(n, seed=seed)
        target = as_target(kind, labels)
        logits.requires_grad_()
        value = compiled(logits, target, **options)
        (gradient,) = torch.autograd.grad(value.sum(), logits)
        expected, expected_gradient = value_and_gradient(logits, target, **options)
        close(value, expected)
        close(gradient, expected_gradient, atol=1e-15)
    assert counter.frame_count == graphs


@pytest.mark.parametrize("kind", ["indices", "probabilities"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_per_example_gradients_by_vmap(options: dict[str, Any], kind: str) -> None:
    logits, labels = batch()
    target = as_target(kind, labels)
    each = vmap(grad(lambda z, y: hr_loss(z, y, reduction="sum", **options)))(logits, target)
    close(each, value_and_gradient(logits, target, reduction="sum", **options)[1], atol=1e-15)


def test_vmap_over_batches_is_a_loop_over_them() -> None:
    pairs = [batch(seed=seed) for seed in range(3)]
    logits, labels = (torch.stack(tensors) for tensors in zip(*pairs, strict=True))
    close(vmap(hr_loss)(logits, labels), torch.stack([hr_loss(z, y) for z, y in pairs]))


def test_under_autocast_the_loss_is_still_float32() -> None:
    features, labels = batch()
    layer = torch.nn.Linear(CLASSES, CLASSES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = layer(features.float())
        value = hr_loss(logits, labels)
    value.backward()
    assert logits.dtype == torch.bfloat16
    assert value.dtype == torch.float32
    close(value, oracle.hr_loss(logits.detach().double(), labels, 1.6))
    assert layer.weight.grad.isfinite().all()


# The divergence of eq. (4)

# Sixteenths sum to exactly 1 in any precision; eq. (4) would magnify a rounding of the sum for alpha near 0 or 1.
P, Q = np.array([8, 4, 3, 1]) / 16, np.array([2, 3, 5, 6]) / 16


def divergence(p: Any, q: Any, alpha: float, **options: Any) -> Tensor:
    """Return D_alpha of probabilities instead of log-probabilities."""
    return renyi_divergence(torch.as_tensor(p).log(), torch.as_tensor(q).log(), alpha=alpha, **options)


@pytest.mark.parametrize("alpha", [*ALPHAS, 1e-9, 1e-3, 0.1, 0.9, 1 - 1e-9])
def test_divergence_equals_equation_4(alpha: float) -> None:
    close(divergence(P, Q, alpha), oracle.renyi_divergence(P, Q, alpha))
    close(divergence(np.float32(P), np.float32(Q), alpha), oracle.renyi_divergence(P, Q, alpha))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_divergence_in_log_space_where_probabilities_underflow(dtype: torch.dtype) -> None:
    log_p, log_q = torch.tensor([-200.0, 0.0], dtype=dtype), torch.tensor([-1000.0, 0.0], dtype=dtype)
    close(renyi_divergence(log_p, log_q, alpha=2), 300.0)  # 1/2 log(exp(-400 + 1000) + 1)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_divergence_at_its_limits(alpha: float) -> None:
    assert divergence(P, P, alpha) == 0
    assert divergence([1.0, 0.0], [1.0, 0.0], alpha) == 0
    assert divergence([1.0, 0.0], [0.0, 1.0], alpha) == INF
    half = divergence([0.5, 0.5], [0.0, 1.0], alpha)  # p is positive where q is 0: finite below alpha = 1
    close(half.double(), oracle.renyi_divergence([0.5, 0.5], [0.0, 1.0], alpha), rtol=1e-6)
    assert half.isfinite() == (alpha < 1)
    close(divergence([0.0, 1.0], [0.5, 0.5], alpha).double(), math.log(2) / alpha, rtol=1e-6)


def test_divergence_broadcasts_and_takes_a_dimension() -> None:
    rows = torch.tensor(np.stack([Q, P, np.full(4, 0.25)]))
    expected = [float(oracle.renyi_divergence(P, row, 1.6)) for row in rows]
    close(divergence(P, rows, 1.6), expected, atol=1e-15)
    close(divergence(rows, P, 1.6), [float(oracle.renyi_divergence(row, P, 1.6)) for row in rows], atol=1e-15)
    close(divergence(P[:, None], rows.T, 1.6, dim=0), expected, atol=1e-15)
    close(divergence(P[:, None], rows.T, 1.6, dim=-2), expected, atol=1e-15)
    assert divergence(P, rows[:, None, :].expand(3, 2, 4), 1.6).shape == (3, 2)


@forward_mode
@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.6])
def test_divergence_is_differentiable(alpha: float) -> None:
    logits, _ = batch(2)

    def of_logits(z: Tensor) -> Tensor:
        return renyi_divergence(z[0].log_softmax(-1), z[1].log_softmax(-1), alpha=alpha)

    check_derivatives(of_logits, logits)


def test_divergence_at_order_1_is_infinite_for_any_excluded_class() -> None:
    for log_rare in (-1.0, -700.0, -1000.0):
        log_p = torch.tensor([math.log1p(-math.exp(log_rare)), log_rare], dtype=torch.float64)
        for alpha in (1.0, 1 + 1e-12, 1.6):
            assert renyi_divergence(log_p, torch.tensor([0.0, -INF]).double(), alpha=alpha) == INF


# Examples found by hypothesis

SIXTEENTHS = st.integers(-800, 800).map(lambda i: i / 16)  # -50 .. 50; sums with small integers are exact


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Draw up to 6 examples of up to 5 classes, also with ties and large margins."""
    n, classes = draw(st.integers(1, 6)), draw(st.integers(2, 5))
    logits = draw(arrays(np.float64, (n, classes), elements=SIXTEENTHS))
    labels = draw(arrays(np.int64, n, elements=st.integers(0, classes - 1)))
    return torch.from_numpy(logits), torch.from_numpy(labels)


@settings(deadline=None, derandomize=True, max_examples=25)
@given(batches(), st.floats(0.05, 20.0), st.lists(st.integers(0, 3), min_size=5, max_size=5), st.sampled_from(TARGETS))
def test_random_batches_equal_the_paper_equations(data: Any, alpha: float, counts: list[int], kind: str) -> None:
    logits, labels = data
    target, weight = as_target(kind, labels, logits.shape[1]), torch.tensor(counts[: logits.shape[1]])
    rows = target if target.ndim == 2 else one_hot(labels, logits.shape[1])
    assume((rows * weight).sum() > 0)
    for options in ({}, {"weight": weight}):
        # -log q is at most 105, whose rounding error is 2e-14; a factor of 50 allows for the roundings of a sum.
        expected = oracle.hr_loss(logits, target, alpha, **options)
        close(hr_loss(logits, target, alpha=alpha, **options), expected, rtol=1e-12, atol=1e-12)
