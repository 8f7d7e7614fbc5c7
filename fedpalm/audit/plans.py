"""The plans of a bundle, and which of them the site had approved when."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..errors import FedPalmError
from ..ledger.bodies import EntryKind
from ..plan import Plan
from ..rounds.agreement import PlanAnswer, PlanOffer
from .bundle import PlanRecord
from .findings import AuditStopped, Exit
from .log import Log
from .trust import Signers


@dataclass
class KnownPlan:
    """A plan that its coordinator offered; ``answers`` are (seq, approved) in the order of the log."""

    run: str
    plan: Plan
    answers: list[tuple[int, bool]] = field(default_factory=list)

    @property
    def approved(self) -> bool:
        """Whether the site ever approved it."""
        return any(yes for _, yes in self.answers)

    def approved_at(self, seq: int) -> bool:
        """Whether the newest answer before entry ``seq`` is an approval."""
        at = bisect_right(self.answers, (seq, False))
        return at > 0 and self.answers[at - 1][1]


Plans = dict[str, KnownPlan]


def read_plans(records: Sequence[PlanRecord], site: str, signers: Signers) -> Plans:
    """Plans by run, each the one that the coordinator's signed offer names.

    Raises:
        AuditStopped: a plan that cannot be read, is there twice, or is not the one that was offered.
    """
    plans: Plans = {}
    for record in records:
        where = f"plan of run {record.run[:63]}"
        try:
            plan = Plan.from_bytes(record.plan)
        except FedPalmError as error:
            raise AuditStopped(Exit.MALFORMED, where, error.what) from None
        offer = signers.open(PlanOffer, record.offer, f"{where}, offer")
        if record.run in plans or plan.to_bytes() != record.plan:
            raise AuditStopped(Exit.MALFORMED, where, "it is there twice, or not in canonical form")
        if (offer.run, offer.plan_hash) != (record.run, plan.hash.hex()):
            raise AuditStopped(Exit.TAMPERED, where, "it is not the plan that was offered")
        if record.answer is not None:
            said = signers.open(PlanAnswer, record.answer, f"{where}, answer")
            if (said.run, said.plan_hash, said.site) != (offer.run, offer.plan_hash, site):
                raise AuditStopped(Exit.TAMPERED, where, "the answer is about something else")
        plans[record.run] = KnownPlan(record.run, plan)
    return plans


def note_answers(plans: Plans, log: Log) -> None:
    """Hold the log's answers against the plans.

    Raises:
        AuditStopped: a plan was approved that the bundle lacks, or another one under its name.
    """
    for entry in log.of(EntryKind.PLAN_APPROVED, EntryKind.PLAN_REFUSED):
        approved = entry.kind is EntryKind.PLAN_APPROVED
        known = plans.get(str(entry.body["run"]))
        where = f"log, entry {entry.seq}"
        if known is None:
            if not approved:
                continue
            raise AuditStopped(
                Exit.MALFORMED, where, f"the approved plan of run {entry.body['run']} is missing"
            )
        if entry.body["plan_hash"] != known.plan.hash.hex():
            raise AuditStopped(Exit.TAMPERED, where, "it answers another plan than the bundle's")
        known.answers.append((entry.seq, approved))
