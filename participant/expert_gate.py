"""The egress gate's part for the exchange of experts: this site's answer, its sealed expert, its keys.

Whatever leaves here stands under an exchange that this site's person approved, a plan that is approved with
the hash that was offered, and the policy of this moment.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from google.protobuf.message import Message

from fedpalm.errors import IntegrityError, StateError
from fedpalm.exchange.consent import Sanction
from fedpalm.exchange.receipt import ExpertReceipt
from fedpalm.exchange.sealing import seal_expert
from fedpalm.exchange.site import ExpertSealed, SiteExchange, SiteState
from fedpalm.layout import CLOSED_SET_EXPERT, FloatVector
from fedpalm.ledger.bodies import EntryKind
from fedpalm.pki.identity import Identity, Role
from fedpalm.pki.live import LiveIdentity
from fedpalm.pki.statement import SignedStatement
from fedpalm.plan import Plan
from fedpalm.wire.statements import to_wire
from fedpalm.wire.v1 import federation_pb2 as wire

from .budget import BudgetBook
from .exchange_book import ExchangeBook
from .log import SiteLog
from .messages import MessageGate
from .outgoing import OutgoingPayload, PayloadKind, Place, message_bytes
from .policy import PolicyFile
from .release import refused
from .store import SiteStore

SEALED_RECORD = "exchange-sealed"
"""Kind of the vault's records of which plans released an expert: by plan hash, the hash of the sanction."""

_SEALED = (SiteState.SEALED, SiteState.REVEALED, SiteState.COMPLETED)


def stored_expert(store: SiteStore, plan: Plan, run_id: str) -> FloatVector:
    """This site's own expert after its last round of the run, (P,) float32 of ``plan.released_layout``.

    Raises:
        StateError: this site has trained none.
        IntegrityError: the stored state is damaged, or is of another model.
    """
    layout = plan.released_layout
    if not layout.only(CLOSED_SET_EXPERT):
        raise refused("only closed_set.expert.* tensors are released in an exchange")
    state = store.load_state(run_id) or store.load_continued_state(plan)
    if state is None:
        raise StateError(
            f"run {run_id}: this site has trained in none of its rounds, so it has no expert to release",
            safe="nothing was approved or sealed",
            next_step="refuse the exchange: fedpalm-participant exchange refuse",
        )
    names = [spec.name for spec in layout.tensors]
    if missing := [name for name in names if name not in state]:
        raise IntegrityError(f"run {run_id}: the stored state lacks {missing[0]}")
    return layout.flatten({name: state[name] for name in names})


