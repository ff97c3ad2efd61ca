"""Attack specs -> ART attacks."""

import numpy as np
from art.attacks import EvasionAttack
from art.attacks.evasion import FastGradientMethod
from art.estimators.classification import PyTorchClassifier

from benchmarks.config import AttackSpec


def build(
    spec: AttackSpec, classifier: PyTorchClassifier, *, batch_size: int, input_scale: float = 1.0
) -> EvasionAttack | None:
    """
    The attack as ART has it; None for no attack.

    :param spec: Which attack, and how large.
    :param classifier: The classifier under attack, as seen through the attack's loss.
    :param batch_size: How many images are attacked at once; no result depends on it.
    :param input_scale: Units of the network's input in the range of a pixel, for an eps that is given in them.
    """
    if spec.name == "none":
        return None
    eps = spec.eps if spec.units == "range" else spec.eps / input_scale
    return FastGradientMethod(classifier, norm=np.inf, eps=eps, eps_step=eps, batch_size=batch_size)
