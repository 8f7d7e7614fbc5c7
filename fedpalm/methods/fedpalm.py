"""FedPalm: a personal closed-set model and a shared open-set model that listen to each other.

Source: the FedPalm paper, section IV; equation and line numbers below are the paper's. Readings of it
that are ours are listed in docs/FEDPALM.md.

Shared: the open-set model M^o = (T^o, TEIM^o, Q^o), averaged with weights n_i (eqs 6 and 7; the sum is
that of n_i (w_i - w) and of n_i). Stays at the site: the closed-set model M^c = (T^c, TEIM^c, Q^c),
both ArcFace heads, all templates. The closed-set textural expert T^c is released once, by the
deployment exchange.

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

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import LayoutMismatchError
from ..layout import CLOSED_SET_EXPERT, OPEN_SET, FloatVector
from ..models.build import Expert, PalmModel, build_expert
from ..models.teim import Teim
from ..plan import TrainingSettings
from .base import RoundContext, SiteImages, SiteUpdate, Tensors
from .normalise import OwnPeople
from .template import anatomy_of, model_template
from .training import (
    Batch,
    Learner,
    RoundViews,
    check_names,
    derive_seed,
    export_tensors,
    generator,
    import_into,
    import_tensors,
    named_tensors,
    optimiser,
    prepared_batches,
    stack,
    unit,
)

GLOBAL = "_global"
"""The shared expert's name in the pool; the others carry their site's, which has no underscore."""

_CLOSED = "closed_set."
_CLOSED_HEAD, _OPEN_HEAD = "head.closed.", "head.open."
_OPEN_PRIVATE = "private."
_RECEIVED = "received."
_ROUNDS = "progress."
_INTERACTING, _FROZEN = "progress.interacting", "progress.frozen"
_EXPERT = "expert."

Features = dict[str, Tensor]


def warm_up_rounds(rounds: int) -> int:
    """The first third: TEIM is off and closed-set experts learn. One round at least."""
    return max(1, rounds // 3)


class FedPalmSite:
    """One site's half."""

    def __init__(
        self, training: TrainingSettings, seed: int, site: str, images: SiteImages
    ) -> None:
        template = model_template("fedpalm", training, seed)
        self.layout, self.expert_layout = template.layout, template.expert_layout
        self._initial = template.initial
        self.seed, self._site, self._images, self._training = seed, site, images, training
        self._open, self._closed = (
            Learner(
                PalmModel(
                    training.backbone,
                    teim=Teim(training.teim_neighbours),
                    norm=anatomy_of("fedpalm", training).norm,
                    covariance=training.template_normaliser == "federation",
                ),
                training,
                images.classes,
            )
            for _ in range(2)
        )
        shared = {one.name.removeprefix(OPEN_SET) for one in self.layout.tensors}
        tensors = named_tensors(self._open.model)
        self._shared = {name: one for name, one in tensors.items() if name in shared}
        self._private = {name: one for name, one in tensors.items() if name not in shared}
        # Both heads and both models begin alike: features of experts that share an origin keep
        # their channels aligned, which is what makes their mean (eq 4) a feature.
        for learner in (self._open, self._closed):
            learner.draw_head(derive_seed(seed, site, 0, "head"))
            learner.model.eval()
            begins = named_tensors(learner.model)
            import_into(
                {n: begins[n] for n in shared}, OPEN_SET, self.layout.unflatten(self._initial)
            )
            import_into({n: begins[n] for n in template.private}, "", template.private)
        self._received: dict[str, Expert] = {}
        self._interacting = self._frozen = False

    def initial_vector(self) -> FloatVector:
        return self._initial.copy()

    def train_round(self, context: RoundContext, shared: FloatVector) -> SiteUpdate:
        torch.set_num_threads(self._training.threads)
        self._load(shared)
        warm = context.round > warm_up_rounds(context.rounds)
        # What is frozen is frozen for those who will receive it.
        self._set_progress(
            interacting=warm or self._training.teim_from_start,
            frozen=warm and bool(self.expert_layout.tensors),
        )
        self._pull_closed()
        seed = derive_seed(self.seed, self._site, context.round, "batches")
        views = RoundViews(self._images, self._training, seed)
        unchanging = self._unchanging(views)
        normaliser = self._open.model.normaliser
        people = OwnPeople.of(views.all(), views.labels, self._open_embed) if normaliser else None
        adam = optimiser(*self._open.parameter_groups(), *self._closed.parameter_groups())
        self._learn(True)
        dropout = [
            generator(self.seed, self._site, context.round, name)
            for name in ("dropout", "dropout-closed")
        ]
        chosen: dict[str, Counter[str]] = {"open": Counter(), "closed": Counter()}
        for batch in views.batches():
            adam.zero_grad()
            features = self._batch_features(batch, unchanging)
            for name, learner, anchor, random in (
                ("open", self._open, GLOBAL, dropout[0]),
                ("closed", self._closed, self._site, dropout[1]),
            ):
                feature = self._enhance(learner, anchor, features, chosen[name])
                outputs = learner.outputs(feature, batch.labels, random)
                learner.loss(outputs, batch.labels).backward()  # type: ignore[no-untyped-call]
            adam.step()
        self._learn(False)
        if normaliser is not None and people is not None:
            normaliser.within.copy_(people.to_share())
        trained = {OPEN_SET + name: one.detach().numpy() for name, one in self._shared.items()}
        delta = self.layout.flatten(trained) - shared
        metrics = self._metrics(chosen) | {"update.max_abs": float(np.abs(delta).max())}
        return SiteUpdate(delta, float(len(self._images.labels)), metrics=metrics)

    def state(self) -> Tensors:
        tensors = {
            _INTERACTING: np.array(self._interacting, dtype=np.uint8),
            _FROZEN: np.array(self._frozen, dtype=np.uint8),
        }
        tensors |= export_tensors(self._closed.model, _CLOSED)
        tensors |= export_tensors(self._closed.head, _CLOSED_HEAD)
        tensors |= export_tensors(self._open.head, _OPEN_HEAD)
        tensors |= {
            _OPEN_PRIVATE + n: one.detach().numpy().copy() for n, one in self._private.items()
        }
        for site, expert in self._received.items():
            tensors |= export_tensors(expert, f"{_RECEIVED}{site}.{_EXPERT}")
        return tensors

    def load_state(self, tensors: Tensors) -> None:
        known = [_ROUNDS, _CLOSED, _CLOSED_HEAD, _OPEN_HEAD, _OPEN_PRIVATE, _RECEIVED]
        check_names(tensors, known)
        progress = {name for name in tensors if name.startswith(_ROUNDS)}
        if progress != {_INTERACTING, _FROZEN}:
            raise LayoutMismatchError(f"{_ROUNDS}* are {_INTERACTING} and {_FROZEN}")
        interacting, frozen = _flag(tensors, _INTERACTING), _flag(tensors, _FROZEN)
        import_tensors(self._closed.model, _CLOSED, tensors)
        import_tensors(self._closed.head, _CLOSED_HEAD, tensors)
        import_tensors(self._open.head, _OPEN_HEAD, tensors)
        import_into(self._private, _OPEN_PRIVATE, tensors)
        self._received = {}
        names = [name.removeprefix(_RECEIVED) for name in tensors if name.startswith(_RECEIVED)]
        for site in {name.partition(".")[0] for name in names}:
            self._received[site] = self._expert_from(tensors, f"{_RECEIVED}{site}.{_EXPERT}")
        self._set_progress(interacting=interacting, frozen=frozen)

    def expert(self) -> Tensors:
        """Empty where experts are normalised by site (``expert_norm``)."""
        if not self.expert_layout.tensors:
            return {}
        return export_tensors(self._closed.model.expert, CLOSED_SET_EXPERT)

    def receive_expert(self, site: str, tensors: Tensors) -> None:
        """Raises LayoutMismatchError (names, shapes, dtype), NonFiniteUpdateError."""
        self.expert_layout.flatten(tensors)
        if site in (self._site, GLOBAL):
            raise LayoutMismatchError(f"{site!r} is not another site")
        self._received[site] = self._expert_from(tensors, CLOSED_SET_EXPERT)

    def closed_templates(
        self, images: npt.NDArray[np.float32], shared: FloatVector
    ) -> npt.NDArray[np.float32]:
        """(N, D), or (N, 2 D) with ``closed_set_fusion``.

        Fused templates are [z_c | z_g] / sqrt(2): their cosine is the mean of the two cosines.
        """
        own = (self._closed, self._site)
        if not self._training.closed_set_fusion:
            return self._templates(images, shared, [own])
        fused = self._templates(images, shared, [own, (self._open, GLOBAL)])
        return (fused * 2**-0.5).astype(np.float32)

    def open_templates(
        self, images: npt.NDArray[np.float32], shared: FloatVector
    ) -> npt.NDArray[np.float32]:
        templates = self._templates(images, shared, [(self._open, GLOBAL)])
        training = self._training
        if training.template_normaliser == "none":
            return templates
        seed = derive_seed(self.seed, self._site, 0, "normaliser")
        people = OwnPeople.of_views(self._images, training.backbone, seed, self._open_embed)
        averaged = self._open.model.normaliser
        return people.normaliser(averaged.within if averaged else None)(templates)

    def _templates(
        self,
        images: npt.NDArray[np.float32],
        shared: FloatVector,
        views: list[tuple[Learner, str]],
    ) -> npt.NDArray[np.float32]:
        """(N, k D): the unit templates of k (model, anchor) pairs side by side, on one set F."""
        torch.set_num_threads(self._training.threads)
        self._load(shared)
        parts: list[npt.NDArray[np.float32]] = []
        with torch.no_grad():
            for inputs in prepared_batches(self._training.backbone, images):
                features = self._features(inputs)
                templates = [unit(self._embed(*view, features)) for view in views]
                parts.append(np.concatenate(templates, axis=1))
        return stack(parts, self._open.model.template_length * len(views))

    def _open_embed(self, inputs: Tensor) -> Tensor:
        """Prepared images -> (B, D) embeddings of the shared model."""
        return self._embed(self._open, GLOBAL, self._features(inputs))

    def _embed(self, learner: Learner, anchor: str, features: Features) -> Tensor:
        """Of one (model, anchor) pair: (B, D) embeddings, not normalised."""
        return learner.model.embed(self._enhance(learner, anchor, features, Counter()))

    def _load(self, shared: FloatVector) -> None:
        import_into(self._shared, OPEN_SET, self.layout.unflatten(shared))

    def _learn(self, learning: bool) -> None:
        """Normalise by batches or by running statistics; what is frozen keeps its statistics."""
        self._open.model.train(learning)
        self._closed.model.train(learning and not self._frozen)

    def _pull_closed(self) -> None:
        """Move what learns of the closed-set model towards the global one (ours; 0 is the paper)."""
        towards = self._training.closed_set_pull
        if towards == 0:
            return
        theirs = dict(self._open.model.named_parameters())
        with torch.no_grad():
            for name, parameter in self._closed.model.named_parameters():
                if parameter.requires_grad:
                    parameter.lerp_(theirs[name], towards)

    def _set_progress(self, *, interacting: bool, frozen: bool) -> None:
        """Line 20: from R/3 on TEIM is on, and the closed-set expert frozen."""
        self._interacting, self._frozen = interacting, frozen
        self._closed.model.expert.learn(not frozen)

    @property
    def _own(self) -> Expert:
        return self._closed.model.expert

    def _features(self, inputs: Tensor) -> Features:
        """Eq 1: the features F of all experts at this site, the frozen ones without a graph.

        Sorted by site, the global one last: every site sums in the same order.
        """
        experts = {self._site: self._own} | (self._received if self._interacting else {})
        features = {site: experts[site](inputs) for site in sorted(experts)}
        return features | {GLOBAL: self._open.model.expert(inputs)}

    def _unchanging(self, views: RoundViews) -> Features:
        """Features of all views by the experts that do not learn in this round, sorted by site."""
        experts = dict(self._received) if self._interacting else {}
        if self._frozen:
            experts[self._site] = self._own
        with torch.no_grad():
            return {
                site: torch.cat([experts[site](chunk) for chunk in views.all()])
                for site in sorted(experts)
            }

    def _batch_features(self, batch: Batch, unchanging: Features) -> Features:
        """As :meth:`_features`, with what was computed for the round."""
        features = {site: every[batch.views] for site, every in unchanging.items()}
        if self._site not in features:
            features[self._site] = self._own(batch.inputs)
        ordered = {site: features[site] for site in sorted(features)}
        return ordered | {GLOBAL: self._open.model.expert(batch.inputs)}

    def _expert_from(self, tensors: Tensors, prefix: str) -> Expert:
        expert = build_expert(self._training.backbone)
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

    def _metrics(self, chosen: dict[str, Counter[str]]) -> dict[str, float]:
        metrics: dict[str, float] = {"teim.on": float(self._interacting)}
        for name, learner in (("open", self._open), ("closed", self._closed)):
            metrics |= learner.take_losses(name)
            if learner.model.teim is not None:
                metrics[f"teim.{name}.alpha"] = learner.model.teim.alpha.item()
                metrics[f"teim.{name}.beta"] = learner.model.teim.beta.item()
            total = chosen[name].total()
            for expert, count in chosen[name].items():
                metrics[f"routing.{name}.{expert}"] = count / total
        return metrics


def _flag(tensors: Tensors, name: str) -> bool:
    flag = tensors[name]
    if flag.dtype != np.uint8 or flag.shape != () or flag > 1:
        raise LayoutMismatchError(f"{name} is not a flag")
    return bool(flag)
