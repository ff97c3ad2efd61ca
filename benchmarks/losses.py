"""Loss specs -> modules."""

from torch import Tensor, nn

import art_hrloss
from art_hrloss import HRLoss
from benchmarks.config import AttackLossName, LossSpec
from benchmarks.references import Reference


def training_loss(spec: LossSpec) -> nn.Module:
    """The loss of a batch: a scalar in nats, unless it is a user's own."""
    if isinstance(spec.name, Reference):
        return spec.name.make(nn.Module)
    smoothing = spec.label_smoothing
    if spec.alpha is None:
        return nn.CrossEntropyLoss(label_smoothing=smoothing)
    return HRLoss(spec.alpha, label_smoothing=smoothing)


def attack_loss(name: AttackLossName) -> nn.Module:
    """
    The loss of each example, for class indices of shape ``(n,)``.

    * "ce", "hr", "margin" and "dlr" are those of art_hrloss.attack_loss, whose gradients no rounding takes away;
    * "torch-ce" is the same as torch computes it. Past a margin of 17 its float32 gradient has lost the true class, so
      the attack goes astray: what it leaves standing beyond "ce" is masking;
    * "clipped-ce" and "clipped-hr" are both computed from clipped probabilities, as in Keras 2, and so perhaps in
      the paper: past a margin of about 16 the gradient of CE is exactly 0 and the attack stands still.
    """
    if name in ("ce", "hr", "margin", "dlr"):
        return art_hrloss.attack_loss(name)
    losses: dict[AttackLossName, nn.Module] = {
        "torch-ce": nn.CrossEntropyLoss(reduction="none"),
        "clipped-ce": ClippedLoss(with_entropy=False),
        "clipped-hr": ClippedLoss(with_entropy=True),
    }
    return losses[name]


class ClippedLoss(nn.CrossEntropyLoss):
    """
    Cross-entropy or HR loss per example, from float32 probabilities clipped to [1e-7, 1 - 1e-7], as in Keras 2.

    An ablation, to show what such numerics do to an evaluation: never to be trained or trusted.
    """

    def __init__(self, *, with_entropy: bool) -> None:
        super().__init__(reduction="none")
        self.with_entropy = with_entropy

    def forward(self, input: Tensor, target: Tensor) -> Tensor:  # the parameter names of CrossEntropyLoss
        """Logits ``(n, C)`` and class indices ``(n,)`` to nats, ``(n,)``."""
        q = input.float().softmax(1).clamp(1e-7, 1 - 1e-7)
        loss = -q.gather(1, target.unsqueeze(1)).squeeze(1).log()
        return loss - (q * q.log()).sum(1) if self.with_entropy else loss
