"""Claims about signatures: scores, and error rates against random, simple and skilled forgeries apart.

A writer's signature, or each of them where they have several names, is enrolled by the mean of the unit
templates of its first k references, made a unit vector again; a claim's score is its cosine to what is
claimed. Rates are in the words of
:mod:`.metrics`: a claim is accepted if its score is at or above the threshold. One threshold serves all
writers, or every writer has an own one (the mean over writers of the equal error rate there): the second
is what a perfect choice for each would give, and no system has it.

Intervals draw writers with replacement: a claim counts as often as the writer was drawn who is claimed.
Bolle, Ratha and Pankanti 2004, doi 10.1016/j.cviu.2003.08.002. Draws depend on the seed and the number of
writers, so several models of the same trial are drawn alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..data.signature_image import load_signatures
from ..data.signature_splits import SignatureTrial
from ..data.signatures import FORGERY_KINDS, Claimed, ForgeryKind, SignatureRecord
from ..errors import DataError
from .metrics import check_scores, crossing, eer

CONFIDENCE = 0.95

Scores = npt.NDArray[np.float64]
Writers = npt.NDArray[np.int32]
Embed = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.floating]]
"""(N, 1, 128, 128) images to (N, D) templates."""


class Forged(NamedTuple):
    """``scores`` (I,) of forgeries, ``writer`` (I,) who is claimed."""

    scores: Scores
    writer: Writers


@dataclass(frozen=True)
class ClaimScores:
    """Scores of one site's claims, or of several sites' together, with one number of references.

    ``genuine`` (G,) and ``genuine_writer`` (G,) in 0..``writers``-1; ``forged`` by kind, kinds that
    nobody made left out.
    """

    genuine: Scores
    genuine_writer: Writers
    forged: Mapping[ForgeryKind, Forged]
    writers: int


@dataclass(frozen=True)
class ForgeryReport:
    """Error rates 0..1 against one kind of forgery, with their 95 % intervals over writers.

    ``user_eer``: mean over writers of the rate at each one's own threshold. ``genuine`` and ``forged``
    count claims.
    """

    kind: ForgeryKind
    eer: float
    eer_interval: tuple[float, float]
    user_eer: float
    user_eer_interval: tuple[float, float]
    genuine: int
    forged: int

    def to_json(self) -> dict[str, Any]:
        return {
            "eer": self.eer,
            "eer_interval": list(self.eer_interval),
            "user_eer": self.user_eer,
            "user_eer_interval": list(self.user_eer_interval),
            "genuine": self.genuine,
            "forged": self.forged,
        }


class ClaimDraws(NamedTuple):
    """``eer`` and ``user_eer``, (resamples,) each: one value for each draw of writers."""

    eer: Scores
    user_eer: Scores


def claim_scores(trial: SignatureTrial, embed: Embed, references: int) -> ClaimScores:
    """Enrol everything that a trial's claims are of with ``references`` each and score all claims.

    Every image is read and embedded once, however many claims it is.

    Raises:
        DataError: fewer references of a writer, no genuine probe, an image that cannot be used, or a
            template that is zero or not finite.
    """
    records = records_of(trial)
    images = zip((one.path for one in records), load_signatures(records).images, strict=True)
    return score_claims(trial, templates_of(dict(images), embed), references)


def records_of(trial: SignatureTrial) -> list[SignatureRecord]:
    """All of a trial, one for each image: a record of the same image under another claim is left out."""
    parts = (trial.references, trial.genuine, *_forged(trial).values())
    return list({record.path: record for part in parts for record in part}.values())


def templates_of(
    images: Mapping[Path, npt.NDArray[np.float32]], embed: Embed
) -> dict[Path, Scores]:
    """(D,) unit templates by path. Raises DataError: one is zero or not finite."""
    if not images:
        return {}
    templates = embed(np.stack(list(images.values()))).astype(np.float64)
    length = np.linalg.norm(templates, axis=1, keepdims=True)
    if not np.isfinite(templates).all() or not (length > 0).all():
        raise DataError(
            "a template is zero or not finite",
            next_step="the model that made it has diverged: lower the learning rate",
        )
    return dict(zip(images, templates / length, strict=True))


def score_claims(
    trial: SignatureTrial, templates: Mapping[Path, Scores], references: int
) -> ClaimScores:
    """As :func:`claim_scores`, of templates that are there already."""
    enrolled: dict[Claimed, list[Scores]] = {}
    for record in trial.first_references(references):
        enrolled.setdefault(record.claimed, []).append(templates[record.path])
    place = {name: at for at, name in enumerate(enrolled)}
    people = sorted({record.writer for record in trial.references})
    means = np.stack([np.mean(own, axis=0) for own in enrolled.values()])
    length = np.linalg.norm(means, axis=1, keepdims=True)
    if not (length > 0).all():
        raise DataError("a writer's references add up to nothing", next_step="enrol more of them")
    means /= length

    def scored(claims: Sequence[SignatureRecord]) -> Forged:
        of_whom = means[[place[record.claimed] for record in claims]]
        rows = np.stack([templates[record.path] for record in claims])
        writer = np.searchsorted(people, [record.writer for record in claims]).astype(np.int32)
        return Forged(np.clip((rows * of_whom).sum(axis=1), -1.0, 1.0), writer)

    if not trial.genuine:
        raise DataError("there is no genuine signature to claim anything with")
    genuine = scored(trial.genuine)
    forged = {kind: scored(claims) for kind, claims in _forged(trial).items() if claims}
    return ClaimScores(genuine.scores, genuine.writer, forged, len(people))


def pool_claims(sets: Sequence[ClaimScores]) -> ClaimScores:
    """Claims of several sites under one threshold; writers of different sites are different.

    Raises:
        DataError: nothing to pool.
    """
    if not sets:
        raise DataError("there are no claims to pool")
    shift = np.cumsum([0, *(one.writers for one in sets)]).astype(np.int32)
    shifted = list(zip(sets, shift, strict=False))
    forged: dict[ForgeryKind, Forged] = {}
    for kind in FORGERY_KINDS:
        parts = [(one.forged[kind], by) for one, by in shifted if kind in one.forged]
        if parts:
            forged[kind] = Forged(
                np.concatenate([part.scores for part, _ in parts]),
                np.concatenate([part.writer + by for part, by in parts]),
            )
    return ClaimScores(
        np.concatenate([one.genuine for one in sets]),
        np.concatenate([one.genuine_writer + by for one, by in shifted]),
        forged,
        int(shift[-1]),
    )


def evaluate_claims(
    scores: ClaimScores, *, seed: int, resamples: int = 200
) -> dict[ForgeryKind, ForgeryReport]:
    """A report of every kind of forgery of which a writer with genuine claims has some.

    Raises:
        DataError: ``resamples`` < 1, no genuine claim, or a score that is not finite.
    """
    found: dict[ForgeryKind, ForgeryReport] = {}
    for kind in judged(scores):
        drawn = claim_resamples(scores, kind, seed=seed, resamples=resamples)
        rate, of_users = error_rates(scores, kind)
        count = scores.genuine.size
        found[kind] = ForgeryReport(
            kind=kind,
            eer=rate,
            eer_interval=claim_interval(drawn.eer, count),
            user_eer=of_users,
            user_eer_interval=claim_interval(drawn.user_eer, count),
            genuine=count,
            forged=scores.forged[kind].scores.size,
        )
    return found


def judged(scores: ClaimScores) -> list[ForgeryKind]:
    """The kinds that :func:`evaluate_claims` reports, in the order of FORGERY_KINDS."""
    return [
        kind
        for kind in FORGERY_KINDS
        if kind in scores.forged
        and np.intersect1d(scores.forged[kind].writer, scores.genuine_writer).size
    ]


def error_rates(scores: ClaimScores, kind: ForgeryKind) -> tuple[float, float]:
    """Equal error rate at one threshold, and the writers' mean at their own. Raises DataError."""
    own = [rate for _, rate in _rates_of_writers(scores, kind)]
    return eer(scores.genuine, scores.forged[kind].scores), float(np.mean(own))


