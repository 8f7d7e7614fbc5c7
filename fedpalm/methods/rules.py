"""The server's half of every method: what is summed, and what the sum does to the global vector.

One primitive serves all methods, the weighted sum over a flat vector: site i contributes
``[w_i * delta_i | stats_i]`` and the coordinator learns only totals. Torch-free, so that the
coordinator can load it, and blockwise, so that it never holds a whole model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, get_args

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError
from ..layout import FloatVector
from ..plan import MethodName
from ..secagg.codec import Encoded, FixedPointCodec

STEPS_UNIT = 256
"""FedNova's n_i tau_i travels in this unit, so that it keeps within the bound that n_i has. A power of
two: of the codec's scale, a power of two as well, nothing is lost."""


class ServerRule(Protocol):
    """``stats`` names the scalar sums that ride behind the vector; the first is always the weight."""

    @property
    def stats(self) -> tuple[str, ...]: ...

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
        ...


@dataclass(frozen=True)
class WeightedMean:
    """w <- w + sum_i w_i delta_i / sum_i w_i (McMahan et al. 2017; FedPalm eqs 6 and 7)."""

    stats: tuple[str, ...] = ("weight",)

    def step(
        self,
        params: FloatVector,
        total: npt.NDArray[np.float64],
        stats: Mapping[str, float],
    ) -> FloatVector:
        weight = stats["weight"]
        if weight == 0:
            return params
        return (params + total / weight).astype(np.float32)


@dataclass(frozen=True)
class NormalisedMean:
    """w <- w + tau_eff sum_i n_i d_i / sum_i n_i, tau_eff = sum_i n_i tau_i / sum_i n_i.

    Source: FedNova, Wang et al. 2020, arXiv:2007.07481. ``steps`` is the sum of n_i tau_i in
    units of STEPS_UNIT, and d_i = delta_i / tau_i.
    """

    stats: tuple[str, ...] = ("weight", "steps")

    def step(
        self,
        params: FloatVector,
        total: npt.NDArray[np.float64],
        stats: Mapping[str, float],
    ) -> FloatVector:
        weight = stats["weight"]
        pace = stats["steps"] * STEPS_UNIT / weight if weight else 0.0
        return WeightedMean().step(params, pace * total, stats)


def stepped(
    codec: FixedPointCodec,
    rule: ServerRule,
    params: FloatVector,
    summed: Encoded,
    begin: int,
    stats: Mapping[str, float],
) -> FloatVector:
    """One block of the new global vector, each group of parameters by its own weight.

    Args:
        params: (B,) float32, values ``begin`` to ``begin + B`` of the global vector.
        summed: (B,) uint32, the same values of the sum, without masks.
        stats: the decoded tail of the sum.

    Returns:
        (B,) float32; a group that nobody contributed to has zero weight and keeps its values.
    """
    if not codec.groups:
        return rule.step(params, codec.decode_deltas(summed), stats)
    block = params.copy()
    for group in codec.groups:
        part = group.within(begin, begin + len(params))
        total = codec.decode_deltas(summed[part], group)
        block[part] = rule.step(params[part], total, codec.stats_of(stats, group))
    return block


_RULES: dict[str, ServerRule] = {method: WeightedMean() for method in get_args(MethodName)}
_RULES["fednova"] = NormalisedMean()


def server_rule(method: str) -> ServerRule:
    """The rule of a method that shares something. Raises ConfigError for any other name."""
    try:
        return _RULES[method]
    except KeyError:
        known = ", ".join(sorted(_RULES))
        raise ConfigError(f"method {method!r} has no server rule; known: {known}") from None
