"""The chain of a site's entries: how one is added, and what it takes to believe them all.

An entry points to the hash of the one before it; the first points to a hash of the signing key, so that
a chain belongs to one key from its start. A chain that was cut at its end still verifies, to a smaller
:class:`Head`: whoever knows how far it went sees the cut.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from ..canonical import domain_hash
from ..errors import ChainBrokenError, IdentityError
from ..pki.keys import SigningKey, VerifyingKey
from ..pki.signing import key_id, sign, verify
from .bodies import Body, EntryKind
from .entries import SIGNATURE_DOMAIN, Entry


@dataclass(frozen=True)
class Head:
    """The state of a log: how many entries it has, and the hash of the last."""

    size: int
    hash: bytes

    @classmethod
    def genesis(cls, public_key: VerifyingKey) -> Head:
        """The head of the empty log of a signing key."""
        return cls(0, domain_hash("ledger-genesis/v1", key_id(public_key)))

    @classmethod
    def after(cls, entry: Entry) -> Head:
        """The head of a log that ends with ``entry``."""
        return cls(entry.seq + 1, entry.hash)


def append(head: Head, kind: EntryKind, body: Body, *, time_ms: int, key: SigningKey) -> Entry:
    """The signed entry that follows ``head``; store it before anybody sees its effect.

    Raises:
        ProtocolError: the body is of no form that the kind knows.
    """
    entry = Entry(
        seq=head.size,
        previous_hash=head.hash,
        kind=kind,
        time_ms=time_ms,
        body=body,
        key_id=key_id(key.public_key()),
    )
    return replace(entry, signature=sign(key, SIGNATURE_DOMAIN, entry.signed_bytes))


def verify_chain(entries: Iterable[Entry], public_key: VerifyingKey) -> Head:
    """Check every link and signature from the key's genesis on; return where the entries lead.

    Raises:
        ChainBrokenError: names the first seq that is wrong, and how.
    """
    at = Head.genesis(public_key)
    own = key_id(public_key)
    for entry in entries:
        if entry.seq != at.size:
            raise _broken(at.size, f"entry {entry.seq} stands in its place")
        if entry.previous_hash != at.hash:
            raise _broken(entry.seq, "it does not follow the entry before it")
        if entry.key_id != own:
            raise _broken(entry.seq, "it names another signing key")
        try:
            verify(public_key, SIGNATURE_DOMAIN, entry.signed_bytes, entry.signature)
        except IdentityError:
            raise _broken(entry.seq, "its signature does not hold") from None
        at = Head.after(entry)
    return at


def _broken(seq: int, cause: str) -> ChainBrokenError:
    return ChainBrokenError(
        f"site log, entry {seq}: {cause}",
        safe="the log was not extended",
        next_step="keep the file as it is and compare it with a backup or an exported copy",
    )
