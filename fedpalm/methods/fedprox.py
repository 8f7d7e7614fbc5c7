"""FedProx: FedAvg whose sites are held near the model they started from.

Source: Li et al. 2020, arXiv:1812.06127, eq 2. A step minimises

    L(w) + mu/2 |w - w_g|^2,  so that  mu (w - w_g)  is added to the gradient of w

with w_g the shared model of the round. Shared and summed: as in FedAvg. Stays at the site: the head,
which has no w_g and no such term. With mu = 0 (``fedprox_mu``) it is FedAvg.
"""

from __future__ import annotations

from torch import Tensor

from ..layout import FloatVector
from .base import RoundContext
from .single import SingleModelSite
from .training import RoundViews


class FedProxSite(SingleModelSite):
    """One site's half."""

    method = "fedprox"

    def begin_round(self, context: RoundContext, shared: FloatVector, views: RoundViews) -> None:
        self._start: dict[str, Tensor] = {
            name: tensor.detach().clone() for name, tensor in self.shared.items()
        }

    def adjust_gradients(self) -> None:
        for name, start in self._start.items():
            tensor = self.shared[name]
            if tensor.grad is not None:
                tensor.grad.add_(tensor.detach() - start, alpha=self.training.fedprox_mu)
