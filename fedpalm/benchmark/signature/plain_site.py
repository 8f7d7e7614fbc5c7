"""A site of the baselines that share something else than FedMH's groups: both tasks, plainly trained.

Batches, dropout, heads and initial values are those of :class:`~fedpalm.methods.fedmh.FedMHSite` without
augmentation and guidance, so what a baseline adds is all that differs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...data.adaptive_augmentation import adaptive_augmentation
from ...data.signatures import SignatureImages
from ...methods.base import RoundContext
from ...methods.fedmh import FedMHSite
from ...methods.guided import GuidedSteps
from ...methods.two_tasks import Signatures, TaskLosses
from ...models.arcface import ArcFace
from ...models.signature import SignatureModel
from ...models.signature_spec import TEMPLATE_LENGTH


class Outputs(NamedTuple):
    """Of a batch: (n, D) embeddings, the writers' (g, C) logits of the g genuine ones, (n,) logits of
    the detection head, and both losses."""

    embeddings: Tensor
    writers: Tensor
    genuine: Tensor
    losses: TaskLosses


class Learner:
    """A model with its head of writers and an optimiser of its own."""

    def __init__(
        self, site: PlainSite, model: SignatureModel, head: ArcFace, images: SignatureImages
    ) -> None:
        self.model, self.head = model, head
        self.signatures = Signatures(images, model)
        self.steps = GuidedSteps(model, head, site.training.learning_rate, site.settings)

    def outputs(self, rows: Tensor, keep: Tensor) -> Outputs:
        """As :func:`~fedpalm.methods.two_tasks.task_losses`, with what the losses are made of."""
        embeddings = self.model(self.signatures.inputs(rows))
        real = self.signatures.genuine[rows]
        of_writers, logits = (embeddings * keep)[real], self.model.task(embeddings)
        user = forged = None
        if real.any():
            names = self.signatures.writers[rows][real]
            of_writers = self.head(of_writers, names)
            user = F.cross_entropy(of_writers, names)
        if (balance := self.signatures.balance) is not None:
            weights = torch.where(real, balance.genuine, balance.forged)
            forged = F.binary_cross_entropy_with_logits(logits, real.float(), weights)
        return Outputs(embeddings, of_writers, logits, TaskLosses(user, forged))


class PlainSite(FedMHSite):
    """What a round's training is made of; a baseline says what a step does."""

    def begin(self, images: SignatureImages) -> list[Learner]:
        """The models that this round trains on ``images``."""
        return [Learner(self, self.model, self.head, images)]

    def step(self, learners: list[Learner], rows: Tensor, keep: Tensor) -> None:
        """One batch: the (n,) rows of what the site trains on, and (n, D) factors of dropout."""
        raise NotImplementedError

    def _train(self, context: RoundContext) -> dict[str, float]:
        training, settings = self.training, self.settings
        rng = np.random.Generator(np.random.PCG64(self._seed(context, "batches")))
        # Without copies too it draws from ``rng``, and so the batches behind it are FedMH's.
        views = adaptive_augmentation(
            self._fit, mode=settings.augmentation, target=settings.augmentation_quantile,
            strength_max=settings.augmentation_strength, rng=rng,
        )  # fmt: skip
        learners, count = self.begin(views), len(views.writers)
        dropout = torch.Generator().manual_seed(self._seed(context, "dropout"))
        for _ in range(training.local_epochs):
            order = torch.from_numpy(rng.permutation(count))
            for rows in order.tensor_split(-(-count // training.batch_size)):
                keep = torch.empty(len(rows), TEMPLATE_LENGTH)
                keep.bernoulli_(1 - training.dropout, generator=dropout)
                keep /= 1 - training.dropout
                self.step(learners, rows, keep)
        return learners[0].steps.metrics()
