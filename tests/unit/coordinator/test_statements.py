"""What the conductor signs and takes signed: answers in order, one chain, receipts that stay the same."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import pytest

from coordinator.conductor import Conductor
from coordinator.notary import Notary
from coordinator.statements import StatementDesk
from fedpalm.errors import (
    FedPalmError,
    HashMismatchError,
    IdentityError,
    NotFoundError,
    NotOnRosterError,
    PlanNotApprovedError,
    ProtocolError,
    ResourceError,
    SenderMismatchError,
    StaleRoundError,
    StateError,
)
from fedpalm.pki.identity import Role
from fedpalm.pki.statement import SignedStatement
from fedpalm.plan import Continues, Plan
from fedpalm.rounds.agreement import PlanAnswer, PlanOffer
from fedpalm.rounds.events import RoundRef
from fedpalm.rounds.manifest import ManifestHead, RoundManifest, follow
from fedpalm.rounds.receipt import PayloadReceipt
from fedpalm.rounds.run import AbortRun
from fedpalm.wire.statements import from_wire
from fedpalm.wire.v1 import federation_pb2 as pb
from tests.simulation.federation import (
    AUTHORITY,
    RUN,
    SimulatedFederation,
    identity,
    rehearsal_plan,
    signing_key,
)
from tests.support.agreement import Unchanging, answer, countersignature
from tests.support.pki import TestAuthority

A, B, C = "site-000", "site-001", "site-002"
FIRST = RoundRef(1, 1)


class World(SimulatedFederation):
    """A simulated federation with a desk for its statements."""

    def boot(self) -> None:
        super().boot()
        notary = Notary(Unchanging(identity()), self.clock, signing_key)
        self.desk = StatementDesk(self.records, self.conductor, notary)

    @property
    def anchors(self):  # type: ignore[no-untyped-def]
        return identity().anchors

    def give(self, site: str, kind: str, number: int, **changes: object) -> None:
        signed = answer(identity(site), RUN, self.plan, kind, number)
        if changes:
            said = PlanAnswer.read(signed).model_copy(update=changes)
            signed = said.sign(identity(said.site))
        self.conductor.answer_plan(RUN, site, signed)

    def manifests(self) -> list[RoundManifest]:
        found = self.desk.manifests(RUN, A, 0)
        now = self.clock.now()
        return [RoundManifest.open(one, self.anchors, now=now) for one in found]

    def trains(self, site: str) -> list[pb.TrainRound]:
        return [one.train for one in self.inbox[site] if one.WhichOneof("kind") == "train"]


@pytest.fixture
def world(tmp_path: Path):  # type: ignore[no-untyped-def]
    made = World(tmp_path / "home", rehearsal_plan(sites=3, rounds=3))
    yield made
    made.store.close()


# --- offers and answers ---------------------------------------------------------------------------


def test_the_roster_is_offered_a_plan_as_soon_as_there_is_a_run(world: World) -> None:
    world.inbox[A] = deque()
    world.conductor.create("another", world.plan)
    assert [one.run_offer.run_id for one in world.inbox[A]] == ["another"]
    offer = PlanOffer.open(world.conductor.offer("another"), world.anchors, now=world.clock.now())
    assert (offer.run, offer.plan_hash) == ("another", world.plan.hash.hex())
    before = world.conductor.offer(RUN)
    world.kill()
    assert world.conductor.offer(RUN) == before


def test_only_a_site_that_has_approved_joins(world: World) -> None:
    world.conductor.site_connected(A)
    with pytest.raises(PlanNotApprovedError, match="has not answered"):
        world.join(A)
    world.give(A, "refuse", 1)
    with pytest.raises(PlanNotApprovedError, match="has refused"):
        world.join(A)
    world.give(A, "approve", 2)
    world.join(A)
    assert world.run.joined == {A}


def test_a_later_answer_replaces_an_earlier_one_and_never_the_other_way_round(
    world: World,
) -> None:
    world.give(A, "approve", 1)
    world.give(A, "refuse", 2)
    world.give(A, "refuse", 2)
    for kind, number in (("approve", 1), ("approve", 2), ("refuse", 1)):
        with pytest.raises(StateError, match="not newer"):
            world.give(A, kind, number)
    world.kill()
    with pytest.raises(StateError, match="not newer"):
        world.give(A, "approve", 1)
    assert world.conductor.answered(RUN, "refuse") == [A]
    assert world.conductor.answered(RUN, "approve") == []
    world.give(A, "approve", 7)
    assert world.conductor.answered(RUN, "approve") == [A]


def test_an_answer_counts_only_for_what_it_says_and_from_who_signed_it(world: World) -> None:
    stranger = TestAuthority("simulated").enrol(Role.PARTICIPANT, A)
    earlier = AUTHORITY.enrol(Role.PARTICIPANT, A, now=world.clock.now())
    cases: list[tuple[SignedStatement, str, type[FedPalmError]]] = [
        (answer(identity(B), RUN, world.plan), A, SenderMismatchError),
        (answer(identity(A), "other-run", world.plan), A, HashMismatchError),
        (answer(identity(A), RUN, rehearsal_plan(sites=3, rounds=4)), A, HashMismatchError),
        (answer(stranger, RUN, world.plan), A, IdentityError),
        (answer(earlier, RUN, world.plan), A, IdentityError),
        (world.conductor.offer(RUN), A, ProtocolError),
        (answer(identity("site-009"), RUN, world.plan), "site-009", NotOnRosterError),
    ]
    good = answer(identity(A), RUN, world.plan)
    tampered = SignedStatement(
        good.statement.replace(b'"number":1', b'"number":2'), good.signature, good.chain
    )
    for signed, sender, error in [*cases, (tampered, A, IdentityError)]:
        with pytest.raises(error):
            world.conductor.answer_plan(RUN, sender, signed)
    assert world.store.query("SELECT * FROM plan_answers") == []


def test_a_run_that_is_over_takes_no_new_answer_but_knows_the_old_one(world: World) -> None:
    world.give(A, "approve", 1)
    world.conductor.feed(RUN, AbortRun("enough"))
    world.give(A, "approve", 1)
    with pytest.raises(StateError, match="no more answers"):
        world.give(A, "refuse", 2)


def test_a_revoked_sites_approval_is_void_and_its_successor_may_begin_anew(world: World) -> None:
    world.give(A, "approve", 5)
    world.revoke(A)
    world.kill()
    assert world.conductor.answered(RUN, "approve") == []
    world.give(A, "approve", 1)
    assert world.conductor.answered(RUN, "approve") == [A]


# --- manifests ------------------------------------------------------------------------------------


def test_every_sealed_cohort_has_a_manifest_and_they_form_one_chain(world: World) -> None:
    world.connect()
    world.start()
    world.deliver_all()
    world.sum_up()
    world.disconnect(B)
    world.deadline()
    world.connect(B)
    world.play()
    head = ManifestHead.start(world.plan, RUN)
    found = world.manifests()
    for manifest in found:
        head = follow(head, manifest, world.plan, RUN)
    assert [(one.round, one.attempt) for one in found] == [(1, 1), (2, 1), (2, 2), (3, 1)]
    later = [RoundManifest.read(one) for one in world.desk.manifests(RUN, B, 2)]
    assert later == found[2:]


def test_an_order_to_train_carries_the_manifest_and_a_restart_the_very_same(world: World) -> None:
    world.connect()
    world.start()
    (first,) = world.trains(A)
    manifest = RoundManifest.open(from_wire(first.manifest), world.anchors, now=world.clock.now())
    assert manifest.cohort == [A, B, C]
    assert manifest.model_hash == world.plan.initial_model
    world.clock.advance(60)
    world.kill()
    world.connect()
    assert world.trains(A) == [first]
    assert len(world.manifests()) == 1


def test_a_cohort_that_was_stored_before_a_crash_keeps_its_manifest(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored, cut = world.records.save, []

    def save(*given: object) -> None:
        if world.run.current is not None and world.run.current.state == "cohort_sealed":
            cut.append(True)
            raise ResourceError("cut here")
        stored(*given)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(world.records, "save", save)
        world.connect()
        world.start()
    assert cut
    before = world.manifests()
    world.kill()
    assert world.manifests() == before
    world.connect()
    assert len(world.trains(A)) == 1


# --- countersignatures ----------------------------------------------------------------------------


def test_a_countersignature_is_of_the_cohort_and_over_its_manifest(world: World) -> None:
    world.connect(A, B)
    world.start()
    with pytest.raises(StaleRoundError, match="no manifest"):
        world.desk.countersign(RUN, FIRST, A, answer(identity(A), RUN, world.plan))
    world.deadline()
    (manifest,) = world.desk.manifests(RUN, A, 0)
    good = countersignature(identity(A), manifest)
    other = RoundManifest.read(manifest).model_copy(update={"sealed_ms": 1}).sign(identity())
    for signed, site, error in (
        (countersignature(identity(C), manifest), C, NotOnRosterError),
        (countersignature(identity(B), manifest), A, SenderMismatchError),
        (countersignature(identity(A), other), A, HashMismatchError),
        (
            countersignature(AUTHORITY.enrol(Role.PARTICIPANT, A, now=world.clock.now()), manifest),
            A,
            IdentityError,
        ),
        (answer(identity(A), RUN, world.plan), A, ProtocolError),
    ):
        with pytest.raises(error):
            world.desk.countersign(RUN, FIRST, site, signed)
    assert world.desk.countersignatures(RUN, C, FIRST) == []
    world.desk.countersign(RUN, FIRST, A, good)
    world.desk.countersign(RUN, FIRST, A, good)
    world.kill()
    assert world.desk.countersignatures(RUN, C, FIRST) == [good]
    for call in (
        lambda: world.desk.countersignatures(RUN, "mallory", FIRST),
        lambda: world.desk.manifests(RUN, "mallory", 0),
        lambda: world.desk.receipts(RUN, "mallory"),
    ):
        with pytest.raises(NotOnRosterError):
            call()
    with pytest.raises(NotFoundError):
        world.desk.receipts("no-run", A)


# --- receipts -------------------------------------------------------------------------------------


def test_a_receipt_says_what_came_and_each_site_lists_its_own(world: World) -> None:
    world.connect()
    world.start()
    payload = world.payload(A)
    receipt = world.deliver(A, payload)
    said = PayloadReceipt.open(receipt, world.anchors, now=world.clock.now())
    claim = world.claim(A, payload)
    assert (said.site, said.payload, said.place) == (A, "update", f"{RUN}/1/1")
    assert (said.payload_hash, said.payload_bytes) == (claim.payload_hash, len(payload))
    world.deliver(B)
    world.clock.advance(5)
    world.kill()
    assert world.conductor.updates.check(claim) == receipt
    assert list(world.desk.receipts(RUN, A)) == [receipt]
    assert list(world.desk.receipts(RUN, C)) == []


def test_an_update_whose_receipt_could_not_be_stored_does_not_count(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.connect()
    world.start()

    def full(*_: object) -> None:
        raise ResourceError("the disk is full")

    with monkeypatch.context() as patched, pytest.raises(ResourceError):
        patched.setattr("coordinator.facts.ReceiptRow.write", full)
        world.deliver(A)
    assert world.run.current.delivered == {}
    assert world.store.query("SELECT * FROM updates") == []
    world.deliver(A)
    assert len(list(world.desk.receipts(RUN, A))) == 1


def test_nothing_is_counted_while_nothing_can_be_signed(world: World) -> None:
    class Broken:
        @property
        def current(self):  # type: ignore[no-untyped-def]
            raise IdentityError("tls.pem is half a file")

    conductor = Conductor(
        world.records, world, world.clock, Notary(Broken(), world.clock, signing_key)
    )
    with pytest.raises(ResourceError, match="nothing can be signed"):
        conductor.create("another", world.plan)
    assert [row[0] for row in world.store.query("SELECT run_id FROM runs")] == [RUN]


def test_a_manifest_names_the_present_signing_key_of_each_site_of_its_cohort(world: World) -> None:
    keys = {site: signing_key(site) for site in world.plan.roster}
    notary = Notary(Unchanging(identity()), world.clock, keys.get)
    head, model = ManifestHead.start(world.plan, RUN), world.plan.initial_model
    asked = (RUN, world.plan, head, RoundRef(1, 1), (A, B), model, {})
    assert RoundManifest.read(notary.manifest(*asked)).signing_keys == {
        A: keys[A].hex(),
        B: keys[B].hex(),
    }
    del keys[B]
    with pytest.raises(ResourceError, match=f"no cohort with site {B} can be signed"):
        notary.manifest(*asked)


# --- amendments -----------------------------------------------------------------------------------


def amended(world: World, **changes: object) -> Plan:
    plan = world.plan
    named = Continues(run=RUN, plan_hash=plan.hash.hex(), rounds_done=1, model=world.run.model_hash)
    values = {**plan.model_dump(), "initial_model": world.run.model_hash, "roster": (A, B)}
    values["continues"] = {**named.model_dump(), **changes}
    return Plan.model_validate(values)


@pytest.fixture
def ended(world: World) -> World:
    """One round is committed, then the operator amends."""
    world.connect()
    world.start()
    world.deliver_all()
    world.sum_up()
    return world


def test_an_amended_plan_goes_on_from_the_end_of_one_run_and_only_once(ended: World) -> None:
    plan = amended(ended)
    with pytest.raises(StateError, match="running"):
        ended.conductor.create("second", plan)
    ended.conductor.feed(RUN, AbortRun("amended"))
    for changes, why in (
        ({"run": "nothing"}, "no run"),
        ({"plan_hash": "0" * 64}, "not as the amended plan says"),
        ({"rounds_done": 2}, "not as the amended plan says"),
    ):
        with pytest.raises(StateError, match=why):
            ended.conductor.create("second", amended(ended, **changes))
    stale = plan.model_dump() | {"initial_model": ended.plan.initial_model}
    stale["continues"] = {**stale["continues"], "model": ended.plan.initial_model}
    with pytest.raises(StateError, match="not as the amended plan says"):
        ended.conductor.create("second", Plan.model_validate(stale))
    ended.conductor.create("second", plan)
    with pytest.raises(StateError, match="continued by second"):
        ended.conductor.create("third", plan)
    ended.kill()
    with pytest.raises(StateError, match="continued by second"):
        ended.conductor.create("third", plan)
    assert ended.conductor.run("second").model_hash == ended.run.model_hash


def test_an_amendment_keeps_the_layout(ended: World) -> None:
    ended.conductor.feed(RUN, AbortRun("amended"))
    values = amended(ended).model_dump()
    values["layout"] = ({"name": "open_set.other.vector", "shape": [97]},)
    with pytest.raises(StateError, match="keeps the method and the layouts"):
        ended.conductor.create("second", Plan.model_validate(values))
