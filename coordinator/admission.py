"""How many transfers run at once, and what happens when a site begins the same one twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fedpalm.errors import DeadlineError, ResourceError, UnavailableError

T = TypeVar("T")
SLOWEST_BYTES_PER_S = 16 * 1024
STALL_S = 60.0


class Transfers:
    """At most ``limit`` models and updates in flight; the others wait in order of arrival."""

    def __init__(self, limit: int) -> None:
        self._limit, self._slots = limit, asyncio.Semaphore(limit)

    @asynccontextmanager
    async def slot(self, patience_s: float, size: int) -> AsyncIterator[None]:
        """Hold a place for the transfer of ``size`` bytes.

        Raises:
            ResourceError: no place is free within ``patience_s``.
            DeadlineError: the transfer is slower than SLOWEST_BYTES_PER_S; others wait for its place.
        """
        try:
            async with asyncio.timeout(patience_s):
                await self._slots.acquire()
        except TimeoutError:
            raise ResourceError(
                f"all {self._limit} places for transfers were taken for {patience_s:.0f} s",
                next_step="try again",
            ) from None
        try:
            async with asyncio.timeout(STALL_S + size / SLOWEST_BYTES_PER_S):
                yield
        except TimeoutError:
            raise DeadlineError(
                f"less than {SLOWEST_BYTES_PER_S // 1024} KiB/s went through",
                next_step="try again; what came is kept",
            ) from None
        finally:
            self._slots.release()


class Takeover:
    """One transfer per key: a new one ends the old, whose connection is probably dead."""

    def __init__(self) -> None:
        self._running: dict[object, asyncio.Task[Any]] = {}

    async def run(self, key: object, transfer: Coroutine[Any, Any, T]) -> T:
        """Do ``transfer`` once the earlier one of this key has ended.

        Raises:
            UnavailableError: a newer transfer took over.
        """
        task = asyncio.ensure_future(self._after(self._running.get(key), transfer))
        self._running[key] = task
        try:
            return await task
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if caller is not None and caller.cancelling():
                raise
            raise UnavailableError("a newer stream of this site took over") from None
        finally:
            if self._running.get(key) is task:
                del self._running[key]

    @staticmethod
    async def _after(earlier: asyncio.Task[Any] | None, transfer: Coroutine[Any, Any, T]) -> T:
        try:
            if earlier is not None:
                earlier.cancel()
                await asyncio.wait({earlier})
            return await transfer
        finally:
            transfer.close()
