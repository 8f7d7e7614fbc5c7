"""Plans at a site: nothing runs that is not approved here, and every answer is signed, logged and sent."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np
import pytest

from fedpalm.errors import (
    ForkError,
    HashMismatchError,
    IdentityError,
    IntegrityError,
    NotFoundError,
    NotOnRosterError,
    PlanNotApprovedError,
    PolicyError,
    ProtocolError,
    ResourceError,
    StaleRoundError,
    StateError,
    WrongRoleError,
)
from fedpalm.ledger.bodies import EntryKind
from fedpalm.pki.bundle import pem_of
from fedpalm.pki.identity import Role
from fedpalm.pki.keys import new_tls_key
from fedpalm.pki.request import create_request
from fedpalm.pki.statement import SignedStatement
from fedpalm.plan import Continues
from fedpalm.rounds.agreement import PlanAnswer, PlanOffer
from fedpalm.wire.v1 import federation_pb2 as wire
from participant import plan_desk
from participant.ending import ExitAfter, Outcome
from participant.offers import MAX_MENTIONED, MAX_OFFERS, OfferWorker
from participant.outgoing import PayloadKind
from participant.plan_book import PlanState
from participant.plan_desk import MAX_OTHER_OFFERS, MAX_UNDECIDED
from participant.store import NewUpdate
from tests.support.aio import in_loop
from tests.support.fake_coordinator import FakeCoordinator
from tests.support.participant import FEDERATION, Crash, Site, ToyMethod, World, make_plan
from tests.support.pki import TestAuthority

RUN = "toy-1"
ANSWERS = (EntryKind.PLAN_APPROVED, EntryKind.PLAN_REFUSED)


@pytest.fixture
def world(tmp_path):
    """Sites whose plans wait for a person."""
    return World(tmp_path, policy="")


@pytest.fixture
def site(world):
    made, _ = world.site("north")
    yield made
    made.store.close()


def _coordinator(world: World, rounds: int = 3) -> FakeCoordinator:
    return FakeCoordinator(world, make_plan(rounds), expected=("north",))


@asynccontextmanager
async def _running(
    site: Site, coordinator: FakeCoordinator, exit_after: ExitAfter = ExitAfter.RUN
) -> AsyncIterator[asyncio.Task[Outcome]]:
    agent = site.agent(coordinator, exit_after)
    task = asyncio.create_task(agent.run())
    try:
        yield task
        agent.stop()
        await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        site.store.close()


async def _until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.002)


async def _told(site: Site, text: str) -> None:
    await _until(lambda: any(text in line for line in site.lines))


def _person(site: Site) -> Site:
    """The site's person, in a process of their own."""
    return Site(site.home)


def _propose(world: World, site: Site, run_id: str = RUN, **changes):
    plan = make_plan(**changes)
    return site.desk.plans.propose(run_id, plan, world.offer(plan, run_id))


def _entries(site: Site, *kinds: EntryKind):
    return [entry for entry in site.log.entries() if entry.kind in kinds]


def _sent(site: Site, kind: PayloadKind) -> int:
    return sum(entry.body["payload"] == kind for entry in _entries(site, EntryKind.EGRESS))


# --- the desk -------------------------------------------------------------------------------------


def test_an_approval_is_signed_numbered_stored_and_logged_in_one_step(world, site):
    _propose(world, site)
    stored = site.desk.plans.approve(RUN)
    answer = PlanAnswer.open(stored.answer, world.authority.anchors, now=time.time())
    assert (answer.run, answer.site, answer.answer, answer.by) == (
        RUN,
        "north",
        "approve",
        "person",
    )
    assert (answer.number, answer.plan_hash) == (1, make_plan().hash.hex())
    assert (stored.state, stored.answered) == (PlanState.APPROVED, False)
    (entry,) = _entries(site, *ANSWERS)
    assert entry.kind is EntryKind.PLAN_APPROVED
    assert dict(entry.body) == {
        "run": RUN,
        "plan_hash": make_plan().hash.hex(),
        "answer_hash": stored.answer.hash.hex(),
        "number": 1,
        "by": "person",
    }


