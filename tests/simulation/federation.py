"""A whole federation in memory: the real conductor, store, spool and sum; sites and time are made up.

A site is reduced to what the coordinator sees of it: it approves and joins, it delivers the integers of its
rehearsal delta, it drops out, repeats itself, or comes back. The coordinator can be killed at any
moment: everything but the store and the spool is thrown away. Nothing here sleeps.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from coordinator.aggregate import aggregate, change
from coordinator.claims import UpdateClaim
from coordinator.conductor import Conductor
from coordinator.notary import Notary
from coordinator.run_records import RunRecords
from coordinator.spool import Spool
from coordinator.store import Store
from fedpalm.clock import FakeClock
from fedpalm.errors import FedPalmError, ResourceError
from fedpalm.layout import FloatVector, Layout, TensorSpec
from fedpalm.methods.base import RoundContext
from fedpalm.methods.contribution import codec_for, rounding_key
from fedpalm.methods.rehearsal import RehearsalMethod, rehearsal_vector
from fedpalm.methods.rules import server_rule
from fedpalm.pki.bundle import TlsIdentity
from fedpalm.pki.identity import COORDINATOR_NAME, Role
from fedpalm.pki.statement import SignedStatement
from fedpalm.plan import Plan
from fedpalm.rounds.events import Aggregate, RoundRef, TimerKind
from fedpalm.rounds.machine import RoundState
from fedpalm.rounds.run import Start
from fedpalm.wire.v1 import federation_pb2 as pb
from tests.support.agreement import Unchanging, answer
from tests.support.pki import TestAuthority

RUN = "simulated"
BEGIN = time.time()
"""When the clock of every simulation begins: the certificates are valid then."""
AUTHORITY = TestAuthority("simulated")


@cache
def identity(name: str = COORDINATOR_NAME) -> TlsIdentity:
    """The coordinator's identity, or a site's."""
    role = Role.COORDINATOR if name == COORDINATOR_NAME else Role.PARTICIPANT
    return AUTHORITY.enrol(role, name, now=BEGIN)


def signing_key(site: str) -> bytes:
    """What a registry would say of a site that is a member."""
    return identity(site).signing_key.public_key().public_bytes_raw()


def rehearsal_plan(
    sites: int, rounds: int, *, quorum: int = 2, parameters: int = 97, **draft: Any
) -> Plan:
    """A reproducible rehearsal of small vectors, with these settings of its draft changed."""
    layout = Layout((TensorSpec("open_set.rehearsal.vector", (parameters,)),))
    if "backbones" in draft:
        trunks = sorted({f"trunk.{name}" for name in draft["backbones"].values()})
        names = (*trunks, "projection", "task")
        layout = Layout(
            tuple(TensorSpec(f"open_set.{name}.vector", (parameters,)) for name in names)
        )
    initial = rehearsal_vector(layout, seed=11)
    return Plan.model_validate(
        {
            "federation": "simulated",
            "draft": {
                "name": "simulated",
                "method": "rehearsal",
                "rounds": rounds,
                "seed": 11,
                "reproducible": True,
                "quorum": quorum,
                "max_attempts": 3,
                "join_deadline_s": 60,
                "round_deadline_s": 600,
                **draft,
            },
            "roster": [f"site-{number:03}" for number in range(sites)],
            "layout": layout.to_json(),
            "initial_model": hashlib.sha256(initial.astype("<f4").tobytes()).hexdigest(),
        }
    )


def encoded_update(plan: Plan, site: str, number: int, shared: FloatVector) -> bytes:
    """The payload that a site makes in a round; the same every time."""
    update = RehearsalMethod(plan, site).train_round(
        RoundContext(number, plan.draft.rounds), shared
    )
    encoded = codec_for(plan).encode(
        update.delta, update.weight, update.stats, rounding_key(plan, site, number), site
    )
    return encoded.astype("<u4").tobytes()


def oracle_step(
    plan: Plan, number: int, shared: FloatVector, survivors: tuple[str, ...]
) -> FloatVector:
    """One round by plain signed 64-bit sums: no modulus, no blocks, no files."""
    codec = codec_for(plan)
    total = np.zeros(codec.length, dtype=np.int64)
    for site in survivors:
        total += np.frombuffer(encoded_update(plan, site, number, shared), dtype="<i4")
    stepped = shared.copy()
    for at, group in enumerate(plan.parameter_groups):
        deltas = total[group.span] / codec.scale_of(group)
        weight = total[codec.parameters + at] / codec.stat_scale
        if weight:
            stepped[group.span] = (shared[group.span] + deltas / weight).astype(np.float32)
    return stepped


@dataclass(frozen=True)
class Killed(Exception):
    """The coordinator died here."""


class SimulatedFederation:
    """A coordinator below ``root`` and its sites.

    Args:
        order: decides in which order simultaneous deliveries and events happen.
    """

    def __init__(self, root: Path, plan: Plan, order: random.Random | None = None) -> None:
        self.root, self.plan, self.clock = root, plan, FakeClock(BEGIN)
        self.order = order or random.Random(0)
        self.inbox: dict[str, deque[pb.Instruction]] = {}
        self.free_bytes = 1 << 40
        self.given: dict[str, tuple[str, int]] = {}
        self.revoked: set[str] = set()
        self.kill_before_sum = self.kill_after_sum = False
        (root / "models").mkdir(parents=True)
        (root / "spool").mkdir()
        self.boot()
        initial = rehearsal_vector(plan.model_layout, plan.draft.seed).astype("<f4")
        self.spool.model(plan.initial_model).write_bytes(initial.tobytes())
        self.conductor.create(RUN, plan)

    # --- the coordinator's life -------------------------------------------------------------------

    def boot(self) -> None:
        """Start the coordinator from what is on disk."""
        self.store = Store.open(self.root / "store.sqlite3")
        self.records = RunRecords(self.store)
        self.spool = Spool(self.root / "models", self.root / "spool")
        self.timer: tuple[RoundRef, TimerKind, int] | None = None
        self.sums: deque[Aggregate] = deque()
        self.postponed: deque[Callable[[], None]] = deque()
        self.inbox.clear()
        notary = Notary(Unchanging(identity()), self.clock, signing_key)
        self.conductor = Conductor(self.records, self, self.clock, notary)
        self.conductor.restart()
        for site in self.revoked:
            self.conductor.expel(site, "revoked")

    def kill(self) -> None:
        """kill -9: memory, timers, threads and connections are gone."""
        self.store.close()
        self.boot()

    def start(self) -> None:
        self.conductor.feed(RUN, Start(round(self.clock.now() * 1000)))

    @property
    def run(self):  # type: ignore[no-untyped-def]
        return self.conductor.run(RUN)

    def model(self, model_hash: str | None = None) -> FloatVector:
        path = self.spool.model(model_hash or self.run.model_hash)
        return np.fromfile(path, dtype="<f4")

    # --- Outside ----------------------------------------------------------------------------------

    def instruct(self, site: str, instruction: pb.Instruction) -> None:
        if site in self.inbox:
            self.inbox[site].append(instruction)

    def set_timer(self, run_id: str, ref: RoundRef, kind: TimerKind, at_ms: int) -> None:
        self.timer = (ref, kind, at_ms)

    def aggregate(self, run_id: str, effect: Aggregate) -> None:
        self.sums.append(effect)

    def try_again(self, action: Callable[[], None]) -> None:
        self.postponed.append(action)

    def require_room(self, needed_bytes: int, what: str) -> None:
        if needed_bytes > self.free_bytes:
            raise ResourceError(f"{what} needs {needed_bytes} bytes, {self.free_bytes} are free")

    def round_closed(self, run_id: str, ref: RoundRef) -> None:
        self.spool.discard(run_id, ref)

    def changed(self, run_id: str) -> None:
        """Nobody watches."""

    # --- what happens -----------------------------------------------------------------------------

    def connect(self, *sites: str) -> None:
        """The sites dial in, unless they are revoked, and accept the run that they are offered."""
        for site in sites or self.plan.roster:
            if site in self.revoked:
                continue
            self.inbox[site] = deque()
            self.conductor.site_connected(site)
            if any(one.WhichOneof("kind") == "run_offer" for one in self.inbox[site]):
                self.accept_offer(site)

    def accept_offer(self, site: str) -> None:
        """Send the newest answer, the first of which is yes; join if it is yes."""
        kind, number = self.given.setdefault(site, ("approve", 1))
        signed = answer(identity(site), RUN, self.plan, kind, number)
        self.conductor.answer_plan(RUN, site, signed)
        if kind == "approve":
            self.join(site)

    def decide(self, site: str, kind: str) -> None:
        """The site changes its mind, and says so at the next offer if it is not connected."""
        self.given[site] = (kind, self.given.get(site, ("", 0))[1] + 1)
        if site in self.inbox:
            self.accept_offer(site)

    def revoke(self, site: str) -> None:
        self.revoked.add(site)
        self.disconnect(site)
        self.conductor.expel(site, "revoked")

    def readmit(self, site: str) -> None:
        self.revoked.discard(site)
        self.connect(site)

    def join(self, site: str) -> None:
        self.conductor.join(RUN, site, self.plan.hash, self.plan.model_layout.hash)

    def disconnect(self, *sites: str) -> None:
        for site in sites:
            if self.inbox.pop(site, None) is not None:
                self.conductor.site_disconnected(site)

    def asked(self) -> list[str]:
        """Sites whose newest order is to train, in the order of the federation's chance."""
        waiting = [
            site
            for site, inbox in self.inbox.items()
            if any(one.WhichOneof("kind") == "train" for one in inbox)
        ]
        self.order.shuffle(waiting)
        return waiting

    def claim(self, site: str, payload: bytes, ref: RoundRef | None = None) -> UpdateClaim:
        current = self.run.current
        return UpdateClaim(
            run_id=RUN,
            ref=ref or current.ref,
            site=site,
            plan_hash=self.plan.hash.hex(),
            model_hash=current.model_hash,
            payload_hash=hashlib.sha256(payload).hexdigest(),
            payload_bytes=len(payload),
        )

    def payload(self, site: str) -> bytes:
        current = self.run.current
        return encoded_update(self.plan, site, current.ref.round, self.model(current.model_hash))

    def deliver(self, site: str, payload: bytes | None = None) -> SignedStatement:
        """Check, spool and accept an update, as the service does."""
        payload = self.payload(site) if payload is None else payload
        claim = self.claim(site, payload)
        known = self.conductor.updates.check(claim)
        if known is not None:
            return known
        self.spool.update(RUN, claim.ref, site, claim.payload_hash).write_bytes(payload)
        return self.conductor.updates.accept(claim)

    def deliver_all(self) -> None:
        for site in self.asked():
            self.inbox[site].clear()
            self.deliver(site)

    def sum_up(self) -> None:
        """Form the sum that was asked for, unless its attempt was aborted since."""
        effect = self.sums.popleft()
        current = self.run.current
        if current.ref != effect.ref or current.state is not RoundState.AGGREGATING:
            return
        if self.kill_before_sum:
            self.kill_before_sum = False
            raise Killed
        if effect.lost:
            self.make_changed_model(effect)
            return
        receipts = self.records.updates(RUN, effect.ref)
        survivors = list(effect.survivors)
        self.order.shuffle(survivors)
        paths = {
            site: self.spool.update(RUN, effect.ref, site, receipts[site].payload_hash)
            for site in survivors
        }
        masked = self.conductor.masking.collection(RUN, effect.ref)
        try:
            model_hash = aggregate(
                codec_for(self.plan),
                server_rule(self.plan.draft.method),
                self.spool.model(effect.model_hash),
                paths,
                self.spool.model,
                masked.corrections() if masked is not None else ((), ()),
            )
        except FedPalmError as error:
            self.conductor.aggregation_failed(RUN, effect, error)
            return
        if self.kill_after_sum:
            self.kill_after_sum = False
            raise Killed
        self.conductor.aggregated(RUN, effect, model_hash)

    def make_changed_model(self, effect: Aggregate) -> None:
        manifest_hash = self.conductor.manifest_hash(RUN)
        model = self.spool.model(effect.model_hash)
        spent = self.records.masking.spent_models()
        model_hash = change(codec_for(self.plan), model, manifest_hash, self.spool.model, spent)
        if self.kill_after_sum:
            self.kill_after_sum = False
            raise Killed
        self.conductor.aggregated(RUN, effect, model_hash)

    def deadline(self) -> None:
        """Let time pass until the timer that is set rings."""
        assert self.timer is not None
        (ref, kind, at_ms), self.timer = self.timer, None
        self.clock.advance(max(0.0, at_ms / 1000 - self.clock.now()))
        self.conductor.timer_rang(RUN, ref, kind)

    def play(self) -> None:
        """Let everybody do what is asked until nothing is left to do but wait for a timer."""
        while not self.run.over and (self.asked() or self.sums):
            self.deliver_all()
            while self.sums:
                self.sum_up()
