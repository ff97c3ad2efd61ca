"""The paper's grid, trained, attacked and reported; and the networks that it leaves, for ART's pipelines."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.classifiers import load_classifier

__all__ = ["load_classifier"]


def __getattr__(name: str) -> Any:
    if name == "load_classifier":  # with ART, which takes seconds to import: only for who wants it
        from benchmarks.classifiers import load_classifier

        return load_classifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
