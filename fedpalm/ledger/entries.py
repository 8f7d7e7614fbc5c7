"""One entry of a site's log, and its exact bytes.

What is signed is the RFC 8785 JSON of everything but the signature; what is stored is the same with the
signature. Floats never occur (a later kind that needs one writes it as a decimal string), so no
two programs can disagree about the bytes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

from ..canonical import domain_hash
from ..errors import ProtocolError
from .bodies import MAX_INTEGER, Body, EntryKind, check_body

VERSION = 1
SIGNATURE_DOMAIN = "ledger-entry/v1"
MAX_ENTRY_BYTES = 8 * 1024
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)
_FIELDS = {"version", "seq", "previous_hash", "kind", "time_ms", "body", "key_id", "signature"}


@dataclass(frozen=True)
class Entry:
    """A signed record; the chain (``chain.py``) makes and checks it.

    Args:
        seq: position in the log, from 0.
        previous_hash: 32 bytes, the hash of entry seq - 1 (or the genesis hash of the key).
        time_ms: milliseconds since the Unix epoch by the site's clock; informative, not an order.
        body: one of the forms of ``kind`` in ``bodies.py``.
        signature: 64 bytes, Ed25519 in SIGNATURE_DOMAIN over :attr:`signed_bytes`.
        key_id: 32 bytes, which signing key.
    Raises:
        ProtocolError: on construction, for a value out of range or a body of no known form.
    """

    seq: int
    previous_hash: bytes
    kind: EntryKind
    time_ms: int
    body: Body
    key_id: bytes
    signature: bytes = field(default=b"")

    def __post_init__(self) -> None:
        for name, value in (("seq", self.seq), ("time_ms", self.time_ms)):
            if type(value) is not int or not 0 <= value <= MAX_INTEGER:
                raise ProtocolError(f"ledger entry: {name} is {str(value)[:40]}")
        if len(self.previous_hash) != 32 or len(self.key_id) != 32:
            raise ProtocolError("ledger entry: a hash is not 32 bytes long")
        if len(self.signature) not in (0, 64):
            raise ProtocolError("ledger entry: the signature is not 64 bytes long")
        check_body(self.kind, self.body)
        object.__setattr__(self, "body", MappingProxyType(dict(self.body)))

    @cached_property
    def signed_bytes(self) -> bytes:
        """Exactly what the signature covers."""
        return _canonical(self._values())

    @cached_property
    def hash(self) -> bytes:
        """32 bytes that the next entry points back to; they cover the signature, too."""
        return domain_hash("ledger-entry/v1", self.signed_bytes, self.signature)

    def to_bytes(self) -> bytes:
        """Canonical JSON with the signature: what is stored and exported."""
        return _canonical({**self._values(), "signature": self.signature.hex()})

    @classmethod
    def from_bytes(cls, data: bytes) -> Entry:
        """Inverse of :meth:`to_bytes`; any other spelling of the same entry is refused.

        Raises:
            ProtocolError: not canonical JSON of an entry of this version.
        """
        if len(data) > MAX_ENTRY_BYTES:
            raise ProtocolError(f"ledger entry: {len(data)} bytes, the limit is {MAX_ENTRY_BYTES}")
        try:
            values = json.loads(data)
            if not isinstance(values, dict) or set(values) != _FIELDS:
                raise ProtocolError("ledger entry: not an object with the fields of an entry")
            if values["version"] != VERSION:
                raise ProtocolError(f"ledger entry: version {str(values['version'])[:20]}")
            entry = cls(
                seq=values["seq"],
                previous_hash=bytes.fromhex(values["previous_hash"]),
                kind=EntryKind(values["kind"]),
                time_ms=values["time_ms"],
                body=values["body"],
                key_id=bytes.fromhex(values["key_id"]),
                signature=bytes.fromhex(values["signature"]),
            )
        except (ValueError, TypeError, RecursionError) as error:
            raise ProtocolError(f"ledger entry: malformed: {error}") from error
        if entry.to_bytes() != data:
            raise ProtocolError("ledger entry: not in canonical form")
        # What was signed is the same without the signature: a text that can stand nowhere else in it.
        signature = f'"signature":"{entry.signature.hex()}",'.encode()
        entry.__dict__["signed_bytes"] = data.replace(signature, b"", 1)
        return entry

    def _values(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "seq": self.seq,
            "previous_hash": self.previous_hash.hex(),
            "kind": self.kind.value,
            "time_ms": self.time_ms,
            "body": dict(self.body),
            "key_id": self.key_id.hex(),
        }


def _canonical(values: dict[str, Any]) -> bytes:
    """RFC 8785 of an entry that was checked: integers below 2**53, and texts that no rule lets be anything
    but printable ASCII. There it is what the standard library writes, several times faster."""
    return _ENCODER.encode(values).encode()
