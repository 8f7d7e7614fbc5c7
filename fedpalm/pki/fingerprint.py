"""The short text by which two people compare what they each see."""

from __future__ import annotations

import hashlib
import hmac
import re

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding


def fingerprint(document: x509.Certificate | x509.CertificateSigningRequest) -> str:
    """SHA-256 of the DER bytes: 64 hex digits in 16 groups of 4, to be read aloud.

    For people. An ECDSA signature has several encodings, so the bearer of a certificate can give it
    another fingerprint: a list of revoked certificates goes by serial number, identity or public key.
    """
    digest = hashlib.sha256(document.public_bytes(Encoding.DER)).hexdigest()
    return " ".join(digest[at : at + 4] for at in range(0, 64, 4))


def same_fingerprint(found: str, told: str) -> bool:
    """Whether a person was told this fingerprint; spaces, colons and case mean nothing."""
    plain, given = (re.sub(r"[\s:]", "", text).lower().encode() for text in (found, told))
    return hmac.compare_digest(plain, given)
