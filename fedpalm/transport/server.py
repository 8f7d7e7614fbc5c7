"""The coordinator's listening side: mutual TLS, every call checked, every error mapped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from weakref import WeakKeyDictionary

import grpc

from ..clock import Clock, SystemClock
from ..errors import UnavailableError
from ..pki.bundle import TlsIdentity
from ..pki.identity import Role
from . import require_tls_1_3
from .gate import Gate
from .limits import MAX_CONCURRENT_CALLS, SERVER_OPTIONS
from .memory import share_one_arena
from .peer import Peer, current_peer

__all__ = ["SERVICE_ROLES", "Peer", "bound_port", "build_server", "current_peer"]

FEDERATION_SERVICE = "fedpalm.wire.v1.Federation"
OPERATOR_SERVICE = "fedpalm.wire.v1.Operator"
SERVICE_ROLES: Mapping[str, frozenset[Role]] = {
    FEDERATION_SERVICE: frozenset({Role.PARTICIPANT}),
    OPERATOR_SERVICE: frozenset({Role.OPERATOR}),
}

_ports: WeakKeyDictionary[grpc.aio.Server, int] = WeakKeyDictionary()


def build_server(
    tls: TlsIdentity,
    address: str,
    *,
    roles: Mapping[str, frozenset[Role]],
    authorise: Callable[[Peer], None],
    clock: Clock | None = None,
) -> grpc.aio.Server:
    """A bound server; add servicers, then ``await server.start()``. Call it inside the event loop.

    A handler finds the caller with :func:`current_peer`, raises FedPalmError to refuse, and takes and
    gives streams as async iterators (``context.read`` and ``context.write`` would pass by the checks).

    Args:
        address: ``host:port``; port 0 lets the system choose, see :func:`bound_port`.
        roles: full service name -> roles that may call it; a service not named is closed to all.
        authorise: raises a FedPalmError for a peer that may not call (not admitted, revoked); asked
            at every call, and every second on a stream with messages.
    Raises:
        UnavailableError: the address cannot be bound.
        ConfigError: gRPC was loaded before TLS 1.2 was ruled out.
    """
    require_tls_1_3()
    share_one_arena()
    gate = Gate(tls.identity.federation, roles, authorise, clock or SystemClock())
    server = grpc.aio.server(
        interceptors=(gate,),
        options=SERVER_OPTIONS,
        maximum_concurrent_rpcs=MAX_CONCURRENT_CALLS,
    )
    credentials = grpc.ssl_server_credentials(
        [(tls.key_pem, tls.chain_pem)], root_certificates=tls.ca_pem, require_client_auth=True
    )
    try:
        port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise UnavailableError(
            f"{address}: cannot listen there: {error}",
            next_step="is a coordinator running already? otherwise choose another address",
        ) from error
    _ports[server] = port
    return server


def bound_port(server: grpc.aio.Server) -> int:
    """The port that :func:`build_server` bound."""
    return _ports[server]
