"""ART's trainers as small cases, each from an untrained network, on the digits."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from art.attacks.evasion import ProjectedGradientDescent
from art.defences import trainer as trainers
from art.defences.preprocessor import Mixup
from art.estimators.certification.deep_z import PytorchDeepZ
from art.estimators.certification.interval import PyTorchIBPClassifier
from torch import Tensor, nn

from benchmarks.compatibility import cases

TRAINING_IMAGES, TEST_IMAGES = 320, 100
New = Callable[[], Any]


class Bare(nn.Module):
    """Wrapper that hides from ART that a loss is a CrossEntropyLoss, so that ART passes one-hot labels to it."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the wrapped loss."""
        value: Tensor = self.loss(logits, labels)
        return value


class FlatReLU(nn.ReLU):
    """ReLU that also flattens its output, because ART's certifiers support no flattening layer."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the ReLU of features of any shape, one row per image."""
        return super().forward(input).flatten(1)


def certifiable_network() -> nn.Sequential:
    """Return an untrained network that ART's certifiers support, with the same weights in every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), FlatReLU(), nn.Linear(4 * 3 * 3, cases.CLASSES))


class ObservedDeepZ(cases.Observed, PytorchDeepZ):
    """ART's zonotope certifier that records which of its methods are called."""


class ObservedIBP(cases.Observed, PyTorchIBPClassifier):
    """ART's interval certifier that records which of its methods are called."""


@dataclass(frozen=True)
class TrainerCase(cases.Case):
    """
    Trainer as a case; see :class:`Case`.

    :param make: A function that returns the trainer. Its arguments are a function that returns a new untrained
           classifier, and a folder for the trainer's files.
    :param fit: Arguments of the trainer's `fit` that replace the common ones.
    :param form: The form of the network.
    :param sgd: True to train with SGD: FBF sets its own learning rate, which is far too high for Adam.
    :param bare: True to hide the class of the loss from ART.
    :param certifier: The class of ART's certified classifiers that the trainer needs, and its options.
    """

    make: Callable[[New, str], Any]
    fit: Mapping[str, Any] = field(default_factory=dict)
    form: cases.Form = cases.PLAIN
    sgd: bool = False
    bare: bool = False
    certifier: tuple[type, Mapping[str, Any]] | None = None

    def classifier(self, subject: cases.Subject, victim: cases.Victim) -> Any:
        """Return a classifier with an untrained network."""
        if self.bare:
            victim = replace(victim, loss=Bare(victim.loss))
        network = certifiable_network() if self.certifier else self.form.network(subject.untrained)
        optimizer: torch.optim.Optimizer = torch.optim.Adam(network.parameters(), lr=0.02 if self.certifier else 0.01)
        if self.sgd:
            optimizer = torch.optim.SGD(network.parameters(), momentum=0.9)
        if self.certifier is None:
            return victim.classifier(network, self.form, optimizer)
        kind, certifier_options = self.certifier
        options = {"clip_values": (0.0, 1.0), "device_type": "cpu", "optimizer": optimizer, "nb_classes": cases.CLASSES}
        return kind(network, loss=victim.loss, input_shape=(1, 8, 8), **options, **certifier_options)

    def perform(self, subject: cases.Subject, victim: cases.Victim) -> cases.Outcome:
        """Train on some of the images, and count the correctly classified test images before and after."""
        images, labels = subject.x_train[:TRAINING_IMAGES], cases.one_hot(subject.y_train[:TRAINING_IMAGES])
        with tempfile.TemporaryDirectory() as folder:
            trainer = self.make(lambda: self.classifier(subject, victim), folder)
            trainer.fit(images, labels, **{"batch_size": 32, "nb_epochs": 3, **self.fit})
        if self.certifier:
            trainer.set_forward_mode("concrete")
        classifier = trainer.classifier
        x, y = subject.x_test[:TEST_IMAGES], subject.y_test[:TEST_IMAGES]
        calls = frozenset(classifier.calls)
        untrained = certifiable_network() if self.certifier else self.form.network(subject.untrained)
        weights = [parameter.detach().numpy().ravel() for parameter in classifier.model.parameters()]
        after = int((classifier.predict(x).argmax(1) == y).sum())
        return cases.Outcome(np.concatenate(weights), cases.right(untrained, x, y), after, calls)


def _pgd(classifier: Any) -> ProjectedGradientDescent:
    return ProjectedGradientDescent(classifier, eps=0.1, eps_step=0.05, max_iter=2, batch_size=64, verbose=False)


def _adversarial(new: New, folder: str) -> Any:
    classifier = new()
    return trainers.AdversarialTrainer(classifier, _pgd(classifier))


def _trades(new: New, folder: str) -> Any:
    classifier = new()
    return trainers.AdversarialTrainerTRADESPyTorch(classifier, _pgd(classifier), beta=1.0)


def _fast(new: New, folder: str) -> Any:
    return trainers.AdversarialTrainerFBFPyTorch(new(), eps=0.1)


