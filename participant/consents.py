"""Consents and terms between their three forms: the core's, the wire's, and the site's rows."""

from __future__ import annotations

import base64
import json

from cryptography.hazmat.primitives.serialization import Encoding

from fedpalm.canonical import canonical_json
from fedpalm.errors import ProtocolError
from fedpalm.exchange.consent import SignedConsent
from fedpalm.exchange.terms import ExchangeTerms
from fedpalm.plan import Plan
from fedpalm.wire.v1 import federation_pb2 as wire


def terms_of(plan: Plan, run_id: str, exchange_id: str) -> ExchangeTerms:
    """What an exchange of a run is about, from the plan that this site agreed to."""
    return ExchangeTerms(
        federation=plan.federation,
        run=run_id,
        exchange_id=exchange_id,
        plan_hash=plan.hash,
        roster=plan.roster,
        layout_hash=plan.released_layout.hash,
    )


def to_wire(signed: SignedConsent) -> wire.SignedConsent:
    return wire.SignedConsent(
        statement=signed.consent.signed_bytes,
        signature=signed.signature,
        chain=[certificate.public_bytes(Encoding.DER) for certificate in signed.chain],
    )


def from_wire(message: wire.SignedConsent) -> SignedConsent:
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
