"""The exchange of experts between three sites and a coordinator in memory."""

from __future__ import annotations

import asyncio
import re
import shutil
import sqlite3
import stat
import time
from contextlib import closing

import numpy as np
import pytest

from fedpalm.errors import (
    BudgetError,
    ConsentError,
    EgressRefusedError,
    IdentityError,
    IllegalTransitionError,
    IntegrityError,
    NotFoundError,
    PolicyError,
    RefusedError,
    SanctionExpiredError,
    SanctionRolledBackError,
    StateError,
    SwappedExpertError,
    VaultRolledBackError,
)
from fedpalm.exchange.consent import SALT_BYTES, Consent, Coverage, Sanction
from fedpalm.exchange.site import AllVerified, SiteState
from fedpalm.exchange.terms import ExchangeTerms
from fedpalm.ledger.bodies import EntryKind
from fedpalm.ledger.merkle import MerkleTree
from fedpalm.pki.hybrid import PRIVATE_BYTES, HybridKey
from fedpalm.pki.statement import SignedStatement
from participant.budget import BudgetBook
from participant.config import Home
from participant.ending import ExitAfter
from participant.exchange import ExchangeAgent
from participant.files import private_folder
from participant.outgoing import PayloadKind
from participant.release import refused
from participant.store import NewUpdate
from participant.vault import BLOB_EXTRA
from tests.support.agents import until
from tests.support.aio import in_loop
from tests.support.fake_coordinator import FakeCoordinator, exchange_terms
from tests.support.participant import SITES, Crash, Site, World, make_plan

EXCHANGE = "exchange-1"


async def _trained(world: World, sites=SITES) -> FakeCoordinator:
    """A coordinator and the homes of sites that have completed a run of one round."""
    coordinator = FakeCoordinator(world, make_plan(rounds=1, sites=sites), expected=sites)
    await asyncio.gather(*(Site(world.home(name)).run(coordinator) for name in sites))
    return coordinator


async def _decide(home, decision="approve") -> None:
    """What the site's person does, in a process of its own."""
    person = Site(home)
    await until(lambda: person.desk.book.all())
    exchange = person.desk.open_exchange(None)
    if decision == "approve":
        person.desk.approve(exchange)
    else:
        person.desk.refuse(exchange, decision)
    person.store.close()


@in_loop
async def test_experts_reach_every_other_site_after_every_yes_and_stay_in_its_state(world):
    coordinator = await _trained(world)
    coordinator.propose_exchange()
    homes = [world.home(name) for name in SITES]
    sites = [Site(home) for home in homes]
    agents = [asyncio.create_task(site.run(coordinator, ExitAfter.EXCHANGE)) for site in sites]
    await asyncio.gather(*(_decide(home) for home in homes))
    outcomes = await asyncio.gather(*agents)
    assert all(outcome.completed for outcome in outcomes)

    reopened = [Site(home) for home in homes]
    states = {site.config.site: site.store.load_state("toy-1") for site in reopened}
    for name, state in states.items():
        for other in SITES:
            if other != name:
                own = states[other]["closed_set.expert.weight"]
                assert np.array_equal(state[f"received.{other}.expert.weight"], own)
    secrets = [s["closed_set.expert.weight"].tobytes() for s in states.values()]
    travelled = b"".join(coordinator.sealed.values())
    assert not any(secret in travelled for secret in secrets)
    assert {name: set(one.experts) for name, one in coordinator.confirmed.items()} == {
        name: set(SITES) - {name} for name in SITES
    }
    for site in reopened:
        site.log.verify()
        kinds = [entry.kind for entry in site.log.entries()]
        assert kinds.count(EntryKind.EXCHANGE_APPROVED) == 1
        assert kinds.count(EntryKind.EXPERT_RELEASED) == 2
        assert kinds.count(EntryKind.EXPERT_RECEIVED) == 2
        sealed = [
            e.body
            for e in site.log.entries()
            if e.kind is EntryKind.EGRESS and e.body["payload"] == PayloadKind.SEALED_EXPERT
        ]
        others = sorted(name for name in SITES if name != site.config.site)
        released = [e.body for e in site.log.entries() if e.kind is EntryKind.EXPERT_RELEASED]
        assert [b["recipient"] for b in released] == [
            f"spiffe://unit/participant/{o}" for o in others
        ]
        assert [b["recipient"] for b in sealed] == ["spiffe://unit/coordinator/coordinator"]
        payloads = [e.body["payload"] for e in site.log.entries() if e.kind is EntryKind.EGRESS]
        last = len(payloads) - 1 - payloads[::-1].index("download_expert")
        assert payloads.index("expert_keys") > last
        assert site.desk.book.get(EXCHANGE).state is SiteState.COMPLETED
        assert site.desk.book.secrets(EXCHANGE) is None
        assert {path.suffix for path in site.home.state.iterdir()} == {".safetensors", ".update"}


