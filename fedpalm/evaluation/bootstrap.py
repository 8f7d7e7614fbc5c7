"""Confidence intervals by resampling identities.

Scores that share a person are not independent; resampling single scores would make intervals far too
narrow. So identities are drawn with replacement, within their site, and a pair counts as often as
its identities were drawn: a genuine pair m times, an impostor pair m_gallery x m_probe times (two
draws of one identity are never impostors of each other). Bolle, Ratha and Pankanti 2004,
doi 10.1016/j.cviu.2003.08.002 (subsets bootstrap).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..errors import DataError
from .metrics import crossing
from .pairs import ScoreSet


def eer_interval(
    scores: ScoreSet, *, seed: int, resamples: int = 200, confidence: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of the EER, 0..1; deterministic in ``seed``.

    Resampling pairs without an error shows none either, and would claim certainty: the upper end is
    then the rule of three, 3 / genuine pairs (ISO/IEC 19795-1, annex B; pairs of one person are not
    independent, so even that is on the short side).

    Raises:
        DataError: ``confidence`` outside (0, 1), or as :func:`eer_resamples`.
    """
    if not 0.0 < confidence < 1.0:
        raise DataError("an interval needs a confidence in (0, 1)")
    tail = (1.0 - confidence) / 2
    drawn = eer_resamples(scores, seed=seed, resamples=resamples)
    if not drawn.any():
        return 0.0, min(1.0, 3.0 / len(scores.genuine))
    low, high = np.quantile(drawn, [tail, 1.0 - tail])
    return float(low), float(high)


def eer_resamples(scores: ScoreSet, *, seed: int, resamples: int = 200) -> npt.NDArray[np.float64]:
    """(resamples,) EERs, one for each draw of identities.

    Draws depend on ``seed`` and the identities alone, so several models scored on the same pairs are
    resampled alike. Time is O(resamples x pairs), the scores are sorted once.

    Raises:
        DataError: ``resamples`` < 1, or too few identities to draw genuine and impostor pairs.
    """
    if resamples < 1:
        raise DataError("an interval needs one resample or more")
    rng = np.random.Generator(np.random.Philox(seed))
    levels = _Levels(scores)
    return np.array([levels.eer(draw_identities(scores, rng)) for _ in range(resamples)])


def rate_intervals(
    scores: ScoreSet,
    threshold: float,
    *,
    seed: int,
    resamples: int = 200,
    confidence: float = 0.95,
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Percentile intervals of FMR and FNMR at a fixed threshold, each 0..1; deterministic in ``seed``.

    Where no resample shows an error the upper end is the rule of three, as in :func:`eer_interval`.

    Raises:
        DataError: as :func:`eer_interval`.
    """
    if not 0.0 < confidence < 1.0 or resamples < 1:
        raise DataError("an interval needs a confidence in (0, 1) and one resample or more")
    rng = np.random.Generator(np.random.Philox(seed))
    falsely = scores.impostor >= threshold
    missed = scores.genuine < threshold
    drawn = np.empty((resamples, 2))
    for at in range(resamples):
        times = draw_identities(scores, rng)
        of_impostor = times[scores.impostor_identities].prod(axis=1)
        of_genuine = times[scores.genuine_identity]
        drawn[at] = (
            of_impostor[falsely].sum() / of_impostor.sum(),
            of_genuine[missed].sum() / of_genuine.sum(),
        )
    tail = (1.0 - confidence) / 2
    fmr, fnmr = (
        (0.0, min(1.0, 3.0 / pairs))
        if not rates.any()
        else (float(np.quantile(rates, tail)), float(np.quantile(rates, 1.0 - tail)))
        for rates, pairs in zip(drawn.T, (len(falsely), len(missed)), strict=True)
    )
    return fmr, fnmr


def draw_identities(scores: ScoreSet, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """How often each identity was drawn, (identities,), both kinds of pair among the drawn.

    A genuine pair then counts as often as its identity, an impostor pair the product of both.

    A draw without either kind has no EER and is made again. That ends: a score set holds a genuine
    and an impostor pair, which need three identities at most, and every draw has a fair chance
    (2/9 in the worst case) of holding three given ones.
    """
    pairs = scores.impostor_identities
    while True:
        times = np.zeros(scores.identities)
        for site in np.unique(scores.site_of_identity):
            members = np.flatnonzero(scores.site_of_identity == site)
            picks = rng.integers(0, len(members), len(members))
            times[members] += np.bincount(picks, minlength=len(members))
        if times[scores.genuine_identity].any() and (times[pairs[:, 0]] * times[pairs[:, 1]]).any():
            return times


class _Levels:
    """The distinct scores in falling order, and the weighted rates at each."""

    def __init__(self, scores: ScoreSet) -> None:
        self._genuine_order = np.argsort(-scores.genuine, kind="stable")
        self._impostor_order = np.argsort(-scores.impostor, kind="stable")
        genuine = -scores.genuine[self._genuine_order]
        impostor = -scores.impostor[self._impostor_order]
        levels = np.unique(np.concatenate([genuine, impostor]))
        # How many scores are at or above each level: where to read the running sums.
        self._genuine_count = np.concatenate([[0], np.searchsorted(genuine, levels, "right")])
        self._impostor_count = np.concatenate([[0], np.searchsorted(impostor, levels, "right")])
        self._genuine_identity = scores.genuine_identity[self._genuine_order]
        self._gallery = scores.impostor_identities[self._impostor_order, 0]
        self._probe = scores.impostor_identities[self._impostor_order, 1]

    def eer(self, times: npt.NDArray[np.float64]) -> float:
        matched = _running(times[self._genuine_identity])
        falsely = _running(times[self._gallery] * times[self._probe])
        return crossing(
            falsely[self._impostor_count] / falsely[-1],
            1.0 - matched[self._genuine_count] / matched[-1],
        )


def _running(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(n + 1,) sums of the first 0, 1, ... n weights."""
    total: npt.NDArray[np.float64] = np.concatenate([[0.0], np.cumsum(weights)])
    return total
