"""Gradient masking: signs that the robust accuracy of a classifier under an attack is due to useless gradients."""

from art_hrloss.diagnostics._flags import Flag
from art_hrloss.diagnostics._report import GradientMaskingReport, gradient_masking_report

__all__ = ["Flag", "GradientMaskingReport", "gradient_masking_report"]
