"""Renewals and changes of anchors in a home folder, cut off wherever they can be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from stat import S_IMODE

import pytest
from cryptography import x509

from fedpalm.clock import FakeClock
from fedpalm.errors import IdentityError, KeyFileError
from fedpalm.pki.authority import Authority, create_authority, load_authority, save_authority
from fedpalm.pki.bundle import (
    TlsIdentity,
    begin_renewal,
    create_keys,
    install_certificates,
    load_tls_identity,
    replace_anchors,
)
from fedpalm.pki.custody import retire_anchor, rotate_root
from fedpalm.pki.identity import Identity, Role
from fedpalm.pki.keys import read_tls_key
from fedpalm.pki.live import LiveIdentity
from fedpalm.pki.request import create_request
from tests.unit.pki.conftest import crashes

NOW = 1_700_000_000.0
DAY_S = 86_400.0
NORTH = Identity("palms", Role.PARTICIPANT, "north")


@dataclass(frozen=True)
class Site:
    home: Path
    ca: Path

    @property
    def authority(self) -> Authority:
        return load_authority(self.ca)

    def renew(self, home: Path, anchors: Sequence[x509.Certificate]) -> TlsIdentity:
        authority = self.authority
        csr = begin_renewal(home, load_tls_identity(home, now=NOW))
        leaf = authority.issue(csr, NORTH, now=NOW)
        return install_certificates(home, authority.chain(leaf), anchors, now=NOW)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    save_authority(tmp_path / "ca", *create_authority("palms", NOW))
    made = Site(tmp_path / "north", tmp_path / "ca")
    authority = made.authority
    leaf = authority.issue(create_request(NORTH, *create_keys(made.home)), NORTH, now=NOW)
    install_certificates(made.home, authority.chain(leaf), authority.anchors, now=NOW)
    return made


def same_key(identity: TlsIdentity, home: Path) -> bool:
    """Whether the key in memory, the leaf and ``tls.key`` belong together."""
    public = read_tls_key(home / "tls.key").public_key()
    return identity.leaf.public_key() == public


def test_a_renewal_has_a_fresh_tls_key_and_the_same_signing_key(site: Site):
    before = load_tls_identity(site.home, now=NOW)
    after = site.renew(site.home, before.anchors)
    assert after.identity == before.identity
    assert after.leaf.public_key() != before.leaf.public_key()
    assert after.signing_key.public_key() == before.signing_key.public_key()
    assert after.key_pem != before.key_pem and same_key(after, site.home)
    assert not (site.home / "tls.next.key").exists()
    assert S_IMODE((site.home / "tls.key").stat().st_mode) == 0o600


def test_the_present_identity_goes_on_until_its_successor_is_installed(site: Site):
    before = load_tls_identity(site.home, now=NOW)
    begin_renewal(site.home, before)
    assert S_IMODE((site.home / "tls.next.key").stat().st_mode) == 0o600
    assert load_tls_identity(site.home, now=NOW).leaf == before.leaf


def test_a_renewal_that_got_no_answer_goes_on_with_the_key_that_it_made(site: Site):
    before = load_tls_identity(site.home, now=NOW)
    first, second = begin_renewal(site.home, before), begin_renewal(site.home, before)
    assert first.public_key() == second.public_key()
    assert site.renew(site.home, before.anchors).leaf.public_key() == first.public_key()


def test_two_answers_to_one_renewal_may_both_be_installed(site: Site):
    before = load_tls_identity(site.home, now=NOW)
    csr = begin_renewal(site.home, before)
    for _ in range(2):
        leaf = site.authority.issue(csr, NORTH, now=NOW)
        chain = site.authority.chain(leaf)
        assert install_certificates(site.home, chain, before.anchors, now=NOW).leaf == leaf
    assert begin_renewal(site.home, before).public_key() != csr.public_key()


def test_a_next_key_that_others_can_read_is_refused(site: Site):
    before = load_tls_identity(site.home, now=NOW)
    begin_renewal(site.home, before)
    (site.home / "tls.next.key").chmod(0o644)
    with pytest.raises(KeyFileError, match="others can read"):
        begin_renewal(site.home, before)
    assert load_tls_identity(site.home, now=NOW).leaf == before.leaf


def test_a_renewal_that_is_cut_off_anywhere_leaves_a_whole_identity(site: Site, tmp_path: Path):
    anchors = site.authority.anchors
    signing = load_tls_identity(site.home, now=NOW).signing_key.public_key()
    leaves = set()
    for home in crashes(site.home, lambda one: site.renew(one, anchors), tmp_path / "points"):
        found = load_tls_identity(home, now=NOW)
        assert same_key(found, home) and found.signing_key.public_key() == signing
        leaves.add(found.leaf)
        again = site.renew(home, anchors)
        assert again.leaf != found.leaf and same_key(load_tls_identity(home, now=NOW), home)
    assert len(leaves) >= 2, "some points lie before the new leaf is in force, some after"


def test_a_renewal_under_a_new_root_alone_is_whole_wherever_it_is_cut_off(
    site: Site, tmp_path: Path
):
    older = rotate_root(site.ca, NOW).anchors[0]
    newest = retire_anchor(site.ca).anchors
    for home in crashes(site.home, lambda one: site.renew(one, newest), tmp_path / "points"):
        found = load_tls_identity(home, now=NOW)
        assert same_key(found, home)
        # Oldest first, which is how a site knows which of its anchors may be dropped.
        assert found.anchors in {(older,), (older, *newest), newest}
        assert site.renew(home, newest).anchors == newest
    done = site.renew(site.home, newest)
    assert done.anchors == newest and len(done.past_anchors) == 1
    assert set(done.record_anchors) == {*newest, *done.past_anchors}


def test_anchors_are_replaced_while_the_certificate_stays(site: Site, tmp_path: Path):
    both = rotate_root(site.ca, NOW).anchors
    before = load_tls_identity(site.home, now=NOW)
    for home in crashes(site.home, lambda one: replace_anchors(one, both), tmp_path / "points"):
        assert load_tls_identity(home, now=NOW).leaf == before.leaf
    replace_anchors(site.home, both)
    after = load_tls_identity(site.home, now=NOW)
    assert after.anchors == both and after.leaf == before.leaf and after.past_anchors == ()


def test_an_anchor_that_the_certificate_stands_under_is_not_dropped(site: Site):
    rotate_root(site.ca, NOW)
    newest = retire_anchor(site.ca).anchors
    with pytest.raises(IdentityError, match="not under the trust anchors") as caught:
        replace_anchors(site.home, newest)
    assert "renew" in caught.value.next_step
    load_tls_identity(site.home, now=NOW)


def test_a_dropped_anchor_is_kept_for_old_statements_and_trusted_for_nothing_else(
    site: Site, tmp_path: Path
):
    old = site.authority.anchors
    stale = load_tls_identity(site.home, now=NOW)
    both = rotate_root(site.ca, NOW).anchors
    site.renew(site.home, both)
    newest = retire_anchor(site.ca).anchors
    replace_anchors(site.home, newest)
    now = load_tls_identity(site.home, now=NOW)
    assert now.anchors == newest and now.past_anchors == old
    with pytest.raises(IdentityError):
        install_certificates(site.home, stale.chain, newest, now=NOW)
    replace_anchors(site.home, newest)
    assert load_tls_identity(site.home, now=NOW).past_anchors == old


def test_anchors_of_a_certificate_that_has_expired_can_still_be_replaced(site: Site):
    both = rotate_root(site.ca, NOW).anchors
    replace_anchors(site.home, both)
    with pytest.raises(IdentityError, match="expired") as caught:
        load_tls_identity(site.home, now=NOW + 91 * DAY_S)
    assert "invite" in caught.value.next_step


# --- the identity that follows its files -------------------------------------------------------------


def test_a_live_identity_is_read_once_while_nothing_changes(site: Site, monkeypatch):
    live = LiveIdentity(site.home, FakeClock(NOW))
    first = live.current
    monkeypatch.setattr("fedpalm.pki.live.load_tls_identity", lambda *_, **__: pytest.fail("read"))
    assert live.current is first


def test_a_live_identity_follows_a_renewal(site: Site):
    live = LiveIdentity(site.home, FakeClock(NOW))
    before = live.current
    renewed = site.renew(site.home, before.anchors)
    assert live.current.leaf == renewed.leaf != before.leaf
    assert live.current.key_pem == renewed.key_pem


def test_a_live_identity_follows_its_anchors(site: Site):
    live = LiveIdentity(site.home, FakeClock(NOW))
    assert len(live.current.anchors) == 1
    both = rotate_root(site.ca, NOW).anchors
    replace_anchors(site.home, both)
    assert live.current.anchors == both


def test_a_live_identity_whose_files_are_damaged_says_so_until_they_are_mended(site: Site):
    live = LiveIdentity(site.home, FakeClock(NOW))
    before = live.current
    content = (site.home / "tls.pem").read_bytes()
    (site.home / "tls.pem").write_bytes(content[:100])
    for _ in range(2):
        with pytest.raises(KeyFileError, match=r"tls\.pem"):
            _ = live.current
    (site.home / "tls.pem").write_bytes(content)
    assert live.current.leaf == before.leaf


def test_a_live_identity_brings_a_cut_off_renewal_to_its_end(site: Site, tmp_path: Path):
    anchors = site.authority.anchors
    for home in crashes(site.home, lambda one: site.renew(one, anchors), tmp_path / "points"):
        assert same_key(LiveIdentity(home, FakeClock(NOW)).current, home)


def test_a_live_identity_that_is_none_fails_at_once(tmp_path: Path, site: Site):
    with pytest.raises(KeyFileError):
        LiveIdentity(tmp_path / "nobody", FakeClock(NOW))
    with pytest.raises(IdentityError, match="expired"):
        LiveIdentity(site.home, FakeClock(NOW + 91 * DAY_S))
