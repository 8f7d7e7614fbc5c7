"""A run: rounds one after another, attempts at each, and what the operator may do to it.

    created --Start--> running --last round committed--> completed
    running --an attempt aborted--> running (next attempt) or paused (max_attempts in a row)
    running --too many sites caught--> paused
    running --the round that the exchange of experts follows is committed--> paused
    running --Pause--> paused --Resume--> running;   created, running, paused --AbortRun--> aborted

Sites join as soon as the run exists, and may be expelled from it; one that joins again is back. Whoever
was expelled from the cohort of an attempt is back from the next round on, as long as the others are a
quorum without it: otherwise one site could fail attempt after attempt by taking its approval back and
giving it again. A resume lets it in earlier. Whoever was caught at breaking a masked attempt takes part in
no later one until a resume, even if the run must pause because the others are no quorum.

A round is lost if it commits without a sum; see :mod:`fedpalm.rounds.machine`. It counts as a failure, like
an aborted attempt, and is not repeated. If a spent attempt was stopped, a resume ends it first, as lost.

Where the plan wants the experts exchanged in the middle of training, the run pauses by itself after that
round and takes no resume until the exchange is completed.

A run holds its current round, so one stored value is the whole truth and every advance is atomic:
the commit of round r and the opening of round r + 1 are one transition.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from ..errors import IllegalTransitionError, NotOnRosterError, StaleRoundError, StateError
from ..plan import Plan
from .events import (
    CheckpointGiven,
    Effect,
    Restarted,
    Resumed,
    RoundInput,
    RoundRef,
    SiteExpelled,
    SiteJoined,
    SiteLeft,
    Stop,
    UpdateAccepted,
)
from .machine import Round, RoundState, RoundTerms, open_round, step


class RunState(StrEnum):
    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    ABORTED = "aborted"


@dataclass(frozen=True)
class RunTerms:
    """What the plan says about the course of a run.

    ``exchange_after``: the round after which it waits for the exchange of experts; None: it never does.
    """

    rounds: int
    max_attempts: int
    round: RoundTerms
    exchange_after: int | None = None

    @classmethod
    def of(cls, plan: Plan) -> RunTerms:
        draft = plan.draft
        return cls(
            rounds=draft.rounds,
            max_attempts=draft.max_attempts,
            round=RoundTerms(
                roster=frozenset(plan.roster),
                quorum=plan.quorum,
                join_deadline_ms=round(draft.join_deadline_s * 1000),
                round_deadline_ms=round(draft.round_deadline_s * 1000),
                masked=draft.masking != "none",
                witnessed=plan.witnessed,
            ),
            exchange_after=plan.exchange_round if draft.expert_exchange == "freeze" else None,
        )


# --- inputs (besides SiteJoined, SiteLeft, SiteExpelled and Restarted) ----------------------------


@dataclass(frozen=True)
class Start:
    """The operator starts the run."""

    at_ms: int


@dataclass(frozen=True)
class Resume:
    """The operator lets a paused run go on: with a new attempt, or the end of one that is spent.

    ``exchanged``: an exchange of the run's experts is completed. A run that waits for it takes no other.
    """

    at_ms: int
    exchanged: bool = False


@dataclass(frozen=True)
class Pause:
    """The coordinator cannot go on (a full disk); retrying by itself would not help."""

    reason: str


@dataclass(frozen=True)
class AbortRun:
    """The operator ends the run for good."""

    reason: str


@dataclass(frozen=True)
class SitesCaught:
    """What these sites said in the masked attempt that is under way shows that they broke its rules."""

    sites: frozenset[str]
    reason: str


@dataclass(frozen=True)
class InRound:
    """An input for one attempt; for any other attempt than the current one it is late."""

    ref: RoundRef
    input: RoundInput
    at_ms: int


RunInput = (
    Start
    | Resume
    | Pause
    | AbortRun
    | InRound
    | SitesCaught
    | SiteJoined
    | SiteLeft
    | SiteExpelled
    | Restarted
)


# --- effects (besides the round's) ----------------------------------------------------------------


@dataclass(frozen=True)
class OfferRun:
    """Tell the roster again that there is this run: who has not joined may."""


@dataclass(frozen=True)
class RoundOpened:
    """A new attempt waits for sites."""

    ref: RoundRef


@dataclass(frozen=True)
class RunPaused:
    """The run waits for its operator."""

    reason: str


@dataclass(frozen=True)
class SitesKeptOut:
    """These sites take part in no later attempt until a resume."""

    sites: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class EndRun:
    """Tell the roster that the run is over."""

    completed: bool
    model_hash: str
    reason: str


RunEffect = Effect | OfferRun | RoundOpened | RunPaused | SitesKeptOut | EndRun
RunEffects = tuple[RunEffect, ...]


@dataclass(frozen=True)
class Run:
    """State of a run. ``failures`` counts aborted attempts and lost rounds in a row since the last resume.

    ``joined`` are those that take part, connected or not; ``expelled`` those that nobody waits for;
    ``barred`` those that were expelled from a cohort of this round, whether they have joined again or not;
    ``caught`` those that broke the rules of masking since the last resume. ``lost_rounds`` gave no sum.
    """

    terms: RunTerms
    model_hash: str
    state: RunState = RunState.CREATED
    failures: int = 0
    joined: frozenset[str] = frozenset()
    expelled: frozenset[str] = frozenset()
    barred: frozenset[str] = frozenset()
    caught: frozenset[str] = frozenset()
    lost_rounds: tuple[int, ...] = ()
    present: frozenset[str] = frozenset()
    current: Round | None = None
    reason: str = ""

    @property
    def over(self) -> bool:
        return self.state in (RunState.COMPLETED, RunState.ABORTED)

    @property
    def waits_for_exchange(self) -> bool:
        """It paused after the round that the exchange follows, and has not been resumed since."""
        last = self.current
        return (
            self.state is RunState.PAUSED
            and last is not None
            and last.state is RoundState.COMMITTED
            and last.ref.round == self.terms.exchange_after
        )

    @property
    def kept_out(self) -> frozenset[str]:
        """Those that take no part now: all ``caught``; ``barred``, unless the quorum needs one of them."""
        terms = self.terms.round
        rest = terms.roster - self.expelled - self.caught - self.barred
        return self.caught | self.barred if len(rest) >= terms.quorum else self.caught

    def to_json(self) -> dict[str, Any]:
        """What is stored: everything but the terms (the plan has them) and who is present."""
        return {
            "model_hash": self.model_hash,
            "state": self.state.value,
            "failures": self.failures,
            "joined": sorted(self.joined),
            "expelled": sorted(self.expelled),
            "barred": sorted(self.barred),
            "caught": sorted(self.caught),
            "lost_rounds": list(self.lost_rounds),
            "current": self.current.to_json() if self.current else None,
            "reason": self.reason,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any], terms: RunTerms) -> Run:
        """Inverse of :meth:`to_json`; nobody is present."""
        current = values["current"]
        return cls(
            terms=terms,
            model_hash=values["model_hash"],
            state=RunState(values["state"]),
            failures=values["failures"],
            joined=frozenset(values["joined"]),
            expelled=frozenset(values["expelled"]),
            barred=frozenset(values["barred"]),
            caught=frozenset(values["caught"]),
            lost_rounds=tuple(values["lost_rounds"]),
            current=Round.from_json(current, terms.round) if current else None,
            reason=values["reason"],
        )


Advance = tuple[Run, RunEffects]


def advance(run: Run, received: RunInput) -> Advance:
    """The next state of the run, and the effects to carry out once it is stored.

    Raises:
        IllegalTransitionError: this state does not take this input.
        StaleRoundError: an update for an attempt that is not the current one.
        NotOnRosterError, StateError: as :func:`fedpalm.rounds.machine.step`.
    """
    handler = _TABLE.get((run.state, type(received)))
    if handler is None:
        raise IllegalTransitionError(
            f"a run that is {run.state.value} does not take {type(received).__name__}",
            safe="the run is unchanged",
            next_step=_NEXT_STEPS.get(run.state, ""),
        )
    return handler(run, received)


def _open(run: Run, ref: RoundRef, at_ms: int) -> Advance:
    current, effects = open_round(
        run.terms.round, ref, run.model_hash, run.present, at_ms, run.expelled | run.kept_out
    )
    return replace(run, current=current), (RoundOpened(ref), *effects)


def _current(run: Run) -> Round:
    if run.current is None:
        raise IllegalTransitionError(f"a run that is {run.state.value} has no round")
    return run.current


def _start(run: Run, received: Start) -> Advance:
    running = replace(run, state=RunState.RUNNING)
    opened, effects = _open(running, RoundRef(1, 1), received.at_ms)
    return opened, (OfferRun(), *effects)


def _resume(run: Run, received: Resume) -> Advance:
    last = _current(run)
    if run.waits_for_exchange and not received.exchanged:
        raise StateError(
            f"the run waits for the exchange of experts after round {last.ref.round}",
            safe="the run is unchanged",
            next_step="fedpalm-coordinator exchange propose; once that is completed: "
            "fedpalm-coordinator resume. Or abort",
        )
    running = replace(
        run,
        state=RunState.RUNNING,
        failures=0,
        reason="",
        barred=frozenset(),
        caught=frozenset(),
    )
    if last.spent and last.state is RoundState.ABORTED:
        current, effects = step(last, Resumed())
        return replace(running, current=current), (OfferRun(), *effects)
    opened, opening = _open(running, _following(last), received.at_ms)
    return opened, (OfferRun(), *opening)


def _following(ended: Round) -> RoundRef:
    """The attempt after one that is over."""
    if ended.state is RoundState.COMMITTED:
        return RoundRef(ended.ref.round + 1, 1)
    return RoundRef(ended.ref.round, ended.ref.attempt + 1)


def _stop_round(run: Run, reason: str) -> Advance:
    current = _current(run)
    if current.over:
        return run, ()
    stopped, effects = step(current, Stop(reason))
    return replace(run, current=stopped), effects


def _pause(run: Run, received: Pause) -> Advance:
    stopped, effects = _stop_round(run, received.reason)
    paused = replace(stopped, state=RunState.PAUSED, reason=received.reason)
    return paused, (*effects, RunPaused(received.reason))


def _abort(run: Run, received: AbortRun) -> Advance:
    stopped, effects = _stop_round(run, received.reason) if run.current else (run, ())
    aborted = replace(stopped, state=RunState.ABORTED, reason=received.reason)
    return aborted, (*effects, EndRun(False, run.model_hash, received.reason))


def _join(run: Run, received: SiteJoined) -> Advance:
    site = received.site
    if site not in run.terms.round.roster:
        raise NotOnRosterError(f"site {site} is not on the roster", safe="the run is unchanged")
    if site in run.present:
        return run, ()
    joined = replace(
        run,
        joined=run.joined | {site},
        present=run.present | {site},
        expelled=run.expelled - {site},
    )
    if joined.current is None or site in joined.kept_out:
        return joined, ()
    current, effects = step(joined.current, received)
    return replace(joined, current=current), effects


def _leave(run: Run, received: SiteLeft) -> Advance:
    left = replace(run, present=run.present - {received.site})
    if left.current is None:
        return left, ()
    current, effects = step(left.current, received)
    return replace(left, current=current), effects


def _expel(run: Run, received: SiteExpelled) -> Advance:
    site = received.site
    if site not in run.terms.round.roster:
        raise NotOnRosterError(f"site {site} is not on the roster", safe="the run is unchanged")
    current = run.current
    sealed_with_it = current is not None and not current.over and site in current.cohort
    rest = replace(
        run,
        joined=run.joined - {site},
        present=run.present - {site},
        expelled=run.expelled | {site},
        barred=run.barred | ({site} if sealed_with_it else frozenset()),
    )
    if rest.current is None:
        return rest, ()
    return _after(rest, rest.current, received, received.at_ms)


def _catch(run: Run, received: SitesCaught) -> Advance:
    fresh = received.sites & run.terms.round.roster - run.caught
    if not fresh:
        return run, ()
    kept_out = SitesKeptOut(tuple(sorted(fresh)), received.reason)
    return replace(run, caught=run.caught | fresh), (kept_out,)


def _in_round(run: Run, received: InRound) -> Advance:
    current = _current(run)
    if received.ref != current.ref:
        return _late(run, received)
    return _after(run, current, received.input, received.at_ms)


def _after(run: Run, current: Round, received: RoundInput, at_ms: int) -> Advance:
    """The run after its round took an input, and what follows if that ended the round."""
    moved, effects = step(current, received)
    after = replace(run, current=moved)
    if moved.over and not current.over:
        after, more = _settle(after, moved, at_ms)
        return after, (*effects, *more)
    return after, effects


def _settle(run: Run, ended: Round, at_ms: int) -> Advance:
    """What follows a round that has just ended."""
    settled = replace(run, failures=run.failures + 1)
    if ended.state is RoundState.COMMITTED:
        settled = replace(settled, model_hash=ended.result, barred=frozenset())
        if ended.lost:
            settled = replace(settled, lost_rounds=(*run.lost_rounds, ended.ref.round))
        else:
            settled = replace(settled, failures=0)
        if ended.ref.round == run.terms.rounds:
            completed = replace(settled, state=RunState.COMPLETED)
            return completed, (EndRun(True, ended.result, _lost_in_words(completed)),)
    reason = _why_not_on(settled, ended)
    if reason:
        return replace(settled, state=RunState.PAUSED, reason=reason), (RunPaused(reason),)
    return _open(settled, _following(ended), at_ms)


def _why_not_on(run: Run, ended: Round) -> str:
    """Why a run waits for its operator after an attempt; empty if another attempt may follow."""
    if ended.state is RoundState.COMMITTED and ended.ref.round == run.terms.exchange_after:
        return (
            f"waits for the exchange of experts after round {ended.ref.round}: "
            "fedpalm-coordinator exchange propose"
        )
    last = ended.lost or ended.reason
    if run.failures >= run.terms.max_attempts:
        if ended.lost:
            return f"{run.failures} failures in a row, the last in round {ended.ref.round}: {last}"
        return f"round {ended.ref.round} failed {run.failures} times, last: {last}"
    if ended.spent and ended.state is RoundState.ABORTED:
        return f"round {ended.ref.round} can neither give a sum nor be repeated: {ended.reason}"
    terms = run.terms.round
    rest = terms.roster - run.caught
    if run.caught and len(rest) < terms.quorum:
        return (
            f"without {', '.join(sorted(run.caught))}, caught at breaking round {ended.ref.round}, "
            f"{len(rest)} of {len(terms.roster)} sites remain, quorum {terms.quorum}"
        )
    return ""


def _lost_in_words(run: Run) -> str:
    if not run.lost_rounds:
        return ""
    return f"{len(run.lost_rounds)} of {run.terms.rounds} rounds gave no sum"


def _late(run: Run, received: InRound) -> Advance:
    """A timer or a result of an earlier attempt means nothing; an update or a checkpoint is told so."""
    if isinstance(received.input, UpdateAccepted | CheckpointGiven):
        raise StaleRoundError(
            f"{received.ref} is not the current attempt",
            safe="what came does not count, and nothing was stored",
            next_step="wait for the next instruction",
        )
    return run, ()


def _restart(run: Run, received: Restarted) -> Advance:
    alone = replace(run, present=frozenset())
    if run.current is None:
        return alone, ()
    current, effects = step(run.current, received)
    return replace(alone, current=current), effects


_NEXT_STEPS = {
    RunState.CREATED: "start it: fedpalm-coordinator start",
    RunState.PAUSED: "fedpalm-coordinator resume, or abort",
    RunState.COMPLETED: "the run is over; submit a new plan",
    RunState.ABORTED: "the run is over; submit a new plan",
}
_Handler = Callable[[Run, Any], Advance]
_TABLE: dict[tuple[RunState, type], _Handler] = {
    (RunState.CREATED, Start): _start,
    (RunState.CREATED, AbortRun): _abort,
    (RunState.RUNNING, AbortRun): _abort,
    (RunState.PAUSED, AbortRun): _abort,
    (RunState.RUNNING, Pause): _pause,
    (RunState.PAUSED, Resume): _resume,
    (RunState.RUNNING, SitesCaught): _catch,
    **{(state, SiteJoined): _join for state in RunState},
    **{(state, SiteLeft): _leave for state in RunState},
    **{(state, SiteExpelled): _expel for state in RunState},
    **{(state, InRound): _in_round for state in RunState if state is not RunState.CREATED},
    **{(state, Restarted): _restart for state in RunState},
}
