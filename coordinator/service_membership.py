"""What a member may ask for itself: its next certificate, and whom the federation trusts now."""

from __future__ import annotations

import logging

from cryptography import x509

from fedpalm.errors import RefusedError, SenderMismatchError
from fedpalm.pki.fingerprint import fingerprint
from fedpalm.pki.request import parse_request, signing_key_of, verify_request
from fedpalm.transport.peer import Context, current_peer
from fedpalm.wire.membership import issued_to_wire, trust_to_wire
from fedpalm.wire.v1 import membership_pb2 as pb
from fedpalm.wire.v1.membership_pb2_grpc import MembershipServicer

from .state import Coordinator

log = logging.getLogger(__name__)


class MembershipService(MembershipServicer):
    """The service ``fedpalm.wire.v1.Membership``."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._c = coordinator

    async def Renew(self, request: pb.RenewRequest, context: Context) -> pb.IssuedCertificate:
        """Asked again after a lost reply it issues again, up to a number a day."""
        peer, present = current_peer(context), _leaf(context)
        csr = parse_request(request.request)
        asked = verify_request(csr)
        if asked.identity != peer.identity:
            raise SenderMismatchError(
                f"{peer.identity} asks for a certificate of {asked.identity}",
                safe="nothing was issued",
            )
        if asked.signing_key != signing_key_of(present):
            raise RefusedError(
                f"{peer.identity}: a renewal keeps the signing key",
                safe="nothing was issued",
                next_step="for another signing key, ask the operator for an invitation",
            )
        if asked.tls_key == present.public_key():
            raise RefusedError(
                f"{peer.identity}: a renewal is for a fresh TLS key, and this one is in use",
                safe="nothing was issued",
                next_step="fedpalm-participant renew makes one",
            )
        now = self._c.clock.now()
        registry, authority = self._c.registry, self._c.issuing.authority()
        registry.require_renewal(
            peer.identity, asked.signing_key.public_bytes_raw(), self._c.now_ms()
        )
        leaf = authority.issue(csr, peer.identity, now=now)
        registry.renewed(leaf, round(now * 1000))
        log.info(
            "renewed %s: certificate %s until %s",
            peer.identity, fingerprint(leaf), leaf.not_valid_after_utc.isoformat(),
        )  # fmt: skip
        return issued_to_wire(authority.chain(leaf), self._c.issuing.trust())

    async def FetchTrust(self, request: pb.FetchTrustRequest, context: Context) -> pb.TrustBundle:
        return trust_to_wire(self._c.issuing.trust())


def _leaf(context: Context) -> x509.Certificate:
    """The caller's certificate, which TLS has verified and ``current_peer`` has found alone."""
    (pem,) = context.auth_context()["x509_pem_cert"]
    return x509.load_pem_x509_certificate(pem)
