"""
Attacks along any loss, the worst case over an ensemble of attacks, and the losses that attacks maximise.

The gradient attacks are subclasses of ART's attacks. They have ART's parameters and, by default, return ART's images.
Additional parameters are `loss`, `restarts` and `keep_first`.
"""

from art_hrloss._context import seeded
from art_hrloss.attacks._auto_pgd import AutoProjectedGradientDescent
from art_hrloss.attacks._ensemble import HopSkipJumpAttack, ensemble, transfer
from art_hrloss.attacks._gradient import FastGradientMethod, ProjectedGradientDescent
from art_hrloss.attacks._losses import (
    DLRLoss,
    ExactCrossEntropy,
    MarginLoss,
    TargetedDLRLoss,
    TargetedMarginLoss,
    attack_loss,
)
from art_hrloss.attacks._square import SquareAttack
from art_hrloss.attacks._worst_case import WorstCase, worst_case

__all__ = [
    "AutoProjectedGradientDescent",
    "DLRLoss",
    "ExactCrossEntropy",
    "FastGradientMethod",
    "HopSkipJumpAttack",
    "MarginLoss",
    "ProjectedGradientDescent",
    "SquareAttack",
    "TargetedDLRLoss",
    "TargetedMarginLoss",
    "WorstCase",
    "attack_loss",
    "ensemble",
    "seeded",
    "transfer",
    "worst_case",
]
