"""Part "attacks": the same attacks through this plugin, ART, other libraries and loops by hand, in time and images."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import ModuleType
from typing import Any

import art.attacks.evasion
import numpy as np
import numpy.typing as npt
import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn

import art_hrloss.attacks
from art_hrloss import HRClassifier, HRLoss
from benchmarks.execution import threads
from benchmarks.report.markup import Table
from benchmarks.speed import plain_loops
from benchmarks.speed.cases import (
    APART,
    DIFFERENCE,
    HOW,
    RATIO,
    SECONDS,
    Case,
    Findings,
    Part,
    Reading,
    Settings,
    find,
    one,
    remarks,
    shown,
    timed_readings,
)
from benchmarks.speed.libraries import FOOLBOX, TORCHATTACKS, library_attack
from benchmarks.speed.subjects import AttackKind, Subject, subjects
from benchmarks.speed.timing import interleaved

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
# From images and class indices in NumPy to adversarial images in NumPy, whatever is in between.
Attack = Callable[[Images, Labels], Images]

KINDS = (AttackKind("FGM", 1), AttackKind("PGD", 10), AttackKind("PGD", 40), AttackKind("AutoPGD", 10))
QUICK_KINDS = (AttackKind("FGM", 1), AttackKind("PGD", 3), AttackKind("AutoPGD", 5))
CLASSES = {"FGM": "FastGradientMethod", "PGD": "ProjectedGradientDescent", "AutoPGD": "AutoProjectedGradientDescent"}
HAND = {"HR": "loop by hand, HR", "CE": "loop by hand, CE"}
OURS = {"HR": "art_hrloss, HR", "CE": "art_hrloss, CE"}
ART = {"HR": "ART, HRClassifier, HR", "CE": "ART, HRClassifier, CE"}
STOCK = "ART, PyTorchClassifier, CE"
LIBRARIES = {f"{name}, CE": name for name in (FOOLBOX, TORCHATTACKS)}
ORDER = (HAND["CE"], HAND["HR"], OURS["CE"], OURS["HR"], ART["CE"], ART["HR"], STOCK, *LIBRARIES)
HEADER = ("attack", "contender", "ms per batch", "/ loop by hand", "rounds", "largest difference", "pixels apart")
NOTES = (
    "Every contender is given batches of NumPy images, all of them right before, with their true labels, and gives "
    "NumPy images back; a round is one batch. One thread of the CPU, or the GPU where it is named. art_hrloss is "
    "art_hrloss.attacks through HRClassifier. eps and step are the same for all: 0.1 and 0.02 for LeNet, 8/255 and "
    "2/255 for ResNet-8, L-infinity, without random start but for AutoPGD, whose first step is 2 eps. AutoPGD makes 10 "
    "steps, to save time.",
    "The ratio is to the loop by hand with the same loss, of the loop with HR to that with CE. The loops take "
    "gradients by the images alone and compute nothing twice.",
    "The largest difference of a pixel, and the share of pixels that differ by more than 1e-6, are from ART's own "
    "attack through HRClassifier with the same loss, over all rounds, NumPy's and torch's generators seeded alike. "
    "torchattacks's AutoPGD draws another start, so its images are others.",
    HOW,
)


def build(module: ModuleType, kind: AttackKind, classifier: PyTorchClassifier, subject: Subject) -> Any:
    """
    Return the attack, with the same parameters in ART and in this plugin.

    :param module: art.attacks.evasion or art_hrloss.attacks, whose classes have the same names.
    """
    options: dict[str, Any] = {"eps": subject.eps, "eps_step": subject.eps_step, "batch_size": subject.batch}
    if kind.name == "PGD":
        options |= {"max_iter": kind.steps, "verbose": False}
    elif kind.name == "AutoPGD":
        options |= {"max_iter": kind.steps, "verbose": False, "nb_random_init": 1, "eps_step": 2 * subject.eps}
    return getattr(module, CLASSES[kind.name])(classifier, norm=np.inf, **options)


def by_hand(kind: AttackKind, network: nn.Module, subject: Subject, loss: nn.Module) -> Attack:
    """
    The loop by hand between NumPy arrays.

    :param network: On the device that it runs on.
    :param loss: Gives one value per example.
    """
    device = next(network.parameters()).device
    loop = plain_loops.auto_pgd if kind.name == "AutoPGD" else plain_loops.pgd
    eps_step = {"FGM": subject.eps, "PGD": subject.eps_step, "AutoPGD": 2 * subject.eps}[kind.name]

    def attack(images: Images, labels: Labels) -> Images:
        x, y = torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device)
        return loop(network, loss, x, y, eps=subject.eps, eps_step=eps_step, steps=kind.steps).cpu().numpy()

    return attack


def contenders(kind: AttackKind, subject: Subject, device: torch.device) -> dict[str, Attack | str]:
    """Every contender by its name; in place of one that there is not, why."""
    network = subject.on(device)
    shape = subject.images.shape[1:]
    options: dict[str, Any] = {"clip_values": (0.0, 1.0), "device_type": "gpu" if device.type == "cuda" else "cpu"}
    found: dict[str, Attack | str] = {}
    for name, loss in (("CE", nn.CrossEntropyLoss()), ("HR", HRLoss())):
        each = nn.CrossEntropyLoss(reduction="none") if name == "CE" else HRLoss(reduction="none")
        found[HAND[name]] = by_hand(kind, network, subject, each)
        classifier = HRClassifier(network, loss, shape, subject.classes, **options)
        found[OURS[name]] = partial(generate, build(art_hrloss.attacks, kind, classifier, subject))
        found[ART[name]] = partial(generate, build(art.attacks.evasion, kind, classifier, subject))
    stock = PyTorchClassifier(network, nn.CrossEntropyLoss(), shape, subject.classes, **options)
    found[STOCK] = partial(generate, build(art.attacks.evasion, kind, stock, subject))
    for name, library in LIBRARIES.items():
        attack = library_attack(library, kind, subject, network)
        found[name] = attack if isinstance(attack, str) else _tried(partial(_through_torch, attack, device), subject)
    return found


def _tried(attack: Attack, subject: Subject) -> Attack | str:
    """The attack, or what it raises: a library may not fit the versions that are here."""
    images, labels = subject.part(0)
    try:
        attack(images[:2], labels[:2])
    except Exception as error:  # whatever it may be
        return f"fails: {type(error).__name__}"
    return attack


def generate(attack: Any, images: Images, labels: Labels) -> Images:
    """ART's attack, given labels."""
    made: Images = attack.generate(images, y=labels)
    return made


