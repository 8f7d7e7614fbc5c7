"""ArcFace head: identity prototypes. They are personal data, and no layout can name them.

Source: Deng et al. 2019, arXiv:1801.07698.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_EDGE = 1e-6
"""Cosines are kept this far from +-1, where the sine's derivative is infinite."""


class ArcFace(nn.Module):
    """Additive angular margin: logit s cos(theta + m) for the own class, s cos(theta) for the others.

    Beyond theta = pi - m, where cos(theta + m) would rise again, the own logit goes on as
    cos(theta) - m sin(m): monotone in theta over the whole range.
    """

    def __init__(self, classes: int, length: int, scale: float, margin: float) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(torch.zeros(classes, length))
        self.scale, self.margin = scale, margin

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """(B, D) embeddings and (B,) int64 labels -> (B, C) logits."""
        cosines = F.linear(F.normalize(embeddings), F.normalize(self.prototypes))
        return margin_logits(cosines, labels, self.scale, self.margin)

    def columns(self, labels: Tensor) -> Tensor:
        """(B,) labels -> the columns that the logits have for them: a prototype a label."""
        return labels


def margin_logits(cosines: Tensor, own: Tensor, scale: float, margin: float) -> Tensor:
    """(B, C) cosines and the (B,) own column of each -> (B, C) logits."""
    column = own[:, None]
    cosine = cosines.gather(1, column).clamp(-1 + _EDGE, 1 - _EDGE)
    sine = torch.sqrt(1 - cosine**2)
    shifted = cosine * math.cos(margin) - sine * math.sin(margin)
    beyond = cosine - margin * math.sin(margin)
    margined = torch.where(cosine > -math.cos(margin), shifted, beyond)
    return scale * cosines.scatter(1, column, margined)
