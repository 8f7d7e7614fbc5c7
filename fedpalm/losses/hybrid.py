"""The loss of both models: L = 0.8 CE + 0.2 SupCon. Source: FedPalm, equation 10."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from ..plan import TrainingSettings
from .supcon import supervised_contrast


class HybridLoss(NamedTuple):
    total: Tensor
    cross_entropy: Tensor
    contrast: Tensor


def hybrid_loss(
    logits: Tensor, embeddings: Tensor, labels: Tensor, settings: TrainingSettings
) -> HybridLoss:
    """Cross-entropy over the head's (B, C) logits, contrast over the (B, D) embeddings of both views."""
    cross_entropy = F.cross_entropy(logits, labels)
    contrast = supervised_contrast(embeddings, labels, settings.contrast_temperature)
    total = settings.cross_entropy_weight * cross_entropy + settings.contrast_weight * contrast
    return HybridLoss(total, cross_entropy, contrast)
