"""Figures of a set of claims: a site's error rates, and their mean over the sites with its interval.

Writers are drawn anew by the seed, the set and the site alone, so two contenders of one seed are drawn
alike, and the difference of their draws is a paired one. A set that nobody trained on has the same
writers at every site, and they are drawn alike there too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ...canonical import domain_hash
from ...data.signatures import ForgeryKind
from ...evaluation.signatures import (
    ClaimScores,
    Embed,
    Forged,
    claim_interval,
    claim_resamples,
    error_rates,
    judged,
    score_claims,
    templates_of,
)
from .data import Claims

BySite = Mapping[str, ClaimScores]
_DIGITS = 7


def score_sets(
    embeds: Mapping[str, Embed], claims: Mapping[str, Claims]
) -> dict[int, dict[str, ClaimScores]]:
    """By number of references and site; every image is embedded once.

    Raises:
        DataError: templates are not finite.
    """
    found: dict[int, dict[str, ClaimScores]] = {}
    for name, embed in embeds.items():
        templates = templates_of(claims[name].images, embed)
        for count in claims[name].references:
            found.setdefault(count, {})[name] = score_claims(claims[name].trial, templates, count)
    return found


def shown(counts: Iterable[int]) -> int:
    """The number of references that is shown where one is: the middle of them."""
    ordered = sorted(counts)
    return ordered[len(ordered) // 2]


def figures(
    by_site: BySite, draw: Sequence[str], resamples: int, *, same_writers: bool = False
) -> dict[str, Any]:
    """By kind of forgery that every site has: ``mean``, ``sites`` and ``draws`` of the means.

    Each for ``eer`` and ``user_eer``.

    Args:
        draw: names what writers are drawn by, beside the site.
        same_writers: every site has the same ones, and they are drawn alike.
    """
    return {
        kind: _kind(by_site, kind, draw, resamples, same_writers)
        for kind in judged(next(iter(by_site.values())))
        if all(kind in judged(one) for one in by_site.values())
    }


def _kind(
    by_site: BySite, kind: ForgeryKind, draw: Sequence[str], resamples: int, same: bool
) -> dict[str, Any]:
    rates = {name: error_rates(one, kind) for name, one in by_site.items()}
    drawn = [
        claim_resamples(
            one, kind, seed=_seed(*draw, *([] if same else [name])), resamples=resamples
        )
        for name, one in by_site.items()
    ]
    genuine = sum(one.genuine.size for one in by_site.values())
    found: dict[str, Any] = {
        "genuine": genuine,
        "writers": max(one.writers for one in by_site.values())
        if same
        else sum(one.writers for one in by_site.values()),
    }
    for at, rate in enumerate(("eer", "user_eer")):
        # Seven digits: far below an interval's width, and a file that people can read.
        draws = np.round(np.stack([one[at] for one in drawn]).mean(axis=0), _DIGITS)
        found[rate] = {
            "mean": float(np.mean([one[at] for one in rates.values()])),
            "interval": list(claim_interval(draws, genuine)),
            "sites": {name: one[at] for name, one in rates.items()},
            "draws": draws.tolist(),
        }
    return found


def pack(sets: Mapping[str, Mapping[int, BySite]]) -> dict[str, npt.NDArray[Any]]:
    """All scores as arrays; scores rounded to float16, writers uint16."""
    packed: dict[str, npt.NDArray[Any]] = {}
    for which, by_count in sets.items():
        for count, by_site in by_count.items():
            for name, one in by_site.items():
                parts = [("genuine", Forged(one.genuine, one.genuine_writer)), *one.forged.items()]
                for kind, (scores, writers) in parts:
                    key = f"{which}/{count}/{name}/{kind}"
                    packed[key] = scores.astype(np.float16)
                    packed[f"{key}/writer"] = writers.astype(np.uint16)
    return packed


def _seed(*names: str) -> int:
    digest = domain_hash("bench-signature-draws/v1", *(name.encode() for name in names))
    return int.from_bytes(digest[:8], "big")
