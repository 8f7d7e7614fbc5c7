"""The two keys of an identity, and how they lie on disk.

TLS: ECDSA P-256 (gRPC refuses Ed25519 leaves). Application layer: Ed25519, long-lived, bound to the
certificate by an extension (``request.py``). Both are PKCS #8 PEM, mode 0600, in a 0700 folder.
"""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from ..errors import KeyFileError
from .files import make_private_folder, read_secret, take_place, write_secret_once

TlsKey = ec.EllipticCurvePrivateKey
SigningKey = ed25519.Ed25519PrivateKey
VerifyingKey = ed25519.Ed25519PublicKey


def new_tls_key() -> TlsKey:
    """A fresh P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def new_signing_key() -> SigningKey:
    """A fresh Ed25519 key."""
    return SigningKey.generate()


def private_key_pem(key: TlsKey | SigningKey) -> bytes:
    """Unencrypted PKCS #8 PEM: for a 0600 file or a TLS library, nothing else."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def write_private_key(path: Path, key: TlsKey | SigningKey) -> None:
    """Store a key under a name that was free: 0600, in a 0700 folder, fsynced.

    Raises:
        KeyFileError: the file exists, or its folder is open to others or not writable.
    """
    make_private_folder(path.parent)
    write_secret_once(path, private_key_pem(key))


def read_private_key(path: Path) -> TlsKey | SigningKey:
    """Load a key of either kind.

    Raises:
        KeyFileError: missing, readable by others (names the chmod to run), a link, damaged, or
            neither P-256 nor Ed25519.
    """
    content = read_secret(path)
    try:
        key = serialization.load_pem_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyFileError(
            f"{path}: damaged, encrypted, or not a PEM private key",
            next_step="restore the file, or make new keys and enrol again",
        ) from error
    if isinstance(key, SigningKey):
        return key
    if isinstance(key, TlsKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    raise KeyFileError(f"{path}: neither a P-256 nor an Ed25519 key")


def read_tls_key(path: Path) -> TlsKey:
    """:func:`read_private_key` for a P-256 key. Raises KeyFileError for another kind, too."""
    key = read_private_key(path)
    if not isinstance(key, TlsKey):
        raise KeyFileError(f"{path}: a signing key where a P-256 TLS key belongs")
    return key


def read_signing_key(path: Path) -> SigningKey:
    """:func:`read_private_key` for an Ed25519 key. Raises KeyFileError for another kind, too."""
    key = read_private_key(path)
    if not isinstance(key, SigningKey):
        raise KeyFileError(f"{path}: a TLS key where an Ed25519 signing key belongs")
    return key


def next_key_path(path: Path) -> Path:
    """Where the key lies that will replace the one at ``path``: ``tls.next.key`` beside ``tls.key``."""
    return path.with_name(f"{path.stem}.next{path.suffix}")


def prepare_next_key(path: Path) -> TlsKey:
    """The key that will replace the one at ``path``: that of an earlier try, or a fresh one.

    Call it with the folder locked.

    Raises:
        KeyFileError: the one that is there cannot be used, or the folder is not writable.
    """
    successor = next_key_path(path)
    if successor.exists():
        return read_tls_key(successor)
    key = new_tls_key()
    write_private_key(successor, key)
    return key


def key_of(path: Path, public: object) -> TlsKey | None:
    """The private key of ``public``, at ``path`` or prepared to replace it; None if it is neither.

    Raises:
        KeyFileError: a key is damaged or open to others, or none is there.
    """
    return _find_key_of(path, public)[1]


def take_key_of(path: Path, public: object) -> TlsKey | None:
    """:func:`key_of` a certificate that is in force.

    A prepared key takes its place here: that may be what a crash has left to do. Call it with the
    folder locked.

    Raises:
        KeyFileError: a key is damaged or open to others, or none is there.
    """
    found, key = _find_key_of(path, public)
    if key is not None and found != path:
        take_place(path, found)
    return key


def _find_key_of(path: Path, public: object) -> tuple[Path, TlsKey | None]:
    successor = next_key_path(path)
    for candidate in [one for one in (path, successor) if one.exists()] or [path]:
        key = read_tls_key(candidate)
        if key.public_key() == public:
            return candidate, key
    return path, None
