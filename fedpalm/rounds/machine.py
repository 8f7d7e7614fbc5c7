"""One attempt of one round, as a transition table: (state, input) -> (new state, effects).

    open --all joined, or quorum at the join deadline--> cohort_sealed --persisted--> collecting
    collecting --all delivered, or quorum at the round deadline--> aggregating --> committed
    open, cohort_sealed, collecting, aggregating --too few, failure, abort--> aborted
    cohort_sealed, collecting --expelled, fewer than quorum left--> aborted
    aggregating --expelled, and its update is in the sum--> aborted

With differential privacy a site counts as joined once it has given a checkpoint of its log for this very
attempt: whoever is present is asked for one.

Under masking the steps of an attempt are kept elsewhere, and the round waits for their end:

    collecting --all steps done, quorum in the sum--> aggregating
    collecting --expelled, and its masked update has come--> aborted

Sites give shares for a model once. From when they are asked for shares, the model of a masked attempt is
spent, and nobody trains from it again: whatever would abort the attempt makes it *lost* instead. It commits
without a sum, with a model that is changed so little that it is only another one:

    collecting, aggregating --spent, and it would be aborted--> aggregating (of nobody) --> committed
    collecting, aggregating --spent, and stopped--> aborted --resumed--> aggregating (of nobody)

A round is an immutable value; :func:`step` returns the next one and the effects that its keeper
carries out *after* it has stored the value. Whatever the table does not name is an error. An update is
accepted once: again with the same hash it changes nothing, with another hash it is refused, and after
the survivor set is fixed it is stale. Who is present is not stored: after a restart nobody is. A site
that is expelled stays in the cohort, which a signed manifest names, but its update does not count; the
rest does not wait for it. From when on it takes part again is the run's matter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from ..errors import IllegalTransitionError, NotOnRosterError, StaleRoundError, StateError
from .events import (
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


class RoundState(StrEnum):
    OPEN = "open"
    COHORT_SEALED = "cohort_sealed"
    COLLECTING = "collecting"
    AGGREGATING = "aggregating"
    COMMITTED = "committed"
    ABORTED = "aborted"


@dataclass(frozen=True)
class RoundTerms:
    """What the plan says about every round; times in milliseconds.

    ``masked``: a sum has exactly the survivors that the sites agreed on, and none of them can be left out
    of it later. ``witnessed``: the cohort is of sites that gave a checkpoint for the attempt.
    """

    roster: frozenset[str]
    quorum: int
    join_deadline_ms: int
    round_deadline_ms: int
    masked: bool = False
    witnessed: bool = False

    @property
    def collecting_timer(self) -> TimerKind:
        return TimerKind.MASKING if self.masked else TimerKind.ROUND


@dataclass(frozen=True)
class Round:
    """One attempt. ``model_hash`` is the model it starts from; ``result`` the one it committed.

    ``prepared`` have given their checkpoints; ``cohort`` is as sealed; ``expelled`` are sites of it, or of
    the roster, that this attempt goes on without. ``spent``: sites may have given shares for its model;
    ``lost`` is why it gives no sum.
    """

    terms: RoundTerms
    ref: RoundRef
    model_hash: str
    state: RoundState = RoundState.OPEN
    present: frozenset[str] = frozenset()
    prepared: frozenset[str] = frozenset()
    cohort: tuple[str, ...] = ()
    expelled: frozenset[str] = frozenset()
    delivered: Mapping[str, str] = field(default_factory=dict)
    deadline_ms: int = 0
    spent: bool = False
    lost: str = ""
    result: str = ""
    reason: str = ""

    @property
    def survivors(self) -> tuple[str, ...]:
        """Sites whose update counts, sorted; of a lost round, nobody's does."""
        return () if self.lost else tuple(sorted(self.delivered.keys() - self.expelled))

    @property
    def ready(self) -> frozenset[str]:
        """Sites that a cohort sealed now would have."""
        return self.present & self.prepared if self.terms.witnessed else self.present

    @property
    def awaited(self) -> frozenset[str]:
        """Sites whose readiness seals the cohort without waiting for the join deadline."""
        return self.terms.roster - self.expelled

    @property
    def remaining(self) -> tuple[str, ...]:
        """The cohort without those expelled, sorted."""
        return tuple(site for site in self.cohort if site not in self.expelled)

    @property
    def over(self) -> bool:
        return self.state in (RoundState.COMMITTED, RoundState.ABORTED)

    def to_json(self) -> dict[str, Any]:
        """What is stored: everything but the terms (the plan has them) and who is present."""
        return {
            "round": self.ref.round,
            "attempt": self.ref.attempt,
            "model_hash": self.model_hash,
            "state": self.state.value,
            "prepared": sorted(self.prepared),
            "cohort": list(self.cohort),
            "expelled": sorted(self.expelled),
            "delivered": dict(sorted(self.delivered.items())),
            "deadline_ms": self.deadline_ms,
            "spent": self.spent,
            "lost": self.lost,
            "result": self.result,
            "reason": self.reason,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any], terms: RoundTerms) -> Round:
        """Inverse of :meth:`to_json`; nobody is present."""
        return cls(
            terms=terms,
            ref=RoundRef(values["round"], values["attempt"]),
            model_hash=values["model_hash"],
            state=RoundState(values["state"]),
            prepared=frozenset(values["prepared"]),
            cohort=tuple(values["cohort"]),
            expelled=frozenset(values["expelled"]),
            delivered=dict(values["delivered"]),
            deadline_ms=values["deadline_ms"],
            spent=values["spent"],
            lost=values["lost"],
            result=values["result"],
            reason=values["reason"],
        )


