"""A site and its person, before a plan that was offered."""

from __future__ import annotations

from fedpalm.ledger.bodies import EntryKind
from tests.support.participant import Site, World, make_plan

RUN = "toy-1"


def person(site: Site) -> Site:
    """The site's person, in a process of their own."""
    return Site(site.home)


def propose(world: World, site: Site, run_id: str = RUN, **changes):
    plan = make_plan(**changes)
    return site.desk.plans.propose(run_id, plan, world.offer(plan, run_id))


def entries(site: Site, *kinds: EntryKind):
    return [entry for entry in site.log.entries() if entry.kind in kinds]
