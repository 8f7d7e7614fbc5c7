"""What a plan says about a method's model: layouts and initial vector. Loads no torch."""

from __future__ import annotations

from typing import NamedTuple

from ..errors import ConfigError
from ..layout import CLOSED_SET_EXPERT, OPEN_SET, FloatVector, Layout, TensorSpec
from ..models.compnet_spec import Shapes, initial_tensors, model_shapes
from ..plan import TrainingSettings
from .rehearsal import rehearsal_vector

_EXPERT = "expert."


class ModelTemplate(NamedTuple):
    """``layout`` of the shared vector, ``expert_layout`` (maybe empty), ``initial`` (P,) float32."""

    layout: Layout
    expert_layout: Layout
    initial: FloatVector


def model_template(method: str, training: TrainingSettings, seed: int) -> ModelTemplate:
    """Layouts and the shared vector of round 0, from public settings alone.

    FedPalm's model has a TEIM and an expert to release; FedAvg's has neither. ``rehearsal`` shares
    FedAvg's shapes, so that its rounds cost on the wire what real ones cost.

    Raises:
        ConfigError: ``method`` shares nothing, or is not known.
    """
    if method not in ("fedavg", "fedpalm", "rehearsal"):
        raise ConfigError(f"method {method!r} has no shared model")
    fedpalm = method == "fedpalm"
    shapes = model_shapes(teim=fedpalm)
    expert = {name: shape for name, shape in shapes.items() if name.startswith(_EXPERT)}
    layout = _layout(OPEN_SET, shapes)
    expert_layout = _layout(CLOSED_SET_EXPERT.removesuffix(_EXPERT), expert if fedpalm else {})
    if method == "rehearsal":
        return ModelTemplate(layout, expert_layout, rehearsal_vector(layout, seed))
    fusion = (training.teim_alpha, training.teim_beta) if fedpalm else None
    tensors = initial_tensors(seed, teim=fusion)
    initial = layout.flatten({OPEN_SET + name: tensor for name, tensor in tensors.items()})
    return ModelTemplate(layout, expert_layout, initial)


def _layout(prefix: str, shapes: Shapes) -> Layout:
    return Layout(tuple(TensorSpec(prefix + name, shape) for name, shape in shapes.items()))