@pytest.mark.parametrize("step", ["before commit", "committed"])
def test_a_crash_while_an_answer_is_stored_leaves_all_of_it_or_nothing(world, step):
    armed = False

    def dies(name: str) -> None:
        if armed and name == step:
            raise Crash(name)

    site, home = world.site("north", dies)
    _propose(world, site)
    armed = True
    with pytest.raises(Crash):
        site.desk.plans.approve(RUN)
    armed = False
    site.store.close()
    again = Site(home)
    done = step == "committed"
    assert (again.desk.plans.plan(RUN).state is PlanState.APPROVED) == done
    assert (again.desk.plans.plan(RUN).answer is not None) == done
    assert len(_entries(again, *ANSWERS)) == done
    again.store.close()


def test_each_change_of_mind_has_the_next_number_and_the_same_answer_again_has_none(world, site):
    _propose(world, site)
    plans = site.desk.plans
    for decide in (plans.approve, plans.approve, plans.refuse, plans.refuse, plans.approve):
        decide(RUN)
    said = [(entry.kind, entry.body["number"]) for entry in _entries(site, *ANSWERS)]
    assert said == [
        (EntryKind.PLAN_APPROVED, 1),
        (EntryKind.PLAN_REFUSED, 2),
        (EntryKind.PLAN_APPROVED, 3),
    ]
    assert plans.plan(RUN).number == 3


def test_only_an_approved_plan_is_given_out_and_the_error_names_the_command(world, site):
    book = site.desk.plans.book
    with pytest.raises(PlanNotApprovedError, match="no plan of run toy-1"):
        book.approved(RUN)
    _propose(world, site)
    with pytest.raises(PlanNotApprovedError) as waiting:
        book.approved(RUN)
    assert "fedpalm-participant review toy-1" in waiting.value.next_step
    site.desk.plans.approve(RUN)
    assert book.approved(RUN) == make_plan()
    site.desk.plans.refuse(RUN)
    with pytest.raises(PlanNotApprovedError, match="refused") as refused:
        book.approved(RUN)
    assert "fedpalm-participant approve toy-1" in refused.value.next_step


def test_a_plan_that_was_altered_in_the_store_is_not_approved_any_more(world, site):
    _propose(world, site)
    site.desk.plans.approve(RUN)
    with sqlite3.connect(site.home.database) as db:
        db.execute("UPDATE plans SET plan = ?", (make_plan(rounds=4).to_bytes(),))
    with pytest.raises(IntegrityError, match="not the one that was offered"):
        site.desk.plans.book.approved(RUN)


def test_what_the_policy_forbids_cannot_be_approved_and_every_violation_is_named(world, site):
    _propose(world, site)
    site.home.policy.write_text("min_cohort = 3\nmax_rounds = 2\nexpert_exchange = false\n")
    with pytest.raises(PolicyError) as error:
        site.desk.plans.approve(RUN)
    for key in ("min_cohort", "max_rounds", "expert_exchange"):
        assert f"\n{key}: " in error.value.what
    assert site.desk.plans.plan(RUN).state is PlanState.PROPOSED
    assert not _entries(site, *ANSWERS)


def test_a_policy_that_cannot_be_read_approves_nothing_but_lets_a_person_refuse(world, site):
    _propose(world, site)
    site.home.policy.write_text("auto_approve = 'yes please'\n")
    with pytest.raises(PolicyError, match=r"policy\.toml: auto_approve"):
        site.desk.plans.consider(RUN)
    with pytest.raises(PolicyError):
        site.desk.plans.approve(RUN)
    assert site.desk.plans.refuse(RUN, "broken").state is PlanState.REFUSED


