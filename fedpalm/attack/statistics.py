"""Chances of what was seen under the law that the plan promises: noise and draws."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy import stats

Vector = npt.NDArray[np.float64]


def two_sided(lower: float, upper: float) -> float:
    """Of the two tails."""
    return min(1.0, 2 * min(lower, upper))


def of_scale(noise: Vector, std: float) -> float:
    """That independent Gaussian noise of this deviation has a sum of squares as odd as this."""
    squares = float(np.square(noise / std).sum())
    law = stats.chi2(noise.size)
    return two_sided(float(law.cdf(squares)), float(law.sf(squares)))


def of_shape(noise: Vector, std: float) -> float:
    """That Gaussian noise of this deviation lies as far from its law (Kolmogorov-Smirnov)."""
    return float(stats.kstest(noise.ravel(), "norm", args=(0.0, std)).pvalue)


def of_correlation(vectors: list[Vector]) -> tuple[float, float]:
    """The greatest correlation between two vectors that should be independent, and its chance.

    Corrected for the number of pairs. Zeros correlate with nothing: that they are no noise shows elsewhere.
    """
    greatest, pairs = 0.0, 0
    for one, other in combinations(vectors, 2):
        pairs += 1
        norms = float(np.linalg.norm(one) * np.linalg.norm(other))
        found = float(one @ other) / norms if norms > 0 else 0.0
        greatest = max(greatest, abs(found))
    # Under independence r sqrt((n - 2) / (1 - r^2)) is Student's t.
    count = vectors[0].size
    root = np.sqrt(max(1 - greatest**2, 1e-300))
    chance = 2 * float(stats.t(count - 2).sf(greatest * np.sqrt(count - 2) / root))
    return greatest, min(1.0, pairs * chance)


def of_rate(drawn: npt.NDArray[np.bool_], rate: float) -> float:
    """That Poisson sampling at this rate draws as many of (T, n) in all."""
    law = stats.binom(drawn.size, rate)
    total = int(drawn.sum())
    return two_sided(float(law.cdf(total)), float(law.sf(total - 1)))


def of_spread(drawn: npt.NDArray[np.bool_], rate: float, axis: int) -> float:
    """That counts along ``axis`` of (T, n) spread as they do, each being a binomial draw.

    ``axis`` 1: sizes of the steps' draws (a fixed batch size does not spread at all); 0: how often each
    person was drawn (a shuffled epoch gives everybody the same).
    """
    counts = drawn.sum(axis=axis)
    trials = drawn.shape[axis]
    variance = trials * rate * (1 - rate)
    squares = float(((counts - trials * rate) ** 2).sum() / variance)
    # Its mean and variance are exact for binomial counts; its law is taken as the Gamma law that has them,
    # which is the chi-square law where counts are large.
    kurtosis = 3 + (1 - 6 * rate * (1 - rate)) / variance
    law = stats.gamma(len(counts) / (kurtosis - 1), scale=kurtosis - 1)
    return two_sided(float(law.cdf(squares)), float(law.sf(squares)))
