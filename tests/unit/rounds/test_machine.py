"""One attempt of a round: who is waited for, what counts, what is late."""

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
    AskCheckpoints,
    CheckpointGiven,
    CloseRound,
    CohortPersisted,
    Effects,
    JoinDeadline,
    PersistCohort,
    PublishModel,
    Restarted,
    Resumed,
    RoundDeadline,
    RoundInput,
    RoundRef,
    SendTrain,
    SharesAsked,
    SiteExpelled,
    SiteJoined,
    SiteLeft,
    StartTimer,
    Stop,
    SumReady,
    TimerKind,
    UpdateAccepted,
)
from fedpalm.rounds.machine import Round, RoundState, RoundTerms, open_round, step

REF = RoundRef(3, 1)
TERMS = RoundTerms(frozenset("abcd"), quorum=2, join_deadline_ms=1_000, round_deadline_ms=9_000)
ALL = frozenset("abcd")


def drive(current: Round, *inputs: RoundInput) -> tuple[Round, Effects]:
    """Feed all; the effects of the last."""
    effects: Effects = ()
    for one in inputs:
        current, effects = step(current, one)
    return current, effects


def opened(present: frozenset[str] = frozenset()) -> Round:
    return open_round(TERMS, REF, "m0", present, at_ms=100)[0]


def collecting(*cohort: str) -> Round:
    joins = [SiteJoined(site) for site in cohort or "abcd"]
    inputs: list[RoundInput] = [*joins]
    if cohort:
        inputs.append(JoinDeadline())
    return drive(opened(), *inputs, CohortPersisted(at_ms=500))[0]


def test_a_round_waits_for_the_roster_until_the_join_deadline() -> None:
    _, effects = open_round(TERMS, REF, "m0", frozenset("ab"), at_ms=100)
    assert effects == (StartTimer(REF, TimerKind.JOIN, 1_100),)


def test_the_cohort_is_sealed_at_once_when_the_whole_roster_is_present() -> None:
    current, effects = open_round(TERMS, REF, "m0", ALL, at_ms=100)
    assert current.state is RoundState.COHORT_SEALED
    assert effects == (PersistCohort(REF, ("a", "b", "c", "d")),)


def test_the_cohort_is_sealed_when_the_last_site_joins() -> None:
    current, effects = drive(opened(), *(SiteJoined(site) for site in "dbca"))
    assert effects == (PersistCohort(REF, ("a", "b", "c", "d")),)
    assert current.state is RoundState.COHORT_SEALED


def test_a_site_that_left_before_the_seal_is_not_in_the_cohort() -> None:
    joins = (SiteJoined("a"), SiteJoined("b"), SiteJoined("c"), SiteLeft("b"))
    current, _ = drive(opened(), *joins, JoinDeadline())
    assert current.cohort == ("a", "c")


def test_too_few_sites_at_the_join_deadline_abort_the_attempt() -> None:
    current, effects = drive(opened(), SiteJoined("a"), JoinDeadline())
    assert current.state is RoundState.ABORTED
    assert effects == (CloseRound(REF, False, "m0", "1 of 4 sites joined in time, quorum 2"),)


def test_nobody_is_asked_to_train_before_the_cohort_is_stored() -> None:
    sealed, before = drive(opened(), *(SiteJoined(site) for site in "abcd"))
    assert not any(isinstance(effect, SendTrain) for effect in before)
    _, after = step(sealed, CohortPersisted(at_ms=500))
    assert after == (
        StartTimer(REF, TimerKind.ROUND, 9_500),
        SendTrain(REF, ("a", "b", "c", "d"), "m0", 9_500),
    )


def test_the_last_update_closes_the_survivor_set() -> None:
    current = collecting()
    inputs = [UpdateAccepted(site, f"h-{site}") for site in "cadb"]
    current, effects = drive(current, *inputs)
    assert current.state is RoundState.AGGREGATING
    assert effects == (Aggregate(REF, ("a", "b", "c", "d"), "m0"),)


