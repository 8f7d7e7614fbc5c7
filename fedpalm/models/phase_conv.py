"""Stride-3 convolution of one image channel with large kernels, in the frequency domain.

The image is split into its 3 x 3 phases (43 x 43 pixels each, zero-padded from 128 to 129), so that
the strided convolution becomes a plain one over nine channels; in the frequency domain it is one 9 x 9
matrix product a frequency. The spectrum of the image is computed once and serves every kernel size,
every model that sees the image, and both directions. The result is the direct convolution's within
float rounding (relative 1e-6); on one core a training step of the 35 x 35 kernel takes about a quarter
of the time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .compnet_spec import IMAGE_SIDE, STRIDE

_PHASES = STRIDE * STRIDE
_PHASE_SIDE = -(-IMAGE_SIDE // STRIDE)
_SIDE = 45
"""Transform length: the smallest product of 3s and 5s that holds a phase image without wrap-around."""
_HALF = _SIDE // 2 + 1


def phase_spectrum(images: Tensor) -> Tensor:
    """(B, 1, 128, 128) float32 -> (F, B, 18) float32, F = 45 x 23 frequencies; carries no gradient.

    Nine real parts, then nine imaginary ones: real matrix products batch faster than complex ones.
    """
    with torch.no_grad():
        margin = _PHASE_SIDE * STRIDE - IMAGE_SIDE
        return _matrices(F.pixel_unshuffle(F.pad(images, (0, margin, 0, margin)), STRIDE))


def phase_conv(spectrum: Tensor, kernel: Tensor) -> Tensor:
    """Valid correlation with stride 3, as ``F.conv2d(images, kernel, stride=3)``.

    Args:
        spectrum: (F, B, 18) float32 of :func:`phase_spectrum`; gets no gradient.
        kernel: (O, 1, k, k) float32.

    Returns:
        (B, O, n, n) float32, n = (128 - k) // 3 + 1.
    """
    result: Tensor = _PhaseConv.apply(spectrum, kernel)  # type: ignore[no-untyped-call]
    return result


def kernel_spectrum(kernels: Tensor) -> Tensor:
    """(O, 1, k, k) float32 -> (F, 9, O) complex64, for :func:`bank_conv`."""
    channels = len(kernels)
    real, imag = torch.split(_matrices(_kernel_phases(kernels)).mT, _PHASES, dim=1)
    return torch.complex(real, -imag).reshape(_SIDE * _HALF, _PHASES, channels)


def bank_conv(spectrum: Tensor, kernels: Tensor, side: int) -> Tensor:
    """:func:`phase_conv` with kernels that were transformed before; carries no gradient.

    A bank of many kernels is a matrix wide enough for complex products, which read half of what real
    ones read.

    Args:
        spectrum: (F, B, 18) float32 of :func:`phase_spectrum`.
        kernels: (F, 9, O) complex64 of :func:`kernel_spectrum`.
        side: k.
    """
    out = (IMAGE_SIDE - side) // STRIDE + 1
    images = torch.complex(spectrum[..., :_PHASES], spectrum[..., _PHASES:])
    product = torch.bmm(images, kernels)
    grid = product.view(_SIDE, _HALF, -1, kernels.shape[2]).permute(2, 3, 0, 1)
    return _first(grid, out).contiguous()


class _PhaseConv(torch.autograd.Function):
    """Y = X conj(W) a frequency, and for the gradient W' = conj(G)^T X; X is (B, 9), W (9, O)."""

    @staticmethod
    def forward(ctx: Any, spectrum: Tensor, kernel: Tensor) -> Tensor:
        channels, _, side, _ = kernel.shape
        real, imag = torch.split(_matrices(_kernel_phases(kernel)).mT, _PHASES, dim=1)
        weights = torch.cat(
            [torch.cat([real, -imag], dim=2), torch.cat([imag, real], dim=2)], dim=1
        )
        out = (IMAGE_SIDE - side) // STRIDE + 1
        ctx.save_for_backward(spectrum)
        ctx.side = side
        return _images(torch.bmm(spectrum, weights), channels, out).contiguous()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        (spectrum,) = ctx.saved_tensors
        (grad,) = grads
        channels = grad.shape[1]
        product = torch.bmm(_matrices(grad).mT, spectrum)
        real, imag = torch.split(product, channels, dim=1)
        rr, ri = torch.split(real, _PHASES, dim=2)
        ir, ii = torch.split(imag, _PHASES, dim=2)
        cells = -(-ctx.side // STRIDE)
        phases = _images(torch.cat([rr + ii, ri - ir], dim=2), _PHASES, cells)
        kernel = F.pixel_shuffle(phases, STRIDE)
        return None, kernel[..., : ctx.side, : ctx.side].contiguous()


def _kernel_phases(kernels: Tensor) -> Tensor:
    """(O, 1, k, k) -> (O, 9, ceil(k / 3), ceil(k / 3))."""
    margin = -kernels.shape[-1] % STRIDE
    return F.pixel_unshuffle(F.pad(kernels, (0, margin, 0, margin)), STRIDE)


def _matrices(images: Tensor) -> Tensor:
    """(B, C, h, w) -> (F, B, 2C): the spectrum, a matrix a frequency, real parts before imaginary."""
    spectrum = torch.view_as_real(torch.fft.rfft2(images, s=(_SIDE, _SIDE)))
    flat: Tensor = spectrum.permute(2, 3, 0, 4, 1).reshape(
        _SIDE * _HALF, len(images), 2 * images.shape[1]
    )
    return flat


def _images(matrices: Tensor, channels: int, side: int) -> Tensor:
    """Inverse of :func:`_matrices`: (F, B, 2C) -> (B, C, side, side), the first rows and columns."""
    grid = matrices.view(_SIDE, _HALF, -1, 2, channels).permute(2, 4, 0, 1, 3).contiguous()
    return _first(torch.view_as_complex(grid), side)


def _first(grid: Tensor, side: int) -> Tensor:
    """(B, C, 45, 23) complex -> (B, C, side, side); rows nobody asked for are left out half way."""
    rows = torch.fft.ifft(grid, dim=2)[:, :, :side]
    images: Tensor = torch.fft.irfft(rows, n=_SIDE, dim=3)[..., :side]
    return images
