"""A signed consent between its two forms: the core's and the wire's."""

from __future__ import annotations

import base64
import json

from cryptography.hazmat.primitives.serialization import Encoding

from ..canonical import canonical_json
from ..errors import ProtocolError
from ..exchange.consent import SignedConsent
from .v1 import federation_pb2 as wire


def to_wire(signed: SignedConsent) -> wire.SignedStatement:
    return wire.SignedStatement(
        statement=signed.consent.signed_bytes,
        signature=signed.signature,
        chain=[certificate.public_bytes(Encoding.DER) for certificate in signed.chain],
    )


def from_wire(message: wire.SignedStatement) -> SignedConsent:
    """Inverse of :func:`to_wire`; checks form, not truth.

    Raises:
        ProtocolError, NotOnRosterError: not the bytes of a consent.
    """
    try:
        statement = json.loads(message.statement)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"malformed consent: {error}") from error
    if not isinstance(statement, dict):
        raise ProtocolError("malformed consent: not an object")
    signed = SignedConsent.from_bytes(
        canonical_json(
            {
                **statement,
                "signature": message.signature.hex(),
                "chain": [base64.b64encode(der).decode() for der in message.chain],
            }
        )
    )
    if signed.consent.signed_bytes != message.statement:
        raise ProtocolError("malformed consent: not in canonical form")
    return signed
