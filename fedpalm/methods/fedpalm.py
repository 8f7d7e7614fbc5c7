"""FedPalm: a personal closed-set model and a shared open-set model that listen to each other.

Source: the FedPalm paper, section IV; equation and line numbers below are the paper's. Readings of it
that are ours are listed in docs/FEDPALM.md.

Shared: the open-set model M^o = (T^o, TEIM^o, Q^o), averaged with weights n_i (eqs 6 and 7; the sum is
that of n_i (w_i - w) and of n_i). Stays at the site: the closed-set model M^c = (T^c, TEIM^c, Q^c),
both ArcFace heads, all templates. The closed-set textural expert T^c is released once, by the
exchange of experts.

A round at a site (algorithm 1, lines 14 to 27), with L of eq 10 for both models:

    r <= R/3:  f_c = T^c(x), f_g = T^o(x);  train T^c, Q^c on L(Q^c(f_c)) and T^o, Q^o on L(Q^o(f_g))
    after:     T^c frozen;  f^_c = TEIM^c(f_c, F \\ {f_c}),  f^_g = TEIM^o(f_g, F \\ {f_g});
               train TEIM^c, Q^c on L(Q^c(f^_c)) and T^o, TEIM^o, Q^o on L(Q^o(f^_g))

F holds the features of all experts at the site: its own, the global one, and after the exchange those
of the other sites. A routed feature is an input: no gradient runs through it, so nothing of the
closed-set loss shapes the shared expert.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..errors import LayoutMismatchError
from ..layout import CLOSED_SET_EXPERT, FloatVector
from ..models.build import Expert, build_expert
from ..models.pool import ExpertPool
from ..plan import TrainingSettings, warm_up_rounds
from ..privacy.randomness import Randomness
from .base import RoundContext, SiteImages, SiteUpdate, Tensors
from .pair import PairSite
from .training import (
    TEMPLATE_BATCH,
    Batch,
    Learner,
    RoundViews,
    export_tensors,
    import_tensors,
    stack,
    unit,
)

GLOBAL = "_global"
"""The shared expert's name in the pool; the others carry their site's, which has no underscore."""

_RECEIVED = "received."
_ROUNDS = "progress."
_INTERACTING, _FROZEN = "progress.interacting", "progress.frozen"
_EXPERT = "expert."

Features = dict[str, Tensor]


class FedPalmSite(PairSite):
    """One site's half: ``learner`` has the open-set model, ``own`` the closed-set one.

    Both begin alike, heads included: features of experts that share an origin keep their channels
    aligned, which is what makes their mean (eq 4) a feature.
    """

    method = "fedpalm"

    def __init__(
        self,
        training: TrainingSettings,
        seed: int,
        site: str,
        images: SiteImages,
        randomness: Randomness | None = None,
    ) -> None:
        super().__init__(training, seed, site, images, randomness)
        self._received: dict[str, Expert] = {}
        self._interacting = self._frozen = False
        self._pool: ExpertPool | None = None

    def begin_round(self, context: RoundContext, shared: FloatVector, views: RoundViews) -> None:
        super().begin_round(context, shared, views)
        warm = context.round > warm_up_rounds(context.rounds)
        # What is frozen is frozen for those who will receive it.
        self._set_progress(
            interacting=warm or self.training.teim_from_start,
            frozen=warm and bool(self.expert_layout.tensors),
        )
        self._unchanging = self._features_of_frozen(views)
        self._chosen: dict[str, Counter[str]] = {"open": Counter(), "closed": Counter()}

    def learn(self, learning: bool) -> None:
        """As every pair; what is frozen keeps its statistics."""
        super().learn(learning)
        self.own.model.train(learning and not self._frozen)

    def loss(self, batch: Batch, dropout: torch.Generator) -> Tensor:
        """L of eq 10 for both models; they share no parameter, so each gets its own gradient."""
        features = self._batch_features(batch)
        total = torch.zeros(())
        for name, learner, anchor, random in (
            ("open", self.learner, GLOBAL, dropout),
            ("closed", self.own, self.site, self.own_dropout),
        ):
            feature = self._enhance(learner, anchor, features, self._chosen[name])
            outputs = learner.outputs(feature, batch.labels, random)
            total = total + learner.loss(outputs, batch.labels)
        return total

    def update(self, delta: FloatVector, steps: int, metrics: dict[str, float]) -> SiteUpdate:
        del self._unchanging
        return super().update(delta, steps, metrics | self._fusion_metrics())

    def state(self) -> Tensors:
        tensors = super().state() | {
            _INTERACTING: np.array(self._interacting, dtype=np.uint8),
            _FROZEN: np.array(self._frozen, dtype=np.uint8),
        }
        for site, expert in self._received.items():
            tensors |= export_tensors(expert, f"{_RECEIVED}{site}.{_EXPERT}")
        return tensors

    def load_state(self, tensors: Tensors) -> None:
        progress = {name for name in tensors if name.startswith(_ROUNDS)}
        if progress != {_INTERACTING, _FROZEN}:
            raise LayoutMismatchError(f"{_ROUNDS}* are {_INTERACTING} and {_FROZEN}")
        interacting, frozen = _flag(tensors, _INTERACTING), _flag(tensors, _FROZEN)
        received = {name: one for name, one in tensors.items() if name.startswith(_RECEIVED)}
        super().load_state(
            {n: one for n, one in tensors.items() if n not in progress and n not in received}
        )
        self._received = {}
        for site in {name.removeprefix(_RECEIVED).partition(".")[0] for name in received}:
            self._received[site] = self._expert_from(tensors, f"{_RECEIVED}{site}.{_EXPERT}")
        self._set_progress(interacting=interacting, frozen=frozen)

    def expert(self) -> Tensors:
        """Empty where experts are normalised by site (``expert_norm``)."""
        if not self.expert_layout.tensors:
            return {}
        return export_tensors(self.own.model.expert, CLOSED_SET_EXPERT)

    def receive_expert(self, site: str, tensors: Tensors) -> None:
        """Raises LayoutMismatchError (names, shapes, dtype), NonFiniteUpdateError."""
        self.expert_layout.flatten(tensors)
        if site in (self.site, GLOBAL):
            raise LayoutMismatchError(f"{site!r} is not another site")
        self._received[site] = self._expert_from(tensors, CLOSED_SET_EXPERT)

    def closed_templates(
        self, images: npt.NDArray[np.float32], shared: FloatVector
    ) -> npt.NDArray[np.float32]:
        """(N, D), or (N, 2 D) with ``closed_set_fusion``.

        Fused templates are [z_c | z_g] / sqrt(2): their cosine is the mean of the two cosines.
        """
        if not self.training.closed_set_fusion:
            return self._pooled_templates(
                images, shared, lambda features: self._embed(self.own, self.site, features)
            )
        length = 2 * self.learner.model.template_length
        return self._pooled_templates(images, shared, self.fused, length)

    def open_templates(
        self, images: npt.NDArray[np.float32], shared: FloatVector
    ) -> npt.NDArray[np.float32]:
        return self.normalised(
            self._pooled_templates(
                images, shared, lambda features: self._embed(self.learner, GLOBAL, features)
            )
        )

    def embed(self, inputs: Tensor) -> Tensor:
        return self._embed(self.learner, GLOBAL, self._features(inputs))

    def own_embed(self, inputs: Tensor) -> Tensor:
        return self._embed(self.own, self.site, self._features(inputs))

    def fused(self, features: Features) -> Tensor:
        """(B, 2 D), both halves of unit length."""
        pair = ((self.own, self.site), (self.learner, GLOBAL))
        return torch.cat([normalize(self._embed(*one, features)) for one in pair], dim=1)

    def experts(self) -> dict[str, Expert]:
        """Whose features are F of eq 1, as they are now.

        Sorted by site, the global one last: every site sums in the same order.
        """
        experts = {self.site: self.own.model.expert} | (self._received if self._interacting else {})
        return {site: experts[site] for site in sorted(experts)} | {
            GLOBAL: self.learner.model.expert
        }

    def _pooled_templates(
        self,
        images: npt.NDArray[np.float32],
        shared: FloatVector,
        embed: Callable[[Features], Tensor],
        length: int | None = None,
    ) -> npt.NDArray[np.float32]:
        """As :meth:`templates`, of the features that the pool of all experts gives."""
        torch.set_num_threads(self.training.threads)
        self.load_shared(shared)
        experts = self.experts()
        if self._pool is None or not self._pool.holds(tuple(experts.values())):
            self._pool = ExpertPool(tuple(experts.values()))
        parts = []
        with torch.no_grad():
            for begin in range(0, len(images), TEMPLATE_BATCH):
                found = self._pool(torch.tensor(images[begin : begin + TEMPLATE_BATCH]))
                parts.append(unit(embed(dict(zip(experts, found, strict=True)))))
        return stack(parts, length or self.learner.model.template_length)

    def _features(self, inputs: Tensor) -> Features:
        """Each expert by itself, so that what a round averages does not depend on a pool's rounding."""
        return {name: expert(inputs) for name, expert in self.experts().items()}

    def _embed(self, learner: Learner, anchor: str, features: Features) -> Tensor:
        """Of one (model, anchor) pair: (B, D) embeddings, not normalised."""
        return learner.model.embed(self._enhance(learner, anchor, features, Counter()))

    def _set_progress(self, *, interacting: bool, frozen: bool) -> None:
        """Line 20: from R/3 on TEIM is on, and the closed-set expert frozen."""
        self._interacting, self._frozen = interacting, frozen
        for learner in (self.learner, self.own):
            if learner.model.teim is not None:
                learner.model.teim.requires_grad_(interacting)
        self.own.model.expert.learn(not frozen)

    def _features_of_frozen(self, views: RoundViews) -> Features:
        """Features of all views by the experts that do not learn in this round, sorted by site.

        Not from a pool: its features differ by rounding, and so would the model that is trained on them.
        """
        experts = dict(self._received) if self._interacting else {}
        if self._frozen:
            experts[self.site] = self.own.model.expert
        with torch.no_grad():
            return {
                site: torch.cat([experts[site](chunk) for chunk in views.all()])
                for site in sorted(experts)
            }

    def _batch_features(self, batch: Batch) -> Features:
        """Of :meth:`experts`, with what was computed for the round; the frozen ones without a graph."""
        features = {site: every[batch.views] for site, every in self._unchanging.items()}
        if self.site not in features:
            features[self.site] = self.own.model.expert(batch.inputs)
        ordered = {site: features[site] for site in sorted(features)}
        return ordered | {GLOBAL: self.learner.model.expert(batch.inputs)}

    def _expert_from(self, tensors: Tensors, prefix: str) -> Expert:
        expert = build_expert(self.training.backbone)
        import_tensors(expert, prefix, tensors)
        expert.learn(False)
        return expert

    def _enhance(
        self, learner: Learner, anchor: str, features: Features, chosen: Counter[str]
    ) -> Tensor:
        """Eqs 2 to 5 for one anchor; during warm-up the anchor itself."""
        if not self._interacting or learner.model.teim is None:
            return features[anchor]
        others = [name for name in features if name != anchor]
        routed = learner.model.teim(
            features[anchor], torch.stack([features[name].detach() for name in others])
        )
        chosen.update(dict(zip(others, routed.chosen.tolist(), strict=True)))
        feature: Tensor = routed.feature
        return feature

    def _fusion_metrics(self) -> dict[str, float]:
        metrics: dict[str, float] = {"teim.on": float(self._interacting)}
        for name, learner in (("open", self.learner), ("closed", self.own)):
            if learner.model.teim is not None:
                metrics[f"teim.{name}.alpha"] = learner.model.teim.alpha.item()
                metrics[f"teim.{name}.beta"] = learner.model.teim.beta.item()
            total = self._chosen[name].total()
            for expert, count in self._chosen[name].items():
                metrics[f"routing.{name}.{expert}"] = count / total
        return metrics


def _flag(tensors: Tensors, name: str) -> bool:
    flag = tensors[name]
    if flag.dtype != np.uint8 or flag.shape != () or flag > 1:
        raise LayoutMismatchError(f"{name} is not a flag")
    return bool(flag)
