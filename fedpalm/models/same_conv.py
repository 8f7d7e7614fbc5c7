"""Stride-2 convolution of one image channel with large kernels, zeros around it, in the frequency domain.

As :mod:`.phase_conv`, for CCNet: the image is split into its 2 x 2 phases, and in the frequency domain
the strided convolution is one 4 x 4 matrix product a frequency. All kernels are centred in one grid, so
that one spectrum of the image serves them all. Gradients run to kernels and images alike, because the
second order of CCNet convolves responses of the first.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .ccnet_spec import STRIDE

_MARGIN = 18
"""Zeros before the image, in pixels; a kernel may have a side of up to 2 x 18 - 1."""
_GRID = 2 * _MARGIN
_PHASES = STRIDE * STRIDE
_LENGTHS = {128: 75, 64: 45}
"""Transform length by image side: smooth, and long enough for image and margin (73, 41).

What wraps around falls into the margin, which is as wide as half a kernel."""


def same_spectrum(images: Tensor) -> Tensor:
    """(B, 1, s, s) float32, s 128 or 64 -> (F, B, 8) float32: four real parts, then four imaginary ones."""
    padded = F.pad(images, (_MARGIN, 0, _MARGIN, 0))
    return _matrices(F.pixel_unshuffle(padded, STRIDE), _LENGTHS[images.shape[-1]])


def same_conv(spectrum: Tensor, kernels: Tensor, image_side: int) -> Tensor:
    """As ``F.conv2d(images, kernels, stride=2, padding=k // 2)``.

    Args:
        spectrum: (F, B, 8) float32 of :func:`same_spectrum`.
        kernels: (O, 1, k, k) float32, k odd and at most 35.
        image_side: s, 128 or 64.

    Returns:
        (B, O, s / 2, s / 2) float32.
    """
    return bank_conv(spectrum, kernel_bank(kernels, image_side), image_side)


def kernel_bank(kernels: Tensor, image_side: int) -> Tensor:
    """Kernels of :func:`same_conv` as :func:`bank_conv` takes them, (F, 8, 2 O) float32."""
    side = kernels.shape[-1]
    before = _MARGIN - side // 2
    after = _GRID - side - before
    centred = F.pad(kernels, (before, after, before, after))
    weights = _matrices(F.pixel_unshuffle(centred, STRIDE), _LENGTHS[image_side]).mT
    real, imag = torch.split(weights, _PHASES, dim=1)
    return torch.cat([torch.cat([real, -imag], dim=2), torch.cat([imag, real], dim=2)], dim=1)


def bank_conv(spectrum: Tensor, bank: Tensor, image_side: int) -> Tensor:
    """:func:`same_conv` with kernels that were transformed before."""
    length, out = _LENGTHS[image_side], image_side // STRIDE
    product = torch.bmm(spectrum, bank)
    grid = product.view(length, length // 2 + 1, -1, 2, bank.shape[2] // 2).permute(2, 4, 0, 1, 3)
    images: Tensor = torch.fft.irfft2(torch.view_as_complex(grid.contiguous()), s=(length, length))
    return images[..., :out, :out].contiguous()


def _matrices(phases: Tensor, length: int) -> Tensor:
    """(B, 4, h, w) -> (F, B, 8): the spectrum, a matrix a frequency, real parts before imaginary."""
    spectrum = torch.view_as_real(torch.fft.rfft2(phases, s=(length, length)))
    return spectrum.permute(2, 3, 0, 4, 1).reshape(-1, len(phases), 2 * _PHASES)
