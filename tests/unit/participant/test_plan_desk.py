"""The desk for plans: a decision is signed, stored and logged at once, and within the policy."""

from __future__ import annotations

import sqlite3
import time
from dataclasses import replace

import pytest

from fedpalm.errors import (
    IntegrityError,
    NotFoundError,
    PlanNotApprovedError,
    PolicyError,
    StateError,
)
from fedpalm.ledger.bodies import EntryKind
from fedpalm.pki.bundle import pem_of
from fedpalm.pki.keys import new_tls_key
from fedpalm.pki.request import create_request
from fedpalm.rounds.agreement import PlanAnswer
from participant.plan_book import PlanState
from tests.support.participant import Crash, Site, make_plan
from tests.support.plans import RUN, entries, propose

ANSWERS = (EntryKind.PLAN_APPROVED, EntryKind.PLAN_REFUSED)


@pytest.fixture
def site(world):
    made, _ = world.site("north")
    yield made
    made.store.close()


def test_an_approval_is_signed_numbered_stored_and_logged_in_one_step(world, site):
    propose(world, site)
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
    (entry,) = entries(site, *ANSWERS)
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
    propose(world, site)
    armed = True
    with pytest.raises(Crash):
        site.desk.plans.approve(RUN)
    armed = False
    site.store.close()
    again = Site(home)
    done = step == "committed"
    assert (again.desk.plans.plan(RUN).state is PlanState.APPROVED) == done
    assert (again.desk.plans.plan(RUN).answer is not None) == done
    assert len(entries(again, *ANSWERS)) == done
    again.store.close()


def test_each_change_of_mind_has_the_next_number_and_the_same_answer_again_has_none(world, site):
    propose(world, site)
    plans = site.desk.plans
    for decide in (plans.approve, plans.approve, plans.refuse, plans.refuse, plans.approve):
        decide(RUN)
    said = [(entry.kind, entry.body["number"]) for entry in entries(site, *ANSWERS)]
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
    propose(world, site)
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
    propose(world, site)
    site.desk.plans.approve(RUN)
    with sqlite3.connect(site.home.database) as db:
        db.execute("UPDATE plans SET plan = ?", (make_plan(rounds=4).to_bytes(),))
    with pytest.raises(IntegrityError, match="not the one that was offered"):
        site.desk.plans.book.approved(RUN)


def test_what_the_policy_forbids_cannot_be_approved_and_every_violation_is_named(world, site):
    propose(world, site)
    site.home.policy.write_text("min_cohort = 3\nmax_rounds = 2\nexpert_exchange = false\n")
    with pytest.raises(PolicyError) as error:
        site.desk.plans.approve(RUN)
    for key in ("min_cohort", "max_rounds", "expert_exchange"):
        assert f"\n{key}: " in error.value.what
    assert site.desk.plans.plan(RUN).state is PlanState.PROPOSED
    assert not entries(site, *ANSWERS)


def test_a_policy_that_cannot_be_read_approves_nothing_but_lets_a_person_refuse(world, site):
    propose(world, site)
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
        ("# nothing to say", "approved", "approved", "person"),
    ],
)
def test_the_policy_decides_what_it_can_and_a_persons_no_stands(
    world, site, policy, before, after, by
):
    propose(world, site)
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
    propose(world, site)
    assert site.desk.plans.plan(None).run_id == RUN
    propose(world, site, "toy-2")
    with pytest.raises(StateError, match="toy-1, toy-2"):
        site.desk.plans.plan(None)


def test_an_answer_that_was_not_sent_yet_goes_out_under_the_present_certificate(world, site):
    propose(world, site)
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
