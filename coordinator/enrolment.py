"""The listener for newcomers: open while an invitation waits for one, and closed otherwise."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from fedpalm.clock import Clock
from fedpalm.errors import IdentityError, UnavailableError
from fedpalm.pki.bundle import chain_from_pem
from fedpalm.pki.files import write_public
from fedpalm.pki.fingerprint import fingerprint
from fedpalm.pki.live import LiveIdentity
from fedpalm.pki.request import parse_request, verify_request
from fedpalm.pki.trust import TrustBundle
from fedpalm.transport.enrolment import build_enrolment_server
from fedpalm.transport.peer import Context, caller_address
from fedpalm.transport.server import GatedServer
from fedpalm.wire.membership import issued_to_wire
from fedpalm.wire.v1 import membership_pb2 as pb
from fedpalm.wire.v1.membership_pb2_grpc import EnrolmentServicer, add_EnrolmentServicer_to_server

from .invitations import InvitationRefusedError, Invitations

log = logging.getLogger(__name__)

ASK_AGAIN_MS = 2000
STOP_GRACE_S = 5.0
RETRY_S = 5.0
"""An address that cannot be bound is tried again after so long."""


class EnrolmentService(EnrolmentServicer):
    """The service ``fedpalm.wire.v1.Enrolment``.

    Args:
        trust: the trust anchors that a new member is given.
    """

    def __init__(
        self,
        invitations: Invitations,
        federation: str,
        trust: Callable[[], TrustBundle],
        clock: Clock,
    ) -> None:
        self._invitations, self._federation = invitations, federation
        self._trust, self._clock = trust, clock

    async def Enrol(self, request: pb.EnrolRequest, context: Context) -> pb.EnrolReply:
        caller = caller_address(context)
        csr = parse_request(request.request)
        asked = verify_request(csr)
        # What the request says in other bytes is the same request: a PEM file has many spellings.
        pem = csr.public_bytes(Encoding.PEM)
        try:
            if asked.identity.federation != self._federation:
                raise InvitationRefusedError(f"the request is for {asked.identity}")
            row, claimed = self._invitations.claim(
                request.invitation_id, request.token, pem, asked.identity, self._now_ms()
            )
        except InvitationRefusedError as refusal:
            log.warning("enrolment: refused %s: %s", caller, refusal.why)
            raise
        mark = fingerprint(csr)
        if claimed:
            log.info(
                "enrolment: %s claims the invitation of site %s with request %s; it waits for "
                "`fedpalm-coordinator sites approve %s`",
                caller, row.site, mark, row.site,
            )  # fmt: skip
        if row.state == "issued" and row.chain is not None:
            log.info("enrolment: %s fetches the certificate of site %s", caller, row.site)
            chain = chain_from_pem(row.chain, f"invitation {row.invitation_id}")
            return pb.EnrolReply(issued=issued_to_wire(chain, self._trust()))
        if row.state == "rejected":
            log.info("enrolment: %s is told that site %s was rejected", caller, row.site)
            return pb.EnrolReply(rejected=row.reason)
        return pb.EnrolReply(retry_after_ms=ASK_AGAIN_MS)

    def _now_ms(self) -> int:
        return round(self._clock.now() * 1000)


class EnrolmentListener:
    """Opens and closes the newcomers' port.

    Args:
        address: ``host:port``; port 0 is chosen once, on construction, since invitations carry it.
        bound: file that says which address it is.
    """

    def __init__(
        self,
        identity: LiveIdentity,
        address: str,
        bound: Path,
        service: EnrolmentService,
        clock: Clock,
    ) -> None:
        self._identity, self._address, self._bound = identity, address, bound
        self._service, self._clock = service, clock
        self._server: GatedServer | None = None
        self._closing: asyncio.Task[None] | None = None
        self._not_before = 0.0
        if not address.endswith(":0"):
            self._write(address)
        elif not bound.exists():
            self._write(_free_port(address))

    @property
    def is_open(self) -> bool:
        return self._server is not None

    async def follow(self, wanted: bool) -> None:
        """Be open if ``wanted``, and closed if not; an address that is taken is tried again later.

        Does not wait for calls that are under way: whoever holds one open delays nothing else.
        """
        if not wanted:
            self._close()
        elif self._server is None and self._may_open():
            try:
                await self._open()
            except (UnavailableError, IdentityError) as error:
                log.error("enrolment: %s; trying again in %g s", error.what, RETRY_S)
                self._not_before = asyncio.get_running_loop().time() + RETRY_S

    async def close(self) -> None:
        """Let calls under way have their answers, and stop listening."""
        self._close()
        if self._closing is not None:
            await self._closing

    def _close(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            self._closing = asyncio.create_task(server.stop(STOP_GRACE_S))
            log.info("enrolment: closed, no invitation waits for anybody")

    def _may_open(self) -> bool:
        # While the last listener ends, its port is not free.
        ended = self._closing is None or self._closing.done()
        return ended and asyncio.get_running_loop().time() >= self._not_before

    async def _open(self) -> None:
        """Raises UnavailableError, IdentityError."""
        server = self._build()
        add_EnrolmentServicer_to_server(self._service, server.server)  # type: ignore[no-untyped-call]
        await server.start()
        address = f"{self._address.rpartition(':')[0]}:{server.port}"
        self._write(address)
        self._server = server
        log.info("enrolment: open on %s, an invitation waits for a newcomer", address)

    def _build(self) -> GatedServer:
        for address in (known := addresses(self._address, self._bound)):
            try:
                return build_enrolment_server(self._identity, address, clock=self._clock)
            except UnavailableError as error:
                if address == known[-1]:
                    raise
                log.warning(
                    "enrolment: %s; another port is taken, and invitations that name this one "
                    "lead nowhere", error.what
                )  # fmt: skip
        raise AssertionError("there is an address")

    def _write(self, address: str) -> None:
        write_public(self._bound, f"{address}\n".encode())


def addresses(listen: str, bound: Path) -> list[str]:
    """What to bind, best first: port 0 is chosen once, since others keep the address that they were told.

    Args:
        bound: file with the address of the last time.
    """
    host, _, port = listen.rpartition(":")
    if port != "0" or not bound.exists():
        return [listen]
    earlier = bound.read_text(encoding="utf-8").strip().rpartition(":")[2]
    return [f"{host}:{earlier}", listen] if earlier.isdigit() else [listen]


def _free_port(address: str) -> str:
    """``address`` with a port that is free now. Raises UnavailableError: not an address of ours."""
    host = address.rpartition(":")[0]
    try:
        (family, kind, *_), *_ = socket.getaddrinfo(
            host.strip("[]"), 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        with socket.socket(family, kind) as probe:
            probe.bind((host.strip("[]"), 0))
            return f"{host}:{probe.getsockname()[1]}"
    except OSError as error:
        raise UnavailableError(
            f"{address}: cannot listen there: {error}", next_step="choose another address"
        ) from error
