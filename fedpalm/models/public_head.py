"""The head under differential privacy: a public code in the place of prototypes that were trained.

A head that learns who a site's people are is their data, and shapes every gradient. This one has no
parameter: its prototypes come from the plan's seed, and all that a site adds is which identity has which
of them, drawn at random once and kept.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..canonical import domain_hash
from .arcface import margin_logits


class PublicHead(nn.Module):
    """ArcFace's logits (:func:`~.arcface.margin_logits`) over all ``slots``, taken or not.

    ``places`` (identities,) int64: the slot of each, no two alike; two palms of one person have two.
    """

    places: Tensor

    def __init__(self, prototypes: Tensor, places: Tensor, scale: float, margin: float) -> None:
        super().__init__()
        self.register_buffer("places", places)
        self.prototypes = prototypes
        self.scale, self.margin = scale, margin

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """(B, D) embeddings and (B,) int64 labels -> (B, slots) logits."""
        cosines = F.linear(F.normalize(embeddings), self.prototypes)
        return margin_logits(cosines, self.columns(labels), self.scale, self.margin)

    def columns(self, labels: Tensor) -> Tensor:
        """(B,) labels -> the columns that the logits have for them."""
        return self.places[labels]


def public_prototypes(slots: int, length: int, seed: int) -> Tensor:
    """(slots, length) unit rows from a public seed: orthogonal if they fit, else random directions."""
    digest = domain_hash("public-head/v1", seed.to_bytes(8, "big"))
    rng = np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))
    drawn = rng.standard_normal((slots, length))
    if slots <= length:
        drawn = np.linalg.qr(drawn.T).Q.T
    unit = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    return torch.from_numpy(unit.astype(np.float32))
