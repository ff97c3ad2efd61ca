"""Attack specs -> ART attacks."""

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
from art.attacks import EvasionAttack
from art.attacks.evasion import FastGradientMethod
from art.estimators.classification import PyTorchClassifier

from art_hrloss.attacks._ensemble import ensemble, transfer
from art_hrloss.attacks._restarted import PGD, AutoPGD
from art_hrloss.attacks._square import Square
from art_hrloss.attacks._worst_case import worst_case
from benchmarks.config import AttackSpec

# Of the ensemble's attacks that see no gradients: the Square attack's queries per image, and HopSkipJump's rounds.
SQUARE_ITER, HOP_SKIP_JUMP_ITER = 500, 3
# What the ensemble calls the other network.
SOURCE_NAME = "another CE-trained network"


class WorstCaseAttack:
    """The ensemble as an attack like the others; what broke which image is told afterwards."""

    def __init__(
        self,
        classifier: PyTorchClassifier,
        *,
        eps: float,
        steps: int,
        batch_size: int,
        source: PyTorchClassifier | None = None,
    ) -> None:
        """Of `steps` steps each of projected gradient descent and Auto-PGD along every loss, and of black boxes."""
        self.classifier, self.eps, self.steps, self.batch_size = classifier, eps, steps, batch_size
        self.transfer_from = {} if source is None else {SOURCE_NAME: source}
        self.broken_by: dict[str, int] = {}

    def generate(self, x: npt.NDArray[np.float32], y: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """The image that broke each, or the original."""
        attacks = ensemble(
            self.classifier,
            eps=self.eps,
            max_iter=self.steps,
            square_iter=SQUARE_ITER,
            hop_skip_jump_iter=HOP_SKIP_JUMP_ITER,
            transfer_from=self.transfer_from,
            batch_size=self.batch_size,
        )
        found = worst_case(self.classifier, x, y, eps=self.eps, attacks=attacks, batch_size=self.batch_size)
        counts = Counter(found.broken_by.tolist())
        self.broken_by = {name: counts[i] for i, name in enumerate(found.names)}
        return found.adversarial


def build(
    spec: AttackSpec,
    classifier: PyTorchClassifier,
    *,
    batch_size: int,
    input_scale: float = 1.0,
    source: PyTorchClassifier | None = None,
) -> EvasionAttack | WorstCaseAttack | None:
    """
    The attack as ART has it; None for no attack.

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
    options: dict[str, Any] = {
        "eps": spec.eps if spec.units == "range" else spec.eps / input_scale,
        "batch_size": batch_size,
    }
    if spec.name == "worst-case":
        return WorstCaseAttack(classifier, steps=spec.steps, source=source, **options)
    if spec.name == "transfer":
        return transfer(source, max_iter=spec.steps, **options)
    if spec.name == "square":
        return Square(classifier, norm=np.inf, max_iter=spec.steps, nb_restarts=1, verbose=False, **options)
    if spec.name == "fgm":
        return FastGradientMethod(classifier, norm=np.inf, eps_step=options["eps"], **options)
    iterative: dict[str, Any] = {"pgd": PGD, "apgd": AutoPGD}
    return iterative[spec.name](classifier, classifier.attack_loss, max_iter=spec.steps, **options)
