"""The smallest federation service that shows what reaches a handler, and what never does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc

from fedpalm.clock import Clock
from fedpalm.pki.bundle import TlsIdentity
from fedpalm.transport.server import (
    SERVICE_ROLES,
    Peer,
    bound_port,
    build_server,
    current_peer,
)
from fedpalm.wire.v1 import federation_pb2 as f
from fedpalm.wire.v1 import operator_pb2 as o
from fedpalm.wire.v1.federation_pb2_grpc import (
    FederationServicer,
    add_FederationServicer_to_server,
)
from fedpalm.wire.v1.operator_pb2_grpc import OperatorServicer, add_OperatorServicer_to_server

HASH = bytes(32)


class Recorder(FederationServicer, OperatorServicer):
    """Notes every call that reached it; replies are set by the test."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.hello: Callable[[f.HelloRequest], f.HelloReply] = lambda _: f.HelloReply()

    def _note(self, name: str, context: Any) -> None:
        self.calls.append((name, str(current_peer(context).identity)))

    async def Hello(self, request: f.HelloRequest, context: Any) -> f.HelloReply:
        self._note("Hello", context)
        return self.hello(request)

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
        return f.Receipt(payload_hash=HASH, payload_bytes=total)


def allow(peer: Peer) -> None:
    """An ``authorise`` that lets everybody pass."""


@asynccontextmanager
async def serving(
    servicer: Recorder,
    tls: TlsIdentity,
    *,
    address: str = "127.0.0.1:0",
    authorise: Callable[[Peer], None] = allow,
    clock: Clock | None = None,
    handlers: tuple[grpc.GenericRpcHandler[Any, Any], ...] = (),
) -> AsyncIterator[str]:
    """A running server with both services; gives its address."""
    server = build_server(tls, address, roles=SERVICE_ROLES, authorise=authorise, clock=clock)
    add_FederationServicer_to_server(servicer, server)
    add_OperatorServicer_to_server(servicer, server)
    if handlers:
        server.add_generic_rpc_handlers(handlers)
    await server.start()
    try:
        yield f"127.0.0.1:{bound_port(server)}"
    finally:
        await server.stop(None)
