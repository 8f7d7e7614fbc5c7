"""Methods in which a site trains one model: which of its tensors are shared is the method's anatomy.

A round starts from the shared tensors as they came and the private ones as they were left, trains all of
them with the head for ``local_epochs``, and returns n_i (w_i - w) of the shared ones. Methods differ in
the hooks: what is added to the loss, to the gradients, or done to the update. Under a plan with
differential privacy the same hooks are called for one person at a time (:mod:`.private`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..layout import OPEN_SET, FloatVector, Layout
from ..models.build import PalmModel
from ..models.teim import Teim
from ..plan import TrainingSettings
from ..privacy.randomness import Randomness, SecretRandom
from .base import RoundContext, SiteImages, SiteUpdate, Tensors
from .normalise import OwnPeople
from .private import check_state, is_private, public_head, train_privately, units
from .template import anatomy_of, model_template
from .training import (
    Batch,
    Head,
    Learner,
    Outputs,
    RoundViews,
    check_names,
    derive_seed,
    drawn_head,
    import_into,
    named_tensors,
    optimiser,
    prepared_batches,
    stack,
    unit,
)

HEAD, PRIVATE = "head.open.", "private."


class SingleModelSite:
    """One site's half. Names of its private state: ``head.open.*`` and ``private.*``."""

    method: ClassVar[str]

    def __init__(
        self,
        training: TrainingSettings,
        seed: int,
        site: str,
        images: SiteImages,
        randomness: Randomness | None = None,
    ) -> None:
        template = model_template(self.method, training, seed)
        anatomy = anatomy_of(self.method, training)
        self.layout, self.expert_layout = template.layout, template.expert_layout
        self.training, self.seed, self.site, self.images = training, seed, site, images
        self.private_training = is_private(training)
        self.randomness = randomness or SecretRandom()
        self._initial = template.initial
        model = PalmModel(
            training.backbone,
            teim=Teim(training.teim_neighbours) if anatomy.teim else None,
            norm=anatomy.norm,
            covariance=training.template_normaliser == "federation",
        )
        model.eval()
        if self.private_training and training.privacy.trains == "expert":
            model.embedding.requires_grad_(False)
        self.learner = Learner(model, self._head(model.template_length), training)
        tensors = named_tensors(model)
        shared = [one.name.removeprefix(OPEN_SET) for one in self.layout.tensors]
        self.shared = {name: tensors.pop(name) for name in shared}
        self.private = tensors
        drawn = {name: tensors[name] for name in template.private}
        import_into(drawn, "", template.private)

    # --- what methods change ----------------------------------------------------------------------

    def begin_round(self, context: RoundContext, shared: FloatVector, views: RoundViews) -> None:
        """Before the first step; the model holds the shared tensors."""

    def learn(self, learning: bool) -> None:
        """Normalise by batches or by running statistics."""
        self.learner.model.train(learning)

    def feature(self, inputs: Tensor) -> Tensor:
        """Textural features that the embedding layer gets."""
        found: Tensor = self.learner.model.expert(inputs)
        return found

    def loss(self, batch: Batch, dropout: torch.Generator) -> Tensor:
        """What a step minimises."""
        return self.learner.loss(self.outputs(batch, dropout), batch.labels)

    def adjust_gradients(self) -> None:
        """After the backward pass of a step, before the optimiser."""

    def update(self, delta: FloatVector, steps: int, metrics: dict[str, float]) -> SiteUpdate:
        """What the site gives for a round of ``steps`` optimiser steps."""
        return SiteUpdate(delta, self.weight, metrics=metrics)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What a step moves."""
        return self.learner.parameter_groups()

    @property
    def weight(self) -> float:
        """Of the update: n_i, which is data; 1 under differential privacy."""
        return 1.0 if self.private_training else float(len(self.images.labels))

    # --- the method -------------------------------------------------------------------------------

    def initial_vector(self) -> FloatVector:
        return self._initial.copy()

    def train_round(self, context: RoundContext, shared: FloatVector) -> SiteUpdate:
        torch.set_num_threads(self.training.threads)
        self.load_shared(shared)
        views = RoundViews(self.images, self.training, self.round_seed(context, "batches"))
        self.begin_round(context, shared, views)
        normaliser = self.learner.model.normaliser
        people = OwnPeople.of(views.all(), views.labels, self.embed) if normaliser else None
        self.learn(True)
        adam = optimiser(*self.parameter_groups())
        dropout = torch.Generator().manual_seed(self.round_seed(context, "dropout"))
        steps, metrics = 0, dict[str, float]()
        if self.private_training:
            privacy = self.training.privacy
            metrics = train_privately(
                units(self.images, privacy), views, privacy, self.randomness, adam,
                lambda batch: self.loss(batch, dropout), self.adjust_gradients,
            )  # fmt: skip
            steps = privacy.steps
        else:
            for batch in views.batches():
                adam.zero_grad()
                self.loss(batch, dropout).backward()  # type: ignore[no-untyped-call]
                self.adjust_gradients()
                adam.step()
                steps += 1
        self.learn(False)
        if normaliser is not None and people is not None:
            normaliser.within.copy_(people.to_share())
        delta = self.shared_vector() - shared
        metrics |= self.learner.take_losses("open")
        metrics["update.max_abs"] = float(np.abs(delta).max(initial=0.0))
        return self.update(delta, steps, metrics)

    def state(self) -> Tensors:
        return {
            prefix + name: tensor.detach().numpy().copy()
            for prefix, tensors in self._private_state().items()
            for name, tensor in tensors.items()
        }

    def load_state(self, tensors: Tensors) -> None:
        if self.private_training:
            check_state(self.training, HEAD + "places", tensors)
        targets = self._private_state()
        check_names(tensors, targets)
        for prefix, found in targets.items():
            import_into(found, prefix, tensors)

    def expert(self) -> Tensors:
        """No closed-set model, no expert."""
        return {}

    def receive_expert(self, site: str, tensors: Tensors) -> None:
        """Raises LayoutMismatchError: the method has no experts."""
        Layout(()).flatten(tensors)

    def closed_templates(
        self, images: npt.NDArray[np.float32], shared: FloatVector
    ) -> npt.NDArray[np.float32]:
        return self.templates(images, shared, self.embed)

    def open_templates(
        self, images: npt.NDArray[np.float32], shared: FloatVector
    ) -> npt.NDArray[np.float32]:
        return self.normalised(self.templates(images, shared, self.embed))

    # --- inside -----------------------------------------------------------------------------------

    def normalised(self, templates: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Open-set templates (N, D) as the plan's ``template_normaliser`` makes them."""
        if self.training.template_normaliser == "none":
            return templates
        seed = derive_seed(self.seed, self.site, 0, "normaliser")
        people = OwnPeople.of_views(self.images, self.training.backbone, seed, self.embed)
        averaged = self.learner.model.normaliser
        return people.normaliser(averaged.within if averaged else None)(templates)

    def outputs(self, batch: Batch, dropout: torch.Generator) -> Outputs:
        """Of the model and its head."""
        return self.learner.outputs(self.feature(batch.inputs), batch.labels, dropout)

    def embed(self, inputs: Tensor) -> Tensor:
        """Prepared images -> (B, D) embeddings of the model."""
        return self.learner.model.embed(self.feature(inputs))

    def templates(
        self,
        images: npt.NDArray[np.float32],
        shared: FloatVector,
        embed: Callable[[Tensor], Tensor],
    ) -> npt.NDArray[np.float32]:
        """(N, D) unit templates: what ``embed`` makes of prepared images."""
        torch.set_num_threads(self.training.threads)
        self.load_shared(shared)
        with torch.no_grad():
            batches = prepared_batches(self.training.backbone, images)
            parts = [unit(embed(inputs)) for inputs in batches]
        return stack(parts, self.learner.model.template_length)

    def round_seed(self, context: RoundContext, purpose: str) -> int:
        """Of what is random in a round; nobody else's under differential privacy."""
        if self.private_training:
            return self.randomness.seed()
        return derive_seed(self.seed, self.site, context.round, purpose)

    def load_shared(self, shared: FloatVector) -> None:
        import_into(self.shared, OPEN_SET, self.layout.unflatten(shared))

    def shared_vector(self) -> FloatVector:
        """(P,) float32 of the shared tensors as they are now."""
        return self.layout.flatten(
            {OPEN_SET + name: tensor.detach().numpy() for name, tensor in self.shared.items()}
        )

    def _head(self, length: int) -> Head:
        classes = self.images.classes
        if self.private_training:
            return public_head(self.training, length, self.seed, classes, self.randomness)
        seed = derive_seed(self.seed, self.site, 0, "head")
        return drawn_head(classes, length, self.training, seed)

    def _private_state(self) -> dict[str, dict[str, Tensor]]:
        """Tensors that stay at the site, by prefix and name."""
        return {HEAD: named_tensors(self.learner.head), PRIVATE: self.private}
