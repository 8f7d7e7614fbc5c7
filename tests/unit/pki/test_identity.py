from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from hypothesis import given
from hypothesis import strategies as st

from fedpalm.errors import IdentityError
from fedpalm.pki.fingerprint import fingerprint
from fedpalm.pki.identity import (
    Identity,
    Role,
    coordinator_dns_name,
    identity_of,
    server_dns_name,
)
from fedpalm.pki.keys import new_tls_key
from fedpalm.pki.profile import federation_of

labels = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)


def leaf_with(*names: x509.GeneralName) -> x509.Certificate:
    """A self-signed certificate whose only interest is its alternative names."""
    key = new_tls_key()
    name = x509.Name([])
    start = datetime(2024, 1, 1, tzinfo=UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=1))
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
    return builder.sign(key, hashes.SHA256())


def uri(text: str) -> x509.UniformResourceIdentifier:
    return x509.UniformResourceIdentifier(text)


@given(labels, st.sampled_from(Role), labels)
def test_every_identity_survives_its_uri(federation: str, role: Role, name: str):
    identity = Identity(federation, role, name)
    assert Identity.from_uri(identity.uri) == identity


@pytest.mark.parametrize(
    "text",
    [
        "",
        "https://palms/participant/north",
        "spiffe://palms/participant",
        "spiffe://palms/participant/",
        "spiffe:///participant/north",
        "spiffe://palms/participant/north/",
        "spiffe://palms/participant/north/south",
        "spiffe://palms/participant/north?x=1",
        "spiffe://palms/participant/NORTH",
        "spiffe://palms/PARTICIPANT/north",
        "spiffe://palms/admin/north",
        "SPIFFE://palms/participant/north",
        "spiffe://palms:443/participant/north",
        "spiffe://user@palms/participant/north",
        "spiffe://palms/participant/no%72th",
        "spiffe://palms/participant/north\n",
        " spiffe://palms/participant/north",
        "spiffe://palms/participant/" + "n" * 64,
    ],
)
def test_a_uri_of_any_other_form_is_no_identity(text: str):
    with pytest.raises(IdentityError):
        Identity.from_uri(text)


def test_a_certificate_names_the_identity_of_its_uri():
    leaf = leaf_with(uri("spiffe://palms/auditor/vera"))
    assert identity_of(leaf) == Identity("palms", Role.AUDITOR, "vera")


@pytest.mark.parametrize(
    "names",
    [
        (),
        (x509.DNSName("north.example"),),
        (uri("spiffe://palms/participant/north"), uri("spiffe://palms/operator/ada")),
        (uri("spiffe://palms/participant/north"), uri("https://north.example")),
        (uri("spiffe://palms/participant/north"), x509.DNSName("hub.example")),
        (uri("spiffe://palms/coordinator/hub"), x509.RFC822Name("root@hub.example")),
    ],
    ids=[
        "no names",
        "no uri",
        "two identities",
        "a second uri",
        "a host name",
        "an e-mail address",
    ],
)
def test_a_certificate_that_could_be_read_in_two_ways_is_refused(names: tuple[x509.GeneralName]):
    with pytest.raises(IdentityError):
        identity_of(leaf_with(*names))


@pytest.mark.parametrize("role", list(Role))
def test_only_who_serves_has_host_names_beside_its_identity(role: Role):
    leaf = leaf_with(uri(f"spiffe://palms/{role.value}/hub"), x509.DNSName("hub.example"))
    if role in (Role.COORDINATOR, Role.VERIFIER):
        assert identity_of(leaf).role is role
    else:
        with pytest.raises(IdentityError):
            identity_of(leaf)


def test_the_two_servers_have_names_that_no_client_confuses():
    hub, verifier = (Identity("palms", role, "hub") for role in (Role.COORDINATOR, Role.VERIFIER))
    assert server_dns_name(hub) == coordinator_dns_name("palms") != server_dns_name(verifier)


def test_a_ca_certificate_names_its_federation_and_is_nobody(federation):
    assert federation_of(federation.authority.anchors[0]) == "palms"
    assert federation_of(federation.authority.issuing) == "palms"
    with pytest.raises(IdentityError):
        identity_of(federation.authority.issuing)


def test_a_leaf_is_not_taken_for_a_ca_of_a_federation(site):
    with pytest.raises(IdentityError):
        federation_of(site.leaf)


def test_fingerprints_differ_between_certificates_and_read_in_groups_of_four(federation, site):
    text = fingerprint(site.leaf)
    assert [len(group) for group in text.split(" ")] == [4] * 16
    assert text == fingerprint(site.leaf) != fingerprint(federation.authority.anchors[0])
