"""The exchange at the coordinator: only true consents, only sealed bytes, nothing twice, no way round."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from coordinator.claims import SealedClaim
from coordinator.conductor import Conductor
from coordinator.exchange import ExchangeDesk
from coordinator.exchange_records import ExchangeRecords
from coordinator.notary import Notary
from coordinator.run_records import RunRecords
from coordinator.spool import Spool
from coordinator.store import Store
from fedpalm.clock import SystemClock
from fedpalm.errors import (
    ConsentError,
    HashMismatchError,
    IdentityError,
    IllegalTransitionError,
    MessageTooLargeError,
    NotFoundError,
    NotOnRosterError,
    SealedExpertError,
    StateError,
)
from fedpalm.exchange.consent import Agreement, Consent, SignedConsent, sign_consent
from fedpalm.exchange.sealing import SealedExpert, open_expert, seal_expert
from fedpalm.layout import Layout, TensorSpec
from fedpalm.pki.hybrid import HybridKey
from fedpalm.pki.identity import COORDINATOR_NAME, Role
from fedpalm.plan import Plan
from fedpalm.rounds.events import Aggregate, RoundRef, TimerKind
from fedpalm.rounds.receipt import PayloadReceipt
from fedpalm.rounds.run import AbortRun, Run, RunState, RunTerms
from fedpalm.wire.v1 import federation_pb2 as pb
from tests.simulation.federation import rehearsal_plan
from tests.support.agreement import Unchanging
from tests.support.pki import TestAuthority

SITES = ("amber", "birch", "cedar")
RUN = "trained"
EXPERT = Layout((TensorSpec("closed_set.expert.weight", (50,)),))


class Elsewhere:
    """Nothing of a run happens here; it is over."""

    def instruct(self, site: str, instruction: pb.Instruction) -> None: ...
    def set_timer(self, run_id: str, ref: RoundRef, kind: TimerKind, at_ms: int) -> None: ...
    def aggregate(self, run_id: str, effect: Aggregate) -> None: ...
    def try_again(self, action: Callable[[], None]) -> None: ...
    def require_room(self, needed_bytes: int, what: str) -> None: ...
    def round_closed(self, run_id: str, ref: RoundRef) -> None: ...
    def changed(self, run_id: str) -> None: ...


def exchange_plan() -> Plan:
    values = rehearsal_plan(sites=3, rounds=1).model_dump()
    values["draft"] |= {
        "method": "fedpalm",
        "expert_exchange": "deployment",
    }
    return Plan.model_validate(
        {**values, "roster": SITES, "expert_layout": tuple(EXPERT.to_json())}
    )


class ExchangeWorld:
    """A completed run, a desk over a real store, and sites that can sign, seal and open."""

    def __init__(
        self,
        root: Path,
        state: RunState = RunState.COMPLETED,
        expelled: frozenset[str] = frozenset(),
    ) -> None:
        root.mkdir(exist_ok=True)
        self.root, self.plan, self.clock = root, exchange_plan(), SystemClock()
        self.authority = TestAuthority("simulated")
        self.identities = {site: self.authority.enrol(Role.PARTICIPANT, site) for site in SITES}
        hub = self.authority.enrol(Role.COORDINATOR, COORDINATOR_NAME)
        self.notary, self.absent = (
            Notary(Unchanging(hub), self.clock, self.signing_key),
            frozenset[str](),
        )
        self.keys = {site: HybridKey.generate() for site in SITES}
        self.experts = {
            site: np.full(50, number, dtype=np.float32) for number, site in enumerate(SITES, 1)
        }
        self.told: list[tuple[str, str]] = []
        store = Store.open(root / "store.sqlite3")
        records = RunRecords(store)
        records.create(RUN, self.plan, self.notary.offer(RUN, self.plan), 1)
        over = Run(RunTerms.of(self.plan), self.plan.initial_model, state=state, expelled=expelled)
        records.save(RUN, over, (), 2)
        store.close()
        self.boot()

    def signing_key(self, site: str) -> bytes:
        return self.identities[site].signing_key.public_key().public_bytes_raw()

    def boot(self) -> None:
        self.store = Store.open(self.root / "store.sqlite3")
        self.spool = Spool(self.root / "models", self.root / "spool")
        self.runs = RunRecords(self.store)
        self.conductor = Conductor(self.runs, Elsewhere(), self.clock, self.notary)
        self.desk = ExchangeDesk(
            ExchangeRecords(self.store),
            self.conductor,
            self.spool,
            self.clock,
            self.notary,
            self.runs,
            tell=lambda site, one: self.told.append((site, str(one.WhichOneof("kind")))),
            changed=lambda _: None,
            absent=lambda: self.absent,
        )
        self.desk.restart()

    def restart(self) -> None:
        self.store.close()
        self.told.clear()
        self.boot()

    @property
    def machine(self):  # type: ignore[no-untyped-def]
        machine = self.desk.of_run(RUN)
        assert machine is not None
        return machine

    @property
    def exchange_id(self) -> str:
        return str(self.machine.terms.exchange_id)

    def consent_of(self, site: str, signer: str | None = None) -> SignedConsent:
        identity = self.identities[signer or site]
        consent = Consent(self.machine.terms, site, self.keys[site].public_bytes)
        return sign_consent(consent, identity.signing_key, identity.chain)

    def consent(self, *sites: str) -> None:
        for site in sites or SITES:
            self.desk.consent(RUN, self.exchange_id, site, self.consent_of(site))

    @property
    def agreement(self) -> Agreement:
        return Agreement(
            self.desk.consents(RUN, self.exchange_id, SITES[0]),
            self.machine.terms,
            self.notary.anchors,
            now=self.clock.now(),
        )

    def sealed(self, sender: str, recipient: str) -> bytes:
        return seal_expert(
            self.experts[sender],
            EXPERT,
            self.agreement,
            sender=sender,
            recipient=recipient,
            signing_key=self.identities[sender].signing_key,
        ).to_bytes()

    def claim(self, sender: str, recipient: str, data: bytes) -> SealedClaim:
        digest = hashlib.sha256(data).hexdigest()
        return SealedClaim(RUN, self.exchange_id, sender, recipient, digest, len(data))

    def send(self, sender: str, recipient: str, data: bytes | None = None) -> object:
        data = self.sealed(sender, recipient) if data is None else data
        claim = self.claim(sender, recipient, data)
        if self.desk.check_sealed(claim) is None:
            self.desk.sealed_path(claim).write_bytes(data)
        return self.desk.accept_sealed(claim)

    def send_all(self) -> None:
        for sender in SITES:
            for recipient in self.machine.terms.others(sender):
                self.send(sender, recipient)

    def files(self) -> list[str]:
        return sorted(path.name for path in (self.spool.root / "exchange").glob("*/*"))


@pytest.fixture
def world(tmp_path: Path):  # type: ignore[no-untyped-def]
    made = ExchangeWorld(tmp_path)
    yield made
    made.store.close()


def test_experts_reach_the_others_after_a_start_and_every_yes_and_are_then_erased(world) -> None:  # type: ignore[no-untyped-def]
    world.desk.start(RUN, "olga")
    assert world.told == [(site, "exchange_proposed") for site in SITES]
    world.consent(*SITES[:2])
    with pytest.raises(StateError):
        world.desk.consents(RUN, world.exchange_id, SITES[0])
    world.told.clear()
    world.consent(SITES[2])
    assert world.told == [(site, "seal_experts") for site in SITES]
    world.told.clear()
    world.send_all()
    assert world.told == [(site, "fetch_experts") for site in SITES]
    for recipient in SITES:
        for sender in world.machine.terms.others(recipient):
            path, size = world.desk.deliverable(RUN, world.exchange_id, sender, recipient)
            data = path.read_bytes()
            assert len(data) == size
            opened = open_expert(
                SealedExpert.from_bytes(data),
                EXPERT,
                world.agreement,
                sender=sender,
                recipient=recipient,
                key=world.keys[recipient],
            )
            np.testing.assert_array_equal(opened, world.experts[sender])
    world.told.clear()
    for site in SITES:
        world.desk.confirm(RUN, world.exchange_id, site)
    assert world.machine.state == "completed"
    assert world.told == [(site, "exchange_closed") for site in SITES]
    assert world.files() == []


@pytest.mark.parametrize("state", ["consenting", "sealing", "delivering"])
def test_an_exchange_ends_when_a_site_of_its_roster_is_revoked(world, state: str) -> None:  # type: ignore[no-untyped-def]
    world.desk.start(RUN, "olga")
    world.consent("cedar")
    if state != "consenting":
        world.consent("amber", "birch")
    if state == "delivering":
        world.send_all()
    assert world.machine.state == state
    world.told.clear()
    world.desk.expel("birch", "revoked by the operator")
    assert world.machine.state == "cancelled" and world.files() == []
    assert world.machine.reason == (
        "the coordinator cancelled: site birch was revoked by the operator"
    )
    assert world.told == [(site, "exchange_closed") for site in SITES]
    world.told.clear()
    world.desk.expel("birch", "revoked by the operator")
    assert world.told == []


def test_an_exchange_of_others_goes_on_when_a_site_is_revoked(world) -> None:  # type: ignore[no-untyped-def]
    world.desk.start(RUN, "olga")
    world.desk.expel("stranger", "revoked by the operator")
    assert world.machine.state == "consenting"


def test_from_the_revocation_on_nobody_is_told_to_seal_or_given_anything(world) -> None:  # type: ignore[no-untyped-def]
    """The registry says so a moment before the exchange is ended."""
    world.desk.start(RUN, "olga")
    world.consent("cedar", "amber")
    world.absent = frozenset({"cedar"})
    world.told.clear()
    with pytest.raises(StateError, match="cedar left the federation"):
        world.consent("birch")
    assert world.told == []
    world.absent = frozenset()
    world.consent("birch")
    sealed = world.sealed("amber", "cedar")
    world.absent = frozenset({"cedar"})
    for attempt in (
        lambda: world.desk.consents(RUN, world.exchange_id, "amber"),
        lambda: world.send("amber", "cedar", sealed),
    ):
        with pytest.raises(StateError, match="cedar left the federation"):
            attempt()
    world.absent = frozenset()
    world.send_all()
    world.absent = frozenset({"cedar"})
    with pytest.raises(StateError, match="cedar left the federation"):
        world.desk.deliverable(RUN, world.exchange_id, "amber", "birch")


def test_a_yes_that_was_signed_with_an_earlier_key_is_none(world) -> None:  # type: ignore[no-untyped-def]
    world.desk.start(RUN, "olga")
    stale = world.consent_of("cedar")
    world.identities["cedar"] = world.authority.enrol(Role.PARTICIPANT, "cedar")
    with pytest.raises(IdentityError, match="not that of site cedar"):
        world.desk.consent(RUN, world.exchange_id, "cedar", stale)
    assert world.machine.consents == {}
    world.consent("cedar")
    assert set(world.machine.consents) == {"cedar"}


def test_no_expert_is_taken_before_every_site_has_said_yes(world) -> None:  # type: ignore[no-untyped-def]
    world.desk.start(RUN, "olga")
    world.consent(*SITES[:2])
    with pytest.raises(StateError):
        world.send(SITES[0], SITES[1], b"whatever")
    assert world.files() == []


def test_no_expert_is_given_out_before_all_have_come_or_to_another_site(world) -> None:  # type: ignore[no-untyped-def]
    world.desk.start(RUN, "olga")
    world.consent()
    world.send("amber", "birch")
    with pytest.raises(StateError):
        world.desk.deliverable(RUN, world.exchange_id, "amber", "birch")
    for sender in SITES:
        for recipient in world.machine.terms.others(sender):
            if (sender, recipient) != ("amber", "birch"):
                world.send(sender, recipient)
    with pytest.raises(NotFoundError):
        world.desk.deliverable(RUN, world.exchange_id, "birch", "birch")
    with pytest.raises(NotOnRosterError):
        world.desk.deliverable(RUN, world.exchange_id, "amber", "mallory")


def test_bytes_that_are_not_a_sealed_expert_of_this_exchange_are_refused_and_deleted(world) -> None:  # type: ignore[no-untyped-def]
    world.desk.start(RUN, "olga")
    world.consent()
    plain = world.experts["amber"].tobytes()
    for data in (plain, world.sealed("amber", "cedar"), world.sealed("birch", "amber")):
        with pytest.raises(SealedExpertError):
            world.send("amber", "birch", data)
    broken = bytearray(world.sealed("amber", "birch"))
    broken[-100] ^= 1
    with pytest.raises(SealedExpertError):
        world.send("amber", "birch", bytes(broken))
    with pytest.raises(MessageTooLargeError):
        world.send("amber", "birch", bytes(100_000))
    with pytest.raises(NotOnRosterError):
        world.send("amber", "amber", plain)
    assert world.files() == []
    assert world.machine.sealed == {}


def test_a_sealed_expert_again_gets_the_same_receipt_and_another_is_refused(world) -> None:  # type: ignore[no-untyped-def]
    world.desk.start(RUN, "olga")
    world.consent()
    data = world.sealed("amber", "birch")
    first = world.send("amber", "birch", data)
    world.restart()
    assert world.send("amber", "birch", data) == first
    with pytest.raises(HashMismatchError):
        world.send("amber", "birch", world.sealed("amber", "birch"))


def test_the_receipt_of_a_sealed_expert_says_between_whom_and_of_what(world) -> None:  # type: ignore[no-untyped-def]
    world.desk.start(RUN, "olga")
    world.consent()
    data = world.sealed("amber", "birch")
    receipt = world.send("amber", "birch", data)
    said = PayloadReceipt.open(receipt, world.notary.anchors, now=world.clock.now())
    assert (said.site, said.payload, said.recipient) == ("amber", "sealed_expert", "birch")
    assert said.place == f"{RUN}/{world.exchange_id}"
    assert said.payload_hash == hashlib.sha256(data).hexdigest()
    assert list(world.runs.receipts(RUN, "amber")) == [receipt]
    assert list(world.runs.receipts(RUN, "birch")) == []


def test_an_exchange_that_a_site_cannot_agree_to_is_not_proposed_and_the_site_is_named(  # type: ignore[no-untyped-def]
    world, tmp_path
) -> None:
    world.absent = frozenset({"birch", "somebody-else"})
    with pytest.raises(StateError, match="revoked or left the run: birch\n") as caught:
        world.desk.start(RUN, "olga")
    assert "plan amend" in caught.value.next_step
    world.absent = frozenset()
    world.desk.start(RUN, "olga")
    gone = ExchangeWorld(tmp_path / "gone", expelled=frozenset({"cedar"}))
    with pytest.raises(StateError, match="cedar"):
        gone.desk.start(RUN, "olga")
    gone.store.close()


def test_a_yes_that_somebody_else_signed_or_sent_does_not_count(world) -> None:  # type: ignore[no-untyped-def]
    world.desk.start(RUN, "olga")
    forged = world.consent_of("amber", signer="birch")
    with pytest.raises(ConsentError):
        world.desk.consent(RUN, world.exchange_id, "amber", forged)
    with pytest.raises(NotOnRosterError):
        world.desk.consent(RUN, world.exchange_id, "birch", world.consent_of("amber"))
    assert world.machine.consents == {}


def test_one_no_ends_the_exchange_for_all_and_erases_what_came(world) -> None:  # type: ignore[no-untyped-def]
    world.desk.start(RUN, "olga")
    world.consent()
    world.send("amber", "birch")
    world.told.clear()
    world.desk.refuse(RUN, world.exchange_id, "cedar", "not today")
    assert world.told == [(site, "exchange_closed") for site in SITES]
    assert world.machine.reason == "cedar refused: not today"
    assert world.files() == []
    with pytest.raises((StateError, IllegalTransitionError)):
        world.send("birch", "amber", b"x")


def test_the_reason_of_a_no_is_one_line_that_moves_no_terminal(world) -> None:  # type: ignore[no-untyped-def]
    world.desk.start(RUN, "olga")
    world.desk.refuse(RUN, world.exchange_id, "birch", "no\x1b[2J\nStatus: completed\u202e")
    assert "no\ufffd[2J Status: completed\ufffd" in world.machine.reason
    assert not set("\x1b\n\u202e") & set(world.machine.reason)


def test_a_site_that_dials_in_hears_what_it_owes_also_after_a_restart(world) -> None:  # type: ignore[no-untyped-def]
    world.desk.start(RUN, "olga")
    world.consent("amber")
    world.restart()
    for site in SITES:
        world.desk.site_connected(site)
    assert world.told == [("birch", "exchange_proposed"), ("cedar", "exchange_proposed")]
    world.consent("birch", "cedar")
    world.send("amber", "birch")
    world.send("amber", "cedar")
    world.restart()
    for site in SITES:
        world.desk.site_connected(site)
    assert world.told == [("birch", "seal_experts"), ("cedar", "seal_experts")]
    assert len(world.files()) == 2


def test_an_exchange_follows_a_completed_run_and_there_is_one_at_a_time(world, tmp_path) -> None:  # type: ignore[no-untyped-def]
    world.desk.start(RUN, "olga")
    with pytest.raises(StateError):
        world.desk.start(RUN, "olga")
    world.desk.cancel(RUN, "olga")
    first = world.exchange_id
    world.desk.start(RUN, "olga")
    assert world.exchange_id != first

    running = ExchangeWorld(tmp_path / "running", state=RunState.CREATED)
    with pytest.raises(StateError, match="after its last round"):
        running.desk.start(RUN, "olga")
    running.conductor.feed(RUN, AbortRun("enough"))
    with pytest.raises(StateError, match="after its last round"):
        running.desk.start(RUN, "olga")
    with pytest.raises(NotFoundError):
        running.desk.cancel(RUN, "olga")
    running.store.close()
