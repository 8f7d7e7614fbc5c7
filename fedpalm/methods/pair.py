"""Methods in which a site trains two models of one shape: the shared one and one of its own.

Both begin at the same public values and see the same views; the own model with its head stays at the
site. FedPalm, its released code and FedKD differ in what the two tell each other.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from ..layout import FloatVector
from ..plan import TrainingSettings
from ..privacy.randomness import Randomness
from .base import RoundContext, SiteImages, SiteUpdate
from .single import SingleModelSite
from .training import Learner, RoundViews, named_tensors

_OWN, _OWN_HEAD = "closed_set.", "head.closed."


class PairSite(SingleModelSite):
    """One site's half: ``learner`` has the shared model, ``own`` the site's."""

    def __init__(
        self,
        training: TrainingSettings,
        seed: int,
        site: str,
        images: SiteImages,
        randomness: Randomness | None = None,
    ) -> None:
        super().__init__(training, seed, site, images, randomness)
        self.load_shared(self.initial_vector())
        self.own = Learner(deepcopy(self.learner.model), deepcopy(self.learner.head), training)

    def begin_round(self, context: RoundContext, shared: FloatVector, views: RoundViews) -> None:
        seed = self.round_seed(context, "dropout-closed")
        self.own_dropout = torch.Generator().manual_seed(seed)
        if context.round == 1:
            # The public values that both begin at may come from a warm start.
            theirs = named_tensors(self.learner.model)
            with torch.no_grad():
                for name, tensor in named_tensors(self.own.model).items():
                    tensor.copy_(theirs[name])

    def learn(self, learning: bool) -> None:
        super().learn(learning)
        self.own.model.train(learning)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [*super().parameter_groups(), *self.own.parameter_groups()]

    def update(self, delta: FloatVector, steps: int, metrics: dict[str, float]) -> SiteUpdate:
        return super().update(delta, steps, metrics | self.own.take_losses("closed"))

    def own_embed(self, inputs: Tensor) -> Tensor:
        """Prepared images -> (B, D) embeddings of the own model."""
        return self.own.model.embed(self.own.model.expert(inputs))

    def _private_state(self) -> dict[str, dict[str, Tensor]]:
        return super()._private_state() | {
            _OWN: named_tensors(self.own.model),
            _OWN_HEAD: named_tensors(self.own.head),
        }
