"""Who is calling: read from the verified client certificate, never from the message."""

from __future__ import annotations

from dataclasses import dataclass

import grpc

from ..pki.identity import Identity


@dataclass(frozen=True)
class Peer:
    """The other end of a call.

    ``fingerprint`` is :func:`fedpalm.pki.fingerprint.fingerprint` of the leaf, ``not_after`` the Unix
    second at which it ends.
    """

    identity: Identity
    fingerprint: str
    not_after: float


def current_peer(context: grpc.aio.ServicerContext) -> Peer:
    """The peer of this call. Raises IdentityError if the certificate does not prove one."""
    raise NotImplementedError
