"""HR loss (conditional entropy plus a Renyi divergence) for the Adversarial Robustness Toolbox."""

from art_hrloss.estimator import HRClassifier, attack_view
from art_hrloss.functional import hr_loss
from art_hrloss.loss import HRLoss

__all__ = ["HRClassifier", "HRLoss", "attack_view", "hr_loss"]
