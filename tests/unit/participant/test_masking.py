"""Masked rounds at the site: against coordinators that relay, that lie, and through crashes."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from fedpalm.errors import (
    ContributionReuseError,
    EgressRefusedError,
    MaskingMessageError,
    PlanNotApprovedError,
    PolicyError,
    StaleRoundError,
    StateError,
)
from fedpalm.ledger.bodies import EntryKind
from fedpalm.methods.contribution import masking_terms
from fedpalm.plan import Continues
from fedpalm.rounds.manifest import Countersignature
from fedpalm.secagg.messages import SiteKeys, signed
from fedpalm.secagg.unmasking import Step
from fedpalm.wire.statements import from_wire
from fedpalm.wire.v1 import federation_pb2 as wire
from participant import rounds
from participant.ending import Ended, ExitAfter
from participant.outgoing import PayloadKind, Place, require_outgoing
from participant.peers import PeerBook
from participant.plan_words import masking_words
from participant.policy import Policy, violations
from tests.support.agreement import countersignature
from tests.support.aio import in_loop
from tests.support.masked_rounds import MaskedCoordinator, masked_plan
from tests.support.participant import SITES, Crash, Site
from tests.support.rounds import Chain

RUN = "toy-1"
PLACE = Place(RUN, 1, 1)


@pytest.fixture(autouse=True)
def _quickly(monkeypatch):
    monkeypatch.setattr(rounds, "COUNTERSIGNATURE_POLL_S", 0.01)
    monkeypatch.setattr(rounds, "COUNTERSIGNATURE_POLL_CAP_S", 0.05)


def _sites(world):
    return [world.site(name)[0] for name in SITES]


async def _run_all(sites, coordinator):
    return await asyncio.gather(*(site.run(coordinator) for site in sites))


def _encoded_sum(sites, round_number=1):
    total = None
    for site in sites:
        again = Site(site.home)
        path = again.store.update(RUN, round_number).path
        vector = np.fromfile(path, "<u4")
        total = vector if total is None else total + vector
        again.store.close()
    return total


def _secrets(site):
    return [path for path in site.home.masking.iterdir() if path.suffix == ".secret"]


@in_loop
async def test_a_masked_round_gives_the_exact_sum_and_nothing_else_of_any_site(world):
    coordinator, sites = MaskedCoordinator(world), _sites(world)
    outcomes = await _run_all(sites, coordinator)
    assert all(one.completed for one in outcomes)
    assert np.array_equal(coordinator.sums[0], _encoded_sum(sites))
    for site in sites:
        again = Site(site.home)
        plain = again.store.update(RUN, 1).payload_hash.hex()
        logged = [e.body for e in again.log.entries() if e.kind is EntryKind.EGRESS]
        assert plain not in {body["payload_hash"] for body in logged}
        steps = [b["payload"] for b in logged if b["payload"].startswith(("masking", "update"))]
        assert [one for one in steps if one != "update_offset"] == [
            *("masking_keys", "masking_boxes", "update", "masking_agreement", "masking_reveal")
        ]
        assert _secrets(site) == []
        assert not list(site.home.state.glob("*.masked"))
        again.store.close()


@in_loop
async def test_an_aborted_attempt_is_dead_and_the_next_masks_the_same_update_afresh(world):
    coordinator, sites = MaskedCoordinator(world), _sites(world)
    coordinator.abort_at = {(1, 1): Step.AGREEMENTS}
    assert all(one.completed for one in await _run_all(sites, coordinator))
    for name in SITES:
        first, second = (coordinator.sent[name, 1, attempt, "inputs"] for attempt in (1, 2))
        assert len(first) == len(second) == 1
        assert first != second
    assert np.array_equal(coordinator.sums[0], _encoded_sum(sites))
    assert all(site.methods[0].trained == [1] for site in sites)


@in_loop
async def test_after_a_reveal_no_further_attempt_of_the_round_is_joined(world):
    coordinator, sites = MaskedCoordinator(world), _sites(world)
    coordinator.abort_at = {(1, 1): Step.REVEALS}
    tasks = [asyncio.create_task(site.run(coordinator)) for site in sites]
    async with asyncio.timeout(20):
        while not all(
            any("gave shares in attempt 1" in line for line in site.lines) for site in sites
        ):
            await asyncio.sleep(0.01)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert not [key for key in coordinator.sent if key[2] == 2]
    assert coordinator.sums == []


STEPS = ("masking file written", "masked file written", "masking memory written")


@in_loop
@pytest.mark.parametrize("at", range(1, 13))
async def test_a_crash_at_a_durable_step_never_lets_two_vectors_or_both_shares_out(world, at):
    coordinator, sites = MaskedCoordinator(world), _sites(world)
    count = 0

    def on_step(step):
        nonlocal count
        if step in STEPS:
            count += 1
            if count == at:
                raise Crash(step)

    crashing = Site(sites[0].home, on_step)
    sites[0].store.close()
    others = [asyncio.create_task(site.run(coordinator)) for site in sites[1:]]
    with pytest.raises(Crash):
        await crashing.run(coordinator)
    outcome = await Site(sites[0].home).run(coordinator)
    assert outcome.completed
    assert all(one.completed for one in await asyncio.gather(*others))
    assert np.array_equal(coordinator.sums[0], _encoded_sum(sites))
    assert all(len(seen) == 1 for seen in coordinator.sent.values())


def _trained(world):
    """A site whose update of round 1 is stored and whose manifest all have signed."""
    plan = masked_plan()
    site, _ = world.site("north")
    world.agreed(site, plan)
    manifest = Chain(world, plan).ask(site, signers=("east", "west"))
    method = site.trainer.prepare(RUN, plan)
    shared = method.initial_vector()
    update, state = site.trainer.train(RUN, plan, 1, shared, site.gate.budget)
    model = bytes.fromhex(manifest.model_hash)
    encoded = site.gate.encode_update(
        RUN, 1, model, method.layout, update, shared=shared, private=state
    )
    site.store.commit_round(RUN, 1, state, encoded)
    return site, plan, manifest


def _worker(site):
    from participant.masking import MaskingWorker

    return MaskingWorker(site.store, site.gate, site.live, site)


def test_under_a_masked_plan_the_plain_update_has_no_way_out(world):
    site, _, _ = _trained(world)
    with pytest.raises(EgressRefusedError, match="unmasked, none leaves"):
        site.gate.release_update(RUN, 1, 1)
    assert site.store.row("SELECT 1 FROM releases WHERE payload = 'update'") is None


def test_an_update_of_a_model_that_was_masked_never_leaves_unmasked_and_the_other_way_round(world):
    site, plan, manifest = _trained(world)
    update = site.store.update(RUN, 1)
    _worker(site)._begin(plan, PLACE, manifest)
    with site.store.transaction() as db:
        site.gate.masked.require_never_masked(db, update.model_hash)
        db.execute("UPDATE masked_attempts SET masked_hash = ?, stage = 'dead'", (bytes(32),))
        with pytest.raises(ContributionReuseError, match="unmasked, none leaves any more"):
            site.gate.masked.require_never_masked(db, update.model_hash)


def test_an_update_that_left_unmasked_is_never_masked_afterwards(world):
    site, plan, manifest = _trained(world)
    update = site.store.update(RUN, 1)
    with site.store.transaction() as db:
        db.execute(
            "INSERT INTO releases (seq, payload, place, recipient, payload_hash, payload_bytes, "
            "released_ms) VALUES (999, 'update', '', '', ?, 0, 0)",
            (update.payload_hash,),
        )
    with pytest.raises(ContributionReuseError, match="has left this site unmasked"):
        _worker(site)._begin(plan, PLACE, manifest)
    assert site.gate.masked.row(PLACE) is None


def test_a_home_that_comes_back_without_its_memory_masks_nothing_more(world):
    site, plan, manifest = _trained(world)
    worker = _worker(site)
    worker.start()
    worker._begin(plan, PLACE, manifest)
    (site.home.masking / "memory.json").unlink()
    _worker(site).start()
    _worker(site).start()
    assert not (site.home.masking / "memory.json").exists()
    with pytest.raises(ContributionReuseError, match="came from a backup"):
        site.gate.masked.memory()
    with pytest.raises(ContributionReuseError, match="came from a backup"):
        _worker(site)._begin(plan, PLACE, manifest)


def test_an_attempt_of_another_boot_is_dead_and_its_file_is_erased(world):
    site, plan, manifest = _trained(world)
    _worker(site)._begin(plan, PLACE, manifest)
    assert len(_secrets(site)) == 1
    site.gate.masked._boot = lambda: "another boot"
    worker = _worker(site)
    worker.start()
    assert _secrets(site) == []
    assert site.gate.masked.row(PLACE).stage == "dead"
    assert "another boot" in site.lines[-1]


def test_a_database_of_before_the_attempt_does_not_begin_it_again(world):
    site, plan, manifest = _trained(world)
    site.store.close()
    old = site.home.database.read_bytes()
    site = Site(site.home)
    worker = _worker(site)
    worker._begin(plan, PLACE, manifest)
    site.store.close()
    for suffix in ("-wal", "-shm"):
        site.home.database.with_name(site.home.database.name + suffix).unlink(missing_ok=True)
    site.home.database.write_bytes(old)
    site = Site(site.home)
    worker = _worker(site)
    worker.start()
    assert _secrets(site) == []
    with pytest.raises(StaleRoundError, match=r"not after attempt 1\.1"):
        worker._begin(plan, PLACE, manifest)


def test_a_state_file_that_is_not_the_rows_kills_the_attempt(world):
    site, plan, manifest = _trained(world)
    _worker(site)._begin(plan, PLACE, manifest)
    (path,) = _secrets(site)
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    assert site.gate.masked.load(PLACE, masking_terms(plan), "north") is None
    assert site.gate.masked.row(PLACE).stage == "dead"


def test_a_peer_with_another_signing_key_is_told_of_and_used_once_a_person_accepts_it(world):
    site, _, manifest = _trained(world)
    worker = _worker(site)
    assert worker.signing_keys(manifest) is not None
    row = site.store.row("SELECT key FROM peers WHERE site = 'east'")
    with site.store.transaction() as db:
        db.execute("UPDATE peers SET key = (SELECT key FROM peers WHERE site = 'west') "
                   "WHERE site = 'east'")  # fmt: skip
    assert worker.signing_keys(manifest) is None
    assert worker.signing_keys(manifest) is None
    assert sum("peers accept east" in line for line in site.lines) == 1
    book = PeerBook(site.store)
    named = book.get("east").other_key_id
    with pytest.raises(StateError, match="not the one that was named"):
        book.accept(site.log, "east", "0" * 64)
    assert worker.signing_keys(manifest) is None
    accepted = book.accept(site.log, "east", named)
    assert accepted.key.public_bytes_raw() == row["key"]
    assert accepted.other is None
    assert worker.signing_keys(manifest) is not None


def test_a_key_that_nobody_has_signed_with_is_not_remembered_at_the_manifests_word(world):
    site, _ = world.site("north")
    plan = masked_plan()
    world.agreed(site, plan)
    book, worker = PeerBook(site.store), _worker(site)
    lie = {**world.signing_keys(SITES), "east": world.signing_keys(("south",))["south"]}
    chain = Chain(world, plan)
    told = chain.ask(site, signers=("west",), signing_keys=lie)
    assert worker.signing_keys(told) is not None
    assert [peer.site for peer in book.all()] == ["west"]
    true = chain.ask(site, attempt=2, signers=("west",))
    assert worker.signing_keys(true) is not None
    newest = site.gate.manifests.chain(RUN)[-1]
    assert site.gate.manifests.take_countersignature(
        true, countersignature(world.absent("east"), newest)
    )
    said = [SiteKeys(name, b"", b"", b"", b"") for name in true.cohort]
    worker._require_countersigned(Place(RUN, 1, 2), said)
    assert book.get("east").key == true.verifying_keys["east"]


@in_loop
async def test_a_cohort_member_that_never_countersigns_delays_nobodys_masking_keys(world):
    coordinator = MaskedCoordinator(world, masked_plan(sites=("east", "north", "south", "west")))
    sites = _sites(world)
    tasks = [asyncio.create_task(site.run(coordinator)) for site in sites]
    async with asyncio.timeout(20):
        while not all((name, 1, 1, "keys") in coordinator.sent for name in SITES):
            await asyncio.sleep(0.01)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert "south" not in coordinator.countersignatures[1, 1]


def test_masking_keys_of_a_site_that_has_not_countersigned_are_not_used(world):
    site, _, manifest = _trained(world)
    with site.store.transaction() as db:
        db.execute("DELETE FROM countersignatures WHERE site = 'east'")
    said = [SiteKeys(name, b"", b"", b"", b"") for name in manifest.cohort]
    _worker(site)._require_countersigned(PLACE, [one for one in said if one.site != "east"])
    with pytest.raises(MaskingMessageError, match="east gave masking keys without"):
        _worker(site)._require_countersigned(PLACE, said)


@in_loop
async def test_a_site_from_which_a_countersignature_is_kept_sends_no_shares(world):
    roster = ("east", "north", "south", "west")

    class Withholding(MaskedCoordinator):
        async def FetchCountersignatures(self, site, request):
            async for said in super().FetchCountersignatures(site, request):
                if (site, opened(said).site) != ("west", "east"):
                    yield said

    def opened(said):
        return Countersignature.read(from_wire(said))

    coordinator = Withholding(world, masked_plan(sites=roster))
    coordinator.expected = roster
    sites = {name: world.site(name)[0] for name in roster}
    tasks = [asyncio.create_task(site.run(coordinator)) for site in sites.values()]
    async with asyncio.timeout(20):
        while not any("east gave masking keys without" in line for line in sites["west"].lines):
            await asyncio.sleep(0.01)
        while len([key for key in coordinator.sent if key[3] == "boxes"]) < 3:
            await asyncio.sleep(0.01)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert ("west", 1, 1, "keys") in coordinator.sent
    assert ("west", 1, 1, "boxes") not in coordinator.sent
    again = Site(sites["west"].home)
    assert again.gate.masked.row(PLACE).stage == "dead"
    assert _secrets(again) == []
    again.store.close()


@in_loop
async def test_what_an_attempt_kept_is_gone_once_it_is_over_and_not_at_the_end_of_the_run(world):
    """Looked at when a site signs the next manifest, before it masks anything again."""
    left, looked = {}, []

    class Looking(MaskedCoordinator):
        def Countersign(self, site, request):
            place = (request.ref.round, request.ref.attempt)
            home = world.home(site)
            looked.append(place)
            left[site, place] = [
                *(path.name for path in home.masking.glob("*.secret")),
                *(path.name for path in home.state.glob("*.masked")),
            ]
            return super().Countersign(site, request)

    coordinator, sites = Looking(world, masked_plan(2)), _sites(world)
    coordinator.abort_at = {(1, 1): Step.AGREEMENTS}
    assert all(one.completed for one in await _run_all(sites, coordinator))
    assert set(looked) == {(1, 1), (1, 2), (2, 1)}
    assert not any(left.values()), left


def test_under_a_policy_of_confirmed_peers_there_are_no_keys_before_all_of_them_are(world):
    site, plan, manifest = _trained(world)
    site.home.policy.write_text('peers = "confirmed"\n')
    worker, book = _worker(site), PeerBook(site.store)
    assert worker.signing_keys(manifest) is None
    with pytest.raises(StateError, match="may not be used"):
        worker._begin(plan, PLACE, manifest)
    assert "nobody here has compared the signing keys of east, west" in site.lines[-1]
    book.confirm(site.log, "east", book.get("east").key_id)
    assert worker.signing_keys(manifest) is None
    assert "signing keys of west," in site.lines[-1]
    book.confirm(site.log, "west", book.get("west").key_id)
    assert worker.signing_keys(manifest) == manifest.verifying_keys


def _keyed(world):
    site, plan, manifest = _trained(world)
    _worker(site)._begin(plan, PLACE, manifest)
    return site, plan


def test_an_attempt_of_a_plan_that_was_refused_meanwhile_says_nothing_more(world):
    site, _ = _keyed(world)
    site.desk.plans.refuse(RUN, "changed my mind")
    with pytest.raises(PlanNotApprovedError):
        site.gate.release_masked(PLACE)


def test_a_dead_attempt_releases_nothing(world):
    site, _ = _keyed(world)
    site.gate.masked.kill(RUN, 1)
    with pytest.raises(StaleRoundError, match="no masked attempt goes on"):
        site.gate.release_masked(PLACE)


def test_a_step_that_is_sent_again_is_the_same_bytes_under_the_same_log_entry(world):
    site, _ = _keyed(world)
    (first, _), (second, _) = site.gate.release_masked(PLACE), site.gate.release_masked(PLACE)
    assert (first.seq, first.payload_hash) == (second.seq, second.payload_hash)
    require_outgoing(first, PayloadKind.MASKING_KEYS)
    first.messages[0].keys.seed_hash = bytes(32)
    with pytest.raises(EgressRefusedError, match="not the one that was logged"):
        require_outgoing(first, PayloadKind.MASKING_KEYS)


def test_a_cohort_below_the_smallest_sum_is_no_attempt(world):
    plan = masked_plan()
    draft = plan.draft.model_copy(update={"quorum": 2})
    shrunk = plan.model_copy(update={"draft": draft})
    site, _ = world.site("north")
    assert any(one.startswith("masking: quorum 2") for one in violations(Policy(), shrunk))
    site.desk.plans.propose(RUN, shrunk, world.offer(shrunk))
    with pytest.raises(PolicyError):
        site.desk.plans.approve(RUN)


@in_loop
async def test_a_coordinator_that_swaps_boxes_ends_the_attempt_before_anything_is_masked(world):
    class Swapping(MaskedCoordinator):
        def relayed(self, site, collection, step):
            if step is Step.BOXES and site == "west":
                return list(collection.boxes_for("east"))
            return super().relayed(site, collection, step)

    coordinator, sites = Swapping(world), _sites(world)
    tasks = [asyncio.create_task(site.run(coordinator)) for site in sites]
    west = sites[SITES.index("west")]
    async with asyncio.timeout(20):
        while not any("masking: " in line and "Safe" in line for line in west.lines):
            await asyncio.sleep(0.01)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert ("west", 1, 1, "inputs") not in coordinator.sent
    again = Site(west.home)
    assert again.gate.masked.row(PLACE).stage == "dead"
    assert _secrets(again) == []
    again.store.close()


@in_loop
async def test_a_site_to_which_a_box_does_not_open_says_so_and_masks_the_same_update_next_time(
    world,
):
    class Junk(MaskedCoordinator):
        complaints = ()

        def relayed(self, site, collection, step):
            said = super().relayed(site, collection, step)
            if (site, step, self.attempt) != ("west", Step.BOXES, 1):
                return said
            return [
                replace(box, shares=bytes(len(box.shares))) if box.sender == "east" else box
                for box in said
            ]

        def _keep(self, after):
            if after.complaints:
                self.complaints = tuple(after.complaints.values())
                self.abort("boxes do not open")
            else:
                super()._keep(after)

    coordinator, sites = Junk(world), _sites(world)
    assert all(one.completed for one in await _run_all(sites, coordinator))
    (complaint,) = coordinator.complaints
    assert (complaint.site, complaint.accused) == ("west", ("east",))
    west = sites[SITES.index("west")]
    assert any("this site says so to the coordinator" in line for line in west.lines)
    assert any("complaint sent" in line for line in west.lines)
    assert west.methods[0].trained == [1]
    assert np.array_equal(coordinator.sums[0], _encoded_sum(sites))
    again = Site(west.home)
    masked = "SELECT masked_hash FROM masked_attempts WHERE attempt = 1"
    assert again.store.row(masked)["masked_hash"] is None
    sent = [e.body["payload"] for e in again.log.entries() if e.kind is EntryKind.EGRESS]
    assert sent.count("masking_complaint") == sent.count("update") == 1
    again.store.close()


@in_loop
async def test_masking_keys_that_are_signed_with_the_key_of_an_earlier_admission_end_the_attempt(
    world,
):
    class Replaying(MaskedCoordinator):
        def relayed(self, site, collection, step):
            said = super().relayed(site, collection, step)
            if (site, step) != ("west", Step.KEYS):
                return said
            context, earlier = collection.facts.context, world.absent("east").signing_key
            return [signed(one, context, earlier) if one.site == "east" else one for one in said]

    coordinator, sites = Replaying(world), _sites(world)
    tasks = [asyncio.create_task(site.run(coordinator)) for site in sites]
    west = sites[SITES.index("west")]
    async with asyncio.timeout(20):
        while not any("masking: " in line and "Safe" in line for line in west.lines):
            await asyncio.sleep(0.01)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert ("west", 1, 1, "boxes") not in coordinator.sent


def test_policy_and_review_say_what_masking_asks_and_gives():
    plan = masked_plan()
    assert violations(Policy(masking="required"), plan) == []
    assert any(one.startswith("min_colluders") for one in violations(Policy(min_colluders=2), plan))
    words = " ".join(masking_words(plan))
    assert "sum of at least 3 sites" in words
    assert "WARNING: the round fails as soon as one site is away" in words


def test_while_the_policy_cannot_be_used_small_messages_leave_and_masking_does_not(world):
    site, _ = _keyed(world)
    site.home.policy.write_text("max_rounds = 'many'\n")
    require_outgoing(site.gate.release_hello(), PayloadKind.HELLO)
    with pytest.raises(PolicyError):
        site.gate.release_masked(PLACE)


@pytest.mark.parametrize(("approved", "ends"), [(True, False), (False, True)])
def test_an_amended_run_ends_an_agent_only_if_its_successor_is_not_approved(world, approved, ends):
    site, plan = _keyed(world)
    worker = site.agent(MaskedCoordinator(world, plan), ExitAfter.RUN)._runs
    named = Continues(run=RUN, plan_hash=plan.hash.hex(), rounds_done=0, model=plan.initial_model)
    after = masked_plan(continues=named)
    site.desk.plans.propose("toy-2", after, world.offer(after, "toy-2"))
    (site.desk.plans.approve if approved else site.desk.plans.refuse)("toy-2")
    worker._end_after_run(wire.RunEnded(run_id=RUN, reason="amended: one more site"))
    if ends:
        with pytest.raises(Ended):
            worker._decide_amended(worker._amended)
    else:
        worker._decide_amended(worker._amended)
        assert worker._amended is None
