"""How many transfers run at once, and what happens when a site begins the same one twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar

from fedpalm.errors import DeadlineError, ResourceError, UnavailableError

T = TypeVar("T")
SLOWEST_BYTES_PER_S = 16 * 1024
STALL_S = 60.0


class Transfers:
    """At most ``limit`` models and updates in flight; the others wait in order of arrival.

    Each holder (a site in one direction) has one place, or waits for one: whoever opens many streams
    and reads none takes places from itself only.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._slots = limit, asyncio.Semaphore(limit)
        self._newest: dict[object, asyncio.Timeout] = {}

    async def relayed(
        self, holder: object, patience_s: float, size: int, chunks: AsyncIterator[T]
    ) -> AsyncGenerator[T, None]:
        """``chunks`` while a place is held, for a handler that passes them on.

        A task of its own holds the place, one chunk ahead of the handler. What ends the place cancels
        whoever waits inside :meth:`slot`; gRPC would take that for the end of the call while it sends a
        chunk, and its caller would never hear of it.

        Raises: as :meth:`slot`, and whatever ``chunks`` raises.
        """
        ready: asyncio.Queue[T | Exception | None] = asyncio.Queue(1)

        async def fill() -> None:
            try:
                async with (
                    self.slot(holder, patience_s, size),
                    aclosing(chunks),  # type: ignore[type-var]  # it is a generator
                ):
                    async for chunk in chunks:
                        await ready.put(chunk)
                last: Exception | None = None
            except Exception as error:
                last = error
            await ready.put(last)

        filling = asyncio.create_task(fill())
        try:
            while (item := await ready.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            filling.cancel()
            await asyncio.wait({filling})

    @asynccontextmanager
    async def slot(self, holder: object, patience_s: float, size: int) -> AsyncIterator[None]:
        """Hold a place for the transfer of ``size`` bytes; ends the holder's earlier transfer.

        Raises:
            ResourceError: no place is free within ``patience_s``.
            DeadlineError: the transfer is slower than SLOWEST_BYTES_PER_S; others wait for its place.
            UnavailableError: a newer transfer of this holder took over.
        """
        now = asyncio.get_running_loop().time
        earlier = self._newest.get(holder)
        if earlier is not None and not earlier.expired():
            earlier.reschedule(now())
        limit = self._newest[holder] = asyncio.timeout(patience_s)
        placed = False
        try:
            async with limit, self._slots:
                placed = True
                # A newer one that came while this place was handed over has set the limit to now.
                if self._newest[holder] is limit:
                    limit.reschedule(now() + STALL_S + size / SLOWEST_BYTES_PER_S)
                yield
        except TimeoutError:
            if self._newest.get(holder) is not limit:
                raise UnavailableError("a newer transfer of this site took over") from None
            if not placed:
                raise ResourceError(
                    f"all {self._limit} places for transfers were taken for {patience_s:.0f} s",
                    next_step="try again",
                ) from None
            raise DeadlineError(
                f"less than {SLOWEST_BYTES_PER_S // 1024} KiB/s went through",
                next_step="try again; what came is kept",
            ) from None
        finally:
            if self._newest.get(holder) is limit:
                del self._newest[holder]


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
