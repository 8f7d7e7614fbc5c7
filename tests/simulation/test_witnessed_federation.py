"""Rounds under differential privacy, with every log witnessed: a whole federation in one process."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from coordinator.cli import main
from fedpalm.errors import (
    ForkError,
    RolledBackError,
    SenderMismatchError,
    StaleRoundError,
    StateError,
)
from fedpalm.ledger.bodies import EntryKind
from fedpalm.ledger.checkpoint import Checkpoint, GivenCheckpoint
from fedpalm.ledger.merkle import MerkleTree, verify_consistency
from fedpalm.privacy.accounting import Charge
from fedpalm.rounds.events import RoundRef
from fedpalm.rounds.machine import Round, RoundState
from fedpalm.rounds.run import RunState
from fedpalm.wire import checkpoints
from fedpalm.wire.statements import from_wire
from fedpalm.wire.v1 import federation_pb2 as wire
from participant.log import SiteLog
from participant.store import SiteStore
from tests.support.aio import in_loop
from tests.support.participant import SITES, Site, make_plan
from tests.support.whole import RUN, WholeFederation, private_plan, without_prepare


@pytest.fixture(autouse=True)
def cheap_accountant(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a round costs is somebody else's test."""

    def epsilon(charges: Sequence[Charge], delta: float) -> float:
        return sum(one.steps for one in charges) / 100

    monkeypatch.setattr("participant.budget.charged_epsilon", epsilon)


@asynccontextmanager
async def federation(root: Path, **plan: object) -> AsyncIterator[WholeFederation]:
    whole = WholeFederation(root, private_plan(**plan))  # type: ignore[arg-type]
    whole.boot()
    try:
        yield whole
    finally:
        await whole.stop_all()


def two_gave(current: Round) -> bool:
    return current.state is RoundState.OPEN and len(current.prepared) == 2


def two_delivered(current: Round) -> bool:
    return current.state is RoundState.COLLECTING and len(current.delivered) == 2


def log_of(whole: WholeFederation, name: str) -> list[tuple[EntryKind, dict[str, object], bytes]]:
    store = SiteStore(whole.world.home(name))
    log = SiteLog(store, Site(whole.world.home(name)).identity.signing_key)
    log.verify()
    entries = [(one.kind, dict(one.body), one.to_bytes()) for one in log.entries()]
    store.close()
    return entries


def check_witnessed(whole: WholeFederation) -> None:
    """Each manifest names a fresh checkpoint of each of its sites; every site's log is as it said."""
    records = whole.coordinator.runs.checkpoints
    for manifest, _ in whole.manifests():
        assert sorted(manifest.checkpoints) == manifest.cohort
        for site, checkpoint_hash in manifest.checkpoints.items():
            place = records.place(checkpoint_hash)
            assert place is not None
            said = Checkpoint.read(records.given(place[1]).signed)
            assert (said.site, said.round, said.attempt) == (
                site,
                manifest.round,
                manifest.attempt,
            )
    for name in whole.plan.roster:
        entries = log_of(whole, name)
        tree = MerkleTree(stored for _, _, stored in entries)
        given = [body for kind, body, _ in entries if kind is EntryKind.CHECKPOINT]
        for one in given:
            assert tree.root(int(str(one["size"]))).hex() == one["root"]
        for one, later in pairwise(given):
            first, second = int(str(one["size"])), int(str(later["size"]))
            proof = tree.consistency_proof(first, second)
            verify_consistency(first, tree.root(first), second, tree.root(second), proof)


@in_loop
async def test_every_checkpoint_of_a_run_is_witnessed_by_all(tmp_path):
    async with federation(tmp_path, rounds=3) as whole:
        whole.start()
        await whole.ended()
        assert whole.run.state is RunState.COMPLETED
        assert [manifest.ref.round for manifest, _ in whole.manifests()] == [1, 2, 3]
        for manifest, _ in whole.manifests():
            assert whole.countersigners(manifest) == set(SITES)
        check_witnessed(whole)


@in_loop
async def test_a_checkpoint_shows_the_reservation_of_its_round(tmp_path):
    async with federation(tmp_path) as whole:
        whole.start()
        await whole.ended()
        for name in SITES:
            entries = log_of(whole, name)
            reserved = {
                body["round"]: seq
                for seq, (kind, body, _) in enumerate(entries)
                if kind is EntryKind.BUDGET_RESERVED
            }
            given = {
                body["round"]: body["size"]
                for kind, body, _ in entries
                if kind is EntryKind.CHECKPOINT
            }
            assert sorted(reserved) == [1, 2]
            assert all(reserved[number] < given[number] for number in reserved)


