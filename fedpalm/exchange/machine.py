"""The coordinator's half of an exchange: a sans-I/O state machine that relays what it cannot open.

    proposed --answers--> sealing --experts--> revealing --keys--> delivering --receipts--> completed
        |                    |                     |                   |
        +-- refusal, cancel -+---------------------+--> cancelled      +-- nobody opened --> cancelled

Each arrow waits for every site. While it is ``proposed`` sites answer: a no ends it, unless the terms go on
without those who refuse; then it goes on once everybody has answered, or an operator waits no longer, if
two at least say yes. From then on who signs is fixed, and a no of a signer ends it. Keys are accepted only
when the sealed expert of every signer is stored.

While it is ``delivering`` every site can have every key, and nothing can be taken back. So nothing that one
site does ends it for another: whoever says no then, leaves, or lets the time pass is done without a
receipt, and it is over when everybody is done: ``completed``, if anybody has opened anything.

:data:`TABLE` is the whole of it: an input that has no row for the present state is an error that names
both. Inputs that repeat what is recorded change nothing, so that a site may send again what it is not sure
to have delivered.

Persist, then send: store ``machine.to_json()`` in one transaction with what the input brought, then
carry out the effects. After a restart, ``machine.outstanding()`` is what is still to be done.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from ..errors import IllegalTransitionError, IntegrityError, NotOnRosterError, RefusedError
from .terms import ExchangeTerms


class ExchangeState(StrEnum):
    PROPOSED = "proposed"
    SEALING = "sealing"
    REVEALING = "revealing"
    DELIVERING = "delivering"
    COMPLETED = "completed"
    CANCELLED = "cancelled"


# --- inputs: the caller has verified who sends them, and every signature in what they stand for ------


@dataclass(frozen=True)
class ConsentGiven:
    """A site's verified consent arrived; ``consent_hash`` is ``Consent.hash``."""

    site: str
    consent_hash: bytes


@dataclass(frozen=True)
class ConsentRefused:
    """A site says no, or takes its yes back, or can open nothing of what it received, or had to leave."""

    site: str
    reason: str


@dataclass(frozen=True)
class ExpertSealed:
    """A verified sealed expert is stored; ``sealed_hash`` is ``SealedExpert.hash``."""

    site: str
    sealed_hash: bytes


@dataclass(frozen=True)
class KeysSent:
    """A site's wrapped keys, all that it signed, are stored."""

    site: str


@dataclass(frozen=True)
class ExpertsOpened:
    """A site's signed receipt is stored; it could not open the expert of ``missing``, but of another."""

    site: str
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class AnswersClosed:
    """An operator waits for no more answers: whoever gave none counts as one that refuses."""

    by: str


@dataclass(frozen=True)
class TimeOver:
    """The terms have expired."""


@dataclass(frozen=True)
class CancelRequested:
    """An operator or a revocation ends the exchange."""

    by: str
    reason: str


Input = (
    ConsentGiven
    | ConsentRefused
    | ExpertSealed
    | KeysSent
    | ExpertsOpened
    | AnswersClosed
    | TimeOver
    | CancelRequested
)


# --- effects -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AskConsent:
    """Show the terms to a site and wait for its people."""

    site: str


@dataclass(frozen=True)
class AskSealed:
    """Let a site fetch all consents; it verifies them and seals its expert to every other signer."""

    site: str


@dataclass(frozen=True)
class AskKeys:
    """Let a site fetch every sealed expert; it verifies them and sends its wrapped keys."""

    site: str


@dataclass(frozen=True)
class DeliverKeys:
    """Let a site fetch the keys that are wrapped for it, open the experts and sign its receipt."""

    site: str


@dataclass(frozen=True)
class TellClosed:
    """Tell a site how the exchange ended for it."""

    site: str
    completed: bool
    reason: str


@dataclass(frozen=True)
class EraseSealed:
    """Erase the stored ciphertexts and keys: they are delivered, or never will be."""


Effect = AskConsent | AskSealed | AskKeys | DeliverKeys | TellClosed | EraseSealed


