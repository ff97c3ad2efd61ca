"""The HR loss and its gradient for two classes, by a cheaper formula: binary masks consist of many examples."""

from typing import Any

import torch
from torch import Tensor

from art_hrloss.losses._passes import Batch
from art_hrloss.losses._soft_labels import LOWEST

# From this m on, log1p(exp(m)) equals m to the last digit in every dtype.
_EXACT = 40.0


class Pairs(Batch):
    """
    Logits of two classes with class indices: the loss of an example is a function of one number m.

    Let m be the logit of the other class minus the logit of the label, and g the sigmoid of m. The divergence is
    ``softplus(m)`` and the entropy ``softplus(m) - m g``. Their derivatives by m are ``g`` and ``- m g (1 - g)``.
    """

    def _terms(
        self, rows: Tensor, labels: Tensor, mass: Tensor | None, all_finite: bool, powers: Tensor | None
    ) -> tuple[Any, Any]:
        margin = (rows[:, 1:] - rows[:, :1]).mul_(self._signs(labels))
        if not all_finite:  # as in log_softmax, an overflow becomes NaN instead of a confident prediction
            peak = rows.amax(1, keepdim=True)
            margin.add_(peak - peak)
        divergence = torch.nn.functional.softplus(margin, threshold=_EXACT)
        entropy = divergence if all_finite else divergence.clamp(max=-LOWEST)
        margin = margin if all_finite else margin.clamp_(LOWEST, -LOWEST)
        (share,) = inputs = (margin.sigmoid(),)
        return (margin, divergence, torch.addcmul(entropy, margin, share, value=-1)), inputs

    def _valid_labels(self, readable: bool) -> Tensor | None:
        """Make every index valid, as in Batch; raise if one is out of range, because no gather checks the range."""
        mass = super()._valid_labels(readable)
        if readable:
            least, greatest = (bound.item() for bound in self.labels.aminmax())
            if least < 0 or greatest > 1:
                raise RuntimeError(f"expected class indices 0 or 1, but got values from {least} to {greatest}")
        return mass

    def _inputs(self, rows: Tensor, kept_columns: list[Tensor], all_finite: bool, powers: Tensor | None) -> Any:
        """Return the sigmoid of m."""
        return (kept_columns[0].sigmoid(),)

    def _gradient_of(
        self, inputs: Any, labels: Tensor, kept_columns: list[Tensor], grad_divergence: Any, grad_entropy: Any
    ) -> Tensor:
        (margin,), (share,) = kept_columns, inputs
        # At a margin of LOWEST or -LOWEST one of the two sigmoids is 0. They are multiplied first, because a margin
        # times a large weight may be infinite, and infinity times 0 is NaN.
        grad_margin = share * grad_divergence - margin.neg().sigmoid_().mul_(share).mul_(margin) * grad_entropy
        grad_margin = grad_margin * self._signs(labels)
        return torch.cat([-grad_margin, grad_margin], 1)

    def _signs(self, labels: Tensor) -> Tensor:
        """Return 1 for labels of the first class and -1 for labels of the second class."""
        if labels.is_cpu and not torch.compiler.is_compiling():
            return labels.to(self.rows.dtype).mul_(-2).add_(1)
        signs = torch.arange(1, -2, -2, dtype=self.rows.dtype, device=labels.device)
        shape = (len(labels), 2, *labels.shape[2:])
        # gather checks the range of the indices on the device, without waiting for it.
        return signs.view(1, 2, *(1,) * (labels.ndim - 2)).expand(shape).gather(1, labels)
