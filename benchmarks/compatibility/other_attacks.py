"""The attacks that take no gradient of a loss: class gradients, features of a layer, or predictions alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.compatibility.cases import AttackCase, one_hot
from benchmarks.compatibility.subjects import CHANNELS_LAST, PROBABILITIES, SEQUENTIAL, Images, Labels

QUIET = {"verbose": False}
CARLINI = {"learning_rate": 0.1, "initial_const": 1.0, **QUIET}
PIXELS, THRESHOLD = {"th": 5, "max_iter": 5}, {"th": 150, "max_iter": 10}
# GRAPHITE's changes of view, all at none: on 8 x 8 pixels they leave little of a digit.
UNMOVED = {
    **dict.fromkeys(("rotation_range", "crop_percent_range", "off_x_range", "off_y_range"), (0.0, 0.0)),
    "gamma_range": (1.0, 1.0),
    "blur_kernels": (0, 0),
}
NEEDS_PROBABILITIES = "it refuses logits, which HRLoss takes: here a softmax follows the network"
OWN_GENERATOR = "random: it draws from a generator of its own, so no two runs agree"


def _to_next(attack: Any, images: Images, labels: Labels) -> Any:
    return attack.generate(images, y=(labels + 1) % 10)


def _one_hot(attack: Any, images: Images, labels: Labels) -> Any:
    return attack.generate(images, y=one_hot(labels))


def _to_neighbour(attack: Any, images: Images, labels: Labels) -> Any:
    return attack.generate(images, y=np.roll(images, 1, axis=0))


def _to_mirrored(attack: Any, images: Images, labels: Labels) -> Any:
    return attack.generate(images, y=np.ascontiguousarray(images[..., ::-1]), maxiter=2)


def _from_negative(attack: Any, images: Images, labels: Labels) -> Any:
    negative = 1 - images
    return attack.generate(images, y=attack.estimator.predict(negative).argmax(1), x_tar=negative)


def _laser(classifier: Any) -> Mapping[str, Any]:
    from art.attacks.evasion.laser_attack.laser_attack import LaserBeam, LaserBeamGenerator

    ends = (LaserBeam.from_array(end) for end in ([380.0, 0.0, 0.0, 1.0], [780.0, 3.14, 8.0, 3.0]))
    return {"iterations": 5, "laser_generator": LaserBeamGenerator(*ends)}


OTHER_ATTACKS: tuple[AttackCase, ...] = (
    AttackCase("CarliniL0Method", {**CARLINI, "max_iter": 5, "binary_search_steps": 2, "batch_size": 4}, count=2),
    AttackCase("CarliniL2Method", {**CARLINI, "max_iter": 5, "binary_search_steps": 3, "batch_size": 4}, count=4),
    AttackCase(
        "CarliniLInfMethod",
        {**CARLINI, "max_iter": 5, "batch_size": 4, "decrease_factor": 0.5, "largest_const": 5.0},
        count=2,
    ),
    AttackCase("DeepFool", {"max_iter": 10, "batch_size": 12, **QUIET}),
    AttackCase("ElasticNet", {**CARLINI, "max_iter": 5, "binary_search_steps": 3, "batch_size": 4}, count=4),
    AttackCase("NewtonFool", {"max_iter": 10, "eta": 0.1, "batch_size": 12, **QUIET}),
    AttackCase("SaliencyMapMethod", {"theta": 0.5, "gamma": 0.3, "batch_size": 12, **QUIET}, generate=_to_next),
    AttackCase("FeatureAdversariesNumpy", {"delta": 0.5, "layer": 7}, form=SEQUENTIAL, count=1, generate=_to_mirrored),
    AttackCase(
        "FeatureAdversariesPyTorch",
        {"delta": 0.3, "layer": 7, "max_iter": 5, "step_size": 0.1, **QUIET},
        form=SEQUENTIAL,
        generate=_to_neighbour,
    ),
    AttackCase(
        "VirtualAdversarialMethod",
        {"eps": 2.0, "max_iter": 3, "batch_size": 12, **QUIET},
        form=PROBABILITIES,
        count=4,
        note=NEEDS_PROBABILITIES,
    ),
    AttackCase(
        "BoundaryAttack",
        {"targeted": False, "max_iter": 5, "num_trial": 5, "sample_size": 5, "init_size": 50, **QUIET},
        count=4,
        note=OWN_GENERATOR,
    ),
    AttackCase(
        "HopSkipJump",
        {"max_iter": 1, "max_eval": 50, "init_eval": 10, "init_size": 50, **QUIET},
        count=4,
        note=OWN_GENERATOR,
    ),
    AttackCase("GeoDA", {"max_iter": 500, "sub_dim": 4, **QUIET}, count=1, note="not with NumPy 2"),
    AttackCase(
        "GRAPHITEBlackbox",
        {**UNMOVED, "noise_size": (8, 8), "net_size": (8, 8), "num_xforms_mask": 2, "num_xforms_boost": 2}
        | {"num_boost_queries": 20},
        count=2,
        generate=_from_negative,
        packages=("cv2",),
    ),
    AttackCase("LaserAttack", _laser, form=CHANNELS_LAST, count=2, note="not with NumPy 2; three channels, last"),
    AttackCase("PixelAttack", {**PIXELS, "es": 1}, variant="es=1", count=2),
    AttackCase("PixelAttack", {**PIXELS, "es": 0}, variant="es=0", count=2, packages=("cma",), note=OWN_GENERATOR),
    AttackCase("ThresholdAttack", {**THRESHOLD, "es": 1}, variant="es=1", count=2),
    AttackCase(
        "ThresholdAttack", {**THRESHOLD, "es": 0}, variant="es=0", count=2, packages=("cma",), note=OWN_GENERATOR
    ),
    AttackCase("SignOPTAttack", {"targeted": False, "max_iter": 2, "num_trial": 5, "k": 5}, count=1),
    AttackCase(
        "SimBA",
        {"attack": "px", "epsilon": 0.3, "max_iter": 60, **QUIET},
        form=PROBABILITIES,
        count=4,
        generate=_one_hot,
        note=NEEDS_PROBABILITIES,
    ),
    AttackCase(
        "SimBA",
        {"attack": "px", "epsilon": 0.3, "max_iter": 60, **QUIET},
        variant="labels as class indices",
        form=PROBABILITIES,
        count=4,
        note="it takes one-hot labels alone",
    ),
    AttackCase(
        "SpatialTransformation",
        {"max_translation": 20.0, "num_translations": 3, "max_rotation": 30.0, "num_rotations": 3, **QUIET},
    ),
    AttackCase("SquareAttack", {"eps": 0.3, "max_iter": 30, **QUIET}),
    AttackCase(
        "ZooAttack",
        {
            "max_iter": 30,
            "learning_rate": 0.2,
            "initial_const": 100.0,
            "variable_h": 0.1,
            "nb_parallel": 64,
            "use_resize": False,
            "use_importance": False,
            **QUIET,
        },
        count=2,
    ),
)
