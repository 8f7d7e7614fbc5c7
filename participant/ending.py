"""When an agent's work is over, and how it says so."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class ExitAfter(StrEnum):
    """When the agent ends by itself."""

    NEVER = "never"
    RUN = "run"
    EXCHANGE = "exchange"


@dataclass(frozen=True)
class Outcome:
    """How the agent ended; ``completed`` is None if it was told to stop."""

    run_id: str = ""
    completed: bool | None = None
    reason: str = ""


class Ended(Exception):
    """What the agent was to wait for has happened."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome
