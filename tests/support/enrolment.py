"""An operator and an enrolment listener in memory, and a reporter that keeps what it is told."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from cryptography import x509

from fedpalm.errors import InvitationError, UnavailableError
from fedpalm.pki.authority import Authority
from fedpalm.pki.identity import Identity, Role
from fedpalm.pki.invitation import Invitation
from fedpalm.pki.request import parse_request
from fedpalm.wire.limits import check_limits
from fedpalm.wire.membership import issued_to_wire
from fedpalm.wire.v1 import membership_pb2 as wire

TOKEN = bytes(range(32))


class EnrolmentOperator:
    """Answers enrolment calls; each one takes the next answer of ``script``.

    ``away``, ``unknown`` (invitation), ``wait``, ``issue``, or else the words of a rejection.
    """

    Enrol = "Enrol"

    def __init__(self, authority: Authority, *script: str, site: str = "north") -> None:
        self.authority, self.script, self.site = authority, deque(script), site
        self.requests: list[bytes] = []

    @asynccontextmanager
    async def connect(self, *where: object) -> AsyncIterator[EnrolmentOperator]:
        yield self

    @property
    def enrolment(self) -> EnrolmentOperator:
        return self

    async def unary(self, method: Any, request: wire.EnrolRequest, *, deadline_s: float) -> Any:
        assert method == "Enrol"
        check_limits(request)
        assert request.token == TOKEN
        self.requests.append(request.request)
        answer = self.script.popleft()
        if answer == "away":
            raise UnavailableError("nobody listens there")
        if answer == "unknown":
            raise InvitationError("the invitation cannot be used")
        if answer == "wait":
            return wire.EnrolReply(retry_after_ms=1)
        if answer == "issue":
            chain = issue(self.authority, request.request, self.site)
            return wire.EnrolReply(issued=issued_to_wire(chain, self.authority.trust))
        return wire.EnrolReply(rejected=answer)


class Lines:
    """A reporter."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)

    def working(self, text: str) -> None:
        self.lines.append(text)

    def close(self) -> None:
        """Nothing is held."""


def issue(authority: Authority, request: bytes, name: str) -> tuple[x509.Certificate, ...]:
    """What the operator's approval makes of a PEM request: the chain of a participant."""
    identity = Identity(authority.federation, Role.PARTICIPANT, name)
    leaf = authority.issue(parse_request(request), identity, now=time.time())
    return authority.chain(leaf)


def invitation_of(authority: Authority, site: str, now: float) -> Invitation:
    """An invitation for an hour."""
    return Invitation(
        federation=authority.federation,
        site=site,
        invitation_id="ab" * 16,
        token=TOKEN,
        enrol_address="127.0.0.1:7444",
        coordinator_address="127.0.0.1:7443",
        anchors=authority.anchors,
        expires_ms=round((now + 3600) * 1000),
    )
