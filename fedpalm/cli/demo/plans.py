"""The demo's plan as everybody binds it, and which of its rounds are looked at."""

from __future__ import annotations

import hashlib

import safetensors.numpy

from ...fedmh_settings import FedMHSettings
from ...methods.base import Tensors
from ...methods.plan_template import plan_template
from ...plan import Plan
from .settings import FEDERATION, DemoSettings
from .workspace import Workspace


def bound_plan(
    settings: DemoSettings,
    warm_start: Tensors | None = None,
    *,
    fedmh: FedMHSettings | None = None,
) -> Plan:
    """The demo's plan with roster and model, as the coordinator binds it.

    Args:
        fedmh: other settings than the demo's own, of a plan for signatures.
    """
    draft = settings.draft(fedmh)
    template = plan_template(draft)
    initial = template.initial if warm_start is None else template.layout.flatten(warm_start)
    return Plan.model_validate(
        {
            "federation": FEDERATION,
            "draft": draft,
            "roster": sorted(settings.site_names),
            "layout": template.layout.to_json(),
            "expert_layout": template.expert_layout.to_json(),
            "initial_model": hashlib.sha256(initial.astype("<f4").tobytes()).hexdigest(),
        }
    )


def warm_start(workspace: Workspace, settings: DemoSettings) -> Tensors | None:
    """The initial model of a private demo, once it is trained."""
    return safetensors.numpy.load_file(workspace.initial_model) if settings.private else None


def checkpoints(rounds: int) -> list[int]:
    """Rounds whose model is evaluated on the way: seven or so, the last among them."""
    step = -(-rounds // 6)
    return sorted({*range(step, rounds + 1, step), rounds})
