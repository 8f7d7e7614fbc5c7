"""Can protected templates of one person, made under two keys, be told to be one person's?

From scores s of pairs made under different keys, mated (one person) and non-mated (two), as ISO/IEC
30136 asks for it. With the likelihood ratio LR(s) = p(s | mated) / p(s | non-mated) and the prior ratio
omega = P(mated) / P(non-mated),

    D(s) = max(0, 2 omega LR(s) / (1 + omega LR(s)) - 1),    D_sys = sum over s of P(s | mated) D(s)

D(s) = 1 where only mated pairs score. 0: unlinkable by this score; 1: fully linkable. What another
comparison of the same templates could tell is not measured.

Densities are histograms of equal bins from the least to the greatest of all scores, one tenth as many as
there are mated scores, but 10 to 100. Empty of both: D = 0. From samples D_sys is too high rather than
too low, as chance makes LR uneven; :func:`chance_level` says by how much.

Source: Gomez-Barrero et al. 2018, IEEE TIFS 13(6), doi 10.1109/TIFS.2017.2788000.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import DataError
from .bootstrap import draw_identities
from .metrics import check_scores
from .pairs import ScoreSet

Scores = npt.NDArray[np.float64]
MIN_BINS, MAX_BINS, MATED_A_BIN = 10, 100, 10


@dataclass(frozen=True)
class Linkability:
    """By bin: ``edges`` (B + 1,); ``mated``, ``non_mated`` (B,) parts of the scores, ``local`` (B,) D."""

    edges: Scores
    mated: Scores
    non_mated: Scores
    local: Scores

    @property
    def d_sys(self) -> float:
        """0..1."""
        return _global(self.mated, self.local)


def linkability(
    mated: Scores, non_mated: Scores, *, omega: float = 1.0, bins: int | None = None
) -> Linkability:
    """D by score, and from it D_sys.

    Args:
        mated: (G,) and ``non_mated`` (I,) scores of pairs under different keys.
        omega: prior ratio; 1, mated and non-mated alike likely, is the usual one.
        bins: left out, one tenth of G, 10 to 100.
    Raises:
        DataError: no scores of one kind, one that is not finite, omega not above 0, or no bin.
    """
    edges = _edges(mated, non_mated, bins)
    parts = [_parts(_places(one, edges), None, len(edges) - 1) for one in (mated, non_mated)]
    return Linkability(edges, parts[0], parts[1], _local(parts[0], parts[1], omega))


def d_sys(
    mated: Scores, non_mated: Scores, *, omega: float = 1.0, bins: int | None = None
) -> float:
    """:attr:`Linkability.d_sys` of :func:`linkability`; raises as that does."""
    return linkability(mated, non_mated, omega=omega, bins=bins).d_sys


def d_sys_interval(
    scores: ScoreSet,
    *,
    seed: int,
    omega: float = 1.0,
    resamples: int = 200,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval of D_sys over draws of identities (:mod:`.bootstrap`), in bins that stay.

    Where mated and non-mated pairs score alike, both ends lie above the value: a draw holds fewer
    people than the sample and adds chance of its own, which makes D_sys higher.

    Raises:
        DataError: as :func:`linkability`, ``confidence`` outside (0, 1) or ``resamples`` < 1.
    """
    if not 0.0 < confidence < 1.0 or resamples < 1:
        raise DataError("an interval needs a confidence in (0, 1) and one resample or more")
    edges = _edges(scores.genuine, scores.impostor, None)
    count = len(edges) - 1
    mated_at, others_at = _places(scores.genuine, edges), _places(scores.impostor, edges)
    rng = np.random.Generator(np.random.Philox(seed))
    drawn = []
    for _ in range(resamples):
        times = draw_identities(scores, rng)
        pairs = scores.impostor_identities
        mated = _parts(mated_at, times[scores.genuine_identity], count)
        others = _parts(others_at, times[pairs[:, 0]] * times[pairs[:, 1]], count)
        drawn.append(_global(mated, _local(mated, others, omega)))
    tail = (1.0 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1.0 - tail])
    return float(low), float(high)


def chance_level(scores: ScoreSet, *, omega: float = 1.0, repeats: int = 20) -> tuple[float, float]:
    """(mean, greatest) D_sys where nothing links: other pairs of people in the place of the mated.

    As many people as there are take part: each is paired with the one ``n`` places on at the same site,
    n = 1, 2, ..., and what those pairs score is taken for mated. So it has as many people's scores,
    which hang together in the same way, as the mated ones.

    Raises:
        DataError: as :func:`linkability`, or a site has fewer than three people.
    """
    place, people = _numbered_by_site(scores)
    if people.min() < 3:
        raise DataError("a chance level needs three people or more at every site")
    edges = _edges(scores.genuine, scores.impostor, None)
    count, at = len(edges) - 1, _places(scores.impostor, edges)
    gallery, probe = scores.impostor_identities.T
    step = (place[probe] - place[gallery]) % people[gallery]
    found = []
    for n in range(1, min(repeats, int(people.min()) - 1) + 1):
        taken, others = (_parts(at[one], None, count) for one in (step == n, step != n))
        found.append(_global(taken, _local(taken, others, omega)))
    return float(np.mean(found)), float(np.max(found))


def _edges(mated: Scores, non_mated: Scores, bins: int | None) -> Scores:
    check_scores(mated, non_mated)
    count = bins if bins is not None else min(MAX_BINS, max(MIN_BINS, mated.size // MATED_A_BIN))
    if count < 1:
        raise DataError(f"{count} bins: a histogram needs one or more")
    low = min(mated.min(), non_mated.min())
    high = max(mated.max(), non_mated.max())
    return np.linspace(low, high, count + 1)


def _places(scores: Scores, edges: Scores) -> npt.NDArray[np.intp]:
    """(n,) bin of each score: from its lower edge on, the last one up to its upper edge."""
    return np.clip(np.searchsorted(edges, scores, "right") - 1, 0, len(edges) - 2)


def _parts(places: npt.NDArray[np.intp], weights: Scores | None, count: int) -> Scores:
    """(count,) part of the weight in each bin."""
    found = np.bincount(places, weights, minlength=count).astype(np.float64)
    return np.asarray(found / found.sum())


def _local(mated: Scores, non_mated: Scores, omega: float) -> Scores:
    """D by bin: 2 omega LR / (1 + omega LR) - 1 with the fractions cleared."""
    if not 0.0 < omega < np.inf:
        raise DataError(f"omega {omega} is not a ratio of priors: it must be above 0")
    weighed, total = omega * mated - non_mated, omega * mated + non_mated
    return np.divide(np.maximum(weighed, 0.0), total, out=np.zeros_like(total), where=total > 0)


def _global(mated: Scores, local: Scores) -> float:
    return min(1.0, float(mated @ local))


def _numbered_by_site(
    scores: ScoreSet,
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """(identities,) number of each within its site, and how many its site has."""
    _, index, counts = np.unique(scores.site_of_identity, return_inverse=True, return_counts=True)
    place = np.empty(len(index), dtype=np.intp)
    firsts = np.repeat(np.cumsum(counts) - counts, counts)
    place[np.argsort(index, kind="stable")] = np.arange(len(index)) - firsts
    return place, counts[index]
