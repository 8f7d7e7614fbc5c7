"""What an audit found: one line a test, and how often tests like these accuse an honest path."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Detector = Literal["canaries", "direct", "ledger"]


@dataclass(frozen=True)
class Finding:
    """Result of one test.

    ``p_value``: under an honest path a value this small has at most this probability; a test without
    chance in it gives 0 or 1. ``figure``: what was measured, in words; ``expected``: what is right.
    """

    detector: Detector
    test: str
    p_value: float
    figure: str
    expected: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def certain(detector: Detector, test: str, holds: bool, figure: str, expected: str) -> Finding:
    """A test without chance in it."""
    return Finding(detector, test, 1.0 if holds else 0.0, figure, expected)


def accused(findings: Iterable[Finding], false_alarm: float) -> list[Finding]:
    """What is refuted if all tests together may accuse an honest path with probability ``false_alarm``.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure"; it holds however the
    tests depend on each other.
    """
    ordered = sorted(findings, key=lambda one: one.p_value)
    for at, one in enumerate(ordered):
        if one.p_value > false_alarm / (len(ordered) - at):
            return ordered[:at]
    return ordered
