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


CLOSING = RoundRef(0, 0)
"""No attempt: the end of a run, for which sites give a last checkpoint."""


# --- inputs ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SiteJoined:
    """The site takes part in the run and is connected."""

    site: str


@dataclass(frozen=True)
class CheckpointGiven:
    """The site's checkpoint for this attempt is verified, and stored with this input."""

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
class SharesAsked:
    """Sites may hear from now on that a masked attempt wants their shares: its model is spent."""


@dataclass(frozen=True)
class Aggregated:
    """The new global model is durable under this hex SHA-256; see :class:`Aggregate` for ``lost``."""

    model_hash: str
    lost: bool = False


@dataclass(frozen=True)
class AggregationFailed:
    """The sum could not be formed, or of a lost round the changed model could not be made."""

    reason: str
    lost: bool = False


@dataclass(frozen=True)
class Abort:
    """This attempt cannot go on."""

    reason: str


@dataclass(frozen=True)
class Stop:
    """Somebody in charge stops everything here, for now or for good."""

    reason: str


@dataclass(frozen=True)
class Resumed:
    """A spent attempt that was stopped goes on: the changed model is made."""


@dataclass(frozen=True)
class Restarted:
    """The keeper read this round back after a restart; deadlines leave ``grace_ms`` at least."""

    at_ms: int
    grace_ms: int


RoundInput = (
    SiteJoined
    | CheckpointGiven
    | SiteLeft
    | SiteExpelled
    | JoinDeadline
    | CohortPersisted
    | UpdateAccepted
    | RoundDeadline
    | SumReady
    | SharesAsked
    | Aggregated
    | AggregationFailed
    | Abort
    | Stop
    | Resumed
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
class AskCheckpoints:
    """Ask these sites for a checkpoint of their logs, this attempt's reservation included."""

    ref: RoundRef
    sites: tuple[str, ...]


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
    """Form the sum over exactly these sites' updates and step this model.

    Of nobody: the round is lost, and this model is changed so little that it is another one.
    """

    ref: RoundRef
    survivors: tuple[str, ...]
    model_hash: str

    @property
    def lost(self) -> bool:
        return not self.survivors


@dataclass(frozen=True)
class PublishModel:
    """This is the global model from now on."""

    ref: RoundRef
    model_hash: str


@dataclass(frozen=True)
class CloseRound:
    """Tell the roster how the attempt ended; its uploads are not needed any more.

    ``reason``: why it was aborted, or why it committed a model without a sum.
    """

    ref: RoundRef
    committed: bool
    model_hash: str
    reason: str


Effect = (
    AskCheckpoints | StartTimer | PersistCohort | SendTrain | Aggregate | PublishModel | CloseRound
)
Effects = tuple[Effect, ...]
