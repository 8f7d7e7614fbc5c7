"""N frozen experts on the same images, without waste: FedPalm's N + 1 experts at a verification.

An expert by itself builds its Gabor kernels from three scalars and transforms them at every call; for
one image that is most of its time. A pool does it once, when it is made, and treats the experts of
CompNet together (shapes of one block; the scale of the competition is multiplied into the kernels):

    responses (B, 9 N, n, n)    one bank of 9 N kernels: 35 x 35 in the frequency domain, the others direct
    competed  (B, N, 9, n, n)   softmax over the 9 of each expert
    maps      (B, 12 N, m, m)   5x5 mixing, pooling, 1x1 reduction: grouped over the experts for at most
                                :data:`GROUPED_UP_TO` images, expert by expert for more

Grouping is faster for few images and slower for many: with 9 experts and one thread a pool that groups
takes 0.85 of the CPU time of one that does not at one image, and 1.3 at 32 (docs/results/verify.md).
``fedpalm bench verify --batch 1 --batch 4 --batch 8 --batch 32`` measures both at any size.

CCNet's experts are called one after another, each with its kernels kept: their second order convolves
what differs between experts, and their competition and gates have no grouped form in torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

import torch
from torch import Tensor
from torch.nn import functional as F

from . import ccnet
from .build import Expert
from .compnet import CompetitiveBlock, TexturalExpert
from .compnet_spec import ORIENTATIONS, STRIDE
from .phase_conv import bank_conv, kernel_spectrum, phase_spectrum
from .same_conv import same_spectrum

GROUPED_UP_TO = 4
"""Images in a batch up to which mixing and reduction of all experts are grouped convolutions."""

_DIRECT_UP_TO = 17
"""Kernel sides up to which a bank is convolved directly: measured with 81 kernels, at 1 and 32 images."""


class ExpertPool:
    """Experts of one backbone as they are now; batch normalisation by their running statistics.

    What becomes of the experts later does not reach the pool: :meth:`holds` tells whether it still is
    what a new one would be.
    """

    def __init__(self, experts: Sequence[Expert], grouped_up_to: int = GROUPED_UP_TO) -> None:
        self._experts = tuple(experts)
        # Views: what is written into an expert's tensors shows here.
        self._values = [one.detach().view(-1) for expert in experts for one in _tensors(expert)]
        self._made_of = torch.cat(self._values)
        compnets = [one for one in experts if isinstance(one, TexturalExpert)]
        ccnets = [one for one in experts if isinstance(one, ccnet.TexturalExpert)]
        self._textures = _Comprehensive(ccnets) if ccnets else _Competitive(compnets, grouped_up_to)

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 1, 128, 128) float32 -> (N, B, feature_length), as each expert's; carries no gradient."""
        with torch.no_grad():
            return self._textures(images)

    def holds(self, experts: Sequence[Expert]) -> bool:
        """Whether these very experts, in this order, have the values that the pool was made of."""
        return (
            len(experts) == len(self._experts)
            and all(one is own for one, own in zip(experts, self._experts, strict=True))
            and torch.equal(torch.cat(self._values), self._made_of)
        )


class _Competitive:
    """CompNet's experts."""

    def __init__(self, experts: Sequence[TexturalExpert], grouped_up_to: int) -> None:
        with torch.no_grad():
            self.blocks = (
                _PooledBlock([one.large for one in experts], grouped_up_to),
                _PooledBlock([one.medium for one in experts], grouped_up_to),
                _PooledBlock([one.small for one in experts], grouped_up_to),
            )

    def __call__(self, images: Tensor) -> Tensor:
        spectrum = phase_spectrum(images)
        return torch.cat([block(images, spectrum) for block in self.blocks], dim=2)


class _PooledBlock:
    """One block of all experts."""

    def __init__(self, blocks: Sequence[CompetitiveBlock], grouped_up_to: int) -> None:
        self.grouped_up_to = grouped_up_to
        self.count, self.side = len(blocks), blocks[0].gabor.side
        kernels = torch.cat([one.competition.scale * one.gabor.kernels() for one in blocks])
        self.direct = self.side <= _DIRECT_UP_TO
        self.kernels = kernels if self.direct else kernel_spectrum(kernels)
        reduced = [_reduction(one) for one in blocks]
        self.tail = (
            _stacked([one.mix.weight for one in blocks]),
            _stacked([one.mix.bias for one in blocks if one.mix.bias is not None]),
            _stacked([weight for weight, _ in reduced]),
            _stacked([bias for _, bias in reduced]),
        )
        self.tails = tuple(zip(*(one.chunk(self.count) for one in self.tail), strict=True))

    def __call__(self, images: Tensor, spectrum: Tensor) -> Tensor:
        """Images and their spectrum -> (N, B, 12 m m)."""
        if self.direct:
            responses = F.conv2d(images, self.kernels, stride=STRIDE)
        else:
            responses = bank_conv(spectrum, self.kernels, self.side)
        batch, _, side, _ = responses.shape
        competitors = responses.view(batch, self.count, ORIENTATIONS, side, side)
        competed = torch.softmax(competitors, dim=2)
        if batch <= self.grouped_up_to:
            maps = _maps(competed.flatten(1, 2), self.tail, self.count)
            return maps.view(batch, self.count, -1).transpose(0, 1)
        each = zip(competed.unbind(1), self.tails, strict=True)
        return torch.stack([_maps(one, tail, 1).flatten(1) for one, tail in each])


class _Comprehensive:
    """CCNet's experts, with the kernels of each."""

    def __init__(self, experts: Sequence[ccnet.TexturalExpert]) -> None:
        with torch.no_grad():
            self.experts = [
                [(block, block.banks()) for block in (one.large, one.medium, one.small)]
                for one in experts
            ]

    def __call__(self, images: Tensor) -> Tensor:
        spectrum = same_spectrum(images)
        return torch.stack(
            [
                torch.cat([block.textures(spectrum, banks) for block, banks in blocks], dim=1)
                for blocks in self.experts
            ]
        )


_Tail = tuple[Tensor, ...]
"""Weights and biases of mixing and of reduction."""


def _maps(competed: Tensor, tail: _Tail, groups: int) -> Tensor:
    """(B, 9 G, n, n) -> (B, 12 G, m, m)."""
    mix, mix_bias, reduction, reduction_bias = tail
    inner = competed.contiguous(memory_format=torch.channels_last)
    pooled = F.max_pool2d(F.conv2d(inner, mix, mix_bias, groups=groups), 2)
    return F.conv2d(pooled, reduction, reduction_bias, groups=groups).contiguous()


def _reduction(block: CompetitiveBlock) -> tuple[Tensor, Tensor]:
    """Weight and bias of the 1x1 convolution, with those of the normalisation behind it, if any."""
    weight, bias = block.reduce.weight, block.reduce.bias
    assert bias is not None
    norm = block.norm
    if norm is None:
        return weight, bias
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return weight * scale[:, None, None, None], (bias - norm.running_mean) * scale + norm.bias


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    """One behind the other, as channels-last where they are weights."""
    joined = torch.cat(list(tensors))
    return joined.contiguous(memory_format=torch.channels_last) if joined.dim() == 4 else joined


def _tensors(expert: Expert) -> Iterable[Tensor]:
    """Parameters, and running statistics but their count."""
    return chain(expert.parameters(), (one for one in expert.buffers() if one.is_floating_point()))
