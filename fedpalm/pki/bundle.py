"""What a process needs to be somebody: the key and certificate files of its home folder.

============  ====  ==========================================
file          mode  content
============  ====  ==========================================
tls.key       0600  P-256 private key
signing.key   0600  Ed25519 private key
tls.pem       0644  leaf, then the issuing CA
ca.pem        0644  the federation's trust anchors: the pinned trust
============  ====  ==========================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ..errors import IdentityError, KeyFileError
from .files import read_public, write_public
from .identity import PARSE_ERRORS, Identity, identity_of
from .keys import (
    SigningKey,
    TlsKey,
    new_signing_key,
    new_tls_key,
    private_key_pem,
    read_signing_key,
    read_tls_key,
    write_private_key,
)
from .request import signing_key_of
from .signing import verify_chain

TLS_KEY, TLS_CHAIN, SIGNING_KEY, CA = "tls.key", "tls.pem", "signing.key", "ca.pem"
MAX_ANCHORS = 4


@dataclass(frozen=True)
class TlsIdentity:
    """A loaded, checked identity, in the forms that TLS and signing take.

    ``chain_pem`` is the leaf and what lies between it and an anchor, ``ca_pem`` the trust anchors
    (more than one while the CA is being replaced); ``chain`` and ``anchors`` are the same certificates, parsed.
    """

    identity: Identity
    chain_pem: bytes
    key_pem: bytes = field(repr=False)
    ca_pem: bytes
    signing_key: SigningKey = field(repr=False)
    chain: tuple[x509.Certificate, ...] = field(repr=False)
    anchors: tuple[x509.Certificate, ...] = field(repr=False)

    @property
    def leaf(self) -> x509.Certificate:
        return self.chain[0]


def create_keys(folder: Path) -> tuple[TlsKey, SigningKey]:
    """Make and store both keys of a new identity; they never leave this folder.

    Raises:
        KeyFileError: a key is there already, or the folder is open to others or not writable.
    """
    tls_key, signing_key = new_tls_key(), new_signing_key()
    write_private_key(folder / TLS_KEY, tls_key)
    write_private_key(folder / SIGNING_KEY, signing_key)
    return tls_key, signing_key


def install_certificates(
    folder: Path,
    chain: Sequence[x509.Certificate],
    anchors: Sequence[x509.Certificate],
    *,
    now: float,
) -> TlsIdentity:
    """Store what the CA issued, if it fits the keys of the folder.

    Raises:
        KeyFileError: a key is missing or open to others.
        IdentityError: the chain is not for these keys, or does not lead to one of ``anchors`` now.
    """
    identity = _checked(folder, pem_of(chain), pem_of(anchors), now)
    write_public(folder / CA, identity.ca_pem)
    write_public(folder / TLS_CHAIN, identity.chain_pem)
    return identity


def load_tls_identity(folder: Path, *, now: float) -> TlsIdentity:
    """Load and check the four files.

    Args:
        now: seconds since the Unix epoch.
    Raises:
        KeyFileError: a file is missing or damaged, or a key is open to others.
        IdentityError: a certificate that is expired, not yet valid, of another CA or other keys.
    """
    return _checked(folder, read_public(folder / TLS_CHAIN), read_public(folder / CA), now)


def pem_of(certificates: Sequence[x509.Certificate]) -> bytes:
    """Certificates as one PEM file, in order."""
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def chain_from_pem(pem: bytes, origin: str) -> tuple[x509.Certificate, ...]:
    """At least one certificate of a PEM file. Raises KeyFileError naming ``origin``."""
    try:
        return tuple(x509.load_pem_x509_certificates(pem))
    except PARSE_ERRORS as error:
        raise KeyFileError(f"{origin}: damaged, or not PEM certificates") from error


def _checked(folder: Path, chain_pem: bytes, ca_pem: bytes, now: float) -> TlsIdentity:
    tls_key = read_tls_key(folder / TLS_KEY)
    signing_key = read_signing_key(folder / SIGNING_KEY)
    chain = chain_from_pem(chain_pem, str(folder / TLS_CHAIN))
    anchors = chain_from_pem(ca_pem, str(folder / CA))
    if len(anchors) > MAX_ANCHORS:
        raise IdentityError(
            f"{folder / CA}: {len(anchors)} trust anchors, at most {MAX_ANCHORS} are pinned"
        )
    claimed = identity_of(chain[0])
    identity = verify_chain(
        chain[0], chain[1:], anchors, now=now, role=claimed.role, federation=claimed.federation
    )
    if chain[0].public_key() != tls_key.public_key():
        raise IdentityError(f"{folder}: {TLS_CHAIN} is not the certificate of {TLS_KEY}")
    if signing_key_of(chain[0]) != signing_key.public_key():
        raise IdentityError(f"{folder}: {TLS_CHAIN} is not bound to {SIGNING_KEY}")
    return TlsIdentity(
        identity=identity,
        chain_pem=chain_pem,
        key_pem=private_key_pem(tls_key),
        ca_pem=ca_pem,
        signing_key=signing_key,
        chain=chain,
        anchors=anchors,
    )
