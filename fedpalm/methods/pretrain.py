"""A warm start: a plan's model, trained on palms that nobody has before any site trains it.

Noise costs a model that begins at random more than one that has little left to learn, and training on
drawn palms (docs/data/synthetic.md) costs nobody privacy. What is trained is the shared open-set model as
FedAvg trains it, expert and embedding with a head of its own that is thrown away; what else a method
shares (alpha and beta of a TEIM) begins as it would without. The result is an initial model like any other.
"""

from __future__ import annotations

from collections.abc import Callable

from pydantic import Field

from ..data.loading import load_images
from ..data.palms import GENERATOR_VERSION, PRESETS, cache_root, synthetic_palms
from ..errors import ConfigError
from ..plan import PlanDraft, TrainingSettings
from ..settings import Settings
from .base import RoundContext, SiteImages
from .site import build_site
from .template import ModelTemplate, model_template

PUBLIC_SEED = 2**53
"""The least seed of public palms: no plan, demo or benchmark can have it, so none shares a palm."""

_METHOD, _SITE = "fedavg", "public"

OnRound = Callable[[int, float], None]
"""Called after every round with its number and its mean loss."""


class PublicPalms(Settings):
    """The drawn palms that a warm start is trained on, and for how long."""

    sensors: int = Field(16, ge=1, le=9999)
    people: int = Field(20, ge=2, le=9999)
    """For each sensor."""
    images: int = Field(3, ge=2, le=9999)
    rounds: int = Field(5, ge=1, le=1000)
    """Each of two epochs over views that are drawn anew."""
    seed: int = Field(PUBLIC_SEED, ge=PUBLIC_SEED, lt=2**63)
    difficulty: float = Field(PRESETS["default"].difficulty, ge=0, le=3)
    site_spread: float = Field(PRESETS["default"].site_spread, ge=0, le=3)


def pretrain(
    draft: PlanDraft, palms: PublicPalms, on_round: OnRound | None = None
) -> ModelTemplate:
    """The draft's initial model, trained on ``palms``: same draft, same palms, same vector.

    The draft gives method, backbone, threads and seed; how a site is to train has no part in it.

    Raises:
        ConfigError: the method trains nothing.
        DataError: the palms cannot be drawn.
    """
    if draft.method == "rehearsal":
        raise ConfigError("a rehearsal trains nothing", next_step="fedpalm model init")
    training = TrainingSettings(backbone=draft.training.backbone, threads=draft.training.threads)
    site = build_site(_METHOD, training, draft.seed, _SITE, public_images(palms))
    shared = site.initial_vector()
    for number in range(1, palms.rounds + 1):
        update = site.train_round(RoundContext(number, palms.rounds), shared)
        shared = shared + update.delta
        if on_round is not None:
            on_round(number, update.metrics["open.loss"])
    template = model_template(draft.method, draft.training, draft.seed)
    trained = site.layout.unflatten(shared)
    begin = template.layout.unflatten(template.initial)
    return template._replace(
        initial=template.layout.flatten({name: trained.get(name, begin[name]) for name in begin})
    )


def public_images(palms: PublicPalms) -> SiteImages:
    """All of them as one site's: (N, 1, 128, 128), a label a person."""
    drawn = synthetic_palms(
        cache_root(),
        palms.sensors,
        palms.people,
        palms.images,
        palms.seed,
        palms.difficulty,
        palms.site_spread,
    )
    loaded = load_images([record for sensor in drawn for record in sensor])
    return SiteImages(loaded.images, loaded.labels, len(loaded.classes))


def provenance(palms: PublicPalms) -> dict[str, str]:
    """What a file says of where its model comes from: public, and how to make it again."""
    return {
        "trained_on": "public: synthetic-palm",
        "generator": str(GENERATOR_VERSION),
        **{f"public_{name}": str(value) for name, value in palms.model_dump().items()},
    }
