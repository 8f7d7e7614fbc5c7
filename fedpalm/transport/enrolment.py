"""The listener of newcomers: they have no certificate yet, and are held to a slow pace.

Whoever can reach the port can call. So a call is small, few are open at once, each address and all of
them together have a rate, and nothing that came in a request is ever logged: it holds a token.
"""

from __future__ import annotations

from ..clock import Clock, SystemClock
from ..errors import WrongRoleError
from ..pki.live import LiveIdentity
from .calls import Caller
from .credentials import ServerCredentials
from .gate import Gate
from .limits import (
    ENROLMENT_CALLS_PER_CALLER,
    ENROLMENT_CONCURRENT_CALLS,
    ENROLMENT_DEADLINE_S,
    ENROLMENT_OPTIONS,
)
from .peer import Context, caller_address, check_channel
from .rates import CallRates
from .server import ENROLMENT_SERVICE, GatedServer, listener


class Newcomers:
    """Whoever keeps to the rates, on a channel that is what it must be, for the one service."""

    confidential = True

    def __init__(self, clock: Clock) -> None:
        self._rates = CallRates(clock)

    def admit(self, service: str, context: Context) -> Caller:
        address = caller_address(context)
        self._rates.charge(address)
        check_channel(context.auth_context())
        if service != ENROLMENT_SERVICE:
            raise WrongRoleError(f"nobody may call {service} here", safe="nothing was changed")
        return Caller(f"a newcomer at {address}", _always)


def _always() -> None:
    """A newcomer has nothing that could be taken away while its call is open."""


def build_enrolment_server(
    identity: LiveIdentity, address: str, *, clock: Clock | None = None
) -> GatedServer:
    """A bound server for the Enrolment service alone. Call it inside the event loop.

    Args:
        identity: the coordinator's; newcomers know it by the anchors in their invitation.
        address: ``host:port``; port 0 lets the system choose, see ``port``.
        clock: of the rates.
    Raises:
        KeyFileError, IdentityError: the identity cannot be used now.
        UnavailableError: the address cannot be bound.
        ConfigError: gRPC was loaded before TLS 1.2 was ruled out.
    """
    credentials = ServerCredentials(identity, client_certificates=False)
    gate = Gate(
        Newcomers(clock or SystemClock()),
        calls_per_caller=ENROLMENT_CALLS_PER_CALLER,
        unary_deadline_s=ENROLMENT_DEADLINE_S,
    )
    server, port = listener(
        address,
        credentials,
        gate,
        options=ENROLMENT_OPTIONS,
        concurrent_calls=ENROLMENT_CONCURRENT_CALLS,
    )
    return GatedServer(server, port, gate, credentials)
