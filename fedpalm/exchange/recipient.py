"""The key that a site receives experts with: hybrid, fresh for each exchange, erased after it.

ML-KEM-768 beside X25519: what is recorded today stays closed if either one holds.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from ..canonical import domain_hash
from ..errors import KeyFileError, ProtocolError

SUITE = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
_MLKEM_PUBLIC, _MLKEM_SEED, _X25519 = 1184, 64, 32
PUBLIC_BYTES = _MLKEM_PUBLIC + _X25519
PRIVATE_BYTES = _MLKEM_SEED + _X25519


@dataclass(frozen=True)
class RecipientKey:
    """The private half. It lies in a file of its own outside any backup, never in a message."""

    mlkem: MLKEM768PrivateKey = field(repr=False)
    x25519: X25519PrivateKey = field(repr=False)

    @classmethod
    def generate(cls) -> RecipientKey:
        return cls(MLKEM768PrivateKey.generate(), X25519PrivateKey.generate())

    @property
    def public_bytes(self) -> bytes:
        """PUBLIC_BYTES bytes: the ML-KEM-768 key, then the X25519 key."""
        return (
            self.mlkem.public_key().public_bytes_raw() + self.x25519.public_key().public_bytes_raw()
        )

    def private_bytes(self) -> bytes:
        """PRIVATE_BYTES bytes: the ML-KEM seed, then the X25519 key."""
        return self.mlkem.private_bytes_raw() + self.x25519.private_bytes_raw()

    @classmethod
    def from_private_bytes(cls, raw: bytes) -> RecipientKey:
        """Inverse of :meth:`private_bytes`. Raises KeyFileError for another length."""
        if len(raw) != PRIVATE_BYTES:
            raise KeyFileError(f"a recipient key has {PRIVATE_BYTES} bytes, not {len(raw)}")
        return cls(
            MLKEM768PrivateKey.from_seed_bytes(raw[:_MLKEM_SEED]),
            X25519PrivateKey.from_private_bytes(raw[_MLKEM_SEED:]),
        )

    def hpke_key(self) -> hpke.MLKEM768X25519PrivateKey:
        return hpke.MLKEM768X25519PrivateKey(self.mlkem, self.x25519)


def hpke_public_key(raw: bytes) -> hpke.MLKEM768X25519PublicKey:
    """The public half as HPKE takes it. Raises ProtocolError if ``raw`` is no such key."""
    if len(raw) != PUBLIC_BYTES:
        raise ProtocolError(f"a recipient's public key has {PUBLIC_BYTES} bytes, not {len(raw)}")
    try:
        return hpke.MLKEM768X25519PublicKey(
            MLKEM768PublicKey.from_public_bytes(raw[:_MLKEM_PUBLIC]),
            X25519PublicKey.from_public_bytes(raw[_MLKEM_PUBLIC:]),
        )
    except ValueError as error:
        raise ProtocolError(f"not a recipient's public key: {error}") from error


def recipient_key_id(public: bytes) -> bytes:
    """32 bytes that name a recipient's public key."""
    return domain_hash("recipient-key/v1", public)
