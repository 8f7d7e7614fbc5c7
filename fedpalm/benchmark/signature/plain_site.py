"""A site of the baselines that share something else than FedMH's groups: both tasks, plainly trained.

Batches, dropout, heads and initial values are those of :class:`~fedpalm.methods.fedmh.FedMHSite` without
augmentation and guidance, so what a baseline adds is all that differs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from ...data.signatures import SignatureImages
from ...methods.base import RoundContext
from ...methods.fedmh import FedMHSite
from ...methods.guided import GuidedSteps
from ...methods.two_tasks import Outputs, Signatures, outputs_of
from ...models.arcface import ArcFace
from ...models.signature import SignatureModel


class Learner:
    """A model with its head of writers and an optimiser of its own."""

    def __init__(
        self, site: PlainSite, model: SignatureModel, head: ArcFace, images: SignatureImages
    ) -> None:
        self.model, self.head = model, head
        self.signatures = Signatures(images, model)
        self.steps = GuidedSteps(model, head, site.training.learning_rate, site.settings)

    def outputs(self, rows: Tensor, keep: Tensor) -> Outputs:
        """As :func:`~fedpalm.methods.two_tasks.outputs_of`, of this model."""
        return outputs_of(self.model, self.head, self.signatures, rows, keep)


class PlainSite(FedMHSite, ABC):
    """What a round's training is made of; a baseline says what a step does."""

    def begin(self, images: SignatureImages) -> list[Learner]:
        """The models that this round trains on ``images``."""
        return [Learner(self, self.model, self.head, images)]

    @abstractmethod
    def step(self, learners: list[Learner], rows: Tensor, keep: Tensor) -> None:
        """One batch: the (n,) rows of what the site trains on, and (n, D) factors of dropout."""

    def _train(self, context: RoundContext) -> dict[str, float]:
        views, batches = self._drawn(context)
        learners = self.begin(views)
        for rows, keep in batches:
            self.step(learners, rows, keep)
        return learners[0].steps.metrics()
