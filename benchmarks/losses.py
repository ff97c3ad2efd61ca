"""Training and attack losses by specification, as modules."""

from torch import Tensor, nn

import art_hrloss
from art_hrloss import HRLoss
from benchmarks.config import AttackLossName, LossSpec
from benchmarks.references import Reference


def training_loss(spec: LossSpec) -> nn.Module:
    """Return the training loss of a batch, a scalar: in nats, except for a user's loss."""
    if isinstance(spec.name, Reference):
        return spec.name.make(nn.Module)
    smoothing = spec.label_smoothing
    if spec.alpha is None:
        return nn.CrossEntropyLoss(label_smoothing=smoothing)
    return HRLoss(spec.alpha, label_smoothing=smoothing)


def attack_loss(name: AttackLossName) -> nn.Module:
    """
    Return an attack loss: one value per example, for class indices of shape ``(n,)``.

    * "ce", "hr", "margin" and "dlr" are those of art_hrloss.attack_loss, whose gradients do not vanish by rounding.
    * "torch-ce" is torch's cross-entropy. At margins above 17 its float32 gradient loses the term of the true class, so
      the attack follows a wrong direction: images that are robust under it but not under "ce" show gradient masking.
    * "clipped-ce" and "clipped-hr" are computed from clipped probabilities, as in Keras 2 and perhaps in the paper: at
      margins above about 16 the gradient of CE is exactly 0, and the attack does not change the image.
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

    It is an ablation that shows the effect of these numerics on an evaluation. Do not use it for training, and do not
    use it as evidence of robustness.
    """

    def __init__(self, *, with_entropy: bool) -> None:
        super().__init__(reduction="none")
        self.with_entropy = with_entropy

    def forward(self, input: Tensor, target: Tensor) -> Tensor:  # the parameter names of CrossEntropyLoss
        """Return the loss in nats, shape ``(n,)``, of logits ``(n, C)`` and class indices ``(n,)``."""
        q = input.float().softmax(1).clamp(1e-7, 1 - 1e-7)
        loss = -q.gather(1, target.unsqueeze(1)).squeeze(1).log()
        return loss - (q * q.log()).sum(1) if self.with_entropy else loss
