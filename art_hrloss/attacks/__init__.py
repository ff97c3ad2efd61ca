"""Attacks of ART's along any loss, and the worst case of an ensemble."""

from art_hrloss.attacks._ensemble import ensemble
from art_hrloss.attacks._gradient import AutoProjectedGradientDescent, FastGradientMethod, ProjectedGradientDescent
from art_hrloss.attacks._losses import attack_loss
from art_hrloss.attacks._restarted import PGD, AutoPGD
from art_hrloss.attacks._worst_case import WorstCase, seeded, worst_case

__all__ = [
    "PGD",
    "AutoPGD",
    "AutoProjectedGradientDescent",
    "FastGradientMethod",
    "ProjectedGradientDescent",
    "WorstCase",
    "attack_loss",
    "ensemble",
    "seeded",
    "worst_case",
]