@pytest.mark.parametrize(
    ("policy", "before", "after", "by"),
    [
        ("", "proposed", "proposed", ""),
        ("auto_approve = true", "proposed", "approved", "policy"),
        ("auto_approve = true\nmax_rounds = 1", "proposed", "refused", "policy"),
        ("max_rounds = 1", "approved", "refused", "policy"),
        ("auto_approve = true", "refused", "refused", "person"),
        ("max_rounds = 1", "refused", "refused", "person"),
        ("", "approved", "approved", "person"),
    ],
)
def test_the_policy_decides_what_it_can_and_a_persons_no_stands(
    world, site, policy, before, after, by
):
    _propose(world, site)
    if before != "proposed":
        (site.desk.plans.approve if before == "approved" else site.desk.plans.refuse)(RUN)
    site.home.policy.write_text(policy)
    stored = site.desk.plans.consider(RUN)
    assert (stored.state.value, stored.decided_by) == (after, by)
    if stored.answer is not None:
        assert PlanAnswer.read(stored.answer).by == by


def test_a_plan_whose_run_is_over_has_no_more_answers(world, site):
    world.agreed(site, make_plan())
    site.store.end_run(RUN, "completed", None, "")
    with pytest.raises(StateError, match="over"):
        site.desk.plans.refuse(RUN)
    assert site.desk.plans.consider(RUN).state is PlanState.APPROVED


def test_without_a_name_the_one_plan_that_waits_is_meant(world, site):
    with pytest.raises(NotFoundError, match="no plan waits"):
        site.desk.plans.plan(None)
    _propose(world, site)
    assert site.desk.plans.plan(None).run_id == RUN
    _propose(world, site, "toy-2")
    with pytest.raises(StateError, match="toy-1, toy-2"):
        site.desk.plans.plan(None)


def test_an_answer_that_was_not_sent_yet_goes_out_under_the_present_certificate(world, site):
    _propose(world, site)
    before = site.desk.plans.approve(RUN).answer
    assert site.desk.plans.answer_to_send(RUN) == before
    own = site.live.current
    request = create_request(own.identity, new_tls_key(), own.signing_key)
    renewed = world.authority.issue(request, own.identity, now=time.time())
    (site.home.tls / "tls.pem").write_bytes(pem_of((renewed, world.authority.issuing)))
    site.live._identity = replace(own, chain=(renewed, world.authority.issuing))
    site.live._seen = site.live._stamp()
    sent = site.desk.plans.answer_to_send(RUN)
    assert sent.hash == before.hash
    assert sent.chain[0] == renewed
    PlanAnswer.open(sent, world.authority.anchors, now=time.time())
    assert site.desk.plans.plan(RUN).answer == sent


# --- what an offer must be ------------------------------------------------------------------------


def _offer(plan, **changes) -> PlanOffer:
    values = {
        "federation": FEDERATION,
        "run": RUN,
        "plan_hash": plan.hash.hex(),
        "offered_ms": 1,
    }
    return PlanOffer(**{**values, **changes})


def _by_a_stranger(world, plan) -> SignedStatement:
    stranger = TestAuthority(FEDERATION)
    return _offer(plan).sign(stranger.enrol(Role.COORDINATOR, "coordinator"))


def _by_a_site(world, plan) -> SignedStatement:
    site = world.absent("east")
    forged = _offer(plan).sign(world.coordinator)
    return SignedStatement(forged.statement, forged.signature, site.chain)


def _altered(world, plan) -> SignedStatement:
    signed = _offer(make_plan(rounds=7)).sign(world.coordinator)
    return SignedStatement(_offer(plan).to_bytes(), signed.signature, signed.chain)


def _expired(world, plan) -> SignedStatement:
    then = time.time() - 100 * 86400
    old = TestAuthority.of(world.authority).enrol(Role.COORDINATOR, "coordinator", now=then)
    return _offer(plan).sign(old)


