"""HyperFed: a shared trunk, and at each site a hypernetwork that conditions its maps.

Source: Yang et al. 2023, IEEE TNNLS (arXiv:2206.03709): a hypernetwork of the site's own turns what is
known of its scanner into scale and shift of every channel of the shared network. A palm site has no
scan geometry, so its descriptor c_i is learned (our reading):

    (s_i, t_i) = H_i(c_i),   f = (1 + s_i) * T(x) + t_i,   one s and one t for each map of T(x)

H_i is one hidden layer with ReLU of ``hyperfed_width`` units; its last layer begins at 0, so that f is
T(x). Shared: T and the embedding layer, as in FedAvg, and with the same sum. Stays at the site: c_i, H_i
and the head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..models.backbones import BACKBONES
from ..plan import TrainingSettings
from ..privacy.randomness import Randomness
from .base import SiteImages
from .single import SingleModelSite
from .training import generator, named_tensors

_HYPERNETWORK = "hypernetwork."


class Hypernetwork(nn.Module):
    """From a learned descriptor to the scale and the shift of each map."""

    def __init__(self, width: int, maps: int, random: torch.Generator) -> None:
        super().__init__()
        self.descriptor = nn.Parameter(torch.empty(width).normal_(generator=random))
        self.hidden = nn.Linear(width, width)
        self.out = nn.Linear(width, 2 * maps)
        with torch.no_grad():
            self.hidden.weight.normal_(0.0, width**-0.5, generator=random)
            for begins_at_zero in (self.hidden.bias, self.out.weight, self.out.bias):
                begins_at_zero.zero_()

    def film(self) -> tuple[Tensor, Tensor]:
        """Scale and shift, (maps,) each; at the beginning 1 and 0."""
        scale, shift = self.out(F.relu(self.hidden(self.descriptor))).chunk(2)
        return 1 + scale, shift


class HyperFedSite(SingleModelSite):
    """One site's half."""

    method = "hyperfed"

    def __init__(
        self,
        training: TrainingSettings,
        seed: int,
        site: str,
        images: SiteImages,
        randomness: Randomness | None = None,
    ) -> None:
        super().__init__(training, seed, site, images, randomness)
        sizes = torch.tensor(BACKBONES[training.backbone].map_sizes)
        self._map_of = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
        random = generator(seed, site, 0, "hypernetwork")
        self._hypernetwork = Hypernetwork(training.hyperfed_width, len(sizes), random)

    def feature(self, inputs: Tensor) -> Tensor:
        scale, shift = self._hypernetwork.film()
        return super().feature(inputs) * scale[self._map_of] + shift[self._map_of]

    def parameter_groups(self) -> list[dict[str, Any]]:
        own = {"params": list(self._hypernetwork.parameters()), "lr": self.training.learning_rate}
        return [*super().parameter_groups(), own]

    def _private_state(self) -> dict[str, dict[str, Tensor]]:
        return super()._private_state() | {_HYPERNETWORK: named_tensors(self._hypernetwork)}
