"""Looks at the registry as long as the coordinator serves, since operators change it from other processes.

A revocation is in force as soon as the gate has looked again, and that is within POLL_S.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from fedpalm.errors import KeyFileError, ResourceError
from fedpalm.pki.authority import ISSUING
from fedpalm.pki.bundle import TLS_CHAIN, read_certificates

from .config import Home
from .driver import RETRY_S
from .state import Coordinator

log = logging.getLogger(__name__)

POLL_S = 0.2
REMIND_S = 24 * 60 * 60.0
LEAF_WARNING = timedelta(days=14)
CA_WARNING = timedelta(days=30)


class RegistryWatch:
    """Carries what changed in the store to the open calls, the runs and the newcomers' port.

    Args:
        recheck: readmits every open call now.
        newcomers: opens or closes the enrolment listener.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        home: Home,
        recheck: Callable[[], Awaitable[None]],
        newcomers: Callable[[bool], Awaitable[None]],
    ) -> None:
        self._c, self._home = coordinator, home
        self._recheck, self._newcomers = recheck, newcomers
        self._seen: int | None = None
        self._again_at = math.inf
        self._remind_at = 0.0

    async def run(self) -> None:
        """Look again and again until cancelled."""
        while True:
            await asyncio.sleep(POLL_S)
            await self.look()

    async def look(self) -> None:
        """Carry out what the store says now."""
        changes, elapsed = self._c.store.outside_changes(), asyncio.get_running_loop().time()
        if changes != self._seen or elapsed >= self._again_at:
            self._seen, self._again_at = changes, math.inf
            if not self._carry_breaks():
                self._again_at = elapsed + RETRY_S
            await self._recheck()
        await self._newcomers(self._c.invitations.wanted(self._c.now_ms()))
        now = self._c.clock.now()
        if now >= self._remind_at:
            self._remind_at = now + REMIND_S
            for line in endings(self._home, now):
                log.warning("%s", line)

    def _carry_breaks(self) -> bool:
        """Expel each site that has broken with its past since the last time, or while nobody served.

        Counted in the store and not dated: a clock that is set back hides no revocation.

        Returns:
            Whether all of it could be stored; a site waits outside until it is.
        """
        registry, stored = self._c.registry, True
        revoked = registry.revoked_sites()
        for site, breaks in registry.new_breaks().items():
            why = "revoked by the operator" if site in revoked else "cut off or admitted anew"
            log.warning("site %s is %s: its calls are ended, it leaves its runs", site, why)
            try:
                self._c.expel(site, why)
                registry.breaks_carried(site, breaks)
            except ResourceError as error:
                log.error("site %s: %s; trying again in %g s", site, error.what, RETRY_S)
                stored = False
        return stored


def endings(home: Home, now: float) -> list[str]:
    """What of the coordinator's own certificates ends soon, in words, with what to do about it."""
    watched = (
        (home.tls / TLS_CHAIN, "the coordinator's certificate", LEAF_WARNING, "renew"),
        (home.operator / TLS_CHAIN, "the operator's certificate", LEAF_WARNING, "renew"),
        (home.authority / ISSUING, "the issuing CA", CA_WARNING, "ca rotate"),
    )
    lines = []
    for path, what, early, command in watched:
        if not path.exists():
            continue
        try:
            left = _left(path, now)
        except KeyFileError as error:
            lines.append(f"{what} cannot be read: {error.what}")
            continue
        if left < early:
            end = "has ended" if left <= timedelta(0) else f"ends in {left.days} days"
            lines.append(f"{what} {end}: fedpalm-coordinator {command}")
    return lines


def _left(path: Path, now: float) -> timedelta:
    """Raises KeyFileError: the file is damaged."""
    certificate = read_certificates(path)[0]
    return certificate.not_valid_after_utc - datetime.fromtimestamp(now, UTC)