Step = tuple[Round, Effects]


def open_round(
    terms: RoundTerms,
    ref: RoundRef,
    model_hash: str,
    present: frozenset[str],
    at_ms: int,
    expelled: frozenset[str] = frozenset(),
) -> Step:
    """A new attempt; the cohort is sealed at once if the whole roster is present, less those expelled."""
    deadline_ms = at_ms + terms.join_deadline_ms
    fresh = Round(
        terms,
        ref,
        model_hash,
        present=(present & terms.roster) - expelled,
        expelled=expelled,
        deadline_ms=deadline_ms,
    )
    if _complete(fresh):
        return _seal(fresh)
    return fresh, (StartTimer(ref, TimerKind.JOIN, deadline_ms), *_ask(fresh, fresh.present))


def step(current: Round, received: RoundInput) -> Step:
    """The next round and the effects to carry out once it is stored.

    Raises:
        IllegalTransitionError: the table has no entry for this state and input.
        NotOnRosterError, StaleRoundError, StateError: this site or update is refused; the round
            stays as it is.
    """
    handler = _TABLE.get((current.state, type(received)))
    if handler is None:
        raise IllegalTransitionError(
            f"{current.ref}: state {current.state.value} does not take {type(received).__name__}",
            safe="the round is unchanged",
        )
    return handler(current, received)


def _complete(current: Round) -> bool:
    """Is everybody here that can be waited for? Too few wait until the deadline: one may come back."""
    return current.ready == current.awaited and len(current.ready) >= current.terms.quorum


def _ask(current: Round, sites: frozenset[str]) -> Effects:
    """Under differential privacy: ask those of ``sites`` for checkpoints that have not given theirs."""
    asked = tuple(sorted(sites - current.prepared))
    return (AskCheckpoints(current.ref, asked),) if asked and current.terms.witnessed else ()


def _seal(current: Round) -> Step:
    cohort = tuple(sorted(current.ready))
    sealed = replace(current, state=RoundState.COHORT_SEALED, cohort=cohort, deadline_ms=0)
    return sealed, (PersistCohort(current.ref, cohort),)


def _close(current: Round, reason: str) -> Step:
    """The attempt gives no sum: it is aborted, or lost if its model is spent."""
    if current.spent and not current.lost:
        return _aggregate(replace(current, lost=reason))
    return _abort(current, reason)


def _abort(current: Round, reason: str) -> Step:
    aborted = replace(current, state=RoundState.ABORTED, reason=reason, deadline_ms=0)
    return aborted, (CloseRound(current.ref, False, current.model_hash, reason),)


