"""Several classifiers on one network: siblings with another attack loss."""

import copy
from typing import Any

import torch
from art.estimators.classification import PyTorchClassifier
from torch.nn import Module

from art_hrloss._network import check_classifier, check_loss
from art_hrloss.classifier import HRClassifier


def attack_view(classifier: PyTorchClassifier, loss: Module) -> HRClassifier:
    """
    Return a sibling of a classifier, on the same network, that is attacked through another loss.

    It shares network, optimizer, clip values and preprocessing; whatever happens to the network is seen by both. So
    one trained classifier can be attacked through cross-entropy, the HR loss, or any other.

    :param classifier: A PyTorchClassifier or HRClassifier; it is not modified.
    :param loss: The loss that drives attacks, as `attack_loss` of :class:`HRClassifier`.
    :return: A classifier whose training loss is that of `classifier` and whose attack loss is `loss`.
    :raises TypeError: If `classifier` is not a PyTorchClassifier, or computes gradients in a way of its own, such as
            randomized smoothing, which an attack through this view would bypass; or if `loss` is not a module.

    >>> from art_hrloss import HRLoss
    >>> network = torch.nn.Linear(4, 3)
    >>> trained = PyTorchClassifier(network, torch.nn.CrossEntropyLoss(), (4,), 3, device_type="cpu")
    >>> attack_view(trained, HRLoss()).model is network
    True
    """
    check_classifier(classifier)
    _check_methods(classifier)
    check_loss("loss", loss)
    if isinstance(classifier, HRClassifier):  # of whatever subclass
        view = copy.copy(classifier)
        view.set_params(attack_loss=loss)
        return view
    return HRClassifier(classifier.model, attack_loss=loss, **shared_options(classifier))


def as_hr_classifier(classifier: PyTorchClassifier) -> HRClassifier:
    """
    Return the classifier itself if it is an HRClassifier, else its :func:`attack_view` along its own loss.

    :raises TypeError: If it overrides `loss_gradient` or `compute_loss`: attacks evaluate the network by
            :meth:`HRClassifier.evaluate`, and would bypass them.
    """
    if not isinstance(classifier, HRClassifier):
        return attack_view(classifier, getattr(classifier, "loss", torch.nn.CrossEntropyLoss()))
    _check_methods(classifier)
    return classifier


def shared_options(classifier: PyTorchClassifier) -> dict[str, Any]:
    """Return the constructor's options that a sibling of `classifier` shares, without the network."""
    names = (
        "loss",
        "input_shape",
        "nb_classes",
        "optimizer",
        "channels_first",
        "clip_values",
        "preprocessing_defences",
        "postprocessing_defences",
        "preprocessing",
        "device_type",
    )
    return {name: getattr(classifier, name) for name in names}


def _check_methods(classifier: PyTorchClassifier) -> None:
    for name in ("loss_gradient", "compute_loss"):
        method = getattr(getattr(classifier, name), "__func__", None)
        if method not in (getattr(PyTorchClassifier, name), getattr(HRClassifier, name)):
            raise TypeError(
                f"expected a classifier with ART's or HRClassifier's {name}, but {type(classifier).__name__} replaces "
                "it, and an attack would bypass that: override HRClassifier.evaluate, through which every attack goes"
            )
