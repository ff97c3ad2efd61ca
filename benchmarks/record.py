"""One evaluation: a network's logits at attacked images, and the metrics that a report computes from them."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.optimize
import scipy.special

from art_hrloss import error_bounds
from art_hrloss.attacks._constraints import margins

# Edges of the bins of margins; the first and the last bin hold all that lies beyond them.
MARGIN_EDGES = tuple(range(-40, 41))
# The orders at which Proposition 1 is computed, whatever the training loss: its upper bound at the paper's alpha, its
# lower bound, which needs one above 2, with labels that are wrong at a known rate: with certain ones it is vacuous.
UPPER_ALPHA, LOWER_ALPHA, LABEL_NOISE = 1.6, 3.0, 0.1
# Bins of equal width in which confidence is compared with accuracy; a temperature lies between 1/1000 and 1000.
CONFIDENCE_BINS, TEMPERATURE_LIMIT = 15, 1000.0


class Sample(NamedTuple):
    """One attacked image, as it is shown."""

    pixels: npt.NDArray[np.uint8]
    """Shape (C, H, W)."""
    label: int
    prediction: int
    confidence: float
    """Probability of the prediction."""


class Reliability(NamedTuple):
    """
    Images by the probability of their predicted class, in CONFIDENCE_BINS bins, each array of that shape.

    A bin holds its upper edge and not its lower one.
    """

    images: npt.NDArray[np.float64]
    """Their number."""
    right: npt.NDArray[np.float64]
    """How many are classified right."""
    confidence: npt.NDArray[np.float64]
    """The sum of the probabilities."""


@dataclass(frozen=True, eq=False)
class Record:
    """
    The evaluation of one network under one attack; every metric is computed from its arrays when it is asked for.

    A report on masked gradients has `robust` and `flags` in place of `logits`.
    """

    labels: npt.NDArray[np.int64]
    """True classes of the attacked images, shape (n,)."""
    logits: npt.NDArray[np.float32] | None = None
    """The network's at the attacked images, shape (n, C)."""
    robust: npt.NDArray[np.bool_] | None = None
    """Of a report: whether an image is classified right under every attack of the report, shape (n,)."""
    zero_gradient: npt.NDArray[np.bool_] | None = None
    """For an attack along one loss: whether that loss's gradient at the clean image is exactly 0 everywhere, so that
    the attack cannot move, shape (n,)."""
    found_by: npt.NDArray[np.int64] | None = None
    """For an ensemble: the place in `names` of the first attack that found an adversarial example, -1 for none."""
    samples: npt.NDArray[np.uint8] | None = None
    """The attacked images in place `sampled`, rounded to 8 bits, shape (k, C, H, W)."""
    sampled: npt.NDArray[np.int64] | None = None
    """The first image of every class, shape (k,)."""
    names: tuple[str, ...] = ()
    """The attacks of an ensemble."""
    flags: Mapping[str, str] | None = None
    """Of a report: the evidence of each flag that it raises, by its name."""

    @property
    def n(self) -> int:
        """Number of images."""
        return len(self.labels)

    @cached_property
    def right(self) -> npt.NDArray[np.bool_]:
        """Whether each attacked image is classified right; of equal logits the first class wins."""
        if self.robust is not None:
            return self.robust
        right: npt.NDArray[np.bool_] = self._answers.argmax(1) == self.labels
        return right

    @property
    def accuracy(self) -> float:
        """Share of the attacked images that are classified right."""
        return float(self.right.mean())

    @property
    def found(self) -> dict[str, int]:
        """For how many images each attack of an ensemble was the first to find an adversarial example."""
        counts = Counter(() if self.found_by is None else self.found_by.tolist())
        return {name: counts[i] for i, name in enumerate(self.names)}

    @cached_property
    def probabilities(self) -> npt.NDArray[np.float64]:
        """Softmax of the logits, shape (n, C)."""
        probabilities: npt.NDArray[np.float64] = scipy.special.softmax(self._answers.astype(np.float64), axis=1)
        return probabilities

    @cached_property
    def margins(self) -> npt.NDArray[np.float64]:
        """The true class's logit less the largest other, shape (n,)."""
        return margins(self._answers.astype(np.float64), self.labels)

    @property
    def margin_percentiles(self) -> dict[int, float]:
        """Percentiles 1, 50 and 99 of the margins."""
        percents = (1, 50, 99)
        return dict(zip(percents, np.percentile(self.margins, percents).tolist(), strict=True))

    @property
    def histogram(self) -> npt.NDArray[np.int64]:
        """How many margins lie in each bin of MARGIN_EDGES."""
        counts, _ = np.histogram(self.margins.clip(MARGIN_EDGES[0], MARGIN_EDGES[-1]), MARGIN_EDGES)
        return counts

    @cached_property
    def confusion(self) -> npt.NDArray[np.float64]:
        """
        The semi-empirical confusion matrix, shape (C, C).

        Row i, column j is the mean probability of class i over the images of class j; NaN for a class without images.
        """
        classes = self.probabilities.shape[1]
        members = np.eye(classes)[self.labels]
        with np.errstate(invalid="ignore"):  # 0 / 0 is NaN, and meant
            confusion: npt.NDArray[np.float64] = (self.probabilities.T @ members) / members.sum(0)
        return confusion

    def bounds(self, labels: Literal["labels", "noisy_labels"] = "labels") -> dict[str, float]:
        """
        The fields of ErrorBounds (Proposition 1).

        :param labels: "labels", at UPPER_ALPHA; or "noisy_labels", at LOWER_ALPHA, as if each label were with
            probability LABEL_NOISE drawn anew from all classes.
        """
        if labels == "labels":
            return asdict(error_bounds(self._answers, self.labels, alpha=UPPER_ALPHA))
        classes = self._answers.shape[1]
        noisy = (1 - LABEL_NOISE) * np.eye(classes)[self.labels] + LABEL_NOISE / classes
        return asdict(error_bounds(self._answers, noisy, alpha=LOWER_ALPHA))

    def calibration(self, temperature: float = 1.0) -> dict[str, float]:
        """
        How far the probabilities can be believed.

        confidence: the mean probability of the predicted class; overconfidence: the same less the accuracy; nll: the
        negative log-likelihood in nats; brier: the Brier score, summed over the classes, from 0 to 2; ece: the expected
        calibration error over CONFIDENCE_BINS bins; auroc: the area under the ROC curve of the confidence as a score of
        what is classified right, NaN where all images are or none is.

        :param temperature: What the logits are divided by, which changes no prediction.
        """
        logits = self._answers.astype(np.float64) / temperature
        log_probabilities = scipy.special.log_softmax(logits, axis=1)
        errors = np.exp(log_probabilities)
        errors[np.arange(self.n), self.labels] -= 1
        bins = self.reliability(temperature)
        confidence = bins.confidence.sum() / self.n
        values = {
            "confidence": confidence,
            "overconfidence": confidence - self.accuracy,
            "nll": -log_probabilities[np.arange(self.n), self.labels].mean(),
            "brier": (errors**2).sum(1).mean(),
            "ece": np.abs(bins.right - bins.confidence).sum() / self.n,
            "auroc": math.nan,
        }
        if 0 < self.accuracy < 1:
            from sklearn.metrics import roc_auc_score  # takes a second to import

            # The log-odds of the predicted class: in the order of its probability, also where that rounds to 1.
            *others, first = np.sort(logits, axis=1).T
            values["auroc"] = roc_auc_score(self.right, first - scipy.special.logsumexp(others, axis=0))
        return {name: float(value) for name, value in values.items()}

    def reliability(self, temperature: float = 1.0) -> Reliability:
        """The images, and how many of them are classified right, by the probability of the predicted class."""
        top = scipy.special.softmax(self._answers.astype(np.float64) / temperature, axis=1).max(1)
        # The bins of scikit-learn's calibration_curve, which does not return their numbers of images.
        bins = np.searchsorted(np.linspace(0, 1, CONFIDENCE_BINS + 1)[1:-1], top)
        weights = np.ones(self.n), self.right, top
        return Reliability(*(np.bincount(bins, w, CONFIDENCE_BINS).astype(np.float64) for w in weights))

    @cached_property
    def temperature(self) -> float:
        """
        What the logits are to be divided by for the least negative log-likelihood (Guo et al. 2017).

        NaN where nothing is least: with all images right it falls without end as the temperature does, and where the
        true class's logit is not above the mean of all logits on average, as the temperature rises.
        """
        logits, images = self._answers.astype(np.float64), np.arange(self.n)
        if self.margins.min() >= 0 or (logits[images, self.labels] - logits.mean(1)).mean() <= 0:
            return math.nan

        def nll(log_temperature: float) -> float:
            # Convex in 1 / temperature, so it has one minimum.
            scaled = scipy.special.log_softmax(logits / math.exp(log_temperature), axis=1)
            return float(-scaled[images, self.labels].mean())

        limit = math.log(TEMPERATURE_LIMIT)
        fit = scipy.optimize.minimize_scalar(nll, bounds=(-limit, limit), method="bounded", options={"xatol": 1e-6})
        return math.exp(fit.x)

    def shown(self) -> Sequence[Sample]:
        """The first image of every class, as attacked."""
        if self.samples is None or self.sampled is None:
            return ()
        answers = self.probabilities[self.sampled]
        predictions = self._answers[self.sampled].argmax(1)
        rows = zip(self.samples, self.labels[self.sampled], predictions, answers.max(1), strict=True)
        return [Sample(pixels, int(label), int(guess), float(p)) for pixels, label, guess, p in rows]

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """All arrays that there are, by their names."""
        values = {name: getattr(self, name) for name in ARRAYS}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def _answers(self) -> npt.NDArray[np.float32]:
        if self.logits is None:
            raise ValueError("expected the record of an attack, which holds logits, but this is a report's")
        return self.logits


# Name, type and number of dimensions of a record's arrays.
ARRAYS: dict[str, tuple[str, int]] = {
    "labels": ("int64", 1),
    "logits": ("float32", 2),
    "robust": ("bool", 1),
    "zero_gradient": ("bool", 1),
    "found_by": ("int64", 1),
    "samples": ("uint8", 4),
    "sampled": ("int64", 1),
}
