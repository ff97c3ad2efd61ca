"""The HR loss: a module, pure functions, and the gradient of a batch in parts."""

from art_hrloss.losses._accumulation import backward_by_parts
from art_hrloss.losses._functional import hr_loss, hr_loss_terms
from art_hrloss.losses._module import HRLoss

__all__ = ["HRLoss", "backward_by_parts", "hr_loss", "hr_loss_terms"]
