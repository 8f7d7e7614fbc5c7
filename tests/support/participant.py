"""A site in memory: a toy method, its home, and crashes on demand."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedpalm.clock import SystemClock
from fedpalm.layout import Layout, TensorSpec
from fedpalm.methods.base import RoundContext, SiteImages, SiteUpdate, Tensors
from fedpalm.pki.authority import Authority, create_authority
from fedpalm.pki.bundle import (
    TLS_CHAIN,
    TlsIdentity,
    create_keys,
    install_certificates,
    read_certificates,
)
from fedpalm.pki.identity import Identity, Role
from fedpalm.pki.live import LiveIdentity
from fedpalm.pki.request import create_request, signing_key_of
from fedpalm.pki.statement import SignedStatement
from fedpalm.plan import CodecSettings, Plan, PlanDraft
from fedpalm.rounds.agreement import PlanOffer
from participant.agent import Agent, Keeper
from participant.config import Home, ParticipantConfig
from participant.desk import Desk
from participant.egress import EgressGate
from participant.ending import ExitAfter, Outcome
from participant.log import SiteLog
from participant.store import SiteStore
from participant.trainer import Trainer
from tests.support.pki import TestAuthority

if TYPE_CHECKING:
    from tests.support.fake_coordinator import FakeCoordinator

FEDERATION = "unit"
SITES = ("east", "north", "west")
LAYOUT = Layout(
    (
        TensorSpec("open_set.expert.weight", (16, 8)),
        TensorSpec("open_set.embedding.weight", (32, 128)),
        TensorSpec("open_set.teim.alpha", ()),
    )
)
EXPERT = Layout((TensorSpec("closed_set.expert.weight", (16, 8)),))


class Crash(BaseException):
    """Stands for kill -9: nothing of ours catches it."""


class ToyMethod:
    """Trains by adding seeded noise: deterministic in (seed, site, round, state), as real ones are."""

    layout, expert_layout = LAYOUT, EXPERT

    def __init__(self, plan: Plan, site: str, images: SiteImages | None = None) -> None:
        self._seed, self._site = plan.draft.seed, site
        rng = self._rng(0)
        self._state: Tensors = {
            "closed_set.expert.weight": rng.standard_normal((16, 8)).astype(np.float32),
            "closed_set.embedding.weight": rng.standard_normal((32, 128)).astype(np.float32),
            "head.open.prototypes": rng.standard_normal((5, 32)).astype(np.float32),
            "progress.flag": np.array(0, dtype=np.uint8),
        }
        self.trained: list[int] = []

    def _rng(self, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, purpose, *self._site.encode()])

    def initial_vector(self) -> np.ndarray:
        return initial_vector()

    def train_round(self, context: RoundContext, shared: np.ndarray) -> SiteUpdate:
        self.trained.append(context.round)
        rng = self._rng(context.round)
        # The update depends on the private state: training twice from another state would show.
        pull = float(self._state["closed_set.embedding.weight"].mean())
        delta = 0.01 * rng.standard_normal(LAYOUT.size) + 0.001 * pull
        for name, tensor in sorted(self._state.items()):
            if tensor.dtype == np.float32:
                self._state[name] = tensor + 0.1 * rng.standard_normal(tensor.shape).astype("f4")
        return SiteUpdate(delta.astype(np.float32), 3.0, metrics={"open.loss": 1.0})

    def state(self) -> Tensors:
        return {name: tensor.copy() for name, tensor in self._state.items()}

    def load_state(self, tensors: Tensors) -> None:
        self._state = {name: tensor.copy() for name, tensor in tensors.items()}

    def expert(self) -> Tensors:
        return {"closed_set.expert.weight": self._state["closed_set.expert.weight"].copy()}

    def receive_expert(self, site: str, tensors: Tensors) -> None:
        EXPERT.flatten(tensors)
        self._state[f"received.{site}.expert.weight"] = tensors["closed_set.expert.weight"].copy()


def initial_vector() -> np.ndarray:
    return np.linspace(-1, 1, LAYOUT.size, dtype=np.float32)


def make_plan(rounds: int = 3, sites: tuple[str, ...] = SITES, **changes: Any) -> Plan:
    """A FedPalm-shaped plan for the toy method: it needs no images."""
    draft = PlanDraft.model_construct(
        name="toy",
        method="fedpalm",
        rounds=rounds,
        seed=5,
        reproducible=True,
        quorum=2,
        join_deadline_s=60.0,
        round_deadline_s=60.0,
        max_attempts=3,
        expert_exchange="deployment",
        codec=CodecSettings(),
    )
    values: dict[str, Any] = {
        "federation": FEDERATION,
        "draft": PlanDraft.model_validate(draft.model_dump()),
        "roster": sites,
        "layout": tuple(LAYOUT.to_json()),
        "expert_layout": tuple(EXPERT.to_json()),
        "initial_model": hashlib.sha256(initial_vector().astype("<f4").tobytes()).hexdigest(),
    }
    return Plan(**{**values, **changes})


def make_private_plan(
    rounds: int = 3, privacy: dict[str, Any] | None = None, **changes: Any
) -> Plan:
    """The same with differential privacy: a round that costs little to train and to account for."""
    plan = make_plan(rounds)
    draft = plan.draft.model_dump()
    draft["reproducible"] = False
    draft["training"] |= {"contrast_weight": 0.0, "cross_entropy_weight": 1.0}
    draft["training"]["privacy"] = {
        "unit": "subject",
        "noise_multiplier": 4.0,
        "sampling_rate": 1.0,
        "steps": 2,
        **(privacy or {}),
    }
    return make_plan(rounds, draft=PlanDraft.model_validate(draft), **changes)


@dataclass
class World:
    """A CA, the coordinator that it vouches for, and the homes of its sites, below a folder.

    Args:
        policy: ``policy.toml`` of a new home.
    """

    root: Path
    authority: Authority = field(
        default_factory=lambda: create_authority(FEDERATION, time.time())[0]
    )
    policy: str = "auto_approve = true\n"
    _absent: dict[str, TlsIdentity] = field(default_factory=dict)

    @cached_property
    def coordinator(self) -> TlsIdentity:
        return TestAuthority.of(self.authority).enrol(Role.COORDINATOR, "coordinator")

    def absent(self, site: str) -> TlsIdentity:
        """A site that has no home here and signs what a test lets it sign."""
        if site not in self._absent:
            self._absent[site] = TestAuthority.of(self.authority).enrol(Role.PARTICIPANT, site)
        return self._absent[site]

    def signing_keys(self, sites: Iterable[str]) -> dict[str, str]:
        """The key of each site, of its home or absent, as a manifest has it."""
        return {site: self._signing_key(site).hex() for site in sites}

    def _signing_key(self, site: str) -> bytes:
        path = Home(self.root / site).tls / TLS_CHAIN
        leaf = read_certificates(path)[0] if path.exists() else self.absent(site).chain[0]
        return signing_key_of(leaf).public_bytes_raw()

    def offer(self, plan: Plan, run_id: str = "toy-1") -> SignedStatement:
        """The coordinator's signed offer of a plan."""
        offer = PlanOffer(
            federation=FEDERATION, run=run_id, plan_hash=plan.hash.hex(), offered_ms=1
        )
        return offer.sign(self.coordinator)

    def home(self, site: str) -> Home:
        home = Home(self.root / site)
        if not home.config.exists():
            home.make()
            home.save(
                ParticipantConfig(federation=FEDERATION, site=site, coordinator="127.0.0.1:1")
            )
            home.policy.write_text(self.policy)
            self.enrol(home.tls, Role.PARTICIPANT, site)
        return home

    def enrol(self, folder: Path, role: Role, name: str) -> TlsIdentity:
        identity, now = Identity(FEDERATION, role, name), time.time()
        request = create_request(identity, *create_keys(folder))
        leaf = self.authority.issue(request, identity, now=now, lifetime=timedelta(days=3))
        chain = (leaf, self.authority.issuing)
        return install_certificates(folder, chain, self.authority.anchors, now=now)

    def site(
        self, name: str, on_step: Callable[[str], None] = lambda step: None
    ) -> tuple[Site, Home]:
        home = self.home(name)
        return Site(home, on_step), home

    def agreed(self, site: Site, plan: Plan, run_id: str = "toy-1") -> None:
        """Have the site's person approve an offered plan, and the site take part in its run."""
        site.desk.plans.propose(run_id, plan, self.offer(plan, run_id))
        site.desk.plans.approve(run_id)
        site.store.add_run(run_id, plan)


