"""Calls that are open when their caller stops being admitted: each is ended from outside, at once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from fedpalm.clock import FakeClock
from fedpalm.errors import (
    FedPalmError,
    IdentityError,
    ResourceError,
    RevokedError,
    StateError,
    UnavailableError,
)
from fedpalm.pki.identity import Role
from fedpalm.transport import calls, server
from fedpalm.transport.channel import Connection
from fedpalm.transport.limits import MAX_CALLS_PER_CALLER
from fedpalm.transport.server import Peer
from fedpalm.wire.v1.federation_pb2 import (
    Chunk,
    DownloadModelRequest,
    HelloReply,
    HelloRequest,
    Instruction,
    InstructionsRequest,
    Receipt,
    UploadRequest,
)
from tests.support.aio import in_loop
from tests.support.pki import TestAuthority
from tests.support.servicer import HASH, Recorder, live_identity, receipt_of, running

AUTHORITY = TestAuthority("palms")
HUB = AUTHORITY.enrol(Role.COORDINATOR, "hub")
NORTH = AUTHORITY.enrol(Role.PARTICIPANT, "north")
SOUTH = AUTHORITY.enrol(Role.PARTICIPANT, "south")
MIB = 1024 * 1024
LONG_S = 3600.0


class Busy(Recorder):
    """Handlers that never end by themselves, and say how they ended."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = asyncio.Semaphore(0)
        self.cancelled: list[str] = []
        self.held: asyncio.Event | None = None

    async def _wait(self, name: str) -> None:
        self.entered.release()
        try:
            await asyncio.sleep(LONG_S)
        except asyncio.CancelledError:
            self.cancelled.append(name)
            raise

    async def Hello(self, request: HelloRequest, context: Any) -> HelloReply:
        await self._wait("Hello")
        raise AssertionError("unreachable")

    async def Instructions(
        self, request: InstructionsRequest, context: Any
    ) -> AsyncIterator[Instruction]:
        await self._wait("Instructions")
        yield Instruction()

    async def DownloadModel(
        self, request: DownloadModelRequest, context: Any
    ) -> AsyncIterator[Chunk]:
        self.entered.release()
        while True:
            yield Chunk(data=bytes(MIB))

    async def UploadUpdate(self, requests: AsyncIterator[UploadRequest], context: Any) -> Receipt:
        self.entered.release()
        total = 0
        async for request in requests:
            if not request.chunk.data:
                await asyncio.sleep(LONG_S)
            total += len(request.chunk.data)
        return receipt_of(total)


