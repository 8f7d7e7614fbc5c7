"""A site's half of an exchange: its own yes, its own sealing, once.

    asked --approve--> approved --sealed--> sealed --every expert opened--> completed
      |                   |                   |
      +--- decline -------+-------------------+--> declined      (cancel by the coordinator: cancelled)

:data:`TABLE` is the whole machine. Persist, then send: ``exchange.to_json()`` is stored in one
transaction with the ledger entry and the bytes that go with it (the signed consent, the sealed experts,
the opened ones), and what leaves is read back from there. A retry sends the stored bytes and never
seals again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from ..errors import (
    ConsentError,
    IllegalTransitionError,
    IntegrityError,
    NotOnRosterError,
    RefusedError,
)
from .consent import Agreement
from .terms import ExchangeTerms


class SiteState(StrEnum):
    ASKED = "asked"
    APPROVED = "approved"
    SEALED = "sealed"
    COMPLETED = "completed"
    DECLINED = "declined"
    CANCELLED = "cancelled"


# --- inputs ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Approved:
    """The site's people, or the policy they set, say yes; ``consent_hash`` is ``Consent.hash``."""

    consent_hash: bytes


@dataclass(frozen=True)
class Declined:
    """The site's people say no."""

    reason: str


@dataclass(frozen=True)
class ExpertsSealed:
    """The expert has been sealed to every other site under ``agreement``: hash by recipient."""

    agreement: Agreement
    sealed_hashes: Mapping[str, bytes]


@dataclass(frozen=True)
class ExpertOpened:
    """The expert of ``sender`` was verified, opened and stored."""

    sender: str
    expert_hash: bytes


@dataclass(frozen=True)
class CancelNoted:
    """The coordinator says that the exchange is over."""

    reason: str


Input = Approved | Declined | ExpertsSealed | ExpertOpened | CancelNoted


