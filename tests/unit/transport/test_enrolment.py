"""The listener of newcomers: no certificate, one service, a slow pace, and nothing in the log."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

from fedpalm.clock import FakeClock
from fedpalm.errors import (
    FedPalmError,
    IdentityError,
    InvitationError,
    MessageTooLargeError,
    ProtocolError,
    ResourceError,
    UnavailableError,
    WrongRoleError,
)
from fedpalm.pki.identity import Role
from fedpalm.transport import enrolment
from fedpalm.transport.channel import Connection, EnrolmentConnection, Method
from fedpalm.transport.rates import IN_ALL, PER_ADDRESS
from fedpalm.wire.v1.federation_pb2 import HelloRequest
from fedpalm.wire.v1.membership_pb2 import (
    EnrolReply,
    EnrolRequest,
    FetchTrustRequest,
    TrustBundle,
)
from fedpalm.wire.v1.membership_pb2_grpc import add_EnrolmentServicer_to_server
from fedpalm.wire.v1.operator_pb2 import ListSitesRequest
from tests.support.aio import in_loop
from tests.support.pki import TestAuthority
from tests.support.servicer import Desk, Recorder, enrolling, live_identity, running, serving

AUTHORITY = TestAuthority("palms")
HUB = AUTHORITY.enrol(Role.COORDINATOR, "hub")
ANCHORS = AUTHORITY.authority.anchors
TOKEN = b"\xabtoken-that-nobody-may-ever-see"[:32].ljust(32, b"!")


def request(token: bytes = TOKEN, pem: bytes = b"a certificate request") -> EnrolRequest:
    return EnrolRequest(invitation_id="i-1", token=token, request=pem)


class Office:
    """A listener for newcomers, and connections to it."""

    def __init__(self, folder: Path, clock: FakeClock | None = None) -> None:
        self.desk, self.clock = Desk(), clock or FakeClock()
        self._identity = live_identity(folder, HUB)

    async def __aenter__(self) -> Office:
        self._stack = AsyncExitStack()
        self.listener = await self._stack.enter_async_context(
            enrolling(self.desk, self._identity, clock=self.clock)
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.listener.port}"

    async def dial(self, anchors: Any = ANCHORS, federation: str = "palms") -> EnrolmentConnection:
        return await self._stack.enter_async_context(
            EnrolmentConnection(self.address, federation, anchors)
        )

    async def enrol(self, sent: EnrolRequest | None = None) -> EnrolReply:
        return await enrol(await self.dial(), sent)


async def enrol(connection: EnrolmentConnection, sent: EnrolRequest | None = None) -> EnrolReply:
    reply: EnrolReply = await connection.unary(
        connection.enrolment.Enrol, sent or request(), deadline_s=10
    )
    return reply


# --- who gets through ------------------------------------------------------------------------------


@in_loop
async def _answered(folder: Path) -> None:
    async with Office(folder) as office:
        assert await office.enrol() == EnrolReply(retry_after_ms=1000)
        assert office.desk.requests == [request()]


def test_a_newcomer_without_a_certificate_is_answered(tmp_path: Path) -> None:
    _answered(tmp_path)


@in_loop
async def _impostor(folder: Path) -> None:
    async with Office(folder) as office:
        for anchors, federation in (
            (TestAuthority("palms").authority.anchors, "palms"),
            (ANCHORS, "others"),
        ):
            with pytest.raises(IdentityError):
                await enrol(await office.dial(anchors, federation))
        assert office.desk.requests == []


def test_a_token_goes_only_to_the_coordinator_of_the_invitation(tmp_path: Path) -> None:
    _impostor(tmp_path)


@in_loop
async def _site_as_coordinator(folder: Path) -> None:
    desk, site = Desk(), AUTHORITY.enrol(Role.PARTICIPANT, "north")
    async with (
        enrolling(desk, live_identity(folder, site)) as listener,
        EnrolmentConnection(f"127.0.0.1:{listener.port}", "palms", ANCHORS) as connection,
    ):
        with pytest.raises(IdentityError, match="the certificate there"):
            await enrol(connection)
    assert desk.requests == []


def test_a_site_cannot_pose_as_the_coordinator(tmp_path: Path) -> None:
    _site_as_coordinator(tmp_path)


@in_loop
async def _other_services(folder: Path) -> None:
    async with Office(folder) as office:
        north = AUTHORITY.enrol(Role.PARTICIPANT, "north")
        async with Connection(office.address, north) as connection:
            # No service of members is there at all.
            with pytest.raises(FedPalmError):
                await connection.unary(connection.federation.Hello, HelloRequest(), deadline_s=10)
            with pytest.raises(FedPalmError):
                await connection.unary(
                    connection.operator.ListSites, ListSitesRequest(), deadline_s=10
                )

    # And the service of newcomers is closed to members on their own listener.
    desk = Desk()
    async with running(Recorder(), live_identity(folder, HUB)) as gated:
        add_EnrolmentServicer_to_server(desk, _Generic(gated.server))  # type: ignore[no-untyped-call]
        async with Connection(f"127.0.0.1:{gated.port}", north) as connection:
            channel = connection._channel
            assert channel is not None
            call = channel.unary_unary("/fedpalm.wire.v1.Enrolment/Enrol", None, None)
            method = Method(
                lambda r, **options: call(r.SerializeToString(), **options), EnrolReply.FromString
            )
            with pytest.raises(WrongRoleError):
                await connection.unary(method, request(), deadline_s=10)
    assert desk.requests == []


class _Generic:
    """A running server takes generic handlers only."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self.add_generic_rpc_handlers = server.add_generic_rpc_handlers

    def add_registered_method_handlers(self, *_: object) -> None:
        """The generic one has them all."""