@in_loop
async def test_one_no_cancels_for_all_and_nothing_is_sealed(world):
    coordinator = await _trained(world)
    coordinator.propose_exchange()
    homes = [world.home(name) for name in SITES]
    agents = [
        asyncio.create_task(Site(home).run(coordinator, ExitAfter.EXCHANGE)) for home in homes
    ]
    await asyncio.gather(_decide(homes[0]), _decide(homes[1]), _decide(homes[2], "not this year"))
    outcomes = await asyncio.gather(*agents)
    assert not any(outcome.completed for outcome in outcomes)
    assert coordinator.refusals == {"west": "not this year"}
    assert not coordinator.sealed
    for home in homes:
        site = Site(home)
        kinds = {e.kind for e in site.log.entries()}
        assert EntryKind.EXPERT_RELEASED not in kinds
        assert not list(home.state.glob("*.key"))


def test_a_crash_at_any_durable_step_of_the_exchange_seals_once_and_loses_nothing(world):
    asyncio.run(asyncio.wait_for(_crash_at_every_step(world), 240))


async def _crash_at_every_step(world: World) -> None:
    sites = ("north", "west")
    trained = await _trained(World(world.root / "trained", world.authority), sites)
    for crash_at in range(1, 1000):
        root = world.root / f"crash-{crash_at}"
        shutil.copytree(world.root / "trained", root)
        homes = [Home(root / name) for name in sites]
        coordinator = FakeCoordinator(world, make_plan(rounds=1, sites=sites), expected=sites)
        coordinator.models, coordinator.ended = trained.models, True
        coordinator.propose_exchange()
        steps: list[str] = []

        def dies(step: str, steps: list[str] = steps, at: int = crash_at) -> None:
            steps.append(step)
            if len(steps) == at:
                raise Crash(step)

        async def north(home: Home = homes[0], dies=dies, coordinator=coordinator) -> bool:
            try:
                await Site(home, dies).run(coordinator, ExitAfter.EXCHANGE)
            except Crash:
                coordinator.queues.pop("north", None)
                site = Site(home)
                if not site.desk.book.is_closed(EXCHANGE):
                    await site.run(coordinator, ExitAfter.EXCHANGE)
                return True
            return False

        crashed, *_ = await asyncio.gather(
            north(),
            Site(homes[1]).run(coordinator, ExitAfter.EXCHANGE),
            *(_decide(home) for home in homes),
        )
        # The fake asserts that no pair of sites ever gets other sealed bytes.
        assert coordinator.exchange_state == "completed", steps[-1]
        north_state = Site(homes[0]).store.load_state("toy-1")
        assert "received.west.expert.weight" in north_state
        Site(homes[0]).log.verify()
        if not crashed:
            break
    assert crash_at > 20


@pytest.fixture
def asked(world):
    """A site with a completed run and a proposal that nobody has answered."""

    @in_loop
    async def train() -> None:
        await _trained(world)

    train()
    site, _ = world.site("north")
    run = site.store.run("toy-1")
    exchange = site.desk.propose(run, exchange_terms(world, run.plan))
    yield site, exchange
    site.store.close()


def _consent(world, name):
    """The consent of another site to the same exchange."""
    other, _ = world.site(name)
    run = other.store.run("toy-1")
    other.desk.approve(other.desk.propose(run, exchange_terms(world, run.plan)))
    consent = other.desk.book.consent(EXCHANGE)
    other.store.close()
    return consent


