"""The coordinator's half of an exchange: a sans-I/O state machine that relays what it cannot open.

    proposed --start--> consenting --every yes--> sealing --every pair--> delivering --all--> completed
        |                   |                        |                        |
        +-------------------+------ refusal, cancel -+------------------------+-----------> cancelled

An expert is accepted in ``sealing`` only, and that state is reached only by an operator's start and a
yes of every site of the roster. :data:`TABLE` is the whole of it: an input that has no row for the
present state is an error that names both. Inputs that repeat what is recorded change nothing, so that a
site may send again what it is not sure to have delivered.

Persist, then send: store ``machine.to_json()`` in one transaction with what the input brought, then
carry out the effects. After a restart, ``machine.outstanding()`` is what is still to be done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from ..errors import IllegalTransitionError, IntegrityError, NotOnRosterError, RefusedError
from .terms import ExchangeTerms


class ExchangeState(StrEnum):
    PROPOSED = "proposed"
    CONSENTING = "consenting"
    SEALING = "sealing"
    DELIVERING = "delivering"
    COMPLETED = "completed"
    CANCELLED = "cancelled"


# --- inputs: the caller has verified who sends them, and every signature in what they stand for ------


@dataclass(frozen=True)
class Started:
    """An operator starts the exchange."""

    operator: str


@dataclass(frozen=True)
class ConsentGiven:
    """A site's verified consent arrived; ``consent_hash`` is ``Consent.hash``."""

    site: str
    consent_hash: bytes


@dataclass(frozen=True)
class ConsentRefused:
    """A site says no, or takes its yes back, or cannot open what it received."""

    site: str
    reason: str


@dataclass(frozen=True)
class ExpertSealed:
    """A verified sealed expert is stored; ``sealed_hash`` is ``SealedExpert.hash``."""

    sender: str
    recipient: str
    sealed_hash: bytes


@dataclass(frozen=True)
class ExpertsDelivered:
    """A recipient confirms that it holds and has opened the expert of every other site."""

    recipient: str


@dataclass(frozen=True)
class CancelRequested:
    """An operator, or a deadline, ends the exchange."""

    by: str
    reason: str


Input = Started | ConsentGiven | ConsentRefused | ExpertSealed | ExpertsDelivered | CancelRequested


# --- effects -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AskConsent:
    """Show the terms to a site and wait for its people."""

    site: str


@dataclass(frozen=True)
class AskSealed:
    """Send a site all consents; it verifies them and seals to every other site."""

    site: str


@dataclass(frozen=True)
class DeliverExperts:
    """Let a site fetch the sealed experts of every other site."""

    site: str


@dataclass(frozen=True)
class TellCancelled:
    """Tell a site that the exchange is over."""

    site: str
    reason: str


@dataclass(frozen=True)
class EraseSealed:
    """Erase the stored ciphertexts: they are delivered, or never will be."""


Effect = AskConsent | AskSealed | DeliverExperts | TellCancelled | EraseSealed


