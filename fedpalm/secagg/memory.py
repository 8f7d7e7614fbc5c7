"""What a site remembers of its masked contributions, so that no second sum can be had from it.

Two sums over almost the same contributions tell the difference: one site's update. So a site gives
shares for one sum per round and per global model; a model that it masked from belongs to that run alone,
for of the sites that mask in two runs some could open the one sum and some the other; a later attempt
ends the one before it for good; and a retry sends the very vector that was encoded, under fresh masks. The
rule is pure: whoever drives a site stores the new memory *before* it sends what the step allows, and keeps
a copy where no backup reaches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import ContributionReuseError, ProtocolError, StaleRoundError

_SAFE = "nothing was revealed for it; this site's update stays masked"
_OTHER_MODEL = (
    "two sums from one model would tell a site's update; the operator starts from another one: "
    "fedpalm-coordinator plan submit --changed"
)


@dataclass(frozen=True)
class AttemptRef:
    """Which run, round (from 1) and attempt (from 1)."""

    run: str
    round: int
    attempt: int

    def __str__(self) -> str:
        return f"run {self.run}, round {self.round}, attempt {self.attempt}"


@dataclass(frozen=True)
class NewestAttempt:
    """The newest attempt of a run that this site began; all before it are dead.

    ``encoded_hash`` names the round's encoded vector, in hex; empty until one is known.
    """

    round: int
    attempt: int
    model_hash: str
    encoded_hash: str = ""
    revealed: bool = False


@dataclass(frozen=True)
class Contribution:
    """What a site gave shares for: once, to one model."""

    run: str
    round: int
    encoded_hash: str


@dataclass(frozen=True)
class ContributionMemory:
    """``newest`` by run; by the hex hash of the global model that was trained from, what was ``given``, and
    the run in which an update from it was ``masked``.
    """

    newest: Mapping[str, NewestAttempt] = field(default_factory=dict)
    given: Mapping[str, Contribution] = field(default_factory=dict)
    masked: Mapping[str, str] = field(default_factory=dict)

    def begin_attempt(
        self, ref: AttemptRef, model_hash: str, encoded_hash: str = ""
    ) -> ContributionMemory:
        """Before fresh keys leave; the attempt before this one is dead from here on.

        Args:
            model_hash: of the global model that the manifest names.
            encoded_hash: of the vector, if it is encoded already.
        Raises:
            StaleRoundError: an attempt that is not newer than the newest one begun.
            ContributionReuseError: shares were given for this round or this model, another run masked
                from the model, or another model or vector than in the attempt before.
        """
        last = self.newest.get(ref.run)
        if last is not None and (ref.round, ref.attempt) <= (last.round, last.attempt):
            raise StaleRoundError(
                f"{ref} is not after attempt {last.round}.{last.attempt}", safe=_SAFE
            )
        if last is not None and last.round == ref.round:
            if last.revealed:
                raise ContributionReuseError(
                    f"{ref}: this site gave shares in attempt {last.attempt} of the round",
                    safe=_SAFE,
                )
            if last.model_hash != model_hash:
                raise ContributionReuseError(f"{ref} retries with another model", safe=_SAFE)
            encoded_hash = _same_vector(ref, last.encoded_hash, encoded_hash)
        self._not_used(ref, model_hash)
        begun = NewestAttempt(ref.round, ref.attempt, model_hash, encoded_hash)
        return replace(self, newest={**self.newest, ref.run: begun})

    def note_masked(self, ref: AttemptRef, encoded_hash: str) -> ContributionMemory:
        """Before a masked vector leaves: which vector it was made of. Again with the same is no news.

        Raises:
            StaleRoundError: the attempt is over.
            ContributionReuseError: another vector than before, shares were given for its model, or another
                run masked from it.
        """
        last = self.require_live(ref)
        if not encoded_hash:
            raise ValueError("the hash of the encoded vector")
        known = _same_vector(ref, last.encoded_hash, encoded_hash)
        if not last.revealed:
            self._not_used(ref, last.model_hash)
        return replace(
            self,
            newest={**self.newest, ref.run: replace(last, encoded_hash=known)},
            masked={**self.masked, last.model_hash: ref.run},
        )

    def note_revealed(self, ref: AttemptRef) -> ContributionMemory:
        """Before shares leave: this is the one sum of its round and model. Again is no news.

        Raises:
            StaleRoundError: the attempt is over.
            ContributionReuseError: the model was used elsewhere, or nothing is masked.
        """
        last = self.require_live(ref)
        if last.revealed:
            return self
        if not last.encoded_hash:
            raise ContributionReuseError(f"{ref}: no vector of this site is masked", safe=_SAFE)
        self._not_used(ref, last.model_hash)
        gave = Contribution(ref.run, ref.round, last.encoded_hash)
        return replace(
            self,
            newest={**self.newest, ref.run: replace(last, revealed=True)},
            given={**self.given, last.model_hash: gave},
        )

    def require_live(self, ref: AttemptRef) -> NewestAttempt:
        """The attempt, if no later one was begun. Raises StaleRoundError."""
        last = self.newest.get(ref.run)
        if last is None or (ref.round, ref.attempt) != (last.round, last.attempt):
            raise StaleRoundError(f"{ref} is over, or was never begun", safe=_SAFE)
        return last

    def merge(self, other: ContributionMemory) -> ContributionMemory:
        """What either knows: for a store that was restored beside a copy that was not."""
        newest = dict(self.newest)
        for run, theirs in other.newest.items():
            ours = newest.get(run)
            newest[run] = theirs if ours is None else max(ours, theirs, key=_progress)
        return ContributionMemory(
            newest, {**other.given, **self.given}, {**other.masked, **self.masked}
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "version": 2,
            "newest": {
                run: [one.round, one.attempt, one.model_hash, one.encoded_hash, one.revealed]
                for run, one in self.newest.items()
            },
            "given": {
                model: [one.run, one.round, one.encoded_hash] for model, one in self.given.items()
            },
            "masked": dict(self.masked),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ContributionMemory:
        """Inverse of :meth:`to_json`. Raises ProtocolError."""
        try:
            if values["version"] != 2:
                raise ValueError("another version")
            return cls(
                {run: NewestAttempt(*one) for run, one in values["newest"].items()},
                {model: Contribution(*one) for model, one in values["given"].items()},
                dict(values["masked"]),
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ProtocolError(f"malformed memory of contributions: {error!r}") from error

    def _not_used(self, ref: AttemptRef, model_hash: str) -> None:
        gave, run = self.given.get(model_hash), self.masked.get(model_hash, ref.run)
        if gave is not None:
            raise ContributionReuseError(
                f"{ref}: this site contributed to that model in run {gave.run}, round {gave.round}",
                safe=_SAFE,
                next_step=_OTHER_MODEL,
            )
        if run != ref.run:
            raise ContributionReuseError(
                f"{ref}: this site masked an update from that model in run {run}",
                safe=_SAFE,
                next_step=_OTHER_MODEL,
            )


def _same_vector(ref: AttemptRef, known: str, asked: str) -> str:
    if known and asked and known != asked:
        raise ContributionReuseError(
            f"{ref}: another vector than this round's",
            safe=_SAFE,
            next_step="the stored vector is masked again; nothing is trained or encoded anew",
        )
    return known or asked


def _progress(one: NewestAttempt) -> tuple[int, int, bool, bool]:
    return one.round, one.attempt, one.revealed, bool(one.encoded_hash)
