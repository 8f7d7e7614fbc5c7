"""What a FedMH plan says about its models: the union of the groups that its sites have. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterable

from ..groups import TRUNK
from ..layout import OPEN_SET, Layout, TensorSpec
from ..models.signature_spec import initial_model, model_shapes
from ..plan import Plan
from .template import ModelTemplate


def fedmh_template(backbones: Iterable[str], seed: int) -> ModelTemplate:
    """Layout ``open_set.<group>.<tensor>`` and the shared vector of round 0, from public settings alone.

    Args:
        backbones: those whose trunks are shared; each is in the union once.
    Raises:
        ConfigError: there is no such backbone.
    """
    shapes = model_shapes(backbones := tuple(backbones))
    layout = Layout(tuple(TensorSpec(OPEN_SET + name, shape) for name, shape in shapes.items()))
    tensors = {OPEN_SET + name: one for name, one in initial_model(backbones, seed).items()}
    return ModelTemplate(layout, Layout(()), layout.flatten(tensors), {})


def backbones_shared_by(plan: Plan) -> tuple[str, ...]:
    """Of the plan's backbones those whose trunks its layout names."""
    return tuple(name.removeprefix(TRUNK) for name in plan.groups if name.startswith(TRUNK))
