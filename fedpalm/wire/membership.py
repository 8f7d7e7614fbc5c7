"""Certificates and trust anchors between their two forms: the core's and the wire's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ..errors import ProtocolError
from ..pki.identity import PARSE_ERRORS
from ..pki.trust import TrustBundle
from .v1 import membership_pb2 as wire


def trust_to_wire(trust: TrustBundle) -> wire.TrustBundle:
    return wire.TrustBundle(anchors=_der(trust.anchors), handovers=_der(trust.handovers))


def trust_from_wire(message: wire.TrustBundle) -> TrustBundle:
    """Inverse of :func:`trust_to_wire`; checks form, not truth. Raises ProtocolError."""
    return TrustBundle(_parsed(message.anchors), _parsed(message.handovers))


def issued_to_wire(chain: Sequence[x509.Certificate], trust: TrustBundle) -> wire.IssuedCertificate:
    """
    Args:
        chain: the leaf first, then what lies between it and an anchor.
    """
    return wire.IssuedCertificate(chain=_der(chain), trust=trust_to_wire(trust))


def issued_from_wire(
    message: wire.IssuedCertificate,
) -> tuple[tuple[x509.Certificate, ...], TrustBundle]:
    """Inverse of :func:`issued_to_wire`; checks form, not truth.

    Raises:
        ProtocolError: not certificates, or no leaf among them.
    """
    chain = _parsed(message.chain)
    if not chain:
        raise ProtocolError("an issued certificate came without the certificate")
    return chain, trust_from_wire(message.trust)


def _der(certificates: Iterable[x509.Certificate]) -> list[bytes]:
    return [certificate.public_bytes(Encoding.DER) for certificate in certificates]


def _parsed(ders: Iterable[bytes]) -> tuple[x509.Certificate, ...]:
    try:
        return tuple(x509.load_der_x509_certificate(der) for der in ders)
    except PARSE_ERRORS as error:
        raise ProtocolError(f"malformed certificate: {error}") from error
