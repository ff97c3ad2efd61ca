"""
Gradient masking: signs that a classifier resists an attack only because its gradients are useless.

After Athalye, Carlini and Wagner, "Obfuscated Gradients Give a False Sense of Security" (2018), Carlini et al., "On
Evaluating Adversarial Robustness" (2019), and Pintor et al., "Indicators of Attack Failure" (2022). A classifier
without a flag has passed these checks, and no more; the robust accuracy to report is :func:`art_hrloss.worst_case`'s.
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
    The measurements, the flags that follow from them, and both as a table.

    If :func:`gradient_masking_report` was stopped, `unfinished` names the measurements that are missing, and that some
    are is a flag itself.
    """

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
        result: Flags = np.logical_and.reduce((self.clean, *(robust for robust in attacks if len(robust))))
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
        means = {name: float(np.mean(value)) for name, value in values.items() if np.size(value)}
        # What can be NaN when it was measured is the power of the tests.
        return [(*name, mean) for name, mean in means.items() if name[0] == "detectable" or not math.isnan(mean)]

    def to_frame(self, of: Literal["measurements", "flags"] = "measurements") -> "pd.DataFrame":
        """
        Return a DataFrame; needs pandas.

        :param of: "measurements", a row each, with the columns part, what and value; or "flags", a row each, with the
               columns flag, evidence and remedy.
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
        detected = "No difference" if math.isnan(difference) else f"A difference of at least {difference:.3f}"
        return f"{detected} between accuracies is flagged with 80% power at this number of examples"

    def _cells(self) -> list[tuple[str, str, str]]:
        """Return the rows as text, without the power."""
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
    :param verbose: Whether to show a progress bar: the measurement in progress, and how many examples are robust so
           far.
    :raises ValueError: If a report would mean nothing (see :func:`art_hrloss._preconditions.checked_evaluation`), or an
            option is out of its range.
    :raises KeyboardInterrupt: If interrupted. Its attribute `partial_result`, as that of any exception in a
            measurement, is the report of the measurements that had finished; in a notebook
            ``sys.last_value.partial_result``.

    >>> import torch, art_hrloss
    >>> options = {"input_shape": (4,), "nb_classes": 3, "clip_values": (0, 1), "device_type": "cpu"}
    >>> with art_hrloss.seeded(0):
    ...     classifier = art_hrloss.HRClassifier(torch.nn.Linear(4, 3), art_hrloss.HRLoss(), **options)
    >>> images = np.random.default_rng(0).random((20, 4), dtype=np.float32)
    >>> settings = {"eps": 0.1, "max_iter": 5, "verbose": False}
    >>> report = gradient_masking_report(classifier, images, classifier.predict(images).argmax(1), **settings)
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
    """Return the measurements by name, functions of the report so far that return the fields they add."""

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

    queried: dict[str, Callable[[], Flags]] = {"Square": partial(target.square, square_iter)} if square_iter else {}
    for name, source in sources.items():
        queried[f"transfer from {name}"] = partial(target.transfer, source, max_iter)
    # The order decides what random numbers each draws.
    return {
        "FGSM": fgsm,
        f"PGD of {max_iter} steps": short,
        f"PGD of {2 * max_iter} steps": long,
        "FGSM along other losses": replays,
        "Auto-PGD": lambda report: {"auto_pgd": target.auto_pgd(max_iter)},
        **{name: partial(black_box, name, measure) for name, measure in queried.items()},
        "unbounded PGD": lambda report: {
            "unbounded": target.pgd(max_iter, target.pixel_range * target.size_of_ones).robust
        },
        "noise": lambda report: {"noise": target.noise(target.eps / target.size_of_ones, random)},
        "slight noise": lambda report: {"unstable": target.unstable(target.pixel_range / 255, noise_draws, random)},
    }