def _through_torch(attack: Callable[..., torch.Tensor], device: torch.device, images: Images, labels: Labels) -> Images:
    x, y = torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device)
    return attack(x, y).detach().cpu().numpy()


def measure(kind: AttackKind, subject: Subject, device: torch.device, settings: Settings) -> list[Reading]:
    """Times, ratios and differences of every contender on one network."""
    case = f"{subject.name}, {kind}" + (f", {device.type}" if device.type != "cpu" else "")
    found = contenders(kind, subject, device)
    attacks = {name: attack for name, attack in found.items() if not isinstance(attack, str)}
    missing = {name: why for name, why in found.items() if isinstance(why, str)}
    made: dict[tuple[str, int], Images] = {}

    def observe(name: str, index: int, images: Images) -> None:
        made[name, index] = images

    with threads(1), art_hrloss.seeded(0):
        times = interleaved(
            {name: partial(seeded, attack, subject) for name, attack in attacks.items()},
            device=device,
            rounds=3 if settings.quick else 3 * len(subject.images) // subject.batch,
            seconds=settings.seconds,
            warm=kind.steps == 1,
            observe=observe,
        )
    readings = timed_readings(case, times, {name: (_against(name),) for name in attacks}, note=subject.note)
    readings += [Reading(case, name, SECONDS, None, note=why) for name, why in missing.items()]
    return readings + differences(case, made)


def seeded(attack: Attack, subject: Subject, index: int) -> Images:
    """The batch of this number, attacked from the same seeds by every contender."""
    np.random.seed(index)  # noqa: NPY002  # ART draws from NumPy's global generator
    torch.manual_seed(index)
    return attack(*subject.part(index))


def _against(name: str) -> str:
    """The loop by hand that a contender is compared with."""
    return HAND["HR"] if name in (OURS["HR"], ART["HR"]) else HAND["CE"]


def differences(case: str, made: Mapping[tuple[str, int], Images]) -> list[Reading]:
    """
    How far the images of each contender are from ART's own with the same loss, over all rounds.

    :param made: Images by contender and round.
    """
    readings = []
    for name in dict.fromkeys(name for name, _ in made):
        own = ART["HR" if name.endswith("HR") else "CE"]
        if name == own:
            continue
        apart = np.concatenate([np.abs(x - made[own, i]).ravel() for (n, i), x in made.items() if n == name])
        readings.append(Reading(case, name, DIFFERENCE, one(float(apart.max())), own))
        readings.append(Reading(case, name, APART, one(float((apart > 1e-6).mean())), own))
    return readings


def cases(settings: Settings) -> list[Case]:
    """Every attack on each of the two networks, on the CPU and on the GPU if there is one."""
    attacked = subjects(settings)
    return [
        Case(f"{kind} on {subject.name} ({device.type})", partial(measure, kind, subject, device, settings))
        for device in settings.devices
        for subject in attacked
        for kind in (QUICK_KINDS if settings.quick else KINDS)
    ]


def findings(readings: Sequence[Reading]) -> Findings:
    """One table, a section per network and attack."""
    rows = []
    for case in dict.fromkeys(reading.case for reading in readings):
        for i, name in enumerate(ORDER):
            seconds = find(readings, case, name, SECONDS)
            own = ART["HR" if name.endswith("HR") else "CE"]
            entries = (
                shown(seconds, 1e3),
                "1" if name == HAND["CE"] else shown(find(readings, case, name, RATIO, _against(name))),
                str(seconds.value.n) if seconds and seconds.value else "-",
                shown(find(readings, case, name, DIFFERENCE, own)),
                shown(find(readings, case, name, APART, own)),
            )
            rows.append(("" if i else case, name, *entries))
    return Findings([Table("Attacks beside loops by hand", HEADER, tuple(rows), (*remarks(readings), *NOTES))])


ATTACKS = Part("attacks", 6, cases, findings)
