"""The vault's cryptography: a key from a secret, and bytes sealed under a key. No file is touched here.

Every sealing draws a salt of 32 random bytes, from which HKDF-SHA256 makes the AES-256-GCM key and the
nonce of this one message. So no (key, nonce) pair is used twice however much is sealed: two equal salts are
expected after 2^128 messages, while 96-bit nonces under one key would bound them to 2^32 (NIST SP 800-38D,
8.3).
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field, replace

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.constant_time import bytes_eq
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from .files import Buffer
from .vault_header import KEY_BYTES, SALT_BYTES, Argon2Cost, Header, Slot, SlotKind

MESSAGE_SALT_BYTES = 32
TAG_BYTES = 16
SEALED_EXTRA = MESSAGE_SALT_BYTES + TAG_BYTES
_NONCE_BYTES = 12
_CHECK_BYTES = 16


def hkdf(key: bytes, label: str, *, salt: bytes | None = None, length: int = KEY_BYTES) -> bytes:
    """HKDF-SHA256 (RFC 5869) under a label of this vault."""
    info = b"fedpalm vault 1/" + label.encode()
    return HKDF(SHA256(), length, salt, info).derive(key)


def seal(key: bytes, associated: bytes, plaintext: Buffer) -> bytes:
    """salt (32) || AES-256-GCM ciphertext and tag."""
    salt = secrets.token_bytes(MESSAGE_SALT_BYTES)
    cipher, nonce = _message_key(key, salt)
    return salt + cipher.encrypt(nonce, plaintext, associated)


def open_sealed(key: bytes, associated: bytes, sealed: Buffer) -> bytes | None:
    """The plaintext; None for anything else than what was sealed under this key and ``associated``."""
    view = memoryview(sealed)
    if view.nbytes < SEALED_EXTRA:
        return None
    cipher, nonce = _message_key(key, bytes(view[:MESSAGE_SALT_BYTES]))
    try:
        return cipher.decrypt(nonce, view[MESSAGE_SALT_BYTES:], associated)
    except InvalidTag:
        return None


def _message_key(key: bytes, salt: bytes) -> tuple[AESGCM, bytes]:
    made = hkdf(key, "message", salt=salt, length=KEY_BYTES + _NONCE_BYTES)
    return AESGCM(made[:KEY_BYTES]), made[KEY_BYTES:]


@dataclass(frozen=True)
class DataKeys:
    """What a vault keeps secret: the root of what is derived, and the data key of each generation."""

    root: bytes = field(repr=False)
    by_generation: dict[int, bytes] = field(repr=False)

    @classmethod
    def new(cls) -> DataKeys:
        return cls(secrets.token_bytes(KEY_BYTES), {1: secrets.token_bytes(KEY_BYTES)})

    def with_new(self) -> DataKeys:
        """One more generation."""
        number = max(self.by_generation) + 1
        return replace(
            self, by_generation={**self.by_generation, number: secrets.token_bytes(KEY_BYTES)}
        )

    def newest_only(self) -> DataKeys:
        number = max(self.by_generation)
        return replace(self, by_generation={number: self.by_generation[number]})

    @property
    def generations(self) -> tuple[int, ...]:
        return tuple(sorted(self.by_generation))

    def to_bytes(self) -> bytes:
        return self.root + b"".join(self.by_generation[one] for one in self.generations)

    @classmethod
    def from_bytes(cls, raw: bytes, generations: tuple[int, ...]) -> DataKeys:
        parts = [raw[at : at + KEY_BYTES] for at in range(0, len(raw), KEY_BYTES)]
        return cls(parts[0], dict(zip(generations, parts[1:], strict=True)))


@dataclass(frozen=True)
class SlotKey:
    """A slot and the key that its secret gave, for writing the header anew."""

    slot: Slot
    key: bytes = field(repr=False)

    @classmethod
    def new(cls, kind: SlotKind, secret: bytes, cost: Argon2Cost) -> SlotKey:
        """A fresh salt, whatever the secret was used for before."""
        salt = secrets.token_bytes(SALT_BYTES)
        slot = Slot(kind, salt, cost if kind == "passphrase" else None)
        return cls._made(slot, secret)

    @classmethod
    def of(cls, slot: Slot, secret: bytes) -> SlotKey | None:
        """The key of a slot that is there; None if the secret is another one."""
        made = cls._made(slot, secret)
        return made if bytes_eq(made.slot.check, slot.check) else None

    @classmethod
    def _made(cls, slot: Slot, secret: bytes) -> SlotKey:
        if slot.cost is None:
            master = hkdf(secret, "key file", salt=slot.salt)
        else:
            master = Argon2id(
                salt=slot.salt,
                length=KEY_BYTES,
                iterations=slot.cost.passes,
                lanes=slot.cost.lanes,
                memory_cost=slot.cost.memory_kib,
            ).derive(secret)
        check = hkdf(master, "check", length=_CHECK_BYTES)
        return cls(replace(slot, check=check), hkdf(master, "wrap"))

    def wrap(self, header: Header, keys: DataKeys) -> Slot:
        """The slot with the keys under it, bound to the header."""
        sealed = seal(self.key, header.associated(self.slot), keys.to_bytes())
        return replace(self.slot, wrapped=sealed)

    def unwrap(self, header: Header, slot: Slot) -> DataKeys | None:
        """None: the header was edited after it was written."""
        raw = open_sealed(self.key, header.associated(slot), slot.wrapped)
        if raw is None or len(raw) != KEY_BYTES * (1 + len(header.generations)):
            return None
        return DataKeys.from_bytes(raw, header.generations)
