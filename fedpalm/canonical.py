"""One byte string per value: RFC 8785 canonical JSON, and domain-separated SHA-256 over it."""

from __future__ import annotations

import hashlib
from typing import Any

import rfc8785

from .errors import ProtocolError


def canonical_json(value: Any) -> bytes:
    """Serialise to RFC 8785 bytes.

    Raises:
        ProtocolError: what JSON cannot hold (NaN, 2**53, bytes, half of a character), or what is
            nested deeper than Python goes.
    """
    try:
        return rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, UnicodeError, RecursionError) as error:
        raise ProtocolError(f"value has no canonical JSON: {error}") from error


def domain_hash(domain: str, *parts: bytes) -> bytes:
    """SHA-256 of the domain and the parts, each length-prefixed, so that no two inputs share bytes."""
    digest = hashlib.sha256()
    for part in (f"fedpalm/{domain}".encode(), *parts):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()
