"""From a plan to the site's half of its method. Loads torch only when a method needs it."""

from __future__ import annotations

from ..plan import Plan, TrainingSettings
from .base import SiteImages, SiteMethod
from .rehearsal import RehearsalMethod


def build_site_method(plan: Plan, site: str, images: SiteImages) -> SiteMethod:
    """The method of ``plan`` for one site."""
    training, seed = plan.draft.training, plan.draft.seed
    match plan.draft.method:
        case "rehearsal":
            return RehearsalMethod(plan, site)
        case "fedavg":
            from .fedavg import FedAvgSite

            return FedAvgSite(training, seed, site, images)
        case "fedpalm":
            from .fedpalm import FedPalmSite

            return FedPalmSite(training, seed, site, images)


def build_local(training: TrainingSettings, seed: int, site: str, images: SiteImages) -> SiteMethod:
    """The baseline without federation; no plan can name it, because it shares nothing."""
    from .local import LocalSite

    return LocalSite(training, seed, site, images)
