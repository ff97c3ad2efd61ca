"""Seeds -> means, intervals, paired differences and verdicts on them: pure functions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import numpy.typing as npt
import scipy.stats

Verdict = Literal["supported", "contradicted", "undecided", "no claim"]


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its 95% confidence interval, mean - half_width to mean + half_width."""

    mean: float = math.nan
    """NaN without a seed."""
    half_width: float = math.nan
    """NaN with fewer than two seeds, which have no spread."""
    n: int = 0

    def __format__(self, spec: str) -> str:
        """The mean and the half-width in the format of a float; a sign is the mean's alone."""
        if not self.n:
            return "not yet"
        spec = spec or "z.3f"
        spread = "" if math.isnan(self.half_width) else f" ± {self.half_width:{spec.removeprefix('+')}}"
        return f"{self.mean:{spec}}{spread}"

    def __str__(self) -> str:
        return f"{self}"


def mean_interval(values: Sequence[float]) -> Interval:
    """
    The mean of one value per seed, with Student's t interval for the mean over all seeds that could have been drawn.

    :raises ValueError: If a value is not finite.
    """
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"expected finite values, but got {list(values)}")
    if array.size < 2:
        return Interval(float(array[0]) if array.size else math.nan, n=array.size)
    half_width = _quantile(array.size - 1) * array.std(ddof=1) / math.sqrt(array.size)
    return Interval(float(array.mean()), float(half_width), array.size)


@cache
def _quantile(freedom: int) -> float:
    """Student's t that is exceeded by one in forty; as slow to compute as all the rest of an interval."""
    return float(scipy.stats.t.ppf(0.975, freedom))


def paired_interval(first: Mapping[int, float], second: Mapping[int, float]) -> Interval:
    """
    The mean of first - second over the seeds that both have, with Student's t interval for paired samples.

    A seed fixes the initial weights and the order of the images, so what it does to both sides cancels.

    :param first: Value by seed.
    :param second: Value by seed.
    :raises ValueError: If a value of a common seed is not finite.
    """
    return mean_interval([value - second[seed] for seed, value in first.items() if seed in second])


def judge(effect: Interval, *, sign: int = 1, margin: float = 0.0) -> Verdict:
    """
    The verdict on a claim that an effect is above 0, or above a margin.

    :param effect: Its 95% interval; with fewer than two seeds nothing is decided.
    :param sign: -1 for a claim that the effect is below; 0 where nothing is claimed.
    :param margin: How far on the other side of 0 the effect may lie all the same.
    """
    if not sign:
        return "no claim"
    low, high = sign * effect.mean - effect.half_width, sign * effect.mean + effect.half_width
    return "supported" if low > -margin else "contradicted" if high < -margin else "undecided"


def seeds_to_decide(effect: Interval, *, sign: int = 1, margin: float = 0.0, most: int = 1000) -> float:
    """
    The number of seeds that would decide a claim, were its effect and spread to stay what they are.

    :param effect: Its 95% interval, of two seeds or more.
    :param sign: As for :func:`judge`.
    :param margin: As for :func:`judge`.
    :param most: What is more than this is infinite.
    :return: A number of at least 2; NaN for a claim that is decided, that claims nothing, or without two seeds.
    """
    if judge(effect, sign=sign, margin=margin) != "undecided" or math.isnan(effect.half_width):
        return math.nan
    deviation = effect.half_width * math.sqrt(effect.n) / _quantile(effect.n - 1)
    distance = abs(sign * effect.mean + margin)
    enough = (n for n in range(2, most + 1) if _quantile(n - 1) * deviation / math.sqrt(n) < distance)
    return float(next(enough, math.inf))


def distance_to_identity(confusion: npt.NDArray[np.float64]) -> float:
    """
    The Frobenius norm of I - C, the paper's measure of how far a confusion matrix is from a perfect one.

    :param confusion: Shape (M, M); a column of NaN, of a class without images, is left out.
    """
    return float(np.sqrt(np.nansum((np.eye(len(confusion)) - confusion) ** 2)))
