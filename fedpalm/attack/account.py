"""The third detector: a site's log recomputed, as ``fedpalm audit verify`` does it."""

from __future__ import annotations

from collections.abc import Iterable

from ..audit import findings as audit
from ..audit.charges import read_account
from ..audit.findings import Exit
from ..audit.log import Log
from ..audit.plans import Plans
from ..ledger.bodies import EntryKind
from .findings import Finding, certain

_TESTS = {
    Exit.EPSILON: ("claimed epsilon", "the figure that the charges add up to"),
    Exit.UNCHARGED: ("charges and releases", "every release charged, as its plan says"),
    Exit.OVER_BUDGET: ("budget", "within the budget"),
}


def of_log(log: Log, plans: Plans) -> list[Finding]:
    """Findings about an account and what it pays for, from the log alone."""
    account = read_account(log, plans)
    return of_findings([*account.findings, *_unpaid(log, plans, set(account.paid))])


def of_findings(found: Iterable[audit.Finding]) -> list[Finding]:
    """The findings of ``fedpalm audit verify`` that are about the account; others are its own business."""
    by_exit: dict[Exit, list[str]] = {code: [] for code in _TESTS}
    for one in found:
        if one.exit in by_exit:
            by_exit[one.exit].append(str(one))
    return [
        certain(
            "ledger", name, not by_exit[code], "; ".join(by_exit[code][:1]) or "holds", expected
        )
        for code, (name, expected) in _TESTS.items()
    ]


def _unpaid(log: Log, plans: Plans, paid: set[tuple[str, int]]) -> list[audit.Finding]:
    """Updates of rounds, and experts of runs, for which no sound reservation was committed."""
    private = {run for run, known in plans.items() if known.plan.draft.privacy.unit != "none"}
    paid_runs = {run for run, _ in paid}
    unpaid = []
    for entry in [*log.sent.values(), *log.of(EntryKind.EXPERT_RELEASED)]:
        run = str(entry.body["run"])
        in_round = "round" in entry.body
        if run in private and (
            (run, int(entry.body["round"])) not in paid if in_round else run not in paid_runs
        ):
            what = "an update" if in_round else "an expert"
            unpaid.append(
                audit.Finding(
                    Exit.UNCHARGED, f"log, entry {entry.seq}", f"{what} left that nothing paid for"
                )
            )
    return unpaid
