"""What a poisoned aggregate does to trained sites: with the search on receipt, and taken as it is."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal, get_args

import numpy as np

from ...data.signatures import SignatureImages
from ...evaluation.signatures import error_rates, judged
from ...layout import FloatVector
from ...methods.base import SiteMethod
from ...methods.fedmh import FedMHSite
from ...plan import Plan
from .data import Claims
from .scoring import score_sets, shown

Aggregate = Literal["honest", "random", "negated", "x100"]


def poisoned(shared: FloatVector, kind: Aggregate, seed: int) -> FloatVector:
    """(P,) values in place of ``shared``; the random ones have its length."""
    if kind == "honest":
        return shared
    if kind == "negated":
        return -shared
    if kind == "x100":
        return np.float32(100.0) * shared
    noise = np.random.Generator(np.random.Philox(seed)).standard_normal(shared.shape)
    return (noise * (np.linalg.norm(shared) / np.linalg.norm(noise))).astype(np.float32)


def poison_figures(
    plan: Plan,
    sites: Mapping[str, SiteMethod],
    images: Mapping[str, SignatureImages],
    shared: FloatVector,
    claims: Mapping[str, Claims],
) -> dict[str, Any]:
    """For the last aggregate and each poison, what sites of FedMH make of it, and twins that take it all.

    ``before``: rates of the sites' own models, which received nothing since they trained, by kind of
    forgery, means over the sites; ``after`` likewise. ``probe``: means of both losses on what the sites
    keep aside. ``refused_groups``: the share of which nothing was taken; ``refused_sites``: of the sites
    that took nothing at all, of what they can judge.
    """
    searching = {name: one for name, one in sites.items() if isinstance(one, FedMHSite)}
    twins = {
        receipt: {name: _twin(plan, one, images[name], receipt) for name, one in searching.items()}
        for receipt in ("keep", "replace")
    }
    found: dict[str, Any] = {
        "before": _errors(twins["keep"], shared, claims),
        "aggregates": {},
    }
    for kind in get_args(Aggregate):
        values = poisoned(shared, kind, plan.draft.seed)
        found["aggregates"][kind] = {
            which: _receipts(group.values(), values) | {"after": _errors(group, values, claims)}
            for which, group in (("searched", searching), ("taken", twins["replace"]))
        }
    return found


def _twin(plan: Plan, site: FedMHSite, images: SignatureImages, receipt: str) -> FedMHSite:
    """The same site, but for what it does on receipt."""
    draft = plan.draft.model_dump()
    draft["fedmh"] |= {"receipt": receipt}
    other = Plan.model_validate(plan.model_dump() | {"draft": draft})
    twin = FedMHSite(other, site.site, images, site.seed)
    twin.load_state(site.state())
    return twin


def _receipts(sites: Collection[FedMHSite], shared: FloatVector) -> dict[str, Any]:
    """Of the groups and losses that a site can judge: without forgeries aside, neither of detection."""
    receipts = [(one, one.receipt(shared)) for one in sites]
    refused = [
        [eta == 0 for name, eta in received.etas.items() if name in one.judged_groups]
        for one, received in receipts
    ]
    seeing = [received for one, received in receipts if one.judges_forgeries]
    judges = {"user": [received for _, received in receipts], "forged": seeing}
    return {
        "refused_groups": float(np.mean(np.concatenate(refused))),
        "refused_sites": float(np.mean([all(one) for one in refused])),
        "probe": {
            when: {
                task: float(np.mean([getattr(getattr(one, when), task) for one in every]))
                for task, every in judges.items()
                if every
            }
            for when in ("before", "after")
        },
    }


def _errors(
    sites: Mapping[str, SiteMethod],
    shared: FloatVector,
    claims: Mapping[str, Claims],
) -> dict[str, float]:
    embeds = {
        name: (lambda images, one=one: one.open_templates(images, shared))
        for name, one in sites.items()
    }
    scored = score_sets(embeds, claims)
    by_site = scored[shown(scored)]
    return {
        kind: float(np.mean([error_rates(one, kind)[0] for one in by_site.values()]))
        for kind in judged(next(iter(by_site.values())))
    }
