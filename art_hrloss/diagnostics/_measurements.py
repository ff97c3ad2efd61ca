"""What the diagnostics of a classifier are made of: each probe measures one thing, and judges nothing."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from art.attacks.attack import EvasionAttack
from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescent
from art.estimators.classification import PyTorchClassifier

from art_hrloss.attacks._constraints import Images, Labels, allowed, margins
from art_hrloss.attacks._ensemble import transfer
from art_hrloss.attacks._restarted import AutoPGD
from art_hrloss.attacks._square import Square, is_for_square
from art_hrloss.attacks._views import doubled, in_float64, unsaturated
from art_hrloss.attacks._watching import gradients_given, margins_met
from art_hrloss.classifier import HRClassifier

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Gradients:
    """Of the input gradients that drive an attack, the share of examples where they are of no use."""

    zero: float
    """Exactly 0 everywhere."""
    nan: float
    """NaN or infinite somewhere; ART takes NaN for 0."""
    subnormal: float
    """Not 0, but nowhere as large as the smallest normal number of float32, 1.2e-38."""


@dataclass(frozen=True)
class Trace:
    """An iterative attack, step by step."""

    standing: Flags
    """Shape ``(n,)``: the examples that its last iterate leaves right."""
    silent: Flags
    """Those of them of which an earlier iterate was misclassified."""
    moving: Flags
    """Those of them whose lowest margin came in the last tenth of the steps, and by more than 5% of the whole fall."""


class Target:
    """A classifier with the examples on which it is probed."""

    def __init__(
        self, classifier: PyTorchClassifier, x: Images, labels: Labels, eps: float, norm: float | str, batch_size: int
    ) -> None:
        """Images of shape ``(n, *input_shape)``, class indices of shape ``(n,)``, eps in units of the images."""
        self.classifier, self.x, self.labels = classifier, x, labels
        self.eps, self.norm, self.batch_size = eps, norm, batch_size

    @cached_property
    def clean(self) -> npt.NDArray[np.float64]:
        """The logits of the examples without attack, shape ``(n, M)``."""
        return self.logits(self.x)

    def logits(self, images: Images) -> npt.NDArray[np.float64]:
        """What the classifier gives, shape ``(n, M)``."""
        outputs: npt.NDArray[np.float64] = self.classifier.predict(images, batch_size=self.batch_size).astype(float)
        return outputs

    def standing(self, images: Images) -> Flags:
        """Which are classified right, shape ``(n,)``."""
        right: Flags = self.logits(images).argmax(1) == self.labels
        return right

    def gradients(self) -> Gradients:
        """Those that the classifier gives ART's attacks at the clean images."""
        found = self._one_step[1]
        rows = found.reshape(len(found), -1)
        finite, zero = np.isfinite(rows).all(1), (rows == 0).all(1)
        tiny = finite & ~zero & (np.abs(rows).max(1, initial=0.0) < np.finfo(np.float32).tiny)
        return Gradients(float(zero.mean()), float((~finite).mean()), float(tiny.mean()))

    @property
    def one_hot(self) -> npt.NDArray[np.float32]:
        """The labels as ART's attacks hand them to a classifier."""
        rows: npt.NDArray[np.float32] = np.eye(self.classifier.nb_classes, dtype=np.float32)[self.labels]
        return rows

    def fgsm(self, view: PyTorchClassifier | None = None) -> Images:
        """The images after one step along the gradients of a view of the network, or of the classifier itself."""
        return self._one_step[0] if view is None else self._stepped(view)

    def _stepped(self, classifier: PyTorchClassifier) -> Images:
        attack = FastGradientMethod(classifier, norm=self.norm, eps=self.eps, batch_size=self.batch_size)
        return self._made(attack)

    def views(self, margin: float) -> dict[str, HRClassifier]:
        """
        The same network with gradients that do not saturate.

        :param margin: The median of the margins: the logits are divided by it for one of the views.
        """
        views = unsaturated(self.classifier, margin)
        try:
            double = in_float64(self.classifier)
            double.loss_gradient(self.x[:1], self.one_hot[:1])
        except (RuntimeError, TypeError):
            return views  # float32 is written into the network, or the device has no other
        return views | {"CE in float64": double}

    def pgd(self, max_iter: int, eps: float | None = None) -> Trace:
        """ART's projected gradient descent along the classifier's own gradients, from the clean images."""
        eps = self.eps if eps is None else eps
        attack = ProjectedGradientDescent(
            self.classifier,
            norm=self.norm,
            eps=eps,
            eps_step=2.5 * eps / max_iter,
            max_iter=max_iter,
            batch_size=self.batch_size,
            verbose=False,
        )
        with margins_met(self.classifier, self.batch_size) as seen:
            made = self._made(attack)
        last = margins(self.logits(made), self.labels)
        # Batch by batch, each through all its steps; a batch of examples is a row of margins per step.
        steps = np.concatenate([np.stack(seen[i : i + max_iter]) for i in range(0, len(seen), max_iter)], axis=1)
        path = np.vstack([steps, last])
        standing, fall = last > 0, path[0] - path.min(0)
        late = path[: -max(1, max_iter // 10)].min(0) - path.min(0)
        return Trace(standing, standing & (path.min(0) < 0), standing & (late > 0.05 * fall))

    def strong(self, max_iter: int) -> Flags:
        """What Auto-PGD along the margin leaves standing, no misclassified iterate being lost."""
        view = doubled(self.classifier)
        attack = AutoPGD(view, "margin", eps=self.eps, norm=self.norm, max_iter=max_iter, batch_size=self.batch_size)
        return self.standing(self._made(attack))

    @property
    def is_for_square(self) -> bool:
        """Whether ART's Square attack can run on these images."""
        return is_for_square(self.classifier, self.norm)

    def square(self, max_iter: int) -> Flags:
        """What the Square attack, which sees the logits alone, leaves standing; see `is_for_square`."""
        attack = Square(
            self.classifier,
            norm=self.norm,
            eps=self.eps,
            max_iter=max_iter,
            batch_size=self.batch_size,
            verbose=False,
        )
        with np.errstate(divide="ignore", invalid="ignore"):  # in norm 2 it drops what it has divided by 0
            return self._standing_of_allowed(self._made(attack))

    def transfer(self, other: PyTorchClassifier, max_iter: int) -> Flags:
        """What images made on another classifier leave standing."""
        attack = transfer(other, eps=self.eps, norm=self.norm, max_iter=max_iter, batch_size=self.batch_size)
        return self._standing_of_allowed(self._made(attack))

    def noise(self, size: float, random: np.random.Generator) -> Flags:
        """Which are right after every pixel has moved by that much, up or down at random."""
        return self.standing(self._clipped(self.x + size * random.choice([-1.0, 1.0], self.x.shape)))

    def unstable(self, size: float, draws: int, random: np.random.Generator) -> float:
        """Share of the examples whose predicted class changes in one of so many draws of uniform noise."""
        first = self.clean.argmax(1)
        changed = np.zeros(len(first), dtype=bool)
        for _ in range(draws):
            noisy = self._clipped(self.x + random.uniform(-size, size, self.x.shape))
            changed |= self.logits(noisy).argmax(1) != first
        return float(changed.mean())

    @property
    def pixel_range(self) -> float:
        """How far a pixel can go: by the clip values, or else as the images do."""
        if self.classifier.clip_values is None:
            return float(self.x.max() - self.x.min())
        low, high = self.classifier.clip_values
        return float(np.max(high) - np.min(low))

    @property
    def noise_size(self) -> float:
        """How far to move every pixel to be eps away."""
        return self.eps if float(self.norm) == np.inf else self.eps / self.x[0].size ** (1 / float(self.norm))

    @property
    def unbounded_eps(self) -> float:
        """An eps with which every image can become any other."""
        return self.pixel_range * (1.0 if float(self.norm) == np.inf else self.x[0].size ** (1 / float(self.norm)))

    def _clipped(self, images: npt.NDArray[np.floating[Any]]) -> Images:
        clip = self.classifier.clip_values
        return (images if clip is None else images.clip(*clip)).astype(np.float32)

    def _standing_of_allowed(self, images: Images) -> Flags:
        """Which are right; one that breaks the rules, by another classifier's clip values, say, counts as not made."""
        kept = allowed(images, self.x, self.eps, self.norm, self.classifier.clip_values)
        return np.where(kept, self.standing(images), self.clean.argmax(1) == self.labels)

    def _made(self, attack: EvasionAttack) -> Images:
        made: Images = attack.generate(self.x, self.one_hot)
        return made

    @cached_property
    def _one_step(self) -> tuple[Images, npt.NDArray[Any]]:
        """What FGSM makes along the classifier's own gradients, and these, as ART's attacks get them."""
        with gradients_given(self.classifier) as gradients:
            images = self._stepped(self.classifier)
        return images, np.concatenate(gradients)
