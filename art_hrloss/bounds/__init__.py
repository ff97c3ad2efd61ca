"""Proposition 1: bounds on the error probability of a classifier."""

from art_hrloss.bounds._error_bounds import ErrorBounds, error_bounds

__all__ = ["ErrorBounds", "error_bounds"]
