"""A site's agent that runs beside a test, and waiting for what it does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from participant.ending import ExitAfter, Outcome
from tests.support.fake_coordinator import FakeCoordinator
from tests.support.participant import Site


@asynccontextmanager
async def running(
    site: Site, coordinator: FakeCoordinator, exit_after: ExitAfter = ExitAfter.RUN
) -> AsyncIterator[asyncio.Task[Outcome]]:
    """The site's agent, stopped at the end unless it has ended."""
    agent = site.agent(coordinator, exit_after)
    task = asyncio.create_task(agent.run())
    try:
        yield task
        agent.stop()
        await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        site.store.close()


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.002)


async def told(site: Site, text: str) -> None:
    """Until a line that the site printed holds ``text``."""
    await until(lambda: any(text in line for line in site.lines))
