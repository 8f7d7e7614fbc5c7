"""From a plan to the site's half of its method. Loads torch only when a method needs it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ..canonical import domain_hash
from ..data.modality import modality_of
from ..data.signatures import SignatureImages
from ..errors import ConfigError
from ..plan import Plan, TrainingSettings
from .base import SiteImages, SiteMethod
from .rehearsal import RehearsalMethod

if TYPE_CHECKING:  # it imports torch
    from ..privacy.randomness import Randomness

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


def build_site_method(
    plan: Plan,
    site: str,
    images: SiteImages | SignatureImages,
    *,
    randomness: Randomness | None = None,
) -> SiteMethod:
    """The method of ``plan`` for one site.

    Args:
        images: signatures for ``fedmh``, palms for any other method.
        randomness: of training with differential privacy; secret if left out.
    Raises:
        ConfigError: images of the wrong kind.
    """
    draft = plan.draft
    if draft.method == "rehearsal":
        return RehearsalMethod(plan, site)
    wanted = modality_of(draft.method)
    if isinstance(images, SignatureImages) != (wanted == "signature"):
        raise ConfigError(
            f"method {draft.method!r} trains on {wanted}s, and this site has none of them",
            safe="nothing was trained or sent",
            next_step="name the right images in participant.toml, or take no part in this plan",
        )
    if isinstance(images, SignatureImages):
        from .fedmh import FedMHSite

        return FedMHSite(plan, site, images, training_seed(plan))
    return build_site(
        draft.method, draft.training, draft.seed, site, images,
        rounds_seed=training_seed(plan), randomness=randomness,
    )  # fmt: skip


def build_site(
    method: str,
    training: TrainingSettings,
    seed: int,
    site: str,
    images: SiteImages,
    *,
    rounds_seed: int | None = None,
    randomness: Randomness | None = None,
) -> SiteMethod:
    """As :func:`build_site_method`; ``local`` too, which no plan can name: it shares nothing.

    Args:
        seed: of the initial model and heads; of the rounds too if ``rounds_seed`` is left out.
        randomness: of training with differential privacy; secret if left out.
    """
    module, name = _SITES[method]
    made_by = getattr(import_module(f".{module}", __package__), name)
    built = made_by(training, seed, site, images, randomness)
    if rounds_seed is not None:
        built.seed = rounds_seed
    made: SiteMethod = built
    return made


def training_seed(plan: Plan) -> int:
    """What views, order and dropout of a site's rounds are drawn from; the initial model is not.

    Under masking another one for every plan. If two runs from nearly the same model drew alike, a site
    would give nearly the same update twice, and two sums that differ by few sites would tell theirs.
    """
    if plan.draft.masking == "none":
        return plan.draft.seed
    return int.from_bytes(domain_hash("training-seed/v1", plan.hash)[:8], "big") >> 1
