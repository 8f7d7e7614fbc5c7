"""The server's half of every method: what is summed, and what the sum does to the global vector.

One primitive serves all methods, the weighted sum over a flat vector: site i contributes
``[w_i * delta_i | stats_i]`` and the coordinator learns only totals. Torch-free, so that the
coordinator can load it, and blockwise, so that it never holds a whole model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError
from ..layout import FloatVector


@dataclass(frozen=True)
class WeightedMean:
    """w <- w + sum_i w_i delta_i / sum_i w_i (McMahan et al. 2017; FedPalm eqs 6 and 7).

    ``stats`` names the scalar sums that ride behind the vector; the first is always the weight.
    """

    stats: tuple[str, ...] = ("weight",)

    def step(
        self,
        params: FloatVector,
        total: npt.NDArray[np.float64],
        stats: Mapping[str, float],
    ) -> FloatVector:
        """One block of the new global vector.

        Args:
            params: (B,) float32, a block of the global vector.
            total: (B,) float64, the same block of sum_i w_i delta_i.
            stats: total per name in ``self.stats``.

        Returns:
            (B,) float32. A zero total weight is no update.
        """
        weight = stats["weight"]
        if weight == 0:
            return params
        return (params + total / weight).astype(np.float32)


ServerRule = WeightedMean
"""Grows into a protocol with the first method whose sum means something else."""

_RULES: dict[str, ServerRule] = {
    "fedavg": WeightedMean(),
    "fedpalm": WeightedMean(),
    "rehearsal": WeightedMean(),
}


def server_rule(method: str) -> ServerRule:
    """The rule of a method that shares something. Raises ConfigError for any other name."""
    try:
        return _RULES[method]
    except KeyError:
        known = ", ".join(sorted(_RULES))
        raise ConfigError(f"method {method!r} has no server rule; known: {known}") from None
