"""ART's evasion attacks as small cases: first those that maximise a loss, then all others."""

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import numpy as np
import torch
from art.attacks import evasion

from benchmarks.compatibility import cases


def away(attack: Any, images: cases.Images, labels: cases.Labels) -> Any:
    """Return the adversarial images of an untargeted attack; the labels are class indices."""
    return attack.generate(images, y=labels)


@dataclass(frozen=True)
class AttackCase(cases.Case):
    """
    Evasion attack as a case; see :class:`Case`.

    :param options: Arguments of the attack, besides the classifier.
    :param more: A function from the classifier to further arguments.
    :param form: The form of the images.
    :param count: The number of images.
    :param generate: A function from attack, images and class indices to adversarial images.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    _: KW_ONLY
    more: Callable[[Any], Mapping[str, Any]] = lambda classifier: {}
    form: cases.Form = cases.PLAIN
    count: int = 12
    generate: Callable[[Any, cases.Images, cases.Labels], Any] = away

    def perform(self, subject: cases.Subject, victim: cases.Victim) -> cases.Outcome:
        """Attack the first test images that the network classifies correctly."""
        network = self.form.network(subject.trained)
        images, labels = self.form.present(subject.x_test), subject.y_test
        with torch.no_grad():
            predicted = network(torch.from_numpy(images)).argmax(1).numpy()
        chosen = np.flatnonzero((predicted == labels) & (labels < self.form.classes))[: self.count]
        x, y = np.ascontiguousarray(images[chosen]), labels[chosen]
        classifier = victim.classifier(network, self.form, torch.optim.Adam(network.parameters()))
        # Imported for each attack: findings.hidden replaces this module.
        exports = importlib.import_module("art.attacks.evasion")
        attack = getattr(exports, self.name)(classifier, **self.options, **self.more(classifier))
        x_adv = np.asarray(self.generate(attack, x.copy(), y.copy()), dtype=np.float32)
        calls = frozenset(classifier.calls)
        return cases.Outcome(x_adv, cases.right(network, x, y), cases.right(network, x_adv, y), calls)


Options = dict[str, Any]
STEPS = {"eps": 0.15, "eps_step": 0.05, "max_iter": 5}
AUTO = {"eps": 0.15, "eps_step": 0.3, "max_iter": 5, "nb_random_init": 1}
AUTO_L2 = AUTO | {"norm": 2, "eps": 1.0, "eps_step": 2.0}
OBJECTIVES = {"cross_entropy": "cross-entropy", "difference_logits_ratio": "DLR"}
CONJUGATE = ("AutoConjugateGradient", "RescalingAutoConjugateGradient")
PATCH = {"max_iter": 5, "targeted": False}
WASSERSTEIN = {"eps": 1.0, "eps_step": 0.3, "max_iter": 5, "batch_size": 12}
UNIVERSAL = {"attacker": "fgsm", "attacker_params": {"eps": 0.3, "targeted": True}, "max_iter": 2, "eps": 0.5}
CARLINI = {"learning_rate": 0.1, "initial_const": 1.0, "max_iter": 5, "batch_size": 4}
SIMBA = {"attack": "px", "epsilon": 0.3, "max_iter": 60}
GRAPHITE = {"net_size": (8, 8), "num_xforms": 2, "steps": 2, "first_steps": 12, "step_size": 0.1, "min_tr": 0.5}
# GRAPHITE's changes of the viewpoint, all switched off: with 8 x 8 pixels a digit would become unrecognisable.
RANGES = ("rotation_range", "crop_percent_range", "off_x_range", "off_y_range")
UNMOVED: Options = dict.fromkeys(RANGES, (0.0, 0.0)) | {"gamma_range": (1.0, 1.0), "blur_kernels": (0, 0)}
NO_SIGN = "with L-infinity ART's steps follow the gradient, not its sign, so small gradients make the attack weak"
MULTIPROCESS = "ART imports multiprocess even if nothing runs in parallel"
NEEDS_PROBABILITIES = "the attack rejects logits, which HRLoss needs: in this row a softmax follows the network"
OWN_GENERATOR = "the attack uses its own unseeded random generator, so its runs differ"
ONE_HOT = "the attack supports one-hot labels only"
MARGIN = "does not support NumPy 2; ART wraps the network in a new PyTorchClassifier, with a margin of logits as loss"
TABLES = "for tabular data: the digits as 64 columns; targeted; a mean over the batch makes its steps smaller"


def _unlabelled(attack: Any, images: cases.Images, labels: cases.Labels) -> Any:
    return np.concatenate([attack.generate(image[np.newaxis]) for image in images])


def _columns(attack: Any, images: cases.Images, labels: cases.Labels) -> Any:
    attack.fit_importances(importance_array=np.ones(64))
    return attack.generate(images, y=cases.one_hot((labels + 1) % 10))


def _patched(attack: Any, images: cases.Images, labels: cases.Labels) -> Any:
    attack.generate(images, y=labels)
    return attack.apply_patch(images, scale=0.7)


def _to_next(attack: Any, images: cases.Images, labels: cases.Labels) -> Any:
    return attack.generate(images, y=(labels + 1) % 10)


def _from_negative(attack: Any, images: cases.Images, labels: cases.Labels) -> Any:
    negative = 1 - images
    return attack.generate(images, y=attack.estimator.predict(negative).argmax(1), x_tar=negative)


def _with_auto_pgd(classifier: Any) -> Options:
    return {"attacks": [evasion.AutoProjectedGradientDescent(classifier, **AUTO)], "eps": 0.15, "eps_step": 0.05}


def _with_fgm(classifier: Any) -> Options:
    return {"attacker": evasion.FastGradientMethod(classifier, eps=0.15), "frame_index": 2}


def _with_laser(classifier: Any) -> Options:
    from art.attacks.evasion.laser_attack.laser_attack import LaserBeam, LaserBeamGenerator

    ends = (LaserBeam.from_array(end) for end in ([380.0, 0.0, 0.0, 1.0], [780.0, 3.14, 8.0, 3.0]))
    return {"laser_generator": LaserBeamGenerator(*ends), "iterations": 5}


def _with_loss() -> Iterator[AttackCase]:
    """Yield the attacks that maximise a loss: the classifier's, or a fixed one."""
    case = AttackCase
    yield case("FastGradientMethod", {"eps": 0.15})
    for name in ("BasicIterativeMethod", "MomentumIterativeMethod"):
        yield case(name, STEPS)
    for ending in ("", "Numpy", "PyTorch"):
        yield case(f"ProjectedGradientDescent{ending}", STEPS)
    yield case("AutoProjectedGradientDescent", AUTO, variant="loss_type=None")
    for name in CONJUGATE:
        yield case(name, AUTO, variant="loss_type=None, norm=inf", note=NO_SIGN)
        yield case(name, AUTO_L2, variant="loss_type=None, norm=2")
    for name in ("AutoProjectedGradientDescent", *CONJUGATE):
        for loss_type, objective in OBJECTIVES.items():
            of_name = AUTO_L2 if name in CONJUGATE else AUTO
            yield case(name, of_name | {"loss_type": loss_type}, variant=loss_type, objective=objective)
    yield case(
        "AutoProjectedGradientDescent",
        AUTO | {"loss_type": "difference_logits_ratio"},
        variant="difference_logits_ratio, two classes",
        form=cases.TWO_CLASSES,
        note="DLR needs three classes or more",
    )
    needs: tuple[str, ...] = ("multiprocess",)
    yield case(
        "AutoAttack",
        {"eps": 0.4, "eps_step": 0.1},
        variant="its default list",
        count=2,
        packages=needs,
        objective="cross-entropy; then DLR, DeepFool and Square for the images that are still correct",
        note=MULTIPROCESS,
    )
    variant = "attacks=[AutoPGD(loss_type=None)]"
    yield case("AutoAttack", more=_with_auto_pgd, variant=variant, packages=needs, note=MULTIPROCESS)
    options: Options = WASSERSTEIN | {"regularization": 3000.0}
    variant, note = "its default regularization, 3000", "ART's Sinkhorn iterations overflow"
    yield case("Wasserstein", options, variant=variant, note=note)
    yield case("Wasserstein", options | {"regularization": 10.0}, variant="regularization=10")
    yield case("Wasserstein", WASSERSTEIN | {"norm": "2", "ball": "2"}, variant='norm="2", ball="2"')
    options = {"sigma": 0.1, "nb_steps": 20, "batch_size": 8, "lambda_tv": 0.1}
    note = "attacks one image at a time; a label, if given, is a target"
    yield case("ShadowAttack", options, count=4, generate=_unlabelled, note=note)
    yield case("FrameSaliencyAttack", more=_with_fgm)
    options = {"n_steps": 20, "threshold": None, "eta": 0.05, "lambd": 0.5}
    yield case("LowProFool", options, form=cases.COLUMNS, generate=_columns, note=TABLES)
    options = {"attacker": "fgsm", "attacker_params": {"eps": 0.15}, "max_iter": 2, "eps": 0.3}
    yield case("UniversalPerturbation", options, variant='attacker="fgsm"')
    options = {"attacker": "deepfool", "attacker_params": {"max_iter": 5}, "max_iter": 1, "eps": 0.6}
    yield case("UniversalPerturbation", options, variant='attacker="deepfool"')
    name = "TargetedUniversalPerturbation"
    yield case(name, UNIVERSAL, generate=lambda attack, x, y: attack.generate(x, y=cases.one_hot(np.full_like(y, 8))))
    yield case(
        name,
        UNIVERSAL,
        variant="labels as class indices",
        generate=lambda attack, x, y: attack.generate(x, y=np.full_like(y, 8)),
        note=ONE_HOT,
    )
    yield case("BrendelBethgeAttack", {"norm": 2, "steps": 5}, packages=("numba",), note=MARGIN)
    yield case("AdversarialPatchNumpy", PATCH, generate=_patched, note="does not support NumPy 2")
    for name in ("AdversarialPatchPyTorch", "AdversarialPatch"):
        yield case(name, PATCH | {"patch_shape": (1, 8, 8)}, generate=_patched, objective="cross-entropy")
    yield case(
        "CompositeAdversarialAttackPyTorch",
        {"max_iter": 2, "max_inner_iter": 2, "batch_size": 12},
        form=cases.COLOUR,
        count=4,
        packages=("kornia",),
        objective="cross-entropy",
    )
    needs = ("kornia", "cv2")
    yield case(
        "GRAPHITEWhiteboxPyTorch", GRAPHITE, count=2, generate=_to_next, packages=needs, objective="cross-entropy"
    )
    yield case(
        "OverTheAirFlickeringPyTorch",
        {"max_iter": 12, "eps_step": 0.1, "beta_0": 0.1},
        form=cases.VIDEO,
        count=4,
        objective="margin of probabilities",
        note="for video: each digit is four frames",
    )


