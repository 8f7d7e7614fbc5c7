"""CompNet written down plainly: per-pixel Gabor formula, direct convolutions, no shared spectra."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn import functional as F

_TENSORS = (
    "gabor.gamma",
    "gabor.sigma",
    "gabor.frequency",
    "competition.scale",
    "competition.shift",
    "mix.weight",
    "mix.bias",
    "reduce.weight",
    "reduce.bias",
)


def gabor_kernels(side, gamma, sigma, frequency, orientations=9):
    """(O, side, side) float64 by loops over orientation and pixel."""
    half = side // 2
    kernels = np.empty((orientations, side, side))
    for k in range(orientations):
        theta = k * math.pi / orientations
        for row in range(side):
            for column in range(side):
                x, y = column - half, row - half
                along = x * math.cos(theta) + y * math.sin(theta)
                across = -x * math.sin(theta) + y * math.cos(theta)
                envelope = math.exp(-0.5 * ((gamma * along) ** 2 + across**2) / (8 * sigma**2))
                kernels[k, row, column] = -envelope * math.cos(2 * math.pi * frequency * along)
        kernels[k] -= kernels[k].mean()
    return kernels


def textural_feature(tensors, prefix, images):
    """(B, 9708) feature of (B, 1, 128, 128) images from tensors by name, differentiable in them."""
    features = []
    for block, side in (("large", 35), ("medium", 17), ("small", 7)):
        of = {name: tensors[f"{prefix}{block}.{name}"] for name in _TENSORS}
        axis = torch.arange(side, dtype=torch.float32) - side // 2
        row, column = torch.meshgrid(axis, axis, indexing="ij")
        bank = []
        for k in range(9):
            theta = k * math.pi / 9
            along = column * math.cos(theta) + row * math.sin(theta)
            across = -column * math.sin(theta) + row * math.cos(theta)
            squares = (of["gabor.gamma"] * along) ** 2 + across**2
            envelope = torch.exp(-0.5 * squares / (8 * of["gabor.sigma"] ** 2))
            kernel = -envelope * torch.cos(2 * math.pi * of["gabor.frequency"] * along)
            bank.append(kernel - kernel.mean())
        responses = F.conv2d(images, torch.stack(bank)[:, None], stride=3)
        competed = torch.softmax(
            of["competition.scale"] * (responses - of["competition.shift"]), dim=1
        )
        mixed = F.max_pool2d(F.conv2d(competed, of["mix.weight"], of["mix.bias"]), 2)
        features.append(F.conv2d(mixed, of["reduce.weight"], of["reduce.bias"]).flatten(1))
    return torch.cat(features, dim=1)
