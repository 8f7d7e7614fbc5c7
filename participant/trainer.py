"""Training at the site: data in, method built, a round trained, always from the state that is stored.

The only place of the process that reaches torch, and only once a plan needs it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from fedpalm.data.modality import modality_of
from fedpalm.data.signatures import SignatureImages
from fedpalm.data.trained_signatures import TrainedSignatures
from fedpalm.errors import LayoutMismatchError
from fedpalm.layout import FloatVector
from fedpalm.methods.base import RoundContext, SiteImages, SiteMethod, SiteUpdate, Tensors
from fedpalm.methods.site import build_site_method
from fedpalm.plan import Plan

from .backbone import require_agreement
from .budget import BudgetBook
from .config import ParticipantConfig
from .images import (
    require_data,
    split_signature_records,
    training_images,
    training_signatures,
)
from .store import SiteStore
from .trained_on import keep_trained_on, trained_on

Build = Callable[[Plan, str, SiteImages | SignatureImages], SiteMethod]


class Trainer:
    """One method object for one run at a time; its private state never runs ahead of the store's.

    Args:
        build: makes the method; the benchmark's own by default.
    """

    def __init__(
        self, config: ParticipantConfig, store: SiteStore, build: Build = build_site_method
    ) -> None:
        self._config, self._store, self._build = config, store, build
        self._run = ""
        self._method: SiteMethod | None = None
        self._fresh: Tensors = {}
        self._trains_on: TrainedSignatures | None = None
        self._state_round: int | None = None
        self.began_from = ""
        """The stored state that the last training began from (:meth:`SiteStore.state_file`)."""
        # A call that its caller no longer waits for still runs in its thread; the next one waits.
        self._busy = threading.RLock()

    def prepare(self, run_id: str, plan: Plan) -> SiteMethod:
        """Load the images and build the method, unless that is done.

        Raises:
            LayoutMismatchError: this site's model has another layout than the plan.
            PolicyError: the plan has another backbone for this site than its settings.
            DataError, ConfigError: the images cannot be used, or are not configured.
        """
        if self._method is not None and self._run == run_id:
            return self._method
        with self._busy:
            return self._prepare(run_id, plan)

    def _prepare(self, run_id: str, plan: Plan) -> SiteMethod:
        if self._method is not None and self._run == run_id:
            return self._method
        require_agreement(plan, self._config.site, self._config.backbone)
        method = self._build(plan, self._config.site, self._images(run_id, plan))
        for name, own, agreed in (
            ("model", method.layout, plan.model_layout),
            ("expert", method.expert_layout, plan.released_layout),
        ):
            if own.tensors != agreed.tensors and (name == "model" or agreed.tensors):
                raise LayoutMismatchError(
                    f"run {run_id}: this site's {name} has layout {own.hash.hex()[:12]}, the plan "
                    f"{agreed.hash.hex()[:12]}",
                    safe="this site has not joined and has sent nothing of its own",
                    next_step="use the software version that the plan was made with",
                )
        self._fresh = method.state()
        # A plan that continues another run starts from the state of that one, which is still to load.
        self._state_round = None if plan.continues is not None else 0
        self._run, self._method = run_id, method
        return method

    def train(
        self,
        run_id: str,
        plan: Plan,
        round_number: int,
        shared: FloatVector,
        budget: BudgetBook,
    ) -> tuple[SiteUpdate, Tensors]:
        """Train one round from the stored state; returns the update and the state after it.

        A plan that continues another run counts on from it: the method sees one run of all rounds.

        Until that state is committed, :meth:`committed` is not called and the next call starts from
        the stored one again: without differential privacy the same bytes in, the same bytes out.

        Raises:
            BudgetError: a round with differential privacy that the budget does not allow; nothing of
                it was drawn.
        """
        with self._busy:
            method = self.resume(run_id, plan)
            self.began_from = self._store.state_file(run_id)
            if plan.draft.privacy.unit != "none":
                budget.begin(run_id, plan, round_number)
            if self._trains_on is not None:
                keep_trained_on(self._store, run_id, self._trains_on)
            self._state_round = None
            done = plan.rounds_before
            context = RoundContext(done + round_number, done + plan.draft.rounds)
            update = method.train_round(context, shared)
            return update, method.state()

    def committed(self, round_number: int) -> None:
        """The state after this round is in the store: memory and disk agree."""
        self._state_round = round_number

    def resume(self, run_id: str, plan: Plan) -> SiteMethod:
        """The method with the state that the store has for the run, or for the one that it continues.

        Raises:
            IntegrityError: the stored state is damaged.
            DataError, ConfigError: as :meth:`prepare`.
        """
        with self._busy:
            method = self._prepare(run_id, plan)
            stored_round = self._store.state_round(run_id)
            if self._state_round != stored_round:
                stored = self._store.load_state(run_id) or self._store.load_continued_state(plan)
                method.load_state(self._fresh if stored is None else stored)
                self._state_round = stored_round
            return method

    def forget(self) -> None:
        """Memory may differ from the store: load it again before the next use."""
        self._state_round = None

    def _images(self, run_id: str, plan: Plan) -> SiteImages | SignatureImages:
        modality, self._trains_on = modality_of(plan.draft.method), None
        if modality is None:
            empty = np.empty((0, 1, 128, 128), dtype=np.float32)
            return SiteImages(empty, np.empty(0, dtype=np.int64), 0)
        data = require_data(self._config.data, plan)
        if modality == "signature":
            site, kept = self._config.site, trained_on(self._store, run_id, plan)
            split = split_signature_records(data, site, kept)
            self._trains_on = kept or TrainedSignatures.of(split.train)
            return training_signatures(data, site, self._trains_on)
        return training_images(data, self._config.site, plan.draft.privacy.unit)
