"""A site's half of an exchange: its own yes, its own sealing, once.

    asked --approve--> approved --seal--> sealed --all verified--> revealed --opened--> completed
      |                   |                  |                        |
      +-- decline --------+------------------+------------------------+--> declined, or cancelled

On entering ``revealed`` the keys go, and there is no way back: what a site can still decline then is to say
that it has all.
:data:`TABLE` is the whole machine. Persist, then send: ``exchange.to_json()`` is stored in one transaction
with the ledger entry and the bytes that go with it (the signed consent, the sealed expert with its wrapped
keys, the opened experts), and what leaves is read back from there. A retry sends the stored bytes and never
seals again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from ..errors import (
    ConsentError,
    IllegalTransitionError,
    IntegrityError,
    NotOnRosterError,
    RefusedError,
    SanctionRolledBackError,
)
from .consent import Sanction
from .terms import ExchangeTerms


class SiteState(StrEnum):
    ASKED = "asked"
    APPROVED = "approved"
    SEALED = "sealed"
    REVEALED = "revealed"
    COMPLETED = "completed"
    DECLINED = "declined"
    CANCELLED = "cancelled"


# --- inputs ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Approved:
    """The site's people say yes; ``consent_hash`` is ``Consent.hash``."""

    consent_hash: bytes


@dataclass(frozen=True)
class Declined:
    """The site's people say no, or what it received is not what was sanctioned."""

    reason: str


@dataclass(frozen=True)
class ExpertSealed:
    """The expert has been sealed under ``sanction``; ``sealed_hash`` is ``SealedExpert.hash``."""

    sanction: Sanction
    sealed_hash: bytes


@dataclass(frozen=True)
class AllVerified:
    """The sealed expert of every other signer is stored here and verified: hash by sender."""

    sealed_hashes: Mapping[str, bytes]


@dataclass(frozen=True)
class ExpertsOpened:
    """What could be opened was, and is stored: hash of the expert by sender, of one sender at least.

    ``reason`` says of the others why not; empty if there are none.
    """

    expert_hashes: Mapping[str, str]
    reason: str = ""


@dataclass(frozen=True)
class CancelNoted:
    """The coordinator says that the exchange is over."""

    reason: str


Input = Approved | Declined | ExpertSealed | AllVerified | ExpertsOpened | CancelNoted


