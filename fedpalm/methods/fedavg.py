"""FedAvg: one model for everybody. Source: McMahan et al. 2017, arXiv:1602.05629.

    w <- w + sum_i n_i (w_i - w) / sum_i n_i

Shared: the open-set model (textural expert and embedding layer). Stays at the site: the ArcFace head,
whose rows are prototypes of this site's people; identities are disjoint, so there is nothing to
average. A round trains the shared model and the head for ``local_epochs``. The sum is that of
n_i (w_i - w) and of n_i, the images trained on.
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

_HEAD = "head.open."


class FedAvgSite:
    """One site's half."""

    def __init__(
        self, training: TrainingSettings, seed: int, site: str, images: SiteImages
    ) -> None:
        template = model_template("fedavg", training, seed)
        self.layout, self.expert_layout = template.layout, template.expert_layout
        self._initial = template.initial
        self._seed, self._site, self._images = seed, site, images
        self._learner = Learner(PalmModel(), training, images.classes)
        self._learner.draw_head(derive_seed(seed, site, 0, "head"))

    def initial_vector(self) -> FloatVector:
        return self._initial.copy()

    def train_round(self, context: RoundContext, shared: FloatVector) -> SiteUpdate:
        self._load(shared)
        metrics = fit(self._learner, self._images, self._seed, self._site, context.round)
        delta = self.layout.flatten(export_tensors(self._learner.model, OPEN_SET)) - shared
        metrics["update.max_abs"] = float(np.abs(delta).max())
        return SiteUpdate(delta, float(len(self._images.labels)), metrics=metrics)

    def state(self) -> Tensors:
        return export_tensors(self._learner.head, _HEAD)

    def load_state(self, tensors: Tensors) -> None:
        check_names(tensors, [_HEAD])
        import_tensors(self._learner.head, _HEAD, tensors)

    def expert(self) -> Tensors:
        """No closed-set model, no expert."""
        return {}

    def receive_expert(self, site: str, tensors: Tensors) -> None:
        """Raises LayoutMismatchError: the method has no experts."""
        Layout(()).flatten(tensors)

    def closed_templates(
        self, images: npt.NDArray[np.float32], shared: FloatVector
    ) -> npt.NDArray[np.float32]:
        return self.open_templates(images, shared)

    def open_templates(
        self, images: npt.NDArray[np.float32], shared: FloatVector
    ) -> npt.NDArray[np.float32]:
        self._load(shared)
        return plain_templates(self._learner.model, images, self._learner.training.threads)

    def _load(self, shared: FloatVector) -> None:
        import_tensors(self._learner.model, OPEN_SET, self.layout.unflatten(shared))
