"""Part "attacks": time and images of the same attacks in this plugin, ART, other libraries and reference loops."""

from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType
from typing import Any

import art.attacks.evasion
import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

import art_hrloss.attacks
from art_hrloss import HRClassifier, HRLoss
from benchmarks.report.markup import Table
from benchmarks.speed import reference_attacks
from benchmarks.speed.measuring import (
    RATIO,
    SECONDS,
    Reading,
    Settings,
    at,
    entry,
    interleaved,
    reading,
    rounds,
    tabulated,
    timed_readings,
)
from benchmarks.speed.reference_attacks import FOOLBOX, TORCHATTACKS, library_attack
from benchmarks.speed.subjects import AttackKind, Subject, subjects

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
# A function from images and class indices to adversarial images, all NumPy arrays.
Attack = Callable[[Images, Labels], Images]

DIFFERENCE, APART = "largest difference", "share of pixels apart"
KINDS = (AttackKind("FGM", 1), AttackKind("PGD", 10), AttackKind("PGD", 40), AttackKind("AutoPGD", 10))
CLASSES = {"FGM": "FastGradientMethod", "PGD": "ProjectedGradientDescent", "AutoPGD": "AutoProjectedGradientDescent"}
HAND = {"CE": "loop by hand, CE", "HR": "loop by hand, HR"}
OURS = {"CE": "art_hrloss, CE", "HR": "art_hrloss, HR"}
ART = {"CE": "ART, HRClassifier, CE", "HR": "ART, HRClassifier, HR"}
STOCK = "ART, PyTorchClassifier, CE"
LIBRARIES = {f"{name}, CE": name for name in (FOOLBOX, TORCHATTACKS)}
ORDER = (*HAND.values(), *OURS.values(), *ART.values(), STOCK, *LIBRARIES)
# The contender with which each contender is compared: the reference loop with the same loss, and for both reference
# loops that with CE.
AGAINST = {name: (HAND["HR" if name in (OURS["HR"], ART["HR"]) else "CE"],) for name in ORDER}
NOTES = (
    "Each contender attacks batches of NumPy images, which the network classifies correctly, and returns NumPy images; "
    "a round is one batch. One thread of the CPU, or the GPU if it is named. loop by hand: a reference implementation "
    "in torch, which computes gradients with respect to the images only and nothing twice. art_hrloss: "
    "art_hrloss.attacks with an HRClassifier. ART, HRClassifier and ART, PyTorchClassifier: ART's attacks with either "
    "classifier. All use the L-infinity norm and the same eps and step size: 0.1 and 0.02 for LeNet, 8/255 and 2/255 "
    "for ResNet-8. There is no random start, except for AutoPGD, whose first step size is 2 eps. AutoPGD has 10 steps "
    "only, to save time.",
    "/ loop by hand: the time divided by that of the loop by hand with the same loss; for the loop with HR, by that of "
    "the loop with CE.",
    "largest difference, pixels apart: the largest difference of a pixel, and the share of pixels that differ by more "
    "than 1e-6, from the images of ART's attack through HRClassifier with the same loss, over all rounds, with the "
    "same seeds of NumPy and torch. AutoPGD of torchattacks draws another random start, so its images differ.",
)


def build(module: ModuleType, kind: AttackKind, classifier: PyTorchClassifier, subject: Subject) -> Attack:
    """
    Return the attack, with the same parameters in ART and in this plugin.

    :param module: art.attacks.evasion or art_hrloss.attacks, whose classes have the same names.
    """
    options: dict[str, Any] = {"eps": subject.eps, "eps_step": subject.eps_step, "batch_size": subject.batch}
    if kind.name != "FGM":
        options |= {"max_iter": kind.steps, "verbose": False}
    if kind.name == "AutoPGD":
        options |= {"nb_random_init": 1, "eps_step": 2 * subject.eps}
    attack = getattr(module, CLASSES[kind.name])(classifier, norm=np.inf, **options)
    return lambda images, labels: attack.generate(images, y=labels)


def by_hand(kind: AttackKind, network: nn.Module, subject: Subject, loss: nn.Module) -> Attack:
    """
    Return the reference loop for an attack, with NumPy arrays as input and output.

    :param network: The network, on the device of the attack.
    :param loss: A loss with one value per example.
    """
    loop = reference_attacks.auto_pgd if kind.name == "AutoPGD" else reference_attacks.pgd
    eps_step = {"FGM": subject.eps, "PGD": subject.eps_step, "AutoPGD": 2 * subject.eps}[kind.name]
    attack = partial(loop, network, loss, eps=subject.eps, eps_step=eps_step, steps=kind.steps)
    return partial(_through_torch, attack, next(network.parameters()).device)


