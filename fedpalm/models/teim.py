"""Textural Expert Interaction Module. Source: FedPalm, section IV-C, equations 1 to 5."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Routed(NamedTuple):
    """``feature`` (B, D) f^; ``chosen`` (M,) how often each other expert was routed in the batch."""

    feature: Tensor
    chosen: Tensor


def route(anchor: Tensor, others: Tensor, neighbours: int) -> Tensor:
    """Which of the other experts each image listens to (eqs 2 and 3).

    d_i = 1 - dis(f_a, f_i) is the cosine similarity, per image; the ``neighbours`` largest win, all of
    them if there are fewer.

    Args:
        anchor: (B, D); others: (M, B, D), M >= 1.

    Returns:
        (min(neighbours, M), B) int64 indices into ``others``; carries no gradient.
    """
    with torch.no_grad():
        similarity = F.cosine_similarity(anchor.unsqueeze(0), others, dim=2)
        return similarity.topk(min(neighbours, len(others)), dim=0).indices


class Teim(nn.Module):
    """f^ = alpha f_a + beta f_side, with f_side the mean of the K routed features (eqs 4 and 5).

    A leaf module with two scalars, so that they can have their own learning rate.
    """

    def __init__(self, neighbours: int) -> None:
        super().__init__()
        self.neighbours = neighbours
        self.alpha = nn.Parameter(torch.ones(()))
        self.beta = nn.Parameter(torch.zeros(()))

    def forward(self, anchor: Tensor, others: Tensor) -> Routed:
        """(B, D) anchor features and (M, B, D) features of the other experts -> :class:`Routed`."""
        chosen = route(anchor, others, self.neighbours)
        if len(chosen) == len(others):
            side = others.mean(dim=0)
        else:
            side = others[chosen, torch.arange(anchor.shape[0], device=anchor.device)].mean(dim=0)
        histogram = torch.bincount(chosen.flatten(), minlength=len(others))
        return Routed(self.alpha * anchor + self.beta * side, histogram)
