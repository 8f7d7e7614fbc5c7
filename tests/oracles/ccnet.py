"""CCNet written down plainly: direct convolutions with explicit padding, one softmax at a time."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

BLOCKS = (("large", 9, 35), ("medium", 36, 17), ("small", 9, 7))


def gabor_bank(side, orientations, gamma, sigma, frequency):
    """(O, 1, side, side), differentiable in the three scalars."""
    axis = torch.arange(side, dtype=gamma.dtype) - side // 2
    row, column = torch.meshgrid(axis, axis, indexing="ij")
    bank = []
    for k in range(orientations):
        theta = k * math.pi / orientations
        along = column * math.cos(theta) + row * math.sin(theta)
        across = -column * math.sin(theta) + row * math.cos(theta)
        envelope = torch.exp(-0.5 * ((gamma * along) ** 2 + across**2) / (8 * sigma**2))
        kernel = -envelope * torch.cos(2 * math.pi * frequency * along)
        bank.append(kernel - kernel.mean())
    return torch.stack(bank)[:, None]


def compete(responses):
    channel, along_y, along_x = (torch.softmax(responses, dim=d) for d in (1, 2, 3))
    return 0.8 * channel + 0.1 * along_x + 0.1 * along_y


def textural_feature(tensors, prefix, images):
    """(B, 13152) feature of (B, 1, 128, 128) images from tensors by name, differentiable in them."""
    features = []
    for block, orientations, side in BLOCKS:
        current = images
        for order in ("first", "second"):
            at = f"{prefix}{block}.{order}."
            scalars = [tensors[f"{at}gabor.{name}"] for name in ("gamma", "sigma", "frequency")]
            kernels = gabor_bank(side, orientations, *scalars)
            kernels = kernels.repeat(1, current.shape[1], 1, 1)
            current = F.conv2d(current, kernels, stride=2, padding=side // 2)
            competed = compete(current)
            means = competed.mean(dim=3).mean(dim=2)
            hidden = torch.relu(means @ tensors[f"{at}gate.squeeze.weight"].T)
            gates = torch.sigmoid(hidden @ tensors[f"{at}gate.excite.weight"].T)
            gated = competed * gates[:, :, None, None]
            mixed = F.conv2d(gated, tensors[f"{at}mix.weight"], tensors[f"{at}mix.bias"], stride=2)
            features.append(F.max_pool2d(mixed, 2).flatten(1))
    return torch.cat(features, dim=1)
