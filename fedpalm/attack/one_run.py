"""What guesses about canaries in one training run prove about epsilon.

Every canary is put in or left out by a fair coin. The auditor sees what the run released and guesses
some of the coins. Under (epsilon, delta)-DP, add/remove, the number of right guesses is at most about
Binomial(guesses, e^epsilon / (1 + e^epsilon)); more of them refute the claim.

Source: Steinke, Nasr, Jagielski 2023, "Privacy Auditing with One (1) Training Run", arXiv:2305.08846,
theorem 5.2 and appendix D.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

_GREATEST = 64.0
"""Epsilon up to which a bound is looked for."""


class Guesses(NamedTuple):
    """Of ``canaries`` coins, ``made`` were guessed and ``right`` of those guesses are true."""

    canaries: int
    made: int
    right: int


def guess(scores: npt.NDArray[np.float64], included: npt.NDArray[np.bool_], each: int) -> Guesses:
    """Guess "in" for the ``each`` highest scores, "out" for the ``each`` lowest, and abstain between.

    Args:
        scores: (m,) the higher, the more a canary looks included.
        included: (m,) the coins.
        each: fixed before the run: the bound holds for one number of guesses.
    """
    order = np.argsort(scores, kind="stable")
    out, into = order[:each], order[len(order) - each :]
    right = int((~included[out]).sum() + included[into].sum())
    return Guesses(len(scores), 2 * each, right)


def p_value(found: Guesses, epsilon: float, delta: float) -> float:
    """The chance of so many right guesses under (epsilon, delta)-DP is at most this."""
    m, r, v = found
    if not 0 <= v <= r <= m or epsilon < 0 or not 0 <= delta <= 1:
        raise ValueError(f"{found}, epsilon {epsilon}, delta {delta}: out of range")
    law = stats.binom(r, 1 / (1 + math.exp(-epsilon)))
    bound = float(law.sf(v - 1))
    if v > 0 and delta > 0:
        fewer = np.arange(1, v + 1)
        within = np.cumsum(law.pmf(v - fewer))  # P[v - i <= W < v]
        bound += 2 * m * delta * float((within / fewer).max())
    return min(bound, 1.0)


def epsilon_at_least(found: Guesses, delta: float, confidence: float) -> float:
    """The epsilon that the run has at least, with this confidence; 0 if nothing is proved."""
    refuted, possible = 0.0, _GREATEST
    if p_value(found, 0.0, delta) > 1 - confidence:
        return 0.0
    for _ in range(50):
        middle = (refuted + possible) / 2
        if p_value(found, middle, delta) <= 1 - confidence:
            refuted = middle
        else:
            possible = middle
    return refuted
