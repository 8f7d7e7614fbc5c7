"""CCNet in figures: names, shapes and constants of its tensors, without torch.

:mod:`.ccnet` holds the network itself, and says which of these figures are our reading.
"""

from __future__ import annotations

from dataclasses import dataclass

IMAGE_SIDE = 128
STRIDE = 2
CHANNEL_WEIGHT, SPATIAL_WEIGHT = 0.8, 0.1
"""Of the competition between channels, and of those along x and along y."""
MIX_CHANNELS = 16
MIX_SIDE = 5
HIDDEN_LENGTH = 4096
TEMPLATE_LENGTH = 2048
ORDERS = ("first", "second")

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class BlockSpec:
    """One block: its competitors, kernel side (pixels), and the ratio r that scales sigma and f."""

    name: str
    competitors: int
    kernel_side: int
    ratio: float


BLOCKS = (
    BlockSpec("large", 9, 35, 1.0),
    BlockSpec("medium", 36, 17, 0.5),
    BlockSpec("small", 9, 7, 0.25),
)
RESPONSE_SIDES = (IMAGE_SIDE // STRIDE, IMAGE_SIDE // STRIDE**2)
"""Sides of the Gabor responses of the first and the second order: 64 and 32, in every block."""


def map_side(response_side: int) -> int:
    """After the 5x5 convolution with stride 2 and the 2x2 pooling: 64 -> 30 -> 15, 32 -> 14 -> 7."""
    return ((response_side - MIX_SIDE) // STRIDE + 1) // 2


MAP_SIZES = tuple(
    map_side(side) ** 2 for _ in BLOCKS for side in RESPONSE_SIDES for _ in range(MIX_CHANNELS)
)
"""Values of each map in the textural feature, one map after the other."""
FEATURE_LENGTH = sum(MAP_SIZES)


def shapes(*, norm: bool) -> Shapes:
    """Shape by name of ``expert.*`` and ``embedding.*``.

    Args:
        norm: with batch normalisation of the pooled maps, which CCNet itself does not have.
    """
    found: Shapes = {}
    for block in BLOCKS:
        for order in ORDERS:
            at = f"expert.{block.name}.{order}"
            found |= {
                f"{at}.gabor.gamma": (),
                f"{at}.gabor.sigma": (),
                f"{at}.gabor.frequency": (),
                f"{at}.gate.squeeze.weight": (block.competitors, block.competitors),
                f"{at}.gate.excite.weight": (block.competitors, block.competitors),
                f"{at}.mix.weight": (MIX_CHANNELS, block.competitors, MIX_SIDE, MIX_SIDE),
                f"{at}.mix.bias": (MIX_CHANNELS,),
            }
            if norm:
                found |= {f"{at}.norm.weight": (MIX_CHANNELS,), f"{at}.norm.bias": (MIX_CHANNELS,)}
    return found | {
        "embedding.hidden.weight": (HIDDEN_LENGTH, FEATURE_LENGTH),
        "embedding.hidden.bias": (HIDDEN_LENGTH,),
        "embedding.out.weight": (TEMPLATE_LENGTH, HIDDEN_LENGTH),
        "embedding.out.bias": (TEMPLATE_LENGTH,),
    }


def constants() -> dict[str, float]:
    """Tensors that begin at one value: gamma 2, sigma 9.2 r, f 0.057 / r, in both orders."""
    found: dict[str, float] = {}
    for block in BLOCKS:
        for order in ORDERS:
            at = f"expert.{block.name}.{order}"
            found[f"{at}.gabor.gamma"] = 2.0
            found[f"{at}.gabor.sigma"] = 9.2 * block.ratio
            found[f"{at}.gabor.frequency"] = 0.057 / block.ratio
            found[f"{at}.norm.weight"] = 1.0
            found[f"{at}.norm.bias"] = 0.0
    return found