class ExpertGate(MessageGate):
    """Makes the payloads of an exchange that carry a consent, weights or keys."""

    def __init__(
        self, store: SiteStore, log: SiteLog, live: LiveIdentity, policy: PolicyFile
    ) -> None:
        super().__init__(store, log, live, policy)
        self.budget = BudgetBook(store, log, policy)
        self._book = ExchangeBook(store)

    def release_answer(self, exchange_id: str) -> OutgoingPayload:
        """The answer that this site's person gave: the signed yes, or the refusal.

        Raises:
            EgressRefusedError: no answer was given, or the exchange is over.
            PlanNotApprovedError, PolicyError: a yes that is not allowed here (any more).
        """
        exchange = self._book.get(exchange_id)
        if exchange is None or exchange.state in (SiteState.ASKED, SiteState.CANCELLED):
            raise refused(f"nobody at this site has answered exchange {exchange_id[:63]!r}")
        place = Place(exchange.terms.run, exchange=exchange_id)
        request = wire.ConsentRequest(ref=self._exchange_ref(place), site_id=self.site)
        if exchange.state is SiteState.DECLINED:
            request.refusal = exchange.reason or "no reason given"
            return self._release(PayloadKind.REFUSAL, request, place)
        self._agreed_plan(exchange.terms.run)
        consent = self._book.consent(exchange_id)
        if consent is None or consent.hash != exchange.consent_hash:
            raise refused("the stored consent is not the one that was approved")
        request.consent.CopyFrom(to_wire(consent))
        return self._release_while(exchange, PayloadKind.CONSENT, request)

    def release_sealed_expert(
        self, exchange_id: str, consents: Iterable[SignedStatement]
    ) -> OutgoingPayload:
        """This site's expert, sealed to each other signer: the one sanctioned release.

        The expert is read back from the store, and must be the one that the consent commits to. Sealed
        once: asked again, the stored bytes are released again.

        Args:
            consents: of the signers; all are verified here, against the pinned CA.
        Raises:
            EgressRefusedError: this site did not approve the exchange, or its own consent is not among
                them; or under a plan with differential privacy the log holds no charge for the training of
                the expert.
            ConsentError, SanctionExpiredError: a yes is missing or does not hold, or comes too late.
            SwappedExpertError: the stored expert is not the one that this site consented with.
            BudgetError, VaultError: the home, or its database, came from a backup.
            PlanNotApprovedError, PolicyError: the plan, or any exchange, is not allowed here (any more).
        """
        exchange = self._book.get(exchange_id)
        if exchange is None or exchange.state not in (SiteState.APPROVED, *_SEALED):
            raise refused(f"this site has not approved exchange {exchange_id[:63]!r}")
        terms = exchange.terms
        plan = self._agreed_plan(terms.run)
        if not terms.are_of(plan, terms.run):
            raise refused("the exchange is not about the plan that this site agreed to")
        now = self._store.clock.now()
        if exchange.state in _SEALED:
            terms.require_alive(now)
            return self._stored_sealed(exchange)
        consents = list(consents)
        sanction = Sanction(consents, terms, self._live.current.anchors, now=now)
        if self.site not in sanction.parties or (
            sanction.party(self.site).consent.hash != exchange.consent_hash
        ):
            raise refused("the consent that came back under this site's name is not its own")
        self.budget.require_trained(plan, terms.run)
        self.budget.require_whole()
        secrets = self._book.secrets(exchange_id)
        if secrets is None:
            raise IntegrityError(
                f"exchange {exchange_id}: what this site's consent was made with is gone",
                safe="nothing was sealed",
                next_step="refuse the exchange: fedpalm-participant exchange refuse",
            )
        vector = stored_expert(self._store, plan, terms.run)
        sealed, wrapped = seal_expert(
            vector,
            plan.released_layout,
            sanction,
            sender=self.site,
            salt=secrets.salt,
            signing_key=self._live.current.signing_key,
        )
        place = Place(terms.run, exchange=exchange_id)
        data = sealed.to_bytes()
        with self._store.files(), self._store.transaction() as db:
            if self._book.get(exchange_id) != exchange:
                raise refused("the exchange has changed while this site was sealing")
            if self._store.items.get(SEALED_RECORD, terms.plan_hash) is not None:
                raise refused(
                    "this site's vault says that the plan has released its expert already"
                )
            self._agreed_plan(terms.run)
            name, digest = self._book.put_sealed(db, exchange_id, {self.site: data})[self.site]
            for recipient in wrapped:
                self._log.append(
                    db,
                    EntryKind.EXPERT_RELEASED,
                    {
                        **place.body(),
                        "plan_hash": terms.plan_hash,
                        "sanction": sanction.hash.hex(),
                        "expert_hash": sealed.header.expert_hash,
                        "sealed_hash": sealed.hash.hex(),
                        "recipient": Identity(self.federation, Role.PARTICIPANT, recipient).uri,
                    },
                )
            payload = self._outgoing(
                db,
                PayloadKind.SEALED_EXPERT,
                place,
                payload_hash=digest,
                size=len(data),
                path=self._store.home.state / name,
                layout_hash=plan.released_layout.hash,
            )
            self._book.put(db, exchange.step(ExpertSealed(sanction, sealed.hash)))
            self._book.put_agreed(db, exchange_id, consents, wrapped)
            # A record of the vault: a database that is put back to before it is found out.
            self._store.items.put(db, SEALED_RECORD, terms.plan_hash, sanction.hash)
        self.budget.mark()
        return payload

    def release_keys(self, exchange_id: str) -> OutgoingPayload:
        """The wrapped keys of this site's sealed expert, once every other one is here and verified.

        Raises:
            EgressRefusedError: they are not, or the exchange is over.
            PlanNotApprovedError, PolicyError: the plan, or any exchange, is not allowed here (any more).
        """
        exchange = self._book.get(exchange_id)
        if exchange is None or exchange.state not in (SiteState.REVEALED, SiteState.COMPLETED):
            raise refused(
                f"exchange {exchange_id[:63]!r}: the sealed experts of the other sites are not all here"
            )
        exchange.terms.require_alive(self._store.clock.now())
        self._agreed_plan(exchange.terms.run)
        wrapped = self._book.wrapped(exchange_id)
        if set(wrapped) != set(exchange.others):
            raise refused("this exchange is over")
        place = Place(exchange.terms.run, exchange=exchange_id)
        request = wire.ExpertKeysRequest(
            ref=self._exchange_ref(place),
            site_id=self.site,
            keys=[
                wire.WrappedKey(sender=self.site, recipient=recipient, wrapped=key)
                for recipient, key in sorted(wrapped.items())
            ],
        )
        return self._release_while(exchange, PayloadKind.EXPERT_KEYS, request)

    def release_confirm(self, exchange_id: str) -> OutgoingPayload:
        """This site's signed receipt for the experts that it has opened.

        Raises:
            EgressRefusedError: it has opened none.
        """
        exchange = self._book.get(exchange_id)
        if exchange is None or exchange.state is not SiteState.COMPLETED:
            raise refused(f"exchange {exchange_id[:63]!r}: this site has not opened any expert")
        receipt = ExpertReceipt(
            federation=self.federation,
            site=self.site,
            run=exchange.terms.run,
            exchange_id=exchange_id,
            sanction=exchange.sanction.hex(),
            experts=dict(exchange.opened),
        )
        place = Place(exchange.terms.run, exchange=exchange_id)
        request = wire.ConfirmExpertsRequest(
            ref=self._exchange_ref(place),
            site_id=self.site,
            receipt=to_wire(receipt.sign(self._live.current)),
        )
        return self._release(PayloadKind.CONFIRM_EXPERTS, request, place)

    def sealed_header(self, payload: OutgoingPayload) -> wire.SealedExpertHeader:
        """What goes before the chunks of a sealed expert."""
        return wire.SealedExpertHeader(
            ref=wire.SealedExpertRef(exchange=self._exchange_ref(payload.place), sender=self.site),
            payload_hash=payload.payload_hash,
            payload_bytes=payload.size,
        )

    def _release_while(
        self, exchange: SiteExchange, kind: PayloadKind, request: Message
    ) -> OutgoingPayload:
        """Release a message if the exchange is still as it was looked at: a person may have refused."""
        place = Place(exchange.terms.run, exchange=exchange.terms.exchange_id)
        data = message_bytes(request)
        with self._store.transaction() as db:
            if self._book.get(exchange.terms.exchange_id) != exchange:
                raise refused(f"exchange {place.exchange} has changed meanwhile")
            return self._outgoing(
                db,
                kind,
                place,
                payload_hash=hashlib.sha256(data).digest(),
                size=len(data),
                message=request,
            )

    def _stored_sealed(self, exchange: SiteExchange) -> OutgoingPayload:
        exchange_id = exchange.terms.exchange_id
        with self._store.transaction() as db:
            row = db.execute(
                "SELECT s.*, r.seq FROM sealed_experts s JOIN releases r USING (payload_hash) "
                "WHERE s.exchange_id = ? AND s.sender = ? AND r.payload = ?",
                (exchange_id, self.site, PayloadKind.SEALED_EXPERT.value),
            ).fetchone()
            if row is None or row["file"] is None:
                raise refused("this exchange is over")
            return self._outgoing(
                db,
                PayloadKind.SEALED_EXPERT,
                Place(exchange.terms.run, exchange=exchange_id),
                payload_hash=row["payload_hash"],
                size=row["payload_bytes"],
                path=self._store.home.state / row["file"],
                known_seq=row["seq"],
            )
