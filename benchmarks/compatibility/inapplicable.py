"""What ART exports beside: for other frameworks and tasks than PyTorch classifiers of images, and abstract bases."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from art.attacks import evasion
from art.defences import trainer as trainers

from art_hrloss import HRClassifier

# What each is for; that HRClassifier is not what it asks for is found out by `refusal`, where ART says what that is.
INAPPLICABLE: Mapping[str, str] = MappingProxyType(
    {
        "AdversarialPatchTensorFlowV2": "TensorFlow",
        "AdversarialTexturePyTorch": "objects in video",
        "CarliniWagnerASR": "speech",
        "DPatch": "objects in images",
        "DecisionTreeAttack": "decision trees",
        "FeatureAdversariesTensorFlowV2": "TensorFlow",
        "HighConfidenceLowUncertainty": "Gaussian processes",
        "ImperceptibleASR": "speech",
        "ImperceptibleASRPyTorch": "speech",
        "MalwareGDTensorFlow": "malware, TensorFlow",
        "OverloadPyTorch": "objects in images, YOLO",
        "ProjectedGradientDescentTensorFlowV2": "TensorFlow",
        "RobustDPatch": "objects in images",
        "SNAL": "objects in images, YOLO",
        "AdversarialTrainerAWP": "base of AdversarialTrainerAWPPyTorch",
        "AdversarialTrainerFBF": "base of AdversarialTrainerFBFPyTorch",
        "AdversarialTrainerOAAT": "base of AdversarialTrainerOAATPyTorch",
        "AdversarialTrainerTRADES": "base of AdversarialTrainerTRADESPyTorch",
        "Trainer": "base of all trainers",
    }
)


@dataclass(frozen=True)
class Exports:
    """The names of the classes that the installed ART exports."""

    attacks: frozenset[str]
    trainers: frozenset[str]


def exports() -> Exports:
    """Read off the two modules, so that what a new version of ART brings is there."""
    return Exports(
        *(frozenset(name for name, _ in inspect.getmembers(m, inspect.isclass)) for m in (evasion, trainers))
    )


def refusal(name: str) -> str:
    """
    What stands against it, as ART itself declares it.

    :param name: A class that ART exports.
    :return: "abstract", or the classes that it asks for and HRClassifier is none of, or "" if ART declares nothing.
    """
    exported = getattr(trainers, name) if hasattr(trainers, name) else getattr(evasion, name)
    if inspect.isabstract(exported):
        return "abstract"
    required = getattr(exported, "_estimator_requirements", None) or ()
    unmet = [entry for entry in required if not issubclass(HRClassifier, entry)]
    kinds = [
        " or ".join(kind.__name__ for kind in (entry if isinstance(entry, tuple) else (entry,))) for entry in unmet
    ]
    return f"asks for {', '.join(kinds)}" if kinds else ""
