"""
Losses that drive attacks: a value per example, which grows as the example nears misclassification.

Each is a module from logits ``(n, M)`` and class indices ``(n,)`` to ``(n,)``, or with another `reduction` a scalar:
what :class:`~art_hrloss.HRClassifier` takes as its `attack_loss`.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import CrossEntropyLoss, Module

from art_hrloss.losses._functional import hr_loss_terms
from art_hrloss.losses._module import HRLoss

AttackLossName = Literal["ce", "hr", "margin", "dlr"]


def attack_loss(name: AttackLossName | Module) -> Module:
    """
    Return the attack loss of a name; a module is returned unchanged.

    :param name: "ce" (:class:`ExactCrossEntropy`), "hr" (the per-example HR loss), "margin" (:class:`MarginLoss`) or
           "dlr" (:class:`DLRLoss`).
    :raises ValueError: If there is no loss of that name.

    >>> attack_loss("margin")(torch.tensor([[2.0, 0.5, 0.0]]), torch.tensor([0]))
    tensor([-1.5000])
    """
    if isinstance(name, Module):
        return name
    losses: dict[str, Module] = {
        "ce": ExactCrossEntropy(),
        "hr": HRLoss(reduction="none"),
        "margin": MarginLoss(),
        "dlr": DLRLoss(),
    }
    if name not in list(losses):
        raise ValueError(f"expected the attack's loss to be one of {list(losses)} or a module, but got {name!r}")
    return losses[name]


class _AttackLoss(CrossEntropyLoss):
    """Base of the attack losses: a CrossEntropyLoss to ART, so that it gets class indices."""

    label_shape: tuple[int, ...] = ()  # of one example

    def __init__(self) -> None:
        super().__init__(reduction="none")

    def forward(self, input: Tensor, target: Tensor) -> Tensor:  # the parameter names of CrossEntropyLoss
        """Return the losses ``(n,)``, or their mean or sum, of logits ``(n, M)`` and class indices ``(n,)``."""
        shape = (len(input), *self.label_shape)
        if target.is_floating_point() or target.shape != shape:
            raise ValueError(
                f"expected class indices of shape {shape}, but got {target.dtype} of shape {tuple(target.shape)}"
            )
        values = self.per_example(input, target.view(len(input), -1))
        if self.reduction == "none":
            return values
        return values.mean() if self.reduction == "mean" else values.sum()

    def per_example(self, logits: Tensor, index: Tensor) -> Tensor:
        """Return the loss, shape ``(n,)``, of logits ``(n, M)`` and labels ``(n, 1)``."""
        raise NotImplementedError


class ExactCrossEntropy(_AttackLoss):
    """
    Cross-entropy ``- log q_y`` in nats, to full relative precision up to a margin of 87 in float32.

    torch's own rounds to 0 past a margin of 17, and its gradient loses the true class's part.
    """

    def per_example(self, logits: Tensor, index: Tensor) -> Tensor:
        return hr_loss_terms(logits, index.squeeze(1), alpha=1.0, reduction="none").renyi_divergence


class MarginLoss(_AttackLoss):
    """``max_(k != y) z_k - z_y``: above 0 where the example is misclassified (Carlini and Wagner, 2017)."""

    def per_example(self, logits: Tensor, index: Tensor) -> Tensor:
        return logits.scatter(1, index, -torch.inf).amax(1) - logits.gather(1, index).squeeze(1)


# The cheapest loss, for an evaluation of which only the logits or the margins are wanted.
MARGIN = MarginLoss()


class DLRLoss(MarginLoss):
    """
    ``(max_(k != y) z_k - z_y) / (z_(1) - z_(3) + 1e-12)``, which no scale of the logits changes (Croce and Hein, 2020).

    For at least 3 classes. The 1e-12, which ART's own lacks, keeps it finite where the three largest logits are equal.
    """

    def per_example(self, logits: Tensor, index: Tensor) -> Tensor:
        if logits.shape[1] < 3:
            raise ValueError(f"expected at least 3 classes for the DLR loss, but got {logits.shape[1]}")
        largest = logits.topk(3, dim=1).values
        return super().per_example(logits, index) / (largest[:, 0] - largest[:, 2] + 1e-12)


class TargetedMarginLoss(_AttackLoss):
    """``z_t - z_y``, of a true class y and a target t: labels of shape ``(n, 2)``, y and t."""

    label_shape = (2,)

    def per_example(self, logits: Tensor, index: Tensor) -> Tensor:
        true, target = logits.gather(1, index).unbind(1)
        return target - true


class TargetedDLRLoss(TargetedMarginLoss):
    """
    ``(z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2 + 1e-12)``, of a true class y and a target t (Croce and Hein, 2020).

    Its labels have the shape ``(n, 2)``: y and t. With fewer than 4 classes the denominator is 1.
    """

    def per_example(self, logits: Tensor, index: Tensor) -> Tensor:
        margin = super().per_example(logits, index)
        if logits.shape[1] < 4:
            return margin
        largest = logits.topk(4, dim=1).values
        return margin / (largest[:, 0] - (largest[:, 2] + largest[:, 3]) / 2 + 1e-12)
