"""From a plan to the site's half of its method. Loads torch only when a method needs it."""

from __future__ import annotations

from importlib import import_module

from ..plan import Plan, TrainingSettings
from .base import SiteImages, SiteMethod
from .rehearsal import RehearsalMethod

_SITES = {
    "local": ("local", "LocalSite"),
    "fedavg": ("fedavg", "FedAvgSite"),
    "fedbn": ("fedbn", "FedBNSite"),
    "fedkd": ("fedkd", "FedKDSite"),
    "fednova": ("fednova", "FedNovaSite"),
    "fedpalm": ("fedpalm", "FedPalmSite"),
    "fedpalm-release": ("fedpalm_release", "FedPalmReleaseSite"),
    "fedper": ("fedper", "FedPerSite"),
    "fedprox": ("fedprox", "FedProxSite"),
    "hyperfed": ("hyperfed", "HyperFedSite"),
    "moon": ("moon", "MoonSite"),
}


def build_site_method(plan: Plan, site: str, images: SiteImages) -> SiteMethod:
    """The method of ``plan`` for one site."""
    if plan.draft.method == "rehearsal":
        return RehearsalMethod(plan, site)
    return build_site(plan.draft.method, plan.draft.training, plan.draft.seed, site, images)


def build_site(
    method: str, training: TrainingSettings, seed: int, site: str, images: SiteImages
) -> SiteMethod:
    """As :func:`build_site_method`; ``local`` too, which no plan can name: it shares nothing."""
    module, name = _SITES[method]
    found = getattr(import_module(f".{module}", __package__), name)
    built: SiteMethod = found(training, seed, site, images)
    return built