def _other_form(world, plan) -> SignedStatement:
    signed = _offer(plan).sign(world.coordinator)
    return SignedStatement(signed.statement + b" ", signed.signature, signed.chain)


@pytest.mark.parametrize(
    ("forge", "error"),
    [
        (_by_a_stranger, IdentityError),
        (_by_a_site, WrongRoleError),
        (_altered, IdentityError),
        (_expired, IdentityError),
        (_other_form, ProtocolError),
        (lambda w, p: _offer(p, run="toy-2").sign(w.coordinator), HashMismatchError),
        (lambda w, p: _offer(make_plan(rounds=9)).sign(w.coordinator), HashMismatchError),
    ],
)
def test_an_offer_that_is_not_the_coordinators_word_for_this_plan_is_not_stored(
    world, site, forge, error
):
    with pytest.raises(error):
        site.desk.plans.propose(RUN, make_plan(), forge(world, make_plan()))
    assert not site.desk.plans.book.all()


def test_a_plan_of_another_federation_or_without_this_site_is_not_stored(world, site):
    for plan, error in (
        (make_plan(federation="other"), HashMismatchError),
        (make_plan(sites=("east", "west")), NotOnRosterError),
    ):
        with pytest.raises(error):
            site.desk.plans.propose(RUN, plan, world.offer(plan))
    assert not site.desk.plans.book.all()


def test_another_plan_for_the_same_run_is_a_fork_is_logged_once_and_the_first_stands(world, site):
    _propose(world, site)
    site.desk.plans.approve(RUN)
    for _ in range(2):
        with pytest.raises(ForkError, match="has signed both"):
            _propose(world, site, rounds=4)
    (entry,) = _entries(site, EntryKind.FORK_SEEN)
    assert dict(entry.body) == {
        "run": RUN,
        "manifest_hash": world.offer(make_plan()).hash.hex(),
        "other_hash": world.offer(make_plan(rounds=4)).hash.hex(),
    }
    assert site.desk.plans.book.approved(RUN) == make_plan()


def test_both_signed_offers_of_a_fork_are_kept_and_hold_nothing_up(world, site):
    _propose(world, site)
    site.desk.plans.approve(RUN)
    for rounds in (4, 4, *range(5, 30)):
        with pytest.raises(ForkError, match="both signed offers are kept"):
            _propose(world, site, rounds=rounds)
    forks = site.gate.manifests.forks()
    assert len(forks) == len(_entries(site, EntryKind.FORK_SEEN)) == MAX_OTHER_OFFERS
    assert {one.held for one in forks} == {world.offer(make_plan())}
    assert forks[0].other == world.offer(make_plan(rounds=4))
    assert not any(one.open for one in forks)
    site.gate.manifests.refuse_forked(RUN)


def test_no_more_plans_are_taken_up_than_anybody_decides_about_in_a_day(world, site, monkeypatch):
    monkeypatch.setattr(plan_desk, "MAX_UNDECIDED", 2)
    monkeypatch.setattr(plan_desk, "MAX_NEW_PLANS", 4)
    for run_id in ("one", "two"):
        _propose(world, site, run_id)
    with pytest.raises(ResourceError, match="2 plans wait for a decision"):
        _propose(world, site, "three")
    _propose(world, site, "one")
    for run_id in ("three", "four"):
        site.desk.plans.refuse(site.desk.plans.book.all()[-1].run_id)
        _propose(world, site, run_id)
    site.desk.plans.refuse("four")
    with pytest.raises(ResourceError, match="4 plans were offered within 24 hours"):
        _propose(world, site, "five")
    monkeypatch.setattr(plan_desk, "DAY_MS", -1)
    _propose(world, site, "five")


def test_the_same_offer_again_changes_nothing(world, site):
    _propose(world, site)
    decided = site.desk.plans.approve(RUN)
    assert _propose(world, site) == decided


# --- the agent ------------------------------------------------------------------------------------


