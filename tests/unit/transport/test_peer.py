"""A peer is who its certificate says, on a channel that is what it must be, or nobody."""

from __future__ import annotations

from typing import Any, cast

import pytest

from fedpalm.errors import IdentityError
from fedpalm.pki.bundle import pem_of
from fedpalm.pki.fingerprint import fingerprint
from fedpalm.pki.identity import Role
from fedpalm.transport.peer import caller_address, check_channel, peer_of
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


@pytest.mark.parametrize("key", [key for key in CHANNEL if key != "x509_pem_cert"])
def test_a_newcomer_needs_the_same_channel_without_a_certificate(key: str) -> None:
    channel = {k: v for k, v in CHANNEL.items() if k != "x509_pem_cert"}
    check_channel(channel)
    with pytest.raises(IdentityError, match=key):
        check_channel({k: v for k, v in channel.items() if k != key})


class _Context:
    def __init__(self, peer: str) -> None:
        self._peer = peer

    def peer(self) -> str:
        return self._peer


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:192.0.2.7:50123", "192.0.2.7"),
        ("ipv6:%5B2001:db8::1%5D:50123", "2001:db8::1"),
        ("ipv6:[::ffff:192.0.2.7]:1", "::ffff:192.0.2.7"),
        ("unix:", ""),
        ("", ""),
    ],
)
def test_the_address_of_a_caller_is_told_without_its_port(peer: str, address: str) -> None:
    assert caller_address(cast(Any, _Context(peer))) == address
