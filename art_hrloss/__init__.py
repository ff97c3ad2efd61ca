"""HR loss (conditional entropy plus a Renyi divergence) for the Adversarial Robustness Toolbox."""

from art_hrloss.bounds._error_bounds import ErrorBounds, error_bounds
from art_hrloss.classifier import HRClassifier, attack_view
from art_hrloss.losses._functional import hr_loss
from art_hrloss.losses._module import HRLoss

__all__ = ["ErrorBounds", "HRClassifier", "HRLoss", "attack_view", "error_bounds", "hr_loss"]
