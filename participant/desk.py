"""What a site's person decides, about an exchange here and about plans in ``plan_desk.py``: stored with its
log entry before anybody acts on it.

The state machine is :class:`fedpalm.exchange.site.SiteExchange`. Every function may be called again
after a crash: it goes on from what is stored. The agent and the site's commands are processes of their
own, so each one steps what it reads inside its transaction, never what it was handed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from fedpalm.errors import NotFoundError, RefusedError, StateError
from fedpalm.exchange.consent import Consent, Coverage, commit, new_salt
from fedpalm.exchange.sealing import expert_hash
from fedpalm.exchange.site import Approved, CancelNoted, Declined, SiteExchange, SiteState
from fedpalm.exchange.terms import ExchangeTerms
from fedpalm.ledger.bodies import EntryKind
from fedpalm.ledger.merkle import MerkleTree
from fedpalm.pki.bundle import TlsIdentity
from fedpalm.pki.hybrid import HybridKey
from fedpalm.pki.live import LiveIdentity
from fedpalm.pki.statement import SignedStatement
from fedpalm.plan import Plan

from .budget import BudgetBook
from .exchange_book import ExchangeBook, Secrets
from .expert_gate import stored_expert
from .log import SiteLog
from .plan_desk import PlanDesk, clip_reason
from .policy import PolicyFile, require_allowed
from .store import SiteStore, StoredRun

_OVER = (SiteState.DECLINED, SiteState.CANCELLED)


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
                next_step="fedpalm-participant exchange status shows those before; the operator starts "
                "one with: fedpalm-coordinator exchange propose",
            )
        return asked[-1]

    def propose(self, run: StoredRun, proposal: SignedStatement) -> SiteExchange:
        """Take up the coordinator's proposal; nothing is approved by it.

        Raises:
            ProtocolError, IdentityError, WrongRoleError: not terms that the coordinator has signed.
            RefusedError: of another plan than this site agreed to, no experts in the plan, or not the time.
            SanctionExpiredError, SanctionRolledBackError: too late, or older than what is here.
        """
        now = self.store.clock.now()
        terms = ExchangeTerms.open(proposal, self.identity.anchors, now=now)
        plan = run.plan
        if not plan.expert_layout:
            raise RefusedError("the plan releases no experts", safe="nothing was sealed")
        if not terms.are_of(plan, run.run_id):
            raise RefusedError(
                f"exchange {terms.exchange_id} is about another plan than this site agreed to",
                safe="nothing was approved or sealed",
            )
        if run.state != "completed" and plan.draft.expert_exchange != "freeze":
            raise StateError(
                f"exchange {terms.exchange_id}: run {run.run_id} is not completed here",
                safe="nothing was approved or sealed",
            )
        terms.require_alive(now)
        site = self.identity.identity.name
        with self.store.transaction() as db:
            earlier = self.book.all()
            exchange = SiteExchange.propose(terms, site, earlier)
            if self.book.get(terms.exchange_id) is None:
                for other in earlier:
                    if other.superseded_by(terms):
                        over = CancelNoted(f"{terms.exchange_id} was proposed in its place")
                        self.book.put(db, other.step(over))
                        self.book.close(db, other.terms.exchange_id)
                self.book.add(db, exchange, proposal)
        return exchange

    def approve(self, exchange: SiteExchange) -> SiteExchange:
        """The person's yes: a fresh recipient key, a commitment to the expert as it is stored, a signed
        consent and the log entry, at once.

        Raises:
            IllegalTransitionError: it was declined or cancelled before.
            SanctionExpiredError: too late.
            StateError: this site has no expert.
            EgressRefusedError: under differential privacy, nothing has paid for the expert.
            BudgetError: the home came from a backup.
            PlanNotApprovedError, PolicyError: the plan, or any exchange, is not allowed here (any more).
        """
        terms, site = exchange.terms, self.identity.identity.name
        plan = self.plans.book.approved(terms.run)
        require_allowed(self.policy.current, plan)
        terms.require_alive(self.store.clock.now())
        budget = BudgetBook(self.store, self.log, self.policy)
        budget.require_trained(plan, terms.run)
        budget.require_whole()
        own = expert_hash(plan.released_layout, stored_expert(self.store, plan, terms.run))
        secrets = Secrets(HybridKey.generate(), new_salt())
        commitment = commit(terms.plan_hash, site, secrets.salt, own)
        with self.store.transaction() as db:
            exchange = self._stored(terms)
            if exchange.consent_hash and exchange.state not in _OVER:
                return exchange
            log = MerkleTree(entry.to_bytes() for entry in self.log.entries())
            consent = Consent(
                federation=terms.federation,
                terms=terms,
                site=site,
                recipient_key=secrets.key.public_bytes.hex(),
                commitment=commitment,
                log_size=len(log),
                log_root=log.root().hex(),
                privacy=_coverage(budget, plan),
            )
            approved = exchange.step(Approved(consent.hash))
            name = self.store.write_private(terms.exchange_id, "key", secrets.to_bytes())
            self.book.put(db, approved)
            self.book.put_consent(db, terms.exchange_id, consent.sign(self.identity), name)
            self.log.append(
                db,
                EntryKind.EXCHANGE_APPROVED,
                {
                    "run": terms.run,
                    "exchange": terms.exchange_id,
                    "number": terms.number,
                    "plan_hash": terms.plan_hash,
                    "consent_hash": consent.hash.hex(),
                    "commitment": commitment,
                    "layout_hash": terms.layout_hash,
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
                    "plan_hash": terms.plan_hash,
                },
            )
        return declined

    def close(self, exchange_id: str, completed: bool, reason: str) -> SiteExchange | None:
        """The coordinator says that the exchange is over; None if that is no news here."""
        with self.store.transaction() as db:
            exchange = self.book.get(exchange_id)
            if exchange is None or self.book.is_closed(exchange_id):
                return None
            # Completed by others: what this site has not opened by now it never will.
            words = "it went on without this site" if completed else clip_reason(reason)
            exchange = exchange.step(CancelNoted(words))
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


def _coverage(budget: BudgetBook, plan: Plan) -> Coverage:
    """What the log has charged for the unit of a plan, as the consent says it."""
    unit = plan.draft.privacy.unit
    if unit == "none":
        return Coverage()
    account = budget.account(unit)
    return Coverage(unit=unit, epsilon=repr(account.epsilon), delta=repr(account.delta))
