"""A site's privacy budget: what every training with differential privacy costs, charged before it begins.

The account is the log itself: every ``budget_reserved`` and ``budget_inherited`` entry counts, for ever,
over all runs, restarts and keys, and nothing takes one back. The table ``reservations`` only says how far
each came: reserved, begun (marked durably before the first batch is drawn), then committed with the
update's row, or aborted. What was begun by a training that was cut off stays so, and its round is charged
again. There is one account for each unit: neither covers what the other released.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from fedpalm.errors import BudgetError, StateError
from fedpalm.ledger.bodies import Body, EntryKind
from fedpalm.ledger.chain import Head
from fedpalm.ledger.entries import Entry
from fedpalm.plan import Plan
from fedpalm.privacy.accounting import (
    UNITS,
    Charge,
    accountant_name,
    charged_epsilon,
    coalesce,
    mechanism,
    paying_runs,
)

from .ledger_mark import read_mark, restored, write_mark
from .log import SiteLog
from .plan_book import PlanBook
from .policy import PolicyFile, require_allowed
from .release import refused
from .store import SiteStore

RESERVED, BEGUN, COMMITTED, ABORTED = "reserved", "begun", "committed", "aborted"
CHARGES = (EntryKind.BUDGET_RESERVED, EntryKind.BUDGET_INHERITED)


@dataclass(frozen=True)
class Account:
    """What a site has spent of its budget, for one unit."""

    unit: str
    charges: tuple[Charge, ...]
    delta: float
    epsilon: float
    budget: float

    @property
    def left(self) -> float:
        return max(0.0, self.budget - self.epsilon)


MECHANISM_FIELDS = (
    *("mechanism", "unit", "relation", "sampler"),
    *("noise_multiplier", "clip_norm", "sampling_rate"),
)
"""Entries that agree in these are one mechanism, whose steps add up."""


class BudgetBook:
    """The account of a home. One object in the agent: it knows which training goes on in this process.

    Args:
        policy: the budget (``max_epsilon``) and ``delta``, as they are whenever something is charged.
    """

    def __init__(self, store: SiteStore, log: SiteLog, policy: PolicyFile) -> None:
        self._store, self._log, self._policy = store, log, policy
        self._live: set[int] = set()

    # --- reading ----------------------------------------------------------------------------------

    def entries(self, *kinds: EntryKind) -> Iterator[Entry]:
        """The entries of some kinds, in order, from the log itself."""
        for kind in kinds:
            # In canonical JSON no value of a body can hold this: a quotation mark in it is escaped.
            for row in self._store.rows(
                "SELECT entry FROM log WHERE instr(CAST(entry AS TEXT), ?) ORDER BY seq",
                f'"kind":"{kind.value}"',
            ):
                yield Entry.from_bytes(row["entry"])

    def charges(self, unit: str) -> tuple[Charge, ...]:
        """Everything that was ever charged for a unit."""
        found = (one.body for one in self.entries(*CHARGES))
        return coalesce(Charge.in_body(body) for body in found if body["unit"] == unit)

    def account(self, unit: str) -> Account:
        """Raises PolicyError: there is no policy, or it names no delta."""
        charges, (delta, budget) = self.charges(unit), self._limits()
        return Account(unit, charges, delta, charged_epsilon(charges, delta), budget)

    def forecast(self, plan: Plan, rounds: int) -> float:
        """Epsilon after so many further rounds of a plan; what is reserved already is in the account."""
        privacy = plan.draft.privacy
        more = [Charge.of(privacy, rounds)] if rounds else []
        return charged_epsilon([*self.charges(privacy.unit), *more], self._limits()[0])

    def rounds_that_fit(self, plan: Plan, most: int) -> int:
        """How many further rounds of a plan the budget allows, looking no further than ``most``."""
        budget, low, high = self._limits()[1], 0, most
        if self.forecast(plan, most) <= budget:
            return most
        while low < high:
            middle = (low + high + 1) // 2
            if self.forecast(plan, middle) <= budget:
                low = middle
            else:
                high = middle - 1
        return low

    def rounds_to_charge(self, run_id: str, plan: Plan) -> int:
        """Rounds of a run that are not paid for yet."""
        row = self._store.row(
            "SELECT COUNT(DISTINCT round) AS paid FROM reservations WHERE run_id = ? "
            "AND state IN ('reserved', 'committed')",
            run_id,
        )
        return max(0, plan.draft.rounds - (int(row["paid"]) if row else 0))

    def rounds_without(self) -> int:
        """Rounds that this home trained without differential privacy: no account bounds them."""
        rows = self._store.rows(
            "SELECT r.plan, COUNT(*) AS rounds FROM updates u JOIN runs r USING (run_id) GROUP BY run_id"
        )
        plans = ((Plan.from_bytes(row["plan"]), int(row["rounds"])) for row in rows)
        return sum(
            rounds
            for plan, rounds in plans
            if plan.draft.privacy.unit == "none" and plan.draft.method != "rehearsal"
        )

    # --- a round ----------------------------------------------------------------------------------

    def reserve(self, run_id: str, plan: Plan, round_number: int) -> int:
        """Charge a round of a plan, unless it is paid for and unused; the seq of the log entry.

        May take seconds: two accountants are asked. A round that is trained already costs nothing more,
        and neither does one whose training goes on in this process.

        Args:
            round_number: of the run; the log counts on over the runs that it continues.
        Raises:
            BudgetError: the budget does not allow the round, or the log lacks what was spent.
            AccountingError: nobody can say what it costs.
            PlanNotApprovedError: this site has not approved the plan, or no longer does.
            PolicyError: the policy forbids the plan, or cannot be read.
        """
        known = self._newest(run_id, round_number)
        if known is not None:
            seq, state = known["seq"], known["state"]
            if state in (RESERVED, COMMITTED) or (state == BEGUN and seq in self._live):
                return int(seq)
        return self._charge(run_id, plan, round_number)

    def begin(self, run_id: str, plan: Plan, round_number: int) -> int:
        """Before the first batch is drawn: mark the round's reservation as used, for good.

        What a training that was cut off has begun is charged anew.

        Raises:
            StateError: the round is trained already.
            Others: as :meth:`reserve`.
        """
        known = self._newest(run_id, round_number)
        if known is not None and known["state"] == COMMITTED:
            raise StateError(
                f"round {round_number} of {run_id} is trained already", safe="nothing was charged"
            )
        if known is not None and known["state"] == RESERVED:
            seq = int(known["seq"])
            self._require_agreed(run_id, plan)
            spent = self.account(plan.draft.privacy.unit)
            self._require_delta_of(spent.unit, spent.delta)
            self._require_within(plan, spent, 0, round_number)
        else:
            seq = self._charge(run_id, plan, round_number)
        with self._store.transaction() as db:
            self.require_whole()
            changed = db.execute(
                "UPDATE reservations SET state = 'begun' WHERE seq = ? AND state = 'reserved'",
                (seq,),
            )
            if changed.rowcount != 1:
                raise StateError(f"reservation {seq} was used by another process")
        self.mark()
        self._live.add(seq)
        return seq

    def committed(
        self, run_id: str, round_number: int, db: sqlite3.Connection, update_hash: bytes
    ) -> None:
        """The update that the round's reservation paid for; in the transaction of its row.

        Raises:
            StateError: nothing was begun for this round.
        """
        known = self._newest(run_id, round_number)
        if known is None or known["state"] != BEGUN or known["seq"] not in self._live:
            raise StateError(
                f"round {round_number} of {run_id}: no charge was begun for this update",
                safe="the update was not stored",
            )
        paid = self._entry(known["seq"]).body
        where = {"run": run_id, "round": paid["round"], "reservation": known["seq"]}
        self._log.append(
            db, EntryKind.BUDGET_COMMITTED, {**where, "update_hash": update_hash.hex()}
        )
        db.execute(
            "UPDATE reservations SET state = 'committed', update_hash = ? WHERE seq = ?",
            (update_hash, known["seq"]),
        )

    def aborted(self, run_id: str, round_number: int) -> None:
        """The training ended without an update; what it was charged stays charged."""
        with self._store.transaction() as db:
            known = self._newest(run_id, round_number)
            if known is None or known["state"] != BEGUN:
                return
            paid = self._entry(known["seq"]).body
            where = {"run": run_id, "round": paid["round"], "reservation": known["seq"]}
            self._log.append(db, EntryKind.BUDGET_ABORTED, where)
            db.execute("UPDATE reservations SET state = 'aborted' WHERE seq = ?", (known["seq"],))
            self._live.discard(known["seq"])

    def require_committed(self, plan: Plan, run_id: str, round_number: int, update: bytes) -> None:
        """Before an update leaves: the log has charged exactly this one, under exactly this plan.

        Raises:
            EgressRefusedError: it has not.
        """
        if plan.draft.privacy.unit == "none":
            return
        number = plan.rounds_before + round_number
        for entry in self.entries(EntryKind.BUDGET_COMMITTED):
            said = entry.body
            if (said["run"], said["round"], said["update_hash"]) == (run_id, number, update.hex()):
                paid = self._entry(int(said["reservation"]))
                expected = {"run": run_id, "round": number, "plan_hash": plan.hash.hex()}
                if paid.kind is EntryKind.BUDGET_RESERVED and (
                    {**expected, **mechanism(plan)}.items() <= dict(paid.body).items()
                ):
                    return
        raise refused(f"no charge in the log pays for the update of {run_id}, round {round_number}")

    def require_trained(self, plan: Plan, run_id: str) -> None:
        """Before an expert leaves: the log has charged a training of its run, or of the one before it.

        Each round's own charge was looked at when its update left.

        Raises:
            EgressRefusedError: it has not.
        """
        if plan.draft.privacy.unit == "none":
            return
        runs = paying_runs(plan, run_id)
        if not any(one.body["run"] in runs for one in self.entries(EntryKind.BUDGET_COMMITTED)):
            raise refused(f"no charge in the log pays for an expert of {run_id}")

    # --- charges of another key -------------------------------------------------------------------

    def inherit(self, key_id: bytes, root: bytes, size: int, bodies: Iterable[Body]) -> list[Entry]:
        """Take over charges of the log that this site kept under another signing key.

        Allowed beyond the budget: what was spent is spent.

        Args:
            root: of the Merkle tree over the ``size`` entries of that log.
            bodies: those of its entries that charge, and are not taken over yet.
        Raises:
            ProtocolError: one of them is for a mechanism that is not known here.
            BudgetError: this log has charges at another delta, or lacks what was spent.
        """
        steps: dict[tuple[str | int, ...], int] = {}
        for body in bodies:
            kind = tuple(body[name] for name in MECHANISM_FIELDS)
            steps[kind] = steps.get(kind, 0) + Charge.in_body(body).steps
        origin: Body = {"key_id": key_id.hex(), "root": root.hex(), "size": size}
        delta, budget = self._limits()
        while True:
            before = {unit: self.charges(unit) for unit in UNITS}
            said: list[Body] = []
            for kind, count in steps.items():
                fields: Body = {**dict(zip(MECHANISM_FIELDS, kind, strict=True)), "steps": count}
                self._require_delta_of(str(fields["unit"]), delta)
                more = [Charge.in_body(one) for one in said if one["unit"] == fields["unit"]]
                charges = [*before[str(fields["unit"])], *more, Charge.in_body(fields)]
                figures = _figures(charged_epsilon(charges, delta), delta, budget)
                said.append({**origin, **fields, **figures})
            with self._store.transaction() as db:
                self.require_whole()
                if before == {unit: self.charges(unit) for unit in UNITS}:
                    added = [self._log.append(db, EntryKind.BUDGET_INHERITED, one) for one in said]
                    break
        self.mark()
        return added

    # --- inside -----------------------------------------------------------------------------------

    def _charge(self, run_id: str, plan: Plan, round_number: int) -> int:
        self._require_agreed(run_id, plan)
        unit = plan.draft.privacy.unit
        while True:
            spent = self.account(unit)
            self._require_delta_of(unit, spent.delta)
            epsilon = self._require_within(plan, spent, 1, round_number)
            body: Body = {
                "run": run_id,
                "round": plan.rounds_before + round_number,
                "plan_hash": plan.hash.hex(),
                **mechanism(plan),
                **_figures(epsilon, spent.delta, spent.budget),
            }
            with self._store.transaction() as db:
                self.require_whole()
                # Accounting takes seconds; another process may have charged something meanwhile.
                if self.charges(unit) == spent.charges:
                    entry = self._log.append(db, EntryKind.BUDGET_RESERVED, body)
                    db.execute(
                        "INSERT INTO reservations (seq, run_id, round, state) "
                        "VALUES (?, ?, ?, 'reserved')",
                        (entry.seq, run_id, round_number),
                    )
                    break
        self.mark()
        return entry.seq

    def _require_agreed(self, run_id: str, plan: Plan) -> None:
        """Raises PlanNotApprovedError, PolicyError: this site does not train under this plan now."""
        if PlanBook(self._store).approved(run_id).hash != plan.hash:
            raise StateError(f"the plan of {run_id} is not the one that this site approved")
        require_allowed(self._policy.current, plan)

    def _require_delta_of(self, unit: str, delta: float) -> None:
        """Raises BudgetError: earlier charges were for another delta, so they have no sum with new ones."""
        for one in self.entries(*CHARGES):
            before = float(one.body["delta"])
            if one.body["unit"] == unit and before != delta:
                raise BudgetError(
                    f"policy.toml says delta {delta:g}, and what this site has spent was charged at "
                    f"{before:g}: an account has one delta, or its epsilon means nothing",
                    safe="nothing was drawn, trained or charged",
                    next_step=f"set delta = {before:g} in policy.toml again",
                )

    def _require_within(self, plan: Plan, spent: Account, rounds: int, round_number: int) -> float:
        more = [Charge.of(plan.draft.privacy, rounds)] if rounds else []
        epsilon = charged_epsilon([*spent.charges, *more], spent.delta)
        if epsilon > spent.budget:
            raise BudgetError(
                f"round {round_number} would bring epsilon to {epsilon:.3f} (by {spent.unit}, at delta "
                f"{spent.delta:g}); this site's budget is {spent.budget:g}, {spent.epsilon:.3f} of it is "
                f"spent and {spent.left:.3f} left: no further round of this plan fits",
                safe="nothing was drawn, trained or charged for it",
                next_step="ask the operator for a plan with a larger noise_multiplier, a smaller "
                "sampling_rate or fewer steps (fedpalm-participant budget tells what one round costs), or "
                "have whoever owns policy.toml raise max_epsilon there",
            )
        return epsilon

    def _limits(self) -> tuple[float, float]:
        policy = self._policy.current
        if policy.delta is None:
            raise BudgetError(
                "policy.toml names no delta, so there is no epsilon",
                safe="nothing is trained with differential privacy",
                next_step="set people to the number of people (a declared, public one), and delta below "
                "1 / people",
            )
        return policy.delta, policy.max_epsilon

    def _newest(self, run_id: str, round_number: int) -> sqlite3.Row | None:
        return self._store.row(
            "SELECT * FROM reservations WHERE run_id = ? AND round = ? ORDER BY seq DESC LIMIT 1",
            *(run_id, round_number),
        )

    def _entry(self, seq: int) -> Entry:
        row = self._store.row("SELECT entry FROM log WHERE seq = ?", seq)
        if row is None:
            raise restored(f"entry {seq} is missing from the log")
        return Entry.from_bytes(row["entry"])

    def _head(self) -> Head:
        row = self._store.row("SELECT entry FROM log ORDER BY seq DESC LIMIT 1")
        return Head.after(Entry.from_bytes(row["entry"])) if row else Head(0, b"")

    def require_whole(self) -> None:
        """Raises BudgetError: the log lacks entries that the mark outside the database has seen."""
        marked = read_mark(self._store.home.masking, self._store.masking_mark())
        if marked.size == 0:
            return
        row = self._store.row("SELECT entry FROM log WHERE seq = ?", marked.size - 1)
        if row is None or Entry.from_bytes(row["entry"]).hash != marked.hash:
            raise restored(
                f"the log does not hold the {marked.size} entries that it had when it was last charged"
            )

    def mark(self) -> None:
        """Note outside the database how far the log has come; before anything is drawn or sent."""
        with self._store.transaction():
            self.require_whole()
            write_mark(self._store.home.masking, self._store.masking_mark(), self._head())
            self._store.on_step("ledger mark written")


def _figures(epsilon: float, delta: float, budget: float) -> dict[str, str]:
    return {
        "delta": repr(delta),
        "epsilon": repr(epsilon),
        "budget": repr(float(budget)),
        "accountant": accountant_name(),
    }
