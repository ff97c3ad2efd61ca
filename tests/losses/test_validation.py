"""Tests of losses._validation: accepted dtypes and shapes, and errors that name the invalid argument."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from testing.losses import REDUCTIONS, WEIGHT, as_target, batch, close, value_and_gradient

from art_hrloss import hr_loss
from art_hrloss.losses._functional import conditional_entropy, renyi_divergence, softmax_entropy

INF, NAN = math.inf, math.nan
LOGITS, LABELS = torch.zeros(4, 3), torch.zeros(4, dtype=torch.long)


BAD: list[tuple[str, list[Any], type[Exception] | tuple[type[Exception], ...]]] = [
    ("logits", [LOGITS.long(), [[0.0]], np.zeros((2, 3), dtype=np.float32)], TypeError),
    ("logits", [torch.tensor(0.0), torch.zeros(4, 0)], ValueError),
    ("target", [np.zeros(4, dtype=int), LABELS.float(), LABELS.bool(), LABELS.cfloat()], TypeError),
    ("target", [torch.zeros(5, dtype=torch.long), torch.zeros(4, 2), LABELS[:, None], LABELS[0]], ValueError),
    ("target", [LABELS + 3, LABELS - 1], (RuntimeError, IndexError)),
    ("alpha", [0, -1, NAN, INF], ValueError),
    ("alpha", ["1.6", True, None, torch.tensor(1.6)], TypeError),
    ("reduction", ["avg", None], ValueError),
    ("label_smoothing", [-0.1, 1.1, NAN, None], ValueError),
    ("weight", [torch.ones(2), torch.ones(1, 3), torch.tensor(1.0)], ValueError),
    ("weight", [[1.0, 2.0, 3.0]], TypeError),
]


@pytest.mark.parametrize(("name", "values", "error"), BAD, ids=lambda value: value if isinstance(value, str) else "")
def test_errors_name_the_invalid_argument(name: str, values: list[Any], error: Any) -> None:
    named = {"logits": "logits|floating-point tensor", "target": "target|indices|index"}.get(name, name)
    for value in values:
        with pytest.raises(error, match=named):
            hr_loss(**{"logits": LOGITS, "target": LABELS, name: value})


def test_errors_of_all_functions_name_the_invalid_argument() -> None:
    with pytest.raises(ValueError, match="expected alpha to be finite"):
        renyi_divergence(LOGITS, LOGITS, alpha=0)
    with pytest.raises(TypeError, match=r"but got torch.int64"):
        renyi_divergence(LABELS, LOGITS, alpha=2)
    with pytest.raises(TypeError, match=r"but got torch.int64"):
        conditional_entropy(LABELS)
    with pytest.raises(ValueError, match="expected logits of shape"):
        softmax_entropy(torch.tensor(0.0))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64], ids=str)
def test_labels_may_be_of_any_integer_type(dtype: torch.dtype) -> None:
    logits, labels = batch()
    assert torch.equal(hr_loss(logits, labels.to(dtype)), hr_loss(logits, labels))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_half_precisions_are_computed_in_float32(dtype: torch.dtype, reduction: str) -> None:
    logits, labels = batch(scale=5.0)
    logits = logits.to(dtype)
    value, gradient = value_and_gradient(logits, labels, reduction=reduction, weight=WEIGHT.to(dtype))
    exact, exact_gradient = value_and_gradient(logits.double(), labels, reduction=reduction, weight=WEIGHT)
    assert value.dtype == torch.float32
    close(value, exact)
    # The gradient is returned in the caller's dtype: one rounding, and underflow below its smallest number.
    info = torch.finfo(dtype)
    close(gradient, exact_gradient, rtol=info.eps, atol=info.smallest_normal * info.eps)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_functions_keep_the_dtype_and_convert_half_precision_to_float32(dtype: torch.dtype) -> None:
    logits, labels = batch()
    logits, expected = logits.to(dtype), torch.float64 if dtype == torch.float64 else torch.float32
    assert hr_loss(logits, labels).dtype == expected
    assert softmax_entropy(logits).dtype == expected
    assert conditional_entropy(logits).dtype == expected
    assert renyi_divergence(logits.log_softmax(1), logits.log_softmax(1), alpha=2).dtype == expected


def test_inputs_are_not_modified() -> None:
    logits, labels = batch()
    target, weight = as_target("probabilities", labels), WEIGHT.clone()
    copies = [logits.clone(), target.clone(), weight.clone()]
    hr_loss(logits, target, weight=weight, label_smoothing=0.1)
    for left, copy in zip([logits, target, weight], copies, strict=True):
        assert torch.equal(left, copy)