def test_the_recipient_key_is_private_and_erased_with_a_no(asked):
    site, exchange = asked
    site.desk.approve(exchange)
    (key,) = site.home.state.glob("*.key")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert key.stat().st_size == PRIVATE_BYTES + SALT_BYTES + BLOB_EXTRA
    site.store.remove_orphans()
    assert key.exists()
    refused = site.desk.refuse(site.desk.book.get(EXCHANGE), "changed our mind")
    site.store.remove_orphans()
    assert refused.state is SiteState.DECLINED
    assert not key.exists()
    with pytest.raises(IllegalTransitionError):
        site.desk.approve(refused)


def test_approving_twice_keeps_the_first_consent(asked):
    site, exchange = asked
    site.desk.approve(exchange)
    first = site.desk.book.consent(EXCHANGE)
    site.desk.approve(site.desk.book.get(EXCHANGE))
    assert site.desk.book.consent(EXCHANGE) == first
    assert len(list(site.home.state.glob("*.key"))) == 1


def _meanwhile(site, act):
    """Another process of this site acts just before this one's next transaction begins."""
    person, begin = Site(site.home), site.store.transaction

    def late_transaction():
        site.store.transaction = begin
        act(person.desk)
        person.store.close()
        return begin()

    site.store.transaction = late_transaction


def _refuse(desk):
    desk.refuse(desk.book.get(EXCHANGE), "not any more")


def _all_consents(site, world):
    others = [_consent(world, name) for name in SITES if name != site.config.site]
    return [site.desk.book.consent(EXCHANGE), *others]


@pytest.mark.parametrize("step", ["propose", "approve"])
def test_a_refusal_in_another_process_is_never_undone(asked, world, step):
    site, exchange = asked
    if step == "propose":
        site.desk.approve(exchange)
        consents = _all_consents(site, world)
        run = site.store.run("toy-1")
        _meanwhile(site, _refuse)
        assert site.desk.propose(run, exchange_terms(world, run.plan)).state is SiteState.DECLINED
    else:
        consents = []
        _meanwhile(site, _refuse)
        with pytest.raises(IllegalTransitionError):
            site.desk.approve(exchange)
        assert not list(site.home.state.glob("*.key"))
    assert site.desk.book.get(EXCHANGE).state is SiteState.DECLINED
    with pytest.raises(EgressRefusedError, match="not approved"):
        site.gate.release_sealed_expert(EXCHANGE, consents)
    assert not list(site.home.state.glob("*.sealed"))


def test_a_refusal_that_was_decided_before_the_sealing_does_not_forget_it(asked, world):
    site, exchange = asked
    stale = site.desk.approve(exchange)
    consents = _all_consents(site, world)
    site.gate.release_sealed_expert(EXCHANGE, consents)
    declined = site.desk.refuse(stale, "too late")
    assert declined.state is SiteState.DECLINED
    assert declined.others == ("east", "west")
    assert site.desk.book.get(EXCHANGE).binds
    run = site.store.run("toy-1")
    with pytest.raises(SanctionRolledBackError, match="releases the experts once"):
        site.desk.propose(run, exchange_terms(world, run.plan, exchange_id="exchange-2", number=2))


def test_a_close_does_not_undo_a_refusal_in_another_process(asked):
    site, exchange = asked
    site.desk.approve(exchange)
    _meanwhile(site, _refuse)
    closed = site.desk.close(EXCHANGE, completed=False, reason="over")
    assert closed.state is SiteState.DECLINED
    assert site.desk.book.get(EXCHANGE).reason == "not any more"


def test_a_refusal_while_the_site_was_sealing_stops_the_release(asked, world):
    site, exchange = asked
    site.desk.approve(exchange)
    consents = _all_consents(site, world)
    _meanwhile(site, _refuse)
    with pytest.raises(EgressRefusedError, match="changed while this site was sealing"):
        site.gate.release_sealed_expert(EXCHANGE, consents)
    assert site.desk.book.get(EXCHANGE).state is SiteState.DECLINED
    kinds = {entry.kind for entry in site.log.entries()}
    assert EntryKind.EXPERT_RELEASED not in kinds
    assert not site.store.rows("SELECT * FROM sealed_experts")
    assert not list(site.home.state.glob("*.sealed"))


