"""What a process needs to be somebody: the key and certificate files of its home folder.

============  ====  =================================================================
file          mode  content
============  ====  =================================================================
tls.key       0600  P-256 private key
tls.next.key  0600  the one that replaces it, while a renewal is under way
signing.key   0600  Ed25519 private key, for life
tls.pem       0644  leaf, then the issuing CA
ca.pem        0644  the federation's trust anchors, oldest first: the pinned trust
ca.past.pem   0644  anchors that were pinned once: for old statements alone
============  ====  =================================================================

A renewal comes into force when ``tls.pem`` is replaced: whoever loads the identity next finds the leaf
to be that of ``tls.next.key`` and gives that key its name. Anchors are added before a leaf that needs
them and dropped after a leaf that needed them. So a crash at any moment leaves a whole identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ..errors import IdentityError, KeyFileError
from .files import locked, read_public, write_public
from .identity import PARSE_ERRORS, Identity, identity_of
from .keys import (
    SigningKey,
    TlsKey,
    key_of,
    new_signing_key,
    new_tls_key,
    prepare_next_key,
    private_key_pem,
    read_signing_key,
    take_key_of,
    write_private_key,
)
from .request import create_request, signing_key_of
from .signing import verify_chain
from .trust import MAX_ANCHORS

TLS_KEY, TLS_CHAIN, SIGNING_KEY, CA = "tls.key", "tls.pem", "signing.key", "ca.pem"
PAST_ANCHORS = "ca.past.pem"
MAX_PAST_ANCHORS = 16


@dataclass(frozen=True)
class TlsIdentity:
    """A loaded, checked identity, in the forms that TLS and signing take.

    ``chain_pem`` is the leaf and what lies between it and an anchor, ``ca_pem`` the trust anchors
    (more than one while the CA is being replaced); ``chain`` and ``anchors`` are the same certificates,
    parsed. ``past_anchors`` were pinned once.
    """

    identity: Identity
    chain_pem: bytes
    key_pem: bytes = field(repr=False)
    ca_pem: bytes
    signing_key: SigningKey = field(repr=False)
    chain: tuple[x509.Certificate, ...] = field(repr=False)
    anchors: tuple[x509.Certificate, ...] = field(repr=False)
    past_anchors: tuple[x509.Certificate, ...] = field(default=(), repr=False)

    @property
    def leaf(self) -> x509.Certificate:
        return self.chain[0]

    @property
    def record_anchors(self) -> tuple[x509.Certificate, ...]:
        """For statements of one's own log, at the time of their entry: present and past anchors.

        Never for what arrives now: a past anchor may have been retired because its key was stolen.
        """
        return self.anchors + self.past_anchors


def create_keys(folder: Path) -> tuple[TlsKey, SigningKey]:
    """Make and store both keys of a new identity; they never leave this folder.

    Raises:
        KeyFileError: a key is there already, or the folder is open to others or not writable.
    """
    tls_key, signing_key = new_tls_key(), new_signing_key()
    write_private_key(folder / TLS_KEY, tls_key)
    write_private_key(folder / SIGNING_KEY, signing_key)
    return tls_key, signing_key


def begin_renewal(folder: Path, identity: TlsIdentity) -> x509.CertificateSigningRequest:
    """Ask for the same identity and signing key with a fresh TLS key, which waits beside the old one.

    A renewal that was begun and not finished goes on with the key that it made.

    Raises:
        KeyFileError: that key is damaged or open to others, or the folder is not writable.
    """
    with locked(folder):
        # A key whose certificate is in force already is none that waits: give it its name first.
        _matching_key(folder, read_certificates(folder / TLS_CHAIN)[0])
        key = prepare_next_key(folder / TLS_KEY)
    return create_request(identity.identity, key, identity.signing_key)


def install_certificates(
    folder: Path,
    chain: Sequence[x509.Certificate],
    anchors: Sequence[x509.Certificate],
    *,
    now: float,
) -> TlsIdentity:
    """Store what the CA issued, if it fits the keys of the folder: the first or the next ones.

    Args:
        anchors: whom to trust from now on; for a network's word on that see ``trust.py``.
    Raises:
        KeyFileError: a key is missing or open to others.
        IdentityError: the chain is not for these keys, or does not lead to one of ``anchors`` now.
    """
    if not chain:
        raise IdentityError("there is no certificate to install")
    with locked(folder):
        key = _key_that_fits(folder, chain[0])
        identity = _identity(folder, key, tuple(chain), tuple(anchors), now)
        pinned = _pinned(folder)
        # Until the new leaf is in force, whoever looks must find the old one whole. Oldest first.
        dropped = [anchor for anchor in pinned if anchor not in anchors]
        both = [*dropped, *anchors]
        if len(both) > MAX_ANCHORS:
            raise _too_many(folder, both)
        _remember(folder, dropped)
        write_public(folder / CA, pem_of(both))
        write_public(folder / TLS_CHAIN, identity.chain_pem)
        _matching_key(folder, chain[0])
        if dropped:
            write_public(folder / CA, identity.ca_pem)
        return _checked(folder, now)


def replace_anchors(folder: Path, anchors: Sequence[x509.Certificate]) -> None:
    """Pin other trust anchors, under which the present certificate must still stand.

    Args:
        anchors: as :func:`fedpalm.pki.trust.accept_trust` returned them.
    Raises:
        KeyFileError: a file is missing or damaged, or the folder is not writable.
        IdentityError: the present certificate is under an anchor that would be dropped.
    """
    with locked(folder):
        chain, pinned = read_certificates(folder / TLS_CHAIN), _pinned(folder)
        moment = chain[0].not_valid_after_utc.timestamp()
        key = _matching_key(folder, chain[0])
        try:
            _identity(folder, key, chain, tuple(anchors), moment)
        except IdentityError as error:
            raise IdentityError(
                f"{folder}: the certificate is not under the trust anchors that were offered: "
                f"{error.what}",
                safe="the anchors that are pinned stay as they are",
                next_step="renew the certificate first; if that is refused, join by a new invitation",
            ) from error
        _remember(folder, [anchor for anchor in pinned if anchor not in anchors])
        write_public(folder / CA, pem_of(anchors))


def load_tls_identity(folder: Path, *, now: float) -> TlsIdentity:
    """Load and check an identity; a renewal that was cut off is brought to its end.

    Args:
        now: seconds since the Unix epoch.
    Raises:
        KeyFileError: a file is missing or damaged, or a key is open to others.
        IdentityError: a certificate that is expired, not yet valid, of another CA or other keys.
    """
    with locked(folder):
        return _checked(folder, now)


def pem_of(certificates: Sequence[x509.Certificate]) -> bytes:
    """Certificates as one PEM file, in order."""
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def chain_from_pem(pem: bytes, origin: str) -> tuple[x509.Certificate, ...]:
    """At least one certificate of a PEM file. Raises KeyFileError naming ``origin``."""
    try:
        return tuple(x509.load_pem_x509_certificates(pem))
    except PARSE_ERRORS as error:
        raise KeyFileError(f"{origin}: damaged, or not PEM certificates") from error


def read_certificates(path: Path) -> tuple[x509.Certificate, ...]:
    """At least one certificate of a file. Raises KeyFileError: it is missing or damaged."""
    return chain_from_pem(read_public(path), str(path))


def _checked(folder: Path, now: float) -> TlsIdentity:
    chain, anchors = read_certificates(folder / TLS_CHAIN), read_certificates(folder / CA)
    return _identity(folder, _matching_key(folder, chain[0]), chain, anchors, now)


def _identity(
    folder: Path,
    tls_key: TlsKey,
    chain: tuple[x509.Certificate, ...],
    anchors: tuple[x509.Certificate, ...],
    now: float,
) -> TlsIdentity:
    """Raises KeyFileError, IdentityError."""
    signing_key = read_signing_key(folder / SIGNING_KEY)
    if len(anchors) > MAX_ANCHORS:
        raise _too_many(folder, anchors)
    claimed = identity_of(chain[0])
    identity = verify_chain(
        chain[0], chain[1:], anchors, now=now, role=claimed.role, federation=claimed.federation
    )
    if signing_key_of(chain[0]) != signing_key.public_key():
        raise IdentityError(f"{folder}: {TLS_CHAIN} is not bound to {SIGNING_KEY}")
    return TlsIdentity(
        identity=identity,
        chain_pem=pem_of(chain),
        key_pem=private_key_pem(tls_key),
        ca_pem=pem_of(anchors),
        signing_key=signing_key,
        chain=chain,
        anchors=anchors,
        past_anchors=_past(folder),
    )


def _too_many(folder: Path, anchors: Sequence[x509.Certificate]) -> IdentityError:
    return IdentityError(
        f"{folder / CA}: {len(anchors)} trust anchors, at most {MAX_ANCHORS} are pinned"
    )


def _matching_key(folder: Path, leaf: x509.Certificate) -> TlsKey:
    """The key of a leaf that is in force; it has its name afterwards."""
    key = take_key_of(folder / TLS_KEY, leaf.public_key())
    if key is None:
        raise _not_for_these_keys(folder)
    return key


def _key_that_fits(folder: Path, leaf: x509.Certificate) -> TlsKey:
    """The key of a leaf that is not in force yet, whatever its name; no file changes."""
    key = key_of(folder / TLS_KEY, leaf.public_key())
    if key is None:
        raise _not_for_these_keys(folder)
    return key


def _not_for_these_keys(folder: Path) -> IdentityError:
    return IdentityError(f"{folder}: {TLS_CHAIN} is not the certificate of {TLS_KEY}")


def _pinned(folder: Path) -> tuple[x509.Certificate, ...]:
    return read_certificates(folder / CA) if (folder / CA).exists() else ()


def _past(folder: Path) -> tuple[x509.Certificate, ...]:
    path = folder / PAST_ANCHORS
    return read_certificates(path) if path.exists() else ()


def _remember(folder: Path, dropped: Sequence[x509.Certificate]) -> None:
    """Keep anchors that are dropped: what was signed under them and logged stays verifiable."""
    past = _past(folder)
    fresh = [anchor for anchor in dropped if anchor not in past]
    if fresh:
        write_public(folder / PAST_ANCHORS, pem_of([*past, *fresh][-MAX_PAST_ANCHORS:]))
