"""A site's checkpoints: one for an attempt, all that others gave in hand, or no countersignature."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import pytest
from click.testing import CliRunner

from fedpalm.errors import (
    EgressRefusedError,
    FedPalmError,
    ForkError,
    IdentityError,
    IntegrityError,
    PlanNotApprovedError,
    ProtocolError,
    RolledBackError,
    StaleRoundError,
    StateError,
    UnwitnessedError,
)
from fedpalm.ledger.bodies import EntryKind
from fedpalm.ledger.checkpoint import Checkpoint, GivenCheckpoint
from fedpalm.ledger.merkle import MerkleTree
from fedpalm.pki.signing import key_id
from fedpalm.pki.statement import SignedStatement
from fedpalm.privacy.accounting import Charge
from fedpalm.wire.v1 import federation_pb2 as wire
from participant.cli.manifests import manifest_chain, manifests
from participant.ending import ExitAfter
from participant.outgoing import PayloadKind, Place
from participant.rounds import RunWorker
from participant.store import SiteStore
from tests.support.participant import FEDERATION, SITES, Crash, Site, World
from tests.support.rounds import RUN, Chain
from tests.support.whole import POLICY, private_plan

FIRST = Place(RUN, 1, 1)
PLAN = private_plan(3)


@pytest.fixture(autouse=True)
def cheap_accountant(monkeypatch):
    def epsilon(charges: Sequence[Charge], delta: float) -> float:
        return sum(one.steps for one in charges) / 100

    monkeypatch.setattr("participant.budget.charged_epsilon", epsilon)


@pytest.fixture
def private(tmp_path):
    return World(tmp_path, policy=POLICY)


@pytest.fixture
def site(private):
    made, _ = private.site("north")
    private.agreed(made, PLAN)
    yield made
    made.store.close()


class OtherLog:
    """The log of a site that has no home here: ``entries`` is what it would show."""

    def __init__(self, world: World, name: str) -> None:
        self.identity, self.name = world.absent(name), name
        self.entries: list[bytes] = [f"{name} {number}".encode() for number in range(5)]
        self.given = 0

    def grow(self, count: int = 3) -> None:
        self.entries += [f"{self.name} {len(self.entries)}".encode() for _ in range(count)]

    def give(self, place: Place = FIRST, since: int | None = None, **changes) -> GivenCheckpoint:
        """A checkpoint of all entries, with a proof from the one given before."""
        self.grow()
        tree = MerkleTree(self.entries)
        values = {
            "federation": FEDERATION,
            "site": self.name,
            "key_id": key_id(self.identity.signing_key.public_key()).hex(),
            "size": len(tree),
            "root": tree.root().hex(),
            "run": place.run,
            "round": place.round,
            "attempt": place.attempt,
            "time_ms": 1,
        }
        proof = tree.consistency_proof(self.given if since is None else since)
        self.given = len(tree)
        signed = Checkpoint.model_validate({**values, **changes}).sign(self.identity)
        return GivenCheckpoint(signed, tuple(proof))


@pytest.fixture
def others(private):
    return {name: OtherLog(private, name) for name in SITES if name != "north"}


def book(site: Site):
    return site.gate.manifests.checkpoints


def prepare(site: Site, place: Place = FIRST, newest: SignedStatement | None = None):
    """What an agent does when it is asked for a checkpoint."""
    book(site).check(place, newest)
    site.gate.budget.reserve(place.run, PLAN, place.round)
    given = book(site).give(place, newest)
    site.gate.release_give_checkpoints(place, given)
    return given


def hashes(own: GivenCheckpoint, given: dict[str, GivenCheckpoint]) -> dict[str, str]:
    return {
        "north": own.signed.hash.hex(),
        **{name: one.signed.hash.hex() for name, one in given.items()},
    }


def forget_manifests(site: Site) -> None:
    with site.store.transaction() as db:
        db.execute("DELETE FROM manifests")


def entries(site: Site, kind: EntryKind):
    return [one for one in site.log.entries() if one.kind is kind]


# --- this site's own ------------------------------------------------------------------------------


def test_a_checkpoint_is_of_every_entry_before_it(site):
    (given,) = prepare(site)
    said = Checkpoint.read(given.signed)
    tree = MerkleTree(one.to_bytes() for one in site.log.entries())
    assert said.root == tree.root(said.size).hex()
    (logged,) = entries(site, EntryKind.CHECKPOINT)
    assert (logged.seq, logged.body["checkpoint_hash"]) == (said.size, said.hash.hex())
    (reserved,) = entries(site, EntryKind.BUDGET_RESERVED)
    assert reserved.seq < said.size
    assert given.proof == ()


def test_the_same_attempt_gets_the_same_checkpoint(site):
    first = prepare(site)
    assert prepare(site) == first
    assert prepare(site, newest=first[-1].signed) == first
    assert len(entries(site, EntryKind.CHECKPOINT)) == 1
    assert len(entries(site, EntryKind.BUDGET_RESERVED)) == 1


def test_what_the_coordinator_lacks_goes_before_the_new_one(site, monkeypatch):
    monkeypatch.setattr("participant.checkpoints.MAX_GIVEN", 5)
    (first,) = prepare(site)
    second = prepare(site, Place(RUN, 1, 2), first.signed)
    assert len(second) == 1
    third = prepare(site, Place(RUN, 1, 3), first.signed)
    assert third[:1] == second
    assert len(third) == 2
    everything = prepare(site, Place(RUN, 2, 1), None)
    assert [Checkpoint.read(one.signed).attempt for one in everything] == [1, 2, 3, 1]
    for number in (2, 3):
        book(site).give(Place(RUN, 2, number), everything[-1].signed)
    oldest = book(site).give(Place(RUN, 3, 1), None)
    assert oldest[:4] == everything
    assert len(oldest) == 5


def test_a_past_attempt_gets_no_checkpoint(site, private, others):
    prepare(site, Place(RUN, 1, 2))
    for place in (FIRST, Place(RUN, 1, 1)):
        with pytest.raises(StaleRoundError, match=r"after 1\.2"):
            prepare(site, place)
    assert len(entries(site, EntryKind.BUDGET_RESERVED)) == 1
    assert len(entries(site, EntryKind.CHECKPOINT)) == 1


def test_a_copy_of_the_home_from_before_a_checkpoint_gives_no_other(private, site, tmp_path):
    prepare(site)
    store = site.store
    store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    copy = store.home.database.read_bytes()
    newest = prepare(site, Place(RUN, 1, 2))[-1]
    before = list(site.log.entries())
    store.close()
    for suffix in ("-wal", "-shm"):
        path = store.home.database.with_name(store.home.database.name + suffix)
        path.unlink(missing_ok=True)
    store.home.database.write_bytes(copy)
    restored = Site(store.home)
    assert len(list(restored.log.entries())) < len(before)
    with pytest.raises(RolledBackError) as error:
        book(restored).check(Place(RUN, 2, 1), newest.signed)
    assert str(Checkpoint.read(newest.signed)) in error.value.what
    assert "newest copy of the whole home" in error.value.next_step
    with pytest.raises(RolledBackError):
        book(restored).give(Place(RUN, 2, 1), newest.signed)
    assert len(entries(restored, EntryKind.CHECKPOINT)) == 1
    restored.store.close()


def test_what_is_no_checkpoint_of_this_site_is_not_taken_for_one(site, others, private):
    of_another = others["west"].give().signed
    forged = SignedStatement(of_another.statement, bytes(64), of_another.chain)
    nothing = private.offer(PLAN)
    for newest in (of_another, forged, nothing):
        with pytest.raises(ProtocolError, match="it is none"):
            prepare(site, newest=newest)
    assert entries(site, EntryKind.BUDGET_RESERVED) == []


def test_only_stored_checkpoints_of_this_site_leave(site, others):
    with pytest.raises(EgressRefusedError):
        site.gate.release_give_checkpoints(FIRST, [others["west"].give()])
    assert [
        one
        for one in entries(site, EntryKind.EGRESS)
        if one.body["payload"] == PayloadKind.GIVE_CHECKPOINT
    ] == []


class Sent:
    """A link that notes what is given, and answers with an error if it has one."""

    def __init__(self, error: FedPalmError | None = None) -> None:
        self.given: list[Sequence[GivenCheckpoint]] = []
        self.error = error

    async def give_checkpoints(self, place: Place, given: Sequence[GivenCheckpoint]) -> None:
        self.given.append(given)
        if self.error is not None:
            raise self.error


def asked(site: Site, link: Sent, number: int = 1, attempt: int = 1) -> None:
    """The coordinator asks this site for a checkpoint."""
    ref = wire.RoundRef(run_id=RUN, round=number, attempt=attempt)
    order = wire.Instruction(prepare=wire.PrepareRound(ref=ref))
    worker = RunWorker(site.config, site.store, site.gate, site.trainer, site, ExitAfter.NEVER)
    assert asyncio.run(worker.follow(link, order))  # type: ignore[arg-type]


def test_a_site_that_is_asked_charges_the_round_and_gives(site):
    link = Sent()
    asked(site, link)
    assert [len(given) for given in link.given] == [1]
    assert len(entries(site, EntryKind.BUDGET_RESERVED)) == 1


@pytest.mark.parametrize("place", [(4, 1), (1, 0), (0, 1)])
def test_a_round_that_the_plan_does_not_have_is_not_charged(site, place):
    link = Sent()
    with pytest.raises(StateError, match="has none"):
        asked(site, link, *place)
    assert (link.given, entries(site, EntryKind.BUDGET_RESERVED)) == ([], [])


def test_the_end_of_a_run_is_not_charged(site):
    link = Sent()
    asked(site, link, 0, 0)
    assert len(link.given) == 1
    assert entries(site, EntryKind.BUDGET_RESERVED) == []


def test_a_site_that_takes_its_approval_back_is_charged_nothing(site):
    site.desk.plans.refuse(RUN, "enough")
    link = Sent()
    with pytest.raises(PlanNotApprovedError):
        asked(site, link)
    assert (link.given, entries(site, EntryKind.BUDGET_RESERVED)) == ([], [])


def test_a_coordinator_that_calls_a_log_rolled_back_does_not_end_the_agent(site):
    asked(site, Sent(RolledBackError("so it says")))
    assert any("so it says" in line for line in site.lines)


# --- the others' ----------------------------------------------------------------------------------


def test_a_manifest_is_countersigned_with_every_checkpoint_in_hand(site, private, others):
    (own,) = prepare(site)
    given = {name: one.give() for name, one in others.items()}
    for one in given.values():
        book(site).take(one, PLAN.roster, FIRST)
        book(site).take(one, PLAN.roster, FIRST)
    manifest = Chain(private, PLAN).ask(site, checkpoints=hashes(own, given), signers=("west",))
    assert site.gate.manifests.countersigned_by(manifest) == ["north", "west"]
    assert book(site).first_unsigned(RUN) == 1


@pytest.mark.parametrize("withheld", ["east", "west"])
def test_a_checkpoint_that_is_withheld_costs_the_countersignature(site, private, others, withheld):
    (own,) = prepare(site)
    given = {name: one.give() for name, one in others.items()}
    for name, one in given.items():
        if name != withheld:
            book(site).take(one, PLAN.roster, FIRST)
    with pytest.raises(UnwitnessedError, match=f"of site {withheld} did not come"):
        Chain(private, PLAN).ask(site, checkpoints=hashes(own, given))
    assert book(site).first_unsigned(RUN) == 0


def test_a_checkpoint_that_is_swapped_costs_the_countersignature(site, private, others):
    (own,) = prepare(site)
    given = {name: one.give() for name, one in others.items()}
    for one in given.values():
        book(site).take(one, PLAN.roster, FIRST)
    swapped = hashes(own, {"east": given["west"], "west": given["east"]})
    with pytest.raises(UnwitnessedError, match="is of west, or of another key"):
        Chain(private, PLAN).ask(site, checkpoints=swapped)


def test_an_own_checkpoint_that_was_not_given_costs_the_countersignature(site, private, others):
    (own,) = prepare(site)
    given = {name: one.give() for name, one in others.items()}
    for one in given.values():
        book(site).take(one, PLAN.roster, FIRST)
    for wrong, why in (("0" * 64, "has not given"), (given["east"].signed.hash.hex(), "of east")):
        with pytest.raises(UnwitnessedError, match=why):
            Chain(private, PLAN).ask(site, checkpoints={**hashes(own, given), "north": wrong})
        forget_manifests(site)


def test_an_old_checkpoint_is_not_taken_for_a_new_attempt(site, private, others):
    """Its own as well: who was given another one before notices that too."""
    (first,) = prepare(site)
    old = {name: one.give() for name, one in others.items()}
    (second,) = prepare(site, Place(RUN, 1, 2), first.signed)
    new = {name: one.give(Place(RUN, 1, 2)) for name, one in others.items()}
    for one in (*old.values(), *new.values()):
        book(site).take(one, PLAN.roster, Place(RUN, 1, 2))
    for replayed in (hashes(second, {**new, "east": old["east"]}), hashes(first, new)):
        with pytest.raises(UnwitnessedError, match="is an earlier one"):
            Chain(private, PLAN).ask(site, 1, 2, checkpoints=replayed)
        forget_manifests(site)
    Chain(private, PLAN).ask(site, 1, 2, checkpoints=hashes(second, new))


def test_manifests_with_too_few_checkpoints_or_too_many_are_not_followed(site, private, others):
    (own,) = prepare(site)
    given = {name: one.give() for name, one in others.items()}
    named = hashes(own, given)
    for wrong in ({}, {"north": named["north"]}, {**named, "south": "0" * 64}):
        with pytest.raises(ProtocolError, match="names checkpoints"):
            Chain(private, PLAN).ask(site, checkpoints=wrong)
    assert site.gate.manifests.chain(RUN) == []


def test_a_fork_is_kept_as_evidence_once(site, others):
    held = others["west"].give()
    book(site).take(held, PLAN.roster, FIRST)
    others["west"].entries[2] = b"rewritten"
    forked = others["west"].give(Place(RUN, 1, 2))
    for _ in range(2):
        with pytest.raises(ForkError, match="west"):
            book(site).take(forked, PLAN.roster, Place(RUN, 1, 2))
    (conflict,) = book(site).conflicts()
    assert (conflict.held.hash, conflict.other.hash) == (held.signed.hash, forked.signed.hash)
    (logged,) = entries(site, EntryKind.FORK_SEEN)
    assert logged.body == {
        "site": "west",
        "checkpoint_hash": held.signed.hash.hex(),
        "other_hash": forked.signed.hash.hex(),
    }
    newest = book(site).newest("west")
    assert newest is not None
    assert newest.hash == held.signed.hash


def test_the_command_shows_both_sides_of_a_log_that_contradicts_itself(site, private, others):
    (own,) = prepare(site)
    given = {name: one.give() for name, one in others.items()}
    for one in given.values():
        book(site).take(one, PLAN.roster, FIRST)
    Chain(private, PLAN).ask(site, checkpoints=hashes(own, given))
    others["west"].entries[2] = b"rewritten"
    forked = others["west"].give(Place(RUN, 1, 2))
    with pytest.raises(ForkError):
        book(site).take(forked, PLAN.roster, Place(RUN, 1, 2))
    shown = manifest_chain(site.desk, RUN)
    assert shown["manifests"][0]["checkpoints"] == hashes(own, given)
    (seen,) = shown["contradicted_logs"]
    assert seen == {
        "site": "west",
        "held": str(Checkpoint.read(given["west"].signed)),
        "other": str(Checkpoint.read(forked.signed)),
    }
    text = CliRunner().invoke(manifests, ["--home", str(site.home.database.parent)])
    assert "LOG OF west" in text.output


def test_a_log_that_was_rolled_back_is_refused(site, others):
    book(site).take(others["west"].give(), PLAN.roster, FIRST)
    others["west"].entries = others["west"].entries[:1]
    shorter = others["west"].give(Place(RUN, 2, 1), since=0)
    with pytest.raises(RolledBackError, match="shorter than it was"):
        book(site).take(shorter, PLAN.roster, Place(RUN, 2, 1))
    assert len(book(site).conflicts()) == 1


def test_a_gap_before_a_checkpoint_is_no_proof(site, others):
    book(site).take(others["west"].give(), PLAN.roster, FIRST)
    others["west"].give(Place(RUN, 1, 2))
    later = others["west"].give(Place(RUN, 1, 3))
    with pytest.raises(ForkError, match="not shown to go on"):
        book(site).take(later, PLAN.roster, Place(RUN, 1, 3))


def test_nobody_speaks_for_the_log_of_another(site, others, private):
    given = others["west"].give()
    forged = SignedStatement(given.signed.statement, bytes(64), given.signed.chain)
    other_log = others["west"].give(key_id="0" * 64)
    with pytest.raises(IdentityError):
        book(site).take(GivenCheckpoint(forged, given.proof), PLAN.roster, FIRST)
    with pytest.raises(IdentityError, match="another signing key"):
        book(site).take(other_log, PLAN.roster, FIRST)
    stranger = OtherLog(private, "south").give()
    with pytest.raises(ProtocolError, match="no other site of the roster"):
        book(site).take(stranger, PLAN.roster, FIRST)
    (own,) = prepare(site)
    elsewhere = Checkpoint.read(own.signed).model_copy(update={"size": 1}).sign(site.live.current)
    with pytest.raises(ProtocolError, match="no other site of the roster"):
        book(site).take(GivenCheckpoint(elsewhere), PLAN.roster, FIRST)


# --- crashes --------------------------------------------------------------------------------------


def test_no_crash_makes_a_second_checkpoint_or_charge(private, tmp_path):
    """Killed after each durable step, and done again from what is stored."""
    others = {name: OtherLog(private, name) for name in SITES if name != "north"}
    given = {name: one.give() for name, one in others.items()}
    crashes = 0
    for crash_at in range(1, 100):
        world = World(tmp_path / str(crash_at), private.authority, POLICY, private._absent)
        enrolled, _ = world.site("north")
        world.agreed(enrolled, PLAN)
        enrolled.store.close()
        steps: list[str] = []

        def step(name: str, steps: list[str] = steps, crash_at: int = crash_at) -> None:
            steps.append(name)
            if len(steps) == crash_at:
                raise Crash(name)

        crashed = attempt(world, given, step)
        crashes += crashed
        if crashed:
            assert not attempt(world, given, lambda name: None)
        site = Site(world.home("north"))
        site.log.verify()
        (logged,) = entries(site, EntryKind.CHECKPOINT)
        assert len(entries(site, EntryKind.BUDGET_RESERVED)) == 1
        own = book(site).newest("north")
        assert own is not None
        assert logged.body["checkpoint_hash"] == own.hash.hex()
        assert site.gate.manifests.countersigned_by(site.gate.manifests.newest_accepted(FIRST)) == [
            "north",
            "west",
        ]
        site.store.close()
        if not crashed:
            break
    assert crashes >= 14


def attempt(world: World, given: dict[str, GivenCheckpoint], on_step) -> bool:
    """From the order to the countersignature; True if it was killed on the way."""
    site = Site(world.home("north"), on_step)
    try:
        (own,) = prepare(site)
        for one in given.values():
            book(site).take(one, PLAN.roster, FIRST)
        Chain(world, PLAN).ask(site, checkpoints=hashes(own, given), signers=("west",))
    except Crash:
        return True
    finally:
        with suppress(Exception):
            site.store.close()
    return False


def test_a_store_of_an_earlier_schema_is_refused(private):
    site, home = private.site("north")
    site.store._db.execute("PRAGMA user_version = 3")
    site.store.close()
    with pytest.raises(IntegrityError, match="schema 3"):
        SiteStore(home)
