"""Whether a plan means the site that ``participant.toml`` describes: its backbone, its kind of images.

Read anew for each decision, so that an approval says nothing that the settings of the moment deny. A site
that names no images yet may approve: it joins nothing before it names some.
"""

from __future__ import annotations

from fedpalm.data.modality import modality_of
from fedpalm.errors import ConfigError, PolicyError
from fedpalm.plan import Plan

from .backbone import disagreement
from .config import Home, ParticipantConfig
from .images import require_data


def disagreements(home: Home, site: str, plan: Plan) -> tuple[str, ...]:
    """What the settings say otherwise than the plan, in words; empty if nothing.

    Raises:
        PolicyError: ``participant.toml`` cannot be read.
    """
    if not plan.draft.backbones and modality_of(plan.draft.method) is None:
        return ()
    config = _settings(home)
    found = (disagreement(plan, site, config.backbone), _other_images(config, plan))
    return tuple(one for one in found if one)


def require_fit(home: Home, site: str, plan: Plan) -> None:
    """Raises PolicyError: the plan means another backbone or other images than the settings."""
    if found := disagreements(home, site, plan):
        raise PolicyError(
            "; ".join(found),
            safe="the plan is not approved here; nothing is trained or sent for it",
            next_step="ask the operator for a plan that fits this site, or correct backbone or [data] in "
            "participant.toml and start the agent again",
        )


def _other_images(config: ParticipantConfig, plan: Plan) -> str:
    if config.data is None or modality_of(plan.draft.method) is None:
        return ""
    try:
        require_data(config.data, plan)
    except ConfigError as error:
        return f"images: {error.what}"
    return ""


def _settings(home: Home) -> ParticipantConfig:
    try:
        return home.load()
    except ConfigError as error:
        raise PolicyError(
            f"whether a plan fits this site is not known: {error.what}",
            safe="nothing was approved",
            next_step="correct participant.toml, then decide, or start the agent again",
        ) from error
