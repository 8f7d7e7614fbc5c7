"""The site's half of the deployment exchange: what its person decides, what its agent then does.

The state machine is :class:`fedpalm.exchange.site.SiteExchange`; here its steps are stored, with the
log entry and the bytes that go with each, before their effects are carried out. Every function may be
called again after a crash: it goes on from what is stored.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from fedpalm.errors import (
    IntegrityError,
    NotFoundError,
    RefusedError,
    SealedExpertError,
    StateError,
)
from fedpalm.exchange.consent import Consent, sign_consent, verify_consents
from fedpalm.exchange.recipient import RecipientKey
from fedpalm.exchange.sealing import open_expert
from fedpalm.exchange.site import (
    Approved,
    CancelNoted,
    Declined,
    ExpertOpened,
    SiteExchange,
    SiteState,
)
from fedpalm.ledger.bodies import EntryKind
from fedpalm.methods.base import Tensors
from fedpalm.pki.bundle import TlsIdentity
from fedpalm.pki.identity import Identity, Role

from .consents import terms_of
from .egress import EgressGate
from .exchange_book import ExchangeBook
from .link import Link
from .log import SiteLog
from .store import SiteStore, StoredRun
from .trainer import Trainer

MAX_REASON = 500


@dataclass(frozen=True)
class Desk:
    """What a decision needs: the site's store, log and identity. The command line has no more."""

    store: SiteStore
    log: SiteLog
    identity: TlsIdentity

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
        terms = terms_of(run.plan, run.run_id, exchange_id)
        site = self.identity.identity.name
        exchange = SiteExchange.propose(terms, site, self.book.all())
        with self.store.transaction() as db:
            self.book.put(db, exchange)
        return exchange

    def approve(self, exchange: SiteExchange) -> SiteExchange:
        """The person's yes: a fresh recipient key, a signed consent and the log entry, at once.

        Raises:
            IllegalTransitionError: it was declined or cancelled before.
        """
        if exchange.state in (SiteState.APPROVED, SiteState.SEALED, SiteState.COMPLETED):
            return exchange
        key = RecipientKey.generate()
        terms, site = exchange.terms, self.identity.identity.name
        consent = Consent(terms, site, key.public_bytes)
        signed = sign_consent(consent, self.identity.signing_key, self.identity.chain)
        approved, _ = exchange.step(Approved(consent.hash))
        with self.store.transaction() as db:
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
        declined, _ = exchange.step(Declined(_clip(reason)))
        if declined == exchange:
            return exchange
        terms = exchange.terms
        with self.store.transaction() as db:
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
        """The coordinator says that the exchange is over; keys and sealed files go."""
        exchange = self.book.get(exchange_id)
        if exchange is None:
            return None
        if not completed:
            exchange, _ = exchange.step(CancelNoted(_clip(reason)))
        with self.store.transaction() as db:
            self.book.put(db, exchange)
            self.book.drop_files(db, exchange_id, sealed=True)
        self.store.remove_orphans()
        return exchange


@dataclass(frozen=True)
class ExchangeAgent:
    """The part that needs the coordinator and the trained model."""

    desk: Desk
    gate: EgressGate
    trainer: Trainer

    async def answer(self, link: Link, exchange_id: str) -> None:
        """Send the answer that was given here, and remember that it arrived."""
        await link.send_answer(self.gate.release_answer(exchange_id))
        self.desk.book.set_answered(exchange_id, True)

    async def seal(self, link: Link, run: StoredRun, exchange_id: str) -> int:
        """Seal this site's expert to every other site and send it; returns to how many.

        Raises:
            EgressRefusedError, ConsentError: not approved here, or a consent does not hold.
        """
        consents = await link.fetch_consents(run.run_id, exchange_id)
        method = await asyncio.to_thread(self.trainer.resume, run.run_id, run.plan)
        payloads = await asyncio.to_thread(
            self.gate.release_sealed_experts,
            exchange_id,
            consents,
            method.expert_layout,
            method.expert(),
        )
        for payload in payloads:
            await link.upload_sealed(payload)
        return len(payloads)

    async def fetch(self, link: Link, run: StoredRun, exchange_id: str) -> int:
        """Bring, open and keep every other site's expert, then say so; returns how many.

        All of them become part of the private state in one transaction, and the key is erased.

        Raises:
            SealedExpertError: an expert does not open; nothing of any was kept.
            StateError: this site has not sealed its own.
        """
        book = self.desk.book
        exchange = book.get(exchange_id)
        if exchange is None or exchange.state not in (SiteState.SEALED, SiteState.COMPLETED):
            raise StateError(f"exchange {exchange_id[:63]!r}: this site has not sealed its expert")
        others = exchange.terms.others(exchange.site)
        if exchange.state is SiteState.SEALED:
            await self._open_all(link, run, exchange)
        await link.confirm_experts(run.run_id, exchange_id)
        return len(others)

    async def _open_all(self, link: Link, run: StoredRun, exchange: SiteExchange) -> None:
        terms, site = exchange.terms, exchange.site
        book, layout = self.desk.book, run.plan.released_layout
        key = book.key(terms.exchange_id)
        if key is None:
            raise IntegrityError(
                f"exchange {terms.exchange_id}: the key to open the experts with is gone",
                next_step="restore the site's home from a backup, or ask for a new exchange",
            )
        agreement = verify_consents(
            book.agreed(terms.exchange_id),
            terms,
            self.desk.identity.root,
            now=self.desk.store.clock.now(),
        )
        experts: dict[str, Tensors] = {}
        entries = []
        for sender in terms.others(site):
            sealed = await link.download_sealed(
                run.run_id, terms.exchange_id, sender, 4 * layout.size
            )
            vector = open_expert(sealed, layout, agreement, sender=sender, recipient=site, key=key)
            experts[sender] = dict(layout.unflatten(vector))
            exchange, _ = exchange.step(
                ExpertOpened(sender, bytes.fromhex(sealed.header.expert_hash))
            )
            entries.append(
                {
                    "run": terms.run,
                    "exchange": terms.exchange_id,
                    "plan_hash": terms.plan_hash.hex(),
                    "expert_hash": sealed.header.expert_hash,
                    "sealed_hash": sealed.hash.hex(),
                    "sender": Identity(terms.federation, Role.PARTICIPANT, sender).uri,
                }
            )
        await asyncio.to_thread(self._keep, run, exchange, experts, entries)

    def _keep(
        self,
        run: StoredRun,
        exchange: SiteExchange,
        experts: dict[str, Tensors],
        entries: list[dict[str, str]],
    ) -> None:
        method = self.trainer.resume(run.run_id, run.plan)
        self.trainer.forget()
        for sender, tensors in experts.items():
            method.receive_expert(sender, tensors)
        desk = self.desk
        if exchange.state is not SiteState.COMPLETED:
            raise SealedExpertError("not every expert was opened")
        store, exchange_id = desk.store, exchange.terms.exchange_id
        with store.files(), store.transaction() as db:
            before = desk.book.get(exchange_id)
            if before is None or before.state is not SiteState.SEALED:
                raise StateError("the exchange has changed while this site was opening experts")
            store.replace_state(db, run.run_id, method.state())
            desk.book.put(db, exchange)
            desk.book.drop_files(db, exchange_id, sealed=False)
            for body in entries:
                desk.log.append(db, EntryKind.EXPERT_RECEIVED, body)
        store.remove_orphans()


def _clip(reason: str) -> str:
    """At most MAX_REASON bytes of UTF-8, the limit of the wire."""
    return reason.encode()[:MAX_REASON].decode(errors="ignore")
