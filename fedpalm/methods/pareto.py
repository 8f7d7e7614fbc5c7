"""What a site does with an averaged model: it goes towards it as far as its own held-out data allow.

The line w + eta (aggregate - w) is tried at every eta of ETAS: first for all groups of parameters at once,
then, from where that led, for one group after the other. Jointly first, because the groups of a model
fit each other: a trunk that moves without its projection looks bad though both together are better.
A step counts as a Pareto improvement if neither probe loss is more than the tolerance above what it
was **before the receipt**, for all steps together, and one is below what it is now. Of those the
one with the largest scalarised gain is taken; without a gain, eta = 0 and the groups stay as they are.

Before any look at losses, a group's aggregate is refused that is farther from its values than zero is:
|aggregate - w| >= |w|. Whatever is at a right angle to w or points away from it is, and so is what is twice
as long. The probe alone would go a tenth of the way to a negated model, because where a network
normalises, shrinking its values changes nothing.

So whatever arrives, after a receipt neither probe loss exceeds its value before by more than the tolerance,
and their weighted sum is not above what it was. Nothing is said of data that the probe does not hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from ..errors import LayoutMismatchError
from ..layout import FloatVector

ETAS = (0.1, 0.25, 0.5, 0.75, 1.0)
"""Beside 0, which needs no look."""


class ProbeLosses(NamedTuple):
    """On held-out data: of telling writers, and of telling forgeries."""

    user: float
    forged: float

    def scalarised(self, detection_weight: float) -> float:
        return (1 - detection_weight) * self.user + detection_weight * self.forged


class Receipt(NamedTuple):
    """``model`` (P,) to go on with; both losses before and after.

    By group, ``etas``, the part of the way that was gone (0..1), and ``distances``, |aggregate - w| / |w|.
    """

    model: FloatVector
    etas: dict[str, float]
    distances: dict[str, float]
    before: ProbeLosses
    after: ProbeLosses


def receive(
    own: FloatVector,
    aggregate: FloatVector,
    groups: Mapping[str, slice],
    probe: Callable[[FloatVector], ProbeLosses],
    *,
    tolerance: float,
    detection_weight: float,
) -> Receipt:
    """Search the line to the aggregate in all groups at once, then in each, in their order.

    Args:
        own, aggregate: (P,) float32.
        groups: values of the vector by group.
        probe: both losses of a (P,) model; it must be deterministic.
        tolerance: eps >= 0.
    Raises:
        LayoutMismatchError: the two are not vectors of one length.
    """
    if own.shape != aggregate.shape or own.ndim != 1:
        raise LayoutMismatchError(f"got a model {aggregate.shape}, this site's is {own.shape}")
    before = now = probe(own)
    limit = ProbeLosses(before.user + tolerance, before.forged + tolerance)
    model, etas = own.copy(), dict.fromkeys(groups, 0.0)
    distances = {name: distance(own[part], aggregate[part]) for name, part in groups.items()}
    near = [name for name in groups if 0 < distances[name] < 1]
    lines = [[name] for name in near]
    for names in lines if len(near) < 2 else [near, *lines]:
        if all(etas[name] == 1 for name in names):
            continue
        start, best, best_losses, gone = model, model, now, 0.0
        for eta in ETAS:
            tried = start.copy()
            for name in names:
                part = groups[name]
                tried[part] += np.float32(eta) * (aggregate[part] - start[part])
            losses = probe(tried)
            if _improves(losses, now, limit) and (
                losses.scalarised(detection_weight) < best_losses.scalarised(detection_weight)
            ):
                best, best_losses, gone = tried, losses, eta
        model, now = best, best_losses
        etas |= {name: etas[name] + gone * (1 - etas[name]) for name in names}
    return Receipt(model, etas, distances, before, now)


def distance(own: FloatVector, aggregate: FloatVector) -> float:
    """|aggregate - own| / |own|; infinite from nothing, and NaN if a value is."""
    length = float(np.linalg.norm(own.astype(np.float64)))
    way = float(np.linalg.norm(aggregate.astype(np.float64) - own))
    return way / length if length else math.inf


def _improves(losses: ProbeLosses, now: ProbeLosses, limit: ProbeLosses) -> bool:
    if not (math.isfinite(losses.user) and math.isfinite(losses.forged)):
        return False
    within = losses.user <= limit.user and losses.forged <= limit.forged
    return within and (losses.user < now.user or losses.forged < now.forged)