def test_the_deadline_closes_the_survivor_set_if_there_is_a_quorum() -> None:
    current, effects = drive(
        collecting(), UpdateAccepted("d", "h-d"), UpdateAccepted("a", "h-a"), RoundDeadline()
    )
    assert effects == (Aggregate(REF, ("a", "d"), "m0"),)
    assert current.survivors == ("a", "d")


def test_the_deadline_aborts_without_a_quorum() -> None:
    current, effects = drive(collecting(), UpdateAccepted("d", "h-d"), RoundDeadline())
    assert current.state is RoundState.ABORTED
    assert effects == (CloseRound(REF, False, "m0", "1 of 4 sites delivered in time, quorum 2"),)


def test_the_same_update_again_changes_nothing_in_any_later_state() -> None:
    current = collecting("a", "b")
    again = UpdateAccepted("a", "h-a")
    for received in (
        UpdateAccepted("a", "h-a"),
        UpdateAccepted("b", "h-b"),
        Aggregated("m1"),
    ):
        current, _ = step(current, received)
        assert step(current, again) == (current, ())


def test_another_update_of_the_same_site_is_refused_and_the_first_stays() -> None:
    current, _ = drive(collecting(), UpdateAccepted("a", "h-a"))
    with pytest.raises(StateError, match="already delivered"):
        step(current, UpdateAccepted("a", "other"))
    assert current.delivered == {"a": "h-a"}


def test_a_straggler_is_told_that_the_round_is_over_and_changes_nothing() -> None:
    current, _ = drive(
        collecting(), UpdateAccepted("a", "h-a"), UpdateAccepted("b", "h-b"), RoundDeadline()
    )
    with pytest.raises(StaleRoundError):
        step(current, UpdateAccepted("c", "h-c"))
    assert current.survivors == ("a", "b")


def test_a_site_outside_the_cohort_does_not_count() -> None:
    with pytest.raises(NotOnRosterError):
        step(collecting("a", "b"), UpdateAccepted("c", "h-c"))


@pytest.mark.parametrize("current", [opened(), collecting("a", "b")])
def test_a_site_outside_the_roster_does_not_join(current: Round) -> None:
    with pytest.raises(NotOnRosterError):
        step(current, SiteJoined("mallory"))


def test_a_site_that_comes_back_is_asked_again_unless_it_delivered() -> None:
    current, _ = drive(collecting(), UpdateAccepted("a", "h-a"), SiteLeft("a"), SiteLeft("b"))
    assert step(current, SiteJoined("a"))[1] == ()
    assert step(current, SiteJoined("b"))[1] == (SendTrain(REF, ("b",), "m0", 9_500),)


def test_a_site_that_missed_the_seal_is_not_asked() -> None:
    assert step(collecting("a", "b"), SiteJoined("c"))[1] == ()


def gone(site: str) -> SiteExpelled:
    return SiteExpelled(site, "revoked", at_ms=700)


def test_the_cohort_is_sealed_without_a_site_that_was_expelled() -> None:
    sealed, effects = drive(opened(), *(SiteJoined(site) for site in "abc"), gone("d"))
    assert effects == (PersistCohort(REF, ("a", "b", "c")),)
    assert sealed.state is RoundState.COHORT_SEALED
    _, effects = open_round(TERMS, REF, "m0", ALL, at_ms=100, expelled=frozenset("ab"))
    assert effects == (PersistCohort(REF, ("c", "d")),)


def test_too_few_that_can_come_are_waited_for_until_the_join_deadline() -> None:
    current, effects = open_round(TERMS, REF, "m0", ALL, at_ms=100, expelled=frozenset("abc"))
    assert effects == (StartTimer(REF, TimerKind.JOIN, 1_100),)
    back, effects = step(current, SiteJoined("a"))
    assert effects == (PersistCohort(REF, ("a", "d")),)
    assert back.expelled == frozenset("bc")


