"""Attack specs -> ART attacks."""

import numpy as np
from art.attacks import EvasionAttack
from art.attacks.evasion import FastGradientMethod
from art.estimators.classification import PyTorchClassifier

from art_hrloss import attack_view
from benchmarks.config import AttackSpec
from benchmarks.losses import attack_loss


def build(
    spec: AttackSpec, classifier: PyTorchClassifier, *, batch_size: int, input_scale: float = 1.0
) -> EvasionAttack | None:
    """
    The attack as ART has it, its estimator the classifier as seen through the attack's loss; None for no attack.

    :param spec: Which attack, driven by which loss, and how large.
    :param classifier: The classifier under attack; its own loss plays no part.
    :param batch_size: How many images are attacked at once; no result depends on it.
    :param input_scale: Units of the network's input in the range of a pixel, for an eps that is given in them.
    """
    if spec.loss is None:
        return None
    view = attack_view(classifier, attack_loss(spec.loss))
    eps = spec.eps if spec.units == "range" else spec.eps / input_scale
    return FastGradientMethod(view, norm=np.inf, eps=eps, eps_step=eps, batch_size=batch_size)
