"""The third detector: what ``fedpalm audit verify`` finds of a site's account."""

from __future__ import annotations

from collections.abc import Iterable

from ..audit import findings as audit
from ..audit.findings import Exit
from .findings import Finding, certain

_TESTS = {
    Exit.EPSILON: ("claimed epsilon", "the figure that the charges add up to"),
    Exit.UNCHARGED: ("charges and releases", "every release charged, as its plan says"),
    Exit.OVER_BUDGET: ("budget", "within the budget"),
}


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
