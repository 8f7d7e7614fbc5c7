"""The dialling side: one connection, errors as ours, limits checked."""

from __future__ import annotations

import asyncio
import ipaddress
from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc
from cryptography import x509
from google.protobuf.message import Message

from ..errors import ConfigError, DeadlineError
from ..pki.bundle import TlsIdentity, pem_of
from ..pki.identity import coordinator_dns_name
from ..wire.limits import parse_message
from ..wire.v1.federation_pb2_grpc import FederationStub
from ..wire.v1.membership_pb2_grpc import EnrolmentStub, MembershipStub
from ..wire.v1.operator_pb2_grpc import OperatorStub
from . import require_tls_1_3
from .ending import Ending
from .limits import client_options
from .status import error_of

_EOF = grpc.aio.EOF  # type: ignore[attr-defined]  # not in grpc-stubs


@dataclass(frozen=True)
class Method:
    """A call of a stub: how to make it, and how to read its replies."""

    call: Callable[..., Any]
    parse: Callable[[bytes], Message]


class Dialled(ABC):
    """A channel to a server at ``address`` (``host:port``), as an async context manager.

    It connects at the first call, and again at the first call after it was broken. Whatever the
    address, the certificate there must lead to a pinned anchor and carry ``server_name``, the DNS name
    that the CA gives to this server alone.
    """

    def __init__(
        self, address: str, server_name: str, credentials: grpc.ChannelCredentials
    ) -> None:
        require_tls_1_3()
        self.address = _checked_address(address)
        self._server_name, self._credentials = server_name, credentials
        self._channel: grpc.aio.Channel | None = None
        self._if_absent = "start the coordinator (fedpalm-coordinator serve), or check the address"

    async def __aenter__(self) -> Self:
        self._channel = grpc.aio.secure_channel(
            self.address,
            self._credentials,
            options=client_options(self._server_name, proxy=not _is_loopback(self.address)),
        )
        self._make_stubs(MethodFactory(self._channel))
        return self

    @abstractmethod
    def _make_stubs(self, methods: MethodFactory) -> None:
        """Set the stubs, which last as long as the channel."""

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._channel is not None:
            await self._channel.close(None)
            self._channel = None

    async def unary(self, method: Method, request: Message, *, deadline_s: float) -> Any:
        """One request, one reply."""
        try:
            wire_bytes = await method.call(request, timeout=deadline_s, wait_for_ready=False)
        except grpc.aio.AioRpcError as error:
            raise error_of(error, self.address, self._if_absent) from error
        return parse_message(method.parse, wire_bytes)

    async def upload(
        self, method: Method, requests: AsyncIterable[Message], *, deadline_s: float
    ) -> Any:
        """A header, then chunks as fast as they are taken; one reply, maybe before the end.

        After the first request it waits until the server asks for the second, so that payloads
        which have to wait for their turn wait here and not in the server's memory.
        """
        call = method.call(timeout=deadline_s, wait_for_ready=False)
        ending = Ending(call)
        try:
            try:
                first = True
                async for request in requests:
                    if not first:
                        await call.initial_metadata()
                    await call.write(request)
                    first = False
                await call.done_writing()
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                pass  # The call is over already; awaiting it says how.
            wire_bytes = await call
        except grpc.aio.AioRpcError as error:
            raise error_of(await ending.of(error), self.address, self._if_absent) from error
        finally:
            call.cancel()
        return parse_message(method.parse, wire_bytes)


class Connection(Dialled):
    """A member's connection to the coordinator of ``tls.identity.federation``.

    ``federation``, ``membership`` and ``operator`` are stubs, whose methods go into :meth:`unary`,
    :meth:`stream` and :meth:`upload`. All three raise FedPalmError: what the coordinator raised, or
    UnavailableError, DeadlineError, IdentityError, VersionMismatchError for what gRPC reports, or
    ProtocolError for a reply beyond its limits. Nothing is repeated here.
    """

    federation: Any
    membership: Any
    operator: Any

    def __init__(self, address: str, tls: TlsIdentity) -> None:
        credentials = grpc.ssl_channel_credentials(tls.ca_pem, tls.key_pem, tls.chain_pem)
        super().__init__(address, coordinator_dns_name(tls.identity.federation), credentials)

    def _make_stubs(self, methods: MethodFactory) -> None:
        self.federation = FederationStub(methods)  # type: ignore[no-untyped-call]
        self.membership = MembershipStub(methods)  # type: ignore[no-untyped-call]
        self.operator = OperatorStub(methods)  # type: ignore[no-untyped-call]

    async def stream(
        self, method: Method, request: Message, *, idle_s: float
    ) -> AsyncIterator[Any]:
        """One request, replies as they come; DeadlineError after ``idle_s`` without one.

        Leaving early ends the call: iterate inside ``contextlib.aclosing`` to do so at once.
        """
        call = method.call(request, wait_for_ready=False)
        try:
            while True:
                async with asyncio.timeout(idle_s):
                    wire_bytes = await call.read()
                if wire_bytes is _EOF:
                    return
                yield parse_message(method.parse, wire_bytes)
        except TimeoutError:
            raise DeadlineError(
                f"{self.address}: nothing came for {idle_s:g} s",
                next_step="try again; if it stays so, look at the network",
            ) from None
        except grpc.aio.AioRpcError as error:
            raise error_of(error, self.address, self._if_absent) from error
        finally:
            call.cancel()


class EnrolmentConnection(Dialled):
    """A newcomer's connection to the enrolment listener of ``federation``; it proves nothing of itself.

    Args:
        anchors: of the invitation: nobody else is told the token.

    ``enrolment`` is the stub, whose method goes into :meth:`unary`.
    """

    enrolment: Any

    def __init__(self, address: str, federation: str, anchors: Sequence[x509.Certificate]) -> None:
        super().__init__(
            address,
            coordinator_dns_name(federation),
            grpc.ssl_channel_credentials(pem_of(anchors)),
        )
        self._if_absent = (
            "the listener is there only while an invitation is open: check the address in it, or ask "
            "the coordinator's operator for another"
        )

    def _make_stubs(self, methods: MethodFactory) -> None:
        self.enrolment = EnrolmentStub(methods)  # type: ignore[no-untyped-call]


class MethodFactory:
    """Stands in for the channel when a stub is made.

    The generated parser is kept aside and replies arrive as bytes: gRPC would turn a reply that does
    not parse into ``None``.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    def __getattr__(self, kind: str) -> Callable[..., Method]:
        make = getattr(self._channel, kind)

        def method(
            path: str,
            request_serializer: Callable[[Message], bytes],
            response_deserializer: Callable[[bytes], Message],
            **options: Any,
        ) -> Method:
            call = make(path, request_serializer, None, **options)
            return Method(call, response_deserializer)

        return method


def _checked_address(address: str) -> str:
    host, _, port = address.rpartition(":")
    if not host or "/" in address or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(
            f"{address!r} is not HOST:PORT", next_step="for example coordinator.example.org:8443"
        )
    return address


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
