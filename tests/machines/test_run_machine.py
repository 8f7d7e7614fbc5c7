"""A run under anything that sites, timers, threads, operators and crashes can do, in any order."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fedpalm.clock import FakeClock
from fedpalm.errors import IllegalTransitionError, StateError
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
    RoundDeadline,
    RoundInput,
    RoundRef,
    SendTrain,
    SharesAsked,
    SiteExpelled,
    SiteJoined,
    SiteLeft,
    StartTimer,
    SumReady,
    TimerKind,
    UpdateAccepted,
)
from fedpalm.rounds.machine import RoundState, RoundTerms
from fedpalm.rounds.run import (
    AbortRun,
    EndRun,
    InRound,
    Pause,
    Resume,
    RoundOpened,
    Run,
    RunEffect,
    RunInput,
    RunState,
    RunTerms,
    SitesCaught,
    Start,
    advance,
)

ROSTER = ("a", "b", "c", "d")
QUORUM = 2
TERMS = RunTerms(
    rounds=3,
    max_attempts=2,
    round=RoundTerms(frozenset(ROSTER), QUORUM, join_deadline_ms=10_000, round_deadline_ms=50_000),
)
GRACE_MS = 5_000
sites = st.sampled_from(ROSTER)


class RunUnderFire(RuleBasedStateMachine):
    """Plays the keeper of a run: stores every accepted input, then carries out the effects."""

    terms = TERMS

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.fresh = Run(self.terms, "m0")
        self.run = self.fresh
        self.journal: list[RunInput] = []
        self.stored = json.dumps(self.run.to_json())
        self.timer: StartTimer | None = None
        self.sums: list[Aggregate] = []
        self.commits: Counter[int] = Counter()
        self.cohorts: dict[RoundRef, tuple[str, ...]] = {}
        self.told: dict[RoundRef, set[str]] = {}
        self.receipts: dict[tuple[RoundRef, str], str] = {}
        self.summed: dict[RoundRef, tuple[str, ...]] = {}
        self.barred: dict[RoundRef, set[str]] = {}
        self.out: set[str] = set()
        self.until_next_round: set[str] = set()
        self.kept_out: set[str] = set()
        self.caught: set[str] = set()
        self.spent: set[str] = set()
        self.lost: list[int] = []
        self.endings = 0

    def now_ms(self) -> int:
        return round(self.clock.now() * 1000)

    def feed(self, received: RunInput) -> None:
        run, effects = advance(self.run, received)
        match received:
            case SiteJoined(site=site):
                self.out.discard(site)
            case SiteExpelled(site=site):
                self.out.add(site)
                before = self.run.current
                if before is not None and before.cohort and not before.over:
                    self.barred.setdefault(before.ref, set()).add(site)
                    self.until_next_round |= {site} & set(before.cohort)
            case Resume():
                self.until_next_round.clear()
                self.caught.clear()
            case SitesCaught(sites=found):
                self.caught |= found
            case InRound(input=SharesAsked()):
                self.spent.add(self.current.model_hash)
        self.check_loss(received, run)
        self.journal.append(received)
        self.stored = json.dumps(run.to_json())
        self.run = run
        match received:
            case InRound(ref=ref, input=UpdateAccepted(site=site, payload_hash=content)):
                assert self.current.ref == ref and self.current.delivered[site] == content
                assert self.receipts.setdefault((ref, site), content) == content
        for effect in effects:
            self.carry_out(effect)

    def check_loss(self, received: RunInput, after: Run) -> None:
        """A spent attempt is aborted by those in charge alone, or if it cannot even be lost."""
        before = self.run.current
        if before is None or before.over or not before.spent or after.current is None:
            return
        if after.current.state is RoundState.ABORTED:
            assert isinstance(received, Pause | AbortRun) or before.lost

    def to_be_kept_out(self) -> set[str]:
        """Of those expelled from a cohort of this round: all, if the others can do without them.

        Decided when an attempt is opened: who joins again after that changes nothing.
        """
        rest = set(ROSTER) - self.out - self.caught - self.until_next_round
        return set(self.until_next_round) if len(rest) >= QUORUM else set()

    def carry_out(self, effect: RunEffect) -> None:
        match effect:
            case StartTimer():
                self.timer = effect
            case RoundOpened():
                assert self.run.model_hash not in self.spent
                self.kept_out = self.to_be_kept_out()
            case PersistCohort(ref=ref, cohort=cohort):
                assert ref in self.cohorts or not set(cohort) & (
                    self.out | self.caught | (self.kept_out & self.until_next_round)
                )
                assert self.cohorts.setdefault(ref, cohort) == cohort
                self.feed(self.within(CohortPersisted(self.now_ms()), ref))
            case SendTrain(ref=ref, sites=asked, model_hash=model_hash):
                assert model_hash not in self.spent
                assert set(asked) <= set(self.cohorts[ref]) - self.barred.get(ref, set())
                self.told.setdefault(ref, set()).update(asked)
            case Aggregate(ref=ref, survivors=survivors):
                assert set(survivors) <= set(self.cohorts[ref])
                assert len(survivors) >= QUORUM or (effect.lost and self.current.spent)
                assert effect.lost == bool(self.current.lost)
                assert {(ref, site) for site in survivors} <= set(self.receipts)
                assert not set(survivors) & self.barred.get(ref, set())
                self.sums.append(effect)
                self.summed[ref] = survivors
            case PublishModel(ref=ref, model_hash=model_hash):
                assert not set(self.summed[ref]) & self.barred.get(ref, set())
                assert model_hash not in self.spent
                assert model_hash.startswith("lost") == (not self.summed[ref])
                self.commits[ref.round] += 1
                self.lost += [] if self.summed[ref] else [ref.round]
            case CloseRound(model_hash=model_hash, committed=committed):
                assert model_hash == self.run.model_hash
                if committed:
                    self.until_next_round.clear()
            case EndRun():
                self.endings += 1

    @property
    def current(self):  # type: ignore[no-untyped-def]
        assert self.run.current is not None
        return self.run.current

    def within(self, received: RoundInput, ref: RoundRef | None = None) -> InRound:
        return InRound(ref or self.current.ref, received, self.now_ms())

    # --- what may happen --------------------------------------------------------------------------

    @initialize()
    def start(self) -> None:
        self.feed(Start(self.now_ms()))

    @rule(site=sites)
    def join(self, site: str) -> None:
        self.feed(SiteJoined(site))

    @rule()
    def all_join(self) -> None:
        for site in ROSTER:
            self.feed(SiteJoined(site))

    @rule(site=sites)
    def leave(self, site: str) -> None:
        self.feed(SiteLeft(site))

    @rule(site=sites, reason=st.sampled_from(["revoked", "refused the plan"]))
    def expel(self, site: str, reason: str) -> None:
        """The operator revokes a site, or its answer to the plan is now no."""
        self.feed(SiteExpelled(site, reason, self.now_ms()))

    @rule(site=sites, content=st.sampled_from(["x", "y"]), stale=st.booleans())
    def deliver(self, site: str, content: str, stale: bool) -> None:
        ref = self.current.ref
        if stale:
            ref = RoundRef(ref.round, ref.attempt + 1)
        try:
            self.feed(self.within(UpdateAccepted(site, content), ref))
        except StateError:
            assert self.receipts.get((ref, site)) != content
            assert (
                ref != self.current.ref
                or self.current.state != "collecting"
                or ((ref, site) in self.receipts or site in self.barred.get(ref, set()))
            )
        except Exception as refusal:
            assert site not in self.current.cohort, refusal
        else:
            assert self.receipts[ref, site] == content

    @precondition(lambda self: self.run.current and self.run.current.state == "collecting")
    @rule()
    def deliver_all(self) -> None:
        ref = self.current.ref
        for site in self.current.remaining:
            content = self.receipts.get((ref, site), "x")
            self.feed(self.within(UpdateAccepted(site, content), ref))

    @precondition(lambda self: self.run.current and self.run.current.delivered)
    @rule(data=st.data())
    def deliver_something_else(self, data: st.DataObject) -> None:
        site = data.draw(st.sampled_from(sorted(self.current.delivered)))
        try:
            self.feed(self.within(UpdateAccepted(site, "other")))
        except StateError:
            return
        raise AssertionError("a second update of one site was accepted")

    @precondition(lambda self: self.timer is not None)
    @rule()
    def timer_rings(self) -> None:
        assert self.timer is not None
        timer, self.timer = self.timer, None
        self.clock.advance(max(0, timer.at_ms - self.now_ms()) / 1000)
        if timer.kind is TimerKind.MASKING:
            self.step_ends(timer)
            return
        deadline = JoinDeadline() if timer.kind is TimerKind.JOIN else RoundDeadline()
        self.feed(self.within(deadline, timer.ref))

    def step_ends(self, timer: StartTimer) -> None:
        """A step of masking: the shares are asked for, then who has delivered is summed."""
        if timer.ref != self.current.ref or self.current.state is not RoundState.COLLECTING:
            return
        if len(self.current.delivered) < 2:
            self.feed(self.within(Abort("masking: too few"), timer.ref))
        elif not self.current.spent:
            self.timer = timer
            self.feed(self.within(SharesAsked(), timer.ref))
        else:
            self.feed(self.within(SumReady(self.current.survivors), timer.ref))

    @precondition(lambda self: self.sums)
    @rule(how=st.sampled_from(["well", "well", "badly", "same"]))
    def sum_ends(self, how: str) -> None:
        done = self.sums.pop(0)
        result: RoundInput
        if how == "badly":
            result = AggregationFailed("no", done.lost)
        elif how == "same" and self.terms.round.masked:
            result = Aggregated(done.model_hash, done.lost)
        else:
            name = "lost" if done.lost else "m"
            result = Aggregated(f"{name}-{done.ref.round}", done.lost)
        self.feed(self.within(result, done.ref))

    @precondition(lambda self: self.run.state == "running")
    @rule()
    def pause(self) -> None:
        self.feed(Pause("full disk"))

    @precondition(lambda self: self.run.state == "paused")
    @rule()
    def resume(self) -> None:
        self.feed(Resume(self.now_ms()))

    @precondition(lambda self: not self.run.over and len(self.journal) > 30)
    @rule()
    def abort(self) -> None:
        self.feed(AbortRun("enough"))

    @rule()
    def too_much(self) -> None:
        """A second start is refused in every state."""
        try:
            self.feed(Start(self.now_ms()))
        except IllegalTransitionError:
            return
        raise AssertionError("a run started twice")

    @rule()
    def crash(self) -> None:
        """Memory, timers and threads are gone; the store and its sites' memories are not."""
        self.timer, self.sums = None, []
        self.run = Run.from_json(json.loads(self.stored), self.terms)
        self.feed(Restarted(self.now_ms(), GRACE_MS))

    # --- what must hold ---------------------------------------------------------------------------

    @invariant()
    def a_round_commits_once_and_in_order(self) -> None:
        assert all(count == 1 for count in self.commits.values())
        assert sorted(self.commits) == list(range(1, len(self.commits) + 1))

    @invariant()
    def only_the_cohort_survives_and_a_commit_has_a_quorum(self) -> None:
        current = self.run.current
        if current is None:
            return
        assert set(current.delivered) <= set(current.cohort) <= set(ROSTER)
        if current.state in (RoundState.AGGREGATING, RoundState.COMMITTED):
            assert len(current.survivors) >= QUORUM or current.lost

    @invariant()
    def who_is_out_is_not_waited_for_and_does_not_count(self) -> None:
        assert self.run.expelled == self.out
        assert self.run.barred == self.until_next_round
        assert self.run.caught == self.caught
        assert not self.out & (self.run.joined | self.run.present)
        current = self.run.current
        if current is not None and not current.over and current.cohort:
            assert not set(current.survivors) & self.barred.get(current.ref, set())
            if current.state is not RoundState.AGGREGATING:
                assert len(current.remaining) >= QUORUM

    @invariant()
    def receipts_are_kept(self) -> None:
        current = self.run.current
        for (ref, site), content in self.receipts.items():
            if current is not None and ref == current.ref:
                assert current.delivered[site] == content

    @invariant()
    def what_is_stored_is_what_is_known(self) -> None:
        back = Run.from_json(json.loads(self.stored), self.terms)
        assert back.to_json() == self.run.to_json()

    @invariant()
    def replaying_the_accepted_inputs_reaches_the_same_state(self) -> None:
        replayed = self.fresh
        for received in self.journal:
            replayed, _ = advance(replayed, received)
        assert replayed == self.run

    @invariant()
    def something_always_goes_on(self) -> None:
        """A running run has a timer or a sum that will move it, if nobody else does."""
        if self.run.state is not RunState.RUNNING:
            return
        if self.current.state in (RoundState.OPEN, RoundState.COLLECTING):
            rung = self.timer is None
            assert rung or self.timer.ref == self.current.ref  # type: ignore[union-attr]
            assert not rung, f"{self.current.state} without a timer"
        else:
            lost = bool(self.current.lost)
            assert [one for one in self.sums if (one.ref, one.lost) == (self.current.ref, lost)]

    @invariant()
    def a_run_ends_once(self) -> None:
        assert self.endings == int(self.run.over)
        if self.run.state is RunState.COMPLETED:
            assert len(self.commits) == self.terms.rounds

    @invariant()
    def a_lost_round_is_counted(self) -> None:
        assert self.run.lost_rounds == tuple(self.lost)


