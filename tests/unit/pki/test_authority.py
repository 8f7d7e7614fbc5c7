from __future__ import annotations

import ipaddress
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from fedpalm.errors import IdentityError, KeyFileError
from fedpalm.pki.authority import (
    LEAF_LIFETIME,
    MAX_LEAF_LIFETIME,
    create_authority,
    load_authority,
    save_authority,
)
from fedpalm.pki.bundle import pem_of
from fedpalm.pki.identity import Identity, Role, coordinator_dns_name
from fedpalm.pki.keys import new_signing_key, new_tls_key
from fedpalm.pki.request import create_request
from fedpalm.pki.signing import at_time

NORTH = Identity("palms", Role.PARTICIPANT, "north")
HUB = Identity("palms", Role.COORDINATOR, "hub")


def request(identity: Identity) -> x509.CertificateSigningRequest:
    return create_request(identity, new_tls_key(), new_signing_key())


def test_the_ca_never_issues_another_name_than_the_operator_means(federation):
    with pytest.raises(IdentityError, match=r"asks for .*/south, not for .*/north"):
        federation.authority.issue(
            request(Identity("palms", Role.PARTICIPANT, "south")), NORTH, now=federation.now
        )


def test_the_ca_never_issues_another_role_than_the_operator_means(federation):
    with pytest.raises(IdentityError, match="asks for"):
        federation.authority.issue(
            request(Identity("palms", Role.OPERATOR, "north")), NORTH, now=federation.now
        )


def test_the_ca_issues_for_its_own_federation_only(federation):
    outsider = Identity("prints", Role.PARTICIPANT, "north")
    with pytest.raises(IdentityError, match="not of federation"):
        federation.authority.issue(request(outsider), outsider, now=federation.now)


def test_only_who_serves_gets_host_names(federation):
    issue = federation.authority.issue
    for hosts in ({"dns_names": ["a.example"]}, {"ip_addresses": [ipaddress.ip_address("::1")]}):
        with pytest.raises(IdentityError, match="belong to a server"):
            issue(request(NORTH), NORTH, now=federation.now, **hosts)


def test_a_host_name_that_is_none_is_refused(federation):
    with pytest.raises(IdentityError, match="DNS names"):
        federation.authority.issue(request(HUB), HUB, now=federation.now, dns_names=["hüb"])


@pytest.mark.parametrize("days", [-1, 0, 399])
def test_a_lifetime_out_of_bounds_is_refused(federation, days: int):
    with pytest.raises(IdentityError, match="lives at most"):
        federation.authority.issue(
            request(NORTH), NORTH, now=federation.now, lifetime=timedelta(days=days)
        )


def test_a_leaf_ends_with_its_issuing_ca_and_none_begins_after_it(federation):
    end = federation.authority.issuing.not_valid_after_utc
    leaf = federation.authority.issue(
        request(NORTH), NORTH, now=end.timestamp() - 60, lifetime=MAX_LEAF_LIFETIME
    )
    assert leaf.not_valid_after_utc == end
    with pytest.raises(IdentityError, match="issuing CA expired"):
        federation.authority.issue(request(NORTH), NORTH, now=end.timestamp())


def test_a_leaf_has_the_profile_of_a_leaf(federation, site):
    leaf = federation.authority.issue(request(NORTH), NORTH, now=federation.now)
    extensions = leaf.extensions
    assert extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical and usage.value.digital_signature and not usage.value.key_cert_sign
    assert list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.CLIENT_AUTH
    ]
    assert leaf.not_valid_before_utc == at_time(federation.now) - timedelta(minutes=5)
    assert leaf.not_valid_after_utc == at_time(federation.now) + LEAF_LIFETIME
    assert leaf.serial_number != site.leaf.serial_number
    assert leaf.serial_number.bit_length() > 64


def test_a_coordinator_serves_under_its_fixed_name_its_host_names_and_addresses(federation):
    address = ipaddress.ip_address("192.0.2.7")
    leaf = federation.authority.issue(
        request(HUB), HUB, now=federation.now, dns_names=["hub.example"], ip_addresses=[address]
    )
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [coordinator_dns_name("palms"), "hub.example"]
    assert names.get_values_for_type(x509.IPAddress) == [address]
    assert list(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.SERVER_AUTH
    ]


def test_the_issuing_ca_can_make_leaves_but_no_further_ca(federation):
    authority = federation.authority
    constraints = [
        ca.extensions.get_extension_for_class(x509.BasicConstraints)
        for ca in (authority.anchors[0], authority.issuing)
    ]
    assert [(c.critical, c.value.ca, c.value.path_length) for c in constraints] == [
        (True, True, 2),
        (True, True, 0),
    ]


def test_an_authority_issues_after_reloading_with_its_root_key_taken_away(
    tmp_path: Path, federation
):
    folder = tmp_path / "ca"
    save_authority(folder, federation.authority, federation.root_key)
    (folder / "root.key").rename(tmp_path / "offline.key")
    authority = load_authority(folder)
    assert authority.federation == "palms"
    leaf = authority.issue(request(NORTH), NORTH, now=federation.now)
    leaf.verify_directly_issued_by(federation.authority.issuing)


def test_a_ca_is_never_overwritten(tmp_path: Path, federation, stranger):
    save_authority(tmp_path / "ca", federation.authority, federation.root_key)
    before = {path.name: path.read_bytes() for path in (tmp_path / "ca").iterdir()}
    with pytest.raises(KeyFileError, match="exists already"):
        save_authority(tmp_path / "ca", stranger.authority, stranger.root_key)
    assert {path.name: path.read_bytes() for path in (tmp_path / "ca").iterdir()} == before


@pytest.mark.parametrize("swapped", ["anchors.pem", "issuing.pem"])
def test_certificates_of_another_ca_are_refused_on_loading(
    tmp_path: Path, federation, stranger, swapped: str
):
    folder = tmp_path / "ca"
    save_authority(folder, federation.authority, federation.root_key)
    other = {
        "anchors.pem": stranger.authority.anchors[0],
        "issuing.pem": stranger.authority.issuing,
    }
    (folder / swapped).write_bytes(pem_of([other[swapped]]))
    with pytest.raises(IdentityError):
        load_authority(folder)


def test_a_private_key_shows_in_no_repr(federation):
    assert "key" not in repr(federation.authority)


def test_a_federation_name_that_is_no_dns_label_is_refused():
    with pytest.raises(IdentityError):
        create_authority("The Palms", 0.0)
