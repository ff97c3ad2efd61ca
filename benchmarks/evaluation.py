"""Checkpoint x attack -> one record."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier

from art_hrloss import HRClassifier
from benchmarks import attacks
from benchmarks.config import AttackSpec, RunSpec
from benchmarks.data import Dataset
from benchmarks.losses import training_loss
from benchmarks.store import Store
from benchmarks.training import new_model, tensors

BATCH_SIZE = 250


def evaluate(run: RunSpec, specs: Sequence[AttackSpec], data: Dataset, store: Store, *, device_type: str) -> None:
    """
    Attack a trained run and keep one record per attack; those that are there are not made again.

    :param run: A trained run.
    :param specs: The attacks.
    :param data: The run's data set; its test part is attacked, with the true labels.
    :param store: Where the weights are and the records go.
    :param device_type: "cpu" or "gpu", in ART's words.
    """
    missing = [spec for spec in specs if store.record(run, spec) is None]
    if not missing:
        return
    classifier = load_classifier(run, data, store, device_type=device_type)
    images, labels = (tensor.numpy() for tensor in tensors(data.test, torch.device("cpu")))
    for spec in missing:
        store.save_record(run, spec, measure(spec, classifier, images, labels))


def load_classifier(run: RunSpec, data: Dataset, store: Store, *, device_type: str) -> HRClassifier:
    """A trained run as a classifier of ART's, for images in [0, 1]."""
    model = new_model(run, data)
    model.load_state_dict(store.load_checkpoint(run))
    return HRClassifier(
        model,
        training_loss(run.loss),
        input_shape=data.image_shape,
        nb_classes=data.classes,
        clip_values=(0.0, 1.0),
        device_type=device_type,
    )


def measure(spec: AttackSpec, classifier: PyTorchClassifier, images: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """
    One evaluation, as plain values.

    :param spec: The attack.
    :param classifier: The network under attack.
    :param images: float32 in [0, 1], shape ``(n, C, H, W)``.
    :param labels: True classes, shape ``(n,)``.
    :return: n, correct (how many of the attacked images are classified right), and for an attack zero_gradient: at how
             many of the clean images the gradient that drives it is exactly 0 everywhere, so that it cannot move.
    """
    attack = attacks.build(spec, classifier, batch_size=BATCH_SIZE)
    attacked = images if attack is None else attack.generate(images, labels)
    predictions = classifier.predict(attacked, batch_size=BATCH_SIZE).argmax(1)
    record: dict[str, Any] = {"n": len(labels), "correct": int((predictions == labels).sum())}
    if attack is not None:
        zero = 0
        for start in range(0, len(images), BATCH_SIZE):
            batch = slice(start, start + BATCH_SIZE)
            gradient = attack.estimator.loss_gradient(images[batch], labels[batch])
            zero += int((gradient == 0).reshape(len(gradient), -1).all(1).sum())
        record["zero_gradient"] = zero
    return record