def test_an_expert_whose_training_nothing_paid_for_is_not_sealed(asked, world, monkeypatch):
    site, exchange = asked
    site.desk.approve(exchange)
    consents, looked_at = _all_consents(site, world), []

    def unpaid(book, plan, run_id):
        looked_at.append((plan.hash, run_id))
        raise refused("no charge pays for it")

    monkeypatch.setattr(BudgetBook, "require_trained", unpaid)
    with pytest.raises(EgressRefusedError, match="no charge pays"):
        site.gate.release_sealed_expert(EXCHANGE, consents)
    assert looked_at == [(bytes.fromhex(exchange.terms.plan_hash), exchange.terms.run)]
    assert EntryKind.EXPERT_RELEASED not in {entry.kind for entry in site.log.entries()}
    assert not list(site.home.state.glob("*.sealed"))


@pytest.mark.parametrize("policy", ["expert_exchange = false", "max_payload_mb = 0.0001", "oops"])
def test_a_policy_that_forbids_it_stops_the_yes_and_the_sealing_but_not_the_no(
    asked, world, policy
):
    site, exchange = asked
    site.desk.approve(exchange)
    consents = _all_consents(site, world)
    site.home.policy.write_text(policy + "\n")
    for release in (
        lambda: site.gate.release_answer(EXCHANGE),
        lambda: site.gate.release_sealed_expert(EXCHANGE, consents),
    ):
        with pytest.raises(PolicyError):
            release()
    assert not list(site.home.state.glob("*.sealed"))
    _refuse(site.desk)
    site.home.policy.write_text("expert_exchange = false\n")
    assert site.gate.release_answer(EXCHANGE).kind is PayloadKind.REFUSAL


def test_a_days_ceiling_holds_for_sealed_experts_and_leaves_no_half(asked, world):
    site, exchange = asked
    site.desk.approve(exchange)
    consents = _all_consents(site, world)
    with site.store.transaction() as db:
        db.execute("UPDATE releases SET payload_bytes = 0")
        db.execute(
            "UPDATE releases SET payload_bytes = 500000 WHERE seq IN (SELECT MAX(seq) FROM releases)"
        )

    def refused(room):
        """The bytes of the payload for which there was no room, and those before it."""
        site.home.policy.write_text(f"max_mb_per_day = {(500_000 + room) / 1e6}\n")
        with pytest.raises(PolicyError, match="last 24 hours") as caught:
            site.gate.release_sealed_expert(EXCHANGE, consents)
        return [
            int(number.replace(",", "")) for number in re.findall(r"[\d,]{3,}", caught.value.what)
        ]

    size, before, _ = refused(room=0)
    assert before == 500_000
    assert refused(room=size - 1)[0] == size
    assert site.desk.book.get(EXCHANGE).state is SiteState.APPROVED
    assert not site.store.rows("SELECT * FROM sealed_experts")
    assert EntryKind.EXPERT_RELEASED not in {entry.kind for entry in site.log.entries()}


def test_a_refusal_while_the_yes_was_on_its_way_is_still_to_be_sent(asked):
    site, exchange = asked
    site.desk.approve(exchange)
    _refuse(site.desk)
    site.desk.book.set_delivered(EXCHANGE, refusal=False)
    assert site.desk.book.unanswered() == [EXCHANGE]
    site.desk.book.set_delivered(EXCHANGE, refusal=True)
    assert site.desk.book.unanswered() == []


def test_a_proposal_for_another_plan_or_a_second_release_is_refused(asked, world):
    site, _ = asked
    run = site.store.run("toy-1")
    other = make_plan(rounds=2)
    with pytest.raises(RefusedError, match="another plan"):
        site.desk.propose(run, exchange_terms(world, other, exchange_id="exchange-2", number=2))
    with pytest.raises(SanctionRolledBackError, match="has its exchange already"):
        site.desk.propose(run, exchange_terms(world, run.plan, exchange_id="exchange-2"))


def test_a_later_exchange_ends_the_one_whose_end_this_site_missed(asked, world):
    site, exchange = asked
    site.desk.approve(exchange)
    run = site.store.run("toy-1")
    later = exchange_terms(world, run.plan, exchange_id="exchange-2", number=2)
    assert site.desk.propose(run, later).state is SiteState.ASKED
    assert site.desk.book.get(EXCHANGE).state is SiteState.CANCELLED
    assert site.desk.book.secrets(EXCHANGE) is None
    assert site.desk.approve(site.desk.book.get("exchange-2")).state is SiteState.APPROVED
    assert site.desk.propose(run, later).state is SiteState.APPROVED


