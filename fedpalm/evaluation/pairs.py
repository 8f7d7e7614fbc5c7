"""Every probe against every gallery template: genuine and impostor scores.

The score is cosine similarity, higher is more alike. The paper compares by the angular distance
arccos(cosine) / pi; that is a strictly falling function of the cosine, so every threshold of one has
a threshold of the other with the same decisions, and FMR, FNMR, EER, AUC and rank are the same.
(d' depends on the scale; it is d' of cosines here.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import DataError

Scores = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ScoreSet:
    """Scores of one or more sites, with the identities behind them.

    ``genuine`` (G,) and ``genuine_identity`` (G,) index 0..identities-1; ``impostor`` (I,) and
    ``impostor_identities`` (I, 2) gallery and probe identity; ``site_of_identity`` (identities,)
    the site that holds each. ``rank1_hits`` of ``rank1_probes`` probes were identified at rank 1.
    """

    genuine: Scores
    genuine_identity: npt.NDArray[np.int32]
    impostor: Scores
    impostor_identities: npt.NDArray[np.int32]
    site_of_identity: npt.NDArray[np.int32]
    rank1_hits: int
    rank1_probes: int

    @property
    def identities(self) -> int:
        return len(self.site_of_identity)


def score_pairs(
    gallery: npt.NDArray[np.floating],
    gallery_labels: Labels,
    probe: npt.NDArray[np.floating],
    probe_labels: Labels,
) -> ScoreSet:
    """Compare all probes with all gallery templates.

    Args:
        gallery: (N, D) templates, L2-normalised here; probe: (M, D) likewise.
        gallery_labels: (N,) identities; probe_labels: (M,) of the same numbering.
    Raises:
        DataError: shapes disagree, a template is zero or not finite, or there is no genuine or no
            impostor pair.
    """
    rows, columns = _unit(gallery, gallery_labels, "gallery"), _unit(probe, probe_labels, "probe")
    if rows.shape[1] != columns.shape[1]:
        raise DataError(
            f"gallery has {rows.shape[1]} features a template, probe {columns.shape[1]}"
        )
    return score_set(np.clip(columns @ rows.T, -1.0, 1.0), gallery_labels, probe_labels)


def score_set(scores: Scores, gallery_labels: Labels, probe_labels: Labels) -> ScoreSet:
    """Scores that any comparison gave, (M, N) for each of M probes with each of N gallery templates.

    Raises:
        DataError: there is no genuine or no impostor pair.
    """
    names, index = np.unique(np.concatenate([gallery_labels, probe_labels]), return_inverse=True)
    of_gallery = index[: len(gallery_labels)].astype(np.int32)
    of_probe = index[len(gallery_labels) :].astype(np.int32)
    mated = of_probe[:, None] == of_gallery[None, :]
    if not mated.any() or mated.all():
        missing = "impostor" if mated.all() else "genuine"
        raise DataError(
            f"gallery and probe form no {missing} pair",
            next_step="compare two identities or more that are in both gallery and probe",
        )
    probe_at, gallery_at = np.nonzero(~mated)
    hits, probes = rank1_counts(scores, mated)
    return ScoreSet(
        genuine=scores[mated],
        genuine_identity=of_probe[np.nonzero(mated)[0]],
        impostor=scores[~mated],
        impostor_identities=np.stack([of_gallery[gallery_at], of_probe[probe_at]], axis=1),
        site_of_identity=np.zeros(len(names), dtype=np.int32),
        rank1_hits=hits,
        rank1_probes=probes,
    )


def rank1_counts(scores: Scores, mated: npt.NDArray[np.bool_]) -> tuple[int, int]:
    """(identified at rank 1, probes with a mate in the gallery) of (M, N) scores.

    A probe is identified if its best mate scores above every other identity; a tie is a miss.
    """
    best_mate = np.where(mated, scores, -np.inf).max(axis=1)
    best_other = np.where(mated, -np.inf, scores).max(axis=1)
    has_mate = mated.any(axis=1)
    return int((best_mate[has_mate] > best_other[has_mate]).sum()), int(has_mate.sum())


def pool_scores(sets: Sequence[ScoreSet]) -> ScoreSet:
    """Scores of several sites under one threshold; impostor pairs stay within a site.

    Raises:
        DataError: nothing to pool.
    """
    if not sets:
        raise DataError("there are no score sets to pool")
    shift = np.cumsum([0] + [s.identities for s in sets])[:-1]
    site_shift = np.cumsum([0] + [int(s.site_of_identity.max()) + 1 for s in sets])[:-1]
    return ScoreSet(
        genuine=np.concatenate([s.genuine for s in sets]),
        genuine_identity=_concatenate_int(
            [s.genuine_identity + d for s, d in zip(sets, shift, strict=True)]
        ),
        impostor=np.concatenate([s.impostor for s in sets]),
        impostor_identities=_concatenate_int(
            [s.impostor_identities + d for s, d in zip(sets, shift, strict=True)]
        ),
        site_of_identity=_concatenate_int(
            [s.site_of_identity + d for s, d in zip(sets, site_shift, strict=True)]
        ),
        rank1_hits=sum(s.rank1_hits for s in sets),
        rank1_probes=sum(s.rank1_probes for s in sets),
    )


def _concatenate_int(parts: list[npt.NDArray[np.int32]]) -> npt.NDArray[np.int32]:
    return np.concatenate(parts).astype(np.int32)


def _unit(templates: npt.NDArray[np.floating], labels: Labels, what: str) -> Scores:
    """(N, D) float64 rows of length 1."""
    if templates.ndim != 2 or labels.shape != (len(templates),) or templates.size == 0:
        raise DataError(
            f"{what}: templates {templates.shape} and labels {labels.shape}, need (N, D) and (N,)"
        )
    rows = templates.astype(np.float64)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.isfinite(rows).all() or not (length > 0).all():
        raise DataError(
            f"{what}: a template is zero or not finite",
            next_step="the model that made it has diverged: lower the learning rate",
        )
    rows /= length
    return rows
