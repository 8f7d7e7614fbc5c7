"""FedMH: sites with backbones of their own, two tasks, and a receipt that only improves both.

Source: the abstract of "FedMH: Federated Learning with Multi-Task Head for Heterogeneous Models in Offline
Signature Verification" (OpenReview, 2025); what it leaves open is our reading, in docs/FEDMH.md.

A round at a site: go towards the shared groups that it has as far as both probe losses allow
(:mod:`.pareto`); fill small subsets with augmented copies; train both tasks, guided where they oppose each
other (:mod:`.guided`); give n_i (w_i - w) of its groups and zeros elsewhere. A site that keeps no
forgery aside cannot judge the detection head: it takes that as it comes. Without any to train on, it gives
zeros there.

Shared: the trunk, with the sites that have the same one, if the layout names it; projection and detection
head, with all. Stays at the site: the head of writers, and how far it went towards what it received. The
sites' weights and those of the groups are the codec's.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..data.adaptive_augmentation import Target, adaptive_augmentation
from ..data.signatures import SignatureImages
from ..errors import ConfigError
from ..fedmh_settings import FedMHSettings
from ..groups import groups_of
from ..layout import OPEN_SET, FloatVector, Layout
from ..models.signature import SignatureModel
from ..models.signature_spec import TEMPLATE_LENGTH, initial_model
from ..plan import Plan, TrainingSettings
from .base import RoundContext, SiteUpdate, Tensors
from .fedmh_settled import settled_tensors, templates
from .fedmh_template import backbones_shared_by, fedmh_template
from .guided import GuidedSteps
from .linear_probe import LinearProbe
from .pareto import ProbeLosses, Receipt, distance, receive
from .training import check_names, derive_seed, drawn_head, import_into, named_tensors
from .two_tasks import Signatures, held_out, outputs_of

HEAD, PRIVATE, _OWN = "head.user.", "private.", "own.model"
_DETECTION = "task"
"""The group of the detection head."""

Batches = Iterator[tuple[Tensor, Tensor]]
"""(n,) rows of what a round trains on, and (n, D) factors of dropout before the head of writers."""


class FedMHSite:
    """One site's half. Names of its state: ``head.user.*``; ``private.*``, the trunk if it is not shared;
    and ``own.model``, missing before its first round: what it has given, in one flat vector.

    Args:
        seed: of its rounds; the model, the head and what is kept aside follow the plan's.
    Raises:
        ConfigError: the plan has no backbone for the site.
        DataError: too few signatures to keep some aside.
    """

    def __init__(self, plan: Plan, site: str, images: SignatureImages, seed: int) -> None:
        draft = plan.draft
        if draft.fedmh is None or site not in draft.backbones:
            raise ConfigError(f"the plan names no backbone of {site}: [backbones] {site} = ...")
        self.site, self.seed, self.images = site, seed, images
        self.training: TrainingSettings = draft.training
        self.settings: FedMHSettings = draft.fedmh
        template = fedmh_template(backbones_shared_by(plan), draft.seed)
        self.layout, self.expert_layout = template.layout, template.expert_layout
        self._initial = template.initial
        backbone = draft.backbones[site]
        self.model = SignatureModel(backbone)
        self.head = drawn_head(
            images.classes,
            TEMPLATE_LENGTH,
            self.training,
            derive_seed(draft.seed, site, 0, "head"),
        )
        tensors = named_tensors(self.model)
        mine = [one for one in self.layout.tensors if one.name.removeprefix(OPEN_SET) in tensors]
        self._own_layout = Layout(tuple(mine))
        self._groups = {
            group.name: slice(group.begin, group.end)
            for group in groups_of(self._own_layout, {site: backbone})
        }
        self._places = {
            group.name: slice(group.begin, group.end)
            for group in plan.parameter_groups
            if site in group.members
        }
        self._shared = {
            one.name: tensors.pop(one.name.removeprefix(OPEN_SET))
            for one in self._own_layout.tensors
        }
        self._private = tensors
        values = initial_model([backbone], draft.seed)
        import_into(self._private, "", {name: values[name] for name in self._private})
        rows = held_out(
            images, self.settings.probe_share, derive_seed(draft.seed, site, 0, "probe")
        )
        self._fit = images.of(rows[0])
        self.judges_forgeries = not images.genuine[rows[1]].all()
        self._probe = LinearProbe(
            self.model, self.head, *(Signatures(images.of(one), self.model) for one in rows)
        )
        self._own: FloatVector | None = None
        self._last: tuple[bytes, Receipt] | None = None

    @property
    def judged_groups(self) -> frozenset[str]:
        """The groups that the search on receipt is over."""
        blind = () if self.judges_forgeries else (_DETECTION,)
        return frozenset(self._groups).difference(blind)

    def initial_vector(self) -> FloatVector:
        return self._initial.copy()

    def train_round(self, context: RoundContext, shared: FloatVector) -> SiteUpdate:
        torch.set_num_threads(self.training.threads)
        receipt = self.receipt(shared)
        self._judge(receipt.model)  # and with the model, the head that suits it
        metrics = self._receipt_metrics(receipt) | self._train(context)
        self._own, self._last = self._vector(), None
        delta = np.zeros_like(shared)
        for name, part in self._groups.items():
            delta[self._places[name]] = self._own[part] - shared[self._places[name]]
        metrics["update.max_abs"] = float(np.abs(delta).max(initial=0.0))
        return SiteUpdate(delta, float(len(self.images.writers)), metrics=metrics)

    def receipt(self, shared: FloatVector) -> Receipt:
        """Where this site goes from its own model when it receives the (P,) ``shared`` one."""
        key = shared.tobytes()
        if self._last is None or self._last[0] != key:
            self._last = key, self._receive(shared)
        return self._last[1]

    def closed_templates(
        self, images: npt.NDArray[np.float32], shared: FloatVector
    ) -> npt.NDArray[np.float32]:
        """(N, 256) L2-normalised templates, by the model that the site has after receiving ``shared``."""
        self._load_received(shared)
        return templates(self.model, images)

    def open_templates(
        self, images: npt.NDArray[np.float32], shared: FloatVector
    ) -> npt.NDArray[np.float32]:
        """The same: the common space names nobody."""
        return self.closed_templates(images, shared)

    def settled(self, shared: FloatVector) -> Tensors:
        """The whole model that the site has after receiving ``shared``, for :class:`.SettledModel`."""
        self._load_received(shared)
        return settled_tensors(self.model)

    def state(self) -> Tensors:
        named = {HEAD + name: one for name, one in named_tensors(self.head).items()}
        named |= {PRIVATE + name: one for name, one in self._private.items()}
        own = {} if self._own is None else {_OWN: self._own.copy()}
        return {name: one.detach().numpy().copy() for name, one in named.items()} | own

    def load_state(self, tensors: Tensors) -> None:
        check_names(tensors, (HEAD, PRIVATE, _OWN))
        own = tensors.get(_OWN)
        if own is not None:
            self._own_layout.unflatten(own)
        import_into(named_tensors(self.head), HEAD, tensors)
        import_into(self._private, PRIVATE, tensors)
        self._own, self._last = None if own is None else own.copy(), None

    def expert(self) -> Tensors:
        """No closed-set model, no expert."""
        return {}

    def receive_expert(self, site: str, tensors: Tensors) -> None:
        """Raises LayoutMismatchError: the method has no experts."""
        Layout(()).flatten(tensors)

    # --- receiving --------------------------------------------------------------------------------

    def _receive(self, shared: FloatVector) -> Receipt:
        self.layout.unflatten(shared)
        aggregate = np.concatenate([shared[self._places[name]] for name in self._groups])
        own = aggregate if self._own is None else self._own
        if self.settings.receipt != "pareto":
            replaced = self.settings.receipt == "replace"
            model, eta = (aggregate, 1.0) if replaced else (own, 0.0)
            etas = dict.fromkeys(self._groups, eta)
            distances = {n: distance(own[at], aggregate[at]) for n, at in self._groups.items()}
            return Receipt(model, etas, distances, self._judge(own), self._judge(model))
        begin, detection = own.copy(), self._groups[_DETECTION]
        if not self.judges_forgeries:
            begin[detection] = aggregate[detection]
        found = receive(
            begin, aggregate, self._groups, self._judge,
            tolerance=self.settings.probe_tolerance,
            detection_weight=self.settings.detection_weight,
        )  # fmt: skip
        if self.judges_forgeries:
            return found
        way = distance(own[detection], aggregate[detection])
        return found._replace(
            etas=found.etas | {_DETECTION: 1.0}, distances=found.distances | {_DETECTION: way}
        )

    def _receipt_metrics(self, receipt: Receipt) -> dict[str, float]:
        found = {
            "probe.user_before": receipt.before.user,
            "probe.user_after": receipt.after.user,
        }
        if self.judges_forgeries:
            found["probe.forged_before"] = receipt.before.forged
            found["probe.forged_after"] = receipt.after.forged
        found |= {f"eta.{name}": eta for name, eta in receipt.etas.items()}
        return found | {f"distance.{name}": one for name, one in receipt.distances.items()}

    def _judge(self, vector: FloatVector) -> ProbeLosses:
        """Both probe losses of an own (P_own,) model, which is loaded, and the head fitted to it."""
        if not np.isfinite(vector).all():
            return ProbeLosses(float("nan"), float("nan"))
        self._load(vector)
        return self._probe.losses()

    def _load(self, vector: FloatVector) -> None:
        import_into(self._shared, "", self._own_layout.unflatten(vector))

    def _vector(self) -> FloatVector:
        return self._own_layout.flatten(
            {n: one.detach().numpy() for n, one in self._shared.items()}
        )

    # --- training ---------------------------------------------------------------------------------

    def _train(self, context: RoundContext) -> dict[str, float]:
        views, batches = self._drawn(context)
        signatures = Signatures(views, self.model)
        steps = GuidedSteps(self.model, self.head, self.training.learning_rate, self.settings)
        for rows, keep in batches:
            steps.take(outputs_of(self.model, self.head, signatures, rows, keep).losses)
        return steps.metrics() | {
            "augmentation.copies": float(signatures.size - len(self._fit.writers))
        }

    def _drawn(self, context: RoundContext) -> tuple[SignatureImages, Batches]:
        """What a round trains on, and its batches; all that is random in a round is drawn here."""
        settings = self.settings
        rng = np.random.Generator(np.random.PCG64(self._seed(context, "batches")))
        views = adaptive_augmentation(
            self._fit, mode=settings.augmentation, strength_max=settings.augmentation_strength, rng=rng,
            target=Target(settings.augmentation_quantile, settings.augmentation_times),
        )  # fmt: skip
        return views, self._batches(context, rng, len(views.writers))

    def _batches(self, context: RoundContext, rng: np.random.Generator, size: int) -> Batches:
        training = self.training
        dropout = torch.Generator().manual_seed(self._seed(context, "dropout"))
        for _ in range(training.local_epochs):
            order = torch.from_numpy(rng.permutation(size))
            for rows in order.tensor_split(-(-size // training.batch_size)):
                keep = torch.empty(len(rows), TEMPLATE_LENGTH)
                keep.bernoulli_(1 - training.dropout, generator=dropout)
                keep /= 1 - training.dropout
                yield rows, keep

    def _seed(self, context: RoundContext, purpose: str) -> int:
        return derive_seed(self.seed, self.site, context.round, purpose)

    def _load_received(self, shared: FloatVector) -> None:
        torch.set_num_threads(self.training.threads)
        self._load(self.receipt(shared).model)
