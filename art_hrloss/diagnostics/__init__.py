"""Signs of gradient masking."""

from art_hrloss.diagnostics._report import GradientMaskingReport, gradient_masking_report

__all__ = ["GradientMaskingReport", "gradient_masking_report"]
