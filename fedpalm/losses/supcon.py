"""Supervised contrastive loss. Source: Khosla et al. 2020, arXiv:2004.11362, L_out (eq 2)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def supervised_contrast(embeddings: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Mean over anchors of -1/|P(i)| sum_{p in P(i)} log(e^{z_i z_p / t} / sum_{a != i} e^{z_i z_a / t}).

    Args:
        embeddings: (B, D), normalised here; two views of an image are two rows with one label.
        labels: (B,) int64; every label must occur twice at least.
        temperature: t > 0.
    """
    unit = F.normalize(embeddings)
    similarity = unit @ unit.T / temperature
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    others = similarity.masked_fill(itself, -torch.inf)
    log_probability = similarity - torch.logsumexp(others, dim=1, keepdim=True)
    positive = (labels[:, None] == labels[None, :]) & ~itself
    return -((log_probability * positive).sum(dim=1) / positive.sum(dim=1)).mean()
