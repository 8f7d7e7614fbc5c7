"""Hybrid encryption to a key of one purpose: HPKE (RFC 9180) with ML-KEM-768 beside X25519.

What is recorded today stays closed if either one holds. A key is fresh for each use and erased after it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from ..canonical import domain_hash
from ..errors import IntegrityError, KeyFileError, ProtocolError

SUITE = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
_MLKEM_PUBLIC, _MLKEM_SEED, _X25519 = 1184, 64, 32
PUBLIC_BYTES = _MLKEM_PUBLIC + _X25519
PRIVATE_BYTES = _MLKEM_SEED + _X25519
SEAL_BYTES = 1136
"""How much longer a sealed box is than what is in it: 1,120 bytes of KEM and a tag of 16."""
_CURVE_PRIME = 2**255 - 19
_SMALL_ORDER = frozenset(
    {
        0,
        1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
        _CURVE_PRIME - 1,
    }
)
"""All coordinates of order 1, 2, 4 or 8, on the curve and on its twist (Bernstein, cr.yp.to/ecdh.html)."""


@dataclass(frozen=True)
class HybridKey:
    """The private half. It lies in a file of its own outside any backup, never in a message."""

    mlkem: MLKEM768PrivateKey = field(repr=False)
    x25519: X25519PrivateKey = field(repr=False)

    @classmethod
    def generate(cls) -> HybridKey:
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
    def from_private_bytes(cls, raw: bytes) -> HybridKey:
        """Inverse of :meth:`private_bytes`. Raises KeyFileError for another length."""
        if len(raw) != PRIVATE_BYTES:
            raise KeyFileError(f"a hybrid key has {PRIVATE_BYTES} bytes, not {len(raw)}")
        return cls(
            MLKEM768PrivateKey.from_seed_bytes(raw[:_MLKEM_SEED]),
            X25519PrivateKey.from_private_bytes(raw[_MLKEM_SEED:]),
        )

    def open(self, ciphertext: bytes, info: bytes) -> bytes:
        """What was sealed to this key for ``info``.

        Raises:
            IntegrityError: for another key or purpose, or altered.
        """
        key = hpke.MLKEM768X25519PrivateKey(self.mlkem, self.x25519)
        try:
            plaintext: bytes = SUITE.decrypt(ciphertext, key, info=info)
        except (InvalidTag, ValueError):
            raise IntegrityError("a sealed box does not open with this key") from None
        return plaintext


def seal(plaintext: bytes, public: bytes, info: bytes) -> bytes:
    """Seal to a :attr:`HybridKey.public_bytes` for the purpose that ``info`` names.

    Returns:
        SEAL_BYTES more bytes than ``plaintext`` has.
    Raises:
        ProtocolError: ``public`` is no such key.
    """
    ciphertext: bytes = SUITE.encrypt(plaintext, hybrid_public_key(public), info=info)
    return ciphertext


def hybrid_public_key(raw: bytes) -> hpke.MLKEM768X25519PublicKey:
    """The public half as HPKE takes it. Raises ProtocolError if ``raw`` is no such key."""
    if len(raw) != PUBLIC_BYTES:
        raise ProtocolError(f"a hybrid public key has {PUBLIC_BYTES} bytes, not {len(raw)}")
    try:
        return hpke.MLKEM768X25519PublicKey(
            MLKEM768PublicKey.from_public_bytes(raw[:_MLKEM_PUBLIC]),
            x25519_public_key(raw[_MLKEM_PUBLIC:]),
        )
    except ValueError as error:
        raise ProtocolError(f"not a hybrid public key: {error}") from error


def x25519_public_key(raw: bytes) -> X25519PublicKey:
    """A public key that agrees on a secret, in the one encoding that it has.

    A key of small order gives everybody the same secret, and a second encoding would make one key look
    like two (RFC 7748, sections 5 and 6.1).

    Raises:
        ProtocolError: not 32 bytes, not reduced, or of small order.
    """
    coordinate = int.from_bytes(raw, "little")
    if len(raw) != _X25519 or coordinate >= _CURVE_PRIME:
        raise ProtocolError("not an X25519 public key in its one encoding")
    if coordinate in _SMALL_ORDER:
        raise ProtocolError("an X25519 public key of small order")
    return X25519PublicKey.from_public_bytes(raw)


def hybrid_key_id(public: bytes) -> bytes:
    """32 bytes that name a hybrid public key."""
    return domain_hash("recipient-key/v1", public)