def _through_torch(attack: Callable[..., Tensor], device: torch.device, images: Images, labels: Labels) -> Images:
    x, y = torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device)
    return attack(x, y).detach().cpu().numpy()


def art_classifier(network: nn.Module, subject: Subject, loss: nn.Module, kind: type = HRClassifier) -> Any:
    """Return a classifier with the network, of this plugin or of ART."""
    device_type = "gpu" if next(network.parameters()).is_cuda else "cpu"
    return kind(network, loss, subject.images.shape[1:], 10, clip_values=(0.0, 1.0), device_type=device_type)


def contenders(kind: AttackKind, subject: Subject, device: torch.device) -> dict[str, Attack | str]:
    """Return every contender by its name; for a contender that is missing, the reason as text."""
    network = subject.on(device)
    by_name: dict[str, Attack | str] = {}
    for name, loss in (("CE", nn.CrossEntropyLoss), ("HR", HRLoss)):
        by_name[HAND[name]] = by_hand(kind, network, subject, loss(reduction="none"))
        classifier = art_classifier(network, subject, loss())
        by_name[OURS[name]] = build(art_hrloss.attacks, kind, classifier, subject)
        by_name[ART[name]] = build(art.attacks.evasion, kind, classifier, subject)
    stock = art_classifier(network, subject, nn.CrossEntropyLoss(), PyTorchClassifier)
    by_name[STOCK] = build(art.attacks.evasion, kind, stock, subject)
    for name, library in LIBRARIES.items():
        attack = library_attack(library, kind, subject, network)
        by_name[name] = (
            attack if isinstance(attack, str) else _checked(partial(_through_torch, attack, device), subject)
        )
    return by_name


def _checked(attack: Attack, subject: Subject) -> Attack | str:
    """Return the attack, or the error that it raises: a library may not support the installed versions."""
    images, labels = subject.part(0)
    try:
        attack(images[:2], labels[:2])
    except Exception as error:  # any error of any library
        return f"fails: {type(error).__name__}"
    return attack


def seeded(attack: Attack, subject: Subject, index: int) -> Images:
    """Attack the batch with this index, with the same seeds for every contender."""
    np.random.seed(index)  # noqa: NPY002  # ART draws from NumPy's global generator
    torch.manual_seed(index)
    return attack(*subject.part(index))


def measure(kind: AttackKind, subject: Subject, settings: Settings) -> list[Reading]:
    """Return times, ratios and differences of every contender on one network."""
    case = at(f"{subject.name}, {kind}", settings.device)
    by_name = contenders(kind, subject, settings.device)
    attacks = {name: attack for name, attack in by_name.items() if not isinstance(attack, str)}
    adversarial: dict[tuple[str, int], Images] = {}

    def call(name: str, index: int) -> None:
        adversarial[name, index] = seeded(attacks[name], subject, index)

    calls, most = {name: partial(call, name) for name in attacks}, 3 * len(subject.images) // subject.batch
    times = interleaved(calls, settings, rounds=most, warm=kind.steps == 1)
    missing = [reading(case, name, SECONDS, (), note=why) for name, why in by_name.items() if isinstance(why, str)]
    return timed_readings(case, times, AGAINST, note=subject.note) + missing + differences(case, adversarial)


def differences(case: str, adversarial: Mapping[tuple[str, int], Images]) -> list[Reading]:
    """
    Return the differences of each contender's images from those of ART's attack with the same loss, over all rounds.

    :param adversarial: Adversarial images by contender and round.
    """
    readings = []
    for name in dict.fromkeys(name for name, _ in adversarial):
        art_name = ART[name[-2:]]
        if name != art_name:
            apart = np.concatenate(
                [np.abs(x - adversarial[art_name, i]).ravel() for (n, i), x in adversarial.items() if n == name]
            )
            readings.append(reading(case, name, DIFFERENCE, [float(apart.max())], art_name))
            readings.append(reading(case, name, APART, [float((apart > 1e-6).mean())], art_name))
    return readings


def cases(settings: Settings) -> dict[str, Callable[[], list[Reading]]]:
    """Return the measurements of every attack on each of the two networks, by name."""
    return {
        f"{kind} on {subject.name} ({settings.device.type})": partial(measure, kind, subject, settings)
        for subject in subjects(settings)
        for kind in settings.few(KINDS)
    }


def tables(readings: pd.DataFrame) -> list[Table]:
    """Return one table, with a section per network and attack."""
    entries = {"ms per batch": entry(SECONDS, factor=1e3), "/ loop by hand": entry(RATIO), "rounds": rounds}
    entries |= {DIFFERENCE: entry(DIFFERENCE), "pixels apart": entry(APART)}
    return [tabulated("Attacks compared with loops by hand", readings, ("attack", "contender"), entries, NOTES, ORDER)]