@dataclass(frozen=True)
class SiteExchange:
    """One exchange as a site knows it; immutable, a step makes the next one.

    ``signers`` and ``sanction`` (its hash) are those that it sealed under, ``sealed`` the hash of its own
    sealed expert, ``verified`` those of the others by sender, ``opened`` the experts' hashes. Made by
    :meth:`propose`.
    """

    terms: ExchangeTerms
    site: str
    state: SiteState = SiteState.ASKED
    consent_hash: bytes = b""
    sanction: bytes = b""
    signers: tuple[str, ...] = ()
    sealed: bytes = b""
    verified: Mapping[str, bytes] = field(default_factory=dict)
    opened: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "verified", MappingProxyType(dict(self.verified)))
        object.__setattr__(self, "opened", MappingProxyType(dict(self.opened)))

    @classmethod
    def propose(
        cls, terms: ExchangeTerms, site: str, earlier: Iterable[SiteExchange]
    ) -> SiteExchange:
        """Take up what the coordinator proposes, or find the same proposal again.

        Args:
            earlier: every exchange that this site has on record.
        What is open of an earlier number, and not sealed, is over for the coordinator: whoever stores the
        new one cancels those (:meth:`superseded_by`).

        Raises:
            NotOnRosterError: the site is not on the roster.
            SanctionRolledBackError: the exchange id is taken by other terms; or this plan has an exchange
                of this or a higher number, or one that has sealed this site's expert: a plan releases once.
        """
        if site not in terms.roster:
            raise NotOnRosterError(f"{site} is not on the roster of exchange {terms.exchange_id}")
        known: SiteExchange | None = None
        for other in earlier:
            if other.terms.exchange_id == terms.exchange_id:
                if other.terms != terms:
                    raise _not_this_one(
                        f"exchange {terms.exchange_id} is known here with other terms"
                    )
                known = other
            elif other.terms.plan_hash == terms.plan_hash and other.superseded_by(terms):
                continue
            elif other.terms.plan_hash == terms.plan_hash and other.binds:
                raise _not_this_one(
                    f"the plan has its exchange already ({other.terms.exchange_id}, "
                    f"{other.state.value}); a plan releases the experts once"
                )
            elif other.terms.plan_hash == terms.plan_hash and other.terms.number >= terms.number:
                raise _not_this_one(
                    f"exchange {terms.exchange_id} has number {terms.number}, and "
                    f"{other.terms.exchange_id} of the same plan had {other.terms.number}"
                )
        return known or cls(terms, site)

    @property
    def others(self) -> tuple[str, ...]:
        """The signers without this site; empty before it sealed."""
        return tuple(site for site in self.signers if site != self.site)

    @property
    def binds(self) -> bool:
        """True while open, and for ever once the expert has been sealed."""
        over = (SiteState.DECLINED, SiteState.CANCELLED)
        return bool(self.sealed) or self.state not in over

    def superseded_by(self, terms: ExchangeTerms) -> bool:
        """True if these later terms of the same plan end this exchange: nothing of it was sealed here."""
        later = terms.plan_hash == self.terms.plan_hash and terms.number > self.terms.number
        return later and not self.sealed and self.binds

    def step(self, event: Input) -> SiteExchange:
        """Take one input; returns the next exchange, or this one if the input repeats what is known.

        Raises:
            IllegalTransitionError: the state has no row for this input.
            ConsentError: sealed under a sanction that is not this exchange's.
            RefusedError: experts of other sites than the signers, or others than before.
        """
        row = TABLE.get((self.state, type(event)))
        if row is None:
            raise IllegalTransitionError(
                f"exchange {self.terms.exchange_id}: {type(event).__name__} is not possible while it "
                f"is {self.state.value} at this site",
                safe="the exchange is as it was",
            )
        record, state = row
        return replace(record(self, event), state=state)

    def to_json(self) -> dict[str, Any]:
        """JSON values for the store."""
        return {
            "terms": self.terms.model_dump(mode="json"),
            "site": self.site,
            "state": self.state.value,
            "consent_hash": self.consent_hash.hex(),
            "sanction": self.sanction.hex(),
            "signers": list(self.signers),
            "sealed": self.sealed.hex(),
            "verified": {name: digest.hex() for name, digest in sorted(self.verified.items())},
            "opened": dict(sorted(self.opened.items())),
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
                terms=ExchangeTerms.model_validate_json(json.dumps(values["terms"])),
                site=values["site"],
                state=SiteState(values["state"]),
                consent_hash=bytes.fromhex(values["consent_hash"]),
                sanction=bytes.fromhex(values["sanction"]),
                signers=tuple(values["signers"]),
                sealed=bytes.fromhex(values["sealed"]),
                verified={site: bytes.fromhex(h) for site, h in values["verified"].items()},
                opened=values["opened"],
                reason=values["reason"],
            )
        except (KeyError, TypeError, ValueError, AttributeError, ValidationError) as error:
            raise IntegrityError(f"stored exchange: malformed: {error!r}") from error
        exchange._check_supported()
        return exchange

    def _check_supported(self) -> None:
        at = list(SiteState).index(self.state)
        others = set(self.others)
        over = self.state in (SiteState.DECLINED, SiteState.CANCELLED)
        sealed = bool(self.sealed)
        if (
            self.site not in self.terms.roster
            or not set(self.signers) <= set(self.terms.roster)
            or sealed != bool(self.sanction)
            or sealed != (self.site in self.signers and len(self.signers) >= 2)
            or (sealed and not self.consent_hash)
            or (not over and (at >= 1) != bool(self.consent_hash))
            or (not over and (at >= 2) != sealed)
            or (not over and (at >= 3) != bool(self.verified))
            or (self.verified and set(self.verified) != others)
            or (not over and (at >= 4) != bool(self.opened))
            or (self.opened and not (set(self.opened) <= others and self.verified))
            or (not over and self.opened and set(self.opened) != others and not self.reason)
        ):
            raise IntegrityError(
                f"stored exchange {self.terms.exchange_id}: its records do not support the state "
                f"{self.state.value!r}",
                safe="nothing was sealed or sent",
            )


