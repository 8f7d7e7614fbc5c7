"""One audit: all detectors on one path, and the verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from ..plan import BackboneName, MethodName
from .canaries import CanaryAudit
from .direct import direct
from .findings import Finding, accused
from .membership import NOT_PRIVATE, MembershipTrial
from .probe import TrainingPath
from .sites import site_findings

FALSE_ALARM = 0.02
"""How often an audit may accuse an honest path, all its tests together."""
REFUTED_EXIT = 27
"""Exit code of an audit that refutes a claim; beside those of ``fedpalm audit verify``."""
_NOT_PRIVATE: tuple[MethodName, ...] = ("rehearsal", "fedbn", "fedmh")
"""The first trains nothing, the others no plan with differential privacy may name."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Report:
    """Findings, those among them that refute a claim, and the figures beside them."""

    findings: tuple[Finding, ...]
    refuted: tuple[Finding, ...]
    false_alarm: float
    canaries: dict[str, Any]
    membership: tuple[dict[str, Any], ...]

    @property
    def passed(self) -> bool:
        return not self.refuted

    def to_json(self) -> dict[str, Any]:
        return {
            "result": "passed" if self.passed else "refuted",
            "exit_code": 0 if self.passed else REFUTED_EXIT,
            "false_alarm": self.false_alarm,
            "findings": [
                {**one.to_json(), "refuted": one in self.refuted} for one in self.findings
            ],
            "canaries": self.canaries,
            "membership": list(self.membership),
            "ledger_checked": any(one.detector == "ledger" for one in self.findings),
        }


@dataclass(frozen=True)
class Extent:
    """How much an audit looks at."""

    canaries: CanaryAudit
    sites: tuple[tuple[MethodName, BackboneName], ...]
    membership: tuple[MembershipTrial, ...]


def standard() -> Extent:
    """Under two minutes on two cores."""
    return Extent(CanaryAudit(), (("fedpalm", "compnet"),), (MembershipTrial(),))


def thorough() -> Extent:
    """More canaries, every method, both backbones, and membership without privacy to compare with."""
    methods = [name for name in get_args(MethodName) if name not in _NOT_PRIVATE]
    return Extent(
        CanaryAudit(canaries=20_000, each=400),
        (*((name, "compnet") for name in methods), ("fedavg", "ccnet")),
        (MembershipTrial(), MembershipTrial(privacy=NOT_PRIVATE, rounds=4)),
    )


def audit(
    path: TrainingPath,
    extent: Extent,
    seed: int,
    *,
    ledger: Sequence[Finding] = (),
    false_alarm: float = FALSE_ALARM,
    say: Say = lambda text: None,
) -> Report:
    """Run the detectors.

    Args:
        seed: of the auditor's coins and people; the path's own randomness is its own.
        ledger: what recomputing a log found (:mod:`.account`).
        false_alarm: half of it goes to the canaries, half to the direct tests.
    """
    say("noise, draws and influence")
    findings = direct(path)
    for method, backbone in extent.sites:
        say(f"a site's round: {method}, {backbone}")
        findings += site_findings(path, method, backbone)
    say(f"{extent.canaries.canaries} canaries")
    canary, figures = extent.canaries.run(path, seed)
    members = []
    for trial in extent.membership:
        say("membership inference")
        members.append(trial.run(seed))
    refuted = [
        *accused([canary], false_alarm / 2),
        *accused(findings, false_alarm / 2),
        *(one for one in ledger if one.p_value == 0.0),
    ]
    return Report(
        (canary, *findings, *ledger), tuple(refuted), false_alarm, figures, tuple(members)
    )
