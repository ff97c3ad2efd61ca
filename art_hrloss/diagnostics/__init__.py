"""
Tests for gradient masking.

A classifier with masked (obfuscated) gradients has a high robust accuracy under gradient attacks only because its
gradients are useless to them.
"""

from art_hrloss.diagnostics._flags import Flag
from art_hrloss.diagnostics._report import GradientMaskingReport, gradient_masking_report

__all__ = ["Flag", "GradientMaskingReport", "gradient_masking_report"]
