"""Calls between a real client and a real server on loopback, under mutual TLS."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

import grpc
import pytest

from fedpalm.clock import FakeClock
from fedpalm.errors import (
    ConfigError,
    DeadlineError,
    FedPalmError,
    IdentityError,
    MessageTooLargeError,
    NotFoundError,
    ProtocolError,
    RefusedError,
    StaleRoundError,
    UnavailableError,
    VersionMismatchError,
    WrongRoleError,
)
from fedpalm.pki.identity import Role
from fedpalm.transport import gate, server
from fedpalm.transport.channel import Connection, Method
from fedpalm.transport.server import Peer, build_server
from fedpalm.wire.v1.federation_pb2 import (
    Chunk,
    DownloadModelRequest,
    Heartbeat,
    HelloReply,
    HelloRequest,
    Instruction,
    InstructionsRequest,
    Receipt,
    UploadRequest,
)
from fedpalm.wire.v1.operator_pb2 import ListSitesRequest
from tests.support.aio import in_loop
from tests.support.pki import TestAuthority
from tests.support.servicer import HASH, Recorder, allow, live_identity, receipt_of, serving

CA = TestAuthority("palms")
HUB = CA.enrol(Role.COORDINATOR, "hub")
NORTH = CA.enrol(Role.PARTICIPANT, "north")
OPERATOR = CA.enrol(Role.OPERATOR, "desk")
MIB = 1024 * 1024


class Pair:
    """A server with ``servicer`` and one connection to it, as ``tls``."""

    def __init__(self, servicer: Recorder | None = None, tls: Any = NORTH, **serve: Any) -> None:
        self.servicer = servicer or Recorder()
        self._tls, self._serve = tls, serve

    async def __aenter__(self) -> Pair:
        self._stack = AsyncExitStack()
        address = await self._stack.enter_async_context(serving(self.servicer, HUB, **self._serve))
        self.connection = await self._stack.enter_async_context(Connection(address, self._tls))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def hello(self, request: HelloRequest | None = None) -> HelloReply:
        connection = self.connection
        reply: HelloReply = await connection.unary(
            connection.federation.Hello, request or HelloRequest(), deadline_s=10
        )
        return reply


async def chunks(*sizes: int) -> AsyncIterator[UploadRequest]:
    for size in sizes:
        yield UploadRequest(chunk=Chunk(data=bytes(size)))


# --- calls that are allowed ------------------------------------------------------------------------


@in_loop
async def test_a_handler_knows_its_caller_by_the_certificate() -> None:
    async with Pair() as pair:
        await pair.hello(HelloRequest(site_id="south"))
        assert pair.servicer.calls == [("Hello", "spiffe://palms/participant/north")]


@in_loop
async def test_a_stream_of_chunks_arrives_and_is_answered() -> None:
    async with Pair() as pair:
        receipt = await pair.connection.upload(
            pair.connection.federation.UploadUpdate, chunks(MIB, MIB, 7), deadline_s=10
        )
        assert receipt == receipt_of(2 * MIB + 7)


@in_loop
async def test_the_name_in_the_certificate_counts_and_not_the_address() -> None:
    async with serving(Recorder(), HUB) as address:
        port = address.rpartition(":")[2]
        async with Connection(f"localhost:{port}", NORTH) as connection:
            await connection.unary(connection.federation.Hello, HelloRequest(), deadline_s=10)


class Downloads(Recorder):
    def __init__(self, *replies: Chunk | BaseException) -> None:
        super().__init__()
        self.replies, self.closed = replies, asyncio.Event()

    async def DownloadModel(
        self, request: DownloadModelRequest, context: Any
    ) -> AsyncIterator[Chunk]:
        try:
            for reply in self.replies:
                if isinstance(reply, BaseException):
                    raise reply
                yield reply
            await asyncio.sleep(3600)
        finally:
            self.closed.set()


def download(pair: Pair, idle_s: float = 10) -> AsyncIterator[Chunk]:
    connection = pair.connection
    request = DownloadModelRequest(model_hash=HASH)
    return connection.stream(connection.federation.DownloadModel, request, idle_s=idle_s)


@in_loop
async def test_leaving_a_stream_ends_the_handler_on_the_other_side() -> None:
    async with Pair(Downloads(Chunk(offset=1))) as pair:
        async with aclosing(download(pair)) as replies:
            assert await anext(replies) == Chunk(offset=1)
        await pair.servicer.closed.wait()


# --- errors of handlers, in all four kinds of calls ------------------------------------------------


@in_loop
async def test_an_error_of_a_unary_handler_comes_out_as_it_was_raised() -> None:
    def refuse(_: HelloRequest) -> HelloReply:
        raise StaleRoundError("round 3 is over", safe="the model", next_step="wait for round 4")

    async with Pair() as pair:
        pair.servicer.hello = refuse
        with pytest.raises(StaleRoundError) as caught:
            await pair.hello()
        assert str(caught.value) == "round 3 is over\nSafe: the model\nNext: wait for round 4"


@in_loop
async def test_an_error_in_the_middle_of_a_download_comes_out_after_what_was_sent() -> None:
    async with Pair(Downloads(Chunk(offset=1), NotFoundError("gone"))) as pair:
        replies = download(pair)
        assert await anext(replies) == Chunk(offset=1)
        with pytest.raises(NotFoundError, match="gone"):
            await anext(replies)


class RefusingUploads(Recorder):
    async def UploadUpdate(self, requests: AsyncIterator[UploadRequest], context: Any) -> Receipt:
        async for _ in requests:
            raise StaleRoundError("too late")
        raise AssertionError("the stream was empty")


@in_loop
async def test_an_error_in_the_middle_of_an_upload_stops_it() -> None:
    sent = 0

    async def endless() -> AsyncIterator[UploadRequest]:
        nonlocal sent
        while True:
            sent += 1
            yield UploadRequest(chunk=Chunk(data=bytes(MIB)))

    async with Pair(RefusingUploads()) as pair:
        with pytest.raises(StaleRoundError, match="too late"):
            await pair.connection.upload(
                pair.connection.federation.UploadUpdate, endless(), deadline_s=20
            )
        assert sent < 200


def _echo_handler(fail_at: int) -> grpc.GenericRpcHandler[Any, Any]:
    """A bidirectional call, a kind that the contract does not use yet."""

    async def echo(requests: AsyncIterator[Chunk], context: Any) -> AsyncIterator[Chunk]:
        async for request in requests:
            if request.offset == fail_at:
                raise StaleRoundError("enough")
            yield request

    handler = grpc.stream_stream_rpc_method_handler(echo, Chunk.FromString, Chunk.SerializeToString)
    return grpc.method_handlers_generic_handler("fedpalm.wire.v1.Federation", {"Echo": handler})


@in_loop
async def test_a_bidirectional_call_passes_the_same_gate() -> None:
    async with Pair(handlers=(_echo_handler(fail_at=2),)) as pair:
        channel = pair.connection._channel
        assert channel is not None
        call = channel.stream_stream(
            "/fedpalm.wire.v1.Federation/Echo", Chunk.SerializeToString, Chunk.FromString
        )()
        await call.write(Chunk(offset=1))
        assert await call.read() == Chunk(offset=1)
        await call.write(Chunk(offset=2))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


@in_loop
async def test_an_unforeseen_failure_shows_a_number_and_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(_: HelloRequest) -> HelloReply:
        raise KeyError("secret-path")

    async with Pair() as pair:
        pair.servicer.hello = fail
        with pytest.raises(FedPalmError) as caught:
            await pair.hello()
    assert type(caught.value) is FedPalmError
    assert "secret" not in str(caught.value) and "KeyError" not in str(caught.value)
    incident = caught.value.what.split("incident ")[1].rstrip(")")
    logged = next(r for r in caplog.records if incident in r.getMessage())
    assert logged.exc_info is not None and logged.exc_info[0] is KeyError


# --- calls that are refused ------------------------------------------------------------------------


@in_loop
async def test_a_role_calls_its_own_service_only(caplog: pytest.LogCaptureFixture) -> None:
    async with Pair() as pair:
        operator = pair.connection.operator
        with pytest.raises(WrongRoleError, match="participant may not call"):
            await pair.connection.unary(operator.ListSites, ListSitesRequest(), deadline_s=10)
        assert pair.servicer.calls == []
    refusal = next(r for r in caplog.records if "refused" in r.getMessage())
    assert refusal.levelno == logging.WARNING
    assert "spiffe://palms/participant/north" in refusal.getMessage()
    async with Pair(tls=OPERATOR) as pair:
        operator = pair.connection.operator
        await pair.connection.unary(operator.ListSites, ListSitesRequest(), deadline_s=10)
        with pytest.raises(WrongRoleError):
            await pair.hello()


@in_loop
async def test_a_role_is_checked_on_streams_too() -> None:
    async with Pair(Downloads(Chunk()), tls=OPERATOR) as pair:
        with pytest.raises(WrongRoleError):
            await anext(download(pair))
        with pytest.raises(WrongRoleError):
            await pair.connection.upload(
                pair.connection.federation.UploadUpdate, chunks(7), deadline_s=10
            )
        assert pair.servicer.calls == []


@in_loop
async def test_a_service_that_is_not_named_is_closed_to_all() -> None:
    async def answer(request: bytes, context: Any) -> bytes:
        raise AssertionError("a handler behind the gate was reached")

    handler = grpc.unary_unary_rpc_method_handler(
        answer, HelloRequest.FromString, HelloReply.SerializeToString
    )
    other = grpc.method_handlers_generic_handler("fedpalm.wire.v1.Federation2", {"Hello": handler})
    async with Pair(handlers=(other,)) as pair:
        channel = pair.connection._channel
        assert channel is not None
        call = channel.unary_unary("/fedpalm.wire.v1.Federation2/Hello", None, None)
        method = Method(lambda r, **options: call(b"", **options), HelloReply.FromString)
        with pytest.raises(WrongRoleError):
            await pair.connection.unary(method, HelloRequest(), deadline_s=10)


@in_loop
async def test_the_caller_of_the_server_decides_who_is_admitted() -> None:
    def nobody(peer: Peer) -> None:
        raise RefusedError(f"{peer.identity.name} is not admitted")

    async with Pair(authorise=nobody) as pair:
        with pytest.raises(RefusedError, match="north is not admitted"):
            await pair.hello()
        assert pair.servicer.calls == []


@in_loop
async def test_an_open_channel_does_not_outlive_its_certificate() -> None:
    clock = FakeClock(NORTH.leaf.not_valid_after_utc.timestamp() - 10)
    async with Pair(clock=clock) as pair:
        await pair.hello()
        clock.advance(10)
        with pytest.raises(IdentityError, match="expired"):
            await pair.hello()


class Heartbeats(Recorder):
    async def Instructions(
        self, request: InstructionsRequest, context: Any
    ) -> AsyncIterator[Instruction]:
        while True:
            yield Instruction(heartbeat=Heartbeat())
            await asyncio.sleep(0.01)


def instructions(pair: Pair) -> AsyncIterator[Instruction]:
    connection = pair.connection
    return connection.stream(
        connection.federation.Instructions, InstructionsRequest(site_id="north"), idle_s=10
    )


@in_loop
async def test_an_open_stream_does_not_outlive_its_certificate() -> None:
    clock = FakeClock(NORTH.leaf.not_valid_after_utc.timestamp() - 10)
    async with Pair(Heartbeats(), clock=clock) as pair:
        stream = instructions(pair)
        await anext(stream)
        clock.advance(10)
        with pytest.raises(IdentityError, match="expired"):
            async for _ in stream:
                pass


@in_loop
async def test_an_open_stream_does_not_outlive_the_admission_of_its_peer() -> None:
    admitted, clock = True, FakeClock(NORTH.leaf.not_valid_before_utc.timestamp() + 1)

    def authorise(peer: Peer) -> None:
        if not admitted:
            raise RefusedError("revoked")

    async with Pair(Heartbeats(), clock=clock, authorise=authorise) as pair:
        stream = instructions(pair)
        await anext(stream)
        admitted = False
        clock.advance(1)
        with pytest.raises(RefusedError, match="revoked"):
            async for _ in stream:
                pass


# --- messages beyond the contract ------------------------------------------------------------------


@in_loop
async def test_a_request_beyond_its_limits_never_reaches_a_handler() -> None:
    async with Pair() as pair:
        with pytest.raises(MessageTooLargeError, match="site_id"):
            await pair.hello(HelloRequest(site_id="s" * 64))
        assert pair.servicer.calls == []
        with pytest.raises(MessageTooLargeError, match=r"Chunk\.data"):
            await pair.connection.upload(
                pair.connection.federation.UploadUpdate, chunks(5, MIB + 1), deadline_s=10
            )


@in_loop
async def test_a_message_larger_than_any_in_the_contract_is_refused_unread() -> None:
    async with Pair() as pair:
        with pytest.raises(MessageTooLargeError):
            await pair.connection.upload(
                pair.connection.federation.UploadUpdate, chunks(3 * MIB), deadline_s=10
            )
        await pair.hello()


@in_loop
async def test_bytes_that_are_no_message_are_a_protocol_error() -> None:
    async with Pair() as pair:
        channel = pair.connection._channel
        assert channel is not None
        call = channel.unary_unary("/fedpalm.wire.v1.Federation/Hello", None, None)
        garbage = Method(lambda r, **options: call(b"\xff\xff", **options), HelloReply.FromString)
        with pytest.raises(ProtocolError, match="2 bytes"):
            await pair.connection.unary(garbage, HelloRequest(), deadline_s=10)
        assert pair.servicer.calls == []


@in_loop
async def test_a_reply_beyond_its_limits_is_refused_by_the_site() -> None:
    async with Pair(Downloads(Chunk(data=bytes(MIB + 1)))) as pair:
        pair.servicer.hello = lambda _: HelloReply(federation_id="f" * 64)
        with pytest.raises(MessageTooLargeError, match="federation_id"):
            await pair.hello()
        with pytest.raises(MessageTooLargeError):
            await anext(download(pair))


@in_loop
async def test_a_call_that_the_coordinator_does_not_know_is_a_version_mismatch() -> None:
    async with Pair() as pair:
        unimplemented = pair.connection.federation.FetchPlan
        with pytest.raises(VersionMismatchError):
            await pair.connection.unary(unimplemented, HelloRequest(), deadline_s=10)


# --- time ------------------------------------------------------------------------------------------


class Slow(Recorder):
    async def Hello(self, request: HelloRequest, context: Any) -> HelloReply:
        await asyncio.sleep(3600)
        raise AssertionError("unreachable")


@in_loop
async def test_a_call_ends_at_its_deadline() -> None:
    async with Pair(Slow()) as pair:
        with pytest.raises(DeadlineError):
            connection = pair.connection
            await connection.unary(connection.federation.Hello, HelloRequest(), deadline_s=0.2)


@in_loop
async def test_the_server_ends_a_call_that_has_no_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "UNARY_DEADLINE_S", 0.1)
    async with Pair(Slow()) as pair:
        with pytest.raises(DeadlineError, match=r"0\.1 s"):
            await pair.hello()


@in_loop
async def test_a_stream_on_which_nothing_comes_is_left() -> None:
    async with Pair(Downloads(Chunk(offset=1))) as pair:
        stream = download(pair, idle_s=0.2)
        await anext(stream)
        with pytest.raises(DeadlineError, match="nothing came"):
            await anext(stream)
        await pair.servicer.closed.wait()


@in_loop
async def test_the_server_ends_an_upload_on_which_nothing_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gate, "STREAM_IDLE_S", 0.1)

    async def stalls() -> AsyncIterator[UploadRequest]:
        yield UploadRequest(chunk=Chunk(data=b"x"))
        await asyncio.sleep(0.5)
        yield UploadRequest(chunk=Chunk(data=b"x"))

    async with Pair() as pair:
        with pytest.raises(DeadlineError, match="no message"):
            await pair.connection.upload(
                pair.connection.federation.UploadUpdate, stalls(), deadline_s=10
            )


# --- connections -----------------------------------------------------------------------------------


@in_loop
async def test_the_coordinator_may_answer_before_the_upload_has_ended() -> None:
    class Early(Recorder):
        async def UploadUpdate(
            self, requests: AsyncIterator[UploadRequest], context: Any
        ) -> Receipt:
            return receipt_of(1)

    async def endless() -> AsyncIterator[UploadRequest]:
        while True:
            yield UploadRequest(chunk=Chunk(data=bytes(MIB)))

    async with Pair(Early()) as pair:
        receipt = await pair.connection.upload(
            pair.connection.federation.UploadUpdate, endless(), deadline_s=20
        )
        assert receipt == receipt_of(1)


@in_loop
async def test_a_payload_waits_at_its_sender_until_the_handler_wants_it() -> None:
    turn, seen, sent = asyncio.Event(), asyncio.Event(), 0

    class OneAtATime(Recorder):
        async def UploadUpdate(
            self, requests: AsyncIterator[UploadRequest], context: Any
        ) -> Receipt:
            await anext(requests)
            seen.set()
            await turn.wait()
            async for _ in requests:
                pass
            return receipt_of(5)

    async def counted() -> AsyncIterator[UploadRequest]:
        nonlocal sent
        for _ in range(5):
            yield UploadRequest(chunk=Chunk(data=b"x"))
            sent += 1

    async with Pair(OneAtATime()) as pair:
        upload = asyncio.create_task(
            pair.connection.upload(
                pair.connection.federation.UploadUpdate, counted(), deadline_s=20
            )
        )
        await seen.wait()
        await asyncio.sleep(0.1)
        assert sent == 1
        turn.set()
        assert await upload == receipt_of(5)
        assert sent == 5


@in_loop
async def test_an_upload_of_nothing_reaches_its_handler() -> None:
    async with Pair() as pair:
        receipt = await pair.connection.upload(
            pair.connection.federation.UploadUpdate, chunks(), deadline_s=10
        )
        assert receipt == receipt_of(0)


@in_loop
async def test_an_error_of_the_sender_s_own_ends_the_upload_and_comes_out() -> None:
    async def breaks() -> AsyncIterator[UploadRequest]:
        yield UploadRequest(chunk=Chunk(data=b"x"))
        raise OSError("disk")

    async with Pair() as pair:
        with pytest.raises(OSError, match="disk"):
            await pair.connection.upload(
                pair.connection.federation.UploadUpdate, breaks(), deadline_s=10
            )
        await pair.hello()


@in_loop
async def test_a_connection_finds_a_restarted_coordinator_again() -> None:
    async with serving(Recorder(), HUB) as address:
        connection = await Connection(address, NORTH).__aenter__()
        await connection.unary(connection.federation.Hello, HelloRequest(), deadline_s=10)
    with pytest.raises(UnavailableError):
        await connection.unary(connection.federation.Hello, HelloRequest(), deadline_s=10)
    async with serving(Recorder(), HUB, address=address):
        for _ in range(100):
            try:
                await connection.unary(connection.federation.Hello, HelloRequest(), deadline_s=10)
                break
            except UnavailableError:
                await asyncio.sleep(0.05)
        else:
            pytest.fail("the connection never came back")
    await connection.__aexit__(None, None, None)


@in_loop
async def test_nobody_there_is_unavailable_with_what_to_do() -> None:
    async with Connection("127.0.0.1:1", NORTH) as connection:
        with pytest.raises(UnavailableError, match="nobody listens") as caught:
            await connection.unary(connection.federation.Hello, HelloRequest(), deadline_s=10)
        assert "fedpalm-coordinator serve" in caught.value.next_step


@in_loop
async def test_an_address_in_use_is_said_before_anything_starts(tmp_path: Path) -> None:
    async with serving(Recorder(), HUB) as address:
        with pytest.raises(UnavailableError, match="cannot listen"):
            build_server(live_identity(tmp_path, HUB), address, roles={}, authorise=allow)


@pytest.mark.parametrize("address", ["hub", "hub:", ":1", "hub:x", "hub:0", "hub:65536", "u://h:1"])
def test_an_address_without_host_or_port_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="HOST:PORT"):
        Connection(address, NORTH)


# --- who may answer --------------------------------------------------------------------------------


@in_loop
async def test_a_server_of_another_federation_or_ca_or_role_gets_no_call() -> None:
    impostors = {
        "another federation": TestAuthority("others").enrol(Role.COORDINATOR, "hub"),
        "another CA": TestAuthority("palms").enrol(Role.COORDINATOR, "hub"),
        "another role": CA.enrol(Role.PARTICIPANT, "south"),
    }
    for what, tls in impostors.items():
        recorder = Recorder()
        async with serving(recorder, tls) as address, Connection(address, NORTH) as connection:
            with pytest.raises((IdentityError, UnavailableError)):
                await connection.unary(connection.federation.Hello, HelloRequest(), deadline_s=10)
        assert recorder.calls == [], what


def test_a_process_that_could_speak_tls_1_2_opens_nothing() -> None:
    program = "import grpc\nfrom fedpalm.transport import require_tls_1_3\nrequire_tls_1_3()\n"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={"PATH": ""}
    )
    assert done.returncode != 0 and "import fedpalm.transport before grpc" in done.stderr