def test_an_exchange_that_ended_without_this_site_can_no_more_be_approved(asked):
    site, exchange = asked
    closed = site.desk.close(EXCHANGE, completed=True, reason="")
    assert (closed.state, closed.reason) == (SiteState.CANCELLED, "it went on without this site")
    with pytest.raises(IllegalTransitionError):
        site.desk.approve(exchange)


def test_a_site_that_was_away_when_the_experts_froze_can_still_answer(world):
    site, _ = world.site("north")
    draft = make_plan(rounds=3).draft.model_copy(update={"expert_exchange": "freeze"})
    plan = make_plan(rounds=3, draft=draft)
    site.store.add_run("toy-1", plan)
    exchange = site.desk.propose(site.store.run("toy-1"), exchange_terms(world, plan))
    assert site.desk.refuse(exchange, "we were away").state is SiteState.DECLINED


def test_what_was_sealed_outlives_the_certificates_of_the_consents(asked, world, monkeypatch):
    site, exchange = asked
    site.desk.approve(exchange)
    consents = _all_consents(site, world)
    site.gate.release_sealed_expert(EXCHANGE, consents)
    sealed = site.desk.book.get(EXCHANGE)
    agent = ExchangeAgent(site.desk, site.gate, site.trainer, site, ExitAfter.NEVER)
    later = time.time() + 200 * 86400
    monkeypatch.setattr(type(site.store.clock), "now", lambda clock: later)
    with pytest.raises(ConsentError):
        Sanction(consents, sealed.terms, site.identity.anchors, now=later)
    assert agent._sanction(sealed).hash == sealed.sanction


def test_keys_do_not_leave_after_a_refusal(asked, world):
    site, exchange = asked
    site.desk.approve(exchange)
    consents = _all_consents(site, world)
    site.gate.release_sealed_expert(EXCHANGE, consents)
    sealed = site.desk.book.get(EXCHANGE)
    revealed = sealed.step(AllVerified(dict.fromkeys(sealed.others, b"x" * 32)))
    with site.store.transaction() as db:
        site.desk.book.put(db, revealed)
    _meanwhile(site, _refuse)
    with pytest.raises(EgressRefusedError, match="has changed meanwhile"):
        site.gate.release_keys(EXCHANGE)
    left = [e.body["payload"] for e in site.log.entries() if e.kind is EntryKind.EGRESS]
    assert "expert_keys" not in left


def test_a_consent_does_not_leave_after_a_refusal(asked):
    site, exchange = asked
    site.desk.approve(exchange)
    _meanwhile(site, _refuse)
    with pytest.raises(EgressRefusedError, match="has changed meanwhile"):
        site.gate.release_answer(EXCHANGE)


def test_a_home_restored_from_before_the_exchange_approves_and_seals_nothing(asked, world):
    site, exchange = asked
    backup = site.home.path.with_name("backup")
    shutil.copytree(site.home.path, backup, ignore=shutil.ignore_patterns("masking"))
    site.desk.approve(exchange)
    site.gate.release_sealed_expert(EXCHANGE, _all_consents(site, world))
    restored = Site(Home(backup))
    private_folder(restored.home.masking)
    with pytest.raises(BudgetError, match="came from a backup"):
        restored.desk.approve(restored.desk.book.get(EXCHANGE))
    assert not list(restored.home.state.glob("*.sealed"))
    restored.store.close()


@pytest.mark.parametrize("mark", ["gone", "newer"])
def test_a_home_restored_from_between_yes_and_sealing_seals_nothing(asked, world, mark):
    site, exchange = asked
    site.desk.approve(exchange)
    consents = _all_consents(site, world)
    backup = site.home.path.with_name("backup")
    shutil.copytree(site.home.path, backup, ignore=shutil.ignore_patterns("masking"))
    site.gate.release_sealed_expert(EXCHANGE, consents)
    if mark == "newer":
        shutil.copytree(site.home.masking, backup / "masking")
    restored = Site(Home(backup))
    private_folder(restored.home.masking)
    with pytest.raises(BudgetError, match="came from a backup"):
        restored.gate.release_sealed_expert(EXCHANGE, consents)
    assert not list(restored.home.state.glob("*.sealed"))
    restored.store.close()


