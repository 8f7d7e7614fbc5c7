"""FML: a site's own model and a small shared one learn from each other; the small one is averaged.

Source: Shen, Zhang, Jia, Zhang, Huang, Zhou, Kuang, Wu, Wu 2020, "Federated Mutual Learning"
(arXiv:2006.16765). With p the class probabilities of the own model (o) and of the shared "meme" (m),

    own:   alpha L_o + (1 - alpha) KL(p_m | p_o)        meme:  beta L_m + (1 - beta) KL(p_o | p_m)

Here alpha = beta = 1/2, each learns from the other's p as from a constant, and both tasks have a loss and
a divergence: over writers, margin included, and over genuine or forged. The meme is a signature model with
the backbone :data:`.config.MEME`, averaged over all sites as in FedAvg; its head of writers stays, as the
own one does. Templates are the own model's.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from ...data.signatures import SignatureImages
from ...layout import FloatVector
from ...methods.base import Tensors
from ...methods.fedmh_settled import templates
from ...methods.training import (
    derive_seed,
    drawn_head,
    export_tensors,
    import_into,
    named_tensors,
)
from ...methods.two_tasks import Outputs, TaskLosses
from ...models.signature import SignatureModel
from ...models.signature_spec import TEMPLATE_LENGTH, initial_model
from ...plan import Plan
from .plain_site import Learner, PlainSite

TASK_SHARE = 0.5
"""alpha and beta."""

_PREFIXES = {"model": "partner.model.", "head": "partner.head."}


class FMLSite(PlainSite):
    """One site's half: as a FedMH site it is the meme's; the own model is its partner.

    Args:
        plan: of the meme, with receipt ``replace``.
        backbone: of the own model.
    """

    def __init__(
        self, plan: Plan, site: str, images: SignatureImages, seed: int, backbone: str
    ) -> None:
        super().__init__(plan, site, images, seed)
        self._partner = SignatureModel(backbone)
        begin = plan.draft.seed
        import_into(named_tensors(self._partner), "", initial_model([backbone], begin))
        self._partner_head = drawn_head(
            images.classes, TEMPLATE_LENGTH, self.training, derive_seed(begin, site, 0, "head")
        )

    def begin(self, images: SignatureImages) -> list[Learner]:
        own = Learner(self, self._partner, self._partner_head, images)
        return [own, *super().begin(images)]

    def step(self, learners: list[Learner], rows: Tensor, keep: Tensor) -> None:
        own, meme = (learner.outputs(rows, keep) for learner in learners)
        for learner, mine, other in zip(learners, (own, meme), (meme, own), strict=True):
            learner.steps.take(mutual_losses(mine, other))

    def closed_templates(
        self, images: npt.NDArray[np.float32], shared: FloatVector
    ) -> npt.NDArray[np.float32]:
        torch.set_num_threads(self.training.threads)
        return templates(self._partner, images)

    def state(self) -> Tensors:
        named = super().state()
        for which, module in self._modules().items():
            named |= export_tensors(module, _PREFIXES[which])
        return named

    def load_state(self, tensors: Tensors) -> None:
        for which, module in self._modules().items():
            import_into(named_tensors(module), _PREFIXES[which], tensors)
        prefixes = tuple(_PREFIXES.values())
        super().load_state({n: one for n, one in tensors.items() if not n.startswith(prefixes)})

    def _modules(self) -> dict[str, torch.nn.Module]:
        return {"model": self._partner, "head": self._partner_head}


def mutual_losses(mine: Outputs, other: Outputs) -> TaskLosses:
    """Of one of the two models: each task's loss and its divergence from the other model."""
    user, forged = mine.losses
    if user is not None:
        logs = [F.log_softmax(one.writers, dim=1) for one in (mine, other)]
        user = TASK_SHARE * user + (1 - TASK_SHARE) * _divergence(*logs)
    if forged is not None:
        logs = [
            torch.stack([F.logsigmoid(one.detection), F.logsigmoid(-one.detection)], dim=1)
            for one in (mine, other)
        ]
        forged = TASK_SHARE * forged + (1 - TASK_SHARE) * _divergence(*logs)
    return TaskLosses(user, forged)


def _divergence(mine: Tensor, other: Tensor) -> Tensor:
    """KL(other | mine) of (n, C) log-probabilities, batch mean; the other is a constant."""
    return F.kl_div(mine, other.detach(), reduction="batchmean", log_target=True)
