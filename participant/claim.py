"""An invitation claimed at the coordinator: the request is brought, the decision waited for."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.message import Message

from fedpalm.clock import Clock
from fedpalm.errors import (
    DeadlineError,
    InvitationError,
    RefusedError,
    ResourceError,
    UnavailableError,
)
from fedpalm.pki.invitation import Invitation
from fedpalm.pki.trust import TrustBundle
from fedpalm.text import one_line
from fedpalm.transport.backoff import Backoff
from fedpalm.wire.membership import issued_from_wire
from fedpalm.wire.v1 import membership_pb2 as wire

from .reporter import Reporter

CALL_DEADLINE_S = 20.0
BACKOFF_BASE_S, BACKOFF_CAP_S = 1.0, 30.0
MIN_PAUSE_S, MAX_PAUSE_S = 0.5, 30.0

Chain = tuple[x509.Certificate, ...]


class EnrolmentLike(Protocol):
    """What is used of :class:`fedpalm.transport.channel.EnrolmentConnection`."""

    enrolment: Any

    async def unary(self, method: Any, request: Message, *, deadline_s: float) -> Any: ...


async def claim(
    invitation: Invitation,
    request: x509.CertificateSigningRequest,
    connect: Callable[[], AbstractAsyncContextManager[EnrolmentLike]],
    report: Reporter,
    clock: Clock,
    *,
    wait: bool,
    rng: random.Random | None = None,
    backoff_base_s: float = BACKOFF_BASE_S,
) -> tuple[Chain, TrustBundle] | None:
    """Bring the request with the invitation, and ask until the operator has decided.

    A coordinator that is away or busy is tried again, ever more patiently, until the invitation
    expires.

    Args:
        wait: False: None as soon as the coordinator has the request and the operator has not decided.
    Raises:
        RefusedError: the operator said no, with their words.
        InvitationError: the coordinator does not take the invitation, or it expired meanwhile.
        IdentityError: whoever answers is not this federation's coordinator.
    """
    backoff = Backoff(
        backoff_base_s, max(BACKOFF_CAP_S, backoff_base_s), rng or random.SystemRandom()
    )
    message = wire.EnrolRequest(
        invitation_id=invitation.invitation_id,
        token=invitation.token,
        request=request.public_bytes(Encoding.PEM),
    )
    told = False
    while True:
        try:
            reply = await _enrol(connect, message)
        except (UnavailableError, DeadlineError, ResourceError) as error:
            _check_time_left(invitation, clock)
            pause_s = backoff.next_delay_s()
            report.line(f"{error.what}; trying again in {pause_s:.1f} s")
            report.working("waiting for the coordinator")
            await asyncio.sleep(pause_s)
            continue
        backoff.reset()
        match reply.WhichOneof("state"):
            case "issued":
                return issued_from_wire(reply.issued)
            case "rejected":
                said = one_line(reply.rejected)
                raise RefusedError(
                    f"the operator did not admit {invitation.site}" + (f": {said}" if said else ""),
                    safe="no certificate was issued; the keys stay here and are worth nothing alone",
                    next_step="talk to the operator; another try needs a new invitation",
                )
            case _:
                if not wait:
                    return None
                if not told:
                    report.line("the coordinator has the request; the operator decides")
                    told = True
                report.working("waiting for the operator to approve the fingerprint")
                await asyncio.sleep(min(max(reply.retry_after_ms / 1000, MIN_PAUSE_S), MAX_PAUSE_S))


async def _enrol(
    connect: Callable[[], AbstractAsyncContextManager[EnrolmentLike]], message: wire.EnrolRequest
) -> wire.EnrolReply:
    async with connect() as connection:
        reply: wire.EnrolReply = await connection.unary(
            connection.enrolment.Enrol, message, deadline_s=CALL_DEADLINE_S
        )
    return reply


def _check_time_left(invitation: Invitation, clock: Clock) -> None:
    if clock.now() * 1000 >= invitation.expires_ms:
        raise InvitationError(
            f"the invitation of {invitation.site} has expired, and the coordinator cannot be reached",
            safe="keys and request are kept here",
            next_step="run join once more when it can; it may have been approved in time. If not, ask "
            "the operator for a new invitation",
        )
