"""Statistics over seeds: means, confidence intervals, paired differences and verdicts, as pure functions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
    """The mean; NaN without any seed."""
    half_width: float = math.nan
    """Half of the interval's width; NaN with fewer than two seeds, from which no spread can be estimated."""
    n: int = 0
    """Number of seeds."""

    def __format__(self, spec: str) -> str:
        """Return "mean ± half-width", each in the format of a float; only the mean gets a plus sign."""
        if not self.n:
            return "not yet"
        spec = spec or "z.3f"
        spread = "" if math.isnan(self.half_width) else f" ± {self.half_width:{spec.removeprefix('+')}}"
        return f"{self.mean:{spec}}{spread}"

    def __str__(self) -> str:
        return f"{self}"


def mean_interval(values: Sequence[float]) -> Interval:
    """
    Return the mean of one value per seed, with its 95% Student t interval.

    The interval is for the mean over all seeds that could have been drawn, not for the value of a further seed. With
    five seeds the t quantile is 2.8, not the 1.96 of the normal distribution.

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
def _quantile(freedom: int, error: float = 0.05) -> float:
    """Return Student's t that |t| exceeds with a probability; cached, because it takes scipy as long as all else."""
    return float(scipy.stats.t.ppf(1 - error / 2, freedom))


def paired_interval(first: Mapping[int, float], second: Mapping[int, float]) -> Interval:
    """
    Return the mean of first - second over the seeds that both have, with its 95% t interval for paired samples.

    A seed fixes the initial weights and the order of the images. Its effect on both sides cancels in the difference,
    so this interval is usually narrower than that of two independent samples.

    :param first: Value by seed.
    :param second: Value by seed.
    :raises ValueError: If a value of a common seed is not finite.
    """
    return mean_interval([value - second[seed] for seed, value in first.items() if seed in second])


def corrected(effect: Interval, comparisons: int) -> Interval:
    """
    Return an effect with its interval widened for a number of comparisons (Bonferroni).

    Without any true effect, at least one of so many widened intervals excludes 0 with a probability of at most 5%.

    :param effect: The effect with its 95% interval; returned unchanged with fewer than two seeds.
    :param comparisons: Number of effects that are judged together, at least 1.
    """
    if effect.n < 2:
        return effect
    wider = _quantile(effect.n - 1, 0.05 / comparisons) / _quantile(effect.n - 1)
    return replace(effect, half_width=effect.half_width * wider)


def judge(effect: Interval, *, sign: int = 1, margin: float = 0.0) -> Verdict:
    """
    Return the verdict on the claim that an effect is above -margin.

    :param effect: The effect with its 95% interval; with fewer than two seeds the verdict is "undecided".
    :param sign: 1; or -1 for the claim that the effect is below +margin; or 0 if there is no claim.
    :param margin: How far on the other side of 0 the effect may be; 0 for a claim about the sign alone.
    """
    if not sign:
        return "no claim"
    # Comparisons with a NaN half-width are false, so fewer than two seeds give "undecided".
    low, high = sign * effect.mean - effect.half_width, sign * effect.mean + effect.half_width
    return "supported" if low > -margin else "contradicted" if high < -margin else "undecided"


def seeds_to_decide(effect: Interval, *, sign: int = 1, margin: float = 0.0, most: int = 1000) -> float:
    """
    Return the number of seeds that would decide a claim if the mean and the spread of its effect stayed the same.

    :param effect: The effect with its 95% interval, of two seeds or more.
    :param sign: As for :func:`judge`.
    :param margin: As for :func:`judge`.
    :param most: The largest number that is tried; the result is infinite if it is not enough.
    :return: At least 2; NaN if the claim is decided, if there is no claim, or with fewer than two seeds.
    """
    if judge(effect, sign=sign, margin=margin) != "undecided" or math.isnan(effect.half_width):
        return math.nan
    # The standard deviation, recovered from half_width = t * deviation / sqrt(n).
    deviation = effect.half_width * math.sqrt(effect.n) / _quantile(effect.n - 1)
    distance = abs(sign * effect.mean + margin)
    enough = (n for n in range(2, most + 1) if _quantile(n - 1) * deviation / math.sqrt(n) < distance)
    return float(next(enough, math.inf))


def distance_to_identity(confusion: npt.NDArray[np.float64]) -> float:
    """
    Return the Frobenius norm of I - C, the paper's measure of how far a confusion matrix C is from a perfect one.

    :param confusion: C, of shape (M, M); a column of NaN, which a class without images has, is left out.
    """
    return float(np.sqrt(np.nansum((np.eye(len(confusion)) - confusion) ** 2)))
