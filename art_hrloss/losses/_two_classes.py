"""The two passes of the HR loss for two classes, where they are cheaper: binary masks have many examples."""

from typing import Any

import torch
from torch import Tensor

from art_hrloss.losses._passes import FAR, Batch

# Where log1p(exp(m)) is m to the last digit of every dtype.
_EXACT = 40.0


class Pairs(Batch):
    """
    Logits of two classes, with class indices: everything is a function of one number m of each example.

    With m the other class's logit less the label's and g its sigmoid, the divergence is ``softplus(m)``, the entropy
    ``softplus(m) - m g``, and their derivatives by m are ``g`` and ``- m g (1 - g)``.
    """

    def _terms(
        self, rows: Tensor, labels: Tensor, mass: Tensor | None, plain: bool, powers: Tensor | None
    ) -> tuple[Any, Any]:
        margin = (rows[:, 1:] - rows[:, :1]).mul_(self._signs(labels))
        if not plain:  # an overflow is no number, and not a certainty
            peak = rows.amax(1, keepdim=True)
            margin.add_(peak - peak)
        divergence = torch.nn.functional.softplus(margin, threshold=_EXACT)
        entropy = divergence if plain else divergence.clamp(max=-FAR)
        margin = margin if plain else margin.clamp_(FAR, -FAR)
        (share,) = work = (margin.sigmoid(),)
        return (margin, divergence, torch.addcmul(entropy, margin, share, value=-1)), work

    def _valid_labels(self, known: bool) -> Tensor | None:
        """Make every index valid, as for more classes; raise where one is out of range, for no gather does."""
        mass = super()._valid_labels(known)
        if known:
            least, greatest = (bound.item() for bound in self.labels.aminmax())
            if least < 0 or greatest > 1:
                raise RuntimeError(f"expected class indices of 0 or 1, but got {least} to {greatest}")
        return mass

    def _work(self, rows: Tensor, kept: list[Tensor], plain: bool, powers: Tensor | None) -> Any:
        """Return the sigmoid of m."""
        return (kept[0].sigmoid(),)

    def _gradient_of(self, work: Any, labels: Tensor, kept: list[Tensor], by_label: Any, by_entropy: Any) -> Tensor:
        (margin,), (share,) = kept, work
        # Where the margin is FAR, one of the two sigmoids is 0: their product, before a large weight makes it infinite.
        by_margin = share * by_label - margin.neg().sigmoid_().mul_(share).mul_(margin) * by_entropy
        by_margin = by_margin * self._signs(labels)
        return torch.cat([-by_margin, by_margin], 1)

    def _signs(self, labels: Tensor) -> Tensor:
        """Return 1 for the first class and -1 for the second."""
        if labels.is_cpu and not torch.compiler.is_compiling():
            return labels.to(self.rows.dtype).mul_(-2).add_(1)
        of_classes = torch.arange(1, -2, -2, dtype=self.rows.dtype, device=labels.device)
        shape = (len(labels), 2, *labels.shape[2:])
        return of_classes.view(1, 2, *(1,) * (labels.ndim - 2)).expand(shape).gather(1, labels)  # checks the range