def _without_loss() -> Iterator[AttackCase]:
    """Yield the attacks that use class gradients, features or predictions instead of a loss."""
    case = AttackCase
    yield case("CarliniL0Method", CARLINI | {"binary_search_steps": 2}, count=2)
    yield case("CarliniL2Method", CARLINI | {"binary_search_steps": 3}, count=4)
    yield case("CarliniLInfMethod", CARLINI | {"decrease_factor": 0.5, "largest_const": 5.0}, count=2)
    yield case("DeepFool", {"max_iter": 10, "batch_size": 12})
    yield case("ElasticNet", CARLINI | {"binary_search_steps": 3}, count=4)
    yield case("NewtonFool", {"max_iter": 10, "eta": 0.1, "batch_size": 12})
    yield case("SaliencyMapMethod", {"theta": 0.5, "gamma": 0.3, "batch_size": 12}, generate=_to_next)
    yield case(
        "FeatureAdversariesNumpy",
        {"delta": 0.5, "layer": 7},
        form=cases.SEQUENTIAL,
        count=1,
        generate=lambda attack, x, y: attack.generate(x, y=np.ascontiguousarray(x[..., ::-1]), maxiter=2),
    )
    yield case(
        "FeatureAdversariesPyTorch",
        {"delta": 0.3, "layer": 7, "max_iter": 5, "step_size": 0.1},
        form=cases.SEQUENTIAL,
        generate=lambda attack, x, y: attack.generate(x, y=np.roll(x, 1, axis=0)),
    )
    options: Options = {"eps": 2.0, "max_iter": 3, "batch_size": 12}
    yield case("VirtualAdversarialMethod", options, form=cases.PROBABILITIES, count=4, note=NEEDS_PROBABILITIES)
    options = {"targeted": False, "max_iter": 5, "num_trial": 5, "sample_size": 5, "init_size": 50}
    yield case("BoundaryAttack", options, count=4, note=OWN_GENERATOR)
    options = {"max_iter": 1, "max_eval": 50, "init_eval": 10, "init_size": 50}
    yield case("HopSkipJump", options, count=4, note=OWN_GENERATOR)
    yield case("GeoDA", {"max_iter": 500, "sub_dim": 4}, count=1, note="does not support NumPy 2")
    options = {"noise_size": (8, 8), "net_size": (8, 8), "num_xforms_mask": 2, "num_xforms_boost": 2}
    options |= {"num_boost_queries": 20, **UNMOVED}
    yield case("GRAPHITEBlackbox", options, count=2, generate=_from_negative, packages=("cv2",))
    note = "does not support NumPy 2; needs three channels, in the last dimension"
    yield case("LaserAttack", more=_with_laser, form=cases.CHANNELS_LAST, count=2, note=note)
    for name, options in (("PixelAttack", {"th": 5, "max_iter": 5}), ("ThresholdAttack", {"th": 150, "max_iter": 10})):
        yield case(name, options | {"es": 1}, variant="es=1", count=2)
        yield case(name, options | {"es": 0}, variant="es=0", count=2, packages=("cma",), note=OWN_GENERATOR)
    yield case("SignOPTAttack", {"targeted": False, "max_iter": 2, "num_trial": 5, "k": 5}, count=1)
    yield case(
        "SimBA",
        SIMBA,
        form=cases.PROBABILITIES,
        count=4,
        generate=lambda attack, x, y: attack.generate(x, y=cases.one_hot(y)),
        note=NEEDS_PROBABILITIES,
    )
    yield case("SimBA", SIMBA, variant="labels as class indices", form=cases.PROBABILITIES, count=4, note=ONE_HOT)
    options = {"max_translation": 20.0, "num_translations": 3, "max_rotation": 30.0, "num_rotations": 3}
    yield case("SpatialTransformation", options)
    yield case("SquareAttack", {"eps": 0.3, "max_iter": 30})
    options = {"max_iter": 30, "learning_rate": 0.2, "initial_const": 100.0, "variable_h": 0.1, "nb_parallel": 64}
    yield case("ZooAttack", options | {"use_resize": False, "use_importance": False}, count=2)


ATTACKS: tuple[AttackCase, ...] = (*_with_loss(), *_without_loss())
