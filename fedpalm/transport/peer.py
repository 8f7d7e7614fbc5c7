"""Who is calling: read from the verified client certificate, never from the message."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

import grpc
from cryptography import x509

from ..errors import IdentityError
from ..pki.fingerprint import fingerprint
from ..pki.identity import Identity, identity_of

TLS_VERSION = "TLSv1.3"
# X25519 with ML-KEM-768: what is recorded today stays closed to a later quantum computer.
KEY_EXCHANGE_GROUP = "X25519MLKEM768"


@dataclass(frozen=True)
class Peer:
    """The other end of a call.

    ``fingerprint`` is :func:`fedpalm.pki.fingerprint.fingerprint` of the leaf, ``not_after`` the Unix
    second at which it ends.
    """

    identity: Identity
    fingerprint: str
    not_after: float


# grpc-stubs makes the context generic in message types that an interceptor cannot know.
Context = grpc.aio.ServicerContext[Any, Any]


def current_peer(context: Context) -> Peer:
    """The peer of this call.

    TLS has verified the chain up to the federation's root; here the channel and the name are checked.

    Raises:
        IdentityError: the channel is not TLS 1.3 with a hybrid key exchange and a client certificate,
            or the certificate does not carry exactly one identity.
    """
    return peer_of(context.auth_context())


def peer_of(auth_context: Mapping[str, Iterable[bytes]]) -> Peer:
    """:func:`current_peer` of what gRPC tells about a channel."""
    check_channel(auth_context)
    certificates = list(auth_context.get("x509_pem_cert", ()))
    if len(certificates) != 1:
        raise IdentityError("the call came without a client certificate")
    return _peer(certificates[0])


def check_channel(auth_context: Mapping[str, Iterable[bytes]]) -> None:
    """Raises IdentityError unless the channel is TLS 1.3 with a hybrid key exchange."""
    _expect(auth_context, "transport_security_type", "ssl")
    _expect(auth_context, "ssl_tls_version", TLS_VERSION)
    _expect(auth_context, "ssl_negotiated_key_exchange_group", KEY_EXCHANGE_GROUP)


def caller_address(context: Context) -> str:
    """The IP address at the other end of the connection: of the caller, or of a proxy before it."""
    _, _, rest = unquote(context.peer()).partition(":")
    return rest.rpartition(":")[0].strip("[]")


def _expect(channel: Mapping[str, Iterable[bytes]], key: str, wanted: str) -> None:
    found = [value.decode("ascii", "replace") for value in channel.get(key, ())]
    if found != [wanted]:
        raise IdentityError(f"the channel's {key} is {', '.join(found) or 'unknown'}, not {wanted}")


@lru_cache(maxsize=1024)
def _peer(pem: bytes) -> Peer:
    try:
        certificate = x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise IdentityError(f"the client certificate cannot be read: {error}") from error
    return Peer(
        identity=identity_of(certificate),
        fingerprint=fingerprint(certificate),
        not_after=certificate.not_valid_after_utc.timestamp(),
    )