def test_an_update_of_an_expelled_site_does_not_count_and_the_rest_is_summed() -> None:
    current, effects = drive(
        collecting("a", "b", "c"),
        UpdateAccepted("b", "h-b"),
        UpdateAccepted("c", "h-c"),
        gone("a"),
    )
    assert effects == (Aggregate(REF, ("b", "c"), "m0"),)
    current, effects = drive(
        collecting("a", "b", "c"), UpdateAccepted("a", "h-a"), gone("a"),
        UpdateAccepted("b", "h-b"), UpdateAccepted("c", "h-c"),
    )  # fmt: skip
    assert effects == (Aggregate(REF, ("b", "c"), "m0"),)
    assert current.cohort == ("a", "b", "c")
    assert current.survivors == ("b", "c")


def test_an_expelled_site_is_refused_and_not_asked_again_in_this_attempt() -> None:
    current, _ = drive(collecting("a", "b", "c"), gone("a"))
    with pytest.raises(StaleRoundError, match="expelled"):
        step(current, UpdateAccepted("a", "h-a"))
    assert step(current, SiteJoined("a"))[1] == ()
    assert current.expelled == {"a"}


def test_an_expulsion_between_seal_and_store_asks_the_others_only() -> None:
    sealed, _ = drive(opened(), *(SiteJoined(site) for site in "abcd"))
    _, effects = drive(sealed, gone("b"), CohortPersisted(at_ms=500))
    assert effects[1] == SendTrain(REF, ("a", "c", "d"), "m0", 9_500)


@pytest.mark.parametrize("delivered", [(), ("a",), ("b",)])
def test_fewer_than_quorum_left_abort_the_attempt_at_once(delivered: tuple[str, ...]) -> None:
    given = [UpdateAccepted(site, f"h-{site}") for site in delivered]
    current, effects = drive(collecting("a", "b"), *given, gone("a"))
    reason = "site a was expelled (revoked): 1 of 2 sites remain, quorum 2"
    assert effects == (CloseRound(REF, False, "m0", reason),)
    assert current.state is RoundState.ABORTED


def test_an_expelled_site_does_not_make_the_quorum_at_the_deadline() -> None:
    current, effects = drive(
        collecting("a", "b", "c"), UpdateAccepted("a", "h-a"), gone("a"),
        UpdateAccepted("b", "h-b"), RoundDeadline(),
    )  # fmt: skip
    assert current.state is RoundState.ABORTED
    assert effects == (CloseRound(REF, False, "m0", "1 of 3 sites delivered in time, quorum 2"),)


def test_a_sum_that_holds_an_expelled_sites_update_is_thrown_away() -> None:
    summing, _ = drive(
        collecting("a", "b", "c"),
        UpdateAccepted("a", "h-a"), UpdateAccepted("b", "h-b"), RoundDeadline(),
    )  # fmt: skip
    still, effects = step(summing, gone("c"))
    assert (still.state, effects) == (RoundState.AGGREGATING, ())
    aborted, effects = step(still, gone("a"))
    assert aborted.state is RoundState.ABORTED
    assert [type(effect) for effect in effects] == [CloseRound]
    assert step(aborted, Aggregated("m1")) == (aborted, ())


def test_a_restart_sums_without_the_site_that_was_expelled_even_if_it_is_back() -> None:
    summing, _ = drive(
        collecting("a", "b", "c"), UpdateAccepted("a", "h-a"), gone("a"),
        UpdateAccepted("b", "h-b"), UpdateAccepted("c", "h-c"), SiteJoined("a"),
    )  # fmt: skip
    back = Round.from_json(json.loads(json.dumps(summing.to_json())), TERMS)
    assert step(back, RESTART)[1] == (Aggregate(REF, ("b", "c"), "m0"),)