def test_each_listener_has_its_own_services(tmp_path: Path) -> None:
    _other_services(tmp_path)


@in_loop
async def _membership(folder: Path) -> None:
    for role in (Role.PARTICIPANT, Role.OPERATOR, Role.AUDITOR):
        tls = AUTHORITY.enrol(role, "somebody")
        async with serving(Recorder(), HUB) as address, Connection(address, tls) as connection:
            trust = await connection.unary(
                connection.membership.FetchTrust, FetchTrustRequest(), deadline_s=10
            )
            assert trust == TrustBundle(anchors=[b"der"])


def test_every_role_of_a_member_may_ask_whom_to_trust(tmp_path: Path) -> None:
    _membership(tmp_path)


@in_loop
async def _channel_is_checked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(auth_context: Any) -> None:
        assert auth_context["ssl_tls_version"] == [b"TLSv1.3"]
        assert auth_context["ssl_negotiated_key_exchange_group"] == [b"X25519MLKEM768"]
        raise IdentityError("the channel's ssl_negotiated_key_exchange_group is X25519")

    monkeypatch.setattr(enrolment, "check_channel", refuse)
    async with Office(folder) as office:
        with pytest.raises(IdentityError, match="X25519"):
            await office.enrol()
        assert office.desk.requests == []


def test_the_channel_is_checked_at_every_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _channel_is_checked(tmp_path, monkeypatch)


# --- how much and how often ------------------------------------------------------------------------


@in_loop
async def _limits(folder: Path) -> None:
    async with Office(folder) as office:
        with pytest.raises(MessageTooLargeError, match="request"):
            await office.enrol(request(pem=bytes(16385)))
        with pytest.raises(ProtocolError, match="token"):
            await office.enrol(request(token=b"short"))
        with pytest.raises(MessageTooLargeError):
            await office.enrol(request(pem=bytes(64 * 1024)))
        assert office.desk.requests == []


def test_a_request_beyond_its_limits_reaches_nobody(tmp_path: Path) -> None:
    _limits(tmp_path)


@in_loop
async def _paced(folder: Path) -> None:
    clock = FakeClock()
    async with Office(folder, clock) as office:
        for _ in range(PER_ADDRESS.burst):
            await office.enrol()
        with pytest.raises(ResourceError) as caught:
            await office.enrol()
        assert caught.value.next_step == "try again in 2 s"
        assert len(office.desk.requests) == PER_ADDRESS.burst
        clock.advance(2)
        await office.enrol()
        with pytest.raises(ResourceError):
            await office.enrol()


def test_an_address_is_held_to_its_rate_over_all_its_connections(tmp_path: Path) -> None:
    _paced(tmp_path)


