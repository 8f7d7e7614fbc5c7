"""The site's half of every method, as seen by whoever runs it: a process or the benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from ..layout import FloatVector, Layout

Tensors = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class SiteImages:
    """Training images of one site: (N, 1, 128, 128) float32 standardised ROIs, (N,) int64 labels 0..C-1.

    ``people`` (N,) int64 says whose image each is; None: a label is a person. Somebody with two palms has
    two labels.
    """

    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    classes: int
    people: npt.NDArray[np.int64] | None = None


@dataclass(frozen=True)
class RoundContext:
    """Where in the run a training step stands; ``round`` counts from 1 to ``rounds``."""

    round: int
    rounds: int


@dataclass(frozen=True)
class SiteUpdate:
    """What a round of local training yields.

    ``delta`` (P,) float32, local minus global; ``weight`` >= 0 and ``stats`` ride behind it in the
    sum; ``metrics`` (losses, alpha, beta, routing) stay at the site.
    """

    delta: FloatVector
    weight: float
    stats: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)


class TemplateMaker(Protocol):
    """What makes templates of images, (N, 1, 128, 128) float32 as the network takes them."""

    def closed_templates(
        self, images: npt.NDArray[np.float32], shared: FloatVector
    ) -> npt.NDArray[np.float32]:
        """(N, D) L2-normalised templates for people this site trained on.

        D is 512; 1024 where the method fuses two models (``closed_set_fusion``); 256 of signatures.
        """

    def open_templates(
        self, images: npt.NDArray[np.float32], shared: FloatVector
    ) -> npt.NDArray[np.float32]:
        """(N, D) L2-normalised templates for people nobody trained on."""


class SiteMethod(TemplateMaker, Protocol):
    """One site's half of a method: private state inside, shared vector in, update out.

    Everything is deterministic in (plan seed, site, round, state) with a fixed thread count, so a
    round that is trained again after a crash yields the same bytes. Under differential privacy it is drawn
    anew, and charged anew.
    """

    layout: Layout
    """Layout of the shared vector."""

    expert_layout: Layout
    """Layout of the expert that the exchange of experts may release (empty if the method has none)."""

    def initial_vector(self) -> FloatVector:
        """(P,) float32, the shared vector of round 0, from the plan's seed alone."""

    def train_round(self, context: RoundContext, shared: FloatVector) -> SiteUpdate:
        """Train locally from ``shared``; advances the private state."""

    def state(self) -> Tensors:
        """All private state (closed-set model, head, optimiser), by name; it never leaves the site."""

    def load_state(self, tensors: Tensors) -> None:
        """Restore :meth:`state`. Raises LayoutMismatchError on foreign or missing tensors."""

    def expert(self) -> Tensors:
        """The closed-set textural expert, float32 by ``closed_set.expert.*`` name."""

    def receive_expert(self, site: str, tensors: Tensors) -> None:
        """Take another site's expert into the pool (part of the private state from then on)."""


@runtime_checkable
class SettlingMethod(Protocol):
    """A method in whose templates the site's own images have a say, beside model and state."""

    def settled(self, shared: FloatVector) -> Tensors:
        """The site's whole model after it has received ``shared``: it makes templates without images."""
