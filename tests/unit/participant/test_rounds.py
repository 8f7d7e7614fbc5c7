"""Rounds under signed manifests: what a coordinator that lies gets, and what a site waits for."""

from __future__ import annotations

import dataclasses
import threading

import pytest

from fedpalm.errors import DataError, ProtocolError
from fedpalm.ledger.bodies import EntryKind
from fedpalm.pki.identity import Role
from fedpalm.rounds.manifest import ManifestHead, RoundManifest
from fedpalm.wire.statements import to_wire
from fedpalm.wire.v1 import federation_pb2 as wire
from participant import link, rounds
from participant.link import Link
from participant.outgoing import PayloadKind
from tests.support.agents import running, told, until
from tests.support.agreement import made_up_keys
from tests.support.aio import in_loop
from tests.support.fake_coordinator import FakeCoordinator
from tests.support.participant import SITES, Crash, Site, make_plan
from tests.support.pki import TestAuthority

RUN = "toy-1"


@pytest.fixture(autouse=True)
def _quickly(monkeypatch):
    monkeypatch.setattr(rounds, "COUNTERSIGNATURE_POLL_S", 0.01)


def _kinds(site):
    return [entry.kind for entry in site.log.entries()]


def _sent(site):
    return [e.body["payload"] for e in site.log.entries() if e.kind is EntryKind.EGRESS]


def _order(signed, round_number=1, attempt=1):
    ref = wire.RoundRef(run_id=RUN, round=round_number, attempt=attempt)
    return wire.Instruction(train=wire.TrainRound(ref=ref, manifest=to_wire(signed)))


class Lying(FakeCoordinator):
    """Says something else than the next manifest, to whoever has joined."""

    def __init__(self, world, lie, rounds_=1):
        super().__init__(world, make_plan(rounds_), expected=("north",))
        self.lie = lie

    def _train(self):
        return _order(self.lie(self))


def _forged(coordinator):
    manifest = coordinator.next_manifest()
    return manifest.sign(TestAuthority("unit").enrol(Role.COORDINATOR, "coordinator"))


def _altered(coordinator):
    signed = coordinator.next_manifest().sign(coordinator.world.coordinator)
    statement = signed.statement.replace(coordinator.model_hash.hex().encode(), b"0" * 64)
    return dataclasses.replace(signed, statement=statement)


def _changed(**changes):
    def lie(coordinator):
        values = {**coordinator.next_manifest().model_dump(), **changes}
        if "cohort" in changes and "signing_keys" not in changes:
            values["signing_keys"] = coordinator.world.signing_keys(changes["cohort"])
        return RoundManifest.model_validate(values).sign(coordinator.world.coordinator)

    return lie


def _forged_far_ahead(coordinator):
    values = {**coordinator.next_manifest().model_dump(), "seq": 9000}
    signer = TestAuthority("unit").enrol(Role.COORDINATOR, "coordinator")
    return RoundManifest.model_validate(values).sign(signer)


LIES = {
    "forged": (_forged, "CA"),
    "forged, far ahead": (_forged_far_ahead, "CA"),
    "altered": (_altered, "signature does not hold"),
    "another plan": (_changed(plan_hash="ab" * 32), "another plan"),
    "another run": (_changed(run="toy-2"), "manifest that came is of run toy-2"),
    "another attempt": (_changed(attempt=2), "manifest that came is of run"),
    "without this site": (_changed(cohort=["east", "west"]), "not in the cohort"),
    "another key for this site": (
        _changed(signing_keys=made_up_keys(SITES)),
        "another signing key",
    ),
    "below the quorum": (_changed(cohort=["north"]), "plan's minimum"),
    "not text": (lambda c: dataclasses.replace(_altered(c), statement=b"{"), "malformed"),
}


@in_loop
@pytest.mark.parametrize(("lie", "words"), LIES.values(), ids=LIES)
async def test_a_manifest_that_does_not_hold_is_told_and_nothing_is_signed_trained_or_sent(
    world, lie, words
):
    coordinator = Lying(world, lie)
    site, _ = world.site("north")
    async with running(site, coordinator) as task:
        await told(site, words)
        assert not task.done()
        assert site.methods[0].trained == []
        never = {"countersign", "download_model", "update", "fetch_manifests"}
        assert not never & set(_sent(site))
        assert site.gate.manifests.chain(RUN) == []