@in_loop
async def test_a_closing_checkpoint_ends_a_run(tmp_path):
    async with federation(tmp_path) as whole:
        whole.start()
        await whole.ended()
        for name in SITES:
            newest = whole.coordinator.runs.checkpoints.newest_of(name)
            assert newest is not None
            closing = Checkpoint.read(newest.signed)
            assert (closing.run, closing.round, closing.attempt) == (RUN, 0, 0)
            kinds = [kind for kind, _, _ in log_of(whole, name)[: closing.size]]
            assert kinds.count(EntryKind.BUDGET_COMMITTED) == 2


@in_loop
async def test_a_site_that_gives_no_checkpoint_is_not_in_the_cohort(tmp_path):
    async with federation(tmp_path) as whole:
        whole.bend = without_prepare("west")
        whole.start()
        await whole.ended(overdue=two_gave)
        assert whole.run.state is RunState.COMPLETED
        assert {tuple(manifest.cohort) for manifest, _ in whole.manifests()} == {("east", "north")}


@in_loop
async def test_a_site_without_budget_is_not_in_the_cohort(tmp_path):
    async with federation(tmp_path) as whole:
        policy = whole.world.home("west").policy
        policy.write_text(policy.read_text().replace("max_epsilon = 100.0", "max_epsilon = 0.3"))
        whole.start()
        await whole.ended(overdue=lambda one: two_gave(one) and whole.told("west", "budget"))
        cohorts = [tuple(manifest.cohort) for manifest, _ in whole.manifests()]
        assert cohorts == [SITES, ("east", "north")]
        reserved = [
            body["round"]
            for kind, body, _ in log_of(whole, "west")
            if kind is EntryKind.BUDGET_RESERVED
        ]
        assert reserved == [1]


@in_loop
async def test_too_few_checkpoints_abort_the_attempt(tmp_path):
    async with federation(tmp_path, max_attempts=1) as whole:
        whole.bend = lambda site, method, reply: (
            reply if site == "east" else without_prepare(site)(site, method, reply)
        )
        whole.start()
        await whole.until(lambda: whole.run.current.prepared == {"east"})
        whole.ring()
        assert whole.run.state is RunState.PAUSED
        assert "1 of 3 sites gave a checkpoint in time" in whole.run.reason
        assert whole.manifests() == []


@in_loop
async def test_a_site_that_was_away_catches_up_over_what_it_missed(tmp_path):
    async with federation(tmp_path, rounds=4) as whole:
        await whole.round_without(2, "west")
        await whole.until(lambda: whole.run.current.ref.round == 3)
        whole.start("west")
        await whole.ended()
        check_witnessed(whole)
        assert whole.manifests()[1][0].cohort == ["east", "north"]
        last, _ = whole.manifests()[-1]
        assert last.cohort == list(SITES)
        assert whole.countersigners(last) == set(SITES)
        store = SiteStore(whole.world.home("west"))
        held = {row["hash"].hex() for row in store.rows("SELECT hash FROM checkpoints")}
        store.close()
        for manifest, _ in whole.manifests():
            assert set(manifest.checkpoints.values()) <= held


@pytest.mark.parametrize("method", ["GiveCheckpoint", "FetchCheckpoints", "Countersign", "JoinRun"])
@in_loop
async def test_calls_that_are_cut_are_made_again(tmp_path, method):
    async with federation(tmp_path) as whole:
        whole.cut_before = {("east", method), ("west", method)}
        whole.cut_after = {("north", method), ("west", method)}
        whole.start()
        await whole.ended()
        assert whole.run.state is RunState.COMPLETED
        check_witnessed(whole)
        given = [body for kind, body, _ in log_of(whole, "west") if kind is EntryKind.CHECKPOINT]
        places = [(body["round"], body["attempt"]) for body in given]
        assert len(places) == len(set(places))


@pytest.mark.parametrize("method", ["GiveCheckpoint", "Countersign", "UploadUpdate"])
@in_loop
async def test_a_coordinator_that_dies_after_a_call_goes_on(tmp_path, method):
    async with federation(tmp_path) as whole:
        whole.crash_after = {method}
        whole.start()
        await whole.ended()
        assert whole.run.state is RunState.COMPLETED
        assert whole.life == 2
        check_witnessed(whole)


# --- lies -----------------------------------------------------------------------------------------