@dataclass(frozen=True)
class ExchangeMachine:
    """One exchange as the coordinator knows it, from its proposal on; immutable, a step makes the next one.

    ``consents`` holds consent hashes by site, ``refused`` the reasons of those who said no, ``sealed`` the
    hash of each sealed expert by sender, ``revealed`` who sent its keys, ``delivered`` whose receipt came,
    ``missing`` the senders whose expert one of these could not open, ``failed`` why a site is done without.
    """

    terms: ExchangeTerms
    operator: str
    state: ExchangeState = ExchangeState.PROPOSED
    consents: Mapping[str, bytes] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    sealed: Mapping[str, bytes] = field(default_factory=dict)
    revealed: frozenset[str] = frozenset()
    delivered: frozenset[str] = frozenset()
    missing: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""

    def __post_init__(self) -> None:
        for name in ("consents", "refused", "sealed", "missing", "failed"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    @property
    def signers(self) -> tuple[str, ...]:
        """Sites that said yes, sorted; fixed once it is no more ``proposed``."""
        return tuple(sorted(self.consents))

    @property
    def ended(self) -> bool:
        return self.state in (ExchangeState.COMPLETED, ExchangeState.CANCELLED)

    @property
    def undone(self) -> tuple[str, ...]:
        """Signers that have neither given a receipt nor failed, sorted."""
        return tuple(s for s in self.signers if s not in self.delivered and s not in self.failed)

    def step(self, event: Input) -> tuple[ExchangeMachine, tuple[Effect, ...]]:
        """Take one input.

        Returns:
            The next machine (this one, if the input repeats what is known) and what to do after it
            has been stored.
        Raises:
            IllegalTransitionError: the state has no row for this input.
            NotOnRosterError: the site is not on the roster, or has not signed.
            RefusedError: the input contradicts what the same site sent before.
        """
        if isinstance(event, ConsentRefused) and event.site in {*self.refused, *self.failed}:
            return self, ()  # told again by a site that is out of it
        row = TABLE.get((self.state, type(event)))
        if row is None:
            raise IllegalTransitionError(
                f"exchange {self.terms.exchange_id}: {type(event).__name__} is not possible while it "
                f"is {self.state.value}",
                safe="the exchange is as it was",
            )
        self._check_name(event)
        recorded, state = row(self, event)
        if state is self.state:
            return recorded, ()
        entered = replace(recorded, state=state)
        return entered, entered.outstanding()

    def outstanding(self) -> tuple[Effect, ...]:
        """Everything that the state waits for: to be done on entering it, and again after a restart."""
        signers = self.signers
        match self.state:
            case ExchangeState.PROPOSED:
                answered = {*self.consents, *self.refused}
                return tuple(AskConsent(s) for s in self.terms.roster if s not in answered)
            case ExchangeState.SEALING:
                # Whoever gave no answer in time need not think about it any more.
                without = (
                    TellClosed(s, completed=False, reason="it goes on without this site")
                    for s in sorted(self.refused)
                )
                return (*(AskSealed(s) for s in signers if s not in self.sealed), *without)
            case ExchangeState.REVEALING:
                return tuple(AskKeys(site) for site in signers if site not in self.revealed)
            case ExchangeState.DELIVERING:
                return tuple(map(DeliverKeys, self.undone))
            case ExchangeState.COMPLETED | ExchangeState.CANCELLED:
                completed = self.state is ExchangeState.COMPLETED
                told = (
                    TellClosed(s, completed and s not in self.failed, self.reason)
                    for s in self.terms.roster
                )
                return (EraseSealed(), *told)

    def to_json(self) -> dict[str, Any]:
        """JSON values for the store."""
        return {
            "terms": self.terms.model_dump(mode="json"),
            "operator": self.operator,
            "state": self.state.value,
            "consents": {site: digest.hex() for site, digest in sorted(self.consents.items())},
            "refused": dict(sorted(self.refused.items())),
            "sealed": {site: digest.hex() for site, digest in sorted(self.sealed.items())},
            "revealed": sorted(self.revealed),
            "delivered": sorted(self.delivered),
            "missing": {site: list(senders) for site, senders in sorted(self.missing.items())},
            "failed": dict(sorted(self.failed.items())),
            "reason": self.reason,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ExchangeMachine:
        """Inverse of :meth:`to_json`.

        Raises:
            IntegrityError: malformed, or a state that its records do not support.
        """
        try:
            machine = cls(
                terms=ExchangeTerms.model_validate_json(json.dumps(values["terms"])),
                operator=values["operator"],
                state=ExchangeState(values["state"]),
                consents={s: bytes.fromhex(digest) for s, digest in values["consents"].items()},
                refused=values["refused"],
                sealed={s: bytes.fromhex(digest) for s, digest in values["sealed"].items()},
                revealed=frozenset(values["revealed"]),
                delivered=frozenset(values["delivered"]),
                missing={site: tuple(senders) for site, senders in values["missing"].items()},
                failed=values["failed"],
                reason=values["reason"],
            )
        except (KeyError, TypeError, ValueError, AttributeError, ValidationError) as error:
            raise IntegrityError(f"stored exchange: malformed: {error!r}") from error
        machine._check_supported()
        return machine

    def _check_name(self, event: Input) -> None:
        site = getattr(event, "site", None)
        if site is None:
            return
        signed = self.state is not ExchangeState.PROPOSED and not self.ended
        if site not in (self.consents if signed else self.terms.roster):
            raise NotOnRosterError(
                f"{site} {'has not signed' if signed else 'is not on the roster of'} exchange "
                f"{self.terms.exchange_id}"
            )

    def _check_supported(self) -> None:
        roster, signers, refused = set(self.terms.roster), set(self.consents), set(self.refused)
        answered, done = signers | refused == roster, self.delivered | set(self.failed)
        # What each state waits for; the first of them that is not there from all is the state.
        waits = (
            (ExchangeState.PROPOSED, signers if answered else None),
            (ExchangeState.SEALING, set(self.sealed)),
            (ExchangeState.REVEALING, set(self.revealed)),
            (ExchangeState.DELIVERING, done),
        )
        expected = next((s for s, got in waits if got != signers), ExchangeState.COMPLETED)
        after = list(ExchangeState)[list(ExchangeState).index(expected) + 1 :]
        early = [got for state, got in waits if got and state in after]
        closed = self.state is ExchangeState.CANCELLED
        if (
            not signers | refused <= roster
            or signers & refused
            or (refused and not self.terms.without_refusers)
            or not set(self.sealed) | self.revealed | done <= signers
            or self.delivered & set(self.failed)
            or not set(self.missing) <= self.delivered
            or not all(
                set(senders) < signers - {site} and senders == tuple(sorted(set(senders)))
                for site, senders in self.missing.items()
            )
            or not all(self.missing.values())
            or early
            or (closed and not self.reason)
            or (closed and expected is ExchangeState.DELIVERING)
            or (expected is ExchangeState.COMPLETED and closed == bool(self.delivered))
            or not (closed or (self.state is expected and (len(signers) >= 2 or not answered)))
        ):
            raise IntegrityError(
                f"stored exchange {self.terms.exchange_id}: its records do not support the state "
                f"{self.state.value!r}",
                safe="nothing was relayed",
            )


# --- what an input records, and the state that comes of it ---------------------------------------------

_S = ExchangeState
Recorded = tuple[ExchangeMachine, ExchangeState]


def _consent(machine: ExchangeMachine, event: ConsentGiven) -> Recorded:
    if event.site in machine.refused:
        raise RefusedError(f"{event.site} has refused this exchange", safe="the refusal stands")
    known = machine.consents.get(event.site)
    if known is not None:
        return _repeated(machine, known, event.consent_hash, f"{event.site}: consent")
    consents = {**machine.consents, event.site: event.consent_hash}
    return _answered(replace(machine, consents=consents))


def _refuse(machine: ExchangeMachine, event: ConsentRefused) -> Recorded:
    if machine.state is _S.DELIVERING:
        if event.site in machine.delivered:
            raise RefusedError(f"{event.site} has confirmed already", safe="its receipt stands")
        return _done(replace(machine, failed={**machine.failed, event.site: event.reason[:500]}))
    reason = f"{event.site} refused: {event.reason}"[:500]
    if not (machine.state is _S.PROPOSED and machine.terms.without_refusers):
        return replace(machine, reason=reason), _S.CANCELLED
    consents = {site: one for site, one in machine.consents.items() if site != event.site}
    refused = {event.site: event.reason[:500], **machine.refused}
    return _answered(replace(machine, consents=consents, refused=refused))


def _answered(machine: ExchangeMachine) -> Recorded:
    if len(machine.consents) + len(machine.refused) < len(machine.terms.roster):
        return machine, _S.PROPOSED
    if len(machine.consents) < 2:
        who = ", ".join(sorted(machine.refused)[:5])
        return replace(machine, reason=f"refused by {who}: too few are left"), _S.CANCELLED
    return machine, _S.SEALING


def _close_answers(machine: ExchangeMachine, event: AnswersClosed) -> Recorded:
    if not machine.terms.without_refusers:
        raise RefusedError(
            f"exchange {machine.terms.exchange_id} waits for every site of its roster, as the plan has it",
            safe="it is as it was",
            next_step="talk to the sites that have not answered, or: fedpalm-coordinator exchange cancel",
        )
    if len(machine.consents) < 2:
        raise RefusedError(
            f"exchange {machine.terms.exchange_id}: fewer than two sites have said yes",
            safe="it is as it was",
            next_step="wait for another yes, or: fedpalm-coordinator exchange cancel",
        )
    silent = set(machine.terms.roster) - set(machine.consents) - set(machine.refused)
    why = f"it had not answered when {event.by} closed the answers"[:500]
    return _answered(replace(machine, refused={**machine.refused, **dict.fromkeys(silent, why)}))


def _seal(machine: ExchangeMachine, event: ExpertSealed) -> Recorded:
    known = machine.sealed.get(event.site)
    if known is not None:
        return _repeated(machine, known, event.sealed_hash, f"{event.site}: sealed expert")
    sealed = {**machine.sealed, event.site: event.sealed_hash}
    done = len(sealed) == len(machine.consents)
    return replace(machine, sealed=sealed), _S.REVEALING if done else machine.state


def _reveal(machine: ExchangeMachine, event: KeysSent) -> Recorded:
    revealed = machine.revealed | {event.site}
    done = machine.state is _S.REVEALING and len(revealed) == len(machine.consents)
    return replace(machine, revealed=revealed), _S.DELIVERING if done else machine.state


def _deliver(machine: ExchangeMachine, event: ExpertsOpened) -> Recorded:
    if event.site in machine.failed:
        raise RefusedError(
            f"{event.site} is out of this exchange: {machine.failed[event.site]}",
            safe="no receipt was stored",
        )
    if event.site in machine.delivered:
        return machine, machine.state
    others, missing = set(machine.consents) - {event.site}, tuple(sorted(set(event.missing)))
    if not set(missing) < others:
        raise RefusedError(
            f"{event.site} has opened no expert of this exchange", safe="no receipt was stored"
        )
    lacks = {**machine.missing, event.site: missing} if missing else machine.missing
    return _done(replace(machine, delivered=machine.delivered | {event.site}, missing=lacks))


def _done(machine: ExchangeMachine) -> Recorded:
    """Over once everybody is done; completed, if anybody has opened anything."""
    if machine.undone:
        return machine, machine.state
    lacks = [f"{site} could not open {', '.join(of[:5])}" for site, of in machine.missing.items()]
    lacks += [f"{site} did not open: {why}" for site, why in machine.failed.items()]
    ended = replace(machine, reason="; ".join(sorted(lacks))[:500])
    return ended, _S.COMPLETED if machine.delivered else _S.CANCELLED


def _expire(machine: ExchangeMachine, event: TimeOver) -> Recorded:
    if machine.state is _S.DELIVERING:
        failed = {**machine.failed, **dict.fromkeys(machine.undone, "expired")}
        return _done(replace(machine, failed=failed))
    return replace(machine, reason="the coordinator: expired"), _S.CANCELLED


def _cancel(machine: ExchangeMachine, event: CancelRequested) -> Recorded:
    return replace(machine, reason=f"{event.by}: {event.reason}"[:500]), _S.CANCELLED


def _ignore(machine: ExchangeMachine, event: Input) -> Recorded:
    return machine, machine.state


def _repeated(machine: ExchangeMachine, known: bytes, got: bytes, what: str) -> Recorded:
    if known != got:
        raise RefusedError(
            f"{what} differs from the one that was sent before",
            safe="the first one stands",
            next_step="cancel the exchange and propose a new one",
        )
    return machine, machine.state


Row = Callable[[ExchangeMachine, Any], Recorded]

# (state, input) -> what is recorded, and the next state
TABLE: Mapping[tuple[ExchangeState, type[Input]], Row] = MappingProxyType(
    {
        (_S.PROPOSED, ConsentGiven): _consent,
        (_S.PROPOSED, ConsentRefused): _refuse,
        (_S.PROPOSED, AnswersClosed): _close_answers,
        (_S.PROPOSED, TimeOver): _expire,
        (_S.PROPOSED, CancelRequested): _cancel,
        (_S.SEALING, ConsentGiven): _consent,
        (_S.SEALING, ExpertSealed): _seal,
        (_S.SEALING, ConsentRefused): _refuse,
        (_S.SEALING, TimeOver): _expire,
        (_S.SEALING, CancelRequested): _cancel,
        (_S.REVEALING, ConsentGiven): _consent,
        (_S.REVEALING, ExpertSealed): _seal,
        (_S.REVEALING, KeysSent): _reveal,
        (_S.REVEALING, ConsentRefused): _refuse,
        (_S.REVEALING, TimeOver): _expire,
        (_S.REVEALING, CancelRequested): _cancel,
        (_S.DELIVERING, ConsentGiven): _consent,
        (_S.DELIVERING, ExpertSealed): _seal,
        (_S.DELIVERING, KeysSent): _reveal,
        (_S.DELIVERING, ExpertsOpened): _deliver,
        (_S.DELIVERING, ConsentRefused): _refuse,
        (_S.DELIVERING, TimeOver): _expire,
        (_S.COMPLETED, ExpertsOpened): _ignore,
        (_S.COMPLETED, TimeOver): _ignore,
        (_S.CANCELLED, ConsentRefused): _ignore,
        (_S.CANCELLED, TimeOver): _ignore,
        (_S.CANCELLED, CancelRequested): _ignore,
    }
)