def test_what_was_committed_stays_committed() -> None:
    done, _ = drive(
        collecting("a", "b"),
        UpdateAccepted("a", "h-a"), UpdateAccepted("b", "h-b"), Aggregated("m1"),
    )  # fmt: skip
    after, effects = step(done, gone("a"))
    assert (after.survivors, after.state, effects) == (("a", "b"), RoundState.COMMITTED, ())


def test_a_commit_publishes_then_closes() -> None:
    current, effects = drive(
        collecting("a", "b"),
        UpdateAccepted("a", "h-a"),
        UpdateAccepted("b", "h-b"),
        Aggregated("m1"),
    )
    assert (current.state, current.result) == (RoundState.COMMITTED, "m1")
    assert effects == (PublishModel(REF, "m1"), CloseRound(REF, True, "m1", ""))


def test_a_failed_sum_aborts_and_keeps_the_old_model() -> None:
    current, effects = drive(
        collecting("a", "b"),
        UpdateAccepted("a", "h-a"),
        UpdateAccepted("b", "h-b"),
        AggregationFailed("cosmic ray"),
    )
    assert effects == (CloseRound(REF, False, "m0", "cosmic ray"),)
    assert current.result == ""


def test_a_sum_that_ends_after_an_abort_commits_nothing() -> None:
    current, _ = drive(
        collecting("a", "b"), UpdateAccepted("a", "x"), UpdateAccepted("b", "y"), Abort("operator")
    )
    assert step(current, Aggregated("m1")) == (current, ())


@pytest.mark.parametrize("late", [JoinDeadline(), RoundDeadline()])
def test_a_timer_that_rings_late_is_ignored(late: RoundInput) -> None:
    current, _ = drive(collecting("a", "b"), UpdateAccepted("a", "x"), UpdateAccepted("b", "y"))
    assert step(current, late) == (current, ())


@pytest.mark.parametrize(
    ("current", "received"),
    [
        (opened(), CohortPersisted(1)),
        (opened(), RoundDeadline()),
        (opened(), Aggregated("m1")),
        (collecting("a", "b"), CohortPersisted(1)),
        (collecting("a", "b"), Aggregated("m1")),
        (drive(opened(), Abort("x"))[0], Abort("again")),
    ],
)
def test_what_the_table_does_not_name_is_an_error_that_names_both(
    current: Round, received: RoundInput
) -> None:
    with pytest.raises(IllegalTransitionError) as caught:
        step(current, received)
    assert current.state.value in caught.value.what
    assert type(received).__name__ in caught.value.what


RESTART = Restarted(at_ms=50_000, grace_ms=60)


@pytest.mark.parametrize(
    ("current", "owed"),
    [
        (opened(frozenset("ab")), (StartTimer(REF, TimerKind.JOIN, 50_060),)),
        (opened(ALL), (PersistCohort(REF, ("a", "b", "c", "d")),)),
        (collecting("a", "b"), (StartTimer(REF, TimerKind.ROUND, 50_060),)),
        (
            drive(collecting("a", "b"), UpdateAccepted("a", "x"), UpdateAccepted("b", "y"))[0],
            (Aggregate(REF, ("a", "b"), "m0"),),
        ),
        (drive(opened(), Abort("x"))[0], ()),
    ],
)
def test_a_round_read_back_owes_what_its_state_owes_and_nobody_is_present(
    current: Round, owed: Effects
) -> None:
    stored = json.loads(json.dumps(current.to_json()))
    back, effects = step(Round.from_json(stored, TERMS), RESTART)
    assert effects == owed
    assert back.present == frozenset()
    assert (back.state, back.cohort, back.delivered) == (
        current.state,
        current.cohort,
        current.delivered,
    )


def test_a_restart_keeps_a_deadline_that_is_far_away() -> None:
    current = collecting("a", "b")
    _, effects = step(current, Restarted(at_ms=600, grace_ms=60))
    assert effects == (StartTimer(REF, TimerKind.ROUND, 9_500),)


