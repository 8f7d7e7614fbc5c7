"""What a round takes in and what it gives out: frozen values, times in Unix milliseconds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True)
class RoundRef:
    """Which round (from 1), and which attempt at it (from 1)."""

    round: int
    attempt: int

    def __str__(self) -> str:
        return f"round {self.round}, attempt {self.attempt}"


# --- inputs ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SiteJoined:
    """The site takes part in the run and is connected."""

    site: str


@dataclass(frozen=True)
class SiteLeft:
    """The site's connection ended."""

    site: str


@dataclass(frozen=True)
class SiteExpelled:
    """The site takes part no more until it joins anew: revoked, or its approval of the plan is gone.

    If it is in the cohort, it takes part again from the next round on at the earliest.
    """

    site: str
    reason: str
    at_ms: int


@dataclass(frozen=True)
class JoinDeadline:
    """The time to wait for the whole roster is over."""


@dataclass(frozen=True)
class CohortPersisted:
    """The cohort is stored; from now on sites may hear of it."""

    at_ms: int


@dataclass(frozen=True)
class UpdateAccepted:
    """The site's whole update, of this hex SHA-256, is durable and valid."""

    site: str
    payload_hash: str


@dataclass(frozen=True)
class RoundDeadline:
    """The time to wait for updates is over."""


@dataclass(frozen=True)
class SumReady:
    """Every step of a masked attempt is done: the masks of these sites' sum can be taken off."""

    survivors: tuple[str, ...]


@dataclass(frozen=True)
class Aggregated:
    """The new global model is durable under this hex SHA-256."""

    model_hash: str


@dataclass(frozen=True)
class AggregationFailed:
    """The sum could not be formed."""

    reason: str


@dataclass(frozen=True)
class Abort:
    """Somebody in charge ends this attempt."""

    reason: str


@dataclass(frozen=True)
class Restarted:
    """The keeper read this round back after a restart; deadlines leave ``grace_ms`` at least."""

    at_ms: int
    grace_ms: int


RoundInput = (
    SiteJoined
    | SiteLeft
    | SiteExpelled
    | JoinDeadline
    | CohortPersisted
    | UpdateAccepted
    | RoundDeadline
    | SumReady
    | Aggregated
    | AggregationFailed
    | Abort
    | Restarted
)


# --- effects --------------------------------------------------------------------------------------


class TimerKind(StrEnum):
    JOIN = "join"
    ROUND = "round"
    MASKING = "masking"


@dataclass(frozen=True)
class StartTimer:
    """Give JoinDeadline or RoundDeadline at this time; replaces an earlier timer of the round.

    MASKING: whoever keeps the steps of a masked attempt begins with them; its first one ends then.
    """

    ref: RoundRef
    kind: TimerKind
    at_ms: int


@dataclass(frozen=True)
class PersistCohort:
    """Store the cohort, then say CohortPersisted."""

    ref: RoundRef
    cohort: tuple[str, ...]


@dataclass(frozen=True)
class SendTrain:
    """Ask these sites to train from this model."""

    ref: RoundRef
    sites: tuple[str, ...]
    model_hash: str
    deadline_ms: int


@dataclass(frozen=True)
class Aggregate:
    """Form the sum over exactly these sites' updates and step this model."""

    ref: RoundRef
    survivors: tuple[str, ...]
    model_hash: str


@dataclass(frozen=True)
class PublishModel:
    """This is the global model from now on."""

    ref: RoundRef
    model_hash: str


@dataclass(frozen=True)
class CloseRound:
    """Tell the roster how the attempt ended; its uploads are not needed any more."""

    ref: RoundRef
    committed: bool
    model_hash: str
    reason: str


Effect = StartTimer | PersistCohort | SendTrain | Aggregate | PublishModel | CloseRound
Effects = tuple[Effect, ...]
