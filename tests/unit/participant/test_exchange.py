"""The deployment exchange between three sites and a coordinator in memory."""

from __future__ import annotations

import asyncio
import re
import shutil
import stat

import numpy as np
import pytest

from fedpalm.errors import (
    ConsentError,
    EgressRefusedError,
    IllegalTransitionError,
    NotFoundError,
    PolicyError,
    RefusedError,
)
from fedpalm.exchange.site import SiteState
from fedpalm.ledger.bodies import EntryKind
from fedpalm.pki.hybrid import PRIVATE_BYTES
from participant.budget import BudgetBook
from participant.config import Home
from participant.ending import ExitAfter
from participant.outgoing import PayloadKind
from participant.release import refused
from participant.vault import BLOB_EXTRA
from tests.support.agents import until
from tests.support.aio import in_loop
from tests.support.fake_coordinator import FakeCoordinator
from tests.support.participant import EXPERT, SITES, Crash, Site, World, make_plan

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
        assert [b["recipient"] for b in sealed] == [
            f"spiffe://unit/participant/{o}" for o in others
        ]
        assert site.desk.book.get(EXCHANGE).state is SiteState.COMPLETED
        assert site.desk.book.key(EXCHANGE) is None
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
    exchange = site.desk.propose(run, EXCHANGE, run.plan.hash)
    yield site, exchange
    site.store.close()


def _consent(site, world, name):
    """The consent of another site to the same exchange."""
    other, _ = world.site(name)
    run = other.store.run("toy-1")
    other.desk.approve(other.desk.propose(run, EXCHANGE, run.plan.hash))
    consent = other.desk.book.consent(EXCHANGE)
    other.store.close()
    return consent


def _expert(site):
    return site.trainer.resume("toy-1", site.store.run("toy-1").plan).expert()


def test_the_recipient_key_is_private_and_erased_with_a_no(asked):
    site, exchange = asked
    site.desk.approve(exchange)
    (key,) = site.home.state.glob("*.key")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert key.stat().st_size == PRIVATE_BYTES + BLOB_EXTRA
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
    others = [_consent(site, world, name) for name in SITES if name != site.config.site]
    return [site.desk.book.consent(EXCHANGE), *others]


@pytest.mark.parametrize("step", ["propose", "approve"])
def test_a_refusal_in_another_process_is_never_undone(asked, world, step):
    site, exchange = asked
    if step == "propose":
        site.desk.approve(exchange)
        consents = _all_consents(site, world)
        run = site.store.run("toy-1")
        _meanwhile(site, _refuse)
        assert site.desk.propose(run, EXCHANGE, run.plan.hash).state is SiteState.DECLINED
    else:
        consents = []
        _meanwhile(site, _refuse)
        with pytest.raises(IllegalTransitionError):
            site.desk.approve(exchange)
        assert not list(site.home.state.glob("*.key"))
    assert site.desk.book.get(EXCHANGE).state is SiteState.DECLINED
    with pytest.raises(EgressRefusedError, match="not approved"):
        site.gate.release_sealed_experts(EXCHANGE, consents, EXPERT, _expert(site))
    assert not list(site.home.state.glob("*.sealed"))


def test_a_refusal_that_was_decided_before_the_sealing_does_not_forget_it(asked, world):
    site, exchange = asked
    stale = site.desk.approve(exchange)
    consents = _all_consents(site, world)
    site.gate.release_sealed_experts(EXCHANGE, consents, EXPERT, _expert(site))
    declined = site.desk.refuse(stale, "too late")
    assert declined.state is SiteState.DECLINED
    assert set(declined.sealed) == {"east", "west"}
    assert site.desk.book.get(EXCHANGE).binds
    run = site.store.run("toy-1")
    with pytest.raises(RefusedError, match="releases the experts once"):
        site.desk.propose(run, "exchange-2", run.plan.hash)


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
    consents, expert = _all_consents(site, world), _expert(site)
    _meanwhile(site, _refuse)
    with pytest.raises(EgressRefusedError, match="changed while this site was sealing"):
        site.gate.release_sealed_experts(EXCHANGE, consents, EXPERT, expert)
    assert site.desk.book.get(EXCHANGE).state is SiteState.DECLINED
    kinds = {entry.kind for entry in site.log.entries()}
    assert EntryKind.EXPERT_RELEASED not in kinds
    assert not site.store.rows("SELECT * FROM sealed_experts")
    assert not list(site.home.state.glob("*.sealed"))


def test_an_expert_whose_training_nothing_paid_for_is_not_sealed(asked, world, monkeypatch):
    site, exchange = asked
    site.desk.approve(exchange)
    looked_at = []

    def unpaid(book, plan, run_id):
        looked_at.append((plan.hash, run_id))
        raise refused("no charge pays for it")

    monkeypatch.setattr(BudgetBook, "require_trained", unpaid)
    with pytest.raises(EgressRefusedError, match="no charge pays"):
        site.gate.release_sealed_experts(
            EXCHANGE, _all_consents(site, world), EXPERT, _expert(site)
        )
    assert looked_at == [(exchange.terms.plan_hash, exchange.terms.run)]
    assert EntryKind.EXPERT_RELEASED not in {entry.kind for entry in site.log.entries()}
    assert not list(site.home.state.glob("*.sealed"))