class Federation:
    """A server whose admissions the test gives and takes, and connections to it."""

    def __init__(self, folder: Path, servicer: Recorder, clock: FakeClock | None = None) -> None:
        self.clock = clock or FakeClock(NORTH.leaf.not_valid_before_utc.timestamp() + 600)
        self.servicer, self.revoked = servicer, set[str]()
        self._identity = live_identity(folder, HUB, self.clock)

    async def __aenter__(self) -> Federation:
        self._stack = AsyncExitStack()
        self.gated = await self._stack.enter_async_context(
            running(self.servicer, self._identity, authorise=self._authorise, clock=self.clock)
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def _authorise(self, peer: Peer) -> None:
        if peer.identity.name in self.revoked:
            raise RevokedError(f"{peer.identity} is revoked", next_step="enrol anew")

    async def dial(self, tls: Any = NORTH) -> Connection:
        address = f"127.0.0.1:{self.gated.port}"
        return await self._stack.enter_async_context(Connection(address, tls))

    async def revoke(self, name: str) -> None:
        self.revoked.add(name)
        await self.gated.recheck()

    async def quiet(self) -> None:
        """Until no call is open."""
        while self.gated.open_calls:
            await asyncio.sleep(0.01)


async def hello(connection: Connection) -> Any:
    return await connection.unary(connection.federation.Hello, HelloRequest(), deadline_s=20)


async def listen(connection: Connection) -> None:
    request = InstructionsRequest(site_id="north")
    async for _ in connection.stream(connection.federation.Instructions, request, idle_s=20):
        pass


async def fetch(connection: Connection) -> None:
    request = DownloadModelRequest(model_hash=HASH)
    async for _ in connection.stream(connection.federation.DownloadModel, request, idle_s=20):
        pass


async def send(connection: Connection, size: int = MIB) -> Any:
    async def chunks() -> AsyncIterator[UploadRequest]:
        while True:
            yield UploadRequest(chunk=Chunk(data=bytes(size)))

    method = connection.federation.UploadUpdate
    return await connection.upload(method, chunks(), deadline_s=20)


async def send_in_turn(connection: Connection) -> Any:
    """An upload that waits for its turn: the handler does not want its second message."""
    return await send(connection, size=0)


KINDS = [hello, listen, fetch, send, send_in_turn]


# --- what is cut -----------------------------------------------------------------------------------


@pytest.mark.parametrize("call", KINDS)
def test_revocation_ends_a_call_of_every_kind_with_its_reason(
    call: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    @in_loop
    async def run() -> None:
        async with Federation(tmp_path, Busy()) as federation:
            connection = await federation.dial()
            ongoing = asyncio.create_task(call(connection))
            await federation.servicer.entered.acquire()  # type: ignore[attr-defined]
            await asyncio.sleep(0.05)
            await federation.revoke("north")
            with pytest.raises(RevokedError, match="north is revoked") as caught:
                await ongoing
            assert caught.value.next_step == "enrol anew"
            await federation.quiet()
            with pytest.raises(RevokedError):
                await hello(connection)

    caplog.set_level(logging.INFO)
    run()
    texts = [record.getMessage() for record in caplog.records]
    assert any("refused spiffe://palms/participant/north" in text for text in texts)
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR], texts
    assert not any("incident" in text for text in texts)


@pytest.mark.parametrize("call", KINDS)
def test_the_handler_of_a_call_that_is_cut_ends_too(call: Any, tmp_path: Path) -> None:
    @in_loop
    async def run() -> None:
        servicer = Busy()
        async with Federation(tmp_path, servicer) as federation:
            before = asyncio.all_tasks()
            connection = await federation.dial()
            ongoing = asyncio.create_task(call(connection))
            await servicer.entered.acquire()
            assert federation.gated.open_calls == 1
            await federation.revoke("north")
            with pytest.raises(RevokedError):
                await ongoing
            await federation.quiet()
            await connection.__aexit__(None, None, None)
            for _ in range(200):
                left = {t for t in asyncio.all_tasks() - before if "AioServer" not in repr(t)}
                if not left:
                    break
                await asyncio.sleep(0.01)
            assert left == set()
        if call in (hello, listen):
            assert servicer.cancelled == [{hello: "Hello", listen: "Instructions"}[call]]

    run()


@in_loop
async def _expires(tmp_path: Path, ends_by_itself: bool) -> None:
    clock = FakeClock(NORTH.leaf.not_valid_after_utc.timestamp() - 10)
    async with Federation(tmp_path, Busy(), clock) as federation:
        ongoing = asyncio.create_task(listen(await federation.dial()))
        await federation.servicer.entered.acquire()  # type: ignore[attr-defined]
        await federation.gated.recheck()
        assert federation.gated.open_calls == 1
        clock.advance(10)
        if not ends_by_itself:
            await federation.gated.recheck()
        with pytest.raises(IdentityError, match="expired"):
            await ongoing


def test_an_idle_stream_does_not_outlive_its_certificate(tmp_path: Path) -> None:
    _expires(tmp_path, ends_by_itself=False)


def test_the_server_looks_at_the_clock_by_itself(tmp_path: Path) -> None:
    _expires(tmp_path, ends_by_itself=True)


@in_loop
async def _others_go_on(tmp_path: Path) -> None:
    servicer = Busy()
    async with Federation(tmp_path, servicer) as federation:
        north = asyncio.create_task(listen(await federation.dial()))
        south = asyncio.create_task(listen(await federation.dial(SOUTH)))
        for _ in range(2):
            await servicer.entered.acquire()
        await federation.revoke("north")
        with pytest.raises(RevokedError):
            await north
        await asyncio.sleep(0.1)
        assert not south.done() and federation.gated.open_calls == 1
        south.cancel()


def test_a_revocation_touches_nobody_else(tmp_path: Path) -> None:
    _others_go_on(tmp_path)


@in_loop
async def _half_open(tmp_path: Path) -> None:
    async with Federation(tmp_path, Recorder()) as federation:
        connection = await federation.dial()
        channel = connection._channel
        assert channel is not None
        # A unary call whose request never comes: its headers alone are on the line.
        path = "/fedpalm.wire.v1.Federation/Hello"
        call = channel.stream_unary(path, None, None)()
        await call.wait_for_connection()
        while not federation.gated.open_calls:
            await asyncio.sleep(0.01)
        await federation.revoke("north")
        assert (await call.code()).name == "PERMISSION_DENIED"
        await federation.quiet()


def test_a_call_without_its_request_is_cut_too(tmp_path: Path) -> None:
    _half_open(tmp_path)


def test_a_call_without_its_request_ends_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "UNARY_DEADLINE_S", 0.1)

    @in_loop
    async def run() -> None:
        async with Federation(tmp_path, Recorder()) as federation:
            channel = (await federation.dial())._channel
            assert channel is not None
            call = channel.stream_unary("/fedpalm.wire.v1.Federation/Hello", None, None)()
            assert (await call.code()).name == "DEADLINE_EXCEEDED"
            await federation.quiet()

    run()


