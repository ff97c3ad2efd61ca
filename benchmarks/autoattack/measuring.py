"""Evaluation of one network by AutoAttack or by the worst case: robust images, and the cost in passes and seconds."""

import hashlib
import importlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from art_hrloss import HRClassifier, ensemble, seeded, worst_case
from art_hrloss._network import as_array
from art_hrloss.attacks._base import predicted_classes
from art_hrloss.attacks._constraints import feasible
from benchmarks.config import ConfigError
from benchmarks.execution import threads

AUTOATTACK: Final = "AutoAttack"
WORST_CASE: Final = "worst case"
PACKAGE = "pyautoattack"
# The default batch size of AutoAttack.
BATCH_SIZE = 250
# Short names of AutoAttack's warnings, by a part of their text.
FLAGS = {
    "randomized": "randomized",
    "dynamic": "dynamic",
    "zero gradient": "zero gradients",
    "probability distribution": "probabilities",
    "Square Attack has decreased": "Square found more",
}


@dataclass(frozen=True)
class Evaluation:
    """Method of evaluation with its settings."""

    method: Literal["AutoAttack", "worst case"]
    max_iter: int = 100
    """Steps of the attacks of the worst case; AutoAttack's version `standard` has no settings."""
    square_iter: int = 5000
    """Queries per image of Square in the worst case."""
    seed: int = 0
    """Seed of the random starts, which decide whether some images near the decision boundary are misclassified."""

    def __str__(self) -> str:
        settings = "standard"
        if self.method == WORST_CASE:
            settings = f"{self.max_iter} steps, Square {self.square_iter}"
        return settings + (f", seed {self.seed}" if self.seed else "")


@dataclass(frozen=True)
class Cost:
    """Cost of an attack: images that pass through the network, and seconds of the process on one thread."""

    forward: int = 0
    backward: int = 0
    seconds: float = 0.0

    @property
    def passes(self) -> int:
        """Forward and backward passes, each counted as one."""
        return self.forward + self.backward

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.forward + other.forward, self.backward + other.backward, self.seconds + other.seconds)

    def __sub__(self, other: "Cost") -> "Cost":
        return Cost(self.forward - other.forward, self.backward - other.backward, self.seconds - other.seconds)


@dataclass(frozen=True)
class Stage:
    """Attack of an evaluation, with its number of adversarial examples and its cost."""

    name: str
    attacked: int
    """Number of attacked images: those that no attack before it has misclassified."""
    found: int
    """Number of images for which it finds an adversarial example."""
    cost: Cost


@dataclass(frozen=True)
class Measured:
    """Result of one evaluation of one network."""

    correct: npt.NDArray[np.bool_]
    """True for images that are classified correctly without attack, shape ``(n,)``."""
    robust: npt.NDArray[np.bool_]
    """True for correct images without a verified adversarial example, that is one within eps and [0, 1]."""
    rejected: int
    """Number of images that the evaluation counts as misclassified but the verification does not."""
    cost: Cost
    stages: tuple[Stage, ...]
    flags: tuple[str, ...] = ()
    """Short names of AutoAttack's warnings."""


