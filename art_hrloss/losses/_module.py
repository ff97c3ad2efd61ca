"""The HR loss as a module, for all places where torch or ART takes a loss."""

import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from art_hrloss.losses._functional import hr_loss_of
from art_hrloss.losses._validation import LossOptions, Reduction, check_class_weights

_Method = TypeVar("_Method", bound=Callable[..., Tensor])
# TorchScript cannot compile the loss, so a scripted model calls it in Python.
_call_in_python: Callable[[_Method], _Method] = torch.jit.ignore


class HRLoss(torch.nn.CrossEntropyLoss):
    """
    The HR loss, ``H(Y^|X) + alpha D_alpha(p_XY || p_XY^)`` (eq. (3)), with the arguments of CrossEntropyLoss.

    This is the module form of :func:`~art_hrloss.losses.hr_loss`, whose documentation defines every option. It is a
    subclass of CrossEntropyLoss, because ART chooses the form of the labels by this type. It has no state except its
    settings. With reduction "mean", class indices and no label smoothing, the loss is the (weighted) mean of
    ``H(q_i) - log q_i,y``, which does not depend on alpha.

    Shapes: logits ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``; class indices of the same shape without C, or
    probabilities of the same shape. The value is in nats.

    >>> import torch
    >>> from art_hrloss import HRLoss
    >>> logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    >>> loss = HRLoss(alpha=1.6)
    >>> loss
    HRLoss(alpha=1.6, reduction='batch')
    >>> round(loss(logits, torch.tensor([0, 1])).item(), 4)
    1.2232
    """

    def __init__(
        self,
        alpha: float = 1.6,
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        reduction: Reduction = "batch",
        process_group: ProcessGroup | None = None,
    ) -> None:
        """
        :param alpha: Order of the Renyi divergence, finite and above 0; the paper's bound needs alpha > 1.
        :param weight: A weight per class, shape ``(C,)``, finite and not negative.
        :param ignore_index: The class index whose examples are ignored.
        :param label_smoothing: The share of the uniform distribution in the labels, between 0 and 1.
        :param reduction: "batch" is the paper's objective; "none", "mean" and "sum" reduce the per-example loss.
        :param process_group: A group of torch.distributed, such as ``torch.distributed.group.WORLD``, for training with
               DistributedDataParallel: the loss is then that of the joint batch of its processes. A module with a group
               cannot be pickled.
        :raises TypeError: If alpha is not a number, weight not a tensor, or process_group not a ProcessGroup.
        :raises ValueError: If a parameter is out of its range.
        """
        options = LossOptions(alpha, weight, ignore_index, label_smoothing, reduction, process_group)
        if weight is not None:
            check_class_weights(weight)
        smoothing = options.label_smoothing
        super().__init__(weight=weight, ignore_index=ignore_index, label_smoothing=smoothing, reduction=reduction)
        self.alpha = options.alpha
        self.process_group = process_group
        if reduction == "mean" and alpha != 1:
            warnings.warn(
                "HRLoss(reduction='mean') is the mean of the per-example loss, which for class indices without label "
                "smoothing does not depend on alpha: use reduction='batch' to train with the paper's objective",
                UserWarning,
                stacklevel=2,
            )

    @_call_in_python
    def forward(self, input: Tensor, target: Tensor) -> Tensor:  # the parameter names of CrossEntropyLoss
        """
        Return the loss in nats.

        :param input: Logits, shape ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``.
        :param target: Class indices of the same shape without C, or probabilities of the same shape.
        :return: A scalar, or one value per example if `reduction` is "none".
        :raises TypeError: If the logits are not floating point, or class indices are not integers.
        :raises ValueError: If the shapes do not match.
        :raises RuntimeError: If a class index is out of range.
        """
        return hr_loss_of(input, target, options_of(self))

    def extra_repr(self) -> str:
        """Return the settings that differ from their defaults, and always alpha and reduction."""
        settings: dict[str, Any] = {"alpha": self.alpha, "reduction": self.reduction}
        if self.weight is not None:
            settings["weight"] = self.weight if self.weight.is_meta else self.weight.tolist()
        if self.ignore_index != -100:
            settings["ignore_index"] = self.ignore_index
        if self.process_group is not None:
            settings["process_group"] = self.process_group
        if self.label_smoothing:
            settings["label_smoothing"] = self.label_smoothing
        return ", ".join(f"{name}={value!r}" for name, value in settings.items())


def options_of(loss: HRLoss) -> LossOptions:
    """Return the options of a loss; they are read at each call, because ART assigns `reduction` between calls."""
    values = loss.alpha, loss.weight, loss.ignore_index, loss.label_smoothing, loss.reduction, loss.process_group
    return LossOptions(*values)  # type: ignore[arg-type]
