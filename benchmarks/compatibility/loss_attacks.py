"""The attacks that take the gradient of a loss: the classifier's, or one that they bring along."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from art.attacks import evasion

from benchmarks.compatibility.cases import AttackCase, one_hot
from benchmarks.compatibility.subjects import COLOUR, COLUMNS, TWO_CLASSES, VIDEO, Images, Labels

QUIET = {"verbose": False}
STEPS = {"eps": 0.15, "eps_step": 0.05, "max_iter": 5, **QUIET}
AUTO = {"eps": 0.15, "eps_step": 0.3, "max_iter": 5, "nb_random_init": 1, **QUIET}
AUTO_L2 = {**AUTO, "norm": 2, "eps": 1.0, "eps_step": 2.0}
CROSS_ENTROPY, DLR = {"loss_type": "cross_entropy"}, {"loss_type": "difference_logits_ratio"}
PATCH = {"patch_shape": (1, 8, 8), "max_iter": 5, "targeted": False, **QUIET}
WASSERSTEIN = {"eps": 1.0, "eps_step": 0.3, "max_iter": 5, "batch_size": 12, **QUIET}
UNIVERSAL = {"max_iter": 2, "eps": 0.3}
NO_SIGN = "L-inf: ART steps along the gradient, not its sign, so that small gradients make it weak"
MULTIPROCESS = "ART imports it even where nothing runs in parallel"
GRAPHITE = {"net_size": (8, 8), "num_xforms": 2, "steps": 2, "first_steps": 12, "step_size": 0.1, "min_tr": 0.5}


def _unlabelled(attack: Any, images: Images, labels: Labels) -> Any:
    return np.concatenate([attack.generate(image[np.newaxis]) for image in images])


def _columns(attack: Any, images: Images, labels: Labels) -> Any:
    attack.fit_importances(importance_array=np.ones(64))
    return attack.generate(images, y=one_hot((labels + 1) % 10))


def _patched(attack: Any, images: Images, labels: Labels) -> Any:
    attack.generate(images, y=labels)
    return attack.apply_patch(images, scale=0.7)


def _to_eight(attack: Any, images: Images, labels: Labels) -> Any:
    return attack.generate(images, y=one_hot(np.full_like(labels, 8)))


def _to_eight_as_index(attack: Any, images: Images, labels: Labels) -> Any:
    return attack.generate(images, y=np.full_like(labels, 8))


def _to_next(attack: Any, images: Images, labels: Labels) -> Any:
    return attack.generate(images, y=(labels + 1) % 10)


def _with_auto_pgd(classifier: Any) -> Mapping[str, Any]:
    return {"eps": 0.15, "eps_step": 0.05, "attacks": [evasion.AutoProjectedGradientDescent(classifier, **AUTO)]}


def _with_fgm(classifier: Any) -> Mapping[str, Any]:
    return {"attacker": evasion.FastGradientMethod(classifier, eps=0.15), "frame_index": 2, **QUIET}


LOSS_ATTACKS: tuple[AttackCase, ...] = (
    AttackCase("FastGradientMethod", {"eps": 0.15}),
    AttackCase("BasicIterativeMethod", STEPS),
    AttackCase("MomentumIterativeMethod", STEPS),
    AttackCase("ProjectedGradientDescent", STEPS),
    AttackCase("ProjectedGradientDescentNumpy", STEPS),
    AttackCase("ProjectedGradientDescentPyTorch", STEPS),
    AttackCase("AutoProjectedGradientDescent", AUTO, variant="loss_type=None"),
    AttackCase("AutoProjectedGradientDescent", AUTO | CROSS_ENTROPY, variant="cross_entropy", own="cross-entropy"),
    AttackCase("AutoProjectedGradientDescent", AUTO | DLR, variant="difference_logits_ratio", own="DLR"),
    AttackCase(
        "AutoProjectedGradientDescent",
        AUTO | DLR,
        variant="difference_logits_ratio, two classes",
        form=TWO_CLASSES,
        note="DLR needs three classes or more",
    ),
    AttackCase("AutoConjugateGradient", AUTO, variant="loss_type=None, norm=inf", note=NO_SIGN),
    AttackCase("AutoConjugateGradient", AUTO_L2, variant="loss_type=None, norm=2"),
    AttackCase("AutoConjugateGradient", AUTO_L2 | CROSS_ENTROPY, variant="cross_entropy", own="cross-entropy"),
    AttackCase("AutoConjugateGradient", AUTO_L2 | DLR, variant="difference_logits_ratio", own="DLR"),
    AttackCase("RescalingAutoConjugateGradient", AUTO, variant="loss_type=None, norm=inf", note=NO_SIGN),
    AttackCase("RescalingAutoConjugateGradient", AUTO_L2, variant="loss_type=None, norm=2"),
    AttackCase("RescalingAutoConjugateGradient", AUTO_L2 | CROSS_ENTROPY, variant="cross_entropy", own="cross-entropy"),
    AttackCase("RescalingAutoConjugateGradient", AUTO_L2 | DLR, variant="difference_logits_ratio", own="DLR"),
    AttackCase(
        "AutoAttack",
        {"eps": 0.4, "eps_step": 0.1},
        variant="its default list",
        count=2,
        packages=("multiprocess",),
        own="cross-entropy; for what is left DLR, DeepFool and Square",
        note=MULTIPROCESS,
    ),
    AttackCase(
        "AutoAttack",
        _with_auto_pgd,
        variant="attacks=[AutoPGD(loss_type=None)]",
        packages=("multiprocess",),
        note=MULTIPROCESS,
    ),
    AttackCase(
        "Wasserstein",
        {**WASSERSTEIN, "regularization": 3000.0},
        variant="its default regularization, 3000",
        note="ART's Sinkhorn iterations overflow",
    ),
    AttackCase("Wasserstein", {**WASSERSTEIN, "regularization": 10.0}, variant="regularization=10"),
    AttackCase(
        "Wasserstein",
        {**WASSERSTEIN, "norm": "2", "ball": "2"},
        variant='norm="2", ball="2"',
    ),
    AttackCase(
        "ShadowAttack",
        {"sigma": 0.1, "nb_steps": 20, "batch_size": 8, "lambda_tv": 0.1, **QUIET},
        count=4,
        generate=_unlabelled,
        note="one image at a time; a label given to it is a target",
    ),
    AttackCase("FrameSaliencyAttack", _with_fgm),
    AttackCase(
        "LowProFool",
        {"n_steps": 20, "threshold": None, "eta": 0.05, "lambd": 0.5},
        form=COLUMNS,
        generate=_columns,
        note="for tables: the digits as 64 columns; targeted; a mean over the batch shortens its steps",
    ),
    AttackCase(
        "UniversalPerturbation",
        {"attacker": "fgsm", "attacker_params": {"eps": 0.15}, **UNIVERSAL, **QUIET},
        variant='attacker="fgsm"',
    ),
    AttackCase(
        "UniversalPerturbation",
        {"attacker": "deepfool", "attacker_params": {"max_iter": 5, **QUIET}, "max_iter": 1, "eps": 0.6, **QUIET},
        variant='attacker="deepfool"',
    ),
    AttackCase(
        "TargetedUniversalPerturbation",
        {"attacker": "fgsm", "attacker_params": {"eps": 0.3, "targeted": True}, "max_iter": 2, "eps": 0.5},
        generate=_to_eight,
    ),
    AttackCase(
        "TargetedUniversalPerturbation",
        {"attacker": "fgsm", "attacker_params": {"eps": 0.3, "targeted": True}, "max_iter": 2, "eps": 0.5},
        variant="labels as class indices",
        generate=_to_eight_as_index,
        note="it takes one-hot labels alone",
    ),
    AttackCase(
        "BrendelBethgeAttack",
        {"norm": 2, "steps": 5},
        packages=("numba",),
        note="not with NumPy 2; ART puts the network into a PyTorchClassifier of its own, on a margin of logits",
    ),
    AttackCase(
        "AdversarialPatchNumpy", {"max_iter": 5, "targeted": False, **QUIET}, generate=_patched, note="not with NumPy 2"
    ),
    AttackCase("AdversarialPatchPyTorch", PATCH, generate=_patched, own="cross-entropy"),
    AttackCase("AdversarialPatch", PATCH, generate=_patched, own="cross-entropy"),
    AttackCase(
        "CompositeAdversarialAttackPyTorch",
        {"max_iter": 2, "max_inner_iter": 2, "batch_size": 12, **QUIET},
        form=COLOUR,
        count=4,
        packages=("kornia",),
        own="cross-entropy",
    ),
    AttackCase(
        "GRAPHITEWhiteboxPyTorch",
        GRAPHITE,
        count=2,
        generate=_to_next,
        packages=("kornia", "cv2"),
        own="cross-entropy",
    ),
    AttackCase(
        "OverTheAirFlickeringPyTorch",
        {"max_iter": 12, "eps_step": 0.1, "beta_0": 0.1, **QUIET},
        form=VIDEO,
        count=4,
        own="margin of probabilities",
        note="for video: a digit as four frames",
    ),
)
