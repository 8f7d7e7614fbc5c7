"""MOON: FedAvg with a contrast that draws a site's embeddings to the global model's.

Source: Li et al. 2021, arXiv:2103.16257. To the loss of a step is added mu times the
mean over images of

    -log( e^{cos(z, z_g)/t} / (e^{cos(z, z_g)/t} + e^{cos(z, z_prev)/t}) )

with z the embedding of the model that learns, z_g that of the round's global model, z_prev that of the
model that this site ended its previous round with (in its first round z_g). Neither z_g nor z_prev
carries a gradient; both are computed once a view, before the first step.

Shared and summed: as in FedAvg. Stays at the site: the head and the previous model. With mu = 0
(``moon_mu``) it is FedAvg.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..layout import FloatVector
from ..plan import TrainingSettings
from ..privacy.randomness import Randomness
from .base import RoundContext, SiteImages, SiteUpdate, Tensors
from .single import SingleModelSite
from .training import Batch, RoundViews

_PREVIOUS = "previous.model"


def model_contrast(z: Tensor, z_global: Tensor, z_previous: Tensor, temperature: float) -> Tensor:
    """The mean over (B, D) embeddings; of two logits the first is the right one."""
    similar = [F.cosine_similarity(z, other) / temperature for other in (z_global, z_previous)]
    return F.cross_entropy(torch.stack(similar, dim=1), torch.zeros(len(z), dtype=torch.long))


class MoonSite(SingleModelSite):
    """One site's half. ``previous.model`` of its state is (P,), and missing before its first round.

    It is one flat vector and no model by name: what the site has given is no secret that the egress
    gate would have to look for in an update.
    """

    method = "moon"

    def __init__(
        self,
        training: TrainingSettings,
        seed: int,
        site: str,
        images: SiteImages,
        randomness: Randomness | None = None,
    ) -> None:
        super().__init__(training, seed, site, images, randomness)
        self._previous: FloatVector | None = None

    def begin_round(self, context: RoundContext, shared: FloatVector, views: RoundViews) -> None:
        self._z_global = self._z_previous = self._embeddings(shared, views)
        if self._previous is not None:
            self._z_previous = self._embeddings(self._previous, views)
            self.load_shared(shared)

    def loss(self, batch: Batch, dropout: torch.Generator) -> Tensor:
        outputs = self.outputs(batch, dropout)
        contrast = model_contrast(
            outputs.embedding,
            self._z_global[batch.views],
            self._z_previous[batch.views],
            self.training.moon_temperature,
        )
        return self.learner.loss(outputs, batch.labels) + self.training.moon_mu * contrast

    def update(self, delta: FloatVector, steps: int, metrics: dict[str, float]) -> SiteUpdate:
        self._previous = self.shared_vector()
        return super().update(delta, steps, metrics)

    def state(self) -> Tensors:
        previous = {} if self._previous is None else {_PREVIOUS: self._previous.copy()}
        return super().state() | previous

    def load_state(self, tensors: Tensors) -> None:
        previous = tensors.get(_PREVIOUS)
        if previous is not None:
            self.layout.unflatten(previous)
        super().load_state({name: one for name, one in tensors.items() if name != _PREVIOUS})
        self._previous = None if previous is None else previous.copy()

    def _embeddings(self, vector: FloatVector, views: RoundViews) -> Tensor:
        """(V, D) of all views of the round by the model of a (P,) vector."""
        self.load_shared(vector)
        with torch.no_grad():
            return torch.cat([self.embed(inputs) for inputs in views.all()])
