"""Offers: what one must be, and how the agent answers it, joins, and goes on with an amended plan."""

from __future__ import annotations

import asyncio
import threading
import time

import numpy as np
import pytest

from fedpalm.errors import (
    ForkError,
    HashMismatchError,
    IdentityError,
    NotOnRosterError,
    PlanNotApprovedError,
    PolicyError,
    ProtocolError,
    ResourceError,
    StaleRoundError,
    WrongRoleError,
)
from fedpalm.ledger.bodies import EntryKind
from fedpalm.pki.identity import Role
from fedpalm.pki.statement import SignedStatement
from fedpalm.plan import Continues
from fedpalm.rounds.agreement import PlanOffer
from fedpalm.wire.v1 import federation_pb2 as wire
from participant import plan_desk
from participant.config import DataSettings
from participant.ending import ExitAfter
from participant.offers import MAX_MENTIONED, MAX_OFFERS, OfferWorker
from participant.outgoing import PayloadKind
from participant.plan_desk import MAX_OTHER_OFFERS, MAX_UNDECIDED
from participant.store import NewUpdate
from participant.trainer import Trainer
from tests.support.agents import running, told, until
from tests.support.aio import in_loop
from tests.support.fake_coordinator import FakeCoordinator
from tests.support.participant import FEDERATION, Site, ToyMethod, World, make_plan
from tests.support.pki import TestAuthority
from tests.support.plans import RUN, entries, person, propose

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


def _sent(site: Site, kind: PayloadKind) -> int:
    return sum(entry.body["payload"] == kind for entry in entries(site, EntryKind.EGRESS))


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
    propose(world, site)
    site.desk.plans.approve(RUN)
    for _ in range(2):
        with pytest.raises(ForkError, match="has signed both"):
            propose(world, site, rounds=4)
    (entry,) = entries(site, EntryKind.FORK_SEEN)
    assert dict(entry.body) == {
        "run": RUN,
        "manifest_hash": world.offer(make_plan()).hash.hex(),
        "other_hash": world.offer(make_plan(rounds=4)).hash.hex(),
    }
    assert site.desk.plans.book.approved(RUN) == make_plan()


def test_both_signed_offers_of_a_fork_are_kept_and_hold_nothing_up(world, site):
    propose(world, site)
    site.desk.plans.approve(RUN)
    for rounds in (4, 4, *range(5, 30)):
        with pytest.raises(ForkError, match="both signed offers are kept"):
            propose(world, site, rounds=rounds)
    forks = site.gate.manifests.forks()
    assert len(forks) == len(entries(site, EntryKind.FORK_SEEN)) == MAX_OTHER_OFFERS
    assert {one.held for one in forks} == {world.offer(make_plan())}
    assert forks[0].other == world.offer(make_plan(rounds=4))
    assert not any(one.open for one in forks)
    site.gate.manifests.refuse_forked(RUN)


def test_no_more_plans_are_taken_up_than_anybody_decides_about_in_a_day(world, site, monkeypatch):
    monkeypatch.setattr(plan_desk, "MAX_UNDECIDED", 2)
    monkeypatch.setattr(plan_desk, "MAX_NEW_PLANS", 4)
    for run_id in ("one", "two"):
        propose(world, site, run_id)
    with pytest.raises(ResourceError, match="2 plans wait for a decision"):
        propose(world, site, "three")
    propose(world, site, "one")
    for run_id in ("three", "four"):
        site.desk.plans.refuse(site.desk.plans.book.all()[-1].run_id)
        propose(world, site, run_id)
    site.desk.plans.refuse("four")
    with pytest.raises(ResourceError, match="4 plans were offered within 24 hours"):
        propose(world, site, "five")
    monkeypatch.setattr(plan_desk, "DAY_MS", -1)
    propose(world, site, "five")


def test_the_same_offer_again_changes_nothing(world, site):
    propose(world, site)
    decided = site.desk.plans.approve(RUN)
    assert propose(world, site) == decided


# --- the agent ------------------------------------------------------------------------------------


@in_loop
async def test_nothing_is_joined_or_trained_before_a_person_has_approved_in_another_process(world):
    coordinator = _coordinator(world)
    site, _ = world.site("north")
    async with running(site, coordinator) as task:
        await told(site, "waits for a decision: fedpalm-participant review toy-1")
        assert not coordinator.joined
        assert not site.methods
        assert _sent(site, PayloadKind.JOIN_RUN) == 0
        decider = person(site)
        decider.desk.plans.approve(RUN)
        decider.store.close()
        assert (await task).completed
    answer = coordinator.answers["north", RUN]
    assert (answer.answer, answer.by, answer.number) == ("approve", "person", 1)
    kinds = [entry.kind for entry in Site(site.home).log.entries()]
    assert kinds.index(EntryKind.PLAN_APPROVED) < kinds.index(EntryKind.MANIFEST_ACCEPTED)


