"""Networks for signatures: a trunk, the projection into the common space, the detection head.

Sources: SigNet is Hafemann, Sabourin, Oliveira 2017, "Learning features for offline handwritten
signature verification using deep convolutional neural networks" (arXiv:1705.05787): five convolutions,
pooling after the first, second and fifth. Ours are a quarter as wide, take 128 x 128 pixels and normalise
by groups of channels (Wu, He 2018, arXiv:1803.08494). ResNet: He et al. 2016 (arXiv:1512.03385), one
basic block a stage. CompNet is the textural expert of palms, its convolution in the frequency domain.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .compnet import TexturalExpert
from .compnet_spec import MAP_SIZES
from .phase_conv import phase_spectrum
from .signature_spec import (
    COMPNET_FLAT,
    COMPNET_POOLED_SIDE,
    FEATURE_LENGTH,
    GROUPS,
    RESNET_CHANNELS,
    RESNET_STEM_SIDE,
    SIGNET_CHANNELS,
    SIGNET_FLAT,
    SIGNET_SIDES,
    TASK_WIDTH,
    TEMPLATE_LENGTH,
)

_SIGNET_POOLED = (0, 1, 4)


class SigNet(nn.Module):
    """(B, 1, 128, 128) -> (B, FEATURE_LENGTH)."""

    def __init__(self) -> None:
        super().__init__()
        before = 1
        for at, (channels, side) in enumerate(zip(SIGNET_CHANNELS, SIGNET_SIDES, strict=True)):
            stride, padding = (3, 0) if at == 0 else (1, side // 2)
            self.add_module(
                f"conv{at}", nn.Conv2d(before, channels, side, stride, padding, bias=False)
            )
            self.add_module(f"norm{at}", nn.GroupNorm(GROUPS, channels))
            before = channels
        self.feature = nn.Linear(SIGNET_FLAT, FEATURE_LENGTH)

    def forward(self, images: Tensor) -> Tensor:
        maps = images
        for at in range(len(SIGNET_CHANNELS)):
            convolved = self.get_submodule(f"conv{at}")(maps)
            maps = F.relu(self.get_submodule(f"norm{at}")(convolved))
            if at in _SIGNET_POOLED:
                maps = F.max_pool2d(maps, 3, 2)
        return F.relu(self.feature(maps.flatten(1)))


class _Block(nn.Module):
    """Two 3 x 3 convolutions and what they are added to."""

    def __init__(self, before: int, channels: int) -> None:
        super().__init__()
        stride = 1 if channels == before else 2
        self.conv0 = nn.Conv2d(before, channels, 3, stride, 1, bias=False)
        self.norm0 = nn.GroupNorm(GROUPS, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm1 = nn.GroupNorm(GROUPS, channels)
        self.skip: nn.Conv2d | None = None
        if stride == 2:
            self.skip = nn.Conv2d(before, channels, 1, stride, bias=False)
            self.norm2 = nn.GroupNorm(GROUPS, channels)

    def forward(self, maps: Tensor) -> Tensor:
        inner = F.relu(self.norm0(self.conv0(maps)))
        inner = self.norm1(self.conv1(inner))
        return F.relu(inner + (maps if self.skip is None else self.norm2(self.skip(maps))))


class ResNet(nn.Module):
    """(B, 1, 128, 128) -> (B, FEATURE_LENGTH): the last 128 maps, averaged to 2 x 2."""

    def __init__(self) -> None:
        super().__init__()
        first = RESNET_CHANNELS[0]
        self.stem = nn.Conv2d(1, first, RESNET_STEM_SIDE, 4, RESNET_STEM_SIDE // 2, bias=False)
        self.norm = nn.GroupNorm(GROUPS, first)
        before = first
        for at, channels in enumerate(RESNET_CHANNELS):
            self.add_module(f"block{at}", _Block(before, channels))
            before = channels

    def forward(self, images: Tensor) -> Tensor:
        maps = F.relu(self.norm(self.stem(images)))
        for at in range(len(RESNET_CHANNELS)):
            maps = self.get_submodule(f"block{at}")(maps)
        return F.adaptive_avg_pool2d(maps, 2).flatten(1)


class CompNetTrunk(nn.Module):
    """(F, B, 18) phase spectra -> (B, FEATURE_LENGTH): the expert's maps, averaged to 6 x 6."""

    def __init__(self) -> None:
        super().__init__()
        self.expert = TexturalExpert()
        self.feature = nn.Linear(COMPNET_FLAT, FEATURE_LENGTH)

    def forward(self, spectrum: Tensor) -> Tensor:
        textures = torch.split(self.expert(spectrum), list(MAP_SIZES), dim=1)
        pooled = [
            F.adaptive_avg_pool2d(one.reshape(-1, 1, side, side), COMPNET_POOLED_SIDE).flatten(1)
            for one, side in zip(textures, map(math.isqrt, MAP_SIZES), strict=True)
        ]
        return F.relu(self.feature(torch.cat(pooled, dim=1)))


class Detection(nn.Module):
    """(B, TEMPLATE_LENGTH) unit embeddings -> (B,) logits, above 0 for genuine."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(TEMPLATE_LENGTH, TASK_WIDTH)
        self.output = nn.Linear(TASK_WIDTH, 1)

    def forward(self, embeddings: Tensor) -> Tensor:
        # Of a unit vector a value is 1/16; a layer's initial weights take values of the order of 1.
        scaled = TEMPLATE_LENGTH**0.5 * F.normalize(embeddings)
        logits: Tensor = self.output(F.relu(self.hidden(scaled)))
        return logits[:, 0]


class SignatureModel(nn.Module):
    """What a site with this backbone shares; its head of writers is not part of it.

    Tensors have the names of :mod:`.signature_spec`. Built without values: whoever builds one loads them.
    """

    def __init__(self, backbone: str) -> None:
        super().__init__()
        self.backbone = backbone
        self.trunk = nn.ModuleDict({backbone: _TRUNKS[backbone]()})
        self.projection = nn.Linear(FEATURE_LENGTH, TEMPLATE_LENGTH)
        self.task = Detection()

    def forward(self, prepared: Tensor) -> Tensor:
        """Prepared images -> (B, TEMPLATE_LENGTH) embeddings, not normalised."""
        embeddings: Tensor = self.projection(self.features(prepared))
        return embeddings

    def features(self, prepared: Tensor) -> Tensor:
        """Prepared images -> (B, FEATURE_LENGTH), what the trunk says of them."""
        found: Tensor = self.trunk[self.backbone](prepared)
        return found

    def representation(self) -> list[nn.Parameter]:
        """What both tasks move: trunk and projection, as far as it is trained."""
        return [
            parameter
            for module in (self.trunk, self.projection)
            for parameter in module.parameters()
            if parameter.requires_grad
        ]

    def prepare(self, images: Tensor) -> Tensor:
        """What the trunk takes of (B, 1, 128, 128) images; carries no gradient."""
        return phase_spectrum(images) if self.backbone == "compnet" else images

    def take(self, prepared: Tensor, index: Tensor) -> Tensor:
        """Of prepared images those at ``index``, (n,) int64."""
        return torch.index_select(prepared, 1 if self.backbone == "compnet" else 0, index)


_TRUNKS: dict[str, type[nn.Module]] = {"signet": SigNet, "resnet": ResNet, "compnet": CompNetTrunk}