class Site:
    """Everything of one site's process but the connection; open it again after a crash."""

    def __init__(self, home: Home, on_step: Callable[[str], None] = lambda step: None) -> None:
        self.home, self.config = home, home.load()
        self.live = LiveIdentity(home.tls, SystemClock())
        self.identity = self.live.current
        self.store = SiteStore(home, on_step=on_step)
        self.log = SiteLog(self.store, self.identity.signing_key)
        self.desk = Desk(self.store, self.log, self.live)
        self.gate = EgressGate(self.store, self.log, self.live, self.desk.policy)
        self.methods: list[ToyMethod] = []
        self.trainer = Trainer(self.config, self.store, self._build)
        self.trainer._images = lambda run_id, plan: SiteImages(  # type: ignore[method-assign]
            np.empty((0, 1, 128, 128), np.float32), np.empty(0, np.int64), 0
        )
        self.lines: list[str] = []
        self.renewal: Keeper = _Unchanged()

    def _build(self, plan: Plan, site: str, images: SiteImages) -> ToyMethod:
        self.methods.append(ToyMethod(plan, site, images))
        return self.methods[-1]

    def agent(self, coordinator: FakeCoordinator, exit_after: ExitAfter) -> Agent:
        return Agent(
            self.config,
            self.store,
            self.desk,
            self.gate,
            self.trainer,
            lambda: coordinator.connect(self),
            self,
            self.renewal,
            exit_after=exit_after,
            rng=random.Random(1),
            backoff_base_s=0.001,
            decision_poll_s=0.005,
        )

    async def run(
        self, coordinator: FakeCoordinator, exit_after: ExitAfter = ExitAfter.RUN
    ) -> Outcome:
        try:
            return await self.agent(coordinator, exit_after).run()
        finally:
            self.store.close()

    # Reporter
    def line(self, text: str) -> None:
        self.lines.append(text)

    def working(self, text: str) -> None:
        """Phases are not looked at."""

    def close(self) -> None:
        """Nothing is held."""


class _Unchanged:
    """A renewal that has nothing to do."""

    async def keep(self, link: object) -> None:
        await asyncio.Event().wait()
