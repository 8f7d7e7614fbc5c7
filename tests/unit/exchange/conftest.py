"""Three sites that have all said yes to one exchange, and what it takes to make others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from cryptography import x509

from fedpalm.exchange.consent import Agreement, Consent, SignedConsent, sign_consent
from fedpalm.exchange.terms import ExchangeTerms
from fedpalm.layout import FloatVector, Layout, TensorSpec
from fedpalm.pki.authority import Authority, create_authority
from fedpalm.pki.hybrid import HybridKey
from fedpalm.pki.identity import Identity, Role
from fedpalm.pki.keys import SigningKey, new_signing_key, new_tls_key
from fedpalm.pki.request import create_request

NOW = 1_700_000_000.0
ROSTER = ("east", "north", "west")
LAYOUT = Layout(
    (TensorSpec("closed_set.expert.gabor.sigma", ()), TensorSpec("closed_set.expert.conv", (8, 5)))
)
EXPERT: FloatVector = np.linspace(-1, 1, LAYOUT.size, dtype=np.float32)


@dataclass(frozen=True)
class Site:
    name: str
    signing_key: SigningKey
    chain: tuple[x509.Certificate, ...]
    recipient_key: HybridKey

    def consent(self, terms: ExchangeTerms, key: HybridKey | None = None) -> SignedConsent:
        consent = Consent(terms, self.name, (key or self.recipient_key).public_bytes)
        return sign_consent(consent, self.signing_key, self.chain)


@dataclass(frozen=True)
class World:
    authority: Authority
    sites: dict[str, Site]
    terms: ExchangeTerms

    def enrol(self, name: str, role: Role = Role.PARTICIPANT) -> Site:
        return enrol(self.authority, name, role)

    def consents(self, terms: ExchangeTerms | None = None) -> list[SignedConsent]:
        return [self.sites[name].consent(terms or self.terms) for name in ROSTER]

    def agree(
        self, consents: Iterable[SignedConsent] | None = None, terms: ExchangeTerms | None = None
    ) -> Agreement:
        terms = terms or self.terms
        given = self.consents(terms) if consents is None else consents
        return Agreement(given, terms, self.authority.anchors, now=NOW)

    def variant(self, **changes: object) -> Agreement:
        """The same sites' agreement to other terms."""
        return self.agree(terms=replace(self.terms, **changes))


def enrol(authority: Authority, name: str, role: Role = Role.PARTICIPANT) -> Site:
    identity = Identity(authority.federation, role, name)
    signing_key = new_signing_key()
    request = create_request(identity, new_tls_key(), signing_key)
    chain = (authority.issue(request, identity, now=NOW), authority.issuing)
    return Site(name, signing_key, chain, HybridKey.generate())


@pytest.fixture(scope="session")
def world() -> World:
    authority, _ = create_authority("palms", NOW)
    terms = ExchangeTerms(
        federation="palms",
        run="trial-0001",
        exchange_id="trial-0001-x1",
        plan_hash=bytes(range(32)),
        roster=ROSTER,
        layout_hash=LAYOUT.hash,
    )
    return World(authority, {name: enrol(authority, name) for name in ROSTER}, terms)


@pytest.fixture(scope="session")
def agreement(world: World) -> Agreement:
    return world.agree()