@in_loop
async def test_nothing_is_joined_or_trained_before_a_person_has_approved_in_another_process(world):
    coordinator = _coordinator(world)
    site, _ = world.site("north")
    async with _running(site, coordinator) as task:
        await _told(site, "waits for a decision: fedpalm-participant review toy-1")
        assert not coordinator.joined
        assert not site.methods
        assert _sent(site, PayloadKind.JOIN_RUN) == 0
        person = _person(site)
        person.desk.plans.approve(RUN)
        person.store.close()
        assert (await task).completed
    answer = coordinator.answers["north", RUN]
    assert (answer.answer, answer.by, answer.number) == ("approve", "person", 1)
    kinds = [entry.kind for entry in Site(site.home).log.entries()]
    assert kinds.index(EntryKind.PLAN_APPROVED) < kinds.index(EntryKind.MANIFEST_ACCEPTED)


@in_loop
async def test_a_refused_plan_is_answered_and_not_joined(world):
    coordinator = _coordinator(world)
    site, _ = world.site("north")
    async with _running(site, coordinator):
        await _told(site, "waits for a decision")
        person = _person(site)
        person.desk.plans.refuse(RUN, "our board has said no")
        await _told(site, "this site's refusal was sent")
        assert person.desk.plans.plan(RUN).answered
        person.store.close()
    answer = coordinator.answers["north", RUN]
    assert (answer.answer, answer.number) == ("refuse", 1)
    assert "board" not in answer.to_bytes().decode()
    assert not coordinator.joined


@in_loop
async def test_the_policy_refuses_what_it_forbids_and_says_so_to_both_sides(world):
    world.policy = "auto_approve = true\nmin_cohort = 3\n"
    coordinator = _coordinator(world)
    site, _ = world.site("north")
    async with _running(site, coordinator):
        await _told(site, "refused by this site's policy: min_cohort")
        await _told(site, "this site's refusal was sent")
    answer = coordinator.answers["north", RUN]
    assert (answer.answer, answer.by) == ("refuse", "policy")


@in_loop
async def test_an_approval_taken_back_in_a_run_stops_it_here_and_given_again_goes_on(world):
    world.policy = "auto_approve = true\n"
    coordinator = _coordinator(world)
    coordinator.expected = ("north", "west")
    site, _ = world.site("north")
    async with _running(site, coordinator) as task:
        await _until(lambda: coordinator.deliveries)
        person = _person(site)
        person.desk.plans.refuse(RUN)
        await _told(site, "this site's refusal was sent")
        assert "north" not in coordinator.joined
        coordinator.expected = ("north",)
        coordinator._advance()
        await _told(site, "round 1: committed")
        coordinator.tell("north", coordinator._train())
        await _told(site, "has refused plan")
        assert [delivery[1] for delivery in coordinator.deliveries] == [1]
        assert site.methods[0].trained == [1]
        person.desk.plans.approve(RUN)
        person.store.close()
        assert (await task).completed
    assert coordinator.answers["north", RUN].number == 3
    assert site.methods[0].trained == [1, 2, 3]


@in_loop
async def test_an_approval_taken_back_while_a_round_is_trained_keeps_its_update_here(world):
    world.policy = "auto_approve = true\n"
    coordinator = _coordinator(world)
    site, _ = world.site("north")
    begun, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    class Slow(ToyMethod):
        def train_round(self, context, shared):
            loop.call_soon_threadsafe(begun.set)
            assert go_on.wait(10)
            return super().train_round(context, shared)

    site.trainer._build = lambda plan, name, images: Slow(plan, name)
    async with _running(site, coordinator):
        await begun.wait()
        person = _person(site)
        person.desk.plans.refuse(RUN)
        person.store.close()
        await _told(site, "this site's refusal was sent")
        go_on.set()
        await _told(site, "has refused plan")
        assert _sent(site, PayloadKind.UPDATE) == 0
    assert not coordinator.deliveries


