"""A federation's CA and the people in it, made once for each test session."""

from __future__ import annotations

import ipaddress
import time
from dataclasses import dataclass
from datetime import timedelta

import pytest
from cryptography import x509

from fedpalm.pki.authority import Authority, create_authority
from fedpalm.pki.identity import Identity, Role
from fedpalm.pki.keys import SigningKey, TlsKey, new_signing_key, new_tls_key
from fedpalm.pki.request import create_request

NOW = 1_700_000_000.0


@dataclass(frozen=True)
class Person:
    identity: Identity
    tls_key: TlsKey
    signing_key: SigningKey
    leaf: x509.Certificate


@dataclass(frozen=True)
class Federation:
    authority: Authority
    root_key: TlsKey
    now: float = NOW

    def enrol(self, role: Role, name: str, lifetime: timedelta = timedelta(days=30)) -> Person:
        identity = Identity(self.authority.federation, role, name)
        tls_key, signing_key = new_tls_key(), new_signing_key()
        hosts = ["hub.example"] if role is Role.COORDINATOR else []
        leaf = self.authority.issue(
            create_request(identity, tls_key, signing_key),
            identity,
            now=self.now,
            lifetime=lifetime,
            dns_names=hosts,
            ip_addresses=[ipaddress.ip_address("127.0.0.1")] if hosts else [],
        )
        return Person(identity, tls_key, signing_key, leaf)


@pytest.fixture(scope="session")
def federation() -> Federation:
    return Federation(*create_authority("palms", NOW))


@pytest.fixture(scope="session")
def living_federation() -> Federation:
    """For what reads the machine's own clock."""
    now = time.time()
    return Federation(*create_authority("palms", now), now)


@pytest.fixture(scope="session")
def stranger() -> Federation:
    """Another CA that claims the same federation name."""
    return Federation(*create_authority("palms", NOW))


@pytest.fixture(scope="session")
def site(federation: Federation) -> Person:
    return federation.enrol(Role.PARTICIPANT, "north")