def test_a_caller_that_takes_nothing_does_not_hold_up_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "CUT_PATIENCE_S", 0.1)

    @in_loop
    async def run() -> None:
        servicer = Busy()
        async with Federation(tmp_path, servicer) as federation:
            channel = (await federation.dial())._channel
            assert channel is not None
            path = "/fedpalm.wire.v1.Federation/DownloadModel"
            deaf = channel.unary_stream(path, None, None)(
                DownloadModelRequest(model_hash=HASH).SerializeToString()
            )
            await servicer.entered.acquire()
            await asyncio.sleep(0.1)  # By then the line is full, and the handler waits for room.
            await federation.revoke("north")
            await federation.quiet()
            deaf.cancel()

    run()


# --- moments that meet -----------------------------------------------------------------------------


class Finishing(Recorder):
    """A handler that ends, one way or another, when the test says so."""

    def __init__(self, outcome: HelloReply | Exception) -> None:
        super().__init__()
        self.entered, self.go, self.outcome = asyncio.Event(), asyncio.Event(), outcome

    async def Hello(self, request: HelloRequest, context: Any) -> HelloReply:
        self.entered.set()
        await self.go.wait()
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


@pytest.mark.parametrize(
    "outcome", [HelloReply(), StateError("not now"), KeyError("inside")], ids=["reply", "no", "bug"]
)
@pytest.mark.parametrize("cut_first", [True, False])
def test_a_handler_that_ends_at_the_same_moment_gives_the_call_one_status(
    outcome: HelloReply | Exception,
    cut_first: bool,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    @in_loop
    async def run() -> None:
        servicer = Finishing(outcome)
        async with Federation(tmp_path, servicer) as federation:
            connection = await federation.dial()
            for _ in range(20):
                servicer.entered.clear()
                servicer.go.clear()
                federation.revoked.clear()
                ongoing = asyncio.create_task(hello(connection))
                await servicer.entered.wait()
                federation.revoked.add("north")
                if cut_first:
                    cutting = asyncio.create_task(federation.gated.recheck())
                    await asyncio.sleep(0)
                servicer.go.set()
                if not cut_first:
                    cutting = asyncio.create_task(federation.gated.recheck())
                try:
                    assert await ongoing == outcome
                except FedPalmError as error:
                    assert isinstance(error, RevokedError | StateError) or "incident" in error.what
                await cutting
                await federation.quiet()

    caplog.set_level(logging.INFO)
    run()
    # What gRPC itself has to complain about: a status sent twice, an abort that was lost.
    assert [r.getMessage() for r in caplog.records if r.name.startswith("grpc")] == []


class StubbornCleanup(Busy):
    """A handler whose cleaning up fails when it is cancelled."""

    async def _wait(self, name: str) -> None:
        try:
            await super()._wait(name)
        finally:
            raise RuntimeError("while cleaning up")


def test_what_a_cancelled_handler_fails_at_is_no_incident(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    @in_loop
    async def run() -> None:
        servicer = StubbornCleanup()
        async with Federation(tmp_path, servicer) as federation:
            ongoing = asyncio.create_task(hello(await federation.dial()))
            await servicer.entered.acquire()
            await federation.revoke("north")
            with pytest.raises(RevokedError):
                await ongoing
            await federation.quiet()

    caplog.set_level(logging.INFO)
    run()
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


@in_loop
async def _leaves(tmp_path: Path) -> None:
    servicer = Busy()
    async with Federation(tmp_path, servicer) as federation:
        connection = await federation.dial()
        for call in KINDS:
            ongoing = asyncio.create_task(call(connection))
            await servicer.entered.acquire()
            ongoing.cancel()
            await asyncio.gather(ongoing, return_exceptions=True)
            await federation.quiet()


def test_a_caller_that_leaves_is_forgotten(tmp_path: Path) -> None:
    _leaves(tmp_path)


def test_who_cannot_be_looked_up_is_not_admitted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    @in_loop
    async def run() -> None:
        servicer, broken = Busy(), False

        def authorise(peer: Peer) -> None:
            if broken:
                raise OSError("the registry cannot be read")

        identity = live_identity(tmp_path, HUB)
        async with AsyncExitStack() as stack:
            gated = await stack.enter_async_context(
                running(servicer, identity, authorise=authorise)
            )
            address = f"127.0.0.1:{gated.port}"
            async with Connection(address, NORTH) as connection:
                ongoing = asyncio.create_task(listen(connection))
                await servicer.entered.acquire()
                broken = True
                await gated.recheck()
                with pytest.raises(FedPalmError, match="incident"):
                    await ongoing
                broken = False
                # The loop that ends calls is alive, and so is the server.
                again = asyncio.create_task(listen(connection))
                await servicer.entered.acquire()
                broken = True
                with pytest.raises(FedPalmError, match="incident"):
                    await again

    run()
    assert "the registry cannot be read" in caplog.text


@in_loop
async def _too_many(tmp_path: Path) -> None:
    servicer = Busy()
    async with Federation(tmp_path, servicer) as federation:
        several = [await federation.dial() for _ in range(2)]
        half = MAX_CALLS_PER_CALLER // 2
        open_calls = [asyncio.create_task(listen(c)) for c in several for _ in range(half)]
        for _ in open_calls:
            await servicer.entered.acquire()
        with pytest.raises(ResourceError, match="calls are open"):
            await hello(await federation.dial())
        south = asyncio.create_task(listen(await federation.dial(SOUTH)))
        await servicer.entered.acquire()
        for one in open_calls:
            one.cancel()
        while federation.gated.open_calls > 1:
            await asyncio.sleep(0.01)
        again = asyncio.create_task(listen(several[0]))
        await servicer.entered.acquire()
        for one in (south, again):
            one.cancel()


def test_one_site_cannot_take_the_calls_of_all(tmp_path: Path) -> None:
    _too_many(tmp_path)


# --- connections that say nothing --------------------------------------------------------------------


@in_loop
async def _silent(tmp_path: Path) -> None:
    async with Federation(tmp_path, Recorder()) as federation:
        silent = [
            await asyncio.open_connection("127.0.0.1", federation.gated.port) for _ in range(50)
        ]
        for _, writer in silent[:25]:
            writer.write(b"\x16\x03\x01")  # The beginning of a handshake, and no more.
        connection = await federation.dial()
        for _ in range(5):
            assert await hello(connection) == HelloReply()
        for _, writer in silent:
            writer.close()


def test_connections_that_say_nothing_disturb_nobody(tmp_path: Path) -> None:
    _silent(tmp_path)


@in_loop
async def _stops(tmp_path: Path) -> None:
    servicer = Busy()
    federation = Federation(tmp_path, servicer)
    async with federation:
        before = federation.gated._watch
        connection = await Connection(f"127.0.0.1:{federation.gated.port}", NORTH).__aenter__()
        ongoing = asyncio.create_task(listen(connection))
        await servicer.entered.acquire()
    with pytest.raises(UnavailableError):
        await ongoing
    await connection.__aexit__(None, None, None)
    assert before is not None and before.cancelled()
    assert federation.gated.open_calls == 0


def test_a_stopped_server_leaves_nothing_behind(tmp_path: Path) -> None:
    _stops(tmp_path)
