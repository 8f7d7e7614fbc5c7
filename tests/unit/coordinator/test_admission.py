"""Transfers: so many at once, one of a kind, and no site listens twice."""

from __future__ import annotations

import asyncio

import pytest

from coordinator import admission
from coordinator.admission import Takeover, Transfers
from coordinator.instructions import heartbeat, run_offer
from coordinator.sessions import QUEUE_LIMIT, Sessions
from fedpalm.errors import DeadlineError, ResourceError, UnavailableError
from tests.support.aio import in_loop


@in_loop
async def test_no_more_transfers_run_at_once_than_allowed_and_all_of_them_run() -> None:
    transfers, running, most, done = Transfers(3), 0, 0, 0

    async def one(site: int) -> None:
        nonlocal running, most, done
        async with transfers.slot(site, 60, 0):
            running += 1
            most = max(most, running)
            await asyncio.sleep(0)
            running -= 1
            done += 1

    await asyncio.gather(*(one(site) for site in range(20)))
    assert (most, done) == (3, 20)


@in_loop
async def test_who_waits_too_long_for_a_place_is_told_so() -> None:
    transfers = Transfers(1)
    async with transfers.slot("amber", 60, 0):
        with pytest.raises(ResourceError, match="1 places"):
            async with transfers.slot("birch", 0.01, 0):
                raise AssertionError("there was a place")
    async with transfers.slot("birch", 0.01, 0):
        pass


@in_loop
async def test_a_holder_that_opens_many_transfers_has_one_place_and_one_turn() -> None:
    transfers, ended = Transfers(2), []

    async def stalled(number: int) -> None:
        try:
            async with transfers.slot("greedy", 60, 0):
                await asyncio.sleep(3600)
        except UnavailableError:
            ended.append(number)

    greedy = [asyncio.create_task(stalled(number)) for number in range(6)]
    async with transfers.slot("amber", 5, 0):
        greedy += [asyncio.create_task(stalled(number)) for number in range(6, 12)]
        while len(ended) < 11:
            await asyncio.sleep(0)
        assert [task.done() for task in greedy] == [True] * 11 + [False]
    greedy[-1].cancel()
    await asyncio.wait(greedy)
    async with transfers.slot("amber", 0.01, 0), transfers.slot("birch", 0.01, 0):
        pass


@in_loop
async def test_a_transfer_that_crawls_gives_its_place_back(
    monkeypatch: pytest.MonkeyPatch | None = None,
) -> None:
    transfers = Transfers(1)
    before, admission.STALL_S = admission.STALL_S, 0.01
    try:
        with pytest.raises(DeadlineError):
            async with transfers.slot("amber", 60, 0):
                await asyncio.sleep(3600)
    finally:
        admission.STALL_S = before
    async with transfers.slot("birch", 0.01, 0):
        pass


@in_loop
async def test_a_newer_transfer_ends_the_older_one_before_it_begins() -> None:
    takeover, order = Takeover(), []

    async def stuck() -> str:
        try:
            await asyncio.sleep(3600)
        finally:
            order.append("old ended")
        return "old"

    async def fresh() -> str:
        order.append("new began")
        return "new"

    old = asyncio.create_task(takeover.run("site", stuck()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert await takeover.run("other", fresh()) == "new"
    assert await takeover.run("site", fresh()) == "new"
    with pytest.raises(UnavailableError, match="took over"):
        await old
    assert order == ["new began", "old ended", "new began"]


@in_loop
async def test_a_caller_that_is_cancelled_ends_its_transfer_and_stays_cancelled() -> None:
    takeover, ended = Takeover(), asyncio.Event()

    async def stuck() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.set()

    caller = asyncio.create_task(takeover.run("site", stuck()))
    await asyncio.sleep(0.01)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert ended.is_set()


@in_loop
async def test_a_site_hears_instructions_in_order_and_a_heartbeat_when_there_is_none() -> None:
    sessions = Sessions()
    session = sessions.open("amber")
    first, second = run_offer("r1", bytes(32)), run_offer("r2", bytes(32))
    sessions.tell("amber", first)
    sessions.tell("amber", second)
    sessions.tell("nobody", first)
    stream = session.stream(0.01)
    assert [await anext(stream) for _ in range(3)] == [first, second, heartbeat()]


@in_loop
async def test_a_second_stream_of_a_site_takes_the_place_of_the_first() -> None:
    sessions = Sessions()
    first = sessions.open("amber")
    second = sessions.open("amber")
    assert [one async for one in first.stream(60)] == []
    assert not sessions.close("amber", first)
    assert sessions.connected() == {"amber"}
    assert sessions.close("amber", second)
    assert sessions.connected() == frozenset()


@in_loop
async def test_a_site_that_takes_nothing_is_cut_off_in_the_end() -> None:
    sessions = Sessions()
    session = sessions.open("amber")
    for _ in range(QUEUE_LIMIT + 1):
        sessions.tell("amber", run_offer("r", bytes(32)))
    heard = [one async for one in session.stream(60)]
    assert len(heard) == QUEUE_LIMIT


@in_loop
async def test_a_coordinator_that_stops_ends_streams_and_takes_no_new_ones() -> None:
    sessions = Sessions()
    session = sessions.open("amber")
    sessions.end_all()
    assert [one async for one in session.stream(60)] == []
    with pytest.raises(UnavailableError):
        sessions.open("birch")
