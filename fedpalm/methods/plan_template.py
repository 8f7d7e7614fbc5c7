"""The model of round 0 that a draft's public settings make, whichever its method. Loads no torch."""

from __future__ import annotations

from ..plan import PlanDraft
from .contribution import shared_backbones
from .fedmh_template import fedmh_template
from .template import ModelTemplate, model_template


def plan_template(draft: PlanDraft) -> ModelTemplate:
    """Layouts and shared vector; under masking a trunk of too few sites is not part of them.

    Raises:
        ConfigError: the method, or a backbone, is not known.
    """
    if draft.method == "fedmh":
        return fedmh_template(shared_backbones(draft), draft.seed)
    return model_template(draft.method, draft.training, draft.seed)
