"""The certificate and trust anchors of a listener, which follow the files of its identity.

gRPC asks for a configuration at every handshake, from threads of its own; what it gets there was
prepared in the event loop, so nothing is read or parsed on the way of a handshake. Connections that are
open keep what they were made with.
"""

from __future__ import annotations

import logging
from collections import deque

import grpc

from ..errors import FedPalmError
from ..pki.bundle import TlsIdentity
from ..pki.fingerprint import fingerprint
from ..pki.live import LiveIdentity

log = logging.getLogger(__name__)


class ServerCredentials:
    """What ``add_secure_port`` takes, kept up to date by :meth:`refresh`.

    Args:
        identity: followed; its federation, role and name never change under a running listener.
        client_certificates: demand a certificate that leads to one of the identity's anchors;
            otherwise none is asked for.
    Raises:
        KeyFileError, IdentityError: the identity cannot be used now.
    """

    def __init__(self, identity: LiveIdentity, *, client_certificates: bool) -> None:
        self._live, self._mutual = identity, client_certificates
        self._used = identity.current
        self._complaint = ""
        # One place: only the newest counts. append and pop are atomic between threads.
        self._news: deque[grpc.ServerCertificateConfiguration] = deque(maxlen=1)
        self.for_grpc = grpc.dynamic_ssl_server_credentials(
            self._configuration(self._used),
            self._take_news,  # type: ignore[arg-type]  # None: nothing is new
            client_certificates,
        )

    @property
    def identity(self) -> TlsIdentity:
        """What new connections are made with."""
        return self._used

    def refresh(self) -> None:
        """Take up files that have changed; what cannot be used is logged once, and nothing changes."""
        try:
            found = self._live.current
        except FedPalmError as error:
            self._complain(error.what)
            return
        if found is self._used:
            return
        if found.identity != self._used.identity:
            self._complain(f"{found.identity} is not {self._used.identity}")
            return
        self._used, self._complaint = found, ""
        self._news.append(self._configuration(found))
        log.info(
            "new connections use certificate %s, valid until %s, and %d trust anchor(s)",
            fingerprint(found.leaf),
            found.leaf.not_valid_after_utc.isoformat(),
            len(found.anchors),
        )

    def _complain(self, what: str) -> None:
        if what != self._complaint:
            self._complaint = what
            log.error("the new certificate files are not used, the earlier ones go on: %s", what)

    def _configuration(self, tls: TlsIdentity) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration(
            [(tls.key_pem, tls.chain_pem)], tls.ca_pem if self._mutual else None
        )

    def _take_news(self) -> grpc.ServerCertificateConfiguration | None:
        try:
            return self._news.pop()
        except IndexError:
            return None
