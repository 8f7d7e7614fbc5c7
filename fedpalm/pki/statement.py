"""Statements: what one party says for all others to check, now and later, without a channel.

A statement is canonical JSON of a closed set of fields, signed for one purpose by the long-term key of
the party that it names, with the certificates that say whose key that is. It is true only as far as
:meth:`Statement.open` says: form, signature, certificate, and that the signer is the one it must be.
"""

from __future__ import annotations

import base64
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar, Self

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from ..canonical import canonical_json, domain_hash
from ..errors import IdentityError, ProtocolError
from .bundle import TlsIdentity
from .identity import PARSE_ERRORS, Identity
from .signing import MAX_INTERMEDIATES, sign, verify_signed_by

MAX_STATEMENT_BYTES = 64 * 1024
MAX_SIGNED_BYTES = 256 * 1024

Label = Annotated[str, StringConstraints(pattern=r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$")]
"""A DNS label: a federation, a site, a run."""
HexHash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""32 bytes in lower-case hex."""
TimeMs = Annotated[int, Field(ge=0, lt=2**53)]
"""Milliseconds since the Unix epoch, by the signer's clock."""


@dataclass(frozen=True)
class SignedStatement:
    """A statement as it travels and is stored.

    Args:
        statement: the exact bytes that were signed.
        signature: 64 bytes, Ed25519.
        chain: the signer's certificate and what lies between it and a trust anchor.
    """

    statement: bytes
    signature: bytes
    chain: tuple[x509.Certificate, ...]

    @cached_property
    def hash(self) -> bytes:
        """32 bytes that name the statement, whoever signed it."""
        return domain_hash("statement/v1", self.statement)

    @cached_property
    def chain_der(self) -> list[bytes]:
        return [certificate.public_bytes(Encoding.DER) for certificate in self.chain]

    def last_valid(self, now: float) -> float:
        """When to look at an older statement, whose signer's certificate may have ended since.

        Returns:
            ``now``, or the end of the certificate if that is over; seconds since the Unix epoch.
        """
        return min(now, self.chain[0].not_valid_after_utc.timestamp())

    def to_bytes(self) -> bytes:
        """Canonical JSON, for a store or an exported file."""
        return canonical_json(
            {
                "statement": self.statement.decode(),
                "signature": self.signature.hex(),
                "chain": [base64.b64encode(der).decode() for der in self.chain_der],
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> SignedStatement:
        """Inverse of :meth:`to_bytes`; checks form, not truth. Raises ProtocolError."""
        if len(data) > MAX_SIGNED_BYTES:
            raise ProtocolError(f"a signed statement of {len(data)} bytes")
        try:
            values = json.loads(data)
            signed = cls.from_parts(
                values["statement"].encode(),
                bytes.fromhex(values["signature"]),
                [base64.b64decode(text, validate=True) for text in values["chain"]],
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ProtocolError(f"malformed signed statement: {error!r}") from error
        if signed.to_bytes() != data:
            raise ProtocolError("malformed signed statement: not in canonical form")
        return signed

    @classmethod
    def from_parts(
        cls, statement: bytes, signature: bytes, chain_der: Sequence[bytes]
    ) -> SignedStatement:
        """From the three fields of the wire.

        Raises:
            ProtocolError: certificates that are none, or a text that is none.
        """
        if len(statement) > MAX_STATEMENT_BYTES or len(signature) != 64:
            raise ProtocolError("malformed signed statement: sizes")
        if not 1 <= len(chain_der) <= MAX_INTERMEDIATES + 1:
            raise ProtocolError(f"a signed statement with {len(chain_der)} certificates")
        try:
            statement.decode()  # it is stored as text, see to_bytes
            chain = tuple(x509.load_der_x509_certificate(der) for der in chain_der)
        except PARSE_ERRORS as error:
            raise ProtocolError(f"malformed signed statement: {error}") from error
        return cls(statement, signature, chain)


class Statement(BaseModel, ABC):
    """Base of everything that is signed; a subclass names its purpose and its signer."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    DOMAIN: ClassVar[str]
    """Purpose of the signature; never reused for another form."""

    federation: Label

    @property
    @abstractmethod
    def signer(self) -> Identity:
        """The only party whose signature makes this statement true."""

    def to_bytes(self) -> bytes:
        """Canonical JSON: exactly what is signed."""
        return canonical_json(self.model_dump(mode="json"))

    @cached_property
    def hash(self) -> bytes:
        """32 bytes that name this statement: :attr:`SignedStatement.hash` of its signed form."""
        return domain_hash("statement/v1", self.to_bytes())

    def sign(self, identity: TlsIdentity) -> SignedStatement:
        """Sign as the party that the statement names. Raises IdentityError for anybody else."""
        if identity.identity != self.signer:
            raise IdentityError(f"{identity.identity} cannot sign what {self.signer} says")
        message = self.to_bytes()
        return SignedStatement(
            message, sign(identity.signing_key, self.DOMAIN, message), identity.chain
        )

    @classmethod
    def read(cls, signed: SignedStatement) -> Self:
        """What a statement says, unverified: for one's own store, and to know what to ask for.

        Raises:
            ProtocolError: not a statement of this form, or not in canonical form.
        """
        try:
            found = cls.model_validate_json(signed.statement)
        except ValidationError as error:
            raise ProtocolError(
                f"malformed {cls.DOMAIN}: {error.errors()[0]['msg'][:200]}"
            ) from None
        if found.to_bytes() != signed.statement:
            raise ProtocolError(f"malformed {cls.DOMAIN}: not in canonical form")
        return found

    @classmethod
    def open(
        cls, signed: SignedStatement, anchors: Sequence[x509.Certificate], *, now: float
    ) -> Self:
        """What a statement says, if the party that it names has signed it.

        Args:
            anchors: the pinned trust.
            now: seconds since the Unix epoch at which the certificate must be valid: the present, or
                for a statement from a log the time at which it was logged.
        Raises:
            ProtocolError: as :meth:`read`.
            IdentityError, WrongRoleError: not signed by the one it names, or not under this trust.
        """
        found = cls.read(signed)
        expected = found.signer
        by = verify_signed_by(
            signed.chain,
            anchors,
            domain=cls.DOMAIN,
            message=signed.statement,
            signature=signed.signature,
            now=now,
            role=expected.role,
            federation=expected.federation,
        )
        if by != expected:
            raise IdentityError(f"a {cls.DOMAIN} of {expected} is signed by {by}")
        return found
