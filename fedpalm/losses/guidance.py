"""Two losses of one representation: their mean gradient, or where they oppose each other the shortest one.

For gradients u and f of the trunk and the projection, with cos(u, f) < 0, the step is along

    d = a u + (1 - a) f,    a = clip(((f - u) . f) / |u - f|^2, 0, 1)

the element of least norm between them. Then d.u = d.f = |d|^2 (or, clipped, neither is less), so a
small step against d raises neither loss. Otherwise d = (1 - w) u + w f with the plan's weight w.

Source: Desideri 2012, Comptes Rendus Mathematique 350 (MGDA); Sener, Koltun 2018, arXiv:1810.04650, for
two tasks in closed form. Plain weights where nothing is opposed, our choice: learned weights
(uncertainty) would be another scale than the one that a receipt is judged by, and would stay at a site.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Guidance(NamedTuple):
    """``cosine`` of the two gradients (0 if one vanishes); d is ``user_weight`` u + ``forged_weight`` f."""

    cosine: float
    user_weight: float
    forged_weight: float

    @property
    def opposed(self) -> bool:
        return self.cosine < 0

    def combined(self, user: Sequence[Tensor], forged: Sequence[Tensor]) -> list[Tensor]:
        """d, tensor by tensor."""
        return [
            self.user_weight * u + self.forged_weight * f for u, f in zip(user, forged, strict=True)
        ]


def guide(
    user: Sequence[Tensor],
    forged: Sequence[Tensor],
    detection_weight: float,
    *,
    opposed: bool = True,
) -> Guidance:
    """How to combine the gradients of one representation, given as tensors of equal shapes.

    Args:
        detection_weight: w, in (0, 1).
        opposed: take the shortest combination where the gradients oppose each other; False: never.
    """
    uu, ff, uf = (_dot(*pair) for pair in ((user, user), (forged, forged), (user, forged)))
    norms = (uu * ff) ** 0.5
    cosine = uf / norms if norms else 0.0
    if not opposed or not cosine < 0:
        return Guidance(cosine, 1 - detection_weight, detection_weight)
    weight = min(max((ff - uf) / (uu + ff - 2 * uf), 0.0), 1.0)
    return Guidance(cosine, weight, 1 - weight)


def _dot(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """In float64: three sums of a million products each are compared with each other."""
    products = (
        torch.dot(a.flatten().double(), b.flatten().double())
        for a, b in zip(one, other, strict=True)
    )
    return float(sum(products))