def _aggregate(current: Round) -> Step:
    closing = replace(current, state=RoundState.AGGREGATING, deadline_ms=0)
    return closing, (Aggregate(current.ref, current.survivors, current.model_hash),)


def _train(current: Round, sites: tuple[str, ...]) -> SendTrain:
    return SendTrain(current.ref, sites, current.model_hash, current.deadline_ms)


def _check_roster(current: Round, site: str) -> None:
    if site not in current.terms.roster:
        raise NotOnRosterError(f"site {site} is not on the roster", safe="the round is unchanged")


def _ignore(current: Round, _: RoundInput) -> Step:
    return current, ()


def _join_open(current: Round, received: SiteJoined) -> Step:
    _check_roster(current, received.site)
    joined = replace(
        current,
        present=current.present | {received.site},
        expelled=current.expelled - {received.site},
    )
    return (
        _seal(joined) if _complete(joined) else (joined, _ask(joined, frozenset({received.site})))
    )


def _prepare(current: Round, received: CheckpointGiven) -> Step:
    _check_roster(current, received.site)
    if not current.terms.witnessed:
        raise IllegalTransitionError(
            f"{current.ref} asks for no checkpoints: the plan has no differential privacy",
            safe="the round is unchanged",
        )
    prepared = replace(current, prepared=current.prepared | {received.site})
    return _seal(prepared) if _complete(prepared) else (prepared, ())


def _join_later(current: Round, received: SiteJoined) -> Step:
    _check_roster(current, received.site)
    return replace(current, present=current.present | {received.site}), ()


def _join_collecting(current: Round, received: SiteJoined) -> Step:
    joined, _ = _join_later(current, received)
    owed = received.site in current.remaining and received.site not in current.delivered
    owed = owed and not current.spent
    return joined, ((_train(current, (received.site,)),) if owed else ())


def _leave(current: Round, received: SiteLeft) -> Step:
    return replace(current, present=current.present - {received.site}), ()


def _without(current: Round, site: str) -> Round:
    return replace(
        current,
        present=current.present - {site},
        prepared=current.prepared - {site},
        expelled=current.expelled | {site},
    )


def _expel_open(current: Round, received: SiteExpelled) -> Step:
    rest = _without(current, received.site)
    return _seal(rest) if _complete(rest) else (rest, ())


def _expel_sealed(current: Round, received: SiteExpelled) -> Step:
    rest = _without(current, received.site)
    if len(rest.remaining) < rest.terms.quorum:
        return _close(
            rest,
            f"site {received.site} was expelled ({received.reason}): {len(rest.remaining)} of "
            f"{len(rest.cohort)} sites remain, quorum {rest.terms.quorum}",
        )
    return rest, ()


def _expel_collecting(current: Round, received: SiteExpelled) -> Step:
    """A masked update that has come is in the sum that its peers agree on: the attempt ends with it."""
    if current.terms.masked and received.site in current.survivors:
        return _close(
            _without(current, received.site),
            f"site {received.site} was expelled ({received.reason}) after its masked update came",
        )
    rest, effects = _expel_sealed(current, received)
    return _aggregate(rest) if not rest.over and _all_delivered(rest) else (rest, effects)


def _expel_aggregating(current: Round, received: SiteExpelled) -> Step:
    """A sum that holds its update is thrown away: a term cannot be taken out of it again."""
    if received.site not in current.survivors:
        return _without(current, received.site), ()
    return _close(
        current,
        f"site {received.site} was expelled ({received.reason}) while its update was being summed",
    )


def _expel_over(current: Round, received: SiteExpelled) -> Step:
    """What was committed with its update stays committed."""
    return replace(current, present=current.present - {received.site}), ()


def _join_deadline(current: Round, _: JoinDeadline) -> Step:
    if len(current.ready) >= current.terms.quorum:
        return _seal(current)
    out = f", {len(current.expelled)} are out of this round" if current.expelled else ""
    did = "gave a checkpoint" if current.terms.witnessed else "joined"
    return _close(
        current,
        f"{len(current.ready)} of {len(current.terms.roster)} sites {did} in time{out}, "
        f"quorum {current.terms.quorum}",
    )


