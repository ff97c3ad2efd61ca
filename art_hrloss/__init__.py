"""
The HR loss, conditional entropy plus a Renyi divergence, for the Adversarial Robustness Toolbox (ART).

* :class:`HRLoss`, :func:`hr_loss`: the training loss for any PyTorch network; more in :mod:`art_hrloss.losses`
* :class:`HRClassifier`, :func:`attack_view`: ART's PyTorchClassifier, attacked along any loss
* attacks and :func:`worst_case`: robust accuracy under an ensemble of attacks; more in :mod:`art_hrloss.attacks`
* :func:`gradient_masking_report`: tests for gradient masking; more in :mod:`art_hrloss.diagnostics`
* :func:`error_bounds`: Proposition 1 for a classifier; more in :mod:`art_hrloss.bounds`
"""

from contextlib import suppress as _suppress
from importlib import metadata as _metadata

from art_hrloss.attacks import (
    AutoProjectedGradientDescent,
    FastGradientMethod,
    ProjectedGradientDescent,
    SquareAttack,
    WorstCase,
    attack_loss,
    ensemble,
    seeded,
    worst_case,
)
from art_hrloss.bounds import ErrorBounds, error_bounds
from art_hrloss.classifier import HRClassifier, attack_view
from art_hrloss.diagnostics import GradientMaskingReport, gradient_masking_report
from art_hrloss.losses import HRLoss, hr_loss

__all__ = [
    "AutoProjectedGradientDescent",
    "ErrorBounds",
    "FastGradientMethod",
    "GradientMaskingReport",
    "HRClassifier",
    "HRLoss",
    "ProjectedGradientDescent",
    "SquareAttack",
    "WorstCase",
    "attack_loss",
    "attack_view",
    "ensemble",
    "error_bounds",
    "gradient_masking_report",
    "hr_loss",
    "seeded",
    "worst_case",
]

with _suppress(_metadata.PackageNotFoundError):  # a clone on Python's path that is not installed
    __version__ = _metadata.version("art_hrloss")