@dataclass(frozen=True)
class SiteExchange:
    """One exchange as a site knows it; immutable, a step makes the next one.

    ``sealed`` holds the hash of each sealed expert by recipient, ``opened`` the hash of each opened
    expert by sender. Made by :meth:`propose`.
    """

    terms: ExchangeTerms
    site: str
    state: SiteState = SiteState.ASKED
    consent_hash: bytes = b""
    sealed: Mapping[str, bytes] = field(default_factory=dict)
    opened: Mapping[str, bytes] = field(default_factory=dict)
    reason: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "sealed", MappingProxyType(dict(self.sealed)))
        object.__setattr__(self, "opened", MappingProxyType(dict(self.opened)))

    @classmethod
    def propose(
        cls, terms: ExchangeTerms, site: str, earlier: Iterable[SiteExchange]
    ) -> SiteExchange:
        """Take up what the coordinator proposes, or find the same proposal again.

        Args:
            earlier: every exchange that this site has on record.
        Raises:
            NotOnRosterError: the site is not on the roster.
            RefusedError: the exchange id is taken by other terms, or this plan has another exchange
                that is open or has released this site's expert: a plan releases once.
        """
        if site not in terms.roster:
            raise NotOnRosterError(f"{site} is not on the roster of exchange {terms.exchange_id}")
        known: SiteExchange | None = None
        for other in earlier:
            if other.terms.exchange_id == terms.exchange_id:
                if other.terms != terms:
                    raise RefusedError(
                        f"exchange {terms.exchange_id} is known here with other terms",
                        safe="nothing was approved or sealed",
                    )
                known = other
            elif other.terms.plan_hash == terms.plan_hash and other.binds:
                raise RefusedError(
                    f"the plan has its exchange already ({other.terms.exchange_id}, "
                    f"{other.state.value}); a plan releases the experts once",
                    safe="nothing was approved or sealed",
                )
        return known or cls(terms, site)

    @property
    def binds(self) -> bool:
        """True while open, and for ever once the expert has been sealed."""
        over = (SiteState.DECLINED, SiteState.CANCELLED)
        return bool(self.sealed) or self.state not in over

    def step(self, event: Input) -> SiteExchange:
        """Take one input; returns the next exchange, or this one if the input repeats what is known.

        Raises:
            IllegalTransitionError: the state has no row for this input.
            ConsentError: sealed under an agreement that is not this exchange's.
            NotOnRosterError, RefusedError: an expert of a stranger, or another one than before.
        """
        row = TABLE.get((self.state, type(event)))
        if row is None:
            raise IllegalTransitionError(
                f"exchange {self.terms.exchange_id}: {type(event).__name__} is not possible while it "
                f"is {self.state.value} at this site",
                safe="the exchange is as it was",
            )
        record, state = row
        recorded, done = record(self, event)
        return replace(recorded, state=state) if done else recorded

    def to_json(self) -> dict[str, Any]:
        """JSON values for the store."""
        return {
            "terms": self.terms.to_json(),
            "site": self.site,
            "state": self.state.value,
            "consent_hash": self.consent_hash.hex(),
            "sealed": {name: digest.hex() for name, digest in sorted(self.sealed.items())},
            "opened": {name: digest.hex() for name, digest in sorted(self.opened.items())},
            "reason": self.reason,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> SiteExchange:
        """Inverse of :meth:`to_json`.

        Raises:
            IntegrityError: malformed, or a state that its records do not support.
        """
        try:
            exchange = cls(
                terms=ExchangeTerms.from_json(values["terms"]),
                site=values["site"],
                state=SiteState(values["state"]),
                consent_hash=bytes.fromhex(values["consent_hash"]),
                sealed={name: bytes.fromhex(digest) for name, digest in values["sealed"].items()},
                opened={name: bytes.fromhex(digest) for name, digest in values["opened"].items()},
                reason=values["reason"],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise IntegrityError(f"stored exchange: malformed: {error!r}") from error
        exchange._check_supported()
        return exchange

    def _check_supported(self) -> None:
        others = set(self.terms.others(self.site))
        said_yes = self.state in (SiteState.APPROVED, SiteState.SEALED, SiteState.COMPLETED)
        if (
            self.site not in self.terms.roster
            or (said_yes and not self.consent_hash)
            or (self.sealed and (set(self.sealed) != others or not self.consent_hash))
            or (self.state in (SiteState.SEALED, SiteState.COMPLETED) and not self.sealed)
            or not set(self.opened) <= (others if self.sealed else set())
            or (self.state is SiteState.COMPLETED and set(self.opened) != others)
        ):
            raise IntegrityError(
                f"stored exchange {self.terms.exchange_id}: its records do not support the state "
                f"{self.state.value!r}",
                safe="nothing was sealed or sent",
            )


# --- what an input records: the next exchange, and whether the row's next state is reached -----------

Recorded = tuple[SiteExchange, bool]


def _approve(exchange: SiteExchange, event: Approved) -> Recorded:
    if exchange.state is SiteState.ASKED:
        return replace(exchange, consent_hash=event.consent_hash), True
    if event.consent_hash != exchange.consent_hash:
        raise RefusedError(
            f"exchange {exchange.terms.exchange_id} was approved before, with another key",
            safe="the first consent stands",
        )
    return exchange, False


def _decline(exchange: SiteExchange, event: Declined) -> Recorded:
    return replace(exchange, reason=event.reason[:500]), True


def _seal(exchange: SiteExchange, event: ExpertsSealed) -> Recorded:
    parties = event.agreement.parties
    if (
        event.agreement.terms != exchange.terms
        or parties[exchange.site].consent_hash != exchange.consent_hash
    ):
        raise ConsentError(
            f"exchange {exchange.terms.exchange_id}: the agreement is not the one that this site "
            "consented to",
            safe="nothing that was sealed under it may be sent",
        )
    if set(event.sealed_hashes) != set(exchange.terms.others(exchange.site)):
        raise RefusedError("a site seals its expert to every other site of the roster, or to none")
    return replace(exchange, sealed=event.sealed_hashes), True


def _open(exchange: SiteExchange, event: ExpertOpened) -> Recorded:
    others = exchange.terms.others(exchange.site)
    if event.sender not in others:
        raise NotOnRosterError(f"{event.sender} is no other site of this exchange")
    known = exchange.opened.get(event.sender)
    if known is not None:
        if known != event.expert_hash:
            raise RefusedError(
                f"{event.sender} sent another expert than before", safe="the first one stands"
            )
        return exchange, False
    opened = {**exchange.opened, event.sender: event.expert_hash}
    return replace(exchange, opened=opened), len(opened) == len(others)


def _cancel(exchange: SiteExchange, event: CancelNoted) -> Recorded:
    return replace(exchange, reason=event.reason[:500]), True


def _ignore(exchange: SiteExchange, event: Input) -> Recorded:
    return exchange, False


_S = SiteState
Row = tuple[Callable[[SiteExchange, Any], Recorded], SiteState]

# (state, input) -> (what is recorded, the state once that is complete)
TABLE: Mapping[tuple[SiteState, type[Input]], Row] = MappingProxyType(
    {
        (_S.ASKED, Approved): (_approve, _S.APPROVED),
        (_S.ASKED, Declined): (_decline, _S.DECLINED),
        (_S.ASKED, CancelNoted): (_cancel, _S.CANCELLED),
        (_S.APPROVED, Approved): (_approve, _S.APPROVED),
        (_S.APPROVED, Declined): (_decline, _S.DECLINED),
        (_S.APPROVED, ExpertsSealed): (_seal, _S.SEALED),
        (_S.APPROVED, CancelNoted): (_cancel, _S.CANCELLED),
        (_S.SEALED, ExpertOpened): (_open, _S.COMPLETED),
        (_S.SEALED, Declined): (_decline, _S.DECLINED),
        (_S.SEALED, CancelNoted): (_cancel, _S.CANCELLED),
        (_S.COMPLETED, ExpertOpened): (_open, _S.COMPLETED),
        (_S.COMPLETED, CancelNoted): (_ignore, _S.COMPLETED),
        (_S.DECLINED, Declined): (_ignore, _S.DECLINED),
        (_S.DECLINED, CancelNoted): (_ignore, _S.DECLINED),
        (_S.CANCELLED, CancelNoted): (_ignore, _S.CANCELLED),
    }
)
