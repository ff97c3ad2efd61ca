"""When an attack of ART's may go a shorter way than ART's own."""

from typing import Any

from art_hrloss.attacks._steps import Array
from art_hrloss.classifier import HRClassifier


def is_lean(attack: Any, x: Array | None = None) -> bool:
    """
    Whether an attack need not be left to ART: it is on an HRClassifier, and images are arrays of numbers.

    A classifier that defines anew what ART's attacks ask for, in a subclass or on the object, would here be passed by,
    and a summary writer is told of each step.
    """
    classifier = attack.estimator
    return (
        isinstance(classifier, HRClassifier)
        and attack.summary_writer is None
        and (x is None or x.dtype.kind in "fiub")
        and all(
            getattr(getattr(classifier, name), "__func__", None) is getattr(HRClassifier, name)
            for name in ("loss_gradient", "compute_loss", "predict")
        )
    )
