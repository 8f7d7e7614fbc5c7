"""CompNet in figures: names, shapes and initial values of its tensors, without torch.

Whoever writes a plan needs the layout and the initial vector of a model that it cannot and must not
run; both come from here. :mod:`.compnet` holds the network itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..canonical import domain_hash

IMAGE_SIDE = 128
ORIENTATIONS = 9
STRIDE = 3
MIX_CHANNELS = 32
MIX_SIDE = 5
REDUCED_CHANNELS = 12
TEMPLATE_LENGTH = 512

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class BlockSpec:
    """One competitive block: a kernel side (pixels) and the ratio r that scales sigma and f."""

    name: str
    kernel_side: int
    ratio: float

    @property
    def response_side(self) -> int:
        """Side of the Gabor response map."""
        return (IMAGE_SIDE - self.kernel_side) // STRIDE + 1

    @property
    def map_side(self) -> int:
        """Side of the block's output map, after the 5x5 convolution and the 2x2 pooling."""
        return (self.response_side - MIX_SIDE + 1) // 2


BLOCKS = (
    BlockSpec("large", 35, 1.0),
    BlockSpec("medium", 17, 0.5),
    BlockSpec("small", 7, 0.25),
)
FEATURE_LENGTH = sum(REDUCED_CHANNELS * block.map_side**2 for block in BLOCKS)


def model_shapes(*, teim: bool) -> Shapes:
    """Shape by name of all tensors of one model (``expert.*``, ``embedding.*``, ``teim.*``)."""
    shapes: Shapes = {}
    for block in BLOCKS:
        at = f"expert.{block.name}"
        shapes |= {
            f"{at}.gabor.gamma": (),
            f"{at}.gabor.sigma": (),
            f"{at}.gabor.frequency": (),
            f"{at}.competition.scale": (),
            f"{at}.competition.shift": (),
            f"{at}.mix.weight": (MIX_CHANNELS, ORIENTATIONS, MIX_SIDE, MIX_SIDE),
            f"{at}.mix.bias": (MIX_CHANNELS,),
            f"{at}.reduce.weight": (REDUCED_CHANNELS, MIX_CHANNELS, 1, 1),
            f"{at}.reduce.bias": (REDUCED_CHANNELS,),
        }
    shapes |= {
        "embedding.weight": (TEMPLATE_LENGTH, FEATURE_LENGTH),
        "embedding.bias": (TEMPLATE_LENGTH,),
    }
    if teim:
        shapes |= {"teim.alpha": (), "teim.beta": ()}
    return shapes


def initial_tensors(
    seed: int, *, teim: tuple[float, float] | None
) -> dict[str, npt.NDArray[np.float32]]:
    """Initial values by name, from the plan's seed alone.

    Gabor scalars start at gamma 2, sigma 9.2 r, f 0.057 / r, the competition at a = 1, b = 0; weights
    and biases are uniform in +-1/sqrt(fan-in); ``teim`` is (alpha, beta), or None for a model without.
    """
    constants: dict[str, float] = {}
    for block in BLOCKS:
        at = f"expert.{block.name}"
        constants[f"{at}.gabor.gamma"] = 2.0
        constants[f"{at}.gabor.sigma"] = 9.2 * block.ratio
        constants[f"{at}.gabor.frequency"] = 0.057 / block.ratio
        constants[f"{at}.competition.scale"] = 1.0
        constants[f"{at}.competition.shift"] = 0.0
    if teim is not None:
        constants["teim.alpha"], constants["teim.beta"] = teim
    shapes = model_shapes(teim=teim is not None)
    tensors: dict[str, npt.NDArray[np.float32]] = {}
    for name, shape in shapes.items():
        if name in constants:
            tensors[name] = np.array(constants[name], dtype=np.float32)
            continue
        fan_in = math.prod(shapes[name.rsplit(".", 1)[0] + ".weight"][1:])
        digest = domain_hash("initial-tensor/v1", seed.to_bytes(8, "big"), name.encode())
        rng = np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))
        tensors[name] = (
            (rng.random(shape, dtype=np.float32) * 2 - 1) / np.float32(math.sqrt(fan_in))
        ).astype(np.float32)
    return tensors
