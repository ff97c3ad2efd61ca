"""Tests of the module HRLoss: a CrossEntropyLoss whose value is that of `hr_loss`, also after copies and casts."""

import copy
import io
import math
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from art_hrloss import HRLoss, hr_loss

WEIGHT = torch.tensor([0.5, 2.0, 1.0])
SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "alpha": {"alpha": 3.0},
    "limit": {"alpha": 1.0},
    "weight": {"weight": WEIGHT},
    "ignore": {"ignore_index": 1},
    "smoothing": {"label_smoothing": 0.2},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "all": {"alpha": 2.0, "weight": WEIGHT, "ignore_index": 0, "label_smoothing": 0.1, "reduction": "sum"},
}
every_setting = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)


def data(n: int = 6) -> tuple[Tensor, Tensor]:
    """Return logits and labels of three classes."""
    random = np.random.default_rng(0)
    logits = torch.from_numpy(random.normal(scale=2.0, size=(n, 3))).float()
    return logits, torch.from_numpy(random.integers(3, size=n))


def saved_and_loaded(loss: HRLoss) -> HRLoss:
    """Save and load a complete module with torch."""
    file = io.BytesIO()
    torch.save(loss, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: dict[str, Callable[[HRLoss], HRLoss]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda loss: pickle.loads(pickle.dumps(loss)),
    "torch.save": saved_and_loaded,
}


# What it computes


@every_setting
@pytest.mark.parametrize("kind", ["indices", "probabilities"])
def test_the_module_equals_hr_loss_with_its_settings(settings: dict[str, Any], kind: str) -> None:
    logits, labels = data()
    target = labels if kind == "indices" else logits.flip(0).softmax(1)
    value = HRLoss(**settings)(input=logits, target=target)
    assert torch.equal(value, hr_loss(logits, target, **settings))
    # Each setting changes the loss, except that ignore_index has no effect on probabilities.
    if settings and not (kind == "probabilities" and set(settings) == {"ignore_index"}):
        assert not torch.equal(value, hr_loss(logits, target))


# What it is to torch and ART


def test_the_reduction_is_read_at_each_call_and_may_be_assigned() -> None:
    # ART sets `reduction` of the loss, reads a value, and restores it.
    logits, labels = data()
    loss = HRLoss()
    for reduction in ("none", "mean", "sum", "batch"):
        loss.reduction = reduction
        assert torch.equal(loss(logits, labels), hr_loss(logits, labels, reduction=reduction))
    loss.reduction = "average"
    with pytest.raises(ValueError, match=r"expected reduction to be one of .* but got 'average'"):
        loss(logits, labels)


def test_it_has_no_parameters_and_only_the_weight_as_state() -> None:
    assert list(HRLoss(weight=WEIGHT).parameters()) == []
    assert HRLoss().state_dict() == {}
    # As in CrossEntropyLoss, so that a checkpoint of one class can be loaded into the other.
    state = torch.nn.CrossEntropyLoss(weight=WEIGHT).state_dict()
    assert HRLoss(weight=WEIGHT).state_dict().keys() == state.keys()
    loss = HRLoss(weight=torch.ones(3))
    loss.load_state_dict(state)
    assert torch.equal(loss.weight, WEIGHT)


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_copy_has_the_same_loss_and_its_own_reduction(copied: Callable[[HRLoss], HRLoss]) -> None:
    logits, labels = data()
    for settings in SETTINGS.values():
        loss = HRLoss(**settings)
        duplicate = copied(loss)
        assert type(duplicate) is HRLoss
        assert repr(duplicate) == repr(loss)
        assert torch.equal(duplicate(logits, labels), loss(logits, labels))
        duplicate.reduction = "changed"  # type: ignore[assignment]
        assert loss.reduction == settings.get("reduction", "batch")


def test_repr_shows_alpha_reduction_and_settings_other_than_defaults() -> None:
    assert repr(HRLoss()) == "HRLoss(alpha=1.6, reduction='batch')"
    text = repr(HRLoss(2, weight=WEIGHT, ignore_index=0, label_smoothing=0.1, reduction="none"))
    assert text == ("HRLoss(alpha=2.0, reduction='none', weight=[0.5, 2.0, 1.0], ignore_index=0, label_smoothing=0.1)")


# Precisions


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64], ids=str)
def test_the_weight_may_have_another_dtype_than_the_logits(dtype: torch.dtype) -> None:
    logits, labels = data()
    whole = torch.tensor([1.0, 2.0, 3.0])  # exact in every dtype
    assert torch.equal(HRLoss(weight=whole.to(dtype))(logits, labels), HRLoss(weight=whole)(logits, labels))


