"""FedProto: sites share prototypes of classes, and embeddings are drawn to them.

Source: Tan, Long, Liu, Zhou, Lu, Jiang, Zhang 2022, "FedProto: Federated Prototype Learning across
Heterogeneous Clients" (AAAI; arXiv:2105.00243). A site minimises

    L_S + lambda * mean over classes j of |mean embedding of class j - prototype of class j|^2

and a class's prototype is the average, over the sites that have it, of their mean embeddings.

Here a class is a (writer, name), which is what is claimed; embeddings are unit vectors, lambda is 1, and
L_S is both tasks' losses. **Its prototype is a biometric template**: no plan can name this method, it
exists in this benchmark alone. And a writer signs at one site: the average over the sites that have a
class is one site's own, so nothing passes from site to site, and what is left of FedProto is a pull
towards where the site's signatures lay in the round before.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...data.signatures import SignatureImages
from ...layout import FloatVector
from ...methods.base import RoundContext, SiteUpdate
from ...methods.training import TEMPLATE_BATCH
from ...methods.two_tasks import Signatures
from ...models.signature_spec import TEMPLATE_LENGTH
from ...plan import Plan
from .plain_site import Learner, PlainSite

PULL = 1.0
"""lambda."""


class FedProtoSite(PlainSite):
    """One site's half; the shared vector holds (writers of all sites, D) prototypes, 0 for none yet.

    Args:
        plan: with receipt ``keep``: the model stays.
        writers: rows of the site's own writers.
    """

    def __init__(
        self, plan: Plan, site: str, images: SignatureImages, seed: int, writers: slice
    ) -> None:
        super().__init__(plan, site, images, seed)
        self._writers = writers
        self._prototypes = torch.zeros(images.classes, TEMPLATE_LENGTH)

    def train_round(self, context: RoundContext, shared: FloatVector) -> SiteUpdate:
        rows = shared.reshape(-1, TEMPLATE_LENGTH)
        self._prototypes = torch.from_numpy(rows[self._writers].copy())
        update = super().train_round(context, super().initial_vector())
        delta = np.zeros_like(rows)
        delta[self._writers] = self._means() - rows[self._writers]
        return SiteUpdate(delta.reshape(-1), update.weight, metrics=update.metrics)

    def step(self, learners: list[Learner], rows: Tensor, keep: Tensor) -> None:
        (learner,) = learners
        outputs = learner.outputs(rows, keep)
        user, genuine = outputs.losses.user, learner.signatures.genuine[rows]
        if user is not None and self._prototypes.any():
            writers = learner.signatures.writers[rows][genuine]
            user = user + PULL * self._pull(outputs.embeddings[genuine], writers)
        learner.steps.take(outputs.losses._replace(user=user))

    def closed_templates(self, images: FloatVector, shared: FloatVector) -> FloatVector:
        return super().closed_templates(images, super().initial_vector())

    def _pull(self, embeddings: Tensor, writers: Tensor) -> Tensor:
        units = F.normalize(embeddings)
        present = torch.bincount(writers).nonzero()[:, 0]
        means = torch.stack([units[writers == one].mean(dim=0) for one in present])
        return (means - self._prototypes[present]).square().sum(dim=1).mean()

    def _means(self) -> FloatVector:
        """(C, D) mean unit embedding of each writer's genuine signatures."""
        signatures = Signatures(self._fit, self.model)
        own = torch.nonzero(signatures.genuine)[:, 0]
        with torch.no_grad():
            units = torch.cat(
                [
                    F.normalize(self.model(signatures.inputs(rows)))
                    for rows in torch.split(own, TEMPLATE_BATCH)
                ]
            )
        writers = signatures.writers[own]
        means = [units[writers == one].mean(dim=0) for one in range(self.images.classes)]
        found: FloatVector = torch.stack(means).numpy()
        return found
