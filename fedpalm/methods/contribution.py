"""From a plan to the numbers that both sides of a round must share: codec and rounding key."""

from __future__ import annotations

import secrets
from collections import Counter

from ..canonical import domain_hash
from ..errors import ConfigError
from ..plan import Plan, PlanDraft
from ..secagg.codec import FixedPointCodec
from ..secagg.terms import SecAggTerms, group_survivors
from .rules import server_rule


def codec_for(plan: Plan) -> FixedPointCodec:
    """The codec of a plan: same plan, same integers, on every machine."""
    return FixedPointCodec(
        sites=len(plan.roster),
        parameters=plan.model_layout.size,
        clip_abs=plan.draft.codec.clip_abs,
        max_weight=plan.draft.codec.max_weight,
        stats=server_rule(plan.draft.method).stats,
        groups=plan.parameter_groups if plan.draft.backbones else (),
    )


def masking_terms(plan: Plan) -> SecAggTerms | None:
    """What masking needs of a round of this plan; None for a plan without masking.

    Raises:
        ConfigError: a roster that masking cannot work with, or a quorum below its own.
    """
    if plan.draft.masking != "secagg":
        return None
    terms = SecAggTerms(plan.roster, plan.draft.colluders, plan.quorum, groups=_sums_within(plan))
    if plan.quorum < terms.quorum:
        raise ConfigError(
            f"quorum {plan.quorum}: masking among {terms.sites} sites with "
            f"{terms.colluders} colluders needs {terms.quorum}",
            next_step=f"set quorum = {terms.quorum} or more in the plan",
        )
    return terms


def shared_backbones(draft: PlanDraft) -> tuple[str, ...]:
    """Backbones whose trunks a model for this draft shares, by name; any other trunk stays at its sites.

    Under masking those of enough sites for a sum of them to be unmasked; else those of two, since one has
    nobody to average with.
    """
    least = group_survivors(draft.colluders) if draft.masking == "secagg" else 2
    counts = Counter(draft.backbones.values())
    return tuple(sorted(name for name, count in counts.items() if count >= least))


def _sums_within(plan: Plan) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Sets of sites of which the sum of a round gives away a sum of their own, if not of everybody.

    These are the groups, and the sites without a shared trunk: their weight is what is left of the weight
    of a group of everybody once those of all trunks are taken off.
    """
    trunks = {name: sites for name, sites in plan.groups.items() if sites != plan.roster}
    with_trunk = {site for sites in trunks.values() for site in sites}
    rest = tuple(site for site in plan.roster if trunks and site not in with_trunk)
    if rest:
        trunks["of sites whose trunk is not shared"] = rest
    return tuple(trunks.items())


def rounding_key(plan: Plan, site: str, round_number: int) -> bytes:
    """32 bytes for the stochastic rounding of one contribution.

    Fresh randomness, unless the plan is ``reproducible``: then it is derived from the plan, so that
    a run gives the same model bit for bit. A retry of a round resends the stored integers.
    """
    if not plan.draft.reproducible:
        return secrets.token_bytes(32)
    return derived_rounding_key(plan, site, round_number)


def derived_rounding_key(plan: Plan, site: str, round_number: int) -> bytes:
    """The one of a reproducible plan, 32 bytes, and of every simulation."""
    return domain_hash("rounding/v1", plan.hash, site.encode(), round_number.to_bytes(4, "big"))
