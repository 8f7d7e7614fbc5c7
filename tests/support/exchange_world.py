"""A coordinator's exchanges over a real store, and sites that can sign, seal, open, and cheat."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coordinator.claims import SealedClaim
from coordinator.conductor import Conductor
from coordinator.exchange import ExchangeDesk
from coordinator.exchange_records import ExchangeRecords
from coordinator.exchange_relay import ExpertRelay, KeyClaim
from coordinator.notary import Notary
from coordinator.run_records import RunRecords
from coordinator.spool import Spool
from coordinator.store import Store
from fedpalm.clock import FakeClock
from fedpalm.exchange.consent import Consent, Coverage, Sanction, commit, new_salt
from fedpalm.exchange.machine import ExchangeMachine
from fedpalm.exchange.receipt import ExpertReceipt
from fedpalm.exchange.sealing import SealedExpert, expert_hash, open_expert, seal_expert
from fedpalm.exchange.terms import ExchangeTerms
from fedpalm.layout import FloatVector, Layout, TensorSpec
from fedpalm.pki.hybrid import HybridKey
from fedpalm.pki.identity import COORDINATOR_NAME, Role
from fedpalm.pki.statement import SignedStatement
from fedpalm.plan import Plan
from fedpalm.rounds.events import (
    Aggregate,
    Aggregated,
    CohortPersisted,
    RoundRef,
    SiteJoined,
    TimerKind,
    UpdateAccepted,
)
from fedpalm.rounds.run import InRound, Run, RunInput, RunState, RunTerms, Start, advance
from fedpalm.wire.statements import from_wire
from fedpalm.wire.v1 import federation_pb2 as pb
from tests.simulation.federation import rehearsal_plan
from tests.support.agreement import Unchanging
from tests.support.pki import TestAuthority

SITES = ("amber", "birch", "cedar")
RUN = "trained"
EXPERT = Layout((TensorSpec("closed_set.expert.weight", (50,)),))
PURPOSE = "identification at all sites"
DAY_MS = 24 * 60 * 60 * 1000


class Elsewhere:
    """Nothing of a run happens here."""

    def instruct(self, site: str, instruction: pb.Instruction) -> None: ...
    def set_timer(self, run_id: str, ref: RoundRef, kind: TimerKind, at_ms: int) -> None: ...
    def aggregate(self, run_id: str, effect: Aggregate) -> None: ...
    def try_again(self, action: Callable[[], None]) -> None: ...
    def require_room(self, needed_bytes: int, what: str) -> None: ...
    def round_closed(self, run_id: str, ref: RoundRef) -> None: ...
    def changed(self, run_id: str) -> None: ...


def exchange_plan(rounds: int = 1, **draft: Any) -> Plan:
    """A plan of three sites that releases experts, with these settings of its draft changed."""
    values = rehearsal_plan(sites=3, rounds=rounds).model_dump()
    values["draft"] |= {"method": "fedpalm", "expert_exchange": "deployment", **draft}
    return Plan.model_validate(
        {**values, "roster": SITES, "expert_layout": tuple(EXPERT.to_json())}
    )


class ExchangeWorld:
    """A run as it is stored, a desk and a relay, and what sites hold; ``told`` is what they heard."""

    def __init__(
        self,
        root: Path,
        state: RunState = RunState.COMPLETED,
        *,
        expelled: frozenset[str] = frozenset(),
        plan: Plan | None = None,
        run: Run | None = None,
    ) -> None:
        root.mkdir(exist_ok=True)
        self.root, self.plan, self.clock = root, plan or exchange_plan(), FakeClock(time.time())
        self.authority = TestAuthority("simulated")
        self.identities = {site: self.authority.enrol(Role.PARTICIPANT, site) for site in SITES}
        hub = self.authority.enrol(Role.COORDINATOR, COORDINATOR_NAME)
        self.notary = Notary(Unchanging(hub), self.clock, self.signing_key)
        self.absent = frozenset[str]()
        self.keys = {site: HybridKey.generate() for site in SITES}
        self.salts = {site: new_salt() for site in SITES}
        self.experts: dict[str, FloatVector] = {
            site: np.full(50, number, dtype=np.float32) for number, site in enumerate(SITES, 1)
        }
        self.sealings: dict[tuple[str, str], tuple[SealedExpert, dict[str, bytes]]] = {}
        self.told: list[tuple[str, str]] = []
        self.heard: list[tuple[str, pb.Instruction]] = []
        store = Store.open(root / "store.sqlite3")
        over = Run(RunTerms.of(self.plan), self.plan.initial_model, state=state, expelled=expelled)
        self.add_run(store, RUN, run or over)
        store.close()
        self.boot()

    def add_run(self, store: Store, run_id: str, run: Run | None = None) -> None:
        """A run of the plan; completed, if nothing else is said."""
        records = RunRecords(store)
        records.create(run_id, self.plan, self.notary.offer(run_id, self.plan), 1)
        over = Run(RunTerms.of(self.plan), self.plan.initial_model, state=RunState.COMPLETED)
        records.save(run_id, run or over, (), 2)

    def signing_key(self, site: str) -> bytes:
        return self.identities[site].signing_key.public_key().public_bytes_raw()

    def boot(self) -> None:
        self.store = Store.open(self.root / "store.sqlite3")
        self.spool = Spool(self.root / "models", self.root / "spool")
        self.runs = RunRecords(self.store)
        self.conductor = Conductor(self.runs, Elsewhere(), self.clock, self.notary)
        self.records = ExchangeRecords(self.store)
        self.desk = ExchangeDesk(
            self.records,
            self.conductor,
            self.spool,
            self.clock,
            self.notary,
            tell=self.tell,
            changed=lambda _: None,
            absent=lambda: self.absent,
            certified_until=lambda: {
                site: round(one.leaf.not_valid_after_utc.timestamp() * 1000)
                for site, one in self.identities.items()
            },
        )
        self.relay = ExpertRelay(
            self.desk,
            self.records,
            self.conductor,
            self.spool,
            self.clock,
            self.notary,
            self.runs,
        )
        self.desk.restart()

    def tell(self, site: str, instruction: pb.Instruction) -> None:
        self.told.append((site, str(instruction.WhichOneof("kind"))))
        self.heard.append((site, instruction))

    def kill(self) -> None:
        """The process is gone, and another one takes up what it stored."""
        self.store.close()
        self.told.clear()
        self.boot()

    # --- what is seen -----------------------------------------------------------------------------

    @property
    def machine(self) -> ExchangeMachine:
        machine = self.desk.of_run(RUN)
        assert machine is not None
        return machine

    @property
    def state(self) -> str:
        return self.machine.state.value

    @property
    def exchange_id(self) -> str:
        return self.machine.terms.exchange_id

    @property
    def sanction(self) -> Sanction:
        return self.desk.sanction(self.machine)

    def heard_terms(self) -> list[ExchangeTerms]:
        """Every proposal that was told, as a site verifies it."""
        return [
            ExchangeTerms.open(
                from_wire(one.exchange_proposed.terms), self.notary.anchors, now=self.clock.now()
            )
            for _, one in self.heard
            if one.WhichOneof("kind") == "exchange_proposed"
        ]

    def files(self) -> list[str]:
        return sorted(path.name for path in (self.spool.root / "exchange").glob("*/*"))

    def rows(self, table: str) -> int:
        return int(self.store.query(f"SELECT count(*) FROM {table}")[0][0])

    # --- what operators and sites do --------------------------------------------------------------

    def propose(self, run_id: str = RUN, valid_ms: int = 7 * DAY_MS) -> None:
        self.desk.propose(run_id, "olga", PURPOSE, valid_ms)

    def consent_of(self, site: str, **changes: Any) -> Consent:
        terms = self.machine.terms
        expert = expert_hash(EXPERT, self.experts[site])
        fields = {
            "federation": terms.federation,
            "terms": terms,
            "site": site,
            "recipient_key": self.keys[site].public_bytes.hex(),
            "commitment": commit(terms.plan_hash, site, self.salts[site], expert),
            "log_size": 7,
            "log_root": "0" * 64,
            "privacy": Coverage(),
            **changes,
        }
        return Consent(**fields)

    def signed_consent(self, site: str, **changes: Any) -> SignedStatement:
        return self.consent_of(site, **changes).sign(self.identities[site])

    def consent(self, *sites: str) -> None:
        for site in sites or SITES:
            self.desk.consent(RUN, self.exchange_id, site, self.signed_consent(site))

    def refuse(self, site: str, reason: str = "not today") -> None:
        self.desk.refuse(RUN, self.exchange_id, site, reason)

    def sealing(self, site: str) -> tuple[SealedExpert, dict[str, bytes]]:
        """What a site seals; once an exchange."""
        place = (self.exchange_id, site)
        if place not in self.sealings:
            self.sealings[place] = seal_expert(
                self.experts[site],
                EXPERT,
                self.sanction,
                sender=site,
                salt=self.salts[site],
                signing_key=self.identities[site].signing_key,
            )
        return self.sealings[place]

    def claim(self, site: str, data: bytes) -> SealedClaim:
        digest = hashlib.sha256(data).hexdigest()
        return SealedClaim(RUN, self.exchange_id, site, digest, len(data))

    def send(self, site: str, data: bytes | None = None) -> SignedStatement:
        """Upload a sealed expert, the site's own if nothing else is said; returns the receipt."""
        data = self.sealing(site)[0].to_bytes() if data is None else data
        claim = self.claim(site, data)
        if self.relay.check_sealed(claim) is None:
            self.relay.sealed_path(claim).write_bytes(data)
        return self.relay.accept_sealed(claim)

    def keys_of(self, site: str) -> list[KeyClaim]:
        return [KeyClaim(site, to, wrapped) for to, wrapped in self.sealing(site)[1].items()]

    def reveal(self, site: str, keys: Sequence[KeyClaim] | None = None) -> None:
        keys = self.keys_of(site) if keys is None else keys
        self.relay.take_keys(RUN, self.exchange_id, site, keys)

    def fetched(self, site: str) -> dict[str, SealedExpert]:
        """What a site downloads: every other signer's sealed expert."""
        found = {}
        for sender in self.sanction.others(site):
            path, size = self.relay.deliverable(RUN, self.exchange_id, sender, site)
            data = path.read_bytes()
            assert len(data) == size
            found[sender] = SealedExpert.from_bytes(data)
        return found

    def opened(self, site: str) -> dict[str, FloatVector]:
        """What a site opens with the keys that it is given."""
        keys = {one.sender: one for one in self.relay.keys(RUN, self.exchange_id, site)}
        assert {one.recipient for one in keys.values()} == {site}
        return {
            sender: open_expert(
                sealed,
                keys[sender].wrapped,
                EXPERT,
                self.sanction,
                sender=sender,
                recipient=site,
                key=self.keys[site],
                now=self.clock.now(),
            )
            for sender, sealed in self.fetched(site).items()
        }

    def receipt_of(self, site: str, **changes: Any) -> ExpertReceipt:
        terms, others = self.machine.terms, self.sanction.others(site)
        fields = {
            "federation": terms.federation,
            "site": site,
            "run": RUN,
            "exchange_id": terms.exchange_id,
            "sanction": self.sanction.hash.hex(),
            "experts": {one: expert_hash(EXPERT, self.experts[one]) for one in others},
            **changes,
        }
        return ExpertReceipt(**fields)

    def confirm(self, site: str, receipt: SignedStatement | None = None) -> None:
        receipt = receipt or self.receipt_of(site).sign(self.identities[site])
        self.relay.confirm(RUN, self.exchange_id, site, receipt)

    def play(self, until: str = "completed", sites: Sequence[str] = SITES) -> None:
        """Everybody does what is asked until the exchange is in this state; proposes it, if need be."""
        newest = self.desk.of_run(RUN)
        if newest is None or newest.ended:
            self.propose()
        for state, step in (
            ("proposed", self.consent),
            ("sealing", self.send),
            ("revealing", self.reveal),
            ("delivering", self.confirm),
        ):
            if until == state:
                break
            if self.state == state:
                for site in sites:
                    step(site)
        assert self.state == until


def altered(data: bytes, at: int = -100) -> bytes:
    """The same bytes but for one bit."""
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


def after_round_1(plan: Plan) -> Run:
    """A run of this plan that has just committed its first round."""
    ref = RoundRef(1, 1)
    inputs: list[RunInput] = [
        Start(0),
        *(SiteJoined(site) for site in SITES),
        InRound(ref, CohortPersisted(1), 1),
        *(InRound(ref, UpdateAccepted(site, "ab"), 1) for site in SITES),
        InRound(ref, Aggregated(plan.initial_model), 1),
    ]
    run = Run(RunTerms.of(plan), plan.initial_model)
    for one in inputs:
        run, _ = advance(run, one)
    return run
