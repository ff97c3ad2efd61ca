"""Bounds on the error probability of a classifier: Proposition 1 and the inequalities of its proof."""

from art_hrloss.bounds._error_bounds import ErrorBounds, error_bounds
from art_hrloss.bounds._fano import beta, fano_bound, fano_inverse
from art_hrloss.bounds._formulas import (
    LogBounds,
    error_lower_bound,
    error_upper_bound,
    probability_comparison_bounds,
    relaxed_upper_bound,
    uncertainty,
)

__all__ = [
    "ErrorBounds",
    "LogBounds",
    "beta",
    "error_bounds",
    "error_lower_bound",
    "error_upper_bound",
    "fano_bound",
    "fano_inverse",
    "probability_comparison_bounds",
    "relaxed_upper_bound",
    "uncertainty",
]