class Passes:
    """Counter of the images that pass forward and backward through a network."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.forward: list[int] = []
        self.backward: list[int] = []
        network.register_forward_hook(self._count)

    def _count(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.forward.append(len(output))
        if output.requires_grad:
            output.register_hook(lambda gradient: self.backward.append(len(gradient)))

    def clear(self) -> None:
        """Set both counts to 0."""
        del self.forward[:], self.backward[:]


class Meter:
    """Meter of the cost of attacks on a network, by name."""

    def __init__(self, passes: Passes) -> None:
        self.passes = passes
        self.attacked: dict[str, int] = {}
        self.costs: dict[str, Cost] = {}

    def metered(self, name: str, attack: Callable[..., Any]) -> Callable[..., Any]:
        """Return an attack that adds its cost to that of a name; the first argument of an attack is the images."""

        def call(x: Any, *arguments: Any, **keywords: Any) -> Any:
            before = self._total()
            adversarial = attack(x, *arguments, **keywords)
            self.attacked[name] = self.attacked.get(name, 0) + len(x)
            self.costs[name] = self.costs.get(name, Cost()) + (self._total() - before)
            return adversarial

        return call

    def _total(self) -> Cost:
        # CPU time of the process: wall-clock time would include that of other processes.
        return Cost(sum(self.passes.forward), sum(self.passes.backward), time.process_time())


def library() -> Any:
    """
    Return the module of AutoAttack's own code.

    :raises ConfigError: If it is not installed.
    """
    try:
        return importlib.import_module(PACKAGE)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"expected the package {PACKAGE}, AutoAttack's own code, but it is not installed: `pip install {PACKAGE}`"
        ) from error


def measure(evaluation: Evaluation, classifier: HRClassifier, images: Tensor, labels: Tensor, eps: float) -> Measured:
    """
    Attack images, on one thread and with fixed seeds, and verify the adversarial examples.

    :param classifier: A classifier whose network is a single module, in evaluation mode.
    :param images: Images in [0, 1], shape ``(n, C, H, W)``.
    :param labels: The true classes, shape ``(n,)``.
    :param eps: The largest change of a pixel.
    """
    meter, true, originals = Meter(Passes(classifier.model)), as_array(labels), as_array(images)
    attack = _autoattack if evaluation.method == AUTOATTACK else _worst_case
    with threads(1), seeded(evaluation.seed):
        correct = _predicted(classifier, originals) == true
        adversarial, claimed, stages, flags = meter.metered("all", attack)(
            images.clone(), labels.clone(), classifier, evaluation, eps, meter
        )
        wrong = _predicted(classifier, adversarial) != true
    wrong &= feasible(adversarial, originals, eps, np.inf, classifier.clip_values)
    robust = correct & ~wrong
    return Measured(correct, robust, int((claimed & robust).sum()), meter.costs["all"], tuple(stages), tuple(flags))


Attacked = tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_], Sequence[Stage], Sequence[str]]


def _predicted(classifier: HRClassifier, images: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    return as_array(predicted_classes(classifier, images, BATCH_SIZE))


def _worst_case(
    images: Tensor, labels: Tensor, classifier: HRClassifier, evaluation: Evaluation, eps: float, meter: Meter
) -> Attacked:
    attacks: dict[str, Any] = attacks_of(evaluation, classifier, eps)
    for name, attack in attacks.items():
        attack.generate = meter.metered(name, attack.generate)
    options: dict[str, Any] = {"eps": eps, "attacks": attacks, "batch_size": BATCH_SIZE, "seed": evaluation.seed}
    result = worst_case(classifier, as_array(images), as_array(labels), verbose=False, **options)
    found = {name: int((result.found_by == i).sum()) for i, name in enumerate(result.names)}
    stages = [Stage(name, meter.attacked.get(name, 0), found[name], meter.costs.get(name, Cost())) for name in attacks]
    return np.asarray(result.adversarial), ~result.robust, stages, ()


def attacks_of(evaluation: Evaluation, classifier: HRClassifier, eps: float) -> dict[str, Any]:
    """Return the ensemble of a worst case."""
    settings: dict[str, Any] = {"max_iter": evaluation.max_iter, "square_iter": evaluation.square_iter}
    return ensemble(classifier, eps=eps, batch_size=BATCH_SIZE, **settings)


def _autoattack(
    images: Tensor, labels: Tensor, classifier: HRClassifier, evaluation: Evaluation, eps: float, meter: Meter
) -> Attacked:
    with _warnings() as flags:
        adversary = library().AutoAttack(classifier.model, eps=eps, seed=evaluation.seed, version="standard")
        attacks = {
            "APGD-CE": adversary.apgd,
            "APGD-T": adversary.apgd_targeted,
            "FAB-T": adversary.fab,
            "Square": adversary.square,
        }
        for name, attack in attacks.items():
            attack.perturb = meter.metered(name, attack.perturb)
        adversarial, classes = adversary.run_standard_evaluation(images, labels, batch_size=BATCH_SIZE)
    claimed = as_array(classes != labels)
    # AutoAttack does not report the counts by attack. Each attack gets the images that the ones before it did not
    # misclassify, so the counts follow from the numbers of attacked images.
    remaining = [*(meter.attacked.get(name, 0) for name in attacks), int((~claimed).sum())]
    costs = [meter.costs.get(name, Cost()) for name in attacks]
    stages = [
        Stage(name, remaining[i], max(0, remaining[i] - remaining[i + 1]), cost)
        for i, (name, cost) in enumerate(zip(attacks, costs, strict=True))
    ]
    return as_array(adversarial), claimed, stages, flags


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """Yield a list that collects AutoAttack's warnings, each once, by short name if it has one, and hide them."""
    flags: list[str] = []

    class Collecting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            message = record.getMessage()
            flag = next((word for part, word in FLAGS.items() if part in message), message)
            if flag not in flags:
                flags.append(flag)

    logger, handler = logging.getLogger("auto-attack"), Collecting(logging.WARNING)
    before, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield flags
    finally:
        logger.removeHandler(handler)
        logger.propagate = before


def fingerprint(
    evaluation: Evaluation, classifier: HRClassifier, images: Tensor, labels: Tensor, eps: float, made_with: str
) -> str:
    """
    Return a hash of everything that determines a result: images, weights, logits, attack parameters and versions.

    :param made_with: The versions, as text.
    """
    sha256 = hashlib.sha256(f"{evaluation}, {eps!r}, {made_with}".encode())
    if evaluation.method == WORST_CASE:
        for name, attack in attacks_of(evaluation, classifier, eps).items():
            plain = {k: v for k, v in sorted(vars(attack).items()) if isinstance(v, bool | int | float | str)}
            sha256.update(f"{name}, {plain}".encode())
    with torch.no_grad(), threads(1):
        logits = torch.cat([classifier.model(part) for part in images.split(BATCH_SIZE)])
    for tensor in (images, labels, logits, *classifier.model.state_dict().values()):
        sha256.update(np.ascontiguousarray(as_array(tensor)).data)
    return sha256.hexdigest()
