"""Attack specs -> ART attacks."""

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
from benchmarks.references import Reference

# Queries of the ensemble's Square attack for each step of its other attacks: 1000 beside 50 steps.
QUERIES_PER_STEP = 20
# Of float32, in the pixels that a user's own attack makes.
ROUNDING = 1e-6
# What the ensemble calls the other network.
SOURCE_NAME = "another CE-trained network"


class WorstCaseAttack:
    """The ensemble of art_hrloss as an attack like the others, which also tells which of its attacks found what."""

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
        :param steps: Of each white-box attack.
        :param batch_size: Images that are attacked together.
        :param source: Another network's classifier, whose adversarial images are tried as well.
        """
        self.classifier, self.eps, self.steps, self.batch_size = classifier, eps, steps, batch_size
        self.transfer_from = {} if source is None else {SOURCE_NAME: source}
        self.names: tuple[str, ...] = ()
        self.found_by: npt.NDArray[np.int64] | None = None

    def generate(self, x: Any, y: Any) -> Any:
        """Return for each image the first adversarial example that an attack found, or the original; as `x` is."""
        options: dict[str, Any] = {"eps": self.eps, "batch_size": self.batch_size}
        sizes = {"max_iter": self.steps, "square_iter": QUERIES_PER_STEP * self.steps}
        attacks = ensemble(self.classifier, transfer_from=self.transfer_from, **sizes, **options)
        result = worst_case(self.classifier, x, y, attacks=attacks, verbose=False, **options)
        self.names, self.found_by = tuple(result.names), result.found_by
        return result.adversarial


class OwnAttack:
    """A user's own attack, which is held to images of the same form and to its eps."""

    def __init__(self, reference: Reference, classifier: HRClassifier, eps: float) -> None:
        """
        :param reference: To what is called with the classifier, and with eps if that is above 0.
        :param classifier: The classifier under attack.
        :param eps: The radius in L-infinity, as a share of the pixel range; 0 if the attack has another bound or none.
        """
        self.reference, self.eps = reference, eps
        self.attack: Any = reference.make(object, classifier, **({"eps": eps} if eps else {}))
        if not callable(getattr(self.attack, "generate", None)):
            raise ConfigError(f"expected of {reference} an attack with generate(x, y), but got {self.attack!r:.60}")

    def generate(self, x: npt.NDArray[np.float32], y: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return the attacked images; raise a ConfigError if they are not what an attack may make of the images."""
        attacked = np.asarray(self.attack.generate(x=x.copy(), y=y.copy()), dtype=np.float32)
        wanted = f"expected of {self.reference} images of shape {x.shape} in [0, 1]"
        if attacked.shape != x.shape:
            raise ConfigError(f"{wanted}, but got shape {attacked.shape}")
        if not (attacked.min() > -ROUNDING and attacked.max() < 1 + ROUNDING):  # nor if one is NaN
            raise ConfigError(f"{wanted}, but got values from {attacked.min():g} to {attacked.max():g}")
        change = float(np.abs(attacked - x).max())
        if self.eps and change > self.eps + ROUNDING:
            raise ConfigError(f"expected of {self.reference} changes of at most {self.eps:g}, but got {change:g}")
        return attacked.clip(0, 1)


def build(
    spec: AttackSpec,
    classifier: HRClassifier,
    *,
    batch_size: int,
    input_scale: float = 1.0,
    source: HRClassifier | None = None,
) -> EvasionAttack | WorstCaseAttack | OwnAttack | None:
    """
    Return the attack as ART has it; None for no attack.

    :param spec: Which attack, and how large.
    :param classifier: The classifier under attack, as seen through the attack's loss.
    :param batch_size: How many images are attacked at once; no result of FGSM depends on it.
    :param input_scale: Units of the network's input in the range of a pixel, for an eps that is given in them.
    :param source: Another network's classifier, if the spec names one, to make images on.
    """
    if spec.name == "none":
        return None
    if (spec.source is None) != (source is None):
        raise ValueError(f"expected a source just where the attack names one, but got {source} for {spec.key()}")
    eps = spec.eps if spec.units == "range" else spec.eps / input_scale
    if isinstance(spec.name, Reference):
        return OwnAttack(spec.name, classifier, eps)
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
