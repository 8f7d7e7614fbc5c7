"""CompNet's textural expert: competitive learnable Gabor textures.

Source: Liang et al., "CompNet: Competitive Neural Network for Palmprint Recognition Using Learnable
Gabor Kernels", IEEE SPL 2021; split into textural expert T and embedding Q as in FedPalm, section IV-B.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .compnet_spec import (
    BLOCKS,
    MIX_CHANNELS,
    MIX_SIDE,
    ORIENTATIONS,
    REDUCED_CHANNELS,
    BlockSpec,
)
from .phase_conv import phase_conv


@cache
def _rotated_grid(side: int, orientations: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(n, side, side) squares-ready x' and y' of the pixel grid, rotated by k pi / n."""
    axis = torch.arange(side, dtype=torch.float32, device=device) - side // 2
    theta = torch.arange(orientations, dtype=torch.float32, device=device) * math.pi / orientations
    cos, sin = torch.cos(theta)[:, None, None], torch.sin(theta)[:, None, None]
    y, x = axis[:, None], axis[None, :]
    return x * cos + y * sin, y * cos - x * sin


def _scalar() -> nn.Parameter:
    return nn.Parameter(torch.zeros(()))


class LearnableGabor(nn.Module):
    """Gabor kernels from three scalars: gamma (aspect), sigma (pixels), frequency (1/pixel).

    g = -exp(-((gamma x')^2 + y'^2) / (16 sigma^2)) cos(2 pi f x'), less its mean; psi = 0.
    """

    def __init__(self, side: int, orientations: int = ORIENTATIONS) -> None:
        super().__init__()
        self.side, self.orientations = side, orientations
        self.gamma, self.sigma, self.frequency = _scalar(), _scalar(), _scalar()

    def kernels(self) -> Tensor:
        """(n, 1, side, side)."""
        x, y = _rotated_grid(self.side, self.orientations, self.gamma.device)
        envelope = torch.exp(((self.gamma * x) ** 2 + y**2) * (-1 / 16) / self.sigma**2)
        wave = torch.cos(x * (2 * math.pi * self.frequency))
        kernels = -envelope * wave
        return (kernels - kernels.mean(dim=(1, 2), keepdim=True)).unsqueeze(1)


class Competition(nn.Module):
    """Softmax of a (x - b) over the orientations.

    b shifts every competitor alike and cancels: it is kept as CompNet's parameter, and never trained
    (its gradient is rounding noise, which Adam would turn into full steps).
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale = _scalar()
        self.shift = nn.Parameter(torch.zeros(()), requires_grad=False)

    def forward(self, responses: Tensor) -> Tensor:
        return torch.softmax(self.scale * responses, dim=1)


class CompetitiveBlock(nn.Module):
    """Gabor bank, competition, 5x5 convolution 9 -> 32, 2x2 max pooling, 1x1 convolution 32 -> 12.

    ``norm`` adds batch normalisation of the 12 maps; CompNet itself has none.
    """

    def __init__(self, spec: BlockSpec, norm: bool) -> None:
        super().__init__()
        self.gabor = LearnableGabor(spec.kernel_side)
        self.competition = Competition()
        self.mix = nn.Conv2d(ORIENTATIONS, MIX_CHANNELS, MIX_SIDE)
        self.reduce = nn.Conv2d(MIX_CHANNELS, REDUCED_CHANNELS, 1)
        self.norm = nn.BatchNorm2d(REDUCED_CHANNELS) if norm else None

    def forward(self, spectrum: Tensor) -> Tensor:
        """(F, B, 18) phase spectrum -> (B, 12, m, m)."""
        responses = phase_conv(spectrum, self.gabor.kernels())
        competed = self.competition(responses).contiguous(memory_format=torch.channels_last)
        weight = self.mix.weight.contiguous(memory_format=torch.channels_last)
        mixed = F.conv2d(competed, weight, self.mix.bias)
        reduced: Tensor = self.reduce(F.max_pool2d(mixed, 2))
        return reduced if self.norm is None else self.norm(reduced)


class TexturalExpert(nn.Module):
    """T: three competitive blocks side by side; 22,899 parameters."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.large, self.medium, self.small = (CompetitiveBlock(spec, norm) for spec in BLOCKS)

    def forward(self, spectrum: Tensor) -> Tensor:
        """(F, B, 18) phase spectrum of the images -> (B, 9708) textural feature f_T."""
        blocks = (self.large, self.medium, self.small)
        return torch.cat([block(spectrum).flatten(1) for block in blocks], dim=1)

    def learn(self, learning: bool) -> None:
        """Train all parameters but the competition's shift, or none."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(learning and not name.endswith("competition.shift"))