@in_loop
async def test_a_home_from_a_backup_says_so_and_stops(tmp_path):
    async with federation(tmp_path, rounds=4) as whole:
        await whole.round_without(2, "west")
        whole.backup("west", tmp_path / "backup")
        await whole.until(lambda: whole.run.current.ref.round == 3)
        whole.start("west")
        await whole.until(lambda: len(whole.manifests()) == 3)
        await whole.stop("west")
        whole.restore("west", tmp_path / "backup")
        whole.start("west")
        task = whole.tasks.pop("west")

        def stopped() -> bool:
            if whole.run.current.ref.round == 3 and two_delivered(whole.run.current):
                whole.ring()
            return task.done()

        await whole.until(stopped)
        with pytest.raises(RolledBackError, match="does not know a checkpoint") as error:
            task.result()
        assert "newest copy of the whole home" in error.value.next_step
        await whole.ended(overdue=two_gave)
        assert whole.run.state is RunState.COMPLETED


@in_loop
async def test_a_checkpoint_that_the_coordinator_withholds_stops_that_site_alone(tmp_path):
    async with federation(tmp_path) as whole:

        def withhold(site, method, reply):
            if (site, method) == ("north", "FetchCheckpoints") and len(whole.manifests()) == 1:
                said = Checkpoint.read(checkpoints.from_wire(reply).signed)
                return None if said.site == "east" else reply
            return reply

        whole.bend = withhold
        whole.start()
        await whole.ended(
            overdue=lambda one: two_delivered(one) and whole.told("north", "east did not come")
        )
        assert whole.told("north", "of site east did not come")
        (first, _), (last, _) = whole.manifests()
        assert whole.countersigners(first) == {"east", "west"}
        assert whole.countersigners(last) == set(SITES)
        sent = {
            (body["round"], body["attempt"])
            for kind, body, _ in log_of(whole, "north")
            if kind is EntryKind.EGRESS and body["payload"] == "update"
        }
        assert sent == {(2, 1)}


@in_loop
async def test_a_forked_log_that_the_coordinator_relays_is_not_countersigned(tmp_path):
    async with federation(tmp_path, rounds=3, max_attempts=1) as whole:
        west = Site(whole.world.home("west")).live.current

        def fork(site, method, reply):
            if (site, method) != ("north", "FetchCheckpoints"):
                return reply
            given = checkpoints.from_wire(reply)
            said = Checkpoint.read(given.signed)
            if said.site != "west" or said.round < 2:
                return reply
            other = said.model_copy(update={"root": "0" * 64}).sign(west)
            return checkpoints.to_wire(GivenCheckpoint(other, given.proof))

        whole.bend = fork
        whole.start()
        await whole.ended(overdue=lambda one: one.ref.round > 1 and two_delivered(one))
        second = whole.manifests()[1][0]
        assert whole.countersigners(second) == {"east", "west"}
        assert whole.told("north", "not shown to go on from what it was")
        north = Site(whole.world.home("north"))
        conflicts = north.gate.manifests.checkpoints.conflicts()
        north.store.close()
        assert {Checkpoint.read(one.other).root for one in conflicts} == {"0" * 64}
        assert EntryKind.FORK_SEEN in {kind for kind, _, _ in log_of(whole, "north")}


@in_loop
async def test_the_coordinator_leaves_a_forked_log_out_and_keeps_the_evidence(tmp_path):
    async with federation(tmp_path, rounds=2) as whole:

        def deaf(site, method, reply):
            kind = reply.WhichOneof("kind") if method == "Instructions" else ""
            if site == "west" and kind == "prepare" and reply.prepare.ref.round == 2:
                forged.append(reply.prepare)
                return None
            return reply

        forged: list[wire.PrepareRound] = []
        whole.bend = deaf
        whole.start()
        await whole.until(lambda: forged)
        newest = Checkpoint.read(from_wire(forged[0].newest))
        identity = whole.sites["west"].live.current
        place = {"round": 2, "attempt": 1}
        give = whole.conductor.checkpoints.give
        shorter = newest.model_copy(update={**place, "size": newest.size - 1}).sign(identity)
        with pytest.raises(RolledBackError, match="shorter than it was"):
            give(RUN, RoundRef(2, 1), "west", [GivenCheckpoint(shorter)])
        other = newest.model_copy(update={**place, "root": "0" * 64}).sign(identity)
        with pytest.raises(ForkError, match="two histories"):
            give(RUN, RoundRef(2, 1), "west", [GivenCheckpoint(other)])
        replayed = GivenCheckpoint(newest.sign(identity))
        with pytest.raises(StaleRoundError, match="no checkpoint of site west came for it"):
            give(RUN, RoundRef(2, 1), "west", [replayed])
        with pytest.raises(SenderMismatchError):
            give(RUN, RoundRef(2, 1), "east", [replayed])
        records = whole.coordinator.runs.checkpoints
        assert [one.hash for one in records.conflicts("west")] == [shorter.hash, other.hash]
        await whole.ended(overdue=two_gave)
        assert [manifest.cohort for manifest, _ in whole.manifests()] == [
            list(SITES),
            ["east", "north"],
        ]


