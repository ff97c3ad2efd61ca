"""HR loss (conditional entropy plus a Renyi divergence) for the Adversarial Robustness Toolbox."""

from art_hrloss.estimator import HRClassifier, attack_view
from art_hrloss.functional import hr_loss
from art_hrloss.loss import HRLoss
from art_hrloss.proposition import ErrorBounds, error_bounds

__all__ = ["ErrorBounds", "HRClassifier", "HRLoss", "attack_view", "error_bounds", "hr_loss"]