def test_a_database_from_before_the_sealing_seals_no_second_time(asked, world):
    site, exchange = asked
    site.desk.approve(exchange)
    consents = _all_consents(site, world)
    before = site.home.path.with_name("before.sqlite3")
    with (
        closing(sqlite3.connect(before)) as copy,
        closing(sqlite3.connect(site.home.database)) as source,
    ):
        source.backup(copy)
    site.gate.release_sealed_expert(EXCHANGE, consents)
    site.store.close()
    for path in site.home.path.glob("site.sqlite3*"):
        path.unlink()
    before.rename(site.home.database)
    site.home.database.chmod(0o600)
    for sealed in site.home.state.glob("*.sealed"):
        sealed.unlink()
    put_back = Site(site.home)
    with pytest.raises((BudgetError, VaultRolledBackError)):
        put_back.gate.release_sealed_expert(EXCHANGE, consents)
    assert not list(site.home.state.glob("*.sealed"))
    put_back.store.close()


def test_a_training_that_ends_late_changes_nothing_that_was_promised(asked):
    site, exchange = asked
    state = site.store.load_state("toy-1")
    update = NewUpdate(b"m" * 32, b"l" * 32, b"update")
    with pytest.raises(StateError, match="comes too late"):
        site.store.commit_round("toy-1", 2, state, update)
    with site.store.transaction() as db:
        db.execute("UPDATE runs SET state = 'joined'")
    site.desk.approve(exchange)
    with pytest.raises(StateError, match="comes too late"):
        site.store.commit_round("toy-1", 2, state, update)
    site.desk.refuse(site.desk.book.get(EXCHANGE), "no")
    with pytest.raises(StateError, match="comes too late"):
        site.store.commit_round("toy-1", 2, state, update, began_from="another")
    site.store.commit_round("toy-1", 2, state, update, began_from=site.store.state_file("toy-1"))


@in_loop
async def test_a_sender_whose_expert_does_not_open_costs_nobody_elses(world):
    coordinator = await _trained(world)
    coordinator.propose_exchange()
    send = coordinator.SendExpertKeys

    def spoil(site, request):
        reply = send(site, request)
        if site == "west":
            coordinator.keys[site] = {name: bytes(1168) for name in coordinator.keys[site]}
        return reply

    coordinator.SendExpertKeys = spoil
    homes = [world.home(name) for name in SITES]
    agents = [
        asyncio.create_task(Site(home).run(coordinator, ExitAfter.EXCHANGE)) for home in homes
    ]
    await asyncio.gather(*(_decide(home) for home in homes))
    assert all(outcome.completed for outcome in await asyncio.gather(*agents))
    assert set(coordinator.confirmed["north"].experts) == {"east"}
    north = Site(world.home("north"))
    exchange = north.desk.book.get(EXCHANGE)
    assert set(exchange.opened) == {"east"} and "west" in exchange.reason
    state = north.store.load_state("toy-1")
    assert "received.east.expert.weight" in state
    assert "received.west.expert.weight" not in state
    assert set(coordinator.confirmed["west"].experts) == {"north", "east"}


@in_loop
async def test_what_is_damaged_at_the_coordinator_does_not_end_the_agent(world):
    coordinator = await _trained(world)
    coordinator.propose_exchange()
    coordinator.errors["FetchExpertKeys"] = IntegrityError("a stored file is damaged")
    homes = [world.home(name) for name in SITES]
    sites = [Site(home) for home in homes]
    agents = [asyncio.create_task(site.run(coordinator, ExitAfter.EXCHANGE)) for site in sites]
    await asyncio.gather(*(_decide(home) for home in homes))
    await until(lambda: all(any("is damaged" in line for line in s.lines) for s in sites))
    assert not any(agent.done() for agent in agents)
    for agent in agents:
        agent.cancel()
    await asyncio.gather(*agents, return_exceptions=True)


def test_nothing_is_sealed_without_every_sites_own_consent(asked, world):
    site, exchange = asked
    site.desk.approve(exchange)
    own = site.desk.book.consent(EXCHANGE)

    def seal(*consents):
        return site.gate.release_sealed_expert(EXCHANGE, consents)

    with pytest.raises(ConsentError, match="no consent of"):
        seal(own)
    west, east = _consent(world, "west"), _foreign_consent(world, exchange, "east")
    with pytest.raises(ConsentError):
        seal(own, own, west)
    with pytest.raises(ConsentError, match="not its site's own"):
        seal(own, west, east)
    assert not list(site.home.state.glob("*.sealed"))