@dataclass(frozen=True)
class ExchangeMachine:
    """One exchange as the coordinator knows it; immutable, a step makes the next one.

    ``consents`` holds consent hashes by site, ``sealed`` the hash of each sealed expert by
    (sender, recipient), ``delivered`` the sites that confirmed.
    """

    terms: ExchangeTerms
    state: ExchangeState = ExchangeState.PROPOSED
    consents: Mapping[str, bytes] = field(default_factory=dict)
    sealed: Mapping[tuple[str, str], bytes] = field(default_factory=dict)
    delivered: frozenset[str] = frozenset()
    operator: str = ""
    reason: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "consents", MappingProxyType(dict(self.consents)))
        object.__setattr__(self, "sealed", MappingProxyType(dict(self.sealed)))

    def step(self, event: Input) -> tuple[ExchangeMachine, tuple[Effect, ...]]:
        """Take one input.

        Returns:
            The next machine (this one, if the input repeats what is known) and what to do after it
            has been stored.
        Raises:
            IllegalTransitionError: the state has no row for this input.
            NotOnRosterError: a site or recipient is not on the roster.
            RefusedError: the input contradicts what the same site sent before.
        """
        row = TABLE.get((self.state, type(event)))
        if row is None:
            raise IllegalTransitionError(
                f"exchange {self.terms.exchange_id}: {type(event).__name__} is not possible while it "
                f"is {self.state.value}",
                safe="the exchange is as it was",
            )
        self._check_names(event)
        record, state = row
        recorded, done = record(self, event)
        if not done or state is self.state:
            return recorded, ()
        entered = replace(recorded, state=state)
        return entered, entered.outstanding()

    def outstanding(self) -> tuple[Effect, ...]:
        """Everything that the state waits for: to be done on entering it, and again after a restart."""
        roster = self.terms.roster
        match self.state:
            case ExchangeState.CONSENTING:
                return tuple(AskConsent(site) for site in roster if site not in self.consents)
            case ExchangeState.SEALING:
                missing = {sender for sender, _ in _pairs(self.terms) - set(self.sealed)}
                return tuple(AskSealed(site) for site in roster if site in missing)
            case ExchangeState.DELIVERING:
                return tuple(DeliverExperts(site) for site in roster if site not in self.delivered)
            case ExchangeState.COMPLETED:
                return (EraseSealed(),)
            case ExchangeState.CANCELLED:
                return (EraseSealed(), *(TellCancelled(site, self.reason) for site in roster))
            case ExchangeState.PROPOSED:
                return ()

    def to_json(self) -> dict[str, Any]:
        """JSON values for the store."""
        return {
            "terms": self.terms.to_json(),
            "state": self.state.value,
            "consents": {site: digest.hex() for site, digest in sorted(self.consents.items())},
            "sealed": [[*pair, digest.hex()] for pair, digest in sorted(self.sealed.items())],
            "delivered": sorted(self.delivered),
            "operator": self.operator,
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
                terms=ExchangeTerms.from_json(values["terms"]),
                state=ExchangeState(values["state"]),
                consents={s: bytes.fromhex(digest) for s, digest in values["consents"].items()},
                sealed={(s, r): bytes.fromhex(digest) for s, r, digest in values["sealed"]},
                delivered=frozenset(values["delivered"]),
                operator=values["operator"],
                reason=values["reason"],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise IntegrityError(f"stored exchange: malformed: {error!r}") from error
        machine._check_supported()
        return machine

    def _check_names(self, event: Input) -> None:
        names = {
            getattr(event, name) for name in ("site", "sender", "recipient") if hasattr(event, name)
        }
        for name in names - set(self.terms.roster):
            raise NotOnRosterError(f"{name} is not on the roster of this exchange")

    def _check_supported(self) -> None:
        live = (ExchangeState.DELIVERING, ExchangeState.COMPLETED)
        consented = len(self.consents) == len(self.terms.roster)
        if (
            not set(self.consents) <= set(self.terms.roster)
            or not set(self.sealed) <= _pairs(self.terms)
            or not self.delivered <= set(self.terms.roster)
            or (self.state in (ExchangeState.SEALING, *live) and not consented)
            or (self.sealed and not consented)
            or (self.state in live and len(self.sealed) != len(_pairs(self.terms)))
            or (
                self.state is ExchangeState.COMPLETED
                and len(self.delivered) != len(self.terms.roster)
            )
            or (self.state is not ExchangeState.PROPOSED and not (self.operator or self.reason))
        ):
            raise IntegrityError(
                f"stored exchange {self.terms.exchange_id}: its records do not support the state "
                f"{self.state.value!r}",
                safe="nothing was relayed",
            )


# --- what an input records: the next machine, and whether the row's next state is reached ------------

Recorded = tuple[ExchangeMachine, bool]


def _start(machine: ExchangeMachine, event: Started) -> Recorded:
    return replace(machine, operator=event.operator), True


def _consent(machine: ExchangeMachine, event: ConsentGiven) -> Recorded:
    known = machine.consents.get(event.site)
    if known is not None:
        return _repeated(machine, known, event.consent_hash, f"{event.site}: consent")
    consents = {**machine.consents, event.site: event.consent_hash}
    return replace(machine, consents=consents), len(consents) == len(machine.terms.roster)


def _seal(machine: ExchangeMachine, event: ExpertSealed) -> Recorded:
    pair = (event.sender, event.recipient)
    if event.sender == event.recipient:
        raise RefusedError(f"{event.sender}: an expert is not sealed to its own site")
    known = machine.sealed.get(pair)
    if known is not None:
        what = f"{event.sender}: sealed expert for {event.recipient}"
        return _repeated(machine, known, event.sealed_hash, what)
    sealed = {**machine.sealed, pair: event.sealed_hash}
    return replace(machine, sealed=sealed), len(sealed) == len(_pairs(machine.terms))


def _deliver(machine: ExchangeMachine, event: ExpertsDelivered) -> Recorded:
    delivered = machine.delivered | {event.recipient}
    if delivered == machine.delivered:
        return machine, False
    return replace(machine, delivered=delivered), len(delivered) == len(machine.terms.roster)


def _refuse(machine: ExchangeMachine, event: ConsentRefused) -> Recorded:
    return replace(machine, reason=f"{event.site} refused: {event.reason}"[:500]), True


def _cancel(machine: ExchangeMachine, event: CancelRequested) -> Recorded:
    return replace(machine, reason=f"{event.by} cancelled: {event.reason}"[:500]), True


def _ignore(machine: ExchangeMachine, event: Input) -> Recorded:
    return machine, False


def _repeated(machine: ExchangeMachine, known: bytes, got: bytes, what: str) -> Recorded:
    if known != got:
        raise RefusedError(
            f"{what} differs from the one that was sent before",
            safe="the first one stands",
            next_step="cancel the exchange and propose a new one",
        )
    return machine, False


def _pairs(terms: ExchangeTerms) -> set[tuple[str, str]]:
    return {(site, other) for site in terms.roster for other in terms.others(site)}


_S = ExchangeState
Row = tuple[Callable[[ExchangeMachine, Any], Recorded], ExchangeState]

# (state, input) -> (what is recorded, the state once that is complete)
TABLE: Mapping[tuple[ExchangeState, type[Input]], Row] = MappingProxyType(
    {
        (_S.PROPOSED, Started): (_start, _S.CONSENTING),
        (_S.PROPOSED, CancelRequested): (_cancel, _S.CANCELLED),
        (_S.CONSENTING, ConsentGiven): (_consent, _S.SEALING),
        (_S.CONSENTING, ConsentRefused): (_refuse, _S.CANCELLED),
        (_S.CONSENTING, CancelRequested): (_cancel, _S.CANCELLED),
        (_S.SEALING, ConsentGiven): (_consent, _S.SEALING),
        (_S.SEALING, ExpertSealed): (_seal, _S.DELIVERING),
        (_S.SEALING, ConsentRefused): (_refuse, _S.CANCELLED),
        (_S.SEALING, CancelRequested): (_cancel, _S.CANCELLED),
        (_S.DELIVERING, ConsentGiven): (_consent, _S.DELIVERING),
        (_S.DELIVERING, ExpertSealed): (_seal, _S.DELIVERING),
        (_S.DELIVERING, ExpertsDelivered): (_deliver, _S.COMPLETED),
        (_S.DELIVERING, ConsentRefused): (_refuse, _S.CANCELLED),
        (_S.DELIVERING, CancelRequested): (_cancel, _S.CANCELLED),
        (_S.COMPLETED, ExpertsDelivered): (_deliver, _S.COMPLETED),
        (_S.CANCELLED, ConsentRefused): (_ignore, _S.CANCELLED),
        (_S.CANCELLED, CancelRequested): (_ignore, _S.CANCELLED),
    }
)
