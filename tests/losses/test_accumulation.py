"""Tests of backward_by_parts: the gradient by parts equals that of the joint batch."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from art_hrloss.losses._accumulation import backward_by_parts
from art_hrloss.losses._module import HRLoss

WEIGHT = torch.tensor([0.5, 2.0, 0.0, 1.0], dtype=torch.float64)
SIZES = (5, 1, 7)


def network(dropout: float = 0.0) -> nn.Sequential:
    """Return a small network in float64."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 4)).double()


def batch(scale: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(sum(SIZES), 3, generator=generator, dtype=torch.float64) * scale
    return images, torch.randint(4, (sum(SIZES),), generator=generator)


def parts(images: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    return list(zip(images.split(SIZES), labels.split(SIZES), strict=True))


def gradients(model: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.6, 20.0])
@pytest.mark.parametrize(
    "options",
    [{}, {"weight": WEIGHT}, {"ignore_index": 1}, {"label_smoothing": 0.1}],
    ids=lambda o: next(iter(o), "plain"),
)
def test_the_gradient_is_that_of_the_joint_batch(options: dict[str, Any], alpha: float, scale: float) -> None:
    model, (images, labels), loss = network(), batch(scale), HRLoss(alpha, **options)
    expected = loss(model(images), labels)
    expected.backward()
    joint = gradients(model)
    model.zero_grad()
    value = backward_by_parts(model, parts(images, labels), loss)
    assert not value.requires_grad
    torch.testing.assert_close(value, expected.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients(model), joint, rtol=1e-10, atol=1e-13)


def test_gradients_are_accumulated() -> None:
    model, (images, labels), loss = network(), batch(), HRLoss()
    backward_by_parts(model, parts(images, labels), loss)
    once = [gradient.clone() for gradient in gradients(model)]
    backward_by_parts(model, parts(images, labels), loss)
    torch.testing.assert_close(gradients(model), [2 * gradient for gradient in once], rtol=1e-12, atol=0)


def test_dropout_is_equal_in_both_passes() -> None:
    model, (images, labels), loss = network(0.5), batch(), HRLoss()
    torch.manual_seed(2)
    outputs = [model(part_images) for part_images, _ in parts(images, labels)]
    after = torch.rand(1)
    loss(torch.cat(outputs), labels).backward()
    expected = gradients(model)
    model.zero_grad()
    torch.manual_seed(2)
    backward_by_parts(model, parts(images, labels), loss)
    assert torch.equal(torch.rand(1), after)  # and the generator is in the state after one pass
    torch.testing.assert_close(gradients(model), expected, rtol=1e-10, atol=1e-13)


def test_unsupported_arguments_raise_an_error() -> None:
    model, (images, labels) = network(), batch()
    with pytest.raises(ValueError, match="at least one part"):
        backward_by_parts(model, [], HRLoss())
    with pytest.raises(ValueError, match="reduction 'batch' and no process group, but got HRLoss"):
        backward_by_parts(model, parts(images, labels), HRLoss(reduction="sum"))
