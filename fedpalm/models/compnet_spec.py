"""CompNet in figures: names, shapes and constants of its tensors, without torch.

:mod:`.compnet` holds the network itself.
"""

from __future__ import annotations

from dataclasses import dataclass

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
MAP_SIZES = tuple(block.map_side**2 for block in BLOCKS for _ in range(REDUCED_CHANNELS))
"""Values of each map in the textural feature, one map after the other."""
FEATURE_LENGTH = sum(MAP_SIZES)


def shapes(*, norm: bool) -> Shapes:
    """Shape by name of ``expert.*`` and ``embedding.*``.

    Args:
        norm: with batch normalisation of the reduced maps, which CompNet itself does not have.
    """
    found: Shapes = {}
    for block in BLOCKS:
        at = f"expert.{block.name}"
        found |= {
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
        if norm:
            found |= {
                f"{at}.norm.weight": (REDUCED_CHANNELS,),
                f"{at}.norm.bias": (REDUCED_CHANNELS,),
            }
    return found | {
        "embedding.weight": (TEMPLATE_LENGTH, FEATURE_LENGTH),
        "embedding.bias": (TEMPLATE_LENGTH,),
    }


def constants() -> dict[str, float]:
    """Tensors that begin at one value: gamma 2, sigma 9.2 r, f 0.057 / r, competition a = 1, b = 0."""
    found: dict[str, float] = {}
    for block in BLOCKS:
        at = f"expert.{block.name}"
        found[f"{at}.gabor.gamma"] = 2.0
        found[f"{at}.gabor.sigma"] = 9.2 * block.ratio
        found[f"{at}.gabor.frequency"] = 0.057 / block.ratio
        found[f"{at}.competition.scale"] = 1.0
        found[f"{at}.competition.shift"] = 0.0
        found[f"{at}.norm.weight"] = 1.0
        found[f"{at}.norm.bias"] = 0.0
    return found
