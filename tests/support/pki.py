"""A federation's CA in memory, and identities of it as a process would load them."""

from __future__ import annotations

import ipaddress
import time
from datetime import timedelta

from cryptography import x509

from fedpalm.pki.authority import Authority, create_authority
from fedpalm.pki.bundle import TlsIdentity, pem_of
from fedpalm.pki.identity import Identity, Role
from fedpalm.pki.keys import SigningKey, new_signing_key, new_tls_key, private_key_pem
from fedpalm.pki.request import create_request


class TestAuthority:
    """A CA of ``federation``, valid now."""

    __test__ = False

    def __init__(self, federation: str) -> None:
        self.authority = create_authority(federation, time.time())[0]

    @classmethod
    def of(cls, authority: Authority) -> TestAuthority:
        """The same for a CA that exists, of a running federation for example."""
        made = cls.__new__(cls)
        made.authority = authority
        return made

    def enrol(
        self,
        role: Role,
        name: str,
        *,
        now: float | None = None,
        lifetime: timedelta = timedelta(days=30),
    ) -> TlsIdentity:
        """A new identity; ``now`` in the past makes an expired one."""
        identity = Identity(self.authority.federation, role, name)
        tls_key, signing_key = new_tls_key(), new_signing_key()
        serves = role is Role.COORDINATOR
        leaf = self.authority.issue(
            create_request(identity, tls_key, signing_key),
            identity,
            now=time.time() if now is None else now,
            lifetime=lifetime,
            ip_addresses=[ipaddress.ip_address("127.0.0.1")] if serves else [],
        )
        return self.assemble(identity, leaf, private_key_pem(tls_key), signing_key)

    def assemble(
        self,
        identity: Identity,
        leaf: x509.Certificate,
        key_pem: bytes,
        signing_key: SigningKey | None = None,
    ) -> TlsIdentity:
        """Any leaf and key as an identity of this federation, unchecked."""
        return TlsIdentity(
            identity=identity,
            chain_pem=pem_of(self.authority.chain(leaf)),
            key_pem=key_pem,
            ca_pem=pem_of(self.authority.anchors),
            signing_key=signing_key or new_signing_key(),
            chain=self.authority.chain(leaf),
            anchors=self.authority.anchors,
        )
