from __future__ import annotations

import ssl
from datetime import timedelta
from pathlib import Path

import pytest

from fedpalm.errors import IdentityError, KeyFileError
from fedpalm.pki.bundle import create_keys, install_certificates, load_tls_identity, pem_of
from fedpalm.pki.identity import Identity, Role, coordinator_dns_name
from fedpalm.pki.request import create_request

DAY_S = 86_400.0


def enrolled(folder: Path, federation, role: Role = Role.PARTICIPANT, name: str = "north") -> Path:
    identity = Identity("palms", role, name)
    leaf = federation.authority.issue(
        create_request(identity, *create_keys(folder)),
        identity,
        now=federation.now,
        lifetime=timedelta(days=30),
        dns_names=["hub.example"] if role is Role.COORDINATOR else [],
    )
    authority = federation.authority
    install_certificates(folder, [leaf, authority.issuing], authority.anchors, now=federation.now)
    return folder


@pytest.fixture
def home(tmp_path: Path, federation) -> Path:
    return enrolled(tmp_path / "north", federation)


def test_a_home_folder_loads_as_the_identity_it_was_enrolled_for(home: Path, federation):
    loaded = load_tls_identity(home, now=federation.now)
    assert loaded.identity == Identity("palms", Role.PARTICIPANT, "north")
    assert loaded.chain_pem == pem_of([loaded.leaf, federation.authority.issuing])
    assert loaded.ca_pem == pem_of(federation.authority.anchors)


def test_two_homes_complete_a_mutual_tls_handshake(tmp_path: Path, living_federation):
    site = enrolled(tmp_path / "north", living_federation)
    hub = enrolled(tmp_path / "hub", living_federation, Role.COORDINATOR, "hub")

    def context(folder: Path, purpose: int) -> ssl.SSLContext:
        made = ssl.SSLContext(purpose)
        made.load_cert_chain(folder / "tls.pem", folder / "tls.key")
        made.load_verify_locations(folder / "ca.pem")
        made.verify_mode = ssl.CERT_REQUIRED
        made.verify_flags |= ssl.VERIFY_X509_STRICT
        return made

    to_hub, to_site = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context(hub, ssl.PROTOCOL_TLS_SERVER).wrap_bio(to_hub, to_site, server_side=True)
    client = context(site, ssl.PROTOCOL_TLS_CLIENT).wrap_bio(
        to_site, to_hub, server_hostname=coordinator_dns_name("palms")
    )
    waiting = [client, server]
    for _ in range(10):
        for end in list(waiting):
            try:
                end.do_handshake()
                waiting.remove(end)
            except ssl.SSLWantReadError:
                continue
    assert waiting == []


@pytest.mark.parametrize("name", ["tls.key", "signing.key", "tls.pem", "ca.pem"])
def test_a_missing_file_is_named(home: Path, federation, name: str):
    (home / name).unlink()
    with pytest.raises(KeyFileError, match=name):
        load_tls_identity(home, now=federation.now)


@pytest.mark.parametrize("name", ["tls.pem", "ca.pem"])
def test_a_damaged_certificate_file_is_named(home: Path, federation, name: str):
    content = (home / name).read_bytes()
    (home / name).write_bytes(content[:200])
    with pytest.raises(KeyFileError, match=name):
        load_tls_identity(home, now=federation.now)


@pytest.mark.parametrize("name", ["tls.key", "signing.key"])
def test_a_key_that_others_can_read_is_refused(home: Path, federation, name: str):
    (home / name).chmod(0o640)
    with pytest.raises(KeyFileError, match="others can read"):
        load_tls_identity(home, now=federation.now)


@pytest.mark.parametrize("name", ["tls.key", "signing.key"])
def test_a_key_of_another_identity_is_refused(tmp_path: Path, home: Path, federation, name: str):
    other = enrolled(tmp_path / "south", federation, name="south")
    (home / name).write_bytes((other / name).read_bytes())
    with pytest.raises(IdentityError, match=name):
        load_tls_identity(home, now=federation.now)


def test_an_expired_identity_does_not_load(home: Path, federation):
    load_tls_identity(home, now=federation.now + 29 * DAY_S)
    with pytest.raises(IdentityError, match="expired"):
        load_tls_identity(home, now=federation.now + 31 * DAY_S)


def test_a_swapped_anchor_is_refused(home: Path, federation, stranger):
    (home / "ca.pem").write_bytes(pem_of(stranger.authority.anchors))
    with pytest.raises(IdentityError, match="CA"):
        load_tls_identity(home, now=federation.now)


def test_more_than_four_anchors_are_refused(home: Path, federation):
    (home / "ca.pem").write_bytes(pem_of(federation.authority.anchors * 5))
    with pytest.raises(IdentityError, match="at most 4"):
        load_tls_identity(home, now=federation.now)


def test_a_chain_for_other_keys_is_not_installed(tmp_path: Path, home: Path, federation):
    before = (home / "tls.pem").read_bytes()
    south = enrolled(tmp_path / "south", federation, name="south")
    chain = load_tls_identity(south, now=federation.now).chain
    with pytest.raises(IdentityError, match="not the certificate"):
        install_certificates(home, chain, federation.authority.anchors, now=federation.now)
    assert (home / "tls.pem").read_bytes() == before


def test_keys_are_made_once(home: Path):
    with pytest.raises(KeyFileError, match="exists already"):
        create_keys(home)


def test_a_private_key_shows_in_no_repr(home: Path, federation):
    text = repr(load_tls_identity(home, now=federation.now))
    assert "PRIVATE" not in text and "signing_key" not in text
