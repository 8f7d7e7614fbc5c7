"""Federations side by side: the sites of a backbone average among themselves, nothing passes between.

The shared vectors of all federations lie one behind the other, so that one run of rounds trains them all.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ...layout import FloatVector
from ...methods.base import RoundContext, SiteMethod, SiteUpdate, Tensors
from ...plan import Plan
from ..simulate import through_codec


class FamilySite:
    """A site of one of the federations; ``span`` is where that one's vector lies."""

    def __init__(self, site: SiteMethod, span: slice) -> None:
        self._site, self._span = site, span
        self.layout, self.expert_layout = site.layout, site.expert_layout

    def initial_vector(self) -> FloatVector:
        """Of its own federation."""
        return self._site.initial_vector()

    def train_round(self, context: RoundContext, shared: FloatVector) -> SiteUpdate:
        """An update of its own federation's length."""
        return self._site.train_round(context, shared[self._span])

    def closed_templates(
        self, images: npt.NDArray[np.float32], shared: FloatVector
    ) -> npt.NDArray[np.float32]:
        return self._site.closed_templates(images, shared[self._span])

    def open_templates(
        self, images: npt.NDArray[np.float32], shared: FloatVector
    ) -> npt.NDArray[np.float32]:
        return self._site.open_templates(images, shared[self._span])

    def state(self) -> Tensors:
        return self._site.state()

    def load_state(self, tensors: Tensors) -> None:
        self._site.load_state(tensors)

    def expert(self) -> Tensors:
        return self._site.expert()

    def receive_expert(self, site: str, tensors: Tensors) -> None:
        self._site.receive_expert(site, tensors)


class Families:
    """``spans``: where each family's vector lies, by the name that ``plans`` gives it."""

    def __init__(self, plans: Mapping[str, Plan]) -> None:
        self._plans = plans
        ends = np.cumsum([plan.model_layout.size for plan in plans.values()])
        self.spans = {
            name: slice(int(end) - plan.model_layout.size, int(end))
            for (name, plan), end in zip(plans.items(), ends, strict=True)
        }

    def combine(
        self, plan: Plan, number: int, shared: FloatVector, updates: dict[str, SiteUpdate]
    ) -> FloatVector:
        """Every federation's own sum, as real processes make it."""
        return np.concatenate(
            [
                through_codec(
                    own, number, shared[self.spans[name]], {s: updates[s] for s in own.roster}
                )
                for name, own in self._plans.items()
            ]
        )
