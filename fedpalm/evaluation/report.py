"""What one verification experiment shows, as a value that goes into ``report.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DataError
from .bootstrap import eer_interval
from .metrics import Roc, auc_of, d_prime, eer_of, fnmr_at_fmr_of, roc
from .pairs import Labels, ScoreSet, score_pairs

FMR_LEVELS = (0.01, 0.001)
MAX_CURVE_POINTS = 200


@dataclass(frozen=True)
class VerificationReport:
    """Rates 0..1. ``eer_interval`` is the 95 % bootstrap interval over identities.

    ``fnmr_at`` maps an FMR to the FNMR there, None where the impostor pairs are too few to tell;
    ``d_prime`` is None for constant scores. ``roc`` holds at most 200 (FMR, FNMR) points by rising
    FMR, dense in both tails.
    """

    eer: float
    eer_interval: tuple[float, float]
    auc: float
    fnmr_at: Mapping[float, float | None]
    rank1: float
    d_prime: float | None
    identities: int
    genuine_pairs: int
    impostor_pairs: int
    roc: tuple[tuple[float, float], ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "eer": self.eer,
            "eer_interval": list(self.eer_interval),
            "auc": self.auc,
            "fnmr_at": {repr(fmr): fnmr for fmr, fnmr in self.fnmr_at.items()},
            "rank1": self.rank1,
            "d_prime": self.d_prime,
            "identities": self.identities,
            "genuine_pairs": self.genuine_pairs,
            "impostor_pairs": self.impostor_pairs,
            "roc": [list(point) for point in self.roc],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> VerificationReport:
        """Inverse of :meth:`to_json`. Raises DataError on anything malformed."""
        try:
            low, high = (float(v) for v in value["eer_interval"])
            return cls(
                eer=float(value["eer"]),
                eer_interval=(low, high),
                auc=float(value["auc"]),
                fnmr_at=MappingProxyType(
                    {float(k): _optional(v) for k, v in value["fnmr_at"].items()}
                ),
                rank1=float(value["rank1"]),
                d_prime=_optional(value["d_prime"]),
                identities=int(value["identities"]),
                genuine_pairs=int(value["genuine_pairs"]),
                impostor_pairs=int(value["impostor_pairs"]),
                roc=tuple((float(fmr), float(fnmr)) for fmr, fnmr in value["roc"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"malformed verification report: {error!r}") from error


def evaluate_templates(
    gallery: npt.NDArray[np.floating],
    gallery_labels: Labels,
    probe: npt.NDArray[np.floating],
    probe_labels: Labels,
    *,
    seed: int,
    resamples: int = 200,
) -> VerificationReport:
    """Compare every probe with every gallery template and report.

    Args:
        gallery, probe: (N, D) and (M, D) templates; labels (N,) and (M,) of one numbering.
        seed: of the bootstrap.
    Raises:
        DataError: as :func:`score_pairs` and :func:`eer_interval`.
    """
    scores = score_pairs(gallery, gallery_labels, probe, probe_labels)
    return evaluate_scores(scores, seed=seed, resamples=resamples)


def evaluate_scores(scores: ScoreSet, *, seed: int, resamples: int = 200) -> VerificationReport:
    """Report on one score set: a site's, or several sites' under one threshold (``pool_scores``)."""
    curve = roc(scores.genuine, scores.impostor)
    impostors = scores.impostor.size
    return VerificationReport(
        eer=eer_of(curve),
        eer_interval=eer_interval(scores, seed=seed, resamples=resamples),
        auc=auc_of(curve),
        fnmr_at=MappingProxyType(
            {fmr: fnmr_at_fmr_of(curve, impostors, fmr) for fmr in FMR_LEVELS}
        ),
        rank1=scores.rank1_hits / scores.rank1_probes,
        d_prime=d_prime(scores.genuine, scores.impostor),
        identities=scores.identities,
        genuine_pairs=scores.genuine.size,
        impostor_pairs=impostors,
        roc=_thin(curve),
    )


def _thin(curve: Roc) -> tuple[tuple[float, float], ...]:
    """At most MAX_CURVE_POINTS points, both ends kept.

    A third follow the length of the curve, the others are even in log FMR and log FNMR, so that ROC
    and DET plots keep their tails.
    """
    fmr, fnmr = curve.fmr, curve.fnmr
    last = fmr.size - 1
    keep = np.arange(fmr.size)
    if fmr.size > MAX_CURVE_POINTS:
        share = (MAX_CURVE_POINTS - 2) // 3
        travelled = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(fmr)) + np.abs(np.diff(fnmr)))])
        by_length = np.searchsorted(travelled, np.linspace(0.0, 2.0, share))
        by_fmr = np.searchsorted(fmr, _log_grid(fmr, share))
        by_fnmr = np.searchsorted(-fnmr, -_log_grid(fnmr, share))
        keep = np.unique(np.clip(np.concatenate([[0, last], by_length, by_fmr, by_fnmr]), 0, last))
    return tuple((float(fmr[k]), float(fnmr[k])) for k in keep)


def _log_grid(rates: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.float64]:
    # 1 - x leaves rounding dust where the rate is 0; it is no tail.
    return np.geomspace(rates[rates > 1e-12].min(), 1.0, count)


def _optional(value: Any) -> float | None:
    return None if value is None else float(value)