def _collect(current: Round, received: CohortPersisted) -> Step:
    deadline_ms = received.at_ms + current.terms.round_deadline_ms
    collecting = replace(current, state=RoundState.COLLECTING, deadline_ms=deadline_ms)
    timer = StartTimer(current.ref, current.terms.collecting_timer, deadline_ms)
    return collecting, (timer, _train(collecting, current.remaining))


def _accept(current: Round, received: UpdateAccepted) -> Step:
    site = received.site
    if site not in current.cohort:
        raise NotOnRosterError(
            f"site {site} is not in the cohort of {current.ref}", safe="the round is unchanged"
        )
    if site in current.delivered:
        return _accept_again(current, received)
    if site in current.expelled:
        raise StaleRoundError(
            f"site {site} was expelled from {current.ref}",
            safe="its update does not count in this attempt",
            next_step="approve the plan and join the run again; it takes part from the next round on",
        )
    delivered = {**current.delivered, site: received.payload_hash}
    updated = replace(current, delivered=delivered)
    return _aggregate(updated) if _all_delivered(updated) else (updated, ())


def _all_delivered(current: Round) -> bool:
    """Is there nothing to wait for? Under masking there are steps to come."""
    return not current.terms.masked and len(current.survivors) == len(current.remaining)


def _accept_again(current: Round, received: UpdateAccepted) -> Step:
    """After the first: the same update changes nothing, anything else is refused."""
    first = current.delivered.get(received.site)
    if first is None:
        raise StaleRoundError(
            f"{current.ref} takes no more updates (it is {current.state.value})",
            safe="the update of this site does not count in this attempt",
            next_step="wait for the next round",
        )
    if first != received.payload_hash:
        raise StateError(
            f"site {received.site} already delivered another update in {current.ref}",
            safe="the first one stays",
        )
    return current, ()


def _round_deadline(current: Round, _: RoundDeadline) -> Step:
    if current.terms.masked:
        raise IllegalTransitionError(
            f"{current.ref}: the steps of a masked attempt have deadlines of their own",
            safe="the round is unchanged",
        )
    if len(current.survivors) >= current.terms.quorum:
        return _aggregate(current)
    return _close(
        current,
        f"{len(current.survivors)} of {len(current.cohort)} sites delivered in time, "
        f"quorum {current.terms.quorum}",
    )


def _spend(current: Round, _: SharesAsked) -> Step:
    if not current.terms.masked:
        raise IllegalTransitionError(
            f"{current.ref} is not masked: nobody is asked for shares",
            safe="the round is unchanged",
        )
    return replace(current, spent=True), ()


def _sum_ready(current: Round, received: SumReady) -> Step:
    if not current.terms.masked or received.survivors != current.survivors:
        raise IllegalTransitionError(
            f"{current.ref}: no masked sum of {len(received.survivors)} sites can follow; "
            f"{len(current.survivors)} delivered",
            safe="the round is unchanged",
        )
    if len(current.survivors) < current.terms.quorum:
        return _close(
            current,
            f"{len(current.survivors)} of {len(current.cohort)} sites are in the masked sum, "
            f"quorum {current.terms.quorum}",
        )
    return _aggregate(current)


def _commit(current: Round, received: Aggregated) -> Step:
    """A sum that was under way when the round was lost is none any more."""
    if received.lost is not bool(current.lost):
        return current, ()
    if current.spent and received.model_hash == current.model_hash:
        return _close(current, "the sum leaves the model as it was")
    done = replace(current, state=RoundState.COMMITTED, result=received.model_hash)
    return done, (
        PublishModel(current.ref, received.model_hash),
        CloseRound(current.ref, True, received.model_hash, current.lost),
    )


def _no_sum(current: Round, received: AggregationFailed) -> Step:
    if received.lost is not bool(current.lost):
        return current, ()
    return _close(current, received.reason)


def _fail(current: Round, received: Abort) -> Step:
    return _close(current, received.reason)


def _stop(current: Round, received: Stop) -> Step:
    return _abort(current, received.reason)


