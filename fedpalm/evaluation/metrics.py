"""Error rates of a verification experiment, in the words of ISO/IEC 19795-1.

A comparison matches if its score is at or above the threshold. FMR: part of the impostor
comparisons that match. FNMR: part of the genuine comparisons that do not. Equal scores are decided
together, so ties cost what they must and no order of input matters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_curve

from ..errors import DataError

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Roc:
    """Operating points by falling threshold: ``thresholds``, ``fmr``, ``fnmr``, each (T,).

    The first threshold is infinite (FMR 0, FNMR 1); at the last, everything matches (FMR 1, FNMR 0).
    """

    thresholds: Scores
    fmr: Scores
    fnmr: Scores


def roc(genuine: Scores, impostor: Scores) -> Roc:
    """All operating points, one for each distinct score.

    Raises:
        DataError: no genuine or no impostor score, or one that is not finite.
    """
    check_scores(genuine, impostor)
    truth = np.concatenate([np.ones(genuine.size), np.zeros(impostor.size)])
    scores = np.concatenate([genuine, impostor]).astype(np.float64)
    fmr, gmr, thresholds = roc_curve(truth, scores, drop_intermediate=False)
    return Roc(thresholds, fmr, 1.0 - gmr)


def eer_of(curve: Roc) -> float:
    """Where FMR = FNMR on the straight lines between operating points, 0..1."""
    return float(crossing(curve.fmr, curve.fnmr))


def crossing(fmr: Scores, fnmr: Scores) -> float:
    """The common value where rising ``fmr`` meets falling ``fnmr``; both (T,), from (0, 1) to (1, 0)."""
    gap = fnmr - fmr
    after = int(np.argmax(gap <= 0.0))
    above, below = gap[after - 1], gap[after]
    part = above / (above - below)
    return float(fmr[after - 1] + part * (fmr[after] - fmr[after - 1]))


def eer(genuine: Scores, impostor: Scores) -> float:
    """Equal error rate, interpolated on the ROC, 0..1. Raises DataError as :func:`roc`."""
    return eer_of(roc(genuine, impostor))


def auc_of(curve: Roc) -> float:
    """Area under the ROC: the chance that a genuine score beats an impostor's, a tie counting half."""
    return float(np.trapezoid(1.0 - curve.fnmr, curve.fmr))


def auc(genuine: Scores, impostor: Scores) -> float:
    """Area under the ROC, 0..1. Raises DataError as :func:`roc`."""
    return auc_of(roc(genuine, impostor))


def fnmr_at_fmr_of(curve: Roc, impostors: int, fmr: float) -> float | None:
    """FNMR at the most lenient threshold whose FMR is at most ``fmr``; no interpolation.

    None if fewer than 3 / ``fmr`` impostor comparisons were made: by the rule of three, seeing no
    false match in n comparisons bounds the FMR (95 %) at 3 / n only.

    Raises:
        DataError: ``fmr`` is not in (0, 1].
    """
    if not 0.0 < fmr <= 1.0:
        raise DataError(f"FMR {fmr} is not in (0, 1]")
    if impostors * fmr < 3.0 - 1e-9:
        return None
    return float(curve.fnmr[curve.fmr <= fmr].min())


def least_threshold(curve: Roc, fmr: float) -> tuple[float, float, float]:
    """The most lenient threshold whose FMR is at most ``fmr``: (threshold, FMR there, FNMR there).

    A threshold that no score reaches (infinite) becomes the least float above every score.

    Raises:
        DataError: ``fmr`` is not in (0, 1].
    """
    if not 0.0 < fmr <= 1.0:
        raise DataError(f"FMR {fmr} is not in (0, 1]")
    at = int(np.flatnonzero(curve.fmr <= fmr)[-1])
    threshold = float(curve.thresholds[at])
    if not np.isfinite(threshold):
        threshold = float(np.nextafter(curve.thresholds[1], np.inf))
    return threshold, float(curve.fmr[at]), float(curve.fnmr[at])


def fnmr_at_fmr(genuine: Scores, impostor: Scores, fmr: float) -> float | None:
    """:func:`fnmr_at_fmr_of` of the scores' ROC."""
    return fnmr_at_fmr_of(roc(genuine, impostor), impostor.size, fmr)


def d_prime(genuine: Scores, impostor: Scores) -> float | None:
    """Distance of the means over the pooled deviation, sqrt((var_g + var_i) / 2).

    None if all genuine scores are equal and all impostor scores are: the ratio has no value then.
    """
    check_scores(genuine, impostor)
    if np.ptp(genuine) == 0.0 and np.ptp(impostor) == 0.0:
        return None
    spread = np.sqrt((np.var(genuine) + np.var(impostor)) / 2)
    return float((np.mean(genuine) - np.mean(impostor)) / spread)


def check_scores(genuine: Scores, impostor: Scores) -> None:
    """Raises DataError: no genuine or no impostor score, or one that is not finite."""
    for scores, what in ((genuine, "genuine"), (impostor, "impostor")):
        if scores.ndim != 1 or scores.size == 0:
            raise DataError(
                f"there are no {what} scores", next_step="compare two identities or more"
            )
        if not np.isfinite(scores).all():
            raise DataError(f"a score of a {what} pair is not finite")
