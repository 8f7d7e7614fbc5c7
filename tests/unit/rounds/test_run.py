"""A run: rounds in order, attempts, pause and resume, and how it ends."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from fedpalm.errors import IllegalTransitionError, NotOnRosterError, StaleRoundError, StateError
from fedpalm.rounds.events import (
    Abort,
    Aggregate,
    Aggregated,
    AggregationFailed,
    CloseRound,
    CohortPersisted,
    JoinDeadline,
    PersistCohort,
    PublishModel,
    Restarted,
    RoundInput,
    RoundRef,
    SendTrain,
    SharesAsked,
    SiteExpelled,
    SiteJoined,
    SiteLeft,
    StartTimer,
    UpdateAccepted,
)
from fedpalm.rounds.machine import RoundState, RoundTerms
from fedpalm.rounds.run import (
    AbortRun,
    EndRun,
    InRound,
    OfferRun,
    Pause,
    Resume,
    RoundOpened,
    Run,
    RunEffects,
    RunInput,
    RunPaused,
    RunState,
    RunTerms,
    SitesCaught,
    SitesKeptOut,
    Start,
    advance,
)
from tests.support.exchange_world import exchange_plan

TERMS = RunTerms(rounds=2, max_attempts=2, round=RoundTerms(frozenset("ab"), 2, 1_000, 9_000))


def drive(run: Run, *inputs: RunInput) -> tuple[Run, RunEffects]:
    effects: RunEffects = ()
    for one in inputs:
        run, effects = advance(run, one)
    return run, effects


def in_round(number: int, attempt: int, received: RoundInput) -> InRound:
    return InRound(RoundRef(number, attempt), received, at_ms=1)


def started() -> Run:
    return drive(Run(TERMS, "m0"), Start(0), SiteJoined("a"), SiteJoined("b"))[0]


def committing(number: int, attempt: int = 1) -> list[RunInput]:
    return [
        in_round(number, attempt, CohortPersisted(1)),
        in_round(number, attempt, UpdateAccepted("a", f"a{number}")),
        in_round(number, attempt, UpdateAccepted("b", f"b{number}")),
        in_round(number, attempt, Aggregated(f"m{number}")),
    ]


def failing(number: int, attempt: int) -> list[RunInput]:
    return [
        *committing(number, attempt)[:-1],
        in_round(number, attempt, AggregationFailed("no")),
    ]


def test_a_start_offers_the_run_and_opens_round_1() -> None:
    run, effects = advance(Run(TERMS, "m0"), Start(0))
    assert run.state is RunState.RUNNING
    assert effects[:2] == (OfferRun(), RoundOpened(RoundRef(1, 1)))
    assert isinstance(effects[2], StartTimer)


def test_the_commit_of_a_round_and_the_opening_of_the_next_are_one_step() -> None:
    run, effects = drive(started(), *committing(1))
    assert run.current is not None
    assert (run.model_hash, run.current.ref) == ("m1", RoundRef(2, 1))
    assert [type(effect) for effect in effects] == [
        PublishModel,
        CloseRound,
        RoundOpened,
        PersistCohort,
    ]


def test_a_round_starts_from_the_model_of_the_round_before() -> None:
    run, effects = drive(started(), *committing(1), in_round(2, 1, CohortPersisted(1)))
    trains = [effect for effect in effects if isinstance(effect, SendTrain)]
    assert [train.model_hash for train in trains] == ["m1"]
    assert run.current is not None and run.current.model_hash == "m1"


def test_the_last_commit_completes_the_run() -> None:
    run, effects = drive(started(), *committing(1), *committing(2))
    assert run.state is RunState.COMPLETED
    assert effects[-1] == EndRun(True, "m2", "")


def test_an_aborted_attempt_is_followed_by_another_from_the_same_model() -> None:
    run, effects = drive(started(), *failing(1, 1))
    assert run.current is not None
    assert (run.current.ref, run.current.model_hash) == (RoundRef(1, 2), "m0")
    assert RoundOpened(RoundRef(1, 2)) in effects


def test_too_many_aborted_attempts_in_a_row_pause_the_run_and_say_why() -> None:
    run, effects = drive(started(), *failing(1, 1), *failing(1, 2))
    assert run.state is RunState.PAUSED
    assert run.reason == "round 1 failed 2 times, last: no"
    assert effects[-1] == RunPaused(run.reason)


def test_a_commit_forgives_earlier_failures() -> None:
    run, _ = drive(started(), *failing(1, 1), *committing(1, 2), *failing(2, 1))
    assert (run.state, run.failures) == (RunState.RUNNING, 1)


def test_resume_opens_a_new_attempt_and_counts_anew() -> None:
    paused, _ = drive(started(), *failing(1, 1), *failing(1, 2))
    run, effects = advance(paused, Resume(5))
    assert run.current is not None
    assert (run.state, run.failures, run.reason) == (RunState.RUNNING, 0, "")
    assert run.current.ref == RoundRef(1, 3)
    assert OfferRun() in effects


def test_a_pause_aborts_the_attempt_and_no_retry_follows() -> None:
    run, effects = advance(started(), Pause("disk full"))
    assert run.current is not None
    assert (run.state, run.current.state) == (RunState.PAUSED, RoundState.ABORTED)
    assert [type(effect) for effect in effects] == [CloseRound, RunPaused]


@pytest.mark.parametrize("before", [Run(TERMS, "m0"), started(), drive(started(), Pause("x"))[0]])
def test_an_operator_can_abort_a_run_that_is_not_over(before: Run) -> None:
    run, effects = advance(before, AbortRun("enough"))
    assert run.state is RunState.ABORTED
    assert effects[-1] == EndRun(False, "m0", "enough")
    assert [effect for effect in effects if isinstance(effect, PublishModel)] == []


@pytest.mark.parametrize(
    ("before", "received"),
    [
        (Run(TERMS, "m0"), Resume(1)),
        (Run(TERMS, "m0"), in_round(1, 1, JoinDeadline())),
        (started(), Start(1)),
        (started(), Resume(1)),
        (drive(started(), Pause("x"))[0], Start(1)),
        (drive(started(), AbortRun("x"))[0], Resume(1)),
        (drive(started(), AbortRun("x"))[0], AbortRun("y")),
    ],
)
def test_what_the_table_does_not_name_is_an_error_that_names_both(
    before: Run, received: RunInput
) -> None:
    with pytest.raises(IllegalTransitionError) as caught:
        advance(before, received)
    assert before.state.value in caught.value.what
    assert type(received).__name__ in caught.value.what


def test_an_update_for_an_earlier_attempt_is_stale_and_an_old_timer_means_nothing() -> None:
    run, _ = drive(started(), *failing(1, 1))
    with pytest.raises(StaleRoundError):
        advance(run, in_round(1, 1, UpdateAccepted("a", "a1")))
    assert advance(run, in_round(1, 1, JoinDeadline())) == (run, ())
    assert advance(run, in_round(1, 1, Aggregated("m9"))) == (run, ())


def test_a_site_that_joins_twice_is_asked_once() -> None:
    run, _ = drive(started(), in_round(1, 1, CohortPersisted(1)))
    assert advance(run, SiteJoined("a")) == (run, ())
    _, effects = drive(run, SiteLeft("a"), SiteJoined("a"))
    assert [type(effect) for effect in effects] == [SendTrain]


def test_a_stranger_cannot_join() -> None:
    with pytest.raises(NotOnRosterError):
        advance(started(), SiteJoined("mallory"))


THREE = RunTerms(rounds=2, max_attempts=2, round=RoundTerms(frozenset("abc"), 2, 1_000, 9_000))


def test_sites_join_before_the_start_and_the_first_cohort_is_sealed_at_once() -> None:
    run, effects = drive(Run(TERMS, "m0"), SiteJoined("a"), SiteJoined("b"), Start(0))
    assert effects[-1] == PersistCohort(RoundRef(1, 1), ("a", "b"))
    assert run.current is not None and run.current.state is RoundState.COHORT_SEALED


def test_later_cohorts_are_sealed_without_an_expelled_site_until_it_joins_again() -> None:
    joined = [SiteJoined(site) for site in "abc"]
    run, _ = drive(Run(THREE, "m0"), Start(0), *joined, in_round(1, 1, CohortPersisted(1)))
    run, effects = drive(
        run,
        SiteExpelled("c", "revoked", 5),
        in_round(1, 1, UpdateAccepted("a", "a1")),
        in_round(1, 1, UpdateAccepted("b", "b1")),
        in_round(1, 1, Aggregated("m1")),
    )
    assert effects[-1] == PersistCohort(RoundRef(2, 1), ("a", "b"))
    assert (run.joined, run.expelled) == (frozenset("ab"), frozenset("c"))
    back, effects = drive(run, in_round(2, 1, CohortPersisted(1)), SiteJoined("c"))
    assert effects == ()
    assert (back.joined, back.expelled) == (frozenset("abc"), frozenset())
    assert back.current is not None and back.current.cohort == ("a", "b")


def test_a_site_that_was_expelled_from_a_cohort_is_back_in_the_next_round_and_not_before() -> None:
    """Delivering, refusing while the sum is formed, and approving again fails one attempt a round."""
    joined = [SiteJoined(site) for site in "abc"]
    run, _ = drive(Run(THREE, "m0"), Start(0), *joined, in_round(1, 1, CohortPersisted(1)))
    run, effects = drive(
        run,
        *(in_round(1, 1, UpdateAccepted(site, f"{site}1")) for site in "abc"),
        SiteExpelled("c", "refused the plan", 5),
    )
    assert effects[-1] == PersistCohort(RoundRef(1, 2), ("a", "b"))
    run, effects = drive(run, in_round(1, 2, CohortPersisted(6)), SiteJoined("c"))
    assert effects == ()
    assert (run.joined, run.expelled, run.barred) == (frozenset("abc"), frozenset(), {"c"})
    run = replace(Run.from_json(json.loads(json.dumps(run.to_json())), THREE), present=run.present)
    third, effects = drive(run, in_round(1, 2, Abort("no reason")))
    assert third.state is RunState.PAUSED and third.failures == 2
    _, effects = drive(third, Resume(7))
    assert effects[-1] == PersistCohort(RoundRef(1, 3), ("a", "b", "c"))
    _, effects = drive(
        run,
        in_round(1, 2, UpdateAccepted("a", "a2")),
        in_round(1, 2, UpdateAccepted("b", "b2")),
        in_round(1, 2, Aggregated("m1")),
    )
    assert effects[-1] == PersistCohort(RoundRef(2, 1), ("a", "b", "c"))


def test_a_site_that_the_quorum_needs_is_let_in_again_in_the_same_round() -> None:
    joined = [SiteJoined(site) for site in "ab"]
    run, _ = drive(Run(TERMS, "m0"), Start(0), *joined, in_round(1, 1, CohortPersisted(1)))
    run, _ = drive(run, SiteExpelled("b", "refused the plan", 5))
    assert (run.barred, run.kept_out) == ({"b"}, frozenset())
    _, effects = drive(run, SiteJoined("b"))
    assert effects == (PersistCohort(RoundRef(1, 2), ("a", "b")),)


def test_a_site_that_was_expelled_before_the_cohort_was_sealed_can_be_in_it() -> None:
    run, _ = drive(Run(THREE, "m0"), Start(0), SiteJoined("c"), SiteExpelled("c", "no", 5))
    _, effects = drive(run, *(SiteJoined(site) for site in "cab"))
    assert effects == (PersistCohort(RoundRef(1, 1), ("a", "b", "c")),)


def test_an_expulsion_that_ends_an_attempt_opens_the_next_one_which_waits() -> None:
    run, _ = drive(started(), in_round(1, 1, CohortPersisted(1)))
    run, effects = advance(run, SiteExpelled("b", "refused the plan", 5))
    assert [type(effect) for effect in effects] == [CloseRound, RoundOpened, StartTimer]
    assert run.current is not None and run.current.ref == RoundRef(1, 2)
    _, effects = advance(run, SiteJoined("b"))
    assert effects == (PersistCohort(RoundRef(1, 2), ("a", "b")),)


def test_an_expulsion_is_kept_in_every_state_and_over_a_restart() -> None:
    for before in (Run(TERMS, "m0"), started(), drive(started(), Pause("x"))[0]):
        run, _ = advance(before, SiteExpelled("a", "revoked", 5))
        back = Run.from_json(json.loads(json.dumps(run.to_json())), TERMS)
        assert back.expelled == run.expelled == {"a"}
        assert "a" not in run.joined
    with pytest.raises(NotOnRosterError):
        advance(started(), SiteExpelled("mallory", "revoked", 5))


def test_a_run_read_back_goes_on_where_it_stood() -> None:
    run, _ = drive(started(), *committing(1), in_round(2, 1, CohortPersisted(1)))
    back = Run.from_json(json.loads(json.dumps(run.to_json())), TERMS)
    back, effects = advance(back, Restarted(at_ms=7, grace_ms=1))
    assert [type(effect) for effect in effects] == [StartTimer]
    assert back.to_json() == run.to_json()
    back, effects = drive(back, SiteJoined("b"))
    assert [effect.sites for effect in effects if isinstance(effect, SendTrain)] == [("b",)]


def test_a_restart_wakes_no_run_that_waits_for_its_operator() -> None:
    paused, _ = drive(started(), Pause("x"))
    assert advance(paused, Restarted(9, 1))[1] == ()


# --- spent models, and sites that were caught -----------------------------------------------------

MASKED = RunTerms(
    rounds=3,
    max_attempts=2,
    round=RoundTerms(frozenset("abcd"), 3, 1_000, 9_000, masked=True),
)


def masked_run() -> Run:
    """In its first round, whose shares were asked for."""
    return drive(Run(MASKED, "m0"), Start(0), *(SiteJoined(site) for site in "abcd"), *spending(1))[
        0
    ]


def spending(number: int) -> list[RunInput]:
    return [
        in_round(number, 1, CohortPersisted(1)),
        *(in_round(number, 1, UpdateAccepted(site, f"{site}{number}")) for site in "abcd"),
        in_round(number, 1, SharesAsked()),
    ]


def losing(number: int) -> list[RunInput]:
    """A round of :func:`masked_run`, whose first one is spent already."""
    return [
        *(spending(number) if number > 1 else []),
        in_round(number, 1, Abort("too few")),
        in_round(number, 1, Aggregated(f"m{number}+", lost=True)),
    ]


def test_a_lost_round_is_counted_and_the_next_one_starts_from_the_changed_model() -> None:
    run, _ = drive(masked_run(), *losing(1))
    assert run.current is not None
    assert (run.state, run.lost_rounds, run.failures) == (RunState.RUNNING, (1,), 1)
    assert (run.current.ref, run.current.model_hash) == (RoundRef(2, 1), "m1+")


def test_as_many_lost_rounds_in_a_row_as_attempts_pause_the_run_between_two_rounds() -> None:
    run, effects = drive(masked_run(), *losing(1), *losing(2))
    assert (run.state, run.lost_rounds) == (RunState.PAUSED, (1, 2))
    assert effects[-1] == RunPaused("2 failures in a row, the last in round 2: too few")
    back = Run.from_json(json.loads(json.dumps(run.to_json())), MASKED)
    resumed, effects = advance(back, Resume(9))
    assert RoundOpened(RoundRef(3, 1)) in effects
    assert resumed.lost_rounds == (1, 2)


def test_the_end_of_a_run_says_how_many_rounds_gave_no_sum() -> None:
    terms = replace(MASKED, rounds=1)
    run, effects = drive(replace(masked_run(), terms=terms), *losing(1))
    assert run.state is RunState.COMPLETED
    assert effects[-1] == EndRun(True, "m1+", "1 of 1 rounds gave no sum")


@pytest.mark.parametrize("lost_first", [False, True])
def test_a_pause_over_a_spent_round_makes_the_changed_model_at_the_resume(lost_first: bool) -> None:
    run = drive(masked_run(), *losing(1)[:1])[0] if lost_first else masked_run()
    paused, _ = advance(run, Pause("full disk"))
    resumed, effects = advance(paused, Resume(9))
    assert effects == (OfferRun(), Aggregate(RoundRef(1, 1), (), "m0"))
    after, _ = advance(resumed, in_round(1, 1, Aggregated("m0+", lost=True)))
    assert after.lost_rounds == (1,) and after.model_hash == "m0+"


def test_a_changed_model_that_cannot_be_made_pauses_the_run_at_once() -> None:
    run, effects = drive(
        masked_run(), losing(1)[0], in_round(1, 1, AggregationFailed("gone", lost=True))
    )
    assert run.state is RunState.PAUSED
    assert run.reason == "round 1 can neither give a sum nor be repeated: gone"
    assert not [effect for effect in effects if isinstance(effect, RoundOpened)]


def test_a_caught_site_is_in_no_later_cohort_until_a_resume() -> None:
    run, effects = advance(masked_run(), SitesCaught(frozenset("d"), "junk"))
    assert effects == (SitesKeptOut(("d",), "junk"),)
    assert advance(run, SitesCaught(frozenset("d"), "junk")) == (run, ())
    run = replace(Run.from_json(json.loads(json.dumps(run.to_json())), MASKED), present=run.present)
    run, effects = drive(run, *losing(1))
    assert effects[-1] == PersistCohort(RoundRef(2, 1), ("a", "b", "c"))
    again, _ = drive(run, SiteLeft("d"), SiteJoined("d"))
    assert again.caught == {"d"} and again.current is not None
    assert "d" not in again.current.present
    _, effects = drive(again, Pause("x"), Resume(9))
    assert effects[-1] == PersistCohort(RoundRef(2, 2), ("a", "b", "c", "d"))


def test_a_quorum_lets_no_caught_site_back_in() -> None:
    run, _ = drive(masked_run(), SitesCaught(frozenset("cd"), "junk"))
    run, effects = drive(run, *losing(1))
    assert run.state is RunState.PAUSED
    assert "without c, d, caught at breaking round 1, 2 of 4 sites remain, quorum 3" in run.reason
    assert effects[-1] == RunPaused(run.reason)


# --- the exchange of experts in the middle of a run -------------------------------------------------

FREEZE = replace(TERMS, exchange_after=1)


def frozen() -> Run:
    return drive(replace(started(), terms=FREEZE), *committing(1))[0]


def test_a_run_pauses_by_itself_after_the_round_that_the_exchange_follows() -> None:
    run, effects = drive(replace(started(), terms=FREEZE), *committing(1))
    assert run.state is RunState.PAUSED and run.waits_for_exchange
    assert (run.model_hash, run.failures) == ("m1", 0)
    assert "fedpalm-coordinator exchange propose" in run.reason
    assert [type(effect) for effect in effects] == [PublishModel, CloseRound, RunPaused]


def test_a_run_that_waits_for_the_exchange_goes_on_after_it_and_not_before() -> None:
    run = Run.from_json(json.loads(json.dumps(frozen().to_json())), FREEZE)
    assert run.waits_for_exchange
    with pytest.raises(StateError, match="waits for the exchange of experts after round 1"):
        advance(run, Resume(5))
    resumed, effects = advance(run, Resume(5, exchanged=True))
    assert RoundOpened(RoundRef(2, 1)) in effects and not resumed.waits_for_exchange
    done, _ = drive(resumed, SiteJoined("a"), SiteJoined("b"), *committing(2))
    assert done.state is RunState.COMPLETED


def test_a_run_that_waits_for_the_exchange_can_be_aborted() -> None:
    run, effects = advance(frozen(), AbortRun("enough"))
    assert run.state is RunState.ABORTED and effects == (EndRun(False, "m1", "enough"),)


def test_a_pause_for_another_reason_takes_a_resume_without_an_exchange() -> None:
    resumed = drive(frozen(), Resume(5, exchanged=True))[0]
    for run in (drive(replace(started(), terms=FREEZE), Pause("disk full"))[0], resumed):
        paused = run if run.state is RunState.PAUSED else advance(run, Pause("disk full"))[0]
        assert not paused.waits_for_exchange
        assert advance(paused, Resume(6))[0].state is RunState.RUNNING


def test_a_run_whose_last_round_the_exchange_follows_is_completed() -> None:
    run, _ = drive(replace(started(), terms=replace(TERMS, exchange_after=2)), *committing(1))
    assert run.state is RunState.RUNNING
    assert drive(run, *committing(2))[0].state is RunState.COMPLETED


@pytest.mark.parametrize(("exchange", "after"), [("freeze", 3), ("deployment", None)])
def test_the_plan_says_after_which_round_a_run_waits(exchange: str, after: int | None) -> None:
    plan = exchange_plan(rounds=9, expert_exchange=exchange)
    assert RunTerms.of(plan).exchange_after == after