# --- what an input records ---------------------------------------------------------------------------


def _approve(exchange: SiteExchange, event: Approved) -> SiteExchange:
    return replace(exchange, consent_hash=event.consent_hash)


def _decline(exchange: SiteExchange, event: Declined) -> SiteExchange:
    return replace(exchange, reason=event.reason[:500])


def _seal(exchange: SiteExchange, event: ExpertSealed) -> SiteExchange:
    sanction = event.sanction
    if (
        sanction.terms != exchange.terms
        or exchange.site not in sanction.parties
        or sanction.party(exchange.site).consent.hash != exchange.consent_hash
    ):
        raise ConsentError(
            f"exchange {exchange.terms.exchange_id}: the sanction is not the one that this site "
            "consented to",
            safe="nothing that was sealed under it may be sent",
        )
    return replace(
        exchange, sanction=sanction.hash, signers=sanction.signers, sealed=event.sealed_hash
    )


def _verify(exchange: SiteExchange, event: AllVerified) -> SiteExchange:
    _require_of_all(exchange, event.sealed_hashes)
    return replace(exchange, verified=event.sealed_hashes)


def _open(exchange: SiteExchange, event: ExpertsOpened) -> SiteExchange:
    if not event.expert_hashes or not set(event.expert_hashes) <= set(exchange.others):
        raise RefusedError(
            f"exchange {exchange.terms.exchange_id} takes the experts of other signers, one at least",
            safe="the exchange is as it was",
        )
    return replace(exchange, opened=event.expert_hashes, reason=event.reason[:500])


def _cancel(exchange: SiteExchange, event: CancelNoted) -> SiteExchange:
    return replace(exchange, reason=event.reason[:500])


def _ignore(exchange: SiteExchange, event: Input) -> SiteExchange:
    return exchange


def _require_of_all(exchange: SiteExchange, by_site: Mapping[str, object]) -> None:
    if set(by_site) != set(exchange.others):
        raise RefusedError(
            f"exchange {exchange.terms.exchange_id} takes the expert of every other signer or of none",
            safe="the exchange is as it was",
        )


def _not_this_one(why: str) -> SanctionRolledBackError:
    return SanctionRolledBackError(why, safe="nothing was approved or sealed")


_S = SiteState
Row = tuple[Callable[[SiteExchange, Any], SiteExchange], SiteState]

# (state, input) -> (what is recorded, the next state)
TABLE: Mapping[tuple[SiteState, type[Input]], Row] = MappingProxyType(
    {
        (_S.ASKED, Approved): (_approve, _S.APPROVED),
        (_S.ASKED, Declined): (_decline, _S.DECLINED),
        (_S.ASKED, CancelNoted): (_cancel, _S.CANCELLED),
        (_S.APPROVED, ExpertSealed): (_seal, _S.SEALED),
        (_S.APPROVED, Declined): (_decline, _S.DECLINED),
        (_S.APPROVED, CancelNoted): (_cancel, _S.CANCELLED),
        (_S.SEALED, AllVerified): (_verify, _S.REVEALED),
        (_S.SEALED, Declined): (_decline, _S.DECLINED),
        (_S.SEALED, CancelNoted): (_cancel, _S.CANCELLED),
        (_S.REVEALED, ExpertsOpened): (_open, _S.COMPLETED),
        (_S.REVEALED, Declined): (_decline, _S.DECLINED),
        (_S.REVEALED, CancelNoted): (_cancel, _S.CANCELLED),
        (_S.COMPLETED, CancelNoted): (_ignore, _S.COMPLETED),
        (_S.DECLINED, Declined): (_ignore, _S.DECLINED),
        (_S.DECLINED, CancelNoted): (_ignore, _S.DECLINED),
        (_S.CANCELLED, CancelNoted): (_ignore, _S.CANCELLED),
    }
)
