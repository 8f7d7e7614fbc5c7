"""Scores of templates under every distribution of keys, and what a stolen key gives away.

A ``Trial`` holds templates here, not images. Keys come from seeds: the figures can be had again, and the
keys protect nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ..canonical import domain_hash
from ..data.loading import Trial
from ..evaluation.pairs import ScoreSet, score_pairs, score_set
from ..protection import Transform, scores
from ..protection.transform import SIZE_BYTES

Protected = npt.NDArray[np.uint8]
Cosines = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Keyring:
    """Of one site: a transform for every person in every system."""

    seed: int
    site: str
    length: int
    size_bytes: int = SIZE_BYTES

    def transform(self, person: int, system: int) -> Transform:
        parts = (str(one).encode() for one in (self.seed, self.site, person, system))
        key = domain_hash("bench-template-key/v1", *parts)
        return Transform.of(key, self.length, size_bytes=self.size_bytes)

    def protect(
        self, templates: npt.NDArray[np.float32], people: npt.NDArray[np.int64], system: int
    ) -> Protected:
        """(N, m): everybody's templates under their own key of ``system``."""
        found = np.empty((len(templates), self.size_bytes), dtype=np.uint8)
        for person in np.unique(people):
            own = people == person
            found[own] = self.transform(int(person), system).apply(templates[own])
        return found


def unprotected(trial: Trial) -> ScoreSet:
    """Cosines."""
    return score_pairs(trial.gallery, trial.gallery_labels, trial.probe, trial.probe_labels)


def own_keys(trial: Trial, keys: Keyring, gallery_system: int, probe_system: int) -> ScoreSet:
    """Everybody's templates under their own keys: impostors bring theirs, not the claimed person's.

    With two different systems no pair has a key in common.
    """
    gallery = keys.protect(trial.gallery, trial.gallery_labels, gallery_system)
    probe = keys.protect(trial.probe, trial.probe_labels, probe_system)
    return _score_set(trial, np.stack([scores(one, gallery) for one in probe]))


def claimed_keys(trial: Trial, keys: Keyring, system: int) -> ScoreSet:
    """Every probe under the key of the person it is compared with: stolen, or kept by the site."""
    found = np.empty((len(trial.probe), len(trial.gallery)))
    for person in np.unique(trial.gallery_labels):
        transform = keys.transform(int(person), system)
        own = np.flatnonzero(trial.gallery_labels == person)
        probe = transform.apply(trial.probe)
        for at, reference in zip(own, transform.apply(trial.gallery[own]), strict=True):
            found[:, at] = scores(probe, reference)
    return _score_set(trial, found)


def _score_set(trial: Trial, found: Cosines) -> ScoreSet:
    return score_set(found, trial.gallery_labels, trial.probe_labels)


def issued_again(sets: Sequence[ScoreSet]) -> ScoreSet:
    """Scores of the same people and images under several issues of keys, as one set.

    They stay the same identities: more keys say more of keys, not more of people.
    """
    parts = ("genuine", "genuine_identity", "impostor", "impostor_identities")
    joined = {name: np.concatenate([getattr(one, name) for one in sets]) for name in parts}
    hits, probes = sum(one.rank1_hits for one in sets), sum(one.rank1_probes for one in sets)
    return replace(sets[0], rank1_hits=hits, rank1_probes=probes, **joined)


@dataclass(frozen=True)
class Inversion:
    """Cosines of what a thief estimates: to the stolen template itself (n,), and to other images of
    the same person (k,)."""

    itself: Cosines
    others: Cosines


def invert(trial: Trial, keys: Keyring, people: int) -> Inversion:
    """The first gallery template of ``people`` people, estimated from its signs and its key.

    The simplest way: the sum of all directions, each with its sign. Topcu et al. 2016,
    doi 10.1186/s13634-016-0396-1, and Durbet et al. 2021, arXiv:2110.15163, do more.
    """
    itself, others = [], []
    for person in np.unique(trial.gallery_labels)[:people]:
        template = trial.gallery[trial.gallery_labels == person][:1]
        transform = keys.transform(int(person), 0)
        directions = transform.coordinates(np.eye(keys.length, dtype=np.float32))  # (D, 8 m)
        positive = np.unpackbits(transform.apply(template)[0], bitorder="little")
        estimate = directions.astype(np.float64) @ (2.0 * positive - 1.0)
        itself.append(_cosines(template, estimate))
        others.append(_cosines(trial.probe[trial.probe_labels == person], estimate))
    return Inversion(np.concatenate(itself), np.concatenate(others))


def _cosines(templates: npt.NDArray[np.float32], estimate: Cosines) -> Cosines:
    lengths = np.linalg.norm(templates, axis=1) * np.linalg.norm(estimate)
    return np.asarray(templates @ estimate / lengths, dtype=np.float64)
