"""CCNet: textures of two orders that compete between channels and in space.

Source: Yang et al., "Comprehensive Competition Mechanism in Palmprint Recognition", IEEE TIFS 2023;
split into textural expert T and embedding Q as FedPalm, section IV-B, splits CompNet: T is everything
up to the concatenated feature, Q is the two linear layers.

Three blocks with 9, 36 and 9 competitors and kernels 35, 17 and 7. In each, with G a Gabor bank of
stride 2 that keeps the size otherwise, and C the competition:

    r_1 = G_1(x),           c_1 = C(r_1),   m_1 = pool(mix(gate(c_1)))     128 -> 64 -> 30 -> 15
    r_2 = G_2(sum of r_1),  c_2 = C(r_2),   m_2 = pool(mix(gate(c_2)))      64 -> 32 -> 14 ->  7
    C(r) = 0.8 softmax over channels + 0.1 softmax along x + 0.1 softmax along y

With 16 maps an order the feature has 3 x 16 x (15^2 + 7^2) = 13,152 values, CCNet's own number; so the
5x5 convolution has no padding, and both banks have stride 2. What follows is our reading:

- the second bank has kernel side, number of orientations, ratio and initial values of the first, its
  own three scalars, and sees the sum of the first bank's responses;
- competitors are at k pi / n of n orientations, their softmax has no scale of its own;
- squeeze-and-excitation has a hidden layer as wide as its input, and no biases;
- nothing lies between the two linear layers, as nothing lies behind CompNet's one;
- the contrast sees the 2,048 values that are the template, and dropout acts before the head only.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .ccnet_spec import (
    BLOCKS,
    CHANNEL_WEIGHT,
    FEATURE_LENGTH,
    HIDDEN_LENGTH,
    IMAGE_SIDE,
    MIX_CHANNELS,
    MIX_SIDE,
    SPATIAL_WEIGHT,
    STRIDE,
    TEMPLATE_LENGTH,
    BlockSpec,
)
from .compnet import LearnableGabor
from .same_conv import bank_conv, kernel_bank, same_spectrum


def compete(responses: Tensor) -> Tensor:
    """(B, n, h, w) -> (B, n, h, w): 0.8 softmax over channels, 0.1 along x, 0.1 along y."""
    spatial = torch.softmax(responses, dim=2) + torch.softmax(responses, dim=3)
    return CHANNEL_WEIGHT * torch.softmax(responses, dim=1) + SPATIAL_WEIGHT * spatial


class Gate(nn.Module):
    """Squeeze-and-excitation: each channel times sigmoid(W_2 relu(W_1 means)). Source: arXiv:1709.01507."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, channels, bias=False)
        self.excite = nn.Linear(channels, channels, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        weights = torch.sigmoid(self.excite(F.relu(self.squeeze(maps.mean(dim=(2, 3))))))
        gated: Tensor = maps * weights[:, :, None, None]
        return gated


class TexturalOrder(nn.Module):
    """One order of a block: Gabor bank, and from its responses 16 maps.

    ``norm`` adds batch normalisation of the 16 maps; CCNet itself has none.
    """

    def __init__(self, spec: BlockSpec, norm: bool) -> None:
        super().__init__()
        self.gabor = LearnableGabor(spec.kernel_side, spec.competitors)
        self.gate = Gate(spec.competitors)
        self.mix = nn.Conv2d(spec.competitors, MIX_CHANNELS, MIX_SIDE, stride=STRIDE)
        self.norm = nn.BatchNorm2d(MIX_CHANNELS) if norm else None

    def maps(self, responses: Tensor) -> Tensor:
        """(B, n, h, h) responses -> (B, 16, m, m)."""
        pooled: Tensor = F.max_pool2d(self.mix(self.gate(compete(responses))), 2)
        return pooled if self.norm is None else self.norm(pooled)


class ComprehensiveBlock(nn.Module):
    """Both orders of one kernel side."""

    def __init__(self, spec: BlockSpec, norm: bool) -> None:
        super().__init__()
        self.first, self.second = TexturalOrder(spec, norm), TexturalOrder(spec, norm)

    def forward(self, spectrum: Tensor) -> Tensor:
        """(F, B, 8) spectrum -> (B, 4384): the maps of the first order, then those of the second."""
        return self.textures(spectrum, self.banks())

    def banks(self) -> tuple[Tensor, Tensor]:
        """The transformed kernels of both orders."""
        return (
            kernel_bank(self.first.gabor.kernels(), IMAGE_SIDE),
            kernel_bank(self.second.gabor.kernels(), IMAGE_SIDE // STRIDE),
        )

    def textures(self, spectrum: Tensor, banks: tuple[Tensor, Tensor]) -> Tensor:
        """As :meth:`forward`, with the banks that :meth:`banks` gave."""
        first = bank_conv(spectrum, banks[0], IMAGE_SIDE)
        total = same_spectrum(first.sum(dim=1, keepdim=True))
        second = bank_conv(total, banks[1], IMAGE_SIDE // STRIDE)
        maps = self.first.maps(first), self.second.maps(second)
        return torch.cat([each.flatten(1) for each in maps], dim=1)


class TexturalExpert(nn.Module):
    """T: three blocks side by side; 49,146 parameters."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.large, self.medium, self.small = (ComprehensiveBlock(spec, norm) for spec in BLOCKS)

    def forward(self, spectrum: Tensor) -> Tensor:
        """(F, B, 8) spectrum of the images -> (B, 13152) textural feature f_T."""
        return torch.cat(
            [block(spectrum) for block in (self.large, self.medium, self.small)], dim=1
        )

    def learn(self, learning: bool) -> None:
        """Train all parameters, or none."""
        self.requires_grad_(learning)


def embedding_layers() -> nn.Sequential:
    """Q: 13152 -> 4096 -> 2048; 62,265,344 parameters."""
    hidden = nn.Linear(FEATURE_LENGTH, HIDDEN_LENGTH)
    return nn.Sequential(OrderedDict(hidden=hidden, out=nn.Linear(HIDDEN_LENGTH, TEMPLATE_LENGTH)))
