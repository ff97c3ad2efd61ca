"""
The gradient masking report: tests whether gradient attacks fail only because the gradients are useless to them.

The tests follow Athalye, Carlini and Wagner, "Obfuscated Gradients Give a False Sense of Security" (2018), Carlini et
al., "On Evaluating Adversarial Robustness" (2019), and Pintor et al., "Indicators of Attack Failure" (2022). A report
without a flag is not a proof of robustness; the robust accuracy to publish is that of :func:`art_hrloss.worst_case`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from art.estimators.classification import PyTorchClassifier

from art_hrloss._base_classifier import check_classifier
from art_hrloss._context import modes_kept, seeded
from art_hrloss._html import html_table
from art_hrloss._preconditions import checked_evaluation
from art_hrloss._progress import check_verbose, run_steps
from art_hrloss.attacks._constraints import check_eps, margins, norm_order
from art_hrloss.attacks._square import is_for_square
from art_hrloss.classifier import as_hr_classifier
from art_hrloss.diagnostics._flags import Flag, Measurements, flags
from art_hrloss.diagnostics._measurements import Flags, Target

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False, repr=False)
class GradientMaskingReport(Measurements):
    """
    Report on gradient masking: the measurements, and the flags that they raise.

    ``str()``, or a notebook, shows a table. If :func:`gradient_masking_report` was interrupted, `unfinished` names the
    missing measurements, and the report has the flag "incomplete report".

    >>> import numpy as np
    >>> from art_hrloss import GradientMaskingReport
    >>> fields = {"eps": 0.1, "norm": "inf", "classes": 2, "image_range": (0.0, 1.0), "clip_values": (0.0, 1.0)}
    >>> report = GradientMaskingReport(clean=np.array([True, False]), margins=np.array([1.5, -0.5]), **fields)
    >>> report.flagged, report.complete, report.robust.tolist()
    (False, True, [True, False])
    """

    @property
    def flags(self) -> tuple[Flag, ...]:
        """The reasons to distrust the robust accuracy; a report without flags is not a proof of robustness."""
        return flags(self)

    @property
    def flagged(self) -> bool:
        """True if there is at least one flag."""
        return bool(self.flags)

    @property
    def robust(self) -> Flags:
        """The examples classified correctly without attack and under all attacks within eps; boolean, ``(n,)``."""
        attacks = (*self.single_step.values(), *self.iterative.values(), self.auto_pgd, *self.black_box.values())
        result: Flags = np.logical_and.reduce((self.clean, *(robust for robust in attacks if len(robust))))
        return result

    def rows(self) -> list[tuple[str, str, float]]:
        """
        Return the measurements as triples of part, name and value.

        A value is an accuracy or a share of the examples, in [0, 1], except for the parts "margin" and "detectable".

        >>> import numpy as np
        >>> from art_hrloss import GradientMaskingReport
        >>> fields = {"eps": 0.1, "norm": "inf", "classes": 2, "image_range": (0.0, 1.0), "clip_values": (0.0, 1.0)}
        >>> report = GradientMaskingReport(clean=np.array([True, False]), margins=np.array([1.5, -0.5]), **fields)
        >>> report.rows()[0]
        ('no attack', '', 0.5)
        """
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
        means = {name: float(np.mean(value)) for name, value in values.items() if np.size(value)}
        # NaN is a missing measurement, except for the power of the tests, where it is a result.
        return [(*name, mean) for name, mean in means.items() if name[0] == "detectable" or not math.isnan(mean)]

    def to_frame(self, of: Literal["measurements", "flags"] = "measurements") -> "pd.DataFrame":
        """
        Return the measurements or the flags as a DataFrame.

        :param of: "measurements", with the columns part, what and value, or "flags", with the columns flag, evidence
               and remedy.
        :return: One row per measurement or flag.
        :raises ValueError: If `of` is neither of the two.
        :raises ImportError: If pandas is not installed.

        >>> import numpy as np
        >>> from art_hrloss import GradientMaskingReport
        >>> fields = {"eps": 0.1, "norm": "inf", "classes": 2, "image_range": (0.0, 1.0), "clip_values": None}
        >>> report = GradientMaskingReport(clean=np.array([True, False]), margins=np.array([1.5, -0.5]), **fields)
        >>> report.to_frame("flags").flag.tolist()
        ['units of eps']
        """
        import pandas as pd

        if of not in ("measurements", "flags"):
            raise ValueError(f"expected of to be 'measurements' or 'flags', but got {of!r}")
        if of == "measurements":
            return pd.DataFrame(self.rows(), columns=["part", "what", "value"])
        rows = [(flag.name, flag.evidence, flag.remedy) for flag in self.flags]
        return pd.DataFrame(rows, columns=["flag", "evidence", "remedy"])

    def __str__(self) -> str:
        lines = [f"{part:10} {what:27} {value:>9}" for part, what, value in self._cells()]
        return "\n".join([self._title(), self._power(), *lines, *(f"! {flag}" for flag in self.flags)])

    def _repr_html_(self) -> str:
        notes = [*map(str, self.flags), self._power()]
        return html_table(self._title(), ("part", "what", "value"), self._cells(), notes)

    def _title(self) -> str:
        flags = len(self.flags)
        verdict = f"{flags} flag{'s' * (flags > 1)}" if flags else "no flag"
        return f"Gradient masking, {len(self.clean)} examples, eps {self.eps:g}, norm {self.norm}: {verdict}"

    def _power(self) -> str:
        difference = self.detectable["difference"]
        if math.isnan(difference):
            return "With this number of examples, no difference of accuracies is flagged with 80% power"
        return f"With this number of examples, a difference of accuracies of {difference:.3f} is flagged with 80% power"

    def _cells(self) -> list[tuple[str, str, str]]:
        """Return the rows as text, without the power of the tests."""
        return [(part, what, f"{value:.3f}") for part, what, value in self.rows() if part != "detectable"]


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
    verbose: bool = True,
) -> GradientMaskingReport:
    """
    Test a classifier for gradient masking.

    The classifiers, their modes and their gradients are not modified. The report needs about ``5 max_iter + 7`` forward
    and backward passes over the examples, at most ``square_iter + noise_draws + 25`` additional forward passes, and
    `max_iter` forward and backward passes per classifier in `transfer_from`. A few hundred examples are enough:
    `detectable` of the report has the smallest differences that are flagged.

    :param classifier: A PyTorchClassifier that predicts logits. Its attack loss is used by the attacks "as given".
    :param x: Images, shape ``(n, *input_shape)``, finite and inside clip_values.
    :param y: True labels: class indices ``(n,)`` or ``(n, 1)``, or one-hot labels or probabilities ``(n, M)``.
    :param eps: The largest perturbation, in units of the images.
    :param norm: numpy.inf or 2. Not 1: ART's gradient attacks change one pixel per step in that norm, and clip_values
           often undo the change, so that the attacks fail on networks without gradient masking as well.
    :param max_iter: The number of steps of PGD; a second PGD has twice as many.
    :param square_iter: Queries of the Square attack per example; 0 omits it. It is also omitted for images that it does
           not support.
    :param noise_draws: Draws of slight noise per example, for the flag "unstable predictions"; 0 omits it.
    :param transfer_from: Classifiers by name, whose adversarial examples are evaluated on this classifier.
    :param batch_size: Images per pass through the network.
    :param seed: The seed of the generators of Python, NumPy and torch, whose states are restored.
    :param verbose: Whether to show a progress bar with the current measurement and the robust accuracy so far.
    :return: The measurements and the flags that they raise.
    :raises ValueError: If the images, labels or logits are invalid, if logits are random or depend on the batch, or if
            an option is out of its range.
    :raises TypeError: If a classifier is not a PyTorchClassifier.
    :raises KeyboardInterrupt: If interrupted. As for any exception in a measurement, its attribute `partial_result` is
            the report of the finished measurements; in a notebook ``sys.last_value.partial_result``.

    >>> import numpy as np, torch, art_hrloss
    >>> options = {"input_shape": (4,), "nb_classes": 3, "clip_values": (0, 1), "device_type": "cpu"}
    >>> with art_hrloss.seeded(0):
    ...     classifier = art_hrloss.HRClassifier(torch.nn.Linear(4, 3), art_hrloss.HRLoss(), **options)
    >>> images = np.random.default_rng(0).random((20, 4), dtype=np.float32)
    >>> settings = {"eps": 0.1, "max_iter": 5, "verbose": False}
    >>> labels = classifier.predict(images).argmax(1)
    >>> report = art_hrloss.gradient_masking_report(classifier, images, labels, **settings)
    >>> [flag.name for flag in report.flags]
    []
    """
    check_classifier(classifier)
    check_verbose(verbose)
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
        # The noise has its own generator, so that it does not depend on the random numbers that attacks draw.
        target, random = Target(attacked, images, labels, eps, order, batch_size), np.random.default_rng(seed)
        clip = attacked.clip_values
        report = GradientMaskingReport(
            eps=eps,
            norm=norm,
            classes=logits.shape[1],
            clean=logits.argmax(1) == labels,
            margins=margins(logits.astype(float), labels),
            image_range=(float(images.min()), float(images.max())),
            clip_values=None if clip is None else (float(np.min(clip[0])), float(np.max(clip[1]))),
        )
        # As if square_iter were 0: a classifier of flat features has a report without the Square attack.
        queries = square_iter if is_for_square(attacked, norm) else 0
        steps = _steps(target, random, max_iter, queries, noise_draws, sources)
        return run_steps(report, steps, title="gradient masking", verbose=verbose)


def _steps(
    target: Target,
    random: np.random.Generator,
    max_iter: int,
    square_iter: int,
    noise_draws: int,
    sources: Mapping[str, PyTorchClassifier],
) -> dict[str, Callable[[GradientMaskingReport], dict[str, Any]]]:
    """Return the measurements by name: functions of the report so far, which return the fields that they add."""

    def fgsm(report: GradientMaskingReport) -> dict[str, Any]:
        images, gradients = target.fgsm()
        unchanged = float((images == target.images).reshape(len(images), -1).all(1).mean())
        return {"gradients": gradients, "unchanged": unchanged, "single_step": {"as given": target.correct(images)}}

    def short(report: GradientMaskingReport) -> dict[str, Any]:
        trace = target.pgd(max_iter, target.eps)
        return {"iterative": {max_iter: trace.robust}, "silent": trace.silent}

    def long(report: GradientMaskingReport) -> dict[str, Any]:
        trace = target.pgd(2 * max_iter, target.eps)
        return {"iterative": {**report.iterative, 2 * max_iter: trace.robust}, "moving": trace.moving}

    def replays(report: GradientMaskingReport) -> dict[str, Any]:
        return {"single_step": {**report.single_step, **target.replays(float(np.median(report.margins)))}}

    def black_box(name: str, measure: Callable[[], Flags], report: GradientMaskingReport) -> dict[str, Any]:
        return {"black_box": {**report.black_box, name: measure()}}

    attacks: dict[str, Callable[[], Flags]] = {"Square": partial(target.square, square_iter)} if square_iter else {}
    for name, source in sources.items():
        attacks[f"transfer from {name}"] = partial(target.transfer, source, max_iter)
    # The measurements draw from the same generators, so their order is part of the results.
    return {
        "FGSM": fgsm,
        f"PGD of {max_iter} steps": short,
        f"PGD of {2 * max_iter} steps": long,
        "FGSM along other losses": replays,
        "Auto-PGD": lambda report: {"auto_pgd": target.auto_pgd(max_iter)},
        **{name: partial(black_box, name, measure) for name, measure in attacks.items()},
        "unbounded PGD": lambda report: {
            "unbounded": target.pgd(max_iter, target.pixel_range * target.size_of_ones).robust
        },
        "noise": lambda report: {"noise": target.noise(target.eps / target.size_of_ones, random)},
        "slight noise": lambda report: {"unstable": target.unstable(target.pixel_range / 255, noise_draws, random)},
    }
