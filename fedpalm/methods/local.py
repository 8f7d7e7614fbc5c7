"""No federation: each site trains the same network alone, on its own images.

Shared: nothing; the layout is empty and so is every delta. Stays at the site: the model and its head.
A round is what it is in FedAvg (same initial model, data order, epochs, a new optimiser), so that the
two differ in the averaging alone: FedAvg with one site is this method. There is no sum.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..layout import OPEN_SET, FloatVector, Layout
from ..models.compnet import PalmModel
from ..plan import TrainingSettings
from .base import RoundContext, SiteImages, SiteUpdate, Tensors
from .template import model_template
from .training import (
    Learner,
    check_names,
    derive_seed,
    export_tensors,
    fit,
    import_tensors,
    plain_templates,
)

_MODEL = "local."
_HEAD = "head.open."


class LocalSite:
    """One site on its own; ``shared`` is an empty vector everywhere."""

    def __init__(
        self, training: TrainingSettings, seed: int, site: str, images: SiteImages
    ) -> None:
        self.layout = self.expert_layout = Layout(())
        self._seed, self._site, self._images = seed, site, images
        self._learner = Learner(PalmModel(), training, images.classes)
        self._learner.draw_head(derive_seed(seed, site, 0, "head"))
        template = model_template("fedavg", training, seed)
        initial = template.layout.unflatten(template.initial)
        import_tensors(self._learner.model, OPEN_SET, initial)

    def initial_vector(self) -> FloatVector:
        return np.empty(0, dtype=np.float32)

    def train_round(self, context: RoundContext, shared: FloatVector) -> SiteUpdate:
        metrics = fit(self._learner, self._images, self._seed, self._site, context.round)
        return SiteUpdate(self.initial_vector(), float(len(self._images.labels)), metrics=metrics)

    def state(self) -> Tensors:
        return export_tensors(self._learner.model, _MODEL) | export_tensors(
            self._learner.head, _HEAD
        )

    def load_state(self, tensors: Tensors) -> None:
        check_names(tensors, [_MODEL, _HEAD])
        import_tensors(self._learner.model, _MODEL, tensors)
        import_tensors(self._learner.head, _HEAD, tensors)

    def expert(self) -> Tensors:
        """Nothing is ever released."""
        return {}

    def receive_expert(self, site: str, tensors: Tensors) -> None:
        """Raises LayoutMismatchError: the method has no experts."""
        self.expert_layout.flatten(tensors)

    def closed_templates(
        self, images: npt.NDArray[np.float32], shared: FloatVector
    ) -> npt.NDArray[np.float32]:
        return plain_templates(self._learner.model, images, self._learner.training.threads)

    def open_templates(
        self, images: npt.NDArray[np.float32], shared: FloatVector
    ) -> npt.NDArray[np.float32]:
        return self.closed_templates(images, shared)
