"""Evaluation of a checkpoint under an attack, which gives one record."""

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

# Images per batch on the CPU, and input values per batch on a GPU: 2,730 images of CIFAR-10, for which the activations
# of a ResNet that are stored for the gradient take about 3 GB.
BATCH_SIZE, GPU_BATCH_VALUES = 250, 2**23
# Queries per image of the Square attack in a report on gradient masking.
REPORT_QUERIES = 200


def evaluate(run: RunSpec, specs: Sequence[AttackSpec], data: Dataset, store: Store) -> None:
    """
    Attack a trained run and store one record per attack; records that the store has are not computed again.

    :param run: A trained run.
    :param specs: The attacks. The source runs of transfer attacks must be trained too.
    :param data: The run's data set. Attacks use the true labels.
    :param store: The store of the weights and the records.
    """
    missing = [spec for spec in specs if not store.has_record(run, spec)]
    if not missing:
        return
    classifier = trained_classifier(run, data, store)
    seeds = {spec.source for spec in missing if spec.source is not None}
    sources = {seed: trained_classifier(run.source(seed), data, store) for seed in sorted(seeds)}
    start = time.perf_counter()
    for spec, record in measure_all(missing, classifier, data, run.recipe.input_scale, sources):
        store.save_record(run, spec, record)
        store.log(run, "record", attack=spec.key(), seconds=round(time.perf_counter() - start, 3))
        start = time.perf_counter()


def measure_all(
    specs: Sequence[AttackSpec],
    classifier: HRClassifier,
    data: Dataset,
    input_scale: float = 1.0,
    sources: Mapping[int, HRClassifier] = MappingProxyType({}),
) -> Iterator[tuple[AttackSpec, Record]]:
    """
    Yield each attack with its record: see :func:`measure`. Attacks along the same loss share its gradients.

    :param specs: The attacks.
    :param classifier: The network under attack.
    :param data: The data set.
    :param input_scale: The recipe's input_scale, for an eps in units of the network's input.
    :param sources: The source networks of transfer attacks, by seed.
    """
    for spec, examples in _examples(specs, classifier, data):
        if spec.name == "diagnostics":
            yield spec, _diagnose(spec, examples)
        else:
            yield spec, _record(spec, examples, input_scale, None if spec.source is None else sources[spec.source])


class CurvePoint(NamedTuple):
    """Results of attacks during training, by attack key: accuracies, and the logits from which bounds are computed."""

    accuracies: dict[str, float]
    bounded: dict[str, tuple[Tensor, Tensor]]
    """Logits and labels, on the network's device."""

    def row(self) -> dict[str, Any]:
        """Return the entries of a curve's row; most of the time is spent on the bounds."""
        bounds = {key: asdict(error_bounds(*pair, alpha=UPPER_ALPHA)) for key, pair in self.bounded.items()}
        # JSON has no NaN and no infinity.
        finite = {
            key: {k: v if math.isfinite(v) else None for k, v in values.items()} for key, values in bounds.items()
        }
        return {"attacks": self.accuracies, "bounds": finite}


def curve_point(
    specs: Sequence[AttackSpec], classifier: HRClassifier, data: Dataset, input_scale: float = 1.0
) -> CurvePoint:
    """
    Attack a network in training; the accuracies equal those of the records of :func:`measure_all`.

    It is faster: it synchronises with a GPU once, at the end, and copies no logits to the CPU.

    :param specs: The attacks, which name no source.
    :param classifier: The network under attack.
    :param data: The data set.
    :param input_scale: The recipe's input_scale, for an eps in units of the network's input.
    """
    counts: dict[str, int] = {}
    hits: list[Tensor] = []
    bounded: dict[str, tuple[Tensor, Tensor]] = {}
    for spec, examples in _examples(specs, classifier, data):
        images, _ = examples.attacked(spec, input_scale)
        logits = examples.logits(images)
        hits.append((logits.argmax(1) == examples.labels).sum())
        counts[spec.key()] = len(images)
        if protocol(spec) in BOUNDED:
            bounded[spec.key()] = logits, examples.labels
    totals = zip(counts.items(), torch.stack(hits).tolist(), strict=True)
    return CurvePoint({key: correct / count for (key, count), correct in totals}, bounded)