# --- masking --------------------------------------------------------------------------------------

MASKED = RoundTerms(
    frozenset("abcd"), quorum=3, join_deadline_ms=1_000, round_deadline_ms=9_000, masked=True
)


def masked(*delivered: str) -> Round:
    """A masked attempt of all four, with these sites' masked updates in."""
    sealed, _ = open_round(MASKED, REF, "m0", ALL, at_ms=100)
    updates = [UpdateAccepted(site, f"y-{site}") for site in delivered]
    return drive(sealed, CohortPersisted(at_ms=500), *updates)[0]


def test_under_masking_the_steps_get_the_timer() -> None:
    sealed, _ = open_round(MASKED, REF, "m0", ALL, at_ms=100)
    _, effects = step(sealed, CohortPersisted(at_ms=500))
    assert effects == (
        StartTimer(REF, TimerKind.MASKING, 9_500),
        SendTrain(REF, ("a", "b", "c", "d"), "m0", 9_500),
    )
    _, owed = step(masked(), Restarted(at_ms=50_000, grace_ms=60))
    assert owed == (StartTimer(REF, TimerKind.MASKING, 50_060),)


def test_under_masking_the_last_update_makes_no_sum() -> None:
    current = masked("a", "b", "c", "d")
    assert current.state is RoundState.COLLECTING


def test_a_masked_sum_has_exactly_the_survivors() -> None:
    current, effects = step(masked("d", "a", "c"), SumReady(("a", "c", "d")))
    assert current.state is RoundState.AGGREGATING
    assert effects == (Aggregate(REF, ("a", "c", "d"), "m0"),)


@pytest.mark.parametrize("survivors", [("a", "c"), ("a", "b", "c", "d"), ("d", "c", "a"), ()])
def test_no_masked_sum_has_other_survivors_than_delivered(survivors: tuple[str, ...]) -> None:
    with pytest.raises(IllegalTransitionError):
        step(masked("a", "c", "d"), SumReady(survivors))


def test_without_masking_nobody_says_whose_sum_it_is() -> None:
    current, _ = drive(
        collecting("a", "b", "c"), UpdateAccepted("a", "x"), UpdateAccepted("b", "y")
    )
    with pytest.raises(IllegalTransitionError):
        step(current, SumReady(("a", "b")))


def test_under_masking_the_round_has_no_deadline_of_its_own() -> None:
    with pytest.raises(IllegalTransitionError, match="deadlines of their own"):
        step(masked("a", "b", "c"), RoundDeadline())


def test_a_masked_sum_below_the_quorum_ends_the_attempt() -> None:
    current, _ = step(masked("a", "b"), SumReady(("a", "b")))
    assert current.state is RoundState.ABORTED
    assert "2 of 4 sites are in the masked sum, quorum 3" in current.reason


def test_a_masked_attempt_goes_on_without_a_site_whose_update_has_not_come() -> None:
    current, effects = step(masked("a", "b", "c"), SiteExpelled("d", "revoked", at_ms=600))
    assert (current.state, effects) == (RoundState.COLLECTING, ())
    done, _ = step(current, SumReady(("a", "b", "c")))
    assert done.state is RoundState.AGGREGATING


def test_a_masked_attempt_ends_with_a_site_whose_update_has_come() -> None:
    current, effects = step(masked("a", "b", "c"), SiteExpelled("b", "revoked", at_ms=600))
    assert current.state is RoundState.ABORTED
    assert "b was expelled (revoked) after its masked update came" in current.reason
    assert effects == (CloseRound(REF, False, "m0", current.reason),)


def test_the_end_of_the_steps_may_come_after_the_attempt_was_aborted() -> None:
    gone, _ = step(masked("a", "b", "c"), Abort("x"))
    assert step(gone, SumReady(("a", "b", "c"))) == (gone, ())


