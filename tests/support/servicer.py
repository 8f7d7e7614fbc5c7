"""The smallest federation service that shows what reaches a handler, and what never does."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from fedpalm.clock import Clock, SystemClock
from fedpalm.pki.bundle import CA, SIGNING_KEY, TLS_CHAIN, TLS_KEY, TlsIdentity
from fedpalm.pki.files import write_public
from fedpalm.pki.keys import write_private_key
from fedpalm.pki.live import LiveIdentity
from fedpalm.transport.enrolment import build_enrolment_server
from fedpalm.transport.server import SERVICE_ROLES, GatedServer, Peer, build_server, current_peer
from fedpalm.wire.v1 import federation_pb2 as f
from fedpalm.wire.v1 import membership_pb2 as m
from fedpalm.wire.v1 import operator_pb2 as o
from fedpalm.wire.v1.federation_pb2_grpc import (
    FederationServicer,
    add_FederationServicer_to_server,
)
from fedpalm.wire.v1.membership_pb2_grpc import (
    EnrolmentServicer,
    MembershipServicer,
    add_EnrolmentServicer_to_server,
    add_MembershipServicer_to_server,
)
from fedpalm.wire.v1.operator_pb2_grpc import OperatorServicer, add_OperatorServicer_to_server

HASH = bytes(32)


def receipt_of(size: int) -> f.Receipt:
    """A receipt that says how much came, and is signed by nobody."""
    return f.Receipt(receipt=f.SignedStatement(statement=b"%d bytes" % size, signature=bytes(64)))


class Recorder(FederationServicer, MembershipServicer, OperatorServicer):
    """Notes every call that reached it; replies are set by the test."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.hello: Callable[[f.HelloRequest], f.HelloReply] = lambda _: f.HelloReply()

    def _note(self, name: str, context: Any) -> None:
        self.calls.append((name, str(current_peer(context).identity)))

    async def Hello(self, request: f.HelloRequest, context: Any) -> f.HelloReply:
        self._note("Hello", context)
        return self.hello(request)

    async def FetchTrust(self, request: m.FetchTrustRequest, context: Any) -> m.TrustBundle:
        self._note("FetchTrust", context)
        return m.TrustBundle(anchors=[b"der"])

    async def ListSites(self, request: o.ListSitesRequest, context: Any) -> o.ListSitesReply:
        self._note("ListSites", context)
        return o.ListSitesReply(federation_id="palms")

    async def UploadUpdate(
        self, requests: AsyncIterator[f.UploadRequest], context: Any
    ) -> f.Receipt:
        self._note("UploadUpdate", context)
        total = 0
        async for request in requests:
            total += len(request.chunk.data)
        return receipt_of(total)


class Desk(EnrolmentServicer):
    """Takes every newcomer's request and lets it wait; ``enrol`` is set by the test."""

    def __init__(self) -> None:
        self.requests: list[m.EnrolRequest] = []
        self.enrol: Callable[[m.EnrolRequest], m.EnrolReply] = lambda _: m.EnrolReply(
            retry_after_ms=1000
        )

    async def Enrol(self, request: m.EnrolRequest, context: Any) -> m.EnrolReply:
        self.requests.append(request)
        return self.enrol(request)


def allow(peer: Peer) -> None:
    """An ``authorise`` that lets everybody pass."""


def live_identity(folder: Path, tls: TlsIdentity, clock: Clock | None = None) -> LiveIdentity:
    """``tls`` as the files of ``folder``, and what follows them."""
    for name in (TLS_KEY, SIGNING_KEY):
        (folder / name).unlink(missing_ok=True)
    key: Any = load_pem_private_key(tls.key_pem, password=None)
    write_private_key(folder / TLS_KEY, key)
    write_private_key(folder / SIGNING_KEY, tls.signing_key)
    write_public(folder / CA, tls.ca_pem)
    write_public(folder / TLS_CHAIN, tls.chain_pem)
    return LiveIdentity(folder, clock or SystemClock())


@asynccontextmanager
async def running(
    servicer: Recorder,
    identity: LiveIdentity,
    *,
    address: str = "127.0.0.1:0",
    authorise: Callable[[Peer], None] = allow,
    clock: Clock | None = None,
    handlers: tuple[grpc.GenericRpcHandler[Any, Any], ...] = (),
) -> AsyncIterator[GatedServer]:
    """A started server with every service of members."""
    gated = build_server(identity, address, roles=SERVICE_ROLES, authorise=authorise, clock=clock)
    add_FederationServicer_to_server(servicer, gated.server)  # type: ignore[no-untyped-call]
    add_MembershipServicer_to_server(servicer, gated.server)  # type: ignore[no-untyped-call]
    add_OperatorServicer_to_server(servicer, gated.server)  # type: ignore[no-untyped-call]
    if handlers:
        gated.server.add_generic_rpc_handlers(handlers)
    await gated.start()
    try:
        yield gated
    finally:
        await gated.stop(None)


@asynccontextmanager
async def serving(servicer: Recorder, tls: TlsIdentity, **options: Any) -> AsyncIterator[str]:
    """The same with ``tls`` in a folder of its own; gives its address."""
    with tempfile.TemporaryDirectory(prefix="fedpalm-server-") as folder:
        identity = live_identity(Path(folder), tls)
        async with running(servicer, identity, **options) as gated:
            yield f"127.0.0.1:{gated.port}"


@asynccontextmanager
async def enrolling(
    desk: Desk, identity: LiveIdentity, *, address: str = "127.0.0.1:0", clock: Clock | None = None
) -> AsyncIterator[GatedServer]:
    """A started listener for newcomers."""
    listener = build_enrolment_server(identity, address, clock=clock)
    add_EnrolmentServicer_to_server(desk, listener.server)  # type: ignore[no-untyped-call]
    await listener.start()
    try:
        yield listener
    finally:
        await listener.stop(None)