class _Examples:
    """Images that are attacked along one loss, on the network's device, with gradients that the attacks share."""

    def __init__(self, classifier: HRClassifier, split: Split, count: int) -> None:
        """
        :param classifier: The network, viewed through the attack's loss.
        :param split: The part of the data set.
        :param count: The number of images, from the first; 0 for all.
        """
        images, labels = split.tensors(classifier.device)
        self.classifier = classifier
        self.images, self.labels = images[: count or None], labels[: count or None]
        gpu_batch_size = max(BATCH_SIZE, GPU_BATCH_VALUES // self.images[0].numel())
        self.batch_size = gpu_batch_size if images.is_cuda else BATCH_SIZE

    @cached_property
    def gradients(self) -> Tensor:
        """Gradient of the attack loss at each clean image, shape ``(n, C, H, W)``."""
        labels = self.classifier.attack_labels(self.labels, len(self.labels))
        batches = zip(self.images.split(self.batch_size), labels.split(self.batch_size), strict=True)
        with seeded(0), self.classifier.attacking():
            return torch.cat([self.classifier.evaluate(*batch).slope for batch in batches]).to(self.images.dtype)

    def attacked(
        self, spec: AttackSpec, input_scale: float = 1.0, source: HRClassifier | None = None
    ) -> tuple[Tensor, Any]:
        """Return the adversarial images, on the device, and the attack."""
        options: dict[str, Any] = {"batch_size": self.batch_size, "input_scale": input_scale, "source": source}
        attack = attacks.build(spec, self.classifier, **options)
        if attack is None:
            return self.images, attack
        if isinstance(attack, FastGradientMethod):  # FGSM at every eps uses the same gradients
            if not spec.clip:
                return self.images + attack.eps * self.gradients.sign(), attack
            return attack.along(self.images, self.gradients), attack
        with seeded(0):
            if isinstance(attack, TensorAttack | attacks.WorstCaseAttack):
                images = attack.generate(self.images, self.labels)
            else:  # an attack of ART or of a user may modify its input, so it gets copies
                images = attack.generate(*(as_array(part).copy() for part in (self.images, self.labels)))
        return torch.as_tensor(images, device=self.images.device), attack

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits of images, shape ``(n, C)``."""
        return self.classifier.predict_tensor(images, batch_size=self.batch_size)


def _examples(
    specs: Sequence[AttackSpec], classifier: HRClassifier, data: Dataset
) -> Iterator[tuple[AttackSpec, _Examples]]:
    """Yield each attack with its examples, grouped by loss; attacks of one loss on the same images share them."""
    by_loss: dict[AttackLossName | None, list[AttackSpec]] = {}
    for spec in specs:
        by_loss.setdefault(spec.loss, []).append(spec)
    for loss, group in by_loss.items():
        view = attack_view(classifier, attack_loss(loss or "ce"))
        shared: dict[tuple[str, int], _Examples] = {}
        for spec in group:
            selection = spec.split, spec.images
            if selection not in shared:
                split = data.test if spec.split == "test" else data.validation
                shared[selection] = _Examples(view, split, spec.images)
            yield spec, shared[selection]


def trained_classifier(run: RunSpec, data: Dataset, store: Store) -> HRClassifier:
    """Return the network of a trained run as an ART classifier."""
    model = models.build_for(run.recipe, data)
    model.load_state_dict(store.load_checkpoint(run))
    return as_classifier(model, run, data)


def as_classifier(
    model: nn.Module, run: RunSpec, data: Dataset, optimizer: torch.optim.Optimizer | None = None
) -> HRClassifier:
    """Return a network as an ART classifier for images in [0, 1]; ART can train it if it has an optimizer."""
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
    """Return the record of a report on gradient masking."""
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
    Attack the images of a split, and return the record with the network's logits at the adversarial images.

    :param spec: The attack.
    :param classifier: The network under attack, for images in [0, 1], viewed through the attack's loss.
    :param split: The images and their true labels, which the attack uses.
    :param input_scale: The recipe's input_scale, for an eps in units of the network's input.
    :param source: The source network of a transfer attack.
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
