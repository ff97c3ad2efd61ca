"""
Gradient masking: signs that a classifier resists an attack only because its gradients are useless.

After Athalye, Carlini and Wagner, "Obfuscated Gradients Give a False Sense of Security" (2018), Carlini et al., "On
Evaluating Adversarial Robustness" (2019), and Pintor et al., "Indicators of Attack Failure" (2022). A classifier
without a flag has passed these checks, and no more; the robust accuracy to report is :func:`art_hrloss.worst_case`'s.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from art.estimators.classification import PyTorchClassifier

from art_hrloss._context import modes_kept, seeded
from art_hrloss._preconditions import checked_evaluation
from art_hrloss.attacks._constraints import check_eps, margins, norm_order
from art_hrloss.attacks._square import is_for_square
from art_hrloss.classifier import as_hr_classifier
from art_hrloss.diagnostics._flags import Flag, Measurements, flags
from art_hrloss.diagnostics._measurements import Flags, Target

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class GradientMaskingReport(Measurements):
    """The measurements, the flags that follow from them, and both as a table."""

    @property
    def flags(self) -> tuple[Flag, ...]:
        """The reasons not to trust the robust accuracy; no flag is no proof of robustness."""
        return flags(self)

    @property
    def flagged(self) -> bool:
        """True if there is any flag."""
        return bool(self.flags)

    @property
    def robust(self) -> Flags:
        """The examples that no attack of at most eps misclassified, nor the classifier without attack; ``(n,)``."""
        attacks = (*self.single_step.values(), *self.iterative.values(), self.auto_pgd, *self.black_box.values())
        result: Flags = np.logical_and.reduce((self.clean, *attacks))
        return result

    def rows(self) -> list[tuple[str, str, float]]:
        """Return the measurements: part, name and value, an accuracy or a share unless it says otherwise."""
        values: dict[tuple[str, str], Any] = {
            ("no attack", ""): self.clean,
            **{("FGSM", name): robust for name, robust in self.single_step.items()},
            **{("PGD", f"{steps} steps"): robust for steps, robust in self.iterative.items()},
            ("PGD", "unbounded"): self.unbounded,
            ("Auto-PGD", "margin"): self.auto_pgd,
            **{("black box", name): robust for name, robust in self.black_box.items()},
            ("noise", "of norm eps"): self.noise,
            ("gradients", "exactly 0"): self.gradients.zero,
            ("gradients", "NaN or inf"): self.gradients.nan,
            ("gradients", "subnormal"): self.gradients.subnormal,
            ("FGSM", "images unchanged"): self.unchanged,
            ("PGD", "silent success"): self.silent,
            ("PGD", "still moving at its end"): self.moving,
            ("noise", "unstable at 1/255"): self.unstable,
            **{("margin", f"percentile {p}"): np.percentile(self.margins, p) for p in (1, 50, 99)},
            **{("detectable", name): value for name, value in self.detectable.items()},
        }
        return [(*name, float(np.mean(value))) for name, value in values.items()]

    def to_frame(self) -> "pd.DataFrame":
        """Return the rows as a DataFrame with the columns part, what and value; needs pandas."""
        import pandas as pd

        return pd.DataFrame(self.rows(), columns=["part", "what", "value"])

    def __str__(self) -> str:
        flags, difference = self.flags, self.detectable["difference"]
        verdict = f"{len(flags)} flag{'s' * (len(flags) > 1)}" if flags else "no flag"
        lines = [f"Gradient masking, {len(self.clean)} examples, eps {self.eps:g}, norm {self.norm}: {verdict}"]
        detected = "No difference" if math.isnan(difference) else f"A difference of at least {difference:.3f}"
        lines.append(f"{detected} between accuracies is flagged with 80% power at this number of examples")
        lines += [f"{part:10} {what:27} {value:9.3f}" for part, what, value in self.rows() if part != "detectable"]
        return "\n".join([*lines, *(f"! {flag}" for flag in flags)])


def gradient_masking_report(
    classifier: PyTorchClassifier,
    x: Any,
    y: Any,
    *,
    eps: float,
    norm: float | str = np.inf,
    max_iter: int = 40,
    square_iter: int = 500,
    noise_draws: int = 20,
    transfer_from: Mapping[str, PyTorchClassifier] | None = None,
    batch_size: int = 128,
    seed: int = 0,
) -> GradientMaskingReport:
    """
    Test a classifier for signs of gradient masking.

    The classifiers are not modified, nor their networks' modes and gradients. About ``5 max_iter + 7`` forward and
    backward passes over the examples, at most ``square_iter + noise_draws + 25`` more forward ones, and `max_iter` of
    both per classifier in `transfer_from`. A few hundred examples are enough: see `GradientMaskingReport.detectable`.

    :param classifier: One that predicts logits. Its attack loss, per example, drives the attacks called "as given".
    :param x: Images, shape ``(n, *input_shape)``, finite and inside clip_values.
    :param y: True labels, in any form of :func:`art_hrloss._labels.parse_labels`.
    :param eps: The largest perturbation, in units of the images.
    :param norm: numpy.inf or 2. ART's gradient attacks in norm 1 fail on honest networks as well: they move a single
           pixel per step, which clip_values often undo.
    :param max_iter: Steps of PGD, which runs with twice as many as well.
    :param square_iter: Steps of the Square attack; 0 leaves it out, as do images that it cannot attack.
    :param noise_draws: Draws of slight noise per example, for "unstable predictions"; 0 leaves it out.
    :param transfer_from: Classifiers by name, whose adversarial images are tried on this one.
    :param seed: Of Python's, NumPy's and torch's generators, which are restored.
    :raises ValueError: If a report would mean nothing (see :func:`art_hrloss._preconditions.checked_evaluation`), or an
            option is out of its range.

    >>> import torch, art_hrloss
    >>> options = {"input_shape": (4,), "nb_classes": 3, "clip_values": (0, 1), "device_type": "cpu"}
    >>> with art_hrloss.seeded(0):
    ...     classifier = art_hrloss.HRClassifier(torch.nn.Linear(4, 3), art_hrloss.HRLoss(), **options)
    >>> images = np.random.default_rng(0).random((20, 4), dtype=np.float32)
    >>> report = gradient_masking_report(classifier, images, classifier.predict(images).argmax(1), eps=0.1, max_iter=5)
    >>> [flag.name for flag in report.flags]
    []
    """
    eps, order = check_eps(eps, norm, classifier.clip_values), norm_order(norm)
    if order not in (np.inf, 2.0):
        raise ValueError(f"expected norm to be numpy.inf or 2, but got {norm}")
    numbers = {"max_iter": max_iter, "square_iter": square_iter, "noise_draws": noise_draws, "batch_size": batch_size}
    for name, value in numbers.items():
        least = int(name in ("max_iter", "batch_size"))
        if value < least:
            raise ValueError(f"expected {name} to be at least {least}, but got {value}")
    sources = transfer_from or {}
    with modes_kept(classifier.model, *(source.model for source in sources.values())), seeded(seed):
        attacked = as_hr_classifier(classifier)
        images, labels, logits = checked_evaluation(attacked, x, y, batch_size=batch_size)
        target, random = Target(attacked, images, labels, eps, order, batch_size), np.random.default_rng(seed)
        margin, clip, ones = margins(logits.astype(float), labels), attacked.clip_values, target.size_of_ones
        (stepped, gradients), short, long = target.fgsm(), target.pgd(max_iter, eps), target.pgd(2 * max_iter, eps)
        return GradientMaskingReport(
            eps=eps,
            norm=norm,
            classes=logits.shape[1],
            clean=logits.argmax(1) == labels,
            gradients=gradients,
            margins=margin,
            unchanged=float((stepped == images).reshape(len(images), -1).all(1).mean()),
            single_step={"as given": target.correct(stepped), **target.replays(float(np.median(margin)))},
            iterative={max_iter: short.robust, 2 * max_iter: long.robust},
            auto_pgd=target.auto_pgd(max_iter),
            black_box={
                **({"Square": target.square(square_iter)} if square_iter and is_for_square(attacked, norm) else {}),
                **{f"transfer from {name}": target.transfer(other, max_iter) for name, other in sources.items()},
            },
            unbounded=target.pgd(max_iter, target.pixel_range * ones).robust,
            noise=target.noise(eps / ones, random),
            unstable=target.unstable(target.pixel_range / 255, noise_draws, random),
            silent=short.silent,
            moving=long.moving,
            image_range=(float(images.min()), float(images.max())),
            clip_values=None if clip is None else (float(np.min(clip[0])), float(np.max(clip[1]))),
        )
