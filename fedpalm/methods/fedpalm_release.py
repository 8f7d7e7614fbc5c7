"""FedPalm as its authors' released code has it, where that differs from the paper.

What we know of it is in docs/METHODS.md. Against :mod:`.fedpalm`: what is fused are embeddings and not
textural features, with fixed weights, in every round; the own expert is never frozen; every site
counts alike. With z_c, z_g the embeddings of the site's own and of the shared model, each a constant
in the other's loss (eq 10 of the paper on each):

    z^_c = 0.8 z_c + 0.2 z_g,   z^_g = 0.8 z_g + 0.2 z_c,   w <- w + sum_i (w_i - w) / N

Shared: the model of z_g. Stays at the site: the own model and both heads. The released code averages the
heads too, and fuses the embeddings of all sites' own models; here a head is personal data, and so is an
own embedding layer, so that z_g is all that a site's own model meets and nothing is exchanged. One local
epoch, as in the release, is the plan's to say.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..layout import FloatVector
from .base import SiteUpdate
from .pair import PairSite
from .training import Batch

ANCHOR, SIDE = 0.8, 0.2


class FedPalmReleaseSite(PairSite):
    """One site's half."""

    method = "fedpalm-release"

    def loss(self, batch: Batch, dropout: torch.Generator) -> Tensor:
        z_g, z_c = self.embed(batch.inputs), self.own_embed(batch.inputs)
        total = torch.zeros(())
        for learner, anchor, side, random in (
            (self.learner, z_g, z_c, dropout),
            (self.own, z_c, z_g, self.own_dropout),
        ):
            fused = ANCHOR * anchor + SIDE * side.detach()
            total = total + learner.loss(learner.judge(fused, batch.labels, random), batch.labels)
        return total

    def update(self, delta: FloatVector, steps: int, metrics: dict[str, float]) -> SiteUpdate:
        update = super().update(delta, steps, metrics)
        return SiteUpdate(update.delta, 1.0, metrics=update.metrics)

    def closed_templates(
        self, images: npt.NDArray[np.float32], shared: FloatVector
    ) -> npt.NDArray[np.float32]:
        return self.templates(images, shared, lambda inputs: self._fused(inputs, own=ANCHOR))

    def open_templates(
        self, images: npt.NDArray[np.float32], shared: FloatVector
    ) -> npt.NDArray[np.float32]:
        return self.templates(images, shared, lambda inputs: self._fused(inputs, own=SIDE))

    def _fused(self, inputs: Tensor, own: float) -> Tensor:
        return own * self.own_embed(inputs) + (1 - own) * self.embed(inputs)
