"""The HR loss as a module and as functions of tensors, and its gradient for batches too large for one pass."""

from art_hrloss.losses._accumulation import backward_by_parts
from art_hrloss.losses._functional import (
    HRLossTerms,
    conditional_entropy,
    hr_loss,
    hr_loss_terms,
    renyi_divergence,
    softmax_entropy,
)
from art_hrloss.losses._module import HRLoss

__all__ = [
    "HRLoss",
    "HRLossTerms",
    "backward_by_parts",
    "conditional_entropy",
    "hr_loss",
    "hr_loss_terms",
    "renyi_divergence",
    "softmax_entropy",
]