@in_loop
async def test_a_later_plan_is_answered_while_a_run_goes_on_and_joined_when_that_is_over(world):
    world.policy = "auto_approve = true\n"
    coordinator = _coordinator(world)
    coordinator.expected = ("north", "west")
    site, _ = world.site("north")
    async with _running(site, coordinator, ExitAfter.NEVER):
        await _until(lambda: coordinator.deliveries)
        coordinator.offer_also(make_plan(rounds=1, initial_model="0" * 64), "toy-2")
        await _told(site, "run toy-2: approved; it is joined when run toy-1 is over")
        assert coordinator.answers["north", "toy-2"].answer == "approve"
        assert site.store.active_run().run_id == RUN
        coordinator.expected = ("north",)
        coordinator._advance()
        await _told(site, "run toy-2: joined")
    reopened = Site(site.home)
    assert reopened.store.run(RUN).state == "completed"
    assert reopened.store.active_run().run_id == "toy-2"
    reopened.store.close()


@in_loop
async def test_a_plan_that_differs_from_the_stored_one_is_refused_loudly_and_the_run_goes_on(world):
    world.policy = "auto_approve = true\n"
    coordinator = _coordinator(world)
    coordinator.expected = ("north", "west")
    site, _ = world.site("north")
    async with _running(site, coordinator) as task:
        await _until(lambda: coordinator.deliveries)
        coordinator.offer_also(make_plan(rounds=9), RUN)
        await _told(site, "WARNING: run toy-1 is offered with another plan")
        coordinator.plans[RUN] = coordinator.plan
        coordinator.expected = ("north",)
        coordinator._advance()
        assert (await task).completed


@in_loop
async def test_offers_beyond_what_waits_are_left_alone_until_somebody_decides(world):
    coordinator = _coordinator(world)
    for number in range(MAX_UNDECIDED + 40):
        coordinator.plans[f"flood-{number}"] = coordinator.plan
    site, _ = world.site("north")
    async with _running(site, coordinator):
        await _told(site, f"offers are left alone: {MAX_UNDECIDED} plans wait for a decision")
        await asyncio.sleep(0.05)
        book = site.desk.plans.book
        assert len(book.all()) == MAX_UNDECIDED
        # Not even asked for: every question is a line in the log.
        assert _sent(site, PayloadKind.FETCH_PLAN) == MAX_UNDECIDED
        for stored in book.all()[:3]:
            site.desk.plans.refuse(stored.run_id)
        await _until(lambda: len(book.all()) == MAX_UNDECIDED + 3)
    assert sum("offers are left alone" in line for line in site.lines) == 1


def _offered(run_id: str) -> wire.Instruction:
    return wire.Instruction(run_offer=wire.RunOffer(run_id=run_id, plan_hash=make_plan().hash))


@in_loop
async def test_more_offers_than_anybody_could_mean_end_the_connection(world):
    site, _ = world.site("north")
    worker = OfferWorker(site.store, site.desk.plans, site.trainer, site, poll_s=1)
    for number in range(MAX_OFFERS):
        worker.note(_offered(f"flood-{number}"))
    with pytest.raises(ProtocolError, match=f"more than {MAX_OFFERS} offers"):
        worker.note(_offered("flood"))
    worker.reconnected()
    with pytest.raises(ProtocolError, match=f"more than {MAX_MENTIONED} runs"):
        for number in range(MAX_MENTIONED + 1):
            worker.note(wire.Instruction(run_ended=wire.RunEnded(run_id=f"run-{number}")))
    site.store.close()


@in_loop
async def test_an_offer_that_the_coordinator_did_not_sign_is_refused_and_the_agent_goes_on(world):
    coordinator = _coordinator(world)
    coordinator.world = World(world.root / "elsewhere")
    site, _ = world.site("north")
    async with _running(site, coordinator):
        await _told(site, "run toy-1: offer refused")
        assert not site.desk.plans.book.all()
        coordinator.world = world
        coordinator.drop("north")
        await _told(site, "waits for a decision")


