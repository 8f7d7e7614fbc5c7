"""FedNova: FedAvg in which a site that makes more steps does not pull harder.

Source: Wang et al. 2020, arXiv:2007.07481, with a_i = (1, ..., 1), so that |a_i|_1 = tau_i,
the number of steps. Adam's moments are begun anew every round and are not counted.

    d_i = (w_i - w) / tau_i,   tau_eff = sum_i n_i tau_i / sum_i n_i
    w <- w + tau_eff sum_i n_i d_i / sum_i n_i

Shared and kept: as in FedAvg. The sum is that of n_i d_i, n_i and n_i tau_i. All sites make the same
number of epochs, which cancels: tau_i is counted in steps an epoch, so that the sums stay small. The
codec's bounds hold for d_i, n_i and n_i tau_i / STEPS_UNIT. With tau_i equal it is FedAvg, and so it is
under differential privacy: the steps are the plan's, and tau_i counts as 1.
"""

from __future__ import annotations

import numpy as np

from ..layout import FloatVector
from .base import SiteUpdate
from .rules import STEPS_UNIT
from .single import SingleModelSite


class FedNovaSite(SingleModelSite):
    """One site's half; :class:`~.rules.NormalisedMean` is the server's."""

    method = "fednova"

    def update(self, delta: FloatVector, steps: int, metrics: dict[str, float]) -> SiteUpdate:
        tau = 1.0 if self.private_training else steps / self.training.local_epochs
        stats = {"steps": self.weight * tau / STEPS_UNIT}
        return SiteUpdate(delta / np.float32(tau), self.weight, stats, metrics)