def claim_resamples(
    scores: ClaimScores, kind: ForgeryKind, *, seed: int, resamples: int = 200
) -> ClaimDraws:
    """Both rates of every draw of writers; a draw that has no rate is made again.

    Raises:
        DataError: as :func:`evaluate_claims`.
    """
    if resamples < 1:
        raise DataError("an interval needs one resample or more")
    forged = scores.forged[kind]
    check_scores(scores.genuine, forged.scores)
    rng = np.random.Generator(np.random.Philox(seed))
    writers, rates = (np.array(one) for one in zip(*_rates_of_writers(scores, kind), strict=True))
    weighted = _Weighted(scores.genuine, forged.scores)
    both = np.empty((2, resamples))
    for at in range(resamples):
        while True:
            picks = rng.integers(0, scores.writers, scores.writers)
            times = np.bincount(picks, minlength=scores.writers).astype(np.float64)
            # One who was drawn and has both kinds of claim: then both rates have a value.
            if times[writers].any():
                break
        both[0, at] = weighted.eer(times[scores.genuine_writer], times[forged.writer])
        both[1, at] = np.average(rates, weights=times[writers])
    return ClaimDraws(both[0], both[1])


def claim_interval(draws: Scores, genuine: int) -> tuple[float, float]:
    """95 % interval of draws; where none shows an error, up to 3 / genuine claims (rule of three)."""
    if not draws.any():
        return 0.0, min(1.0, 3.0 / genuine)
    tail = (1.0 - CONFIDENCE) / 2
    low, high = np.quantile(draws, [tail, 1.0 - tail])
    return float(low), float(high)


def _forged(trial: SignatureTrial) -> dict[ForgeryKind, tuple[SignatureRecord, ...]]:
    return {"random": trial.random, "simple": trial.simple, "skilled": trial.skilled}


def _rates_of_writers(scores: ClaimScores, kind: ForgeryKind) -> Iterator[tuple[int, float]]:
    """Number and equal error rate of every writer who has genuine claims and forged ones."""
    forged = scores.forged[kind]
    for writer in np.intersect1d(forged.writer, scores.genuine_writer):
        own = scores.genuine[scores.genuine_writer == writer]
        yield int(writer), eer(own, forged.scores[forged.writer == writer])


class _Weighted:
    """Scores sorted once, for many weighings."""

    def __init__(self, genuine: Scores, forged: Scores) -> None:
        self._orders = [np.argsort(-one, kind="stable") for one in (genuine, forged)]
        falling = [-one[at] for one, at in zip((genuine, forged), self._orders, strict=True)]
        levels = np.unique(np.concatenate(falling))
        # How many scores are at or above each level: where to read the running sums.
        self._counts = [
            np.concatenate([[0], np.searchsorted(one, levels, "right")]) for one in falling
        ]

    def eer(self, genuine: Scores, forged: Scores) -> float:
        """With (G,) and (I,) weights, each of positive sum."""
        accepted = []
        for weights, order, count in zip(
            (genuine, forged), self._orders, self._counts, strict=True
        ):
            sums = np.concatenate([[0.0], np.cumsum(weights[order])])
            accepted.append(sums[count] / sums[-1])
        return crossing(accepted[1], 1.0 - accepted[0])
