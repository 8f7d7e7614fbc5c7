from __future__ import annotations

import pytest

from fedpalm.errors import ProtocolError
from fedpalm.exchange.consent import Consent, SignedConsent, sign_consent
from fedpalm.exchange.terms import ExchangeTerms
from fedpalm.pki.authority import create_authority
from fedpalm.pki.hybrid import HybridKey
from fedpalm.pki.identity import Identity, Role
from fedpalm.pki.keys import new_signing_key, new_tls_key
from fedpalm.pki.request import create_request
from fedpalm.wire.consents import from_wire, to_wire

NOW = 1_700_000_000.0
TERMS = ExchangeTerms("palms", "trial", "trial-x1", bytes(32), ("east", "north"), bytes(32))


@pytest.fixture(scope="module")
def consent() -> SignedConsent:
    authority, _ = create_authority("palms", NOW)
    identity, key = Identity("palms", Role.PARTICIPANT, "north"), new_signing_key()
    leaf = authority.issue(create_request(identity, new_tls_key(), key), identity, now=NOW)
    words = Consent(TERMS, "north", HybridKey.generate().public_bytes)
    return sign_consent(words, key, (leaf, authority.issuing))


def test_a_consent_survives_the_wire(consent):
    message = to_wire(consent)
    assert from_wire(type(message).FromString(message.SerializeToString())) == consent


@pytest.mark.parametrize(
    "spelling",
    [
        lambda statement: b"",
        lambda statement: b"[]",
        lambda statement: b"{",
        lambda statement: b"{}",
        lambda statement: b"[" * 5000,
        lambda statement: b"\xff" + statement,
        lambda statement: statement + b" ",
        lambda statement: statement.replace(b'":', b'": '),
    ],
)
def test_nothing_but_the_signed_bytes_passes_for_a_consent(consent, spelling):
    message = to_wire(consent)
    message.statement = spelling(message.statement)
    with pytest.raises(ProtocolError):
        from_wire(message)
