"""What a plan says about a method's model: layouts and initial vector. Loads no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ..errors import ConfigError
from ..layout import CLOSED_SET_EXPERT, OPEN_SET, FloatVector, Layout, TensorSpec
from ..models.backbones import Shapes, initial_tensors, model_shapes
from ..plan import TrainingSettings
from .base import Tensors
from .rehearsal import rehearsal_vector

_EXPERT = "expert."


class Anatomy(NamedTuple):
    """What a method's model has, and which of its tensors sites share."""

    shares: Callable[[str], bool]
    teim: bool = False
    norm: bool = False
    releases_expert: bool = False


def _everything(name: str) -> bool:
    return True


def _not_norm(name: str) -> bool:
    return ".norm." not in name


ANATOMIES: dict[str, Anatomy] = {
    "local": Anatomy(lambda name: False),
    "fedavg": Anatomy(_everything),
    "fedbn": Anatomy(_not_norm, norm=True),
    "fedkd": Anatomy(_everything),
    "fednova": Anatomy(_everything),
    "fedpalm": Anatomy(_everything, teim=True, releases_expert=True),
    "fedpalm-release": Anatomy(_everything),
    "fedper": Anatomy(lambda name: name.startswith(_EXPERT)),
    "fedprox": Anatomy(_everything),
    "hyperfed": Anatomy(_everything),
    "moon": Anatomy(_everything),
    "rehearsal": Anatomy(_everything),
}


def anatomy_of(method: str, training: TrainingSettings) -> Anatomy:
    """A method's anatomy under a plan's settings.

    Raises:
        ConfigError: ``method`` is not known.
    """
    found = ANATOMIES.get(method)
    if found is None:
        raise ConfigError(f"method {method!r} is not known; known: {', '.join(sorted(ANATOMIES))}")
    if training.expert_norm == "none":
        return found
    # An expert that is normalised where it was trained is nobody else's: none is released.
    shares = found.shares
    return found._replace(
        norm=True,
        shares=lambda name: shares(name) and _not_norm(name),
        releases_expert=False,
    )


class ModelTemplate(NamedTuple):
    """``layout`` of the shared vector, ``expert_layout`` (maybe empty), ``initial`` (P,) float32.

    ``private``: initial values of the model's tensors that stay at the site.
    """

    layout: Layout
    expert_layout: Layout
    initial: FloatVector
    private: Tensors


def model_template(method: str, training: TrainingSettings, seed: int) -> ModelTemplate:
    """Layouts and the shared vector of round 0, from public settings alone.

    ``rehearsal`` shares FedAvg's shapes, so that its rounds cost on the wire what real ones cost.

    Raises:
        ConfigError: ``method`` is not known.
    """
    anatomy = anatomy_of(method, training)
    covariance = training.template_normaliser == "federation"
    shapes = model_shapes(
        training.backbone, teim=anatomy.teim, norm=anatomy.norm, covariance=covariance
    )
    layout = _layout(OPEN_SET, {n: shape for n, shape in shapes.items() if anatomy.shares(n)})
    released = {
        name: shape
        for name, shape in shapes.items()
        if anatomy.releases_expert and name.startswith(_EXPERT)
    }
    expert_layout = _layout(CLOSED_SET_EXPERT.removesuffix(_EXPERT), released)
    if method == "rehearsal":
        return ModelTemplate(layout, expert_layout, rehearsal_vector(layout, seed), {})
    tensors = initial_tensors(
        training.backbone,
        seed,
        teim=(training.teim_alpha, training.teim_beta) if anatomy.teim else None,
        norm=anatomy.norm,
        covariance=covariance,
    )
    shared = {OPEN_SET + name: one for name, one in tensors.items() if anatomy.shares(name)}
    private = {name: one for name, one in tensors.items() if not anatomy.shares(name)}
    return ModelTemplate(layout, expert_layout, layout.flatten(shared), private)


def _layout(prefix: str, shapes: Shapes) -> Layout:
    return Layout(tuple(TensorSpec(prefix + name, shape) for name, shape in shapes.items()))