def test_to_moves_only_the_weight() -> None:
    logits, labels = data()
    loss = HRLoss(weight=WEIGHT).to(torch.float64)
    assert loss.weight.dtype == torch.float64
    value = loss(logits.double(), labels)
    assert value.dtype == torch.float64
    assert torch.equal(value, hr_loss(logits.double(), labels, weight=WEIGHT.double()))


# Uses of a loss in torch


def test_numpy_numbers_are_accepted() -> None:
    logits, labels = data()
    loss = HRLoss(np.float64(1.5), label_smoothing=np.float32(0.25))  # type: ignore[arg-type]
    assert torch.equal(loss(logits, labels), hr_loss(logits, labels, alpha=1.5, label_smoothing=0.25))
    assert repr(loss) == "HRLoss(alpha=1.5, reduction='batch', label_smoothing=0.25)"


@every_setting
def test_on_the_meta_device_only_shapes_are_computed(settings: dict[str, Any]) -> None:
    logits, labels = data()
    expected = HRLoss(**settings)(logits, labels)
    with torch.device("meta"):
        weight = {"weight": torch.tensor(WEIGHT.tolist())} if "weight" in settings else {}
        loss = HRLoss(**settings | weight)
    z = logits.to("meta").requires_grad_()
    value = loss(z, labels.to("meta"))
    value.sum().backward()
    assert (value.device.type, value.shape, value.dtype) == ("meta", expected.shape, expected.dtype)
    assert z.grad.shape == logits.shape  # type: ignore[union-attr]
    assert repr(loss).startswith("HRLoss(")


class Model(torch.nn.Module):
    """A model of one layer with its loss."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        self.layer, self.loss = torch.nn.Linear(3, 3), HRLoss(**settings)

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of the layer's outputs."""
        return self.loss(self.layer(features), labels)  # type: ignore[no-any-return]


RECORDERS: dict[str, Callable[..., Any]] = {
    "fx": lambda model, *_: torch.fx.symbolic_trace(model),
    "make_fx": lambda model, *inputs: make_fx(model)(*inputs),
    "jit.trace": lambda model, *inputs: torch.jit.trace(model, inputs, check_trace=False),
    "jit.script": lambda model, *_: torch.jit.script(model),
    "export": lambda model, *inputs: torch.export.export(model, inputs).module(),
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("record", RECORDERS.values(), ids=RECORDERS)
@pytest.mark.parametrize("settings", [SETTINGS["defaults"], SETTINGS["all"]], ids=["defaults", "all"])
def test_a_recorded_model_computes_the_loss_of_new_data(settings: dict[str, Any], record: Callable[..., Any]) -> None:
    features, labels = data()
    model = Model(settings)
    recorded = record(model, features, labels)
    new = 2 * features, labels.flip(0)
    torch.testing.assert_close(recorded(*new), model(*new), rtol=1e-5, atol=0)


def test_a_weight_on_another_device_raises_an_error() -> None:
    logits, labels = data()
    with pytest.raises(RuntimeError, match="expected weight on cpu, the device of the logits, but got meta"):
        HRLoss(weight=torch.ones(3, device="meta"))(logits, labels)


# The warning


@pytest.mark.parametrize("alpha", [0.5, 1.6])
def test_reduction_mean_warns_that_alpha_has_no_effect(alpha: float) -> None:
    with pytest.warns(UserWarning, match="does not depend on alpha.*reduction='batch'") as caught:
        HRLoss(alpha, reduction="mean")
    assert [warning.filename for warning in caught] == [__file__]  # the warning shows the line of the caller


def test_no_warning_for_reductions_that_use_alpha() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        HRLoss(1, reduction="mean")  # at alpha = 1 "mean" is "batch"
        for reduction in ("batch", "sum", "none"):
            HRLoss(reduction=reduction)
        loss = HRLoss()
        loss.reduction = "mean"  # as in ART
        loss(*data())
        pickle.loads(pickle.dumps(loss))
        copy.deepcopy(loss)


# Bad settings


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("alpha", [0, -1.6, float("nan"), float("inf"), "1.6", True, WEIGHT]),
        ("reduction", ["avg", None]),
        ("label_smoothing", [-0.1, 1.5, None]),
        ("weight", [[1.0, 2.0], torch.ones(2, 2), *(torch.tensor([1.0, bad]) for bad in (-1.0, math.nan, math.inf))]),
    ],
)
def test_an_invalid_setting_raises_an_error_in_the_constructor(name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises((TypeError, ValueError), match=f"expected {name}"):
            HRLoss(**{name: value})


def test_a_positional_weight_raises_an_error() -> None:
    # In CrossEntropyLoss weight is the first argument. Here it is alpha, and all others are keyword-only.
    with pytest.raises(TypeError, match="positional argument"):
        HRLoss(1.6, WEIGHT)  # type: ignore[misc]
