"""Log lines about floods that do not become one."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

_EVERY_S = 10.0


class OccasionalLog:
    """At most one warning in ten seconds; each says how many were left out since the last.

    Args:
        monotonic: seconds of a clock that never goes back.
    """

    def __init__(
        self, log: logging.Logger, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._log, self._monotonic = log, monotonic
        self._last: float | None = None
        self._left_out = 0

    def warning(self, text: str) -> None:
        now = self._monotonic()
        if self._last is not None and now - self._last < _EVERY_S:
            self._left_out += 1
            return
        self._log.warning("%s (%d such refusals since the last line)", text, self._left_out)
        self._last, self._left_out = now, 0
