"""Attacks by specification, as ART's attacks: those of art_hrloss, the ensemble's worst case and a user's attack."""

from typing import Any

import numpy as np
import numpy.typing as npt
from art.attacks import EvasionAttack

from art_hrloss import (
    AutoProjectedGradientDescent,
    FastGradientMethod,
    HRClassifier,
    ProjectedGradientDescent,
    worst_case,
)
from art_hrloss.attacks import SquareAttack, ensemble, transfer
from benchmarks.config import AttackSpec, ConfigError
from benchmarks.protocols import QUERIES_PER_STEP
from benchmarks.references import Reference

# Tolerance for float32 rounding in the adversarial images of a user's attack.
ROUNDING = 1e-6
# Name of the source network in the ensemble. It is stored in records.
SOURCE_NAME = "another CE-trained network"


class WorstCaseAttack:
    """Ensemble of art_hrloss as one attack; it also reports which of its attacks found each adversarial example."""

    def __init__(
        self,
        classifier: HRClassifier,
        *,
        eps: float,
        steps: int,
        batch_size: int,
        source: HRClassifier | None = None,
    ) -> None:
        """
        :param classifier: The classifier under attack.
        :param eps: The radius in L-infinity, as a share of the pixel range.
        :param steps: Steps of each white-box attack.
        :param batch_size: Number of images per batch.
        :param source: A source network's classifier for a transfer attack; None for no transfer attack.
        """
        self.classifier, self.eps, self.steps, self.batch_size = classifier, eps, steps, batch_size
        self.transfer_from = {} if source is None else {SOURCE_NAME: source}
        self.names: tuple[str, ...] = ()
        self.found_by: npt.NDArray[np.int64] | None = None

    def generate(self, x: Any, y: Any) -> Any:
        """Return each image's first adversarial example, or the original image if none was found; same type as `x`."""
        options: dict[str, Any] = {"eps": self.eps, "batch_size": self.batch_size}
        sizes = {"max_iter": self.steps, "square_iter": QUERIES_PER_STEP * self.steps}
        attacks = ensemble(self.classifier, transfer_from=self.transfer_from, **sizes, **options)
        result = worst_case(self.classifier, x, y, attacks=attacks, verbose=False, **options)
        self.names, self.found_by = tuple(result.names), result.found_by
        return result.adversarial


class UserAttack:
    """A user's attack; its images are checked for shape, pixel range and eps."""

    def __init__(self, reference: Reference, classifier: HRClassifier, eps: float) -> None:
        """
        :param reference: Reference to a function of the classifier, and of eps if eps is above 0.
        :param classifier: The classifier under attack.
        :param eps: The radius in L-infinity, as a share of the pixel range; 0 if the attack has another bound or none.
        """
        self.reference, self.eps = reference, eps
        self.attack: Any = reference.make(object, classifier, **({"eps": eps} if eps else {}))
        if not callable(getattr(self.attack, "generate", None)):
            raise ConfigError(
                f"expected {reference} to return an attack with generate(x, y), but got {self.attack!r:.60}"
            )

    def generate(self, x: npt.NDArray[np.float32], y: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return the adversarial images; raise a ConfigError if shape, pixel range or eps are violated."""
        adversarial = np.asarray(self.attack.generate(x=x.copy(), y=y.copy()), dtype=np.float32)
        expected = f"expected {self.reference} to return images of shape {x.shape} in [0, 1]"
        if adversarial.shape != x.shape:
            raise ConfigError(f"{expected}, but got shape {adversarial.shape}")
        if not (adversarial.min() > -ROUNDING and adversarial.max() < 1 + ROUNDING):  # False also if a value is NaN
            raise ConfigError(f"{expected}, but got values from {adversarial.min():g} to {adversarial.max():g}")
        change = float(np.abs(adversarial - x).max())
        if self.eps and change > self.eps + ROUNDING:
            raise ConfigError(f"expected {self.reference} to change pixels by at most {self.eps:g}, but got {change:g}")
        return adversarial.clip(0, 1)


def build(
    spec: AttackSpec,
    classifier: HRClassifier,
    *,
    batch_size: int,
    input_scale: float = 1.0,
    source: HRClassifier | None = None,
) -> EvasionAttack | WorstCaseAttack | UserAttack | None:
    """
    Return the attack of a specification as an ART attack; None for no attack.

    :param spec: The specification.
    :param classifier: The classifier under attack, viewed through the attack's loss.
    :param batch_size: Number of images per batch; results of FGSM do not depend on it.
    :param input_scale: The recipe's input_scale, which converts an eps in units of the network's input.
    :param source: The source network's classifier of a transfer attack, if the specification names a source.
    """
    if spec.name == "none":
        return None
    if (spec.source is None) != (source is None):
        expected = "no source classifier" if spec.source is None else "a source classifier"
        raise ValueError(f"expected {expected} for the attack {spec.key()}, but got {source}")
    eps = spec.eps if spec.units == "range" else spec.eps / input_scale
    if isinstance(spec.name, Reference):
        return UserAttack(spec.name, classifier, eps)
    options: dict[str, Any] = {"eps": eps, "batch_size": batch_size}
    if spec.name == "worst-case":
        return WorstCaseAttack(classifier, steps=spec.steps, source=source, **options)
    if spec.name == "transfer":
        return transfer(source, max_iter=spec.steps, **options)
    if spec.name == "square":
        return SquareAttack(classifier, max_iter=spec.steps, nb_restarts=1, verbose=False, **options)
    if spec.name == "fgm":
        return FastGradientMethod(classifier, **options)
    options |= {"restarts": 1, "keep_first": True, "verbose": False}
    if spec.name == "pgd":
        return ProjectedGradientDescent(classifier, eps_step=2.5 * eps / spec.steps, max_iter=spec.steps, **options)
    return AutoProjectedGradientDescent(classifier, eps_step=2 * eps, max_iter=spec.steps, **options)
