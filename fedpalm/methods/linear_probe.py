"""How a site judges a model: a linear head is fitted to it, then both losses are taken on held-out data.

A site's head of writers was trained with the site's own trunk, so to it any other trunk looks bad, whatever
its features are worth. So every model that is judged, the site's own too, gets the head that suits it:
features stay as they are, and only the prototypes are fitted, to the signatures that the site trains
on. They begin as the writers' mean directions, less the mean of all, and take FIT_STEPS steps
of their loss. Nothing is drawn: the same model gets the same head and the same losses.

The head that was fitted to the model which a site takes becomes the site's; training then begins
without a step that would bend features to a head that does not fit (Kumar et al. 2022, arXiv:2202.10054).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..canonical import domain_hash
from ..models.arcface import ArcFace
from ..models.signature import SignatureModel
from .pareto import ProbeLosses
from .training import TEMPLATE_BATCH
from .two_tasks import Signatures, outputs_of

FIT_STEPS, FIT_RATE = 30, 0.02
"""Of Adam on prototypes of length 1, all signatures in every step."""


class LinearProbe:
    """Judges the model as it stands; what its trunk says of the signatures is kept until the trunk changes.

    Args:
        fit: what the site trains on; the head is fitted to its genuine signatures.
        aside: what it never trains on; both losses are of it.
    """

    def __init__(
        self, model: SignatureModel, head: ArcFace, fit: Signatures, aside: Signatures
    ) -> None:
        self._model, self._head, self._aside = model, head, aside
        self._fit, self._rows = fit, torch.arange(fit.size)[fit.genuine]
        self._seen: tuple[bytes, Tensor, Tensor] | None = None

    def losses(self) -> ProbeLosses:
        """Of the model with the head that is fitted to it, which stays; 0 for a task without data."""
        with torch.no_grad():
            fit, aside = (self._model.projection(one) for one in self._features())
        fit_head(self._head, fit, self._fit.writers[self._rows])
        with torch.no_grad():
            rows = torch.arange(self._aside.size)
            losses = outputs_of(self._model, self._head, self._aside, rows, embeddings=aside).losses
        return ProbeLosses(*(0.0 if one is None else one.item() for one in losses))

    def _features(self) -> tuple[Tensor, Tensor]:
        trunk = b"".join(one.detach().numpy().tobytes() for one in self._model.trunk.parameters())
        key = domain_hash("trunk/v1", trunk)
        if self._seen is None or self._seen[0] != key:
            every = torch.arange(self._aside.size)
            self._seen = key, self._of(self._fit, self._rows), self._of(self._aside, every)
        return self._seen[1:]

    def _of(self, signatures: Signatures, rows: Tensor) -> Tensor:
        with torch.no_grad():
            parts = torch.split(rows, TEMPLATE_BATCH)
            return torch.cat([self._model.features(signatures.inputs(part)) for part in parts])


def fit_head(head: ArcFace, embeddings: Tensor, writers: Tensor) -> None:
    """Give the head the prototypes that suit (N, D) embeddings of the (N,) ``writers``.

    They are numbers of (writer, name), one prototype each; one without a signature keeps its prototype.
    """
    unit = F.normalize(embeddings)
    with torch.no_grad():
        for writer, prototype in enumerate(head.prototypes):
            if (own := writers == writer).any():
                prototype.copy_(F.normalize(unit[own].mean(dim=0) - unit.mean(dim=0), dim=0))
    adam = torch.optim.Adam([head.prototypes], lr=FIT_RATE)
    for _ in range(FIT_STEPS):
        loss = F.cross_entropy(head(embeddings, writers), writers)
        (head.prototypes.grad,) = torch.autograd.grad(loss, [head.prototypes])
        adam.step()
    head.prototypes.grad = None
