"""The coordinator's listening side: mutual TLS, every call checked, every error mapped."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import grpc

from ..pki.bundle import TlsIdentity
from ..pki.identity import Role
from .peer import Peer, current_peer

__all__ = ["SERVICE_ROLES", "Peer", "bound_port", "build_server", "current_peer"]

FEDERATION_SERVICE = "fedpalm.wire.v1.Federation"
OPERATOR_SERVICE = "fedpalm.wire.v1.Operator"
SERVICE_ROLES: Mapping[str, frozenset[Role]] = {
    FEDERATION_SERVICE: frozenset({Role.PARTICIPANT}),
    OPERATOR_SERVICE: frozenset({Role.OPERATOR}),
}


def build_server(
    tls: TlsIdentity,
    address: str,
    *,
    roles: Mapping[str, frozenset[Role]],
    authorise: Callable[[Peer], None],
) -> grpc.aio.Server:
    """A bound server; add servicers, then ``await server.start()``. Call it inside the event loop.

    Args:
        address: ``host:port``; port 0 lets the system choose, see :func:`bound_port`.
        roles: full service name -> roles that may call it; a service not named is closed to all.
        authorise: raises a FedPalmError for a peer that may not call (not admitted, revoked).
    Raises:
        UnavailableError: the address cannot be bound.
    """
    raise NotImplementedError


def bound_port(server: grpc.aio.Server) -> int:
    """The port that :func:`build_server` bound."""
    raise NotImplementedError
