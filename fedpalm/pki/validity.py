"""When a certificate ends, for programs and for people."""

from __future__ import annotations

from cryptography import x509


def end_ms(certificate: x509.Certificate) -> int:
    """notAfter as Unix milliseconds."""
    return round(certificate.not_valid_after_utc.timestamp() * 1000)


def end_of(certificate: x509.Certificate) -> str:
    """notAfter to the minute: ``2027-02-19 07:44 UTC``."""
    return f"{certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
