"""Plans as the site stores them: what was offered, what was decided, and whether the answer arrived."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from enum import StrEnum

from fedpalm.errors import IntegrityError, PlanNotApprovedError
from fedpalm.pki.statement import SignedStatement
from fedpalm.plan import Plan
from fedpalm.rounds.agreement import PlanOffer

from .store import SiteStore


class PlanState(StrEnum):
    PROPOSED = "proposed"
    APPROVED = "approved"
    REFUSED = "refused"


@dataclass(frozen=True)
class StoredPlan:
    """A plan that was offered for a run, and this site's newest answer to it.

    ``number`` counts the answers given; ``answer`` is the newest one, None before the first;
    ``answered`` says that the coordinator has it. ``decided_by`` is person, policy, or empty.
    """

    run_id: str
    plan: Plan
    offer: SignedStatement
    state: PlanState
    decided_by: str
    reason: str
    number: int
    answer: SignedStatement | None
    answered: bool
    offered_ms: int
    decided_ms: int

    @property
    def ever_approved(self) -> bool:
        """Answers alternate, so a refusal that is not the first answer took an approval back."""
        return self.state is PlanState.APPROVED or self.number > 1


class PlanBook:
    """Rows of the ``plans`` table; what changes takes the caller's transaction.

    Reading raises IntegrityError for a row whose plan is not the one that its offer names: such a row
    was altered.
    """

    def __init__(self, store: SiteStore) -> None:
        self._store = store

    def get(self, run_id: str) -> StoredPlan | None:
        row = self._store.row("SELECT * FROM plans WHERE run_id = ?", run_id)
        return _stored(row) if row else None

    def all(self) -> list[StoredPlan]:
        """Oldest offer first."""
        rows = self._store.rows("SELECT * FROM plans ORDER BY offered_ms, rowid")
        return [_stored(row) for row in rows]

    def approved(self, run_id: str) -> Plan:
        """The plan of a run, if this site approves it now: what stands before training and sending.

        Raises:
            PlanNotApprovedError: no plan was offered, nobody has decided, or the answer is no.
        """
        stored = self.get(run_id)
        if stored is None:
            raise PlanNotApprovedError(
                f"no plan of run {run_id[:63]} has been offered to this site", safe=_SAFE
            )
        if stored.state is PlanState.APPROVED:
            return stored.plan
        if stored.state is PlanState.PROPOSED:
            raise PlanNotApprovedError(
                f"run {run_id}: nobody at this site has decided on plan "
                f"{stored.plan.hash.hex()[:12]}",
                safe=_SAFE,
                next_step=f"fedpalm-participant review {run_id}, then approve {run_id} or "
                f"refuse {run_id}",
            )
        by = "its policy" if stored.decided_by == "policy" else "a person"
        raise PlanNotApprovedError(
            f"run {run_id}: this site has refused plan {stored.plan.hash.hex()[:12]} ({by})",
            safe=_SAFE,
            next_step=f"if that is to change: fedpalm-participant approve {run_id}",
        )

    def unanswered(self) -> list[StoredPlan]:
        """Plans whose newest answer has not reached the coordinator, oldest offer first."""
        rows = self._store.rows(
            "SELECT * FROM plans WHERE answered = 0 AND answer IS NOT NULL "
            "ORDER BY offered_ms, rowid"
        )
        return [_stored(row) for row in rows]

    def counts(self, since_ms: int) -> tuple[int, int]:
        """How many plans nobody has decided about, and how many were offered since then."""
        row = self._store.row(
            "SELECT COUNT(*) FILTER (WHERE state = 'proposed') AS undecided, "
            "COUNT(*) FILTER (WHERE offered_ms >= ?) AS new FROM plans",
            since_ms,
        )
        return (int(row["undecided"]), int(row["new"])) if row else (0, 0)

    def is_agreed(self, run_id: str) -> bool:
        """Whether the plan is approved and the coordinator has heard so; costs no reading of the plan."""
        row = self._store.row("SELECT state, answered FROM plans WHERE run_id = ?", run_id)
        return row is not None and (row["state"], row["answered"]) == (PlanState.APPROVED.value, 1)

    def last_approved(self, besides: str) -> StoredPlan | None:
        """The plan that this site approved last, though it may have taken the approval back.

        Args:
            besides: the run that is not meant.
        """
        approved = [one for one in self.all() if one.ever_approved and one.run_id != besides]
        return max(approved, key=lambda one: one.decided_ms, default=None)

    # --- what changes -----------------------------------------------------------------------------

    def add(self, db: sqlite3.Connection, run_id: str, plan: Plan, offer: SignedStatement) -> None:
        """Store a plan whose offer was verified, as proposed."""
        db.execute(
            "INSERT INTO plans (run_id, plan, offer, state, offered_ms) "
            "VALUES (?, ?, ?, 'proposed', ?)",
            (run_id, plan.to_bytes(), offer.to_bytes(), self._store.now_ms()),
        )

    def put_answer(
        self,
        db: sqlite3.Connection,
        run_id: str,
        state: PlanState,
        *,
        by: str,
        reason: str,
        number: int,
        answer: SignedStatement,
    ) -> None:
        """Replace the answer; the new one is still to be sent."""
        db.execute(
            "UPDATE plans SET state = ?, decided_by = ?, reason = ?, number = ?, answer = ?, "
            "answered = 0, decided_ms = ? WHERE run_id = ?",
            (state.value, by, reason, number, answer.to_bytes(), self._store.now_ms(), run_id),
        )

    def replace_signature(
        self, db: sqlite3.Connection, run_id: str, number: int, answer: SignedStatement
    ) -> None:
        """Keep the same answer with another certificate."""
        db.execute(
            "UPDATE plans SET answer = ? WHERE run_id = ? AND number = ?",
            (answer.to_bytes(), run_id, number),
        )

    def set_answered(self, run_id: str, number: int, answered: bool = True) -> None:
        """Whether the coordinator has the answer of this number; says nothing of a newer one."""
        with self._store.transaction() as db:
            db.execute(
                "UPDATE plans SET answered = ? WHERE run_id = ? AND number = ?",
                (answered, run_id, number),
            )


_SAFE = "nothing is trained or sent for it"


def _stored(row: sqlite3.Row) -> StoredPlan:
    plan, offer = Plan.from_bytes(row["plan"]), SignedStatement.from_bytes(row["offer"])
    offered = PlanOffer.read(offer)
    if plan.to_bytes() != row["plan"] or (offered.run, offered.plan_hash) != (
        row["run_id"],
        plan.hash.hex(),
    ):
        raise IntegrityError(
            f"run {row['run_id']}: the stored plan is not the one that was offered",
            safe="nothing is trained or sent for it",
            next_step="restore the site's home from a backup",
        )
    return StoredPlan(
        run_id=row["run_id"],
        plan=plan,
        offer=offer,
        state=PlanState(row["state"]),
        decided_by=row["decided_by"],
        reason=row["reason"],
        number=row["number"],
        answer=SignedStatement.from_bytes(row["answer"]) if row["answer"] else None,
        answered=bool(row["answered"]),
        offered_ms=row["offered_ms"],
        decided_ms=row["decided_ms"],
    )