@pytest.mark.parametrize("policy", ["expert_exchange = false", "max_payload_mb = 0.0001", "oops"])
def test_a_policy_that_forbids_it_stops_the_yes_and_the_sealing_but_not_the_no(
    asked, world, policy
):
    site, exchange = asked
    site.desk.approve(exchange)
    consents, expert = _all_consents(site, world), _expert(site)
    site.home.policy.write_text(policy + "\n")
    for release in (
        lambda: site.gate.release_answer(EXCHANGE),
        lambda: site.gate.release_sealed_experts(EXCHANGE, consents, EXPERT, expert),
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
    consents, expert = _all_consents(site, world), _expert(site)
    with site.store.transaction() as db:
        db.execute("UPDATE releases SET payload_bytes = 0")
        db.execute(
            "UPDATE releases SET payload_bytes = 50000 WHERE seq IN (SELECT MAX(seq) FROM releases)"
        )

    def refused(room):
        """The bytes of the payload for which there was no room, and those before it."""
        site.home.policy.write_text(f"max_mb_per_day = {(50_000 + room) / 1e6}\n")
        with pytest.raises(PolicyError, match="last 24 hours") as caught:
            site.gate.release_sealed_experts(EXCHANGE, consents, EXPERT, expert)
        return [
            int(number.replace(",", "")) for number in re.findall(r"[\d,]{3,}", caught.value.what)
        ]

    one, before, _ = refused(room=0)
    assert before == 50_000
    assert refused(room=one)[1] == 50_000 + one
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


def test_a_proposal_for_another_plan_or_a_second_release_is_refused(asked):
    site, _ = asked
    run = site.store.run("toy-1")
    with pytest.raises(RefusedError, match="another plan"):
        site.desk.propose(run, "exchange-2", bytes(32))
    with pytest.raises(RefusedError, match="releases the experts once"):
        site.desk.propose(run, "exchange-2", run.plan.hash)


def test_nothing_is_sealed_without_every_sites_own_consent(asked, world):
    site, exchange = asked
    site.desk.approve(exchange)
    own = site.desk.book.consent(EXCHANGE)
    expert = _expert(site)

    def seal(*consents, layout=EXPERT):
        return site.gate.release_sealed_experts(EXCHANGE, consents, layout, expert)

    with pytest.raises(ConsentError, match="no consent of"):
        seal(own)
    west, east = _consent(site, world, "west"), _foreign_consent(world, exchange, "east")
    with pytest.raises(ConsentError):
        seal(own, own, west)
    with pytest.raises(ConsentError, match="not its own"):
        seal(own, west, east)
    assert not list(site.home.state.glob("*.sealed"))


def _foreign_consent(world, exchange, name):
    """A consent in the name of a site, signed by somebody of another CA."""
    from fedpalm.exchange.consent import Consent, sign_consent
    from fedpalm.pki.hybrid import HybridKey

    impostor = Site(World(world.root / "other-ca").home(name))
    consent = Consent(exchange.terms, name, HybridKey.generate().public_bytes)
    return sign_consent(consent, impostor.identity.signing_key, impostor.identity.chain)


def test_only_the_agreed_expert_layout_is_sealed(world):
    @in_loop
    async def story() -> None:
        await _trained(world)

    story()
    sites = [Site(world.home(name)) for name in SITES]
    for site in sites:
        run = site.store.run("toy-1")
        site.desk.approve(site.desk.propose(run, EXCHANGE, run.plan.hash))
    consents = [site.desk.book.consent(EXCHANGE) for site in sites]
    gate, expert = sites[0].gate, _expert(sites[0])
    from tests.support.participant import LAYOUT

    with pytest.raises(EgressRefusedError, match=r"closed_set\.expert"):
        gate.release_sealed_experts(EXCHANGE, consents, LAYOUT, expert)
    first = gate.release_sealed_experts(EXCHANGE, consents, EXPERT, expert)
    again = gate.release_sealed_experts(EXCHANGE, consents, EXPERT, expert)
    assert [p.payload_hash for p in first] == [p.payload_hash for p in again]
    assert [p.seq for p in first] == [p.seq for p in again]
    assert len(first) == 2


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
    pair = ("west", "north")
    damaged: list[bytes] = []

    async def damage(site, requests):
        receipt = await send(site, requests)
        if pair in coordinator.sealed and not damaged:
            data = coordinator.sealed[pair]
            damaged.append(data[:-1] + bytes([data[-1] ^ 1]))
            coordinator.sealed[pair] = damaged[0]
        return receipt

    coordinator.UploadSealedExpert = damage
    homes = [world.home(name) for name in SITES]
    sites = [Site(home) for home in homes]
    agents = [asyncio.create_task(site.run(coordinator, ExitAfter.EXCHANGE)) for site in sites]
    await asyncio.gather(*(_decide(home) for home in homes))
    outcomes = await asyncio.gather(*agents)
    assert not any(outcome.completed for outcome in outcomes)
    assert list(coordinator.refusals) == ["north"]
    assert "west" in coordinator.refusals["north"]
    north = Site(world.home("north"))
    assert not any(name.startswith("received") for name in north.store.load_state("toy-1"))
    assert north.desk.book.key(EXCHANGE) is None


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
