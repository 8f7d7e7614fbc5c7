"""An event loop in a thread: tests say in plain order what several open calls do at once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
PATIENCE_S = 60.0


class Background:
    """A context manager; :meth:`run` waits for a coroutine, :meth:`start` lets it go on."""

    def __enter__(self) -> Background:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end_all(), self._loop).result(PATIENCE_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_S)
        self._loop.close()

    async def _end_all(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def run(self, work: Coroutine[Any, Any, T], patience_s: float = PATIENCE_S) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(patience_s)

    def start(self, work: Coroutine[Any, Any, T]) -> Any:
        """A future of what goes on meanwhile."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)


def wait_until(condition: Callable[[], T], what: str, patience_s: float = PATIENCE_S) -> T:
    """Poll until ``condition()`` is truthy, and give that back."""
    until = time.monotonic() + patience_s
    while not (value := condition()):
        assert time.monotonic() < until, f"gave up waiting for {what}"
        time.sleep(0.02)
    return value
