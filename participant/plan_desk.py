"""What a site answers to a plan, stored with its log entry before anybody hears of it.

A person decides in a command of their own, the policy inside the agent; each reads the plan inside the
transaction that changes it, so that neither overrides what the other has just decided.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Literal

from fedpalm.errors import (
    ForkError,
    HashMismatchError,
    NotFoundError,
    NotOnRosterError,
    ResourceError,
    StateError,
)
from fedpalm.ledger.bodies import EntryKind
from fedpalm.pki.live import LiveIdentity
from fedpalm.pki.statement import SignedStatement
from fedpalm.plan import Plan
from fedpalm.rounds.agreement import PlanAnswer, PlanOffer

from .log import SiteLog
from .masked_store import MaskedBook
from .plan_book import PlanBook, PlanState, StoredPlan
from .plan_fit import disagreements, require_fit
from .policy import PolicyFile, require_allowed, violations
from .store import SiteStore

MAX_REASON = 500
MAX_UNDECIDED = 64
MAX_NEW_PLANS = 256
"""Within 24 hours: what the policy decides by itself stays in the store and the log for ever, too."""
MAX_OTHER_OFFERS = 16
"""Of one run, that are kept beside the first: two prove all there is to prove."""
DAY_MS = 86_400_000
By = Literal["person", "policy"]


@dataclass(frozen=True)
class PlanDesk:
    """What a decision about a plan needs. The command line has no more."""

    store: SiteStore
    log: SiteLog
    live: LiveIdentity
    policy: PolicyFile

    @property
    def book(self) -> PlanBook:
        return PlanBook(self.store)

    # --- the coordinator offers -------------------------------------------------------------------

    def require_room(self) -> None:
        """Raises ResourceError: too many plans wait for a decision, or came within a day."""
        undecided, new = self.book.counts(self.store.now_ms() - DAY_MS)
        if undecided >= MAX_UNDECIDED:
            raise ResourceError(
                f"{undecided} plans wait for a decision, and no more are taken up until some have one",
                safe=_SAFE,
                next_step="decide about them: fedpalm-participant status lists them",
            )
        if new >= MAX_NEW_PLANS:
            raise ResourceError(
                f"{new} plans were offered within 24 hours, and no more are taken up",
                safe=_SAFE,
                next_step="ask the operator of the coordinator what they are for",
            )

    def propose(self, run_id: str, plan: Plan, offer: SignedStatement) -> StoredPlan:
        """Take up an offered plan; nothing is approved by it. The same offer again changes nothing.

        Args:
            plan: from canonical bytes.
        Raises:
            IdentityError, WrongRoleError, ProtocolError: the offer is not the coordinator's word.
            HashMismatchError: it is for another run or plan than what came with it.
            NotOnRosterError: the plan is not for this site.
            ForkError: the coordinator has signed another plan for this run before; both offers are
                named in the log and kept.
            ResourceError: as :meth:`require_room`.
        """
        own = self.live.current
        offered = PlanOffer.open(offer, own.anchors, now=self.store.clock.now())
        if (offered.run, offered.plan_hash) != (run_id, plan.hash.hex()):
            raise HashMismatchError(
                f"run {run_id}: the plan that came is not the one that was offered", safe=_SAFE
            )
        federation, site = own.identity.federation, own.identity.name
        if plan.federation != federation or offered.federation != federation:
            raise HashMismatchError(
                f"run {run_id}: the plan is of federation {plan.federation!r}", safe=_SAFE
            )
        if site not in plan.roster:
            raise NotOnRosterError(
                f"{site} is not on the roster of run {run_id}", safe="this site has not joined"
            )
        with self.store.transaction() as db:
            known = self.book.get(run_id)
            if known is None:
                self.require_room()
                self.book.add(db, run_id, plan, offer)
            elif known.plan.hash != plan.hash:
                self._keep_fork(db, known, offer)
        stored = self.plan(run_id)
        if stored.plan.hash != plan.hash:
            raise ForkError(
                f"run {run_id} is offered with another plan ({plan.hash.hex()[:12]}) than before "
                f"({stored.plan.hash.hex()[:12]}), and the coordinator has signed both",
                safe="the first one stands; the second is not approved; both signed offers are kept: "
                f"fedpalm-participant manifests {run_id}",
                next_step="ask the operator; a changed plan needs a new run",
            )
        return stored

    # --- the site answers -------------------------------------------------------------------------

    def plan(self, run_id: str | None) -> StoredPlan:
        """The plan of a run, or the one that waits for a decision.

        Raises:
            NotFoundError: there is none.
            StateError: several wait; they are named.
        """
        if run_id is not None:
            found = self.book.get(run_id)
            if found is None:
                raise NotFoundError(
                    f"no plan of a run {run_id[:63]!r} has been offered here",
                    next_step="fedpalm-participant status lists the runs; the agent fetches offers: "
                    "fedpalm-participant run",
                )
            return found
        waiting = [one for one in self.book.all() if one.state is PlanState.PROPOSED]
        if not waiting:
            raise NotFoundError(
                "no plan waits for a decision",
                next_step="name a RUN; a plan arrives while the agent runs: fedpalm-participant run",
            )
        if len(waiting) > 1:
            raise StateError(
                f"several plans wait for a decision: {', '.join(one.run_id for one in waiting)}",
                next_step="name the RUN",
            )
        return waiting[0]

    def approve(self, run_id: str) -> StoredPlan:
        """A person's yes: signed, stored and logged at once. Again, it changes nothing.

        Raises:
            PolicyError: the policy forbids the plan (every violation is listed), or cannot be read; or the
                plan has another backbone or other images for this site than its settings.
            StateError: the run is over at this site.
        """
        return self._decide(run_id, PlanState.APPROVED, "person", "")

    def refuse(self, run_id: str, reason: str = "") -> StoredPlan:
        """A person's no; after a yes it takes that back, also while the run goes on.

        What a masked attempt of the run keeps secret is erased.

        Args:
            reason: kept here and not sent.
        Raises:
            StateError: the run is over at this site.
        """
        return self._decide(run_id, PlanState.REFUSED, "person", reason)

    def consider(self, run_id: str) -> StoredPlan:
        """Let the policy decide what it can: forbid, take back, or approve within its limits.

        A person's refusal stands, and so does a person's approval of what the policy allows.

        Raises:
            PolicyError: the policy or the settings cannot be read; nothing was decided.
        """
        stored = self.plan(run_id)
        if self._is_over(run_id) or stored.state is PlanState.REFUSED:
            return stored
        policy = self.policy.current
        if found := [*violations(policy, stored.plan), *self.disagreements(stored.plan)]:
            return self._decide(run_id, PlanState.REFUSED, "policy", "; ".join(found))
        if stored.state is PlanState.PROPOSED and policy.auto_approve:
            return self._decide(run_id, PlanState.APPROVED, "policy", "")
        return stored

    def answer_to_send(self, run_id: str) -> SignedStatement:
        """The newest answer, under the certificate that this site goes by now.

        Raises:
            NotFoundError: nothing was answered.
        """
        own = self.live.current
        with self.store.transaction() as db:
            stored = self.plan(run_id)
            if stored.answer is None:
                raise NotFoundError(f"run {run_id}: this site has given no answer to its plan")
            if stored.answer.chain == own.chain:
                return stored.answer
            # The statement stays, and with it the hash in the log.
            answer = PlanAnswer.read(stored.answer).sign(own)
            self.book.replace_signature(db, run_id, stored.number, answer)
        return answer

    def disagreements(self, plan: Plan) -> tuple[str, ...]:
        """What this site's settings say otherwise than the plan, in words; empty if nothing.

        Raises:
            PolicyError: ``participant.toml`` cannot be read.
        """
        return disagreements(self.store.home, self.live.current.identity.name, plan)

    # --- inside -----------------------------------------------------------------------------------

    def _keep_fork(self, db: sqlite3.Connection, known: StoredPlan, offer: SignedStatement) -> None:
        """Evidence and log entry, once for each other offer. The run goes on under the first."""
        seen = {
            "run": known.run_id,
            "manifest_hash": known.offer.hash.hex(),
            "other_hash": offer.hash.hex(),
        }
        before = [
            dict(entry.body) for entry in self.log.entries() if entry.kind is EntryKind.FORK_SEEN
        ]
        kept = db.execute(
            "SELECT COUNT(*) FROM forks WHERE run_id = ? AND answer = -1", (known.run_id,)
        ).fetchone()[0]
        if seen in before or kept >= MAX_OTHER_OFFERS:
            return
        entry = self.log.append(db, EntryKind.FORK_SEEN, seen)
        db.execute(
            "INSERT INTO forks (seq, run_id, answer, held, other) VALUES (?, ?, -1, ?, ?)",
            (entry.seq, known.run_id, known.offer.to_bytes(), offer.to_bytes()),
        )

    def _decide(self, run_id: str, state: PlanState, by: By, reason: str) -> StoredPlan:
        own = self.live.current
        with self.store.transaction() as db:
            before = self.plan(run_id)
            if before.state is state or (by == "policy" and before.state is PlanState.REFUSED):
                return before
            if self._is_over(run_id):
                raise StateError(f"run {run_id} is over at this site; its plan has no more answers")
            if state is PlanState.APPROVED:
                require_allowed(self.policy.current, before.plan)
                require_fit(self.store.home, own.identity.name, before.plan)
            answer = PlanAnswer(
                federation=own.identity.federation,
                run=run_id,
                plan_hash=before.plan.hash.hex(),
                site=own.identity.name,
                answer="approve" if state is PlanState.APPROVED else "refuse",
                by=by,
                number=before.number + 1,
                answered_ms=self.store.now_ms(),
            )
            self.book.put_answer(
                db,
                run_id,
                state,
                by=by,
                reason=clip_reason(reason),
                number=answer.number,
                answer=answer.sign(own),
            )
            self.log.append(
                db,
                EntryKind.PLAN_APPROVED if state is PlanState.APPROVED else EntryKind.PLAN_REFUSED,
                {
                    "run": run_id,
                    "plan_hash": answer.plan_hash,
                    "answer_hash": answer.hash.hex(),
                    "number": answer.number,
                    "by": by,
                },
            )
        if state is PlanState.REFUSED:
            # After the commit: from there on the gate lets nothing more of the run out.
            MaskedBook(self.store).kill(run_id)
        return self.plan(run_id)

    def _is_over(self, run_id: str) -> bool:
        run = self.store.run(run_id)
        return run is not None and run.state != "joined"


_SAFE = "this site has not joined"


def clip_reason(reason: str) -> str:
    """At most MAX_REASON bytes of UTF-8, the limit of the wire."""
    return reason.encode()[:MAX_REASON].decode(errors="ignore")