@in_loop
async def test_a_refused_plan_is_answered_and_not_joined(world):
    coordinator = _coordinator(world)
    site, _ = world.site("north")
    async with running(site, coordinator):
        await told(site, "waits for a decision")
        decider = person(site)
        decider.desk.plans.refuse(RUN, "our board has said no")
        await told(site, "this site's refusal was sent")
        assert decider.desk.plans.plan(RUN).answered
        decider.store.close()
    answer = coordinator.answers["north", RUN]
    assert (answer.answer, answer.number) == ("refuse", 1)
    assert "board" not in answer.to_bytes().decode()
    assert not coordinator.joined


@in_loop
async def test_the_policy_refuses_what_it_forbids_and_says_so_to_both_sides(world):
    world.policy = "auto_approve = true\nmin_cohort = 3\n"
    coordinator = _coordinator(world)
    site, _ = world.site("north")
    async with running(site, coordinator):
        await told(site, "refused by this site's policy: min_cohort")
        await told(site, "this site's refusal was sent")
    answer = coordinator.answers["north", RUN]
    assert (answer.answer, answer.by) == ("refuse", "policy")


@in_loop
async def test_an_approval_taken_back_in_a_run_stops_it_here_and_given_again_goes_on(world):
    world.policy = "auto_approve = true\n"
    coordinator = _coordinator(world)
    coordinator.expected = ("north", "west")
    site, _ = world.site("north")
    async with running(site, coordinator) as task:
        await until(lambda: coordinator.deliveries)
        decider = person(site)
        decider.desk.plans.refuse(RUN)
        await told(site, "this site's refusal was sent")
        assert "north" not in coordinator.joined
        coordinator.expected = ("north",)
        coordinator._advance()
        await told(site, "round 1: committed")
        coordinator.tell("north", coordinator._train())
        await told(site, "has refused plan")
        assert [delivery[1] for delivery in coordinator.deliveries] == [1]
        assert site.methods[0].trained == [1]
        decider.desk.plans.approve(RUN)
        decider.store.close()
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
    async with running(site, coordinator):
        await begun.wait()
        decider = person(site)
        decider.desk.plans.refuse(RUN)
        decider.store.close()
        await told(site, "this site's refusal was sent")
        go_on.set()
        await told(site, "has refused plan")
        assert _sent(site, PayloadKind.UPDATE) == 0
    assert not coordinator.deliveries


@in_loop
async def test_a_later_plan_is_answered_while_a_run_goes_on_and_joined_when_that_is_over(world):
    world.policy = "auto_approve = true\n"
    coordinator = _coordinator(world)
    coordinator.expected = ("north", "west")
    site, _ = world.site("north")
    async with running(site, coordinator, ExitAfter.NEVER):
        await until(lambda: coordinator.deliveries)
        coordinator.offer_also(make_plan(rounds=1, initial_model="0" * 64), "toy-2")
        await told(site, "run toy-2: approved; it is joined when run toy-1 is over")
        assert coordinator.answers["north", "toy-2"].answer == "approve"
        assert site.store.active_run().run_id == RUN
        coordinator.expected = ("north",)
        coordinator._advance()
        await told(site, "run toy-2: joined")
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
    async with running(site, coordinator) as task:
        await until(lambda: coordinator.deliveries)
        coordinator.offer_also(make_plan(rounds=9), RUN)
        await told(site, "WARNING: run toy-1 is offered with another plan")
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
    async with running(site, coordinator):
        await told(site, f"offers are left alone: {MAX_UNDECIDED} plans wait for a decision")
        await asyncio.sleep(0.05)
        book = site.desk.plans.book
        assert len(book.all()) == MAX_UNDECIDED
        # Not even asked for: every question is a line in the log.
        assert _sent(site, PayloadKind.FETCH_PLAN) == MAX_UNDECIDED
        for stored in book.all()[:3]:
            site.desk.plans.refuse(stored.run_id)
        await until(lambda: len(book.all()) == MAX_UNDECIDED + 3)
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
    async with running(site, coordinator):
        await told(site, "run toy-1: offer refused")
        assert not site.desk.plans.book.all()
        coordinator.world = world
        coordinator.drop("north")
        await told(site, "waits for a decision")


@in_loop
async def test_an_answer_that_the_coordinator_refuses_is_reported_and_not_sent_again(world):
    coordinator = _coordinator(world)
    coordinator.errors["AnswerPlan"] = StaleRoundError("answer 1 comes after 2")
    site, _ = world.site("north")
    async with running(site, coordinator):
        await told(site, "waits for a decision")
        decider = person(site)
        decider.desk.plans.refuse(RUN)
        decider.store.close()
        await told(site, "did not take this site's refusal: answer 1 comes after 2")
        await asyncio.sleep(0.05)
        assert _sent(site, PayloadKind.ANSWER_PLAN) == 1


