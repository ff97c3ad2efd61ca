"""Measurements of the gradient masking report; _flags.py decides which of them raise a flag."""

import copy
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from art.attacks.attack import EvasionAttack
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_hrloss._network import Point, as_array
from art_hrloss._preconditions import Images, Labels
from art_hrloss.attacks._auto_pgd import AutoProjectedGradientDescent
from art_hrloss.attacks._constraints import feasible, margins
from art_hrloss.attacks._ensemble import transfer
from art_hrloss.attacks._gradient import FastGradientMethod, ProjectedGradientDescent
from art_hrloss.attacks._losses import MARGIN, AttackLossName, ExactCrossEntropy
from art_hrloss.attacks._square import SquareAttack
from art_hrloss.classifier import HRClassifier

Array = npt.NDArray[Any]
Flags = npt.NDArray[np.bool_]


class Gradients(NamedTuple):
    """Shares of the examples whose input gradient is useless to an attack, in [0, 1]."""

    zero: float  #: All entries are exactly 0.
    nan: float  #: An entry is NaN or infinite; attacks replace NaN by 0.
    subnormal: float  #: Not 0, but all entries are below the smallest normal number of float32, 1.2e-38.


class Trace(NamedTuple):
    """Projected gradient descent, observed at every iterate; each field has the shape ``(n,)``."""

    robust: Flags  #: True if the last iterate is classified correctly.
    silent: Flags  #: True if the last iterate is classified correctly, but an earlier iterate is not.
    moving: Flags
    """True if the last iterate is classified correctly, and the last tenth of the steps contributed more than 5% of the
    decrease of the margin."""


