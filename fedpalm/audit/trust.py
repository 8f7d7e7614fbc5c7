"""Whom the auditor trusts: pinned anchors and, better, the pinned signing key of each party.

A trust file is either PEM certificates (a federation's ``ca.pem``) or TOML::

    anchors = '''
    -----BEGIN CERTIFICATE-----
    ...
    '''
    [keys]                      # optional: what each party read out, by telephone or in person
    coordinator = "64 hex digits"
    site-a = "64 hex digits"

With anchors alone, the CA says which key is whose, and so does whoever runs the CA.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from pydantic import Field, ValidationError

from ..errors import ConfigError, FedPalmError, IdentityError, ProtocolError, WrongRoleError
from ..pki.bundle import chain_from_pem
from ..pki.identity import Identity, identity_of
from ..pki.keys import VerifyingKey
from ..pki.request import signing_key_of
from ..pki.signing import key_id, verify, verify_chain
from ..pki.statement import HexHash, Label, SignedStatement, Statement
from ..settings import Settings, parse_settings
from .findings import AuditStopped, Exit

MAX_TRUST_BYTES = 1024 * 1024
S = TypeVar("S", bound=Statement)


@dataclass(frozen=True)
class Trust:
    """Pinned certificates, and hex signing-key ids by the name of their party."""

    anchors: tuple[x509.Certificate, ...]
    keys: Mapping[str, str] = field(default_factory=dict)


class _TrustFile(Settings):
    anchors: str
    keys: dict[Label, HexHash] = Field(default_factory=dict)


def read_trust(path: Path) -> Trust:
    """The auditor's own file.

    Raises:
        ConfigError: it cannot be read, or is neither PEM nor TOML of this form.
    """
    try:
        content = path.read_bytes()
        if len(content) > MAX_TRUST_BYTES:
            raise ConfigError(f"{path}: {len(content)} bytes are no trust file")
        if content.lstrip().startswith(b"-----BEGIN"):
            return Trust(chain_from_pem(content, str(path)))
        said = parse_settings(_TrustFile, tomllib.loads(content.decode()), str(path))
        return Trust(chain_from_pem(said.anchors.encode(), str(path)), said.keys)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (ValueError, ValidationError) as error:
        raise ConfigError(f"{path}: neither PEM certificates nor TOML: {error}") from error
    except IdentityError as error:
        raise ConfigError(
            f"{path}: {error.what}", next_step="docs/guides/AUDITOR.md shows a trust file"
        ) from error


@dataclass(frozen=True)
class Signer:
    """Whose certificate this is, the long-term key that it binds, and when the CA issued it."""

    identity: Identity
    key: VerifyingKey
    key_id: str
    issued: datetime


class Signers:
    """Statements, opened under the pinned trust; each certificate chain is checked once.

    A certificate is looked at for the moment at which it was issued: that it has ended since says nothing
    about what was signed, and when that was is the signer's own word.
    """

    def __init__(self, trust: Trust, federation: str) -> None:
        self._trust, self._federation = trust, federation
        self._known: dict[tuple[x509.Certificate, ...], Signer] = {}
        self.unpinned: set[str] = set()

    def signer(self, chain: tuple[x509.Certificate, ...], where: str) -> Signer:
        """Raises AuditStopped: not under the pinned trust, or with another key than the pinned one."""
        if chain not in self._known:
            self._known[chain] = self._checked(chain, where)
        return self._known[chain]

    def open(self, form: type[S], signed: SignedStatement, where: str) -> S:
        """What a statement says, if the party that it names has signed it.

        Raises:
            AuditStopped: malformed, or signed by somebody else.
        """
        try:
            found = form.read(signed)
        except ProtocolError as error:
            raise AuditStopped(Exit.MALFORMED, where, error.what) from None
        signer = self.signer(signed.chain, where)
        if signer.identity != found.signer:
            raise AuditStopped(
                Exit.TAMPERED, where, f"what {found.signer} says is signed by {signer.identity}"
            )
        self.check(signer, form.DOMAIN, signed.statement, signed.signature, where)
        return found

    @staticmethod
    def check(signer: Signer, domain: str, message: bytes, signature: bytes, where: str) -> None:
        """Raises AuditStopped: the signature is not the signer's."""
        try:
            verify(signer.key, domain, message, signature)
        except IdentityError as error:
            raise AuditStopped(Exit.TAMPERED, where, error.what) from None

    def _checked(self, chain: tuple[x509.Certificate, ...], where: str) -> Signer:
        leaf = chain[0]
        try:
            claimed = identity_of(leaf)
            identity = verify_chain(
                leaf,
                chain[1:],
                self._trust.anchors,
                now=leaf.not_valid_before_utc.timestamp(),
                role=claimed.role,
                federation=self._federation,
            )
            key = signing_key_of(leaf)
        except (IdentityError, WrongRoleError) as error:
            raise AuditStopped(Exit.TAMPERED, where, error.what) from None
        except FedPalmError as error:
            raise AuditStopped(Exit.MALFORMED, where, error.what) from None
        named = key_id(key).hex()
        pinned = self._trust.keys.get(identity.name)
        if pinned is None:
            self.unpinned.add(identity.name)
        elif pinned != named:
            raise AuditStopped(
                Exit.TAMPERED,
                where,
                f"the signing key of {identity.name} is {named[:16]}, you pinned {pinned[:16]}",
            )
        return Signer(identity, key, named, leaf.not_valid_before_utc)