@in_loop
async def test_a_policy_that_asks_for_a_larger_cohort_ends_the_round_that_is_on(world):
    coordinator = FakeCoordinator(world, make_plan(1), expected=("north",))
    coordinator.absent_sign = False
    site, home = world.site("north")
    async with running(site, coordinator) as task:
        await until(lambda: _sent(site).count("fetch_countersignatures") >= 1)
        home.policy.write_text("auto_approve = true\nmin_cohort = 3\n")
        await told(site, "refused by this site's policy")
        coordinator.absent_sign = True
        await told(site, "refused: ")
        assert not task.done()
        assert "update" not in _sent(site)


@in_loop
async def test_the_round_starts_from_the_manifests_model_and_is_signed_before_it_is_trained(world):
    coordinator = FakeCoordinator(world, make_plan(1), expected=("north",))
    site, _ = world.site("north")
    async with running(site, coordinator) as task:
        await task
        await until(task.done)
    again = Site(site.home)
    sent = [kind for kind in _sent(again) if kind in ("countersign", "download_model", "update")]
    assert sent[:3] == ["countersign", "download_model", "update"]
    update = again.store.update(RUN, 1)
    assert update.model_hash.hex() == RoundManifest.read(coordinator.manifests[0]).model_hash
    kinds = _kinds(again)
    accepted = kinds.index(EntryKind.MANIFEST_ACCEPTED)
    entries = list(again.log.entries())
    signed = next(e.seq for e in entries if e.body.get("payload") == PayloadKind.COUNTERSIGN)
    assert accepted < signed
    again.store.close()


@in_loop
async def test_an_update_waits_for_the_signatures_of_a_quorum(world):
    coordinator = FakeCoordinator(world, make_plan(1), expected=("north",))
    coordinator.absent_sign = False
    site, _ = world.site("north")
    async with running(site, coordinator) as task:
        await until(lambda: _sent(site).count("fetch_countersignatures") >= 3)
        assert site.methods[0].trained == [1]
        assert "update" not in _sent(site)
        assert coordinator.deliveries == []
        coordinator.absent_sign = True
        assert (await task).completed
    assert len(coordinator.deliveries) == 1


@in_loop
async def test_a_round_that_closes_while_signatures_are_missing_is_left_unsent(world):
    coordinator = FakeCoordinator(world, make_plan(1), expected=("north",))
    coordinator.absent_sign = False
    site, _ = world.site("north")
    async with running(site, coordinator):
        await until(lambda: _sent(site).count("fetch_countersignatures") >= 2)
        closed = wire.RoundClosed(ref=coordinator.ref(), model_hash=coordinator.model_hash)
        coordinator.tell("north", wire.Instruction(round_closed=closed))
        await told(site, "over before this site's update was sent")
        assert "update" not in _sent(site)
        coordinator.attempt, coordinator.absent_sign = 2, True
        coordinator.tell("north", coordinator._train())
        await until(lambda: coordinator.deliveries)
    assert [(r, a) for _, r, a, _ in coordinator.deliveries] == [(1, 2)]
    assert site.methods[0].trained == [1]


@in_loop
async def test_a_round_that_was_committed_without_a_sum_is_told_with_its_reason(world):
    coordinator = FakeCoordinator(world, make_plan(1), expected=("north",))
    coordinator.absent_sign = False
    site, _ = world.site("north")
    async with running(site, coordinator):
        await until(lambda: _sent(site).count("fetch_countersignatures") >= 2)
        closed = wire.RoundClosed(
            ref=coordinator.ref(),
            committed=True,
            model_hash=coordinator.model_hash,
            reason="too few reveals",
        )
        coordinator.tell("north", wire.Instruction(round_closed=closed))
        await told(site, "round 1: committed without a sum (too few reveals), model ")


@in_loop
async def test_another_sites_signature_over_another_manifest_stops_the_run_here(world):
    coordinator = FakeCoordinator(world, make_plan(2), expected=("north",))
    west = coordinator.countersigned("west", (1, 1), b"\x07" * 32)
    coordinator.countersignatures[1, 1] = {"west": west}
    site, _ = world.site("north")
    async with running(site, coordinator) as task:
        await told(site, "west has signed another manifest")
        assert any(f"fedpalm-participant manifests {RUN}" in line for line in site.lines)
        assert EntryKind.FORK_SEEN in _kinds(site)
        assert not task.done()
        # The coordinator goes on as if nothing were the matter.
        coordinator.tell("north", _order(coordinator.manifests[0]))
        await until(lambda: sum("fork" in line for line in site.lines) >= 2)
        assert "update" not in _sent(site)
        assert coordinator.deliveries == []
        site.log.verify()


