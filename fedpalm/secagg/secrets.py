"""A site's secrets of one attempt, and everything that is derived from them.

Two secrets are shared out: ``mask_secret`` (m), from which all of the site's pair masks follow, and
``seed_secret`` (b), from which its own mask follows. The coordinator may learn one of them, never both.
``transport`` (c) opens the boxes that come to this site; it does not follow from m, so opening m for a
site that dropped gives nobody the shares that others sent it.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from functools import cached_property

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ..canonical import domain_hash
from ..errors import ProtocolError
from ..pki.hybrid import PRIVATE_BYTES, HybridKey


def derive(secret: bytes, label: str, *context: bytes, length: int = 32) -> bytes:
    """HKDF-SHA256 (RFC 5869) of a secret for one labelled purpose."""
    info = domain_hash(f"secagg/{label}/v1", *context)
    return HKDF(algorithm=SHA256(), length=length, salt=None, info=info).derive(secret)


@dataclass(frozen=True)
class PairSecrets:
    """What follows from m (32 bytes): the site's half of every pair mask."""

    mask_secret: bytes = field(repr=False)

    @cached_property
    def agreement(self) -> X25519PrivateKey:
        """s: agrees on a secret with each peer."""
        return X25519PrivateKey.from_private_bytes(derive(self.mask_secret, "agreement"))

    @cached_property
    def escrow(self) -> HybridKey:
        """k: opens the pair secrets that peers chose and sealed to this site."""
        return HybridKey.from_private_bytes(
            derive(self.mask_secret, "escrow", length=PRIVATE_BYTES)
        )

    def pair_secret(self, peer: str) -> bytes:
        """r_ij, 32 bytes, for a peer with which this site is the one that chooses."""
        return derive(derive(self.mask_secret, "pairs"), "pair", peer.encode())

    def agree(self, peer_key: bytes) -> bytes:
        """X25519 with a peer's public key, 32 bytes.

        Raises:
            ProtocolError: no key, or one of small order (an all-zero result).
        """
        try:
            return self.agreement.exchange(X25519PublicKey.from_public_bytes(peer_key))
        except ValueError as error:
            raise ProtocolError(f"not a usable agreement key: {error}") from None


@dataclass(frozen=True)
class AttemptSecrets:
    """m, b and c of a site; fresh for each attempt, in a file of its own, erased when it closes."""

    pairs: PairSecrets = field(repr=False)
    seed_secret: bytes = field(repr=False)
    transport: HybridKey = field(repr=False)

    @classmethod
    def generate(cls) -> AttemptSecrets:
        return cls(
            PairSecrets(secrets.token_bytes(32)), secrets.token_bytes(32), HybridKey.generate()
        )

    def to_bytes(self) -> bytes:
        """160 bytes, for a file that nobody else reads."""
        return self.pairs.mask_secret + self.seed_secret + self.transport.private_bytes()

    @classmethod
    def from_bytes(cls, raw: bytes) -> AttemptSecrets:
        """Inverse of :meth:`to_bytes`. Raises KeyFileError for another length."""
        return cls(PairSecrets(raw[:32]), raw[32:64], HybridKey.from_private_bytes(raw[64:]))


def seed_hash(seed_secret: bytes) -> bytes:
    """H(b): lets the coordinator tell a wrong b from the right one."""
    return domain_hash("secagg/seed/v1", seed_secret)


def own_stream(seed_secret: bytes) -> bytes:
    """32-byte key of the mask that a site adds for itself."""
    return derive(seed_secret, "own-mask")
