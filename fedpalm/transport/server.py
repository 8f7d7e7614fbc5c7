"""The listening side: mutual TLS, every call checked, every error mapped."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

import grpc

from ..clock import Clock, SystemClock
from ..errors import UnavailableError
from ..pki.identity import Role
from ..pki.live import LiveIdentity
from . import require_tls_1_3
from .credentials import ServerCredentials
from .gate import Gate, Members
from .limits import (
    MAX_CALLS_PER_CALLER,
    MAX_CONCURRENT_CALLS,
    RECHECK_S,
    SERVER_OPTIONS,
    UNARY_DEADLINE_S,
    Option,
)
from .memory import share_one_arena
from .peer import Peer, current_peer

__all__ = [
    "ENROLMENT_SERVICE",
    "SERVICE_ROLES",
    "VERIFICATION_ROLES",
    "GatedServer",
    "Peer",
    "build_server",
    "current_peer",
    "listener",
]

log = logging.getLogger(__name__)

FEDERATION_SERVICE = "fedpalm.wire.v1.Federation"
MEMBERSHIP_SERVICE = "fedpalm.wire.v1.Membership"
OPERATOR_SERVICE = "fedpalm.wire.v1.Operator"
# On the listener of newcomers alone: no role opens it here.
ENROLMENT_SERVICE = "fedpalm.wire.v1.Enrolment"
SERVICE_ROLES: Mapping[str, frozenset[Role]] = {
    FEDERATION_SERVICE: frozenset({Role.PARTICIPANT}),
    MEMBERSHIP_SERVICE: frozenset({Role.PARTICIPANT, Role.OPERATOR, Role.AUDITOR}),
    OPERATOR_SERVICE: frozenset({Role.OPERATOR}),
}
# On the listener of a site, under the site's own CA: no federation's certificate opens it.
VERIFICATION_SERVICE = "fedpalm.wire.v1.Verification"
VERIFICATION_ROLES: Mapping[str, frozenset[Role]] = {
    VERIFICATION_SERVICE: frozenset({Role.APPLICATION})
}


class GatedServer:
    """A bound listener behind a gate; add servicers to ``server``, then :meth:`start`.

    While it runs, a task looks every second at every open call and at the identity's files.
    """

    def __init__(
        self, server: grpc.aio.Server, port: int, gate: Gate, credentials: ServerCredentials
    ) -> None:
        self.server, self.port = server, port
        self._gate, self._credentials = gate, credentials
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self.server.start()
        self._watch = asyncio.create_task(self._keep_checking())

    async def stop(self, grace: float | None) -> None:
        """Take no more calls; those that are open have ``grace`` seconds. Frees the port."""
        await self.server.stop(grace)
        # Until here: a call that is granted some grace needs its admission still.
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait({self._watch})
            self._watch = None

    async def recheck(self) -> None:
        """Readmit every open call now, and take up new certificate files.

        Returns when the calls that are not admitted any more have their status and are cancelled.
        """
        self._credentials.refresh()
        await self._gate.calls.recheck()

    @property
    def open_calls(self) -> int:
        """Admitted calls whose handlers have not ended."""
        return len(self._gate.calls)

    async def _keep_checking(self) -> None:
        while True:
            await asyncio.sleep(RECHECK_S)
            try:
                await self.recheck()
            except Exception:
                # Whatever it is, calls must still be ended at the next turn.
                log.exception(
                    "looking at the open calls failed; it is done again in %g s", RECHECK_S
                )


def build_server(
    identity: LiveIdentity,
    address: str,
    *,
    roles: Mapping[str, frozenset[Role]],
    authorise: Callable[[Peer], None],
    clock: Clock | None = None,
) -> GatedServer:
    """A bound server for members of the federation. Call it inside the event loop.

    A handler finds the caller with :func:`current_peer`, raises FedPalmError to refuse, and takes and
    gives streams as async iterators (``context.read`` and ``context.write`` would pass by the checks).
    It is cancelled when its caller leaves or is not admitted any more.

    Args:
        identity: followed: new connections are made with the newest certificate and anchors.
        address: ``host:port``; port 0 lets the system choose, see ``port``.
        roles: full service name -> roles that may call it; a service not named is closed to all.
        authorise: raises a FedPalmError for a peer that may not call (not admitted, revoked); asked
            at every call, at every :meth:`GatedServer.recheck`, and every second while it is open.
    Raises:
        KeyFileError, IdentityError: the identity cannot be used now.
        UnavailableError: the address cannot be bound.
        ConfigError: gRPC was loaded before TLS 1.2 was ruled out.
    """
    credentials = ServerCredentials(identity, client_certificates=True)
    federation = credentials.identity.identity.federation
    gate = Gate(
        Members(federation, roles, authorise, clock or SystemClock()),
        calls_per_caller=MAX_CALLS_PER_CALLER,
        unary_deadline_s=UNARY_DEADLINE_S,
    )
    server, port = listener(
        address, credentials, gate, options=SERVER_OPTIONS, concurrent_calls=MAX_CONCURRENT_CALLS
    )
    return GatedServer(server, port, gate, credentials)


def listener(
    address: str,
    credentials: ServerCredentials,
    gate: Gate,
    *,
    options: tuple[Option, ...],
    concurrent_calls: int,
) -> tuple[grpc.aio.Server, int]:
    """A bound gRPC server and its port. Raises UnavailableError, ConfigError as above."""
    require_tls_1_3()
    share_one_arena()
    server = grpc.aio.server(
        interceptors=(gate,), options=options, maximum_concurrent_rpcs=concurrent_calls
    )
    try:
        port = server.add_secure_port(address, credentials.for_grpc)
    except RuntimeError as error:
        raise UnavailableError(
            f"{address}: cannot listen there: {error}",
            next_step="does one run there already? otherwise choose another address",
        ) from error
    return server, port
