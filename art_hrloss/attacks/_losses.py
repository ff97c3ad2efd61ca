"""
Losses that attacks maximise: one value per example, which increases towards misclassification.

Each loss is a module that maps logits ``(n, M)`` and class indices ``(n,)`` to values ``(n,)``, or to a scalar if its
`reduction` is "mean" or "sum". Any of them can be the `attack_loss` of :class:`~art_hrloss.HRClassifier`.
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
    Return the attack loss with a name; a module is returned unchanged.

    :param name: "ce" (:class:`ExactCrossEntropy`), "hr" (the per-example HR loss), "margin" (:class:`MarginLoss`) or
           "dlr" (:class:`DLRLoss`).
    :return: A module that maps logits ``(n, M)`` and class indices ``(n,)`` to values ``(n,)``.
    :raises ValueError: If there is no loss with that name.

    >>> import torch
    >>> from art_hrloss import attack_loss
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
        raise ValueError(f"expected the attack loss to be one of {list(losses)} or a module, but got {name!r}")
    return losses[name]


class _AttackLoss(CrossEntropyLoss):
    """Base of the attack losses; a subclass of CrossEntropyLoss, so that ART passes class indices."""

    label_shape: tuple[int, ...] = ()  # the shape of the label of one example

    def __init__(self) -> None:
        super().__init__(reduction="none")

    def forward(self, input: Tensor, target: Tensor) -> Tensor:  # the parameter names of CrossEntropyLoss
        """
        Return the loss of each example, or their mean or sum as `reduction` says.

        :param input: Logits, shape ``(n, M)``.
        :param target: Class indices, shape ``(n,)``; for the targeted losses ``(n, 2)``.
        :return: Shape ``(n,)``, or a scalar.
        :raises ValueError: If the target has another shape or is floating point.
        """
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
        """
        Return the loss of each example, shape ``(n,)``; :meth:`forward` calls it with checked arguments.

        :param logits: Shape ``(n, M)``.
        :param index: Class indices, shape ``(n, 1)``; for the targeted losses ``(n, 2)``.
        """
        raise NotImplementedError


class ExactCrossEntropy(_AttackLoss):
    """
    Cross-entropy ``- log q_y`` in nats, at least 0, with full relative precision up to a margin of 87 in float32.

    The cross-entropy of torch rounds to 0 beyond a margin of 17, and the true class then has no part in its gradient.

    >>> import torch
    >>> from art_hrloss.attacks import ExactCrossEntropy
    >>> logits, labels = torch.tensor([[30.0, 0.0]]), torch.tensor([0])
    >>> bool(ExactCrossEntropy()(logits, labels) > 0), bool(torch.nn.CrossEntropyLoss()(logits, labels) > 0)
    (True, False)
    """

    def per_example(self, logits: Tensor, index: Tensor) -> Tensor:
        """Return ``- log q_y``, shape ``(n,)``, of logits ``(n, M)`` and class indices ``(n, 1)``."""
        return hr_loss_terms(logits, index.squeeze(1), alpha=1.0, reduction="none").renyi_divergence


class MarginLoss(_AttackLoss):
    """
    Negative margin ``max_(k != y) z_k - z_y``: above 0 if the example is misclassified (Carlini and Wagner, 2017).

    >>> import torch
    >>> from art_hrloss.attacks import MarginLoss
    >>> MarginLoss()(torch.tensor([[2.0, 0.5, 0.0]]), torch.tensor([0]))
    tensor([-1.5000])
    """

    def per_example(self, logits: Tensor, index: Tensor) -> Tensor:
        """Return the negative margin, shape ``(n,)``, of logits ``(n, M)`` and class indices ``(n, 1)``."""
        return logits.scatter(1, index, -torch.inf).amax(1) - logits.gather(1, index).squeeze(1)


# The cheapest loss, for evaluations that need only logits or margins.
MARGIN = MarginLoss()


class DLRLoss(MarginLoss):
    """
    Difference of logits ratio ``(max_(k != y) z_k - z_y) / (z_(1) - z_(3) + 1e-12)`` (Croce and Hein, 2020).

    z_(1), z_(2), ... are the logits in descending order. The loss is invariant to a scaling of the logits, needs at
    least 3 classes, and is at least -1. Unlike ART's version it is finite if the three largest logits are equal.

    >>> import torch
    >>> from art_hrloss.attacks import DLRLoss
    >>> DLRLoss()(torch.tensor([[2.0, 0.5, 0.0]]), torch.tensor([0]))
    tensor([-0.7500])
    """

    def per_example(self, logits: Tensor, index: Tensor) -> Tensor:
        """
        Return the DLR loss, shape ``(n,)``, of logits ``(n, M)`` and class indices ``(n, 1)``.

        :raises ValueError: If there are fewer than 3 classes.
        """
        if logits.shape[1] < 3:
            raise ValueError(f"expected at least 3 classes for the DLR loss, but got {logits.shape[1]}")
        largest = logits.topk(3, dim=1).values
        return super().per_example(logits, index) / (largest[:, 0] - largest[:, 2] + 1e-12)


class TargetedMarginLoss(_AttackLoss):
    """
    Targeted margin ``z_t - z_y`` for a true class y and a target class t; its labels are (y, t), shape ``(n, 2)``.

    >>> import torch
    >>> from art_hrloss.attacks import TargetedMarginLoss
    >>> TargetedMarginLoss()(torch.tensor([[2.0, 0.5, 0.0]]), torch.tensor([[0, 2]]))
    tensor([-2.])
    """

    label_shape = (2,)

    def per_example(self, logits: Tensor, index: Tensor) -> Tensor:
        """Return the targeted margin, shape ``(n,)``, of logits ``(n, M)`` and labels (y, t), shape ``(n, 2)``."""
        true, target = logits.gather(1, index).unbind(1)
        return target - true


class TargetedDLRLoss(TargetedMarginLoss):
    """
    Targeted DLR loss ``(z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2 + 1e-12)`` (Croce and Hein, 2020).

    y is the true class and t the target class; the labels are (y, t), shape ``(n, 2)``. z_(1), z_(2), ... are the
    logits in descending order. With fewer than 4 classes the denominator is 1.

    >>> import torch
    >>> from art_hrloss.attacks import TargetedDLRLoss
    >>> TargetedDLRLoss()(torch.tensor([[2.0, 1.0, 0.5, 0.5]]), torch.tensor([[0, 1]]))
    tensor([-0.6667])
    """

    def per_example(self, logits: Tensor, index: Tensor) -> Tensor:
        """Return the targeted DLR loss, shape ``(n,)``, of logits ``(n, M)`` and labels (y, t), shape ``(n, 2)``."""
        margin = super().per_example(logits, index)
        if logits.shape[1] < 4:
            return margin
        largest = logits.topk(4, dim=1).values
        return margin / (largest[:, 0] - (largest[:, 2] + largest[:, 3]) / 2 + 1e-12)
