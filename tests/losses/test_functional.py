"""`losses._functional` against the paper's equations (oracle.py), torch's cross-entropy and the loss's own laws."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import chisquare
from scipy.stats import entropy as relative_entropy
from testing import oracle
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import grad, hessian, jacrev, vmap
from torch.nn.functional import cross_entropy, one_hot

from art_hrloss import hr_loss
from art_hrloss.losses._functional import conditional_entropy, hr_loss_terms, renyi_divergence, softmax_entropy

ALPHAS = [0.5, 1.0, 1 + 1e-12, 1 + 1e-6, 1.6, 2.0, 3.0, 50.0]
REDUCTIONS = ["batch", "mean", "sum", "none"]
CLASSES = 5
WEIGHT = torch.tensor([0.5, 2.0, 0.0, 1.0, 3.0], dtype=torch.float64)  # one class weighs nothing: it must drop out
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "weight": {"weight": WEIGHT},
    "smoothing": {"label_smoothing": 0.1},
    "ignore": {"ignore_index": 1},
    "all": {"weight": WEIGHT, "label_smoothing": 0.1, "ignore_index": 1},
}
TARGETS = ["indices", "one-hot", "probabilities"]
# Torch's own, the first time that forward mode is used.
forward_mode = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")
# That of torch 2.8's compiler, for every autograd.Function.
compiler = pytest.mark.filterwarnings("ignore:.* should not be instantiated:DeprecationWarning")
INF, NAN = math.inf, math.nan

# exp(-m) turns the rounding of a margin m into a relative error of m eps, and m is at most 745 before exp underflows in
# float64, 103 in float32: 8e-14 and 6e-6. Below the least normal number float32 has no relative precision to test, and
# below 1e-80 the oracle's 100 digits no longer tell -log(1 - loss) from 0.
RTOL = {torch.float64: 1e-12, torch.float32: 1e-5}
ATOL = {torch.float64: 1e-80, torch.float32: 1e-36}


def close(actual: Tensor, expected: Any, rtol: float | None = None, atol: float | None = None) -> None:
    """Assert that `actual` is `expected` to the precision of its own dtype; NaN is equal to nothing."""
    rtol = RTOL[actual.dtype] if rtol is None else rtol
    atol = ATOL[actual.dtype] if atol is None else atol
    expected = torch.as_tensor(np.asarray(expected.detach() if isinstance(expected, Tensor) else expected))
    torch.testing.assert_close(actual.detach().double(), expected.double(), rtol=rtol, atol=atol)


def batch(n: int = 7, classes: int = CLASSES, scale: float = 2.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Float64 logits that float32 holds exactly, so that one expected value serves both; and labels."""
    random = np.random.default_rng([seed, n, classes])
    logits = torch.from_numpy(random.normal(scale=scale, size=(n, classes)))
    return logits.float().double(), torch.from_numpy(random.integers(classes, size=n))


def as_target(kind: str, labels: Tensor, classes: int = CLASSES) -> Tensor:
    """The labels as class indices, as integer one-hot rows, or as probabilities around them, some of them 0."""
    if kind == "indices":
        return labels
    if kind == "one-hot":
        return one_hot(labels, classes)
    random = np.random.default_rng(len(labels))
    soft = torch.from_numpy(random.dirichlet(np.ones(classes), size=len(labels))) + one_hot(labels, classes)
    soft[soft < 0.1] = 0.0
    return soft / soft.sum(1, keepdim=True)