def _foreign_consent(world, exchange, name):
    """A consent in the name of a site, signed by somebody of another CA."""
    impostor = Site(World(world.root / "other-ca").home(name))
    consent = Consent(
        federation=exchange.terms.federation,
        terms=exchange.terms,
        site=name,
        recipient_key=HybridKey.generate().public_bytes.hex(),
        commitment="1" * 64,
        log_size=0,
        log_root="0" * 64,
        privacy=Coverage(),
    )
    return consent.sign(impostor.identity)


def test_an_expert_is_sealed_once_and_the_stored_bytes_are_released_again(asked, world):
    site, exchange = asked
    site.desk.approve(exchange)
    consents = _all_consents(site, world)
    first = site.gate.release_sealed_expert(EXCHANGE, consents)
    again = site.gate.release_sealed_expert(EXCHANGE, consents)
    assert (first.payload_hash, first.seq) == (again.payload_hash, again.seq)


def test_another_expert_than_the_consent_commits_to_is_not_sealed(asked, world):
    site, exchange = asked
    site.desk.approve(exchange)
    consents = _all_consents(site, world)
    method = site.trainer.resume("toy-1", site.store.run("toy-1").plan)
    state = method.state()
    state["closed_set.expert.weight"] = state["closed_set.expert.weight"] + 1
    with site.store.files(), site.store.transaction() as db:
        site.store.replace_state(db, "toy-1", state)
    with pytest.raises(SwappedExpertError, match="committed to"):
        site.gate.release_sealed_expert(EXCHANGE, consents)
    assert not list(site.home.state.glob("*.sealed"))


def test_no_key_leaves_before_every_other_expert_is_here_and_verified(asked, world):
    site, exchange = asked
    for state in ("asked", "approved", "sealed"):
        assert site.desk.book.get(EXCHANGE).state == state
        with pytest.raises(EgressRefusedError, match="are not all here"):
            site.gate.release_keys(EXCHANGE)
        if state == "asked":
            site.desk.approve(exchange)
            consents = _all_consents(site, world)
        elif state == "approved":
            site.gate.release_sealed_expert(EXCHANGE, consents)


def test_the_consent_says_how_far_the_log_had_come_and_that_nothing_was_charged(asked):
    site, exchange = asked
    before = MerkleTree(entry.to_bytes() for entry in site.log.entries())
    site.desk.approve(exchange)
    consent = Consent.read(site.desk.book.consent(EXCHANGE))
    assert (consent.log_size, consent.log_root) == (len(before), before.root().hex())
    assert consent.privacy == Coverage()
    (entry,) = [e for e in site.log.entries() if e.kind is EntryKind.EXCHANGE_APPROVED]
    assert entry.body["commitment"] == consent.commitment and entry.body["number"] == 1


def test_a_proposal_that_the_coordinator_has_not_signed_is_refused(asked, world):
    site, _ = asked
    run = site.store.run("toy-1")
    signed = exchange_terms(world, run.plan, exchange_id="exchange-2", number=2)
    terms = ExchangeTerms.read(signed).model_copy(update={"number": 3})
    forged = SignedStatement(terms.to_bytes(), signed.signature, signed.chain)
    with pytest.raises(IdentityError):
        site.desk.propose(run, forged)


def test_an_expired_exchange_is_neither_proposed_nor_approved_nor_sealed(asked, world, monkeypatch):
    site, exchange = asked
    run = site.store.run("toy-1")
    with pytest.raises(SanctionExpiredError):
        site.desk.propose(
            run, exchange_terms(world, run.plan, exchange_id="exchange-2", number=2, expires_ms=1)
        )
    site.desk.approve(exchange)
    consents = _all_consents(site, world)
    monkeypatch.setattr(ExchangeTerms, "require_alive", _expired)
    with pytest.raises(SanctionExpiredError):
        site.gate.release_sealed_expert(EXCHANGE, consents)
    person, _ = world.site("west")
    with pytest.raises(SanctionExpiredError):
        person.desk.approve(person.desk.book.get(EXCHANGE))
    person.store.close()