def _awp(mode: str) -> Callable[[New, str], Any]:
    def make(new: New, folder: str) -> Any:
        classifier, proxy = new(), new()
        options = {"mode": mode, "gamma": 0.005, "beta": 1.0, "warmup": 1}
        return trainers.AdversarialTrainerAWPPyTorch(classifier, proxy, _pgd(classifier), **options)

    return make


def _oaat(new: New, folder: str) -> Any:
    schedule = {"lr": 0.01, "lr_schedule": "cosine", "momentum": 0.9, "weight_decay": 0.0, "oaat_warmup": 0}
    attack = {"norm": np.inf, "i_epsilon": 0.05, "epsilon": 0.1, "mixup_epsilon": 0.1, "max_iter": 2}
    distance = {"alternate_iter_eps": 0.06, "lpips_weight": 1.0, "i_lpips_weight": 0.0, "layer_names_activation": [2]}
    weights = {"beta": 1.0, "beta_final": 1.5, "alpha": 1.0, "mixup_alpha": 0.5, "awp_warmup": 0, "awp_gamma": 0.005}
    average = {"list_swa_epoch": [0], "list_swa_tau": [0.9], "load_swa_model_tau": 0.9, "swa_save_epoch": 0}
    options = schedule | attack | distance | weights | average | {"models_path": folder}
    classifier, proxy, distances, average_1 = (new() for _ in range(4))
    return trainers.AdversarialTrainerOAATPyTorch(classifier, proxy, distances, [average_1], _pgd(classifier), options)


def _certified(new: New, folder: str) -> Any:
    pgd = {"eps": 0.1, "eps_step": 0.05, "max_iter": 2, "batch_size": 32, "num_random_init": 0}
    return trainers.AdversarialTrainerCertifiedPytorch(new(), bound=0.05, pgd_params=pgd)


def _zonotope(x: Any, eps: float) -> tuple[Any, Any]:
    """Return centre and error terms as ART does, without its clipping at 0 and 1."""
    return x[np.newaxis], (np.eye(x.size) * eps).reshape(-1, *x.shape)


def _cases() -> Iterator[TrainerCase]:
    case = TrainerCase
    note = "attack and training need the same classifier object"
    yield case("AdversarialTrainer", _adversarial, note=note)
    madry = {"eps": 0.1, "eps_step": 0.05, "max_iter": 2}
    yield case("AdversarialTrainerMadryPGD", lambda new, folder: trainers.AdversarialTrainerMadryPGD(new(), **madry))
    kl = "the loss plus ART's own KL term"
    fast: dict[str, Any] = {"fit": {"nb_epochs": 5, "batch_size": 16}, "sgd": True}
    for name, make, options, note in (
        ("AdversarialTrainerTRADESPyTorch", _trades, {}, kl),
        ("AdversarialTrainerFBFPyTorch", _fast, fast, "sets its own learning rate: use SGD"),
    ):
        yield case(name, make, **options, note=note)
        note = "ART uses the first layer's output as the logits"
        yield case(name, make, **options, variant="nn.Sequential", form=cases.SEQUENTIAL, note=note)
        note = "ART passes one-hot labels to a loss that is not a CrossEntropyLoss, and then its accuracy fails"
        yield case(name, make, **options, variant="HRLoss in another module", bare=True, note=note)
    yield case("AdversarialTrainerAWPPyTorch", _awp("PGD"), variant='mode="PGD"')
    yield case("AdversarialTrainerAWPPyTorch", _awp("TRADES"), variant='mode="TRADES"', note=kl)
    note = "the loss plus ART's own KL and LPIPS terms"
    yield case("AdversarialTrainerOAATPyTorch", _oaat, form=cases.SEQUENTIAL, note=note)
    yield case(
        "DPInstaHideTrainer",
        lambda new, folder: trainers.DPInstaHideTrainer(new(), [Mixup(num_classes=cases.CLASSES)]),
        note="no attack; with Mixup",
    )
    zonotopes: dict[str, Any] = {"fit": {"batch_size": 2, "verbose": False}, "stock": False}
    note = "ART's default zonotopes need an older NumPy"
    name = "AdversarialTrainerCertifiedPytorch"
    yield case(name, _certified, **zonotopes, certifier=(ObservedDeepZ, {}), numpy="2.4", note=note)
    certifier = "needs ART's {} instead of HRClassifier, with HRLoss; ART adds its own certified bound to the loss"
    yield case(
        name,
        _certified,
        **zonotopes,
        certifier=(ObservedDeepZ, {"concrete_to_zonotope": _zonotope}),
        variant="concrete_to_zonotope given",
        note=certifier.format("PytorchDeepZ"),
    )
    yield case(
        "AdversarialTrainerCertifiedIBPPyTorch",
        lambda new, folder: trainers.AdversarialTrainerCertifiedIBPPyTorch(new(), bound=0.05),
        {"limits": [0.0, 1.0], "verbose": False},
        stock=False,
        certifier=(ObservedIBP, {}),
        note=certifier.format("PyTorchIBPClassifier"),
    )


TRAINERS = tuple(_cases())
