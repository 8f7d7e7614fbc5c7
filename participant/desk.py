"""What a site's person decides, about an exchange here and about plans in ``plan_desk.py``: stored with its
log entry before anybody acts on it.

The state machine is :class:`fedpalm.exchange.site.SiteExchange`. Every function may be called again
after a crash: it goes on from what is stored. The agent and the site's commands are processes of their
own, so each one steps what it reads inside its transaction, never what it was handed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from fedpalm.errors import NotFoundError, RefusedError
from fedpalm.exchange.consent import Consent, sign_consent
from fedpalm.exchange.site import Approved, CancelNoted, Declined, SiteExchange, SiteState
from fedpalm.exchange.terms import ExchangeTerms
from fedpalm.ledger.bodies import EntryKind
from fedpalm.pki.bundle import TlsIdentity
from fedpalm.pki.hybrid import HybridKey
from fedpalm.pki.live import LiveIdentity

from .exchange_book import ExchangeBook
from .log import SiteLog
from .plan_desk import PlanDesk, clip_reason
from .policy import PolicyFile
from .store import SiteStore, StoredRun


@dataclass(frozen=True)
class Desk:
    """What a decision needs: the site's store, log and identity. The command line has no more."""

    store: SiteStore
    log: SiteLog
    live: LiveIdentity

    @property
    def identity(self) -> TlsIdentity:
        """Who this site is now."""
        return self.live.current

    @cached_property
    def policy(self) -> PolicyFile:
        return PolicyFile(self.store.home)

    @property
    def plans(self) -> PlanDesk:
        return PlanDesk(self.store, self.log, self.live, self.policy)

    @property
    def book(self) -> ExchangeBook:
        return ExchangeBook(self.store)

    def open_exchange(self, exchange_id: str | None) -> SiteExchange:
        """The named exchange, or the one that waits for an answer.

        Raises:
            NotFoundError: there is none, or none of that name.
        """
        if exchange_id is not None:
            found = self.book.get(exchange_id)
            if found is None:
                raise NotFoundError(f"no exchange {exchange_id[:63]!r} has been proposed here")
            return found
        asked = [one for one in self.book.all() if one.state is SiteState.ASKED]
        if not asked:
            raise NotFoundError(
                "no exchange waits for this site's answer",
                next_step="the operator starts one with: fedpalm-coordinator exchange start",
            )
        return asked[-1]

    def propose(self, run: StoredRun, exchange_id: str, plan_hash: bytes) -> SiteExchange:
        """Take up the coordinator's proposal; nothing is approved by it.

        Raises:
            RefusedError: another plan than this site's, no experts in the plan, or the plan's one
                exchange was another.
        """
        if run.plan.hash != plan_hash:
            raise RefusedError(
                f"exchange {exchange_id[:63]!r} names another plan than this site agreed to",
                safe="nothing was approved or sealed",
            )
        if not run.plan.expert_layout:
            raise RefusedError("the plan releases no experts", safe="nothing was sealed")
        terms = ExchangeTerms.of(run.plan, run.run_id, exchange_id)
        site = self.identity.identity.name
        with self.store.transaction() as db:
            exchange = SiteExchange.propose(terms, site, self.book.all())
            if self.book.get(exchange_id) is None:
                self.book.put(db, exchange)
        return exchange

    def approve(self, exchange: SiteExchange) -> SiteExchange:
        """The person's yes: a fresh recipient key, a signed consent and the log entry, at once.

        Raises:
            IllegalTransitionError: it was declined or cancelled before.
        """
        key = HybridKey.generate()
        terms, site = exchange.terms, self.identity.identity.name
        consent = Consent(terms, site, key.public_bytes)
        signed = sign_consent(consent, self.identity.signing_key, self.identity.chain)
        _ = (
            self.store.vault
        )  # a person may have to be asked, and a transaction keeps the agent waiting
        with self.store.transaction() as db:
            exchange = self._stored(terms)
            if exchange.state in (SiteState.APPROVED, SiteState.SEALED, SiteState.COMPLETED):
                return exchange
            approved = exchange.step(Approved(consent.hash))
            name = self.store.write_private(terms.exchange_id, "key", key.private_bytes())
            self.book.put(db, approved)
            self.book.put_consent(db, terms.exchange_id, signed, name)
            self.log.append(
                db,
                EntryKind.EXCHANGE_APPROVED,
                {
                    "run": terms.run,
                    "exchange": terms.exchange_id,
                    "plan_hash": terms.plan_hash.hex(),
                    "consent_hash": consent.hash.hex(),
                    "layout_hash": terms.layout_hash.hex(),
                },
            )
        return approved

    def refuse(self, exchange: SiteExchange, reason: str) -> SiteExchange:
        """The person's no; also after a yes, as long as the exchange goes on.

        Raises:
            IllegalTransitionError: it is completed or cancelled.
        """
        terms = exchange.terms
        with self.store.transaction() as db:
            exchange = self._stored(terms)
            declined = exchange.step(Declined(clip_reason(reason)))
            if declined == exchange:
                return exchange
            self.book.put(db, declined)
            self.book.drop_files(db, terms.exchange_id, sealed=True)
            db.execute(
                "UPDATE exchanges SET answered = 0 WHERE exchange_id = ?", (terms.exchange_id,)
            )
            self.log.append(
                db,
                EntryKind.EXCHANGE_REFUSED,
                {
                    "run": terms.run,
                    "exchange": terms.exchange_id,
                    "plan_hash": terms.plan_hash.hex(),
                },
            )
        return declined

    def close(self, exchange_id: str, completed: bool, reason: str) -> SiteExchange | None:
        """The coordinator says that the exchange is over; None if that is no news here."""
        with self.store.transaction() as db:
            exchange = self.book.get(exchange_id)
            if exchange is None or self.book.is_closed(exchange_id):
                return None
            if not completed:
                exchange = exchange.step(CancelNoted(clip_reason(reason)))
            self.book.put(db, exchange)
            self.book.close(db, exchange_id)
        self.store.remove_orphans()
        return exchange

    def _stored(self, terms: ExchangeTerms) -> SiteExchange:
        """The exchange as it is now; inside a transaction nobody else can change it."""
        exchange = self.book.get(terms.exchange_id)
        if exchange is None or exchange.terms != terms:
            raise NotFoundError(f"no exchange {terms.exchange_id!r} of these terms is stored here")
        return exchange
