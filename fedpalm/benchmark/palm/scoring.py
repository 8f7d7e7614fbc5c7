"""Figures of the closed and the open set: a report a site, and the mean of the sites with its interval.

The sites' people are drawn anew site by site, by the seed and the site's place alone; so two variants
of one seed are resampled alike, and the difference of their draws is a paired one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ...canonical import domain_hash
from ...data.loading import Trial
from ...evaluation.bootstrap import eer_resamples
from ...evaluation.metrics import auc_of, d_prime, eer, eer_of, fnmr_at_fmr_of, roc
from ...evaluation.pairs import ScoreSet, score_pairs
from ...methods.base import SiteMethod
from .data import Images, SiteData

CONFIDENCE = 0.95
SETS = ("closed", "open")
FMR_LEVELS = (0.01, 0.001)
Draws = npt.NDArray[np.float64]


def scores(site: SiteMethod, trial: Trial, shared: Images, which: str) -> ScoreSet:
    """Every probe against every gallery image, by the model that the site uses for that set.

    Raises:
        DataError: templates are not finite.
    """
    embed = site.closed_templates if which == "closed" else site.open_templates
    both = embed(np.concatenate([trial.gallery, trial.probe]), shared)
    rows = len(trial.gallery)
    return score_pairs(both[:rows], trial.gallery_labels, both[rows:], trial.probe_labels)


def mean_open_eer(
    sites: Mapping[str, SiteMethod], data: Mapping[str, SiteData], shared: Images
) -> float:
    """Mean over the sites, 0..1."""
    found = [scores(site, data[name].open, shared, "open") for name, site in sites.items()]
    return float(np.mean([eer(one.genuine, one.impostor) for one in found]))


def figures(
    by_site: Mapping[str, ScoreSet], which: str, seed: int, resamples: int
) -> dict[str, Any]:
    """``mean`` over the sites, ``sites`` one by one, ``draws`` (resamples,) of the mean EER."""
    names = sorted(by_site)
    drawn = np.stack(
        [
            eer_resamples(by_site[name], seed=_seed(seed, which, name), resamples=resamples)
            for name in names
        ]
    )
    sites = {
        name: _site_figures(by_site[name], draws) for name, draws in zip(names, drawn, strict=True)
    }
    genuine = sum(one.genuine.size for one in by_site.values())
    # Seven digits: far below an interval's width, and a file that people can read.
    draws = np.round(drawn.mean(axis=0), 7)
    mean = {key: float(np.mean([sites[name][key] for name in names])) for key in ("eer", "auc")}
    return {
        "mean": {
            **mean,
            "interval": interval(draws, genuine),
            "rank1": float(np.mean([sites[name]["rank1"] for name in names])),
            "genuine_pairs": genuine,
            "impostor_pairs": sum(one.impostor.size for one in by_site.values()),
        },
        "sites": sites,
        "draws": draws.tolist(),
    }


def interval(draws: Draws, genuine_pairs: int) -> list[float]:
    """[low, high], 95 %; where no draw shows an error, up to 3 / genuine pairs (rule of three)."""
    if not np.any(draws):
        return [0.0, min(1.0, 3.0 / genuine_pairs)]
    return difference(draws)


def difference(draws: Draws) -> list[float]:
    """[low, high], 95 %, of draws of either sign."""
    tail = (1 - CONFIDENCE) / 2
    return [float(one) for one in np.quantile(draws, [tail, 1 - tail])]


def pack(by_set: Mapping[str, Mapping[str, ScoreSet]]) -> dict[str, npt.NDArray[Any]]:
    """Score sets of one site each as arrays; scores rounded to float16, identities uint16."""
    return {
        f"{which}/{name}/{part}": array
        for which, by_site in by_set.items()
        for name, one in by_site.items()
        for part, array in (
            ("genuine", one.genuine.astype(np.float16)),
            ("genuine_identity", one.genuine_identity.astype(np.uint16)),
            ("impostor", one.impostor.astype(np.float16)),
            ("impostor_identities", one.impostor_identities.astype(np.uint16)),
        )
    }


def mean_curve(
    packed: Sequence[tuple[npt.NDArray[Any], npt.NDArray[Any]]], points: int = 200
) -> tuple[Draws, Draws]:
    """(FMR, FNMR): the sites' mean FNMR at equal FMR, of (genuine, impostor) scores a site.

    Vertical averaging: Fawcett 2006, doi 10.1016/j.patrec.2005.10.010.
    """
    curves = [roc(genuine.astype(float), impostor.astype(float)) for genuine, impostor in packed]
    least = min(1.0 / impostor.size for _, impostor in packed)
    grid = np.geomspace(least, 1.0, points)
    rows = [np.interp(grid, curve.fmr, curve.fnmr) for curve in curves]
    return grid, np.mean(rows, axis=0)


def _site_figures(one: ScoreSet, draws: Draws) -> dict[str, Any]:
    curve, impostors = roc(one.genuine, one.impostor), one.impostor.size
    return {
        "eer": eer_of(curve),
        "interval": interval(draws, one.genuine.size),
        "auc": auc_of(curve),
        "rank1": one.rank1_hits / one.rank1_probes,
        "d_prime": d_prime(one.genuine, one.impostor),
        "fnmr_at": {repr(fmr): fnmr_at_fmr_of(curve, impostors, fmr) for fmr in FMR_LEVELS},
        "identities": one.identities,
        "genuine_pairs": one.genuine.size,
        "impostor_pairs": impostors,
    }


def _seed(seed: int, which: str, site: str) -> int:
    digest = domain_hash("bench-draws/v1", str(seed).encode(), which.encode(), site.encode())
    return int.from_bytes(digest[:8], "big")
