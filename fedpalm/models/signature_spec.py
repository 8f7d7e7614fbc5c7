"""Networks for signatures in figures: groups, names, shapes and initial values, without torch.

A model is a trunk, which is one of three backbones, a projection into the common space and the detection
head. Names begin with the group that is averaged as one: ``trunk.<backbone>``, ``projection``, ``task``.
Every trunk gives FEATURE_LENGTH values, so projection and task have one shape at every site.
:mod:`.signature` holds the networks themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError
from ..groups import TRUNK
from . import compnet_spec
from .backbones import Shapes, drawn_tensor

FEATURE_LENGTH = 512
TEMPLATE_LENGTH = 256
"""D, of the common space."""
TASK_WIDTH = 32

PROJECTION, TASK = "projection", "task"
COMMON = (PROJECTION, TASK)
"""Groups that every site is a member of."""

SIGNET_CHANNELS = (24, 48, 64, 64, 48)
"""A quarter of SigNet's 96, 256, 384, 384, 256, as far as they are multiples of GROUPS."""
SIGNET_SIDES = (7, 5, 3, 3, 3)
SIGNET_FLAT = 48 * 4 * 4

RESNET_CHANNELS = (16, 32, 64, 128)
"""Of the stages; the first keeps the stem's 32 x 32, every other one halves it."""
RESNET_STEM_SIDE = 7

COMPNET_POOLED_SIDE = 6
"""Each of the 36 textural maps is averaged to 6 x 6: 5 million weights of an embedding layer less."""
COMPNET_FLAT = 3 * compnet_spec.REDUCED_CHANNELS * COMPNET_POOLED_SIDE**2

GROUPS = 8
"""Of channels that are normalised together. Group normalisation, because running statistics of batches
are data of a site, and their average over sites is the statistic of none of them."""


def trunk_group(backbone: str) -> str:
    """The group of a backbone's trunk."""
    return TRUNK + backbone


def model_shapes(backbones: Iterable[str]) -> Shapes:
    """Shape by name of the union of all groups: trunks in the order of the alphabet, then COMMON.

    Raises:
        ConfigError: there is no such backbone.
    """
    shapes: Shapes = {}
    for backbone in sorted(set(backbones)):
        if backbone not in _TRUNKS:
            raise ConfigError(
                f"backbone {backbone!r} is not known for signatures; known: "
                f"{', '.join(SIGNATURE_BACKBONES)}"
            )
        group = trunk_group(backbone)
        shapes |= {f"{group}.{name}": shape for name, shape in _TRUNKS[backbone]().items()}
    return shapes | {
        f"{PROJECTION}.weight": (TEMPLATE_LENGTH, FEATURE_LENGTH),
        f"{PROJECTION}.bias": (TEMPLATE_LENGTH,),
        f"{TASK}.hidden.weight": (TASK_WIDTH, TEMPLATE_LENGTH),
        f"{TASK}.hidden.bias": (TASK_WIDTH,),
        f"{TASK}.output.weight": (1, TASK_WIDTH),
        f"{TASK}.output.bias": (1,),
    }


def initial_model(backbones: Iterable[str], seed: int) -> dict[str, npt.NDArray[np.float32]]:
    """Initial values by name, from the seed alone; a tensor's do not depend on which others there are.

    Normalisations begin as the identity, CompNet's scalars as in a palm's model, the rest is uniform
    in +-1/sqrt(fan-in).
    """
    shapes = model_shapes(backbones)
    palm = compnet_spec.constants()
    tensors: dict[str, npt.NDArray[np.float32]] = {}
    for name, shape in shapes.items():
        constant = palm.get(name.removeprefix(f"{trunk_group('compnet')}."))
        if ".norm" in name:
            constant = 1.0 if name.endswith(".weight") else 0.0
        tensors[name] = (
            drawn_tensor(name, shapes, seed)
            if constant is None
            else np.full(shape, constant, np.float32)
        )
    return tensors


def _signet() -> Shapes:
    shapes: Shapes = {}
    before = 1
    for at, (channels, side) in enumerate(zip(SIGNET_CHANNELS, SIGNET_SIDES, strict=True)):
        shapes |= _convolution(f"conv{at}", f"norm{at}", channels, before, side)
        before = channels
    return shapes | _linear("feature", SIGNET_FLAT)


def _resnet() -> Shapes:
    shapes = _convolution("stem", "norm", RESNET_CHANNELS[0], 1, RESNET_STEM_SIDE)
    before = RESNET_CHANNELS[0]
    for at, channels in enumerate(RESNET_CHANNELS):
        block = f"block{at}"
        shapes |= _convolution(f"{block}.conv0", f"{block}.norm0", channels, before, 3)
        shapes |= _convolution(f"{block}.conv1", f"{block}.norm1", channels, channels, 3)
        if channels != before:
            shapes |= _convolution(f"{block}.skip", f"{block}.norm2", channels, before, 1)
        before = channels
    return shapes


def _compnet() -> Shapes:
    palm = compnet_spec.shapes(norm=False)
    expert = {name: shape for name, shape in palm.items() if name.startswith("expert.")}
    return expert | _linear("feature", COMPNET_FLAT)


def _convolution(name: str, norm: str, channels: int, before: int, side: int) -> Shapes:
    """Without bias: the normalisation behind it has one."""
    return {
        f"{name}.weight": (channels, before, side, side),
        f"{norm}.weight": (channels,),
        f"{norm}.bias": (channels,),
    }


def _linear(name: str, length: int) -> Shapes:
    return {f"{name}.weight": (FEATURE_LENGTH, length), f"{name}.bias": (FEATURE_LENGTH,)}


_TRUNKS: dict[str, Callable[[], Shapes]] = {
    "signet": _signet,
    "resnet": _resnet,
    "compnet": _compnet,
}
SIGNATURE_BACKBONES = tuple(_TRUNKS)
