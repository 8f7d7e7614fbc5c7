"""A peer is who its certificate says, on a channel that is what it must be, or nobody."""

from __future__ import annotations

import pytest

from fedpalm.errors import IdentityError
from fedpalm.pki.bundle import pem_of
from fedpalm.pki.fingerprint import fingerprint
from fedpalm.pki.identity import Role
from fedpalm.transport.peer import peer_of
from tests.support.pki import TestAuthority

SITE = TestAuthority("palms").enrol(Role.PARTICIPANT, "north")
CHANNEL = {
    "transport_security_type": [b"ssl"],
    "ssl_tls_version": [b"TLSv1.3"],
    "ssl_negotiated_key_exchange_group": [b"X25519MLKEM768"],
    "x509_pem_cert": [pem_of([SITE.leaf])],
}


def test_the_peer_is_named_by_its_leaf() -> None:
    peer = peer_of(CHANNEL)
    assert peer.identity == SITE.identity
    assert peer.fingerprint == fingerprint(SITE.leaf)
    assert peer.not_after == SITE.leaf.not_valid_after_utc.timestamp()


@pytest.mark.parametrize("key", CHANNEL)
def test_without_any_one_property_of_the_channel_there_is_no_peer(key: str) -> None:
    with pytest.raises(IdentityError):
        peer_of({k: v for k, v in CHANNEL.items() if k != key})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("transport_security_type", b"insecure"),
        ("ssl_tls_version", b"TLSv1.2"),
        ("ssl_negotiated_key_exchange_group", b"X25519"),
        ("x509_pem_cert", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
    ],
)
def test_another_value_of_a_property_is_no_peer(key: str, value: bytes) -> None:
    with pytest.raises(IdentityError):
        peer_of({**CHANNEL, key: [value]})


def test_two_values_where_one_belongs_are_no_peer() -> None:
    with pytest.raises(IdentityError):
        peer_of({**CHANNEL, "ssl_tls_version": [b"TLSv1.3", b"TLSv1.3"]})


def test_an_empty_channel_is_no_peer() -> None:
    with pytest.raises(IdentityError):
        peer_of({})