def _resume(current: Round, _: Resumed) -> Step:
    if not current.spent:
        raise IllegalTransitionError(
            f"{current.ref} is over; its model is not spent, so another attempt may follow",
            safe="the round is unchanged",
        )
    return _aggregate(replace(current, lost=current.lost or current.reason, reason=""))


def _restart_open(current: Round, received: Restarted) -> Step:
    deadline_ms = max(current.deadline_ms, received.at_ms + received.grace_ms)
    waiting = replace(current, present=frozenset(), deadline_ms=deadline_ms)
    return waiting, (StartTimer(current.ref, TimerKind.JOIN, deadline_ms),)


def _restart_sealed(current: Round, _: Restarted) -> Step:
    return replace(current, present=frozenset()), (PersistCohort(current.ref, current.cohort),)


def _restart_collecting(current: Round, received: Restarted) -> Step:
    deadline_ms = max(current.deadline_ms, received.at_ms + received.grace_ms)
    waiting = replace(current, present=frozenset(), deadline_ms=deadline_ms)
    return waiting, (StartTimer(current.ref, current.terms.collecting_timer, deadline_ms),)


def _restart_aggregating(current: Round, _: Restarted) -> Step:
    return _aggregate(replace(current, present=frozenset()))


def _restart_over(current: Round, _: Restarted) -> Step:
    return replace(current, present=frozenset()), ()


_Handler = Callable[[Round, Any], Step]
_O, _S, _C, _A = (
    RoundState.OPEN,
    RoundState.COHORT_SEALED,
    RoundState.COLLECTING,
    RoundState.AGGREGATING,
)
_DONE, _GONE = RoundState.COMMITTED, RoundState.ABORTED

# A timer or a result that arrives after the state moved on is ignored, and the table says where.
_TABLE: dict[tuple[RoundState, type], _Handler] = {
    (_O, SiteJoined): _join_open,
    (_S, SiteJoined): _join_later,
    (_C, SiteJoined): _join_collecting,
    (_A, SiteJoined): _join_later,
    (_DONE, SiteJoined): _join_later,
    (_GONE, SiteJoined): _join_later,
    (_O, CheckpointGiven): _prepare,
    **{(state, SiteLeft): _leave for state in RoundState},
    (_O, SiteExpelled): _expel_open,
    (_S, SiteExpelled): _expel_sealed,
    (_C, SiteExpelled): _expel_collecting,
    (_A, SiteExpelled): _expel_aggregating,
    (_DONE, SiteExpelled): _expel_over,
    (_GONE, SiteExpelled): _expel_over,
    (_O, JoinDeadline): _join_deadline,
    **{(state, JoinDeadline): _ignore for state in RoundState if state is not _O},
    (_S, CohortPersisted): _collect,
    (_O, UpdateAccepted): _accept_again,
    (_S, UpdateAccepted): _accept_again,
    (_C, UpdateAccepted): _accept,
    (_A, UpdateAccepted): _accept_again,
    (_DONE, UpdateAccepted): _accept_again,
    (_GONE, UpdateAccepted): _accept_again,
    (_C, RoundDeadline): _round_deadline,
    **{(state, RoundDeadline): _ignore for state in (_A, _DONE, _GONE)},
    (_C, SumReady): _sum_ready,
    (_GONE, SumReady): _ignore,
    (_C, SharesAsked): _spend,
    (_A, Aggregated): _commit,
    (_A, AggregationFailed): _no_sum,
    (_GONE, CohortPersisted): _ignore,
    **{(state, Aggregated): _ignore for state in (_DONE, _GONE)},
    **{(state, AggregationFailed): _ignore for state in (_DONE, _GONE)},
    **{(state, Abort): _fail for state in (_O, _S, _C, _A)},
    **{(state, Stop): _stop for state in (_O, _S, _C, _A)},
    (_GONE, Resumed): _resume,
    (_O, Restarted): _restart_open,
    (_S, Restarted): _restart_sealed,
    (_C, Restarted): _restart_collecting,
    (_A, Restarted): _restart_aggregating,
    (_DONE, Restarted): _restart_over,
    (_GONE, Restarted): _restart_over,
}
