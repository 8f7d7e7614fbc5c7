"""A site's own backbone, and whether a plan means the same.

Who contributes to which parameters follows from the plan; a site with another backbone than the plan says
would add parameters of something else to a group.
"""

from __future__ import annotations

from fedpalm.errors import PolicyError
from fedpalm.plan import Plan


def disagreement(plan: Plan, site: str, own: str | None) -> str:
    """What is wrong between a plan and ``backbone`` of ``participant.toml``; empty if nothing is."""
    agreed = plan.draft.backbones.get(site)
    if agreed in (None, own):
        return ""
    says = f"says {own}" if own else "names none"
    return f"backbone: the plan has {agreed} for this site, participant.toml {says}"


def require_agreement(plan: Plan, site: str, own: str | None) -> None:
    """Raises PolicyError: the plan has another backbone for this site than its own settings."""
    if found := disagreement(plan, site, own):
        raise PolicyError(
            found,
            safe="the plan is not approved here; nothing is trained or sent for it",
            next_step="ask the operator for a plan with this site's backbone, or set backbone in "
            "participant.toml",
        )