def value_and_gradient(logits: Tensor, target: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """The loss and the gradient of its sum by the logits."""
    logits = logits.detach().requires_grad_()
    value = hr_loss(logits, target, **options)
    return value.detach(), torch.autograd.grad(value.sum(), logits)[0]


def check_derivatives(function: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Reverse mode, reverse mode under vmap, forward mode and second derivatives, against finite differences."""
    inputs = tuple(tensor.detach().requires_grad_() for tensor in inputs)
    # fast_mode compares random projections of the Jacobians instead of each entry.
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


# The value


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 100.0, 1000.0])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_value_is_that_of_equation_3(alpha: float, scale: float) -> None:
    for n, classes in [(1, 2), (5, 50), (64, 3)]:
        logits, labels = batch(n, classes, scale)
        expected = oracle.hr_loss(logits, labels, alpha)
        close(hr_loss(logits, labels, alpha=alpha), expected)
        close(hr_loss(logits.float(), labels, alpha=alpha), expected)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.6, 50.0])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_option_is_a_choice_of_the_joint_distribution(
    options: dict[str, Any], kind: str, reduction: str, alpha: float
) -> None:
    logits, labels = batch()
    target = as_target(kind, labels)
    expected = oracle.hr_loss(logits, target, alpha, reduction, **options)
    close(hr_loss(logits, target, alpha=alpha, reduction=reduction, **options), expected)
    close(hr_loss(logits.float(), target, alpha=alpha, reduction=reduction, **options), expected)


def test_the_defaults_are_the_papers() -> None:
    logits, labels = batch()
    close(hr_loss(logits, labels), oracle.hr_loss(logits, labels, 1.6, "batch"))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("shape", [(), (6,), (3, 2), (2, 3, 2)], ids=["C", "NC", "NCd", "NCdd"])
def test_every_position_is_an_example(shape: tuple[int, ...], kind: str, reduction: str) -> None:
    flat_logits, flat_labels = batch(max(1, math.prod(shape)))
    flat_target = as_target(kind, flat_labels)

    def shaped(rows: Tensor) -> Tensor:
        """(N * d, C) as (N, C, d), and (1, C) as (C,)."""
        return rows.reshape(*shape, CLASSES).movedim(-1, 1) if shape else rows[0]

    target = flat_target.reshape(shape) if kind == "indices" else shaped(flat_target)
    actual = hr_loss(shaped(flat_logits), target, reduction=reduction)
    expected = hr_loss(flat_logits, flat_target, reduction=reduction)
    close(actual, expected.reshape(shape) if reduction == "none" else expected)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", ["indices", "probabilities"])
def test_the_two_terms_add_up_and_are_what_their_names_say(kind: str, reduction: str) -> None:
    logits, labels = batch()
    target, share = as_target(kind, labels), -math.log(len(logits))
    terms = hr_loss_terms(logits, target, reduction=reduction)
    close(terms.conditional_entropy + terms.renyi_divergence, hr_loss(logits, target, reduction=reduction))
    if reduction == "batch":
        log_p = as_target("one-hot" if kind == "indices" else kind, labels).double().log() + share
        log_joint = (logits.log_softmax(1) + share).flatten()
        close(terms.conditional_entropy, oracle.conditional_entropy(logits))
        close(terms.renyi_divergence, 1.6 * renyi_divergence(log_p.flatten(), log_joint, alpha=1.6))


@pytest.mark.parametrize("shape", [(CLASSES,), (4, CLASSES), (4, CLASSES, 3)], ids=["C", "NC", "NCd"])
def test_softmax_entropy_is_per_example_and_conditional_entropy_their_mean(shape: tuple[int, ...]) -> None:
    logits = torch.from_numpy(np.random.default_rng(0).normal(scale=3.0, size=shape))
    rows = logits.reshape(1, -1) if len(shape) == 1 else logits.movedim(1, -1).reshape(-1, CLASSES)
    expected = torch.stack([torch.from_numpy(oracle.conditional_entropy([row])) for row in rows])
    close(softmax_entropy(logits), expected.reshape(shape[:1][: len(shape) - 1] + shape[2:]))
    close(conditional_entropy(logits), oracle.conditional_entropy(rows))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_one_example_alone_does_not_depend_on_alpha(alpha: float) -> None:
    for scale in (0.1, 10.0, 1000.0):
        logits, labels = batch(1, scale=scale)
        close(
            hr_loss(logits, labels, alpha=alpha),
            oracle.conditional_entropy(logits) + oracle.cross_entropy(logits, labels),
        )


# At alpha = 1, torch's cross-entropy


@pytest.mark.parametrize("options", [{}, {"weight": WEIGHT}, {"ignore_index": 1}], ids=["plain", "weight", "ignore"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_at_alpha_1_it_is_entropy_plus_torchs_cross_entropy(reduction: str, options: dict[str, Any]) -> None:
    logits, labels = batch()
    share = options.get("weight", torch.ones(CLASSES).double())[labels] * (labels != options.get("ignore_index"))
    entropy = share * softmax_entropy(logits)
    entropy = {"none": entropy, "sum": entropy.sum(), "mean": entropy.sum() / share.sum()}[reduction]
    expected = entropy + cross_entropy(logits, labels, reduction=reduction, **options)
    close(hr_loss(logits, labels, alpha=1, reduction=reduction, **options), expected)
    if reduction == "mean":
        close(hr_loss(logits, labels, alpha=1, reduction="batch", **options), expected)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("kind", ["indices", "probabilities"])
def test_at_alpha_1_label_smoothing_is_torchs_up_to_the_labels_entropy(kind: str, reduction: str) -> None:
    logits, labels = batch()
    target, smoothing = as_target(kind, labels), 0.1
    rows = as_target("one-hot" if kind == "indices" else kind, labels).double()
    smoothed = (1 - smoothing) * rows + smoothing / CLASSES
    extra = softmax_entropy(logits) - torch.special.entr(smoothed).sum(1)
    extra = {"none": extra, "sum": extra.sum(), "mean": extra.mean()}[reduction]
    expected = extra + cross_entropy(logits, target, reduction=reduction, label_smoothing=smoothing)
    close(hr_loss(logits, target, alpha=1, reduction=reduction, label_smoothing=smoothing), expected)


# The gradient


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_gradient_is_the_closed_one(alpha: float, scale: float) -> None:
    for n, classes in [(1, 2), (6, 10)]:
        logits, labels = batch(n, classes, scale)
        _, gradient = value_and_gradient(logits, labels, alpha=alpha)
        expected = oracle.gradient(logits, labels, alpha)
        close(gradient, expected, atol=1e-15)  # where its two terms cancel, eps times their size, below 1, is left


def test_gradient_where_classes_tie_for_the_top() -> None:
    # log_softmax singles out one top class; which one must not show.
    logits = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    for labels in ([0, 0], [1, 1], [2, 2]):
        _, gradient = value_and_gradient(logits, torch.tensor(labels))
        close(gradient, oracle.gradient(logits, labels, 1.6), atol=1e-15)


@forward_mode
@pytest.mark.parametrize("alpha", [1.0, 1.6])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", ["indices", "probabilities"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_first_and_second_derivatives_by_finite_differences(
    options: dict[str, Any], kind: str, reduction: str, alpha: float
) -> None:
    logits, labels = batch(3)
    target = as_target(kind, labels)

    def loss(z: Tensor) -> Tensor:
        return hr_loss(z, target, alpha=alpha, reduction=reduction, **options)

    check_derivatives(loss, logits)


@forward_mode
@pytest.mark.parametrize("alpha", [1.0, 1.6])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("options", [OPTIONS["plain"], OPTIONS["all"]], ids=["plain", "all"])
def test_derivatives_by_the_label_probabilities(options: dict[str, Any], reduction: str, alpha: float) -> None:
    logits, _ = batch(2)
    target = torch.softmax(batch(2, seed=1)[0], 1)

    def loss(z: Tensor, p: Tensor) -> Tensor:
        return hr_loss(z, p, alpha=alpha, reduction=reduction, **options)

    check_derivatives(loss, logits, target)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.6, 3.0])
def test_a_label_of_probability_0_leaves_the_others_their_gradients(alpha: float) -> None:
    # By the 0 itself the gradient is infinite up to alpha = 1; the other labels' must be as for the least of numbers.
    logits, _ = batch(1)
    gradients = []
    for least in (0.0, 1e-40):
        row = torch.tensor([[0.5, least, 0.3, 0.2, least]], dtype=torch.float64, requires_grad=True)
        gradients.append(torch.autograd.grad(hr_loss(logits, row, alpha=alpha), row)[0][:, [0, 2, 3]])
    close(gradients[0], gradients[1], atol=1e-15)


# The range of numbers


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.6, 50.0])
def test_logits_of_ten_thousand_are_finite_and_right(alpha: float, dtype: torch.dtype) -> None:
    logits, labels = batch(scale=4000.0)
    logits = logits.clamp(-1e4, 1e4).to(dtype)
    value, gradient = value_and_gradient(logits, labels, alpha=alpha)
    close(value, oracle.hr_loss(logits.double(), labels, alpha))
    # An example's share in the gradient is exp((alpha - 1) (-log q)), of a logarithm up to 2e4 that is rounded.
    rounding = abs(alpha - 1) * 2e4 * torch.finfo(value.dtype).eps + torch.finfo(dtype).eps
    close(gradient, oracle.gradient(logits.double(), labels, alpha), rtol=rounding, atol=rounding)


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("alpha", ALPHAS)
def test_a_class_at_minus_infinity_is_no_class(alpha: float, kind: str) -> None:
    others = [0, 1, 3, 4]
    few, few_labels = batch(classes=len(others))
    expected = value_and_gradient(few, as_target(kind, few_labels, len(others)), alpha=alpha)
    logits = torch.full((len(few), CLASSES), -INF, dtype=torch.float64)
    logits[:, others] = few
    if kind == "indices":
        target = torch.tensor(others)[few_labels]
    else:
        target = torch.zeros(len(few), CLASSES, dtype=torch.float64)
        target[:, others] = as_target(kind, few_labels, len(others)).double()
    value, gradient = value_and_gradient(logits, target, alpha=alpha)
    close(value, oracle.hr_loss(few, as_target(kind, few_labels, len(others)), alpha))
    close(gradient[:, others], expected[1], atol=1e-15)
    assert (gradient[:, 2] == 0).all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("alpha", [1.0, 1.6, 50.0])
def test_a_label_of_probability_0_is_inf_without_an_exception(alpha: float, reduction: str) -> None:
    logits = torch.tensor([[0.0, -INF, 1.0], [0.0, 1.0, 2.0]], dtype=torch.float64)
    value = hr_loss(logits, torch.tensor([1, 0]), alpha=alpha, reduction=reduction)
    close(value, oracle.hr_loss(logits, [1, 0], alpha, reduction))
    assert value.max() == INF
    assert hr_loss(logits, torch.tensor([0, 0]), alpha=alpha, reduction=reduction, label_smoothing=0.1).max() == INF


def test_below_alpha_1_only_a_batch_without_any_possible_label_is_inf() -> None:
    # E[q^(1 - alpha)] then has a zero term, not an infinite one.
    logits = torch.tensor([[0.0, -INF, 1.0], [0.0, 1.0, 2.0]], dtype=torch.float64)
    close(hr_loss(logits, torch.tensor([1, 0]), alpha=0.5), oracle.hr_loss(logits, [1, 0], 0.5))
    assert hr_loss(logits[:1], torch.tensor([1]), alpha=0.5) == INF


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_half_precisions_are_computed_in_float32(dtype: torch.dtype, reduction: str) -> None:
    logits, labels = batch(scale=5.0)
    logits = logits.to(dtype)
    value, gradient = value_and_gradient(logits, labels, reduction=reduction, weight=WEIGHT.to(dtype))
    exact, exact_gradient = value_and_gradient(logits.double(), labels, reduction=reduction, weight=WEIGHT)
    assert value.dtype == torch.float32
    close(value, exact)
    # The gradient is handed to the caller in his own dtype: one rounding, and underflow below its least number.
    info = torch.finfo(dtype)
    close(gradient, exact_gradient, rtol=info.eps, atol=info.smallest_normal * info.eps)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_function_keeps_the_dtype_and_raises_half_precision(dtype: torch.dtype) -> None:
    logits, labels = batch()
    logits, expected = logits.to(dtype), torch.float64 if dtype == torch.float64 else torch.float32
    assert hr_loss(logits, labels).dtype == expected
    assert softmax_entropy(logits).dtype == expected
    assert conditional_entropy(logits).dtype == expected
    assert renyi_divergence(logits.log_softmax(1), logits.log_softmax(1), alpha=2).dtype == expected


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64], ids=str)
def test_labels_may_be_of_any_integer_type(dtype: torch.dtype) -> None:
    logits, labels = batch()
    assert torch.equal(hr_loss(logits, labels.to(dtype)), hr_loss(logits, labels))


@pytest.mark.parametrize(
    "lay_out",
    [lambda z: z.t().contiguous().t(), lambda z: torch.stack([z, z], -1)[..., 0], lambda z: z[:1].expand(4, -1)],
    ids=["transposed", "strided", "expanded"],
)
def test_memory_layout_does_not_matter(lay_out: Any) -> None:
    logits, labels = batch(4)
    logits = lay_out(logits)
    assert not logits.is_contiguous()
    value, gradient = value_and_gradient(logits, labels)
    expected, expected_gradient = value_and_gradient(logits.contiguous(), labels)
    close(value, expected)
    close(gradient, expected_gradient, atol=1e-16)  # of terms below 1 that may cancel


def test_inputs_are_left_as_they_are() -> None:
    logits, labels = batch()
    target, weight = as_target("probabilities", labels), WEIGHT.clone()
    copies = [logits.clone(), target.clone(), weight.clone()]
    hr_loss(logits, target, weight=weight, label_smoothing=0.1)
    for left, copy in zip([logits, target, weight], copies, strict=True):
        assert torch.equal(left, copy)


# Precision where the usual writing has none


@pytest.mark.parametrize("label", [0, 1, 2])
@pytest.mark.parametrize("margin", [20.0, 40.0, 80.0])
def test_float32_keeps_its_relative_precision_at_large_margins(margin: float, label: int) -> None:
    logits = torch.tensor([[margin, 0.0, -1.0]])
    value, gradient = value_and_gradient(logits, torch.tensor([label]))
    close(value, oracle.hr_loss(logits, [label], 1.6))
    close(gradient, oracle.gradient(logits, [label], 1.6))


@pytest.mark.parametrize("margin", [20.0, 40.0, 80.0])
def test_the_reason_torchs_cross_entropy_loses_the_true_class_there(margin: float) -> None:
    logits = torch.tensor([[margin, 0.0, -1.0]], requires_grad=True)
    value = cross_entropy(logits, torch.tensor([0]))
    (gradient,) = torch.autograd.grad(value, logits)
    assert value == 0
    assert gradient[0, 0] == 0
    assert oracle.gradient(logits.detach(), [0], 1.0)[0, 0] < 0


@pytest.mark.parametrize("alpha", [1 - 1e-7, 1 - 1e-12, 1 + 1e-12, 1 + 1e-9, 1 + 1e-7])
def test_near_alpha_1_float32_stays_at_the_limit(alpha: float) -> None:
    logits, labels = batch(32, scale=3.0)
    limit, limit_gradient = value_and_gradient(logits, labels, alpha=1)
    value, gradient = value_and_gradient(logits.float(), labels, alpha=alpha)
    close(value, limit)
    close(gradient, limit_gradient, atol=1e-7)  # eps of float32: the terms that cancel are below 1
    # The reason: written as printed, 1/(alpha - 1) magnifies the rounding of the logarithm.
    entropy = softmax_entropy(logits).mean()
    likelihood = logits.float().softmax(1).gather(1, labels[:, None])
    naive = entropy + likelihood.pow(1 - alpha).mean().log() / (alpha - 1)
    assert (naive / limit - 1).abs() > 0.01


@pytest.mark.parametrize("alpha", [1e-9, 1e3, 1e6, 1e12])
@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_extreme_orders_tend_to_their_limits(alpha: float, scale: float) -> None:
    logits, labels = batch(scale=scale)
    expected = oracle.hr_loss(logits, labels, alpha)
    close(hr_loss(logits, labels, alpha=alpha), expected)
    close(hr_loss(logits.float(), labels, alpha=alpha), expected)


# Nothing to average, and what is not a number


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("labels", [[], [-100, -100]], ids=["empty", "all-ignored"])
def test_no_example_at_all_is_as_in_cross_entropy(labels: list[int], reduction: str, smoothing: float) -> None:
    target = torch.tensor(labels, dtype=torch.long)
    logits = torch.ones(len(labels), 3, requires_grad=True)
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
    labels[:3] = torch.tensor([2, -100, 0])  # class 2 weighs nothing
    logits[0, 2] = -INF  # even where its label has probability 0
    value, gradient = value_and_gradient(logits, labels, weight=WEIGHT, reduction=reduction)
    assert value.isfinite().all()
    assert (gradient[:2] == 0).all()
    assert (gradient[2:] != 0).all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", ["indices", "probabilities"])
@pytest.mark.parametrize("classes", [1, 2, 5])
@pytest.mark.parametrize("bad", [NAN, INF])
def test_logits_that_overflowed_are_nan_as_in_cross_entropy(
    bad: float, classes: int, kind: str, reduction: str
) -> None:
    # Silently finite, with a gradient of 0, they would read as an attack that failed.
    target = as_target(kind, torch.zeros(2, dtype=torch.long), classes)
    logits = torch.zeros(2, classes, dtype=torch.float64)
    logits[0, 0] = bad
    as_torch = cross_entropy(logits, target, reduction="none")
    assert as_torch.isnan().tolist() == [True, False]
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
def test_overflow_is_nan_in_the_other_functions_too(bad: float) -> None:
    logits = torch.tensor([[bad, 0.0], [1.0, 0.0]])
    assert softmax_entropy(logits).isnan().tolist() == [True, False]
    assert conditional_entropy(logits).isnan()
    log_q = torch.tensor([0.25, 0.75]).log()
    for alpha in (0.1, 0.5, 1.0, 1.6):
        assert renyi_divergence(torch.tensor([NAN, 0.0]), log_q, alpha=alpha).isnan()
        assert renyi_divergence(log_q, torch.tensor([NAN, 0.0]), alpha=alpha).isnan()


# Transformations of the function


COMPILED: dict[str, dict[str, Any]] = {
    "paper": {},
    "all-options": {**OPTIONS["all"], "reduction": "none"},
    "limit": {"alpha": 1.0, "reduction": "mean"},
}


def check_compiled(backend: Any, kind: str, options: dict[str, Any]) -> None:
    """Compile in one graph and compare value and gradient on new data of the same shape."""
    torch._dynamo.reset()
    compiled = torch.compile(hr_loss, fullgraph=True, backend=backend)
    for seed in range(3):
        logits, labels = batch(seed=seed)
        target = as_target(kind, labels)
        logits.requires_grad_()
        value = compiled(logits, target, **options)
        (gradient,) = torch.autograd.grad(value.sum(), logits)
        expected, expected_gradient = value_and_gradient(logits, target, **options)
        close(value, expected)
        close(gradient, expected_gradient, atol=1e-15)


@compiler
@pytest.mark.parametrize("kind", ["indices", "probabilities"])
@pytest.mark.parametrize("options", COMPILED.values(), ids=COMPILED)
def test_compiles_once_in_one_graph(options: dict[str, Any], kind: str) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    check_compiled(counter, kind, options)
    assert counter.frame_count == 1


@compiler
def test_compiles_for_every_batch_size_at_once() -> None:
    # The last batch of an epoch is smaller: the second size makes the batch dimension dynamic, the third costs nothing.
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(hr_loss, fullgraph=True, backend=counter)
    for n in (8, 7, 6, 5):
        logits, labels = batch(n)
        close(compiled(logits, labels), hr_loss(logits, labels))
    assert counter.frame_count == 2


@compiler
def test_compiles_to_machine_code() -> None:
    check_compiled("inductor", "indices", {})


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


@forward_mode
def test_the_batch_couples_its_examples_and_the_per_example_loss_does_not() -> None:
    logits, labels = batch(3)
    jacobian = jacrev(lambda z: hr_loss(z, labels, reduction="none"))(logits)
    coupling = hessian(lambda z: hr_loss(z, labels))(logits)
    for i in range(3):
        for j in range(3):
            assert bool((jacobian[i, j] != 0).all()) == (i == j)
            assert (coupling[i, :, j] != 0).all()


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

# Sixteenths sum to exactly 1 in any precision: eq. (4) divides by alpha (alpha - 1), the logarithm of that sum with it.
P, Q = np.array([8, 4, 3, 1]) / 16, np.array([2, 3, 5, 6]) / 16


def divergence(p: Any, q: Any, alpha: float, **options: Any) -> Tensor:
    """D_alpha of probabilities instead of log-probabilities."""
    return renyi_divergence(torch.as_tensor(p).log(), torch.as_tensor(q).log(), alpha=alpha, **options)


@pytest.mark.parametrize("alpha", [*ALPHAS, 1e-9, 1e-3, 0.1, 0.9, 1 - 1e-9])
def test_divergence_is_that_of_equation_4(alpha: float) -> None:
    close(divergence(P, Q, alpha), oracle.renyi_divergence(P, Q, alpha))
    close(divergence(np.float32(P), np.float32(Q), alpha), oracle.renyi_divergence(P, Q, alpha))


def test_divergence_against_scipy() -> None:
    close(divergence(P, Q, 1), relative_entropy(P, Q))
    # The chi-square statistic sum (p - q)^2 / q is exp(R_2) - 1, and the paper's D_2 is half the usual R_2.
    close(divergence(P, Q, 2), np.log1p(chisquare(P, Q).statistic) / 2)


@pytest.mark.parametrize("alpha", [0.1, 0.3, 0.5, 0.9])
def test_divergence_is_skew_symmetric(alpha: float) -> None:
    # R_a(p || q) / a = R_(1 - a)(q || p) / (1 - a) for the usual R_a = a D_a: with the paper's scaling, plain symmetry.
    close(divergence(P, Q, alpha), divergence(Q, P, 1 - alpha))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_divergence_in_log_space_where_probabilities_underflow(dtype: torch.dtype) -> None:
    log_p, log_q = torch.tensor([-200.0, 0.0], dtype=dtype), torch.tensor([-1000.0, 0.0], dtype=dtype)
    close(renyi_divergence(log_p, log_q, alpha=2), 300.0)  # 1/2 log(exp(-400 + 1000) + 1)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_divergence_at_its_ends(alpha: float) -> None:
    assert divergence(P, P, alpha) == 0
    assert divergence([1.0, 0.0], [1.0, 0.0], alpha) == 0
    assert divergence([1.0, 0.0], [0.0, 1.0], alpha) == INF
    half = divergence([0.5, 0.5], [0.0, 1.0], alpha)  # p puts weight where q has none: finite below alpha = 1
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


# Laws of the loss, on examples that hypothesis looks for

law = settings(deadline=None, derandomize=True, max_examples=100)
SIXTEENTHS = st.integers(-800, 800).map(lambda i: i / 16)  # -50 .. 50; sums with small integers are exact
ORDERS = st.floats(0.05, 20.0)
# Here -log q is at most 105, of which eps is 2e-14; a factor of 50 is left for the roundings of a sum.
ROUNDING = 1e-12


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Up to 6 examples of up to 5 classes, ties and large margins among them."""
    n, classes = draw(st.integers(1, 6)), draw(st.integers(2, 5))
    logits = draw(arrays(np.float64, (n, classes), elements=SIXTEENTHS))
    labels = draw(arrays(np.int64, n, elements=st.integers(0, classes - 1)))
    return torch.from_numpy(logits), torch.from_numpy(labels)


def equal(actual: Tensor, expected: Tensor) -> None:
    """Assert equality up to the rounding of terms of up to 105 nats."""
    close(actual, expected, rtol=ROUNDING, atol=ROUNDING)


@law
@given(batches(), ORDERS, ORDERS, st.booleans())
def test_law_the_divergence_never_falls_as_alpha_grows(data: Any, one: float, other: float, soft: bool) -> None:
    logits, labels = data
    target = as_target("probabilities", labels, logits.shape[1]) if soft else labels
    low, high = (hr_loss_terms(logits, target, alpha=a).renyi_divergence for a in sorted((one, other)))
    assert low <= high + ROUNDING * (1 + high)


@law
@given(batches(), st.floats(1.0, 20.0))
def test_law_cross_entropy_is_below_the_divergence_plus_the_labels_entropy(data: Any, alpha: float) -> None:
    logits, labels = data
    soft = as_target("probabilities", labels, logits.shape[1])
    for target, entropy in ((labels, 0.0), (soft, torch.special.entr(soft).sum(1).mean())):
        divergence = hr_loss_terms(logits, target, alpha=alpha).renyi_divergence
        assert cross_entropy(logits, target) <= divergence + entropy + ROUNDING * (1 + divergence)


@law
@given(batches(), ORDERS, st.randoms(use_true_random=False))
def test_law_order_of_examples_and_names_of_classes_do_not_matter(data: Any, alpha: float, random: Any) -> None:
    logits, labels = data
    rows, names = list(range(len(labels))), list(range(logits.shape[1]))
    random.shuffle(rows)
    random.shuffle(names)
    renamed = torch.tensor(names).argsort()[labels]
    expected = hr_loss(logits, labels, alpha=alpha)
    equal(hr_loss(logits[rows], labels[rows], alpha=alpha), expected)
    equal(hr_loss(logits[:, names], renamed, alpha=alpha), expected)


@law
@given(batches(), ORDERS, st.integers(-1000, 1000))
def test_law_a_constant_added_to_the_logits_changes_nothing(data: Any, alpha: float, constant: int) -> None:
    logits, labels = data
    assert torch.equal(hr_loss(logits + constant, labels, alpha=alpha), hr_loss(logits, labels, alpha=alpha))


@law
@given(batches(), ORDERS, st.sampled_from(REDUCTIONS))
def test_law_both_terms_are_at_least_0_and_the_entropy_at_most_log_m(data: Any, alpha: float, reduction: str) -> None:
    logits, labels = data
    for target in (labels, as_target("probabilities", labels, logits.shape[1])):
        terms = hr_loss_terms(logits, target, alpha=alpha, reduction=reduction)
        assert (terms.conditional_entropy >= 0).all()
        assert (terms.renyi_divergence >= -ROUNDING).all()
        count = len(logits) if reduction == "sum" else 1
        assert (terms.conditional_entropy <= count * math.log(logits.shape[1]) * (1 + ROUNDING)).all()


@law
@given(batches(), ORDERS, st.integers(2, 4))
def test_law_a_batch_of_copies_equals_one_copy(data: Any, alpha: float, copies: int) -> None:
    logits, labels = data
    equal(hr_loss(logits.repeat(copies, 1), labels.repeat(copies), alpha=alpha), hr_loss(logits, labels, alpha=alpha))


@law
@given(
    batches(), ORDERS, st.lists(st.integers(0, 3), min_size=5, max_size=5), st.sampled_from(["batch", "mean", "sum"])
)
def test_law_an_integer_weight_repeats_the_example(data: Any, alpha: float, counts: list[int], reduction: str) -> None:
    logits, labels = data
    weight = torch.tensor(counts[: logits.shape[1]])
    times = weight[labels]
    assume(times.sum() > 0)
    repeated = logits.repeat_interleave(times, 0), labels.repeat_interleave(times)
    equal(
        hr_loss(logits, labels, alpha=alpha, weight=weight, reduction=reduction),
        hr_loss(*repeated, alpha=alpha, reduction=reduction),
    )


@law
@given(batches(), ORDERS, st.floats(1e-6, 1e6), st.sampled_from(REDUCTIONS))
def test_law_the_scale_of_the_weights(data: Any, alpha: float, scale: float, reduction: str) -> None:
    logits, labels = data
    weight = torch.arange(1, logits.shape[1] + 1, dtype=torch.float64)
    one = hr_loss(logits, labels, alpha=alpha, weight=weight, reduction=reduction)
    scaled = hr_loss(logits, labels, alpha=alpha, weight=scale * weight, reduction=reduction)
    equal(scaled, one if reduction in ("batch", "mean") else scale * one)


# Bad input

LOGITS, LABELS = torch.zeros(4, 3), torch.zeros(4, dtype=torch.long)
BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "logits int": ({"logits": LOGITS.long()}, TypeError, "expected a floating-point tensor, but got torch.int64"),
    "logits list": ({"logits": [[0.0]]}, TypeError, "expected a floating-point tensor, but got list"),
    "logits scalar": ({"logits": torch.tensor(0.0)}, ValueError, r"expected logits of shape \(C,\).*, but got \(\)"),
    "logits no class": ({"logits": torch.zeros(4, 0)}, ValueError, r"expected logits of shape .* but got \(4, 0\)"),
    "target too long": (
        {"target": torch.zeros(5, dtype=torch.long)},
        ValueError,
        r"expected a target of shape \(4,\) .* or \(4, 3\) .*, but got \(5,\)",
    ),
    "target of too many classes": ({"target": torch.zeros(4, 2)}, ValueError, r"but got \(4, 2\)"),
    "target a column": ({"target": LABELS[:, None]}, ValueError, r"but got \(4, 1\)"),
    "target a scalar": ({"target": LABELS[0]}, ValueError, r"but got \(\)"),
    "target float indices": (
        {"target": LABELS.float()},
        TypeError,
        "class indices to be integers, but got torch.float32",
    ),
    "target bool indices": ({"target": LABELS.bool()}, TypeError, "class indices to be integers, but got torch.bool"),
    "target complex": ({"target": LABELS.cfloat()}, TypeError, "class indices to be integers, but got torch.complex64"),
    "target class too high": ({"target": LABELS + 3}, Exception, "index 3 is out of bounds"),
    "target class below 0": ({"target": LABELS - 1}, Exception, "index -1 is out of bounds"),
    "alpha 0": ({"alpha": 0}, ValueError, "expected alpha to be finite and above 0, but got 0"),
    "alpha below 0": ({"alpha": -1}, ValueError, "expected alpha to be finite and above 0, but got -1"),
    "alpha nan": ({"alpha": NAN}, ValueError, "expected alpha to be finite and above 0, but got nan"),
    "alpha inf": ({"alpha": INF}, ValueError, "expected alpha to be finite and above 0, but got inf"),
    "alpha text": ({"alpha": "1.6"}, TypeError, "expected alpha to be a number, but got str"),
    "alpha bool": ({"alpha": True}, TypeError, "expected alpha to be a number, but got bool"),
    "alpha None": ({"alpha": None}, TypeError, "expected alpha to be a number, but got NoneType"),
    "alpha tensor": ({"alpha": torch.tensor(1.6)}, TypeError, "expected alpha to be a number, but got Tensor"),
    "reduction unknown": (
        {"reduction": "avg"},
        ValueError,
        "expected reduction to be one of .*'batch'.*, but got 'avg'",
    ),
    "reduction None": ({"reduction": None}, ValueError, "expected reduction to be one of .*, but got None"),
    "smoothing below 0": ({"label_smoothing": -0.1}, ValueError, r"label_smoothing to lie in \[0, 1\], but got -0.1"),
    "smoothing above 1": ({"label_smoothing": 1.1}, ValueError, r"label_smoothing to lie in \[0, 1\], but got 1.1"),
    "smoothing nan": ({"label_smoothing": NAN}, ValueError, r"label_smoothing to lie in \[0, 1\], but got nan"),
    "weight too short": ({"weight": torch.ones(2)}, ValueError, r"weight of shape \(3,\), .*, but got \(2,\)"),
    "weight a row": ({"weight": torch.ones(1, 3)}, ValueError, r"weight of shape \(3,\), .*, but got \(1, 3\)"),
    "weight a scalar": ({"weight": torch.tensor(1.0)}, ValueError, r"weight of shape \(3,\), .*, but got \(\)"),
}


@pytest.mark.parametrize(("arguments", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        hr_loss(**{"logits": LOGITS, "target": LABELS, **arguments})


def test_bad_input_is_named_by_the_other_functions_too() -> None:
    with pytest.raises(ValueError, match="expected alpha to be finite"):
        renyi_divergence(LOGITS, LOGITS, alpha=0)
    with pytest.raises(TypeError, match=r"but got torch.int64"):
        renyi_divergence(LABELS, LOGITS, alpha=2)
    with pytest.raises(TypeError, match=r"but got torch.int64"):
        conditional_entropy(LABELS)
    with pytest.raises(ValueError, match="expected logits of shape"):
        softmax_entropy(torch.tensor(0.0))


def test_a_target_that_is_no_tensor_is_named() -> None:
    with pytest.raises(TypeError, match="expected the target to be a tensor, but got ndarray"):
        hr_loss(torch.zeros(2, 3), np.zeros(2, dtype=int))
    with pytest.raises(TypeError, match="expected a floating-point tensor, but got ndarray"):
        hr_loss(np.zeros((2, 3), dtype=np.float32), torch.zeros(2, dtype=torch.long))
