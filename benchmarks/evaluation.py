"""Checkpoint x attack -> one record."""

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from art_hrloss import HRClassifier, attack_view, gradient_masking_report, seeded
from art_hrloss._network import Point
from art_hrloss.classifier import shared_options
from benchmarks import attacks, models
from benchmarks.config import AttackLossName, AttackSpec, RunSpec
from benchmarks.data import Dataset, Split
from benchmarks.losses import attack_loss, training_loss
from benchmarks.record import Record
from benchmarks.store import Store

BATCH_SIZE = 250
# Queries per image of the Square attack in a report on masked gradients.
REPORT_QUERIES = 200


def evaluate(run: RunSpec, specs: Sequence[AttackSpec], data: Dataset, store: Store) -> None:
    """
    Attack a trained run and store one record per attack; those that are in the store are not computed again.

    :param run: A trained run.
    :param specs: The attacks; the runs that are their sources are trained as well.
    :param data: The run's data set, attacked at the true labels.
    :param store: Where the weights are and the records go.
    """
    missing = [spec for spec in specs if not store.has_record(run, spec)]
    if not missing:
        return
    classifier = trained_classifier(run, data, store)
    seeds = {spec.source for spec in missing if spec.source is not None}
    sources = {seed: trained_classifier(run.source(seed), data, store) for seed in sorted(seeds)}
    begun = time.perf_counter()
    for spec, record in measure_all(missing, classifier, data, run.recipe.input_scale, sources):
        store.save_record(run, spec, record)
        store.log(run, "record", attack=spec.key(), seconds=round(time.perf_counter() - begun, 3))
        begun = time.perf_counter()


def measure_all(
    specs: Sequence[AttackSpec],
    classifier: HRClassifier,
    data: Dataset,
    input_scale: float = 1.0,
    sources: Mapping[int, HRClassifier] = MappingProxyType({}),
) -> Iterator[tuple[AttackSpec, Record]]:
    """
    Each attack with its record: see :func:`measure`. What attacks of one loss have in common is computed once.

    :param specs: The attacks.
    :param classifier: The network under attack.
    :param data: Its data set.
    :param input_scale: Units of the network's input in the range of a pixel.
    :param sources: By seed, the networks that attacks name as their sources.
    """
    by_loss: dict[AttackLossName | None, list[AttackSpec]] = {}
    for spec in specs:
        by_loss.setdefault(spec.loss, []).append(spec)
    for loss, same in by_loss.items():
        caching = CachingClassifier(classifier, attack_loss(loss or "ce"))
        for spec in same:
            split = data.test if spec.split == "test" else data.validation
            if spec.name == "diagnostics":  # it evaluates too many gradients to keep them all
                yield spec, diagnose(spec, attack_view(classifier, caching.attack_loss), split)
            else:
                source = None if spec.source is None else sources[spec.source]
                yield spec, measure(spec, caching, split, input_scale, source)


class CachingClassifier(HRClassifier):
    """
    A view of a classifier that computes the gradients of its own attack loss once for the same images and labels.

    FGSM evaluates them at the same clean images at every eps, and so does the share of gradients that are 0. What is
    evaluated along a loss that the caller passes, as at the iterates of PGD, is not cached. The network must not change
    in between.
    """

    def __init__(self, classifier: HRClassifier, attack_loss: nn.Module) -> None:
        """
        :param classifier: The classifier whose network is evaluated.
        :param attack_loss: As HRClassifier's.
        """
        super().__init__(classifier.model, attack_loss=attack_loss, **shared_options(classifier))
        self._points: dict[tuple[nn.Module, bytes], Point] = {}

    def evaluate(self, x: Tensor, labels: Tensor, *, loss: nn.Module | None = None, gradient: bool = True) -> Point:
        """Return the evaluation of HRClassifier, or a copy of an earlier one."""
        if loss is not None or not gradient:
            return super().evaluate(x, labels, loss=loss, gradient=gradient)
        # The loss is part of the key because an attack_view of this classifier shares the cache.
        digest = hashlib.blake2b(x.numpy(force=True).tobytes() + labels.numpy(force=True).tobytes()).digest()
        key = self.attack_loss, digest
        if key not in self._points:
            self._points[key] = super().evaluate(x, labels)
        point = self._points[key]
        return point._replace(gradient=point.slope.clone())  # an attack may overwrite it


def trained_classifier(run: RunSpec, data: Dataset, store: Store) -> HRClassifier:
    """The network of a trained run as a classifier of ART's."""
    model = models.build_for(run.recipe, data)
    model.load_state_dict(store.load_checkpoint(run))
    return as_classifier(model, run, data)


def as_classifier(
    model: nn.Module, run: RunSpec, data: Dataset, optimizer: torch.optim.Optimizer | None = None
) -> HRClassifier:
    """A network as a classifier of ART's, for images in [0, 1]; with an optimizer, one that ART can train."""
    return HRClassifier(
        model,
        training_loss(run.loss),
        input_shape=data.image_shape,
        nb_classes=data.classes,
        optimizer=optimizer,
        clip_values=(0.0, 1.0),
        device_type=run.recipe.device,
    )


def diagnose(spec: AttackSpec, classifier: HRClassifier, split: Split) -> Record:
    """
    Make a report on masked gradients.

    :param spec: How large an eps, of how many steps, on which images.
    :param classifier: The network, as seen through the attack's loss.
    :param split: The images, and their true labels.
    """
    images, labels = _chosen(spec, split)
    report = gradient_masking_report(
        classifier,
        images,
        labels,
        eps=spec.eps,
        max_iter=spec.steps,
        square_iter=REPORT_QUERIES,
        batch_size=BATCH_SIZE,
        verbose=False,
    )
    return Record(labels, robust=report.robust, flags={flag.name: flag.evidence for flag in report.flags})


def measure(
    spec: AttackSpec,
    classifier: HRClassifier,
    split: Split,
    input_scale: float = 1.0,
    source: HRClassifier | None = None,
) -> Record:
    """
    Attack the images of a split, and keep what the network answers.

    :param spec: The attack.
    :param classifier: The network under attack, for images in [0, 1], as seen through the attack's loss.
    :param split: The images, attacked at their true labels.
    :param input_scale: Units of the network's input in the range of a pixel.
    :param source: The other network on which the attack makes images, if it names one.
    """
    attack = attacks.build(spec, classifier, batch_size=BATCH_SIZE, input_scale=input_scale, source=source)
    clean, labels = _chosen(spec, split)
    with seeded(0):
        images = clean if attack is None else attack.generate(clean, labels)
    sampled = np.unique(labels, return_index=True)[1]
    record = Record(
        labels,
        classifier.predict(images, batch_size=BATCH_SIZE).astype(np.float32, copy=False),
        samples=np.rint(images[sampled] * 255).astype(np.uint8),
        sampled=sampled,
    )
    if isinstance(attack, attacks.WorstCaseAttack):
        return replace(record, found_by=attack.found_by, names=attack.names)
    if spec.loss is None:
        return record
    batches = (slice(start, start + BATCH_SIZE) for start in range(0, len(labels), BATCH_SIZE))
    gradients = (classifier.loss_gradient(clean[batch], labels[batch]) for batch in batches)
    return replace(record, zero_gradient=np.concatenate([~g.reshape(len(g), -1).any(1) for g in gradients]))


def _chosen(spec: AttackSpec, split: Split) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """The images that are attacked, in [0, 1], and their labels."""
    chosen = slice(spec.images or None)
    images, labels = Split(split.images[chosen], split.labels[chosen]).tensors(torch.device("cpu"))
    return images.numpy(), labels.numpy()