@in_loop
async def test_a_second_manifest_for_the_attempt_stops_the_run_here(world):
    coordinator = FakeCoordinator(world, make_plan(2), expected=("north",))
    coordinator.absent_sign = False
    site, _ = world.site("north")
    async with running(site, coordinator):
        await until(lambda: _sent(site).count("fetch_countersignatures") >= 1)
        held = RoundManifest.read(coordinator.manifests[0])
        other = RoundManifest.model_validate({**held.model_dump(), "sealed_ms": 99})
        coordinator.tell("north", _order(other.sign(world.coordinator)))
        coordinator.absent_sign = True
        await told(site, "there twice")
        assert "update" not in _sent(site)


@in_loop
async def test_manifests_that_were_missed_are_fetched_and_then_the_newest_is_followed(world):
    site, _ = world.site("north")
    coordinator = FakeCoordinator(world, make_plan(2), expected=("north",))
    for attempt in (1, 2, 3):
        coordinator.attempt = attempt
        coordinator._manifest((1, attempt))
    async with running(site, coordinator) as task:
        assert (await task).completed
    again = Site(site.home)
    assert _sent(again).count("fetch_manifests") == 1
    assert [one.hash for one in again.gate.manifests.chain(RUN)] == [
        one.hash for one in coordinator.manifests
    ]
    assert [(r, a) for _, r, a, _ in coordinator.deliveries] == [(1, 3), (2, 1)]
    again.store.close()


@in_loop
async def test_no_more_is_read_than_was_missed_and_no_list_fills_the_memory(world, monkeypatch):
    class Endless(FakeCoordinator):
        read = 0

        async def FetchManifests(self, site, request):
            while True:
                self.read += 1
                yield to_wire(self.manifests[0])

        ListReceipts = FetchManifests

    coordinator = Endless(world, make_plan(1), expected=("north",))
    coordinator._manifest((1, 1))
    site, _ = world.site("north")
    async with coordinator.connect(site) as connection:
        found = Link(connection, site.gate)
        assert len(await found.fetch_manifests(RUN, 0, 3)) == coordinator.read == 3
        monkeypatch.setattr(link, "MAX_LISTED_BYTES", 10_000)
        coordinator.read = 0
        for fetch in (found.fetch_manifests(RUN, 0, 10**6), found.list_receipts(RUN)):
            with pytest.raises(ProtocolError, match="more than 10000 bytes"):
                await fetch
        assert coordinator.read < 40
    site.store.close()


@in_loop
async def test_missed_manifests_that_do_not_come_or_do_not_hold_keep_the_site_out(world):
    class Forgetful(FakeCoordinator):
        history: tuple = ()

        async def FetchManifests(self, site, request):
            for signed in self.history:
                yield to_wire(signed)

    site, _ = world.site("north")
    coordinator = Forgetful(world, make_plan(1), expected=("north",))
    for attempt in (1, 2):
        coordinator.attempt = attempt
        coordinator._manifest((1, attempt))
    async with running(site, coordinator):
        await told(site, "manifest 1 came, and 0 of the 1 before it")
        true = coordinator.manifests[0]
        coordinator.history = (dataclasses.replace(true, signature=bytes(64)),)
        coordinator.tell("north", coordinator._train())
        await told(site, "signature does not hold")
        values = {**RoundManifest.read(true).model_dump(), "sealed_ms": 77}
        other = RoundManifest.model_validate(values).sign(world.coordinator)
        coordinator.history = (other,)
        coordinator.tell("north", coordinator._train())
        await told(site, "do not lead to the one that is asked for")
        assert site.gate.manifests.chain(RUN) == []
        assert "countersign" not in _sent(site)
        coordinator.history = (true,)
        coordinator.tell("north", coordinator._train())
        await until(lambda: coordinator.deliveries)


@in_loop
async def test_a_repeated_attempt_sends_the_stored_update_again_under_its_own_manifest(world):
    coordinator = FakeCoordinator(world, make_plan(1), expected=("north",))
    coordinator.abort_attempts = {(1, 1), (1, 2)}
    site, _ = world.site("north")
    assert (await site.run(coordinator)).completed
    assert [(r, a) for _, r, a, _ in coordinator.deliveries] == [(1, 1), (1, 2), (1, 3)]
    assert len({digest for *_, digest in coordinator.deliveries}) == 1
    assert site.methods[0].trained == [1]
    again = Site(site.home)
    assert _kinds(again).count(EntryKind.MANIFEST_ACCEPTED) == 3
    assert _kinds(again).count(EntryKind.RECEIPT) == 3
    again.store.close()


@in_loop
async def test_an_order_for_a_past_attempt_is_skipped(world):
    coordinator = FakeCoordinator(world, make_plan(3), expected=("north",))
    coordinator.abort_attempts = {(1, 1)}
    site, _ = world.site("north")
    async with running(site, coordinator):
        await until(lambda: len(coordinator.deliveries) >= 2)
        coordinator.tell("north", _order(coordinator.manifests[0]))
        await told(site, "came again")
    assert site.methods[0].trained.count(1) == 1