# --- spent models ---------------------------------------------------------------------------------

LOST = Aggregate(REF, (), "m0")


def spent() -> Round:
    """All four have delivered, and their shares were asked for."""
    return step(masked("a", "b", "c", "d"), SharesAsked())[0]


def summing() -> Round:
    return step(spent(), SumReady(("a", "b", "c", "d")))[0]


@pytest.mark.parametrize(
    ("before", "received", "why"),
    [
        (spent(), Abort("reveals: too few"), "reveals: too few"),
        (spent(), SiteExpelled("b", "revoked", at_ms=600), "after its masked update came"),
        (summing(), SiteExpelled("b", "revoked", at_ms=600), "while its update was being summed"),
        (summing(), AggregationFailed("a wrong share"), "a wrong share"),
        (summing(), Aggregated("m0"), "leaves the model as it was"),
    ],
)
def test_what_would_abort_a_spent_attempt_makes_it_lost(
    before: Round, received: RoundInput, why: str
) -> None:
    lost, effects = step(before, received)
    assert effects == (LOST,) and LOST.lost
    assert lost.state is RoundState.AGGREGATING and lost.survivors == ()
    assert why in lost.lost
    done, effects = step(lost, Aggregated("m0+", lost=True))
    assert effects == (PublishModel(REF, "m0+"), CloseRound(REF, True, "m0+", lost.lost))
    assert (done.state, done.result) == (RoundState.COMMITTED, "m0+")


def test_a_sum_that_comes_after_its_round_was_lost_is_none() -> None:
    lost, _ = step(summing(), SiteExpelled("b", "revoked", at_ms=600))
    for late in (Aggregated("m1"), AggregationFailed("no")):
        assert step(lost, late) == (lost, ())
    done, _ = step(lost, Aggregated("m0+", lost=True))
    for late in (Aggregated("m1"), AggregationFailed("no"), Aggregated("m0+", lost=True)):
        assert step(done, late) == (done, ())


@pytest.mark.parametrize("before", [spent(), summing(), step(spent(), Abort("too few"))[0]])
def test_a_spent_attempt_that_is_stopped_is_lost_when_it_is_resumed(before: Round) -> None:
    stopped, effects = step(before, Stop("full disk"))
    assert effects == (CloseRound(REF, False, "m0", "full disk"),)
    back = Round.from_json(json.loads(json.dumps(stopped.to_json())), MASKED)
    assert step(back, RESTART)[1] == ()
    lost, effects = step(back, Resumed())
    assert effects == (LOST,)
    assert lost.lost == (before.lost or "full disk")


def test_a_changed_model_that_cannot_be_made_ends_the_attempt_and_can_be_tried_again() -> None:
    lost, _ = step(spent(), Abort("too few"))
    failed, effects = step(lost, AggregationFailed("the model is gone", lost=True))
    assert effects == (CloseRound(REF, False, "m0", "the model is gone"),)
    again, effects = step(failed, Resumed())
    assert (effects, again.lost) == ((LOST,), "too few")


def test_an_attempt_that_is_not_spent_is_stopped_as_any_other_and_not_resumed() -> None:
    stopped, effects = step(masked("a", "b", "c"), Stop("full disk"))
    assert effects == (CloseRound(REF, False, "m0", "full disk"),)
    with pytest.raises(IllegalTransitionError, match="not spent"):
        step(stopped, Resumed())


def test_a_lost_round_is_read_back_as_such_and_makes_the_changed_model_again() -> None:
    lost, _ = step(spent(), Abort("too few"))
    back = Round.from_json(json.loads(json.dumps(lost.to_json())), MASKED)
    again, effects = step(back, RESTART)
    assert effects == (LOST,)
    assert (again.spent, again.lost) == (True, "too few")
    still, effects = step(again, SiteExpelled("a", "revoked", at_ms=600))
    assert effects == () and still.lost == "too few"


