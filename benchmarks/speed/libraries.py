"""Attacks of other libraries, which only these measurements need and which may not be installed."""

import importlib
import os
import warnings
from collections.abc import Callable
from types import ModuleType

from torch import Tensor, nn

from benchmarks.speed.subjects import AttackKind, Subject

# From images and class indices to adversarial images.
Attack = Callable[[Tensor, Tensor], Tensor]
FOOLBOX, TORCHATTACKS = "Foolbox", "torchattacks"
MISSING, LACKING = "not installed", "has no such attack"


def library_attack(library: str, kind: AttackKind, subject: Subject, network: nn.Module) -> Attack | str:
    """
    The library's attack with the cross-entropy that it brings along, without a random start where it can go without.

    :param library: FOOLBOX or TORCHATTACKS.
    :param kind: Which attack.
    :param subject: Gives eps and the size of a step.
    :param network: On the device that is attacked on, in evaluation mode.
    :return: The attack, or why there is none.
    """
    try:
        module = _imported(library.lower())
    except ModuleNotFoundError:
        return MISSING
    except ImportError as error:
        return f"cannot be imported: {error}".splitlines()[0]
    return (_foolbox if library == FOOLBOX else _torchattacks)(module, kind, subject, network)


def _imported(name: str) -> ModuleType:
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # Foolbox imports GitPython, which else asks for git
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they use of SciPy is deprecated
        return importlib.import_module(name)


def _foolbox(module: ModuleType, kind: AttackKind, subject: Subject, network: nn.Module) -> Attack | str:
    if kind.name == "AutoPGD":
        return LACKING
    if kind.name == "FGM":
        attack = module.attacks.LinfFastGradientAttack(random_start=False)
    else:
        attack = module.attacks.LinfProjectedGradientDescentAttack(
            abs_stepsize=subject.eps_step, steps=kind.steps, random_start=False
        )
    model = module.PyTorchModel(network, bounds=(0, 1), device=next(network.parameters()).device)

    def attacked(images: Tensor, labels: Tensor) -> Tensor:
        _, clipped, _ = attack(model, images, module.criteria.Misclassification(labels), epsilons=subject.eps)
        result: Tensor = clipped
        return result

    return attacked


def _torchattacks(module: ModuleType, kind: AttackKind, subject: Subject, network: nn.Module) -> Attack | str:
    if kind.name == "FGM":
        attack = module.FGSM(network, eps=subject.eps)
    elif kind.name == "AutoPGD":
        attack = module.APGD(network, eps=subject.eps, steps=kind.steps, n_restarts=1)
    else:
        attack = module.PGD(network, eps=subject.eps, alpha=subject.eps_step, steps=kind.steps, random_start=False)

    def attacked(images: Tensor, labels: Tensor) -> Tensor:
        result: Tensor = attack(images, labels)
        return result

    return attacked