def _under_way(run: Run) -> bool:
    return (
        run.state is RunState.RUNNING
        and run.current is not None
        and run.current.state in (RoundState.COLLECTING, RoundState.AGGREGATING)
    )


TestRunUnderFire = RunUnderFire.TestCase
TestRunUnderFire.settings = settings(max_examples=150, stateful_step_count=40)


class MaskedRunUnderFire(RunUnderFire):
    """The same under masking, where a sum is of exactly those that have delivered."""

    terms = replace(TERMS, round=replace(TERMS.round, masked=True))

    @precondition(lambda self: _under_way(self.run))
    @rule(site=sites)
    def catch(self, site: str) -> None:
        """Complaints or shares show that a site broke the rules."""
        self.feed(SitesCaught(frozenset({site}), "junk"))

    @precondition(lambda self: _under_way(self.run) and self.current.state == "collecting")
    @rule(then=st.sampled_from(["", "too few", "a wrong share"]))
    def ask_for_shares(self, then: str) -> None:
        """The shares are asked for, and they may come to nothing."""
        self.feed(self.within(SharesAsked()))
        if then:
            self.feed(self.within(Abort(then)))

    @invariant()
    def nobody_that_delivered_is_left_out_of_the_sum(self) -> None:
        current = self.run.current
        if current is not None and not current.over:
            assert current.lost or current.survivors == tuple(sorted(current.delivered))

    @invariant()
    def a_spent_attempt_is_not_followed_by_another_at_its_round(self) -> None:
        current = self.run.current
        if current is not None and current.model_hash in self.spent:
            assert current.spent
            assert current.state in (
                RoundState.COLLECTING, RoundState.AGGREGATING, RoundState.COMMITTED
            ) or self.run.state in (RunState.PAUSED, RunState.ABORTED)  # fmt: skip

    @rule()
    def other_survivors(self) -> None:
        """A sum of others than delivered is refused in every state that is not over."""
        current = self.current
        survivors = current.survivors[1:] if current.survivors else ("a",)
        try:
            self.feed(self.within(SumReady(survivors)))
        except IllegalTransitionError:
            return
        assert current.over or self.run.current.ref != current.ref  # type: ignore[union-attr]


TestMaskedRunUnderFire = MaskedRunUnderFire.TestCase
TestMaskedRunUnderFire.settings = settings(max_examples=150, stateful_step_count=40)
