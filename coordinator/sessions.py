"""Who listens right now, and what waits to be told: one queue per connected site."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from fedpalm.errors import UnavailableError
from fedpalm.wire.v1 import federation_pb2 as pb

from .instructions import heartbeat

QUEUE_LIMIT = 1024
"""A site that takes nothing while so many instructions wait is cut off; it is told again later."""


class Session:
    """One Instructions stream."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[pb.Instruction | None] = asyncio.Queue()

    def put(self, instruction: pb.Instruction) -> None:
        if self._queue.qsize() < QUEUE_LIMIT:
            self._queue.put_nowait(instruction)
        else:
            self.end()

    def end(self) -> None:
        """Let the stream end after what is queued."""
        self._queue.put_nowait(None)

    async def stream(self, heartbeat_s: float) -> AsyncGenerator[pb.Instruction, None]:
        """Instructions as they come, a heartbeat whenever there is none for ``heartbeat_s``."""
        while True:
            try:
                async with asyncio.timeout(heartbeat_s):
                    instruction = await self._queue.get()
            except TimeoutError:
                instruction = heartbeat()
            if instruction is None:
                return
            yield instruction


class Sessions:
    """All connected sites. A second stream of a site takes the place of the first."""

    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}
        self.closing = False

    def open(self, site: str) -> Session:
        """Raises UnavailableError while the coordinator stops."""
        if self.closing:
            raise UnavailableError("the coordinator is stopping", next_step="try again later")
        if site in self._sessions:
            self._sessions[site].end()
        session = self._sessions[site] = Session()
        return session

    def close(self, site: str, session: Session) -> bool:
        """The stream ended; True if no other has taken its place: the site is gone."""
        if self._sessions.get(site) is not session:
            return False
        del self._sessions[site]
        return True

    def tell(self, site: str, instruction: pb.Instruction) -> None:
        if site in self._sessions:
            self._sessions[site].put(instruction)

    def connected(self) -> frozenset[str]:
        return frozenset(self._sessions)

    def end_all(self) -> None:
        """The coordinator stops."""
        self.closing = True
        for session in self._sessions.values():
            session.end()
