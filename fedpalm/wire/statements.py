"""A signed statement between its two forms: the core's and the wire's."""

from __future__ import annotations

from ..pki.statement import SignedStatement
from .v1 import federation_pb2 as wire


def to_wire(signed: SignedStatement) -> wire.SignedStatement:
    return wire.SignedStatement(
        statement=signed.statement, signature=signed.signature, chain=signed.chain_der
    )


def from_wire(message: wire.SignedStatement) -> SignedStatement:
    """Inverse of :func:`to_wire`; checks form, not truth. Raises ProtocolError."""
    return SignedStatement.from_parts(
        bytes(message.statement), bytes(message.signature), list(message.chain)
    )