@in_loop
async def test_an_answer_that_the_coordinator_refuses_is_reported_and_not_sent_again(world):
    coordinator = _coordinator(world)
    coordinator.errors["AnswerPlan"] = StaleRoundError("answer 1 comes after 2")
    site, _ = world.site("north")
    async with _running(site, coordinator):
        await _told(site, "waits for a decision")
        person = _person(site)
        person.desk.plans.refuse(RUN)
        person.store.close()
        await _told(site, "did not take this site's refusal: answer 1 comes after 2")
        await asyncio.sleep(0.05)
        assert _sent(site, PayloadKind.ANSWER_PLAN) == 1


@in_loop
async def test_an_approval_that_the_coordinator_has_lost_is_said_again(world):
    world.policy = "auto_approve = true\n"
    coordinator = _coordinator(world)
    site, _ = world.site("north")
    _propose(world, site)
    site.desk.plans.approve(RUN)
    site.desk.plans.book.set_answered(RUN, 1)
    assert (await site.run(coordinator)).completed
    assert coordinator.answers["north", RUN].number == 1


@in_loop
async def test_a_coordinator_that_takes_an_approval_and_denies_it_is_asked_twice_and_no_more(world):
    world.policy = "auto_approve = true\n"
    coordinator = _coordinator(world)
    coordinator.errors["JoinRun"] = PlanNotApprovedError("north has not approved")
    site, _ = world.site("north")
    async with _running(site, coordinator):
        await _told(site, "run toy-1: not joined: north has not approved")
        await asyncio.sleep(0.05)
        assert _sent(site, PayloadKind.ANSWER_PLAN) == 2


def _agreeable(world):
    """A site whose policy approves by itself, and a coordinator whose round waits for another site."""
    world.policy = "auto_approve = true\n"
    coordinator = _coordinator(world)
    coordinator.expected = ("north", "west")
    return coordinator, *world.site("north")


@in_loop
async def test_a_policy_that_becomes_stricter_takes_an_approval_back(world):
    coordinator, site, home = _agreeable(world)
    async with _running(site, coordinator):
        await _until(lambda: coordinator.deliveries)
        home.policy.write_text("max_rounds = 1\n")
        await _told(site, "refused by this site's policy: max_rounds")
        await _told(site, "this site's refusal was sent")
    answer = coordinator.answers["north", RUN]
    assert (answer.answer, answer.by, answer.number) == ("refuse", "policy", 2)


@in_loop
async def test_a_refusal_that_the_policy_keeps_from_leaving_is_sent_when_it_can_be(world):
    coordinator, site, home = _agreeable(world)
    async with _running(site, coordinator):
        await _until(lambda: coordinator.deliveries)
        home.policy.write_text("max_mb_per_day = 'none'\n")
        person = _person(site)
        person.desk.plans.refuse(RUN)
        person.store.close()
        await _told(site, "policy.toml: max_mb_per_day")
        home.policy.write_text("auto_approve = true\n")
        await _told(site, "this site's refusal was sent")
    assert coordinator.answers["north", RUN].answer == "refuse"


@in_loop
async def test_a_policy_that_was_wrong_from_the_start_is_waited_for(world):
    world.policy = "auto_approve = 7\n"
    coordinator = _coordinator(world)
    site, home = world.site("north")
    async with _running(site, coordinator) as task:
        await _told(site, "policy.toml: auto_approve")
        home.policy.write_text("auto_approve = true\n")
        assert (await task).completed


# --- amended plans --------------------------------------------------------------------------------


STATE = {
    "closed_set.expert.weight": np.full((16, 8), 3, np.float32),
    "closed_set.embedding.weight": np.full((32, 128), 4, np.float32),
    "head.open.prototypes": np.full((5, 32), 5, np.float32),
    "progress.flag": np.array(1, dtype=np.uint8),
}


