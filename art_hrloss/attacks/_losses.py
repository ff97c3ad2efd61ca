"""
Losses that drive attacks: a value per example, greater the nearer it is to being misclassified.

Each is a module from logits ``(n, M)`` and class indices ``(n,)`` to ``(n,)``, or with another `reduction` a scalar:
what :class:`~art_hrloss.HRClassifier` takes as its `attack_loss`.
"""

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import CrossEntropyLoss

from art_hrloss.losses._functional import hr_loss_terms
from art_hrloss.losses._module import HRLoss

AttackLossName = Literal["ce", "hr", "margin", "dlr"]


def attack_loss(name: AttackLossName) -> CrossEntropyLoss:
    """
    The loss of that name: :class:`ExactCrossEntropy`, the per-example HR loss, :class:`MarginLoss`, :class:`DLRLoss`.

    :raises ValueError: If there is none.
    """
    if name not in get_args(AttackLossName):
        raise ValueError(f"expected the attack's loss to be one of {list(get_args(AttackLossName))}, but got {name!r}")
    if name == "hr":
        return HRLoss(reduction="none")
    return {"ce": ExactCrossEntropy, "margin": MarginLoss, "dlr": DLRLoss}[name]()


class _AttackLoss(CrossEntropyLoss):
    """A CrossEntropyLoss to ART, so that it is given class indices."""

    def __init__(self) -> None:
        super().__init__(reduction="none")

    def forward(self, input: Tensor, target: Tensor) -> Tensor:  # the parameter names of CrossEntropyLoss
        """Logits ``(n, M)`` and class indices ``(n,)`` to ``(n,)``, or reduced."""
        if target.is_floating_point() or target.shape != input.shape[:1]:
            came = f"{target.dtype} of shape {tuple(target.shape)}"
            raise ValueError(f"expected class indices of shape ({len(input)},), but got {came}")
        values = self.per_example(input, target.unsqueeze(1))
        if self.reduction == "none":
            return values
        return values.mean() if self.reduction == "mean" else values.sum()

    def per_example(self, logits: Tensor, index: Tensor) -> Tensor:
        """The loss, shape ``(n,)``, of logits ``(n, M)`` and labels ``(n, 1)``."""
        raise NotImplementedError


class ExactCrossEntropy(_AttackLoss):
    """
    ``- log q_y`` in nats, to full relative precision up to a margin of 87 in float32.

    torch's own rounds to 0 past a margin of 17, and its gradient loses the true class's part.
    """

    def per_example(self, logits: Tensor, index: Tensor) -> Tensor:
        return hr_loss_terms(logits, index.squeeze(1), alpha=1.0, reduction="none").renyi_divergence


class MarginLoss(_AttackLoss):
    """``max_(k != y) z_k - z_y``: above 0 where the example is misclassified (Carlini and Wagner, 2017)."""

    def per_example(self, logits: Tensor, index: Tensor) -> Tensor:
        return logits.scatter(1, index, -torch.inf).amax(1) - logits.gather(1, index).squeeze(1)


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