@in_loop
async def test_a_plan_without_differential_privacy_asks_for_nothing(tmp_path):
    whole = WholeFederation(tmp_path, make_plan(2))
    whole.boot()
    try:
        whole.start()
        await whole.ended()
        assert whole.run.state is RunState.COMPLETED
        assert [manifest.checkpoints for manifest, _ in whole.manifests()] == [{}, {}]
        with pytest.raises(StateError, match="no differential privacy"):
            whole.conductor.checkpoints.give(RUN, RoundRef(1, 1), "west", [])
        kinds = {kind for name in SITES for kind, _, _ in log_of(whole, name)}
        assert kinds.isdisjoint({EntryKind.CHECKPOINT, EntryKind.BUDGET_RESERVED})
    finally:
        await whole.stop_all()


# --- what the operator sees -----------------------------------------------------------------------


def audited(whole: WholeFederation) -> dict[str, Any]:
    result = CliRunner().invoke(main, ["audit", "--home", str(whole.home.root), "--json"])
    assert result.exit_code == 0, result.output
    return {one["site"]: one for one in json.loads(result.stdout)["sites"]}


@in_loop
async def test_the_operator_sees_who_witnessed_every_log(tmp_path):
    async with federation(tmp_path) as whole:
        nothing = audited(whole)["west"]
        assert (nothing["newest"], nothing["witnessed"], nothing["behind"]) == (None, None, [])
        whole.start()
        await whole.ended()
        found = audited(whole)
        last, _ = whole.manifests()[-1]
        for name in SITES:
            one = found[name]
            entries = log_of(whole, name)
            tree = MerkleTree(stored for _, _, stored in entries)
            assert one["newest"]["root"] == tree.root(one["newest"]["size"]).hex()
            assert one["newest"]["round"] == 0
            assert one["witnessed"]["checkpoint"] == last.checkpoints[name]
            assert one["witnessed"]["by"] == ["coordinator", *sorted(set(SITES) - {name})]
            assert (one["witnessed"]["of"], one["witnessed"]["enough"]) == (3, True)
            assert (one["refused"], one["behind"]) == ([], [])
        text = CliRunner().invoke(main, ["audit", "--home", str(whole.home.root)])
        assert "3 of 3" in text.output


@in_loop
async def test_the_operator_sees_who_is_behind(tmp_path):
    async with federation(tmp_path, rounds=2, colluders=0) as whole:
        whole.bend = without_prepare("west", 2)
        whole.start()
        await whole.ended(overdue=lambda one: one.ref.round == 2 and two_gave(one))
        found = audited(whole)
        assert found["west"]["behind"] == [
            "gave no checkpoint in time for round 2, attempt 1 of run toy-1"
        ]
        assert found["east"]["witnessed"]["by"] == ["coordinator", "north"]
        assert (found["east"]["witnessed"]["enough"], found["east"]["behind"]) == (True, [])
        assert found["west"]["witnessed"]["round"] == 1
        text = CliRunner().invoke(main, ["audit", "--home", str(whole.home.root)])
        assert "west: gave no checkpoint in time" in text.output


@in_loop
async def test_no_update_leaves_before_enough_witnesses_have_signed(tmp_path):
    """One of three may lie, so all three sign, whatever quorum the plan's author wrote."""
    async with federation(tmp_path, colluders=1, max_attempts=1) as whole:
        assert whole.plan.draft.quorum == 2
        whole.bend = lambda site, method, reply: (
            None
            if (site, method) == ("north", "FetchCheckpoints")
            and Checkpoint.read(checkpoints.from_wire(reply).signed).round == 2
            else reply
        )
        whole.start()
        await whole.until(lambda: len(whole.manifests()) == 2)
        second, _ = whole.manifests()[1]
        await whole.until(lambda: whole.countersigners(second) == {"east", "west"})
        await whole.until(lambda: whole.told("north", "did not come"))
        whole.ring()
        assert whole.run.reason.startswith("round 2 failed")
        for name in SITES:
            sent = [
                body["round"]
                for kind, body, _ in log_of(whole, name)
                if kind is EntryKind.EGRESS and body["payload"] == "update"
            ]
            assert sent == [1]
