"""From a job to its sites, what they share at first, and what becomes of their updates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ...data.signatures import SignatureImages
from ...layout import FloatVector
from ...methods.base import RoundContext, SiteMethod, SiteUpdate
from ...methods.fedmh import FedMHSite
from ...methods.site import build_site_method, training_seed
from ...models.signature_spec import TEMPLATE_LENGTH
from ...plan import Plan
from ..simulate import Combine, through_codec
from .config import MEME, Job
from .families import Families, FamilySite
from .fedproto import FedProtoSite
from .fml import FMLSite


@dataclass(frozen=True)
class Federation:
    """``values``: how many a site gives in a round, mean over the sites."""

    plan: Plan
    sites: dict[str, SiteMethod]
    shared: FloatVector
    combine: Combine
    values: float


def federation(job: Job, images: Mapping[str, SignatureImages]) -> Federation:
    """Raises ConfigError, DataError: as the sites do."""
    backbones, sharing = job.config.backbones, job.contender.sharing
    families = sorted(set(backbones.values()))
    if sharing == "families":
        return _families(job, images, families)
    if sharing == "prototypes":
        return _prototypes(job, images)
    if sharing == "meme":
        plan = job.plan(dict.fromkeys(backbones, MEME), [MEME])
        memes: dict[str, SiteMethod] = {
            name: FMLSite(plan, name, images[name], training_seed(plan), backbone)
            for name, backbone in backbones.items()
        }
        return _through_codec(plan, memes)
    plan = job.plan(backbones, () if sharing == "common" else families)
    if sharing == "nothing":
        idle: dict[str, SiteMethod] = {
            name: UntrainedSite(plan, name, images[name], training_seed(plan)) for name in backbones
        }
        return _through_codec(plan, idle)
    return _through_codec(plan, {n: build_site_method(plan, n, images[n]) for n in backbones})


class UntrainedSite(FedMHSite):
    """Gives nothing, and keeps its initial model."""

    def train_round(self, context: RoundContext, shared: FloatVector) -> SiteUpdate:
        return SiteUpdate(np.zeros_like(shared), 1.0)


def _through_codec(plan: Plan, sites: dict[str, SiteMethod]) -> Federation:
    shared = next(iter(sites.values())).initial_vector()
    return Federation(plan, sites, shared, through_codec, _values(plan))


def _values(plan: Plan) -> float:
    """Of a site's own groups; zeros elsewhere, and what nobody would take, are not counted."""
    if plan.draft.fedmh is not None and plan.draft.fedmh.receipt == "keep":
        return 0.0
    given = sum((one.end - one.begin) * len(one.members) for one in plan.parameter_groups)
    return given / len(plan.roster)


def _families(job: Job, images: Mapping[str, SignatureImages], families: list[str]) -> Federation:
    backbones = job.config.backbones
    plans = {
        family: job.plan({n: one for n, one in backbones.items() if one == family}, [family])
        for family in families
    }
    together = Families(plans)
    sites: dict[str, SiteMethod] = {
        name: FamilySite(
            build_site_method(plans[family], name, images[name]), together.spans[family]
        )
        for name, family in backbones.items()
    }
    first = {family: sites[plan.roster[0]] for family, plan in plans.items()}
    shared = np.concatenate([first[family].initial_vector() for family in families])
    values = sum(_values(plan) * len(plan.roster) for plan in plans.values()) / len(backbones)
    return Federation(plans[families[0]], sites, shared, together.combine, values)


def _prototypes(job: Job, images: Mapping[str, SignatureImages]) -> Federation:
    backbones = job.config.backbones
    plan = job.plan(backbones, sorted(set(backbones.values())))
    ends = np.cumsum([images[name].classes for name in backbones])
    sites: dict[str, SiteMethod] = {
        name: FedProtoSite(
            plan, name, images[name], training_seed(plan), slice(end - images[name].classes, end)
        )
        for name, end in zip(backbones, map(int, ends), strict=True)
    }
    total = int(ends[-1])
    shared = np.zeros(total * TEMPLATE_LENGTH, np.float32)
    return Federation(plan, sites, shared, _put, total * TEMPLATE_LENGTH / len(sites))


def _put(
    plan: Plan, number: int, shared: FloatVector, updates: dict[str, SiteUpdate]
) -> FloatVector:
    """A writer's prototype is the average over the sites that have the writer: one."""
    put: FloatVector = shared + np.sum([one.delta for one in updates.values()], axis=0)
    return put
