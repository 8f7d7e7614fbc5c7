"""From templates to the figures of the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from ...data.loading import Trial
from ...evaluation.bootstrap import eer_resamples
from ...evaluation.metrics import eer
from ...evaluation.pairs import ScoreSet, score_pairs
from ...evaluation.report import VerificationReport
from .figures import Curve, Estimate

CONFIDENCE = 0.95
RESAMPLES = 200
_GRID_POINTS = 120

Embed = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]
"""(N, 1, 128, 128) images to (N, D) templates."""


def scores_of(trial: Trial, embed: Embed) -> ScoreSet:
    """Every probe against every gallery image."""
    return score_pairs(
        embed(trial.gallery), trial.gallery_labels, embed(trial.probe), trial.probe_labels
    )


def eer_only(trial: Trial, embed: Embed) -> float:
    scores = scores_of(trial, embed)
    return eer(scores.genuine, scores.impostor)


def estimate_of(report: VerificationReport) -> Estimate:
    low, high = report.eer_interval
    return Estimate(
        eer=report.eer,
        low=low,
        high=high,
        genuine=report.genuine_pairs,
        impostor=report.impostor_pairs,
    )


def curve_of(report: VerificationReport) -> Curve:
    return Curve(
        fmr=tuple(fmr for fmr, _ in report.roc), fnmr=tuple(fnmr for _, fnmr in report.roc)
    )


def mean_estimate(models: Sequence[ScoreSet], seed: int) -> Estimate:
    """Mean EER of several models on the same pairs; people are drawn alike for all of them."""
    drawn = np.mean([eer_resamples(s, seed=seed, resamples=RESAMPLES) for s in models], axis=0)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Estimate(
        eer=float(np.mean([eer(s.genuine, s.impostor) for s in models])),
        low=float(low),
        high=float(high),
        genuine=models[0].genuine.size,
        impostor=models[0].impostor.size,
    )


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Mean FNMR at equal FMR (vertical averaging; Fawcett 2006, doi 10.1016/j.patrec.2005.10.010)."""
    least = min(fmr for curve in curves for fmr in curve.fmr if fmr > 0)
    grid = np.geomspace(least, 1.0, _GRID_POINTS)
    fnmr = np.mean([np.interp(grid, curve.fmr, curve.fnmr) for curve in curves], axis=0)
    return Curve(fmr=tuple(map(float, grid)), fnmr=tuple(map(float, fnmr)))
