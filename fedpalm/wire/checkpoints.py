"""A checkpoint with its proof between its two forms: the core's and the wire's."""

from __future__ import annotations

from ..ledger.checkpoint import GivenCheckpoint
from . import statements
from .v1 import federation_pb2 as wire


def to_wire(given: GivenCheckpoint) -> wire.GivenCheckpoint:
    return wire.GivenCheckpoint(checkpoint=statements.to_wire(given.signed), proof=given.proof)


def from_wire(message: wire.GivenCheckpoint) -> GivenCheckpoint:
    """Inverse of :func:`to_wire`; checks form, not truth. Raises ProtocolError."""
    return GivenCheckpoint(statements.from_wire(message.checkpoint), tuple(message.proof))
