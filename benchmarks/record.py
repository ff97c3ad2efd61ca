"""Record of one evaluation: a network's logits at adversarial images, and the metrics that are computed from them."""

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

# Edges of the bins of margins. The first and the last bin also contain all margins beyond them.
MARGIN_EDGES = tuple(range(-40, 41))
# Renyi orders at which Proposition 1 is evaluated, for every training loss. The upper bound uses the paper's alpha. The
# lower bound needs an alpha above 2, and labels with a known error rate: with certain labels it is vacuous.
UPPER_ALPHA, LOWER_ALPHA, LABEL_NOISE = 1.6, 3.0, 0.1
# Number of bins of equal width for the calibration error, and the limit of a temperature: from 1/1000 to 1000.
CONFIDENCE_BINS, TEMPERATURE_LIMIT = 15, 1000.0


class Sample(NamedTuple):
    """Adversarial image for display, with its label and the prediction."""

    pixels: npt.NDArray[np.uint8]
    """Shape (C, H, W)."""
    label: int
    prediction: int
    confidence: float
    """Probability of the prediction."""


class Reliability(NamedTuple):
    """
    Reliability diagram: the images in CONFIDENCE_BINS bins by the probability of their predicted class.

    Each array has one value per bin. A bin includes its upper edge and excludes its lower edge.
    """

    images: npt.NDArray[np.float64]
    """Number of images."""
    right: npt.NDArray[np.float64]
    """Number of correctly classified images."""
    confidence: npt.NDArray[np.float64]
    """Sum of the probabilities of the predicted classes."""