@in_loop
async def _all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = iter(range(10_000))
    monkeypatch.setattr(enrolment, "caller_address", lambda _: f"10.0.{next(numbers) % 250}.1")
    clock = FakeClock()
    async with Office(folder, clock) as office:
        connection = await office.dial()
        for _ in range(IN_ALL.burst):
            await enrol(connection)
        with pytest.raises(ResourceError):
            await enrol(connection)
        clock.advance(1)
        await enrol(connection)


def test_all_addresses_together_are_held_to_a_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _all(tmp_path, monkeypatch)


def test_calls_that_stay_open_end_in_time_and_leave_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enrolment, "ENROLMENT_DEADLINE_S", 0.5)

    @in_loop
    async def run() -> None:
        async with Office(tmp_path) as office:
            open_calls = []
            for _ in range(4):
                channel = (await office.dial())._channel
                assert channel is not None
                # The headers of a call, and never its request.
                call = channel.stream_unary("/fedpalm.wire.v1.Enrolment/Enrol", None, None)()
                open_calls.append(call)
            while office.listener.open_calls < 4:
                await asyncio.sleep(0.01)
            with pytest.raises(ResourceError, match="calls are open"):
                await office.enrol()
            for call in open_calls:
                assert (await call.code()).name == "DEADLINE_EXCEEDED"
            await office.enrol()

    run()


@in_loop
async def _silent(folder: Path) -> None:
    async with Office(folder) as office:
        port = office.listener.port
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(50)]
        await office.enrol()
        for _, writer in silent:
            writer.close()


def test_connections_that_say_nothing_disturb_nobody(tmp_path: Path) -> None:
    _silent(tmp_path)


# --- errors and the log ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "failure",
    [
        InvitationError("this invitation cannot be used", next_step="ask for another"),
        ValueError(TOKEN, TOKEN.hex(), str(request())),
    ],
    ids=["refusal", "bug"],
)
def test_nothing_of_a_request_is_logged(
    failure: Exception, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: EnrolRequest) -> EnrolReply:
        raise failure

    @in_loop
    async def run() -> None:
        async with Office(tmp_path) as office:
            office.desk.enrol = fail
            with pytest.raises(FedPalmError) as caught:
                await office.enrol()
            if isinstance(failure, FedPalmError):
                assert type(caught.value) is InvitationError
                assert caught.value.next_step == "ask for another"
            else:
                assert "incident" in caught.value.what

    caplog.set_level(logging.DEBUG)
    run()
    logged = caplog.text + "".join(str(record.__dict__) for record in caplog.records)
    assert "/fedpalm.wire.v1.Enrolment/Enrol" in logged and "127.0.0.1" in logged
    for secret in (TOKEN.decode("latin-1"), TOKEN.hex(), "token-that", "certificate request"):
        assert secret not in logged


# --- a listener that comes and goes ----------------------------------------------------------------


@in_loop
async def _reopened(folder: Path) -> None:
    identity = live_identity(folder, HUB)
    async with enrolling(Desk(), identity) as listener:
        address = f"127.0.0.1:{listener.port}"
        async with EnrolmentConnection(address, "palms", ANCHORS) as connection:
            await enrol(connection)
    for _ in range(3):
        async with EnrolmentConnection(address, "palms", ANCHORS) as connection:
            with pytest.raises(UnavailableError, match="nobody listens") as caught:
                await enrol(connection)
            assert "invitation" in caught.value.next_step
        async with (
            enrolling(Desk(), identity, address=address),
            EnrolmentConnection(address, "palms", ANCHORS) as connection,
        ):
            await enrol(connection)


def test_the_port_is_closed_and_opened_again(tmp_path: Path) -> None:
    _reopened(tmp_path)


@in_loop
async def _renewed(folder: Path) -> None:
    anew = TestAuthority("palms")
    async with enrolling(Desk(), live_identity(folder, HUB)) as listener:
        live_identity(folder, anew.enrol(Role.COORDINATOR, "hub"))
        await listener.recheck()
        address = f"127.0.0.1:{listener.port}"
        async with EnrolmentConnection(address, "palms", anew.authority.anchors) as connection:
            await enrol(connection)


def test_a_renewed_certificate_is_shown_to_newcomers(tmp_path: Path) -> None:
    _renewed(tmp_path)