@in_loop
async def test_an_approval_that_the_coordinator_has_lost_is_said_again(world):
    world.policy = "auto_approve = true\n"
    coordinator = _coordinator(world)
    site, _ = world.site("north")
    propose(world, site)
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
    async with running(site, coordinator):
        await told(site, "run toy-1: not joined: north has not approved")
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
    async with running(site, coordinator):
        await until(lambda: coordinator.deliveries)
        home.policy.write_text("max_rounds = 1\n")
        await told(site, "refused by this site's policy: max_rounds")
        await told(site, "this site's refusal was sent")
    answer = coordinator.answers["north", RUN]
    assert (answer.answer, answer.by, answer.number) == ("refuse", "policy", 2)


@in_loop
async def test_a_refusal_that_the_policy_keeps_from_leaving_is_sent_when_it_can_be(world):
    coordinator, site, home = _agreeable(world)
    async with running(site, coordinator):
        await until(lambda: coordinator.deliveries)
        home.policy.write_text("max_mb_per_day = 'none'\n")
        decider = person(site)
        decider.desk.plans.refuse(RUN)
        decider.store.close()
        await told(site, "policy.toml: max_mb_per_day")
        home.policy.write_text("auto_approve = true\n")
        await told(site, "this site's refusal was sent")
    assert coordinator.answers["north", RUN].answer == "refuse"


@in_loop
async def test_a_policy_that_was_wrong_from_the_start_is_waited_for(world):
    world.policy = "auto_approve = 7\n"
    coordinator = _coordinator(world)
    site, home = world.site("north")
    async with running(site, coordinator) as task:
        await told(site, "policy.toml: auto_approve")
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
    _, after = site.trainer.train(
        "toy-2", plan, 1, ToyMethod(plan, "north").initial_vector(), site.gate.budget
    )
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
    async with running(site, coordinator, ExitAfter.NEVER):
        await until(lambda: coordinator.deliveries)
        coordinator.offer_also(_amended(make_plan(), rounds=1), "toy-2")
        await until(lambda: ("north", "toy-2") in coordinator.answers)
        assert site.store.active_run().run_id == RUN
        coordinator.ended = False
        coordinator.tell("north", coordinator._run_ended())
        await told(site, "run toy-2: joined")
        method = site.trainer.resume("toy-2", coordinator.plans["toy-2"])
        continued = site.store.load_state(RUN)
        assert np.array_equal(
            method.state()["head.open.prototypes"], continued["head.open.prototypes"]
        )


# --- the other kind of image ----------------------------------------------------------------------


def _signatures(site: Site, data: DataSettings | None) -> None:
    """Give the site signatures, or no images, in its settings and to a trainer that looks."""
    site.home.save(site.home.load().model_copy(update={"data": data}))
    site.config = site.home.load()
    site.trainer = Trainer(site.config, site.store)


@in_loop
async def test_a_plan_for_the_other_kind_of_image_is_refused_and_the_agent_goes_on(
    tmp_path, signatures
):
    world = World(tmp_path)
    coordinator = _coordinator(world)
    for _ in range(2):  # and again after a restart
        site, _ = world.site("north")
        _signatures(site, signatures)
        async with running(site, coordinator) as task:
            await until(lambda: coordinator.answers)
            coordinator.offer_also(make_plan(4), "toy-2")
            await until(lambda: ("north", "toy-2") in coordinator.answers)
            assert not task.done()
    answer = coordinator.answers["north", RUN]
    assert (answer.answer, answer.by, answer.number) == ("refuse", "policy", 1)
    assert not coordinator.joined


def test_a_person_cannot_approve_a_plan_for_the_other_kind_of_image(world, signatures):
    site, _ = world.site("north")
    propose(world, site)
    _signatures(site, signatures)
    with pytest.raises(PolicyError, match=r"trains on palms.* names signatures") as refused:
        site.desk.plans.approve(RUN)
    assert "not approved" in refused.value.safe and "[data]" in refused.value.next_step
    assert not entries(site, *ANSWERS)
    site.store.close()


@in_loop
async def test_settings_without_images_keep_a_site_out_of_a_run_and_the_agent_up(tmp_path):
    world = World(tmp_path)
    coordinator = _coordinator(world)
    site, _ = world.site("north")
    _signatures(site, None)
    async with running(site, coordinator) as task:
        await told(site, "not joined: this plan trains, and participant.toml has no [data]")
        coordinator.offer_also(make_plan(4), "toy-2")
        await told(site, "run toy-2: not joined")
        assert not task.done()
    assert sum("run toy-1: not joined" in line for line in site.lines) == 1
    assert not coordinator.joined


@in_loop
async def test_settings_that_cannot_be_read_decide_nothing_and_are_told(tmp_path):
    world = World(tmp_path)
    site, _ = world.site("north")
    site.home.config.write_text("site = ")
    async with running(site, _coordinator(world)) as task:
        await told(site, "run toy-1: not decided: whether a plan fits this site is not known")
        assert not task.done()
    assert site.lines.count("run toy-1: joined") == 0