def _amended(before, **changes):
    continues = Continues(
        run=RUN,
        plan_hash=changes.pop("plan_hash", before.hash.hex()),
        rounds_done=2,
        model=before.initial_model,
    )
    return make_plan(continues=continues, **changes)


def _trained_in_toy_1(world, site):
    world.agreed(site, make_plan())
    site.store.commit_round(RUN, 2, STATE, NewUpdate(b"m" * 32, b"l" * 32, b"update"))
    site.store.end_run(RUN, "aborted", None, "amended")


def test_an_amended_plan_goes_on_from_the_private_state_and_counts_on(world, site):
    _trained_in_toy_1(world, site)
    seen = []

    class Watching(ToyMethod):
        def train_round(self, context, shared):
            seen.append((context, self.state()))
            return super().train_round(context, shared)

    site.trainer._build = lambda plan, name, images: Watching(plan, name)
    plan = _amended(make_plan(), rounds=3)
    site.store.add_run("toy-2", plan)
    _, after = site.trainer.train("toy-2", plan, 1, ToyMethod(plan, "north").initial_vector())
    ((context, state),) = seen
    assert (context.round, context.rounds) == (3, 5)
    assert all(np.array_equal(state[name], STATE[name]) for name in STATE)
    # From its first round on the new run has a state of its own; the old one stays as it was.
    site.store.commit_round("toy-2", 1, after, NewUpdate(b"m" * 32, b"l" * 32, b"more"))
    site.trainer.committed(1)
    method = site.trainer.resume("toy-2", plan)
    assert np.array_equal(method.state()["head.open.prototypes"], after["head.open.prototypes"])
    assert np.array_equal(site.store.load_state(RUN)["head.open.prototypes"], np.full((5, 32), 5))


def test_an_amended_plan_that_skips_a_run_of_this_site_goes_on_from_the_one_before(world, site):
    _trained_in_toy_1(world, site)
    second = _amended(make_plan(), rounds=3)
    site.desk.plans.propose("toy-2", second, world.offer(second, "toy-2"))
    third = make_plan(
        continues=Continues(
            run="toy-2", plan_hash=second.hash.hex(), rounds_done=1, model=second.initial_model
        )
    )
    assert set(site.store.load_continued_state(third)) == set(STATE)


def test_state_of_another_plan_or_method_than_the_amendment_names_is_not_taken(world, site):
    _trained_in_toy_1(world, site)
    other = _amended(make_plan(), plan_hash="0" * 64)
    assert site.store.load_continued_state(other) is None
    assert site.store.load_continued_state(make_plan()) is None
    unknown = make_plan(
        continues=Continues(
            run="toy-9",
            plan_hash=make_plan().hash.hex(),
            rounds_done=1,
            model=make_plan().initial_model,
        )
    )
    assert site.store.load_continued_state(unknown) is None


@in_loop
async def test_an_amended_run_is_joined_after_the_one_that_it_continues(world):
    world.policy = "auto_approve = true\n"
    coordinator = _coordinator(world)
    coordinator.expected = ("north", "west")
    site, _ = world.site("north")
    async with _running(site, coordinator, ExitAfter.NEVER):
        await _until(lambda: coordinator.deliveries)
        coordinator.offer_also(_amended(make_plan(), rounds=1), "toy-2")
        await _until(lambda: ("north", "toy-2") in coordinator.answers)
        assert site.store.active_run().run_id == RUN
        coordinator.ended = False
        coordinator.tell("north", coordinator._run_ended())
        await _told(site, "run toy-2: joined")
        method = site.trainer.resume("toy-2", coordinator.plans["toy-2"])
        continued = site.store.load_state(RUN)
        assert np.array_equal(
            method.state()["head.open.prototypes"], continued["head.open.prototypes"]
        )