def _expired(terms, now):
    raise SanctionExpiredError(f"exchange {terms.exchange_id} has expired")


def test_a_lower_number_than_one_that_was_seen_is_a_rollback(asked, world):
    site, exchange = asked
    run = site.store.run("toy-1")
    site.desk.refuse(exchange, "no")
    with pytest.raises(SanctionRolledBackError, match="number 1"):
        site.desk.propose(run, exchange_terms(world, run.plan, exchange_id="exchange-0"))
    later = exchange_terms(world, run.plan, exchange_id="exchange-2", number=2)
    assert site.desk.propose(run, later).state is SiteState.ASKED


@in_loop
async def test_a_coordinator_that_asks_for_experts_unasked_gets_none(world):
    coordinator = await _trained(world)
    home = world.home("north")
    site = Site(home)
    coordinator.exchange_state = "sealing"
    task = asyncio.create_task(site.run(coordinator, ExitAfter.EXCHANGE))
    await until(lambda: any("refused" in line for line in site.lines))
    coordinator.exchange_state = "delivering"
    coordinator.tell("north", *coordinator._exchange())
    await until(lambda: any("has not sealed" in line for line in site.lines))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert not coordinator.sealed


@in_loop
async def test_an_expert_that_does_not_open_is_not_used_and_takes_the_yes_back(world):
    coordinator = await _trained(world)
    coordinator.propose_exchange()
    send = coordinator.UploadSealedExpert
    damaged: list[bytes] = []

    async def damage(site, requests):
        receipt = await send(site, requests)
        if site == "west" and not damaged:
            data = coordinator.sealed[site]
            damaged.append(data[:-1] + bytes([data[-1] ^ 1]))
            coordinator.sealed[site] = damaged[0]
        return receipt

    coordinator.UploadSealedExpert = damage
    homes = [world.home(name) for name in SITES]
    sites = [Site(home) for home in homes]
    agents = [asyncio.create_task(site.run(coordinator, ExitAfter.EXCHANGE)) for site in sites]
    await asyncio.gather(*(_decide(home) for home in homes))
    outcomes = await asyncio.gather(*agents)
    assert not any(outcome.completed for outcome in outcomes)
    assert coordinator.refusals and set(coordinator.refusals) <= {"north", "east"}
    assert all("west" in reason for reason in coordinator.refusals.values())
    assert not set(coordinator.keys) & {"north", "east"}
    north = Site(world.home("north"))
    assert not any(name.startswith("received") for name in north.store.load_state("toy-1"))
    assert north.desk.book.secrets(EXCHANGE) is None


@in_loop
async def test_an_answer_is_sent_again_when_the_coordinator_asks_again(world):
    coordinator = await _trained(world)
    coordinator.expected = ("north", "west", "east")
    home = world.home("north")
    coordinator.propose_exchange()
    site = Site(home)
    task = asyncio.create_task(site.run(coordinator, ExitAfter.EXCHANGE))
    await _decide(home)
    await until(lambda: "north" in coordinator.consents)
    coordinator.consents.clear()
    coordinator.tell("north", *coordinator._exchange())
    await until(lambda: "north" in coordinator.consents)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_deciding_before_anything_is_asked_is_an_error(world):
    site, _ = world.site("north")
    with pytest.raises(NotFoundError, match="no exchange waits"):
        site.desk.open_exchange(None)
    with pytest.raises(NotFoundError):
        site.desk.open_exchange("x-1")


@in_loop
async def test_an_exchange_that_was_closed_before_does_not_end_the_wait_for_the_next(world):
    coordinator = await _trained(world)
    coordinator.propose_exchange()
    homes = [world.home(name) for name in SITES]
    agents = [
        asyncio.create_task(Site(home).run(coordinator, ExitAfter.EXCHANGE)) for home in homes
    ]
    await asyncio.gather(*(_decide(home) for home in homes))
    await asyncio.gather(*agents)
    site = Site(homes[0])
    task = asyncio.create_task(site.run(coordinator, ExitAfter.EXCHANGE))
    await until(lambda: any("connected" in line for line in site.lines))
    await asyncio.sleep(0.05)
    assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert not any("exchange" in line for line in site.lines)