@dataclass(frozen=True, eq=False)
class Record:
    """
    Evaluation of one network under one attack; metrics are computed from its arrays on access.

    The record of a report on gradient masking has `robust` and `flags` instead of `logits`.
    """

    labels: npt.NDArray[np.int64]
    """True classes of the attacked images, shape (n,)."""
    logits: npt.NDArray[np.float32] | None = None
    """Logits at the adversarial images, shape (n, C)."""
    robust: npt.NDArray[np.bool_] | None = None
    """In a report: True for images that are correctly classified under every attack of the report, shape (n,)."""
    zero_gradient: npt.NDArray[np.bool_] | None = None
    """For an attack along one loss: True where the loss's gradient at the clean image is exactly 0 in every pixel, so
    that FGSM does not change the image, shape (n,)."""
    found_by: npt.NDArray[np.int64] | None = None
    """For an ensemble: index in `names` of the first attack that found an adversarial example, -1 for none."""
    samples: npt.NDArray[np.uint8] | None = None
    """Adversarial images with the indices `sampled`, rounded to 8 bits, shape (k, C, H, W)."""
    sampled: npt.NDArray[np.int64] | None = None
    """Index of the first image of each class, shape (k,)."""
    names: tuple[str, ...] = ()
    """Names of the attacks of an ensemble."""
    flags: Mapping[str, str] | None = None
    """In a report: the evidence of each raised flag, by the flag's name."""

    @property
    def n(self) -> int:
        """Number of images."""
        return len(self.labels)

    @cached_property
    def right(self) -> npt.NDArray[np.bool_]:
        """True for each correctly classified image, shape (n,); among equal logits the first class is predicted."""
        if self.robust is not None:
            return self.robust
        right: npt.NDArray[np.bool_] = self._logits.argmax(1) == self.labels
        return right

    @property
    def accuracy(self) -> float:
        """Share of the attacked images that are classified correctly."""
        return float(self.right.mean())

    @property
    def found(self) -> dict[str, int]:
        """Number of adversarial examples by the attack of an ensemble that found them first."""
        counts = Counter(() if self.found_by is None else self.found_by.tolist())
        return {name: counts[i] for i, name in enumerate(self.names)}

    @cached_property
    def probabilities(self) -> npt.NDArray[np.float64]:
        """Softmax of the logits, shape (n, C)."""
        probabilities: npt.NDArray[np.float64] = scipy.special.softmax(self._logits.astype(np.float64), axis=1)
        return probabilities

    @cached_property
    def margins(self) -> npt.NDArray[np.float64]:
        """The true class's logit minus the largest other logit, shape (n,)."""
        return margins(self._logits.astype(np.float64), self.labels)

    @property
    def margin_percentiles(self) -> dict[int, float]:
        """Percentiles 1, 50 and 99 of the margins."""
        percents = (1, 50, 99)
        return dict(zip(percents, np.percentile(self.margins, percents).tolist(), strict=True))

    @property
    def histogram(self) -> npt.NDArray[np.int64]:
        """Number of margins in each bin of MARGIN_EDGES."""
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
        with np.errstate(invalid="ignore"):  # 0 / 0 gives the NaN of a class without images
            confusion: npt.NDArray[np.float64] = (self.probabilities.T @ members) / members.sum(0)
        return confusion

    def bounds(self, labels: Literal["labels", "noisy_labels"] = "labels") -> dict[str, float]:
        """
        Return the fields of ErrorBounds (Proposition 1).

        :param labels: "labels": true labels, at UPPER_ALPHA. "noisy_labels": labels that are replaced by a random class
            with probability LABEL_NOISE, at LOWER_ALPHA.
        """
        if labels == "labels":
            return asdict(error_bounds(self._logits, self.labels, alpha=UPPER_ALPHA))
        classes = self._logits.shape[1]
        noisy = (1 - LABEL_NOISE) * np.eye(classes)[self.labels] + LABEL_NOISE / classes
        return asdict(error_bounds(self._logits, noisy, alpha=LOWER_ALPHA))

    def calibration(self, temperature: float = 1.0) -> dict[str, float]:
        """
        Return the calibration metrics of the probabilities.

        * confidence: the mean probability of the predicted class;
        * overconfidence: confidence minus accuracy;
        * nll: the negative log-likelihood in nats;
        * brier: the Brier score, summed over the classes, from 0 to 2;
        * ece: the expected calibration error over CONFIDENCE_BINS bins;
        * auroc: the area under the ROC curve of confidence as a score for correct classification; NaN if all images are
          classified correctly, or none.

        :param temperature: The divisor of the logits; it does not change predictions.
        """
        logits = self._logits.astype(np.float64) / temperature
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

            # The log-odds of the predicted class have the order of its probability, but do not saturate at 1.
            *lower, top = np.sort(logits, axis=1).T
            values["auroc"] = roc_auc_score(self.right, top - scipy.special.logsumexp(lower, axis=0))
        return {name: float(value) for name, value in values.items()}

    def reliability(self, temperature: float = 1.0) -> Reliability:
        """Return the reliability diagram at a temperature."""
        top = scipy.special.softmax(self._logits.astype(np.float64) / temperature, axis=1).max(1)
        # These are the bins of scikit-learn's calibration_curve, which does not return the number of images per bin.
        bins = np.searchsorted(np.linspace(0, 1, CONFIDENCE_BINS + 1)[1:-1], top)
        weights = np.ones(self.n), self.right, top
        return Reliability(*(np.bincount(bins, w, CONFIDENCE_BINS).astype(np.float64) for w in weights))

    @cached_property
    def temperature(self) -> float:
        """
        Temperature that minimises the negative log-likelihood (Guo et al. 2017); NaN if there is no minimum.

        If all images are classified correctly, the likelihood improves without end as the temperature falls. If the
        true class's logit is, on average, not above the mean of all logits, it improves as the temperature rises.
        """
        logits, images = self._logits.astype(np.float64), np.arange(self.n)
        if self.margins.min() >= 0 or (logits[images, self.labels] - logits.mean(1)).mean() <= 0:
            return math.nan

        def nll(log_temperature: float) -> float:
            # The function is convex in 1 / temperature, so it has one minimum.
            scaled = scipy.special.log_softmax(logits / math.exp(log_temperature), axis=1)
            return float(-scaled[images, self.labels].mean())

        limit = math.log(TEMPERATURE_LIMIT)
        fit = scipy.optimize.minimize_scalar(nll, bounds=(-limit, limit), method="bounded", options={"xatol": 1e-6})
        return math.exp(fit.x)

    def shown(self) -> Sequence[Sample]:
        """Return the adversarial image of the first image of each class."""
        if self.samples is None or self.sampled is None:
            return ()
        probabilities = self.probabilities[self.sampled]
        predictions = self._logits[self.sampled].argmax(1)
        rows = zip(self.samples, self.labels[self.sampled], predictions, probabilities.max(1), strict=True)
        return [Sample(pixels, int(label), int(guess), float(p)) for pixels, label, guess, p in rows]

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays that are not None, by name."""
        values = {name: getattr(self, name) for name in ARRAYS}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def _logits(self) -> npt.NDArray[np.float32]:
        if self.logits is None:
            raise ValueError("expected the record of an attack, which has logits, but got the record of a report")
        return self.logits


# Data type and number of dimensions of a record's arrays, by name.
ARRAYS: dict[str, tuple[str, int]] = {
    "labels": ("int64", 1),
    "logits": ("float32", 2),
    "robust": ("bool", 1),
    "zero_gradient": ("bool", 1),
    "found_by": ("int64", 1),
    "samples": ("uint8", 4),
    "sampled": ("int64", 1),
}