@dataclass(frozen=True, eq=False)
class Target:
    """The classifier under test, the images ``(n, *input_shape)``, their classes ``(n,)``, and the attack's budget."""

    classifier: HRClassifier
    images: Images
    labels: Labels
    eps: float
    norm: float
    batch_size: int = 128

    def correct(self, images: Images) -> Flags:
        """Return a mask of the images that are classified correctly, shape ``(n,)``."""
        result: Flags = self.classifier.predict(images, batch_size=self.batch_size).argmax(1) == self.labels
        return result

    def fgsm(self, loss: AttackLossName | nn.Module | None = None) -> tuple[Images, Gradients]:
        """Return the images of FGSM along a loss, by default the classifier's, and the shares of useless gradients."""
        rows: list[Array] = []
        attack = FastGradientMethod(self.classifier, loss=loss, **self._options)
        # In float32, because ART's attacks request gradients in the dtype of the images.
        with self.classifier.observed_by(lambda x, labels, point: rows.append(as_array(point.slope.float()))):
            images = attack.generate(self.images, self.labels)
        gradients = np.concatenate(rows).reshape(len(images), -1)
        finite, zero = np.isfinite(gradients).all(1), (gradients == 0).all(1)
        tiny = finite & ~zero & (np.abs(gradients).max(1) < np.finfo(np.float32).tiny)
        return images, Gradients(float(zero.mean()), float((~finite).mean()), float(tiny.mean()))

    def replays(self, margin: float) -> dict[str, Flags]:
        """
        Return masks of the examples that are robust under FGSM along losses that do not saturate, by name of the loss.

        :param margin: The median margin. One loss divides the logits by it if it is above 1.
        """
        losses: dict[str, AttackLossName | nn.Module] = {"exact CE": "ce", "margin": "margin"}
        if self.classifier.nb_classes > 2:
            losses["DLR"] = "dlr"
        losses["CE of logits / T"] = _Tempered(margin if margin > 1 else 1.0)
        robust = {name: self.correct(self.fgsm(loss)[0]) for name, loss in losses.items()}
        try:
            double = copy.copy(self.classifier)
            double.set_params(model=copy.deepcopy(self.classifier.model).double())
            robust["CE in float64"] = self._robust(FastGradientMethod(double, loss="ce", **self._options))
        except (RuntimeError, TypeError):
            pass  # the network contains float32 tensors that are not parameters, or its device does not support float64
        return robust

    def pgd(self, max_iter: int, eps: float) -> Trace:
        """Return the trace of projected gradient descent along the classifier's loss, from the clean images."""
        options = self._options | {"eps": eps, "eps_step": 2.5 * eps / max_iter, "max_iter": max_iter}
        attack = ProjectedGradientDescent(self.classifier, verbose=False, **options)
        path: list[tuple[Array, Array]] = []  # at each iterate, the margins and a mask of the misclassified images

        def observe(x: Tensor, labels: Tensor, point: Point) -> None:
            wrong = as_array(self.classifier.predicted_classes(point.logits)) != self.labels[part]
            path.append((margins(as_array(point.logits).astype(float), self.labels[part]), wrong))

        images, paths = [], []
        for part in self._batches:
            with self.classifier.observed_by(observe):
                images.append(attack.generate(self.images[part], self.labels[part]))
            paths.append(np.stack(path, axis=1))
            path.clear()
        robust, (margin, wrong) = self.correct(np.concatenate(images)), np.concatenate(paths, axis=2)
        lowest, early = margin.min(0), margin[: -max(1, max_iter // 10)].min(0, initial=np.inf)
        moving = np.isfinite(early) & (early - lowest > 0.05 * (margin[0] - lowest))
        return Trace(robust, robust & wrong.any(0), robust & moving)

    def auto_pgd(self, max_iter: int) -> Flags:
        """Return a mask of the examples that are robust under Auto-PGD on the margin with keep_first."""
        options = self._options | {"eps_step": 2 * self.eps, "loss": "margin", "keep_first": True, "restarts": 1}
        return self._robust(AutoProjectedGradientDescent(self.classifier, max_iter=max_iter, verbose=False, **options))

    def square(self, max_iter: int) -> Flags:
        """Return a mask of the examples that are robust under the Square attack."""
        attack = SquareAttack(self.classifier, max_iter=max_iter, verbose=False, **self._options)
        with np.errstate(divide="ignore", invalid="ignore"):  # in norm 2, ART divides by 0 and discards the result
            return self._robust(attack)

    def transfer(self, source: PyTorchClassifier, max_iter: int) -> Flags:
        """Return a mask of the examples that are robust under a transfer attack from another classifier."""
        return self._robust(transfer(source, max_iter=max_iter, **self._options))

    def noise(self, size: float, random: np.random.Generator) -> Flags:
        """Return a mask of the examples classified correctly when every pixel changes by +size or -size at random."""
        return self.correct(self._clipped(self.images + size * random.choice([-1.0, 1.0], self.images.shape)))

    def unstable(self, size: float, draws: int, random: np.random.Generator) -> Flags:
        """
        Return a mask of the examples whose margin is not described by its gradient in uniform noise.

        For noise d and the margin loss L, the criterion is that the sum of ``|L(x + d) - L(x) - <grad L(x), d>|`` over
        the draws is more than half of the sum of ``|L(x + d) - L(x)| + |<grad L(x), d>|``. Pintor et al. (2022) divide
        ``|L(x + d) - L(x)|`` by ``|L(x)|``, which increases with the slope of L: it flags networks that are steep, not
        only networks that are not smooth.

        :param size: The largest change of a pixel.
        :param draws: The number of draws of noise per example.
        """
        ratios = []
        for part in self._batches:
            x, labels = torch.from_numpy(self.images[part]), self.labels[part]
            target = self.classifier.attack_labels(labels, len(labels), MARGIN)
            with self.classifier.attacking():
                point = self.classifier.evaluate(x, target, loss=MARGIN)
                error, total = np.zeros(len(x)), np.full(len(x), 1e-300)
                for _ in range(draws):
                    noisy = torch.from_numpy(self._clipped(x.numpy() + random.uniform(-size, size, x.shape)))
                    losses = self.classifier.evaluate(noisy, target, loss=MARGIN, gradient=False).losses
                    change = as_array(losses.double() - point.losses.double())
                    slope = as_array(point.slope.double() * (noisy - x).to(point.slope.device))
                    predicted = slope.reshape(len(x), -1).sum(1)
                    error, total = error + abs(change - predicted), total + abs(change) + abs(predicted)
            ratios.append(error / total)
        result: Flags = np.concatenate(ratios) > 0.5
        return result

    @property
    def pixel_range(self) -> float:
        """The largest possible change of a pixel: the range of clip_values, or of the images without clip_values."""
        clip = self.classifier.clip_values
        return float(np.ptp(self.images) if clip is None else np.max(np.subtract(clip[1], clip[0])))

    @property
    def size_of_ones(self) -> float:
        """The norm of an image of ones, that is the distance of two images whose pixels all differ by 1."""
        return 1.0 if self.norm == math.inf else float(self.images[0].size ** (1 / self.norm))

    @property
    def _options(self) -> dict[str, Any]:
        return {"eps": self.eps, "norm": self.norm, "batch_size": self.batch_size}

    @property
    def _batches(self) -> list[slice]:
        return [slice(start, start + self.batch_size) for start in range(0, len(self.images), self.batch_size)]

    def _clipped(self, images: Array) -> Images:
        clip = self.classifier.clip_values
        return (images if clip is None else images.clip(*clip)).astype(np.float32)

    def _robust(self, attack: EvasionAttack) -> Flags:
        """Return a mask of the examples that are robust under an attack; an infeasible image counts as the original."""
        images = attack.generate(self.images, self.labels)
        allowed = feasible(images, self.images, self.eps, self.norm, self.classifier.clip_values)
        return self.correct(np.where(allowed.reshape(-1, *(1,) * (images.ndim - 1)), images, self.images))


class _Tempered(ExactCrossEntropy):
    """Cross-entropy of the logits divided by a temperature."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def per_example(self, logits: Tensor, index: Tensor) -> Tensor:
        return super().per_example(logits / self.temperature, index)