def test_after_the_shares_were_asked_for_nobody_is_asked_to_train() -> None:
    current, _ = drive(masked("a", "b", "c"), SharesAsked(), SiteLeft("d"))
    assert step(current, SiteJoined("d"))[1] == ()


def test_nobody_is_asked_for_shares_without_masking() -> None:
    with pytest.raises(IllegalTransitionError, match="is not masked"):
        step(collecting("a", "b"), SharesAsked())


# --- under differential privacy -------------------------------------------------------------------

WITNESSED = replace(TERMS, witnessed=True)


def asked(effects: Effects) -> list[str]:
    return [site for one in effects if isinstance(one, AskCheckpoints) for site in one.sites]


def test_whoever_is_there_or_comes_is_asked_for_a_checkpoint_until_it_has_given_one() -> None:
    current, effects = open_round(WITNESSED, REF, "m0", frozenset("ab"), at_ms=100)
    assert effects == (StartTimer(REF, TimerKind.JOIN, 1_100), AskCheckpoints(REF, ("a", "b")))
    current, effects = drive(current, SiteJoined("c"))
    assert asked(effects) == ["c"]
    current, effects = drive(current, SiteLeft("c"), SiteJoined("c"))
    assert asked(effects) == ["c"]
    current, effects = drive(current, CheckpointGiven("c"), SiteLeft("c"), SiteJoined("c"))
    assert asked(effects) == []


def test_the_cohort_is_of_those_that_are_there_and_gave_a_checkpoint() -> None:
    current, _ = open_round(WITNESSED, REF, "m0", ALL, at_ms=100)
    assert current.state is RoundState.OPEN
    given = (CheckpointGiven(site) for site in "bda")
    current, effects = drive(current, *given, SiteLeft("d"), JoinDeadline())
    assert effects == (PersistCohort(REF, ("a", "b")),)
    assert current.prepared == frozenset("abd")


def test_the_last_checkpoint_seals_the_cohort() -> None:
    current, _ = open_round(WITNESSED, REF, "m0", ALL, at_ms=100)
    current, effects = drive(current, *(CheckpointGiven(site) for site in "bdca"))
    assert effects == (PersistCohort(REF, ("a", "b", "c", "d")),)


def test_too_few_checkpoints_at_the_deadline_abort_the_attempt() -> None:
    current, _ = open_round(WITNESSED, REF, "m0", ALL, at_ms=100)
    current, effects = drive(current, CheckpointGiven("a"), JoinDeadline())
    reason = "1 of 4 sites gave a checkpoint in time, quorum 2"
    assert effects == (CloseRound(REF, False, "m0", reason),)


def test_an_expelled_site_gives_another_checkpoint_when_it_is_back() -> None:
    current, _ = open_round(WITNESSED, REF, "m0", ALL, at_ms=100)
    current, _ = drive(current, CheckpointGiven("a"), SiteExpelled("a", "revoked", at_ms=200))
    current, effects = drive(current, SiteJoined("a"))
    assert asked(effects) == ["a"]
    assert current.prepared == frozenset()


def test_checkpoints_survive_a_restart() -> None:
    current, _ = open_round(WITNESSED, REF, "m0", ALL, at_ms=100)
    current, _ = drive(current, CheckpointGiven("a"))
    back = Round.from_json(json.loads(json.dumps(current.to_json())), WITNESSED)
    current, effects = drive(back, Restarted(200, 50), SiteJoined("a"))
    assert asked(effects) == []
    assert current.ready == frozenset("a")


def test_without_differential_privacy_a_checkpoint_is_an_error() -> None:
    with pytest.raises(IllegalTransitionError, match="no differential privacy"):
        drive(opened(), CheckpointGiven("a"))
    with pytest.raises(NotOnRosterError):
        drive(open_round(WITNESSED, REF, "m0", ALL, at_ms=100)[0], CheckpointGiven("z"))
