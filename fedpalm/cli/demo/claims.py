"""From claims of signatures, and what sites told of their rounds, to the figures of the report."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import numpy as np

from ...canonical import domain_hash
from ...data.signatures import FORGERY_KINDS
from ...evaluation.signatures import (
    ClaimScores,
    claim_interval,
    claim_resamples,
    error_rates,
    evaluate_claims,
    judged,
)
from .figures import Estimate, LearningPoint, SiteRound
from .scoring import RESAMPLES

_ETA = "eta."


def estimates_of(claims: ClaimScores, seed: int) -> dict[str, Estimate]:
    """By kind of forgery, those that the data have."""
    found: dict[str, Estimate] = {}
    for kind, report in evaluate_claims(claims, seed=seed, resamples=RESAMPLES).items():
        low, high = report.eer_interval
        found[kind] = Estimate(
            eer=report.eer, low=low, high=high, genuine=report.genuine, impostor=report.forged
        )
    return found


def mean_of_sites(sites: Mapping[str, ClaimScores], seed: int) -> dict[str, Estimate]:
    """By kind of forgery that every site has: the mean of the sites' rates, each at its own threshold.

    Writers are drawn at every site by itself, and alike for every method.
    """
    found: dict[str, Estimate] = {}
    for kind in FORGERY_KINDS:
        if not all(kind in judged(one) for one in sites.values()):
            continue
        drawn = [
            claim_resamples(one, kind, seed=_seed(seed, site), resamples=RESAMPLES).eer
            for site, one in sites.items()
        ]
        genuine = sum(one.genuine.size for one in sites.values())
        low, high = claim_interval(np.mean(drawn, axis=0), genuine)
        found[kind] = Estimate(
            eer=float(np.mean([error_rates(one, kind)[0] for one in sites.values()])),
            low=low,
            high=high,
            genuine=genuine,
            impostor=sum(one.forged[kind].scores.size for one in sites.values()),
        )
    return found


def _seed(seed: int, site: str) -> int:
    digest = domain_hash("demo-draws/v1", str(seed).encode(), site.encode())
    return int.from_bytes(digest[:8], "big")


def round_of(number: int, metrics: Mapping[str, float | None]) -> SiteRound:
    """What the report keeps of a round's metrics."""
    return SiteRound(
        round=number,
        user_loss=metrics.get("probe.user_after"),
        forged_loss=metrics.get("probe.forged_after"),
        cosine=metrics.get("guidance.cosine"),
        user_weight=metrics.get("guidance.user_weight"),
        opposed=metrics.get("guidance.opposed"),
        etas={
            name.removeprefix(_ETA): eta
            for name, eta in metrics.items()
            if name.startswith(_ETA) and eta is not None
        },
    )


def rounds_of(metrics: Mapping[str, Mapping[str, float | None]]) -> list[SiteRound]:
    """The rounds of a site, by number as JSON has it."""
    return [round_of(number, metrics[str(number)]) for number in sorted(map(int, metrics))]


def learning(sites: Sequence[Sequence[SiteRound]]) -> tuple[LearningPoint, ...]:
    """Means of both probe losses in rounds that every site tells; detection's of those who can judge it."""
    by_round: dict[int, list[SiteRound]] = {}
    for one in (one for rounds in sites for one in rounds if one.user_loss is not None):
        by_round.setdefault(one.round, []).append(one)
    points = []
    for number, told in sorted(by_round.items()):
        if len(told) == len(sites):
            user = [one.user_loss for one in told if one.user_loss is not None]
            forged = [one.forged_loss for one in told if one.forged_loss is not None]
            points.append(
                LearningPoint(
                    round=number,
                    user=statistics.fmean(user),
                    forged=statistics.fmean(forged) if forged else None,
                )
            )
    return tuple(points)
