"""Every spelling of a secret under which it could lie in a file, a message or a log, and the search."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

ENOUGH = 12
"""Bytes of a spelling that must not occur: fewer would be found by chance."""


def spellings(secret: bytes) -> set[bytes]:
    """Raw, hex, and base64 at each of its three alignments; without what depends on the neighbours."""
    found = {secret, secret.hex().encode(), secret.hex().upper().encode()}
    for shift in range(3):
        inner = base64.b64encode(bytes(shift) + secret)[4 if shift else 0 :].rstrip(b"=")[:-1]
        found |= {inner, inner.replace(b"+", b"-").replace(b"/", b"_")}
    return {one for one in found if len(one) >= ENOUGH}


def private_parts(key_pem: bytes) -> set[bytes]:
    """What nobody else may have of a private key file: scalar or seed, in every spelling, and its lines.

    A vault's key file is 32 bytes, and no PEM.
    """
    if not key_pem.startswith(b"-----"):
        return spellings(key_pem)
    key = load_pem_private_key(key_pem, password=None)
    if isinstance(key, ec.EllipticCurvePrivateKey):
        raw = key.private_numbers().private_value.to_bytes(32, "big")
        both = spellings(raw) | spellings(raw[::-1])
    else:
        assert isinstance(key, ed25519.Ed25519PrivateKey), key
        both = spellings(key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption()))
    # The first line of a PKCS #8 body may hold nothing but the names of algorithms.
    lines = [line for line in key_pem.splitlines() if not line.startswith(b"-----")]
    return both | {line for line in lines[1:] if len(line) >= ENOUGH}


def keys_below(folder: Path) -> dict[Path, set[bytes]]:
    """The private parts of every key file below a folder."""
    return {path: private_parts(data) for path, data in sorted(contents(folder, ".key"))}


def contents(folder: Path, suffix: str = "") -> Iterator[tuple[Path, bytes]]:
    """Every file below a folder whose processes may be alive, with its bytes; a folder to come has none.

    A database makes and removes files of its own, and a file that is written durably has another name at
    first. So one that has gone since it was listed is left out, and what it may be called now is found by
    listing again, until a listing names nothing new. Whatever else keeps a file from being read is an
    error.

    Args:
        suffix: that the names of the files end with.
    """
    seen: set[Path] = set()
    while new := [
        path for path in _listed(folder) if path not in seen and path.name.endswith(suffix)
    ]:
        seen.update(new)
        for path in new:
            with suppress(FileNotFoundError):
                yield path, path.read_bytes()


def _listed(folder: Path) -> list[Path]:
    """All files below it, links and sockets left out."""

    def gone_is_fine(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    found = [
        Path(root, name)
        for root, _, names in os.walk(folder, onerror=gone_is_fine)
        for name in names
    ]
    return [path for path in found if not path.is_symlink() and not path.is_socket()]


def found_in(secrets: Iterable[bytes], *texts: bytes) -> set[bytes]:
    """The secrets that occur in a text."""
    return {secret for secret in secrets for text in texts if secret in text}