@in_loop
async def test_a_round_that_is_rolled_back_is_not_trained(world):
    coordinator = FakeCoordinator(world, make_plan(3), expected=("north",))
    site, _ = world.site("north")
    async with running(site, coordinator):
        await until(lambda: len(coordinator.deliveries) >= 1 and len(coordinator.manifests) >= 2)
        await until(lambda: site.gate.manifests.size(RUN) >= 2)
        coordinator.absent_sign = False
        head = ManifestHead.after(RoundManifest.read(site.gate.manifests.chain(RUN)[-1]))
        back = RoundManifest.model_validate(
            {
                **RoundManifest.read(coordinator.manifests[0]).model_dump(),
                "seq": head.size,
                "previous": head.hash.hex(),
                "attempt": 9,
            }
        )
        coordinator.tell("north", _order(back.sign(world.coordinator), 1, 9))
        await told(site, "round 1, attempt 9 comes after")
    assert site.methods[0].trained.count(1) == 1


@in_loop
async def test_an_approval_that_is_taken_back_in_training_keeps_the_update_here(world):
    coordinator = FakeCoordinator(world, make_plan(1), expected=("north",))
    coordinator.absent_sign = False
    site, _ = world.site("north")
    async with running(site, coordinator) as task:
        await until(lambda: _sent(site).count("fetch_countersignatures") >= 1)
        site.desk.plans.refuse(RUN, "changed my mind")
        coordinator.absent_sign = True
        await told(site, "has refused plan")
        assert not task.done()
        assert "update" not in _sent(site)
        assert coordinator.deliveries == []


# --- settling -------------------------------------------------------------------------------------


class Settling:
    """Stands where a site settles its last model; the toy counts as a method for signatures."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, then=lambda: None) -> None:
        self.states: list[str] = []
        """Of the run, each time that it was settled."""
        self._then = then
        monkeypatch.setattr(rounds, "settle_model", self)
        monkeypatch.setattr(rounds, "modality_of", lambda method: "signature")

    def __call__(self, config, store, run_id, method):
        self.states.append(store.run(run_id).state)
        self._then()


@in_loop
async def test_a_connection_lost_while_the_model_is_settled_does_not_keep_the_run_from_ending(
    world, monkeypatch
):
    coordinator = FakeCoordinator(world, make_plan(1), expected=("north",))
    begun, go_on = threading.Event(), threading.Event()
    settling = Settling(monkeypatch, lambda: (begun.set(), go_on.wait(30)))
    site, _ = world.site("north")
    async with running(site, coordinator) as task:
        await until(begun.is_set)
        before = coordinator.connections
        coordinator.drop("north")
        await until(lambda: coordinator.connections > before and "north" in coordinator.queues)
        go_on.set()
        assert (await task).completed
    assert settling.states == ["joined"]


@in_loop
@pytest.mark.parametrize("at", ["while it settles", "after it"])
async def test_a_run_that_died_with_its_process_before_its_end_is_settled_when_it_is_told_again(
    world, monkeypatch, at
):
    def dies(*_: object) -> None:
        raise Crash

    coordinator = FakeCoordinator(world, make_plan(1), expected=("north",))
    settling = Settling(monkeypatch, dies if at == "while it settles" else lambda: None)
    site, home = world.site("north")
    if at == "after it":
        monkeypatch.setattr(site.store, "end_run", dies)
    with pytest.raises(Crash):
        await site.run(coordinator)
    coordinator.queues.clear()
    again = Settling(monkeypatch)
    site = Site(home)
    async with running(site, coordinator) as task:
        assert (await task).completed
    assert settling.states == again.states == ["joined"]
    assert not any("not settled" in line for line in site.lines)


@in_loop
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device"), "OSError: [Errno 28] No space left on device"),
        (DataError("no such folder", next_step="name it"), "no such folder. "),
    ],
)
async def test_what_keeps_a_model_from_being_settled_is_told_and_ends_no_agent(
    world, monkeypatch, error, words
):
    def fails() -> None:
        raise error

    Settling(monkeypatch, fails)
    coordinator = FakeCoordinator(world, make_plan(1), expected=("north",))
    site, _ = world.site("north")
    assert (await site.run(coordinator)).completed
    (told_,) = (line for line in site.lines if "is not settled" in line)
    assert told_.startswith("WARNING: run toy-1") and words in told_
    assert "Safe: " in told_ and "the first command that verifies will try again" in told_
    assert isinstance(error, OSError) or "mend that (name it)" in told_
