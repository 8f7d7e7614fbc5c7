"""Time as an input: processes read it here, protocol cores are handed it."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Seconds since the Unix epoch, as float."""

    def now(self) -> float: ...


class SystemClock:
    """The machine's own clock."""

    def now(self) -> float:
        return time.time()


class FakeClock:
    """A clock that moves when told to; simulations and tests run on it."""

    def __init__(self, start: float = 1_700_000_000.0) -> None:
        self._now = start

    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Move forward by ``seconds`` >= 0."""
        if seconds < 0:
            raise ValueError("time does not run backwards")
        self._now += seconds
