"""Benchmarks of the paper's experiments: training, attacks and reports; load_classifier loads a trained network."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.classifiers import load_classifier

__all__ = ["load_classifier"]


def __getattr__(name: str) -> Any:
    if name == "load_classifier":  # imported on first use, because it imports ART, which takes seconds
        from benchmarks.classifiers import load_classifier

        return load_classifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
