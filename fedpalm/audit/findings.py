"""What an audit can find, and the exit code of each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of ``fedpalm audit verify``; stable, and apart from the codes of errors."""

    OK = 0
    TAMPERED = 20
    """Bytes are not what was signed, or not signed by whom they name."""
    FORKED = 21
    """The log is shorter than, or another one than, a signed checkpoint of it says."""
    UNCHARGED = 22
    """Something left the site without the charge, manifest, consent or shape that it needs."""
    OVER_BUDGET = 23
    """More was spent than the site's budget allowed when it was charged."""
    EPSILON = 24
    """A figure in the log is not what the mechanisms in the log add up to."""
    UNWITNESSED = 25
    """Too few others have signed a checkpoint that covers what left."""
    MALFORMED = 26
    """Not a whole bundle of this format."""


SEVERITY = (
    Exit.MALFORMED,
    Exit.TAMPERED,
    Exit.FORKED,
    Exit.UNCHARGED,
    Exit.OVER_BUDGET,
    Exit.EPSILON,
    Exit.UNWITNESSED,
)
"""Of several findings the first of these is the exit code: what it says takes the ground from the later."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong; ``where`` is a place in the bundle, ``what`` a sentence about it."""

    exit: Exit
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"

    def to_json(self) -> dict[str, str | int]:
        return {
            "finding": self.exit.name.lower(),
            "exit_code": int(self.exit),
            "where": self.where,
            "what": self.what,
        }


class AuditStopped(Exception):
    """A finding after which nothing further in the bundle can be believed."""

    def __init__(self, exit_code: Exit, where: str, what: str) -> None:
        self.finding = Finding(exit_code, where, what)
        super().__init__(str(self.finding))


def exit_of(findings: Iterable[Finding]) -> Exit:
    """The exit code of an audit with these findings."""
    found = {finding.exit for finding in findings}
    return next((code for code in SEVERITY if code in found), Exit.OK)
