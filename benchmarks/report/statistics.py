"""Seeds -> means, intervals and paired differences: pure functions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.stats


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its confidence interval, mean - half_width to mean + half_width."""

    mean: float
    half_width: float
    """NaN for a single seed, which says nothing of its own spread."""
    n: int

    def __str__(self) -> str:
        return f"{self.mean:z.3f}" if math.isnan(self.half_width) else f"{self.mean:z.3f} ± {self.half_width:.3f}"


def mean_interval(values: Sequence[float], *, confidence: float = 0.95) -> Interval:
    """
    The mean of one value per seed, with Student's t interval for the mean over all seeds that could have been drawn.

    :param values: At least one, all finite.
    :param confidence: Between 0 and 1.
    :raises ValueError: If there is no value, or one that is not finite.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"expected at least one value, all finite, but got {list(values)}")
    if not 0 < confidence < 1:
        raise ValueError(f"expected confidence between 0 and 1, but got {confidence}")
    if array.size == 1:
        return Interval(float(array[0]), math.nan, 1)
    quantile = scipy.stats.t.ppf((1 + confidence) / 2, array.size - 1)
    return Interval(float(array.mean()), float(quantile * array.std(ddof=1) / math.sqrt(array.size)), array.size)


def paired_interval(
    first: Mapping[int, float], second: Mapping[int, float], *, confidence: float = 0.95
) -> Interval | None:
    """
    The mean of first - second over the seeds that both have, with Student's t interval for paired samples.

    A seed fixes the initial weights and the order of the images, so what it does to both sides cancels.

    :param first: Value by seed.
    :param second: Value by seed.
    :param confidence: Between 0 and 1.
    :return: None where no seed is in both.
    :raises ValueError: If a value of a common seed is not finite, or the confidence is out of range.
    """
    differences = [value - second[seed] for seed, value in first.items() if seed in second]
    return mean_interval(differences, confidence=confidence) if differences else None


def distance_to_identity(confusion: npt.NDArray[np.float64]) -> float:
    """
    The Frobenius norm of I - C, the paper's measure of how far a confusion matrix is from a perfect one.

    :param confusion: Shape (M, M); a column of NaN, of a class without images, is left out.
    """
    return float(np.sqrt(np.nansum((np.eye(len(confusion)) - confusion) ** 2)))
