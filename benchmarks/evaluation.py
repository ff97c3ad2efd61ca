"""Checkpoint x attack -> one record."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from art_hrloss import FastGradientMethod, HRClassifier, attack_view, error_bounds, gradient_masking_report, seeded
from art_hrloss._network import as_array
from art_hrloss.attacks._base import TensorAttack
from benchmarks import attacks, models
from benchmarks.config import AttackLossName, AttackSpec, RunSpec
from benchmarks.data import Dataset, Split
from benchmarks.losses import attack_loss, training_loss
from benchmarks.protocols import BOUNDED, protocol
from benchmarks.record import UPPER_ALPHA, Record
from benchmarks.store import Store

# Images that are attacked at once on the CPU; and on a GPU how many numbers are in those: 2,730 images of CIFAR-10 fill
# it, and what a ResNet keeps of them for its gradient takes about 3 GB.
BATCH_SIZE, NUMBERS = 250, 2**23
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
    for spec, examples in _examples(specs, classifier, data):
        if spec.name == "diagnostics":
            yield spec, _diagnose(spec, examples)
        else:
            yield spec, _record(spec, examples, input_scale, None if spec.source is None else sources[spec.source])


class CurvePoint(NamedTuple):
    """Results of attacks during training, by the keys of the attacks: accuracies, and what bounds are shown of."""

    accuracies: dict[str, float]
    bounded: dict[str, tuple[Tensor, Tensor]]
    """Logits and labels, on the network's device."""

    def row(self) -> dict[str, Any]:
        """The point as a row of the curve has it; most of its time goes into the bounds."""
        bounds = {key: asdict(error_bounds(*given, alpha=UPPER_ALPHA)) for key, given in self.bounded.items()}
        finite = {key: {k: v if math.isfinite(v) else None for k, v in own.items()} for key, own in bounds.items()}
        return {"attacks": self.accuracies, "bounds": finite}


def curve_point(
    specs: Sequence[AttackSpec], classifier: HRClassifier, data: Dataset, input_scale: float = 1.0
) -> CurvePoint:
    """
    Attack a network in training: the accuracies of the records of :func:`measure_all`, for less.

    A GPU is waited for at the end, and no logits leave it.

    :param specs: The attacks, which name no source.
    :param classifier: The network under attack.
    :param data: Its data set.
    :param input_scale: Units of the network's input in the range of a pixel.
    """
    counts: dict[str, int] = {}
    right: list[Tensor] = []
    bounded: dict[str, tuple[Tensor, Tensor]] = {}
    for spec, examples in _examples(specs, classifier, data):
        images, _ = examples.attacked(spec, input_scale)
        logits = examples.logits(images)
        right.append((logits.argmax(1) == examples.labels).sum())
        counts[spec.key()] = len(images)
        if protocol(spec) in BOUNDED:
            bounded[spec.key()] = logits, examples.labels
    numbers = zip(counts.items(), torch.stack(right).tolist(), strict=True)
    return CurvePoint({key: number / count for (key, count), number in numbers}, bounded)


class _Examples:
    """The images of a split that are attacked through one loss, on the network's device, and what its attacks share."""

    def __init__(self, classifier: HRClassifier, split: Split, count: int) -> None:
        """
        :param classifier: The network, as seen through the attack's loss.
        :param count: How many of the split's images are attacked; 0 is all.
        """
        images, labels = split.tensors(classifier.device)
        self.classifier = classifier
        self.images, self.labels = images[: count or None], labels[: count or None]
        self.batch_size = max(BATCH_SIZE, NUMBERS // self.images[0].numel()) if images.is_cuda else BATCH_SIZE

    @cached_property
    def gradients(self) -> Tensor:
        """The gradient of each image's attack loss at the image, shape ``(n, C, H, W)``."""
        labels = self.classifier.attack_labels(self.labels, len(self.labels))
        batches = zip(self.images.split(self.batch_size), labels.split(self.batch_size), strict=True)
        with seeded(0), self.classifier.attacking():
            return torch.cat([self.classifier.evaluate(*batch).slope for batch in batches]).to(self.images.dtype)

    def attacked(
        self, spec: AttackSpec, input_scale: float = 1.0, source: HRClassifier | None = None
    ) -> tuple[Tensor, Any]:
        """The attacked images, on the device, and the attack."""
        options: dict[str, Any] = {"batch_size": self.batch_size, "input_scale": input_scale, "source": source}
        attack = attacks.build(spec, self.classifier, **options)
        if attack is None:
            return self.images, attack
        if isinstance(attack, FastGradientMethod):
            if not spec.clip:
                return self.images + attack.eps * self.gradients.sign(), attack
            return attack.along(self.images, self.gradients), attack
        with seeded(0):
            if isinstance(attack, TensorAttack | attacks.WorstCaseAttack):
                images = attack.generate(self.images, self.labels)
            else:  # ART's own, or a user's, which may overwrite its images
                images = attack.generate(*(as_array(part).copy() for part in (self.images, self.labels)))
        return torch.as_tensor(images, device=self.images.device), attack

    def logits(self, images: Tensor) -> Tensor:
        """Logits of images, shape ``(n, C)``."""
        return self.classifier.predict_tensor(images, batch_size=self.batch_size)


def _examples(
    specs: Sequence[AttackSpec], classifier: HRClassifier, data: Dataset
) -> Iterator[tuple[AttackSpec, _Examples]]:
    """Each attack, those of one loss together, with its examples, which it shares with others."""
    by_loss: dict[AttackLossName | None, list[AttackSpec]] = {}
    for spec in specs:
        by_loss.setdefault(spec.loss, []).append(spec)
    for loss, same in by_loss.items():
        view = attack_view(classifier, attack_loss(loss or "ce"))
        shared: dict[tuple[str, int], _Examples] = {}
        for spec in same:
            chosen = spec.split, spec.images
            if chosen not in shared:
                split = data.test if spec.split == "test" else data.validation
                shared[chosen] = _Examples(view, split, spec.images)
            yield spec, shared[chosen]


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


def _diagnose(spec: AttackSpec, examples: _Examples) -> Record:
    """Make a report on masked gradients."""
    labels = as_array(examples.labels).copy()
    report = gradient_masking_report(
        examples.classifier,
        as_array(examples.images),
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
    return _record(spec, _Examples(classifier, split, spec.images), input_scale, source)


def _record(spec: AttackSpec, examples: _Examples, input_scale: float, source: HRClassifier | None) -> Record:
    images, attack = examples.attacked(spec, input_scale, source)
    labels = as_array(examples.labels).copy()
    sampled = np.unique(labels, return_index=True)[1]
    record = Record(
        labels,
        as_array(examples.logits(images)),
        samples=np.rint(as_array(images[sampled]) * 255).astype(np.uint8),
        sampled=sampled,
    )
    if isinstance(attack, attacks.WorstCaseAttack):
        return replace(record, found_by=attack.found_by, names=attack.names)
    if spec.loss is None:
        return record
    return replace(record, zero_gradient=as_array(~examples.gradients.flatten(1).any(1)))
