"""The backbones in figures: lengths, tensor names, shapes and initial values, without torch.

Whoever writes a plan needs the layout and the initial vector of a model that it cannot and must not
run; both come from here. :mod:`.build` makes the networks themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ..canonical import domain_hash
from ..plan import BackboneName
from . import ccnet_spec, compnet_spec

Shapes = dict[str, tuple[int, ...]]


class _ShapesOf(Protocol):
    def __call__(self, *, norm: bool) -> Shapes: ...


class Backbone(NamedTuple):
    """``feature_length`` of f_T, ``template_length``; shapes of all tensors; those that begin constant.

    ``map_sizes``: how many values of f_T each of its maps has, in their order.
    """

    feature_length: int
    map_sizes: tuple[int, ...]
    template_length: int
    shapes: _ShapesOf
    constants: Callable[[], dict[str, float]]


BACKBONES: dict[BackboneName, Backbone] = {
    "compnet": Backbone(
        compnet_spec.FEATURE_LENGTH,
        compnet_spec.MAP_SIZES,
        compnet_spec.TEMPLATE_LENGTH,
        compnet_spec.shapes,
        compnet_spec.constants,
    ),
    "ccnet": Backbone(
        ccnet_spec.FEATURE_LENGTH,
        ccnet_spec.MAP_SIZES,
        ccnet_spec.TEMPLATE_LENGTH,
        ccnet_spec.shapes,
        ccnet_spec.constants,
    ),
}


def model_shapes(
    backbone: BackboneName, *, teim: bool = False, norm: bool = False, covariance: bool = False
) -> Shapes:
    """Shape by name of all tensors: ``expert.*``, ``embedding.*``, ``teim.*``, ``normaliser.*``."""
    spec = BACKBONES[backbone]
    shapes = spec.shapes(norm=norm)
    if teim:
        shapes |= {"teim.alpha": (), "teim.beta": ()}
    if covariance:
        shapes |= {"normaliser.within": (spec.template_length, spec.template_length)}
    return shapes


def initial_tensors(
    backbone: BackboneName,
    seed: int,
    *,
    teim: tuple[float, float] | None = None,
    norm: bool = False,
    covariance: bool = False,
) -> dict[str, npt.NDArray[np.float32]]:
    """Initial values by name, from the plan's seed alone.

    Weights and biases are uniform in +-1/sqrt(fan-in), unless the backbone names a constant; ``teim`` is
    (alpha, beta), or None for a model without. A tensor begins the same whatever else the model has.
    """
    constants = BACKBONES[backbone].constants()
    if teim is not None:
        constants["teim.alpha"], constants["teim.beta"] = teim
    constants["normaliser.within"] = 0.0
    shapes = model_shapes(backbone, teim=teim is not None, norm=norm, covariance=covariance)
    tensors: dict[str, npt.NDArray[np.float32]] = {}
    for name, shape in shapes.items():
        if name in constants:
            tensors[name] = np.full(shape, constants[name], dtype=np.float32)
            continue
        tensors[name] = drawn_tensor(name, shapes, seed)
    return tensors


def drawn_tensor(name: str, shapes: Shapes, seed: int) -> npt.NDArray[np.float32]:
    """Uniform in +-1/sqrt(fan-in) of the weight that ``name`` goes with, from the seed and the name."""
    fan_in = math.prod(shapes[name.rsplit(".", 1)[0] + ".weight"][1:])
    digest = domain_hash("initial-tensor/v1", seed.to_bytes(8, "big"), name.encode())
    rng = np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))
    drawn = (rng.random(shapes[name], dtype=np.float32) * 2 - 1) / np.float32(math.sqrt(fan_in))
    return drawn.astype(np.float32)
