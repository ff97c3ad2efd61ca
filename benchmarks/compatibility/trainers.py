"""ART's trainers as small cases, each from an untrained network, on the digits."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from art.attacks.evasion import ProjectedGradientDescent
from art.defences import trainer as trainers
from art.defences.preprocessor import Mixup

from benchmarks.compatibility.subjects import SEQUENTIAL
from benchmarks.compatibility.workshop import Bare, TrainerCase, WatchedDeepZ, WatchedIBP, Workshop


def _pgd(classifier: Any) -> ProjectedGradientDescent:
    return ProjectedGradientDescent(classifier, eps=0.1, eps_step=0.05, max_iter=2, batch_size=64, verbose=False)


def _adversarial(shop: Workshop) -> Any:
    classifier = shop.classifier()
    return shop.fit(trainers.AdversarialTrainer(classifier, _pgd(classifier)))


def _madry(shop: Workshop) -> Any:
    return shop.fit(trainers.AdversarialTrainerMadryPGD(shop.classifier(), eps=0.1, eps_step=0.05, max_iter=2))


def _trades(shop: Workshop) -> Any:
    classifier = shop.classifier()
    return shop.fit(trainers.AdversarialTrainerTRADESPyTorch(classifier, _pgd(classifier), beta=1.0))


def _fast(shop: Workshop) -> Any:
    return shop.fit(trainers.AdversarialTrainerFBFPyTorch(shop.classifier(sgd=True), eps=0.1), epochs=5, batch_size=16)


def _bare(train: Callable[[Workshop], Any]) -> Callable[[Workshop], Any]:
    return lambda shop: train(replace(shop, victim=replace(shop.victim, loss=Bare(shop.victim.loss))))


def _awp(mode: str) -> Callable[[Workshop], Any]:
    def train(shop: Workshop) -> Any:
        classifier, proxy = shop.classifier(), shop.classifier()
        options = {"mode": mode, "gamma": 0.005, "beta": 1.0, "warmup": 1}
        return shop.fit(trainers.AdversarialTrainerAWPPyTorch(classifier, proxy, _pgd(classifier), **options))

    return train


def _oaat(shop: Workshop) -> Any:
    classifier = shop.classifier()
    schedule = {"lr": 0.01, "lr_schedule": "cosine", "momentum": 0.9, "weight_decay": 0.0, "oaat_warmup": 0}
    attack = {"norm": np.inf, "i_epsilon": 0.05, "epsilon": 0.1, "mixup_epsilon": 0.1, "max_iter": 2}
    distance = {"alternate_iter_eps": 0.06, "lpips_weight": 1.0, "i_lpips_weight": 0.0, "layer_names_activation": [2]}
    weights = {"beta": 1.0, "beta_final": 1.5, "alpha": 1.0, "mixup_alpha": 0.5, "awp_warmup": 0, "awp_gamma": 0.005}
    average = {"list_swa_epoch": [0], "list_swa_tau": [0.9], "load_swa_model_tau": 0.9, "swa_save_epoch": 0}
    with tempfile.TemporaryDirectory() as folder:
        options = schedule | attack | distance | weights | average | {"models_path": folder}
        others = (shop.classifier(), shop.classifier(), [shop.classifier()])
        trainer = trainers.AdversarialTrainerOAATPyTorch(classifier, *others, _pgd(classifier), options)
        return shop.fit(trainer)


def _insta_hide(shop: Workshop) -> Any:
    return shop.fit(trainers.DPInstaHideTrainer(shop.classifier(), [Mixup(num_classes=10)]))


def _zonotope(x: Any, eps: float) -> tuple[Any, Any]:
    """As ART's own, without the clipping at 0 and 1: centre and error terms."""
    return x[np.newaxis], (np.eye(x.size) * eps).reshape(-1, *x.shape)


def _certified(**options: Any) -> Callable[[Workshop], Any]:
    def train(shop: Workshop) -> Any:
        classifier = shop.certifier(WatchedDeepZ, **options)
        pgd = {"eps": 0.1, "eps_step": 0.05, "max_iter": 2, "batch_size": 32, "num_random_init": 0}
        trainer = trainers.AdversarialTrainerCertifiedPytorch(classifier, bound=0.05, pgd_params=pgd)
        shop.fit(trainer, batch_size=2, verbose=False)
        trainer.set_forward_mode("concrete")
        return classifier

    return train


def _interval(shop: Workshop) -> Any:
    trainer = trainers.AdversarialTrainerCertifiedIBPPyTorch(shop.certifier(WatchedIBP), bound=0.05)
    classifier = shop.fit(trainer, limits=[0.0, 1.0], verbose=False)
    trainer.set_forward_mode("concrete")
    return classifier


ONE_HOT = "a loss that is no CrossEntropyLoss gets one-hot labels, with which ART's accuracy fails"
FIRST_LAYER = "ART takes the first layer's output for the logits"
CERTIFIER = "in place of HRClassifier it takes ART's {}, with HRLoss; beside the loss there is ART's own bound"

TRAINERS: tuple[TrainerCase, ...] = (
    TrainerCase("AdversarialTrainer", train=_adversarial, note="attack and training need the same classifier object"),
    TrainerCase("AdversarialTrainerMadryPGD", train=_madry),
    TrainerCase("AdversarialTrainerTRADESPyTorch", train=_trades, note="the loss plus ART's own KL term"),
    TrainerCase(
        "AdversarialTrainerTRADESPyTorch", variant="nn.Sequential", train=_trades, form=SEQUENTIAL, note=FIRST_LAYER
    ),
    TrainerCase(
        "AdversarialTrainerTRADESPyTorch", variant="HRLoss in another module", train=_bare(_trades), note=ONE_HOT
    ),
    TrainerCase("AdversarialTrainerFBFPyTorch", train=_fast, note="it sets its own learning rate: use SGD"),
    TrainerCase(
        "AdversarialTrainerFBFPyTorch", variant="nn.Sequential", train=_fast, form=SEQUENTIAL, note=FIRST_LAYER
    ),
    TrainerCase("AdversarialTrainerFBFPyTorch", variant="HRLoss in another module", train=_bare(_fast), note=ONE_HOT),
    TrainerCase("AdversarialTrainerAWPPyTorch", variant='mode="PGD"', train=_awp("PGD")),
    TrainerCase(
        "AdversarialTrainerAWPPyTorch",
        variant='mode="TRADES"',
        train=_awp("TRADES"),
        note="the loss plus ART's own KL term",
    ),
    TrainerCase(
        "AdversarialTrainerOAATPyTorch",
        train=_oaat,
        form=SEQUENTIAL,
        note="the loss plus ART's own KL and LPIPS terms",
    ),
    TrainerCase("DPInstaHideTrainer", train=_insta_hide, note="it has no attack; with Mixup"),
    TrainerCase(
        "AdversarialTrainerCertifiedPytorch",
        train=_certified(),
        numpy="2.4",
        stock=False,
        note="ART's own zonotopes need an older NumPy",
    ),
    TrainerCase(
        "AdversarialTrainerCertifiedPytorch",
        variant="concrete_to_zonotope given",
        train=_certified(concrete_to_zonotope=_zonotope),
        stock=False,
        note=CERTIFIER.format("PytorchDeepZ"),
    ),
    TrainerCase(
        "AdversarialTrainerCertifiedIBPPyTorch",
        train=_interval,
        stock=False,
        note=CERTIFIER.format("PyTorchIBPClassifier"),
    ),
)
