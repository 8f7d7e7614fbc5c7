"""How an application dials a site's own verification service; the site itself does not."""

from __future__ import annotations

from typing import Any

import grpc

from ..pki.bundle import TlsIdentity
from ..pki.identity import verifier_dns_name
from ..wire.v1.verification_pb2_grpc import VerificationStub
from .channel import Dialled, MethodFactory


class VerificationConnection(Dialled):
    """An application's connection to the verification service of the site that has allowed it.

    Args:
        tls: what ``fedpalm-participant serve allow`` made (:func:`fedpalm.pki.bundle.load_tls_identity`).

    ``verification`` is the stub, whose methods go into :meth:`unary` and :meth:`upload`. They raise
    FedPalmError: what the service raised, or what gRPC reports.
    """

    verification: Any

    def __init__(self, address: str, tls: TlsIdentity) -> None:
        credentials = grpc.ssl_channel_credentials(tls.ca_pem, tls.key_pem, tls.chain_pem)
        super().__init__(address, verifier_dns_name(tls.identity.federation), credentials)
        self._if_absent = "start the service (fedpalm-participant serve), or check the address"

    def _make_stubs(self, methods: MethodFactory) -> None:
        self.verification = VerificationStub(methods)  # type: ignore[no-untyped-call]
