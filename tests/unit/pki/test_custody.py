from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from stat import S_IMODE

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fedpalm.errors import IdentityError, KeyFileError, StateError
from fedpalm.pki.authority import (
    Authority,
    create_authority,
    load_authority,
    load_trust,
    save_authority,
)
from fedpalm.pki.bundle import pem_of
from fedpalm.pki.custody import (
    install_issuing,
    request_issuing,
    retire_anchor,
    rotate_issuing,
    rotate_root,
)
from fedpalm.pki.identity import Identity, Role
from fedpalm.pki.keys import new_signing_key, new_tls_key
from fedpalm.pki.profile import is_issued_by, key_usage
from fedpalm.pki.request import create_request
from fedpalm.pki.signing import at_time, verify_chain
from fedpalm.pki.trust import TrustBundle, accept_trust
from tests.unit.pki.conftest import crashes

NOW = 1_700_000_000.0
NORTH = Identity("palms", Role.PARTICIPANT, "north")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    authority, root_key = create_authority("palms", NOW)
    save_authority(tmp_path / "ca", authority, root_key)
    return tmp_path / "ca"


def leaf_of(authority: Authority) -> tuple[x509.Certificate, ...]:
    request = create_request(NORTH, new_tls_key(), new_signing_key())
    return authority.chain(authority.issue(request, NORTH, now=NOW))


def believed(chain: tuple[x509.Certificate, ...], anchors: tuple[x509.Certificate, ...]) -> None:
    verify_chain(chain[0], chain[1:], anchors, now=NOW, role=Role.PARTICIPANT, federation="palms")


def assert_whole(folder: Path, pinned_before: tuple[x509.Certificate, ...]) -> Authority:
    """The CA issues, what it issues is believed, and sites accept what it hands out."""
    authority = load_authority(folder)
    believed(leaf_of(authority), authority.anchors)
    assert accept_trust(pinned_before, authority.trust, "palms", NOW) == authority.anchors
    assert load_trust(folder) == authority.trust
    assert all(S_IMODE(path.stat().st_mode) == 0o600 for path in folder.glob("*.key"))
    return authority


# --- an own root -------------------------------------------------------------------------------------


def test_a_new_issuing_ca_is_under_the_same_root_and_has_another_key(folder: Path):
    before = load_authority(folder)
    after = rotate_issuing(folder, NOW)
    assert after.anchors == before.anchors and after.handovers == ()
    assert after.issuing.public_key() != before.issuing.public_key()
    believed(leaf_of(after), before.anchors)
    believed(leaf_of(before), after.anchors)
    assert not list(folder.glob("*.next.key"))


def test_a_new_root_is_handed_to_by_the_old_and_both_are_anchors(folder: Path):
    before = load_authority(folder)
    after = rotate_root(folder, NOW)
    assert after.anchors[0] == before.anchors[0] and len(after.anchors) == 2
    assert is_issued_by(after.issuing, after.anchors[1])
    assert not is_issued_by(after.issuing, after.anchors[0])
    assert_whole(folder, before.anchors)
    assert not list(folder.glob("*.next.key"))


def test_the_key_of_the_new_root_is_the_one_that_signs_from_then_on(folder: Path):
    after = rotate_root(folder, NOW)
    again = rotate_issuing(folder, NOW)
    assert is_issued_by(again.issuing, after.anchors[1])


def test_a_retired_root_is_no_anchor_and_its_handover_stays(folder: Path):
    before = load_authority(folder)
    during = rotate_root(folder, NOW)
    after = retire_anchor(folder)
    assert after.anchors == during.anchors[1:] and after.handovers == during.handovers
    assert_whole(folder, before.anchors)
    with pytest.raises(IdentityError):
        believed(leaf_of(before), after.anchors)


def test_a_second_rotation_waits_for_the_end_of_the_first(folder: Path):
    during = rotate_root(folder, NOW)
    with pytest.raises(StateError, match="not over"):
        rotate_root(folder, NOW)
    assert load_authority(folder) == during


def test_the_only_anchor_is_not_retired(folder: Path):
    with pytest.raises(StateError, match="cannot be retired"):
        retire_anchor(folder)


def test_five_rotations_leave_a_bundle_that_sites_can_read(folder: Path):
    for _ in range(5):
        rotate_root(folder, NOW)
        pinned = load_trust(folder).anchors
        retire_anchor(folder)
    assert_whole(folder, pinned)


@pytest.mark.parametrize("rotate", [rotate_issuing, rotate_root])
def test_a_root_key_that_is_offline_is_asked_for_by_its_place(
    folder: Path, tmp_path: Path, rotate: Callable[[Path, float], Authority]
):
    before = load_authority(folder)
    (folder / "root.key").rename(tmp_path / "offline.key")
    with pytest.raises(KeyFileError, match="not here") as caught:
        rotate(folder, NOW)
    assert str(folder / "root.key") in caught.value.next_step
    assert load_authority(folder) == before and not list(folder.glob("*.next.key"))
    (tmp_path / "offline.key").rename(folder / "root.key")
    rotate(folder, NOW)


@pytest.mark.parametrize("rotate", [rotate_issuing, rotate_root])
def test_a_root_key_of_another_ca_signs_nothing(
    folder: Path, tmp_path: Path, rotate: Callable[[Path, float], Authority]
):
    save_authority(tmp_path / "other", *create_authority("palms", NOW))
    (folder / "root.key").unlink()
    (tmp_path / "other" / "root.key").rename(folder / "root.key")
    with pytest.raises(IdentityError, match="not the key of the root"):
        rotate(folder, NOW)


@pytest.mark.parametrize("name", ["root.key", "issuing.key"])
def test_a_ca_key_that_others_can_read_is_not_used(folder: Path, name: str):
    (folder / name).chmod(0o644)
    with pytest.raises(KeyFileError, match="others can read"):
        rotate_issuing(folder, NOW)


@pytest.mark.parametrize("rotate", [rotate_issuing, rotate_root])
def test_a_rotation_that_is_cut_off_anywhere_leaves_a_whole_ca_and_can_be_run_again(
    folder: Path, tmp_path: Path, rotate: Callable[[Path, float], Authority]
):
    before = load_authority(folder)
    points = 0
    for place in crashes(folder, lambda one: rotate(one, NOW), tmp_path):
        points += 1
        found = assert_whole(place, before.anchors)
        # At the last points the rotation is done, and says so instead of beginning another.
        if rotate is rotate_root and len(found.anchors) == 2 and found.settled:
            rotate_issuing(place, NOW)
        else:
            rotate(place, NOW)
        after = assert_whole(place, before.anchors)
        assert after.issuing.public_key() != before.issuing.public_key()
        assert len(after.anchors) == (2 if rotate is rotate_root else 1)
        assert not list(place.glob("*.next.key"))
    assert points >= 6


# --- an institution's CA -----------------------------------------------------------------------------


class Institution:
    """A CA that signs what it likes."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP384R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Clinic Root")])

    def sign(
        self, csr: x509.CertificateSigningRequest, *, key: object = None, **changes: object
    ) -> bytes:
        public = csr.public_key() if key is None else key
        extensions: dict[str, tuple[x509.ExtensionType | None, bool]] = {
            "basic": (x509.BasicConstraints(ca=True, path_length=0), True),
            "usage": (key_usage(ca=True), True),
            "names": (
                csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value,
                False,
            ),
            "subject": (x509.SubjectKeyIdentifier.from_public_key(public), False),
            "authority": (
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()),
                False,
            ),
        }
        builder = (
            x509.CertificateBuilder()
            .subject_name(csr.subject)
            .issuer_name(self.name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(at_time(NOW) - timedelta(hours=1))
            .not_valid_after(at_time(NOW) + changes.pop("lifetime", timedelta(days=365)))
        )
        for name, (value, critical) in extensions.items():
            wanted = changes.get(name, value)
            if wanted is not None:
                builder = builder.add_extension(wanted, critical=critical)
        return pem_of([builder.sign(self.key, hashes.SHA384())])


CLINIC = Institution()


@pytest.fixture
def asked(tmp_path: Path) -> tuple[Path, x509.CertificateSigningRequest]:
    return tmp_path / "ca", request_issuing(tmp_path / "ca", "palms")


def test_the_request_asks_for_every_extension_that_is_needed(asked):
    folder, csr = asked
    assert x509.load_pem_x509_csr((folder / "issuing.csr").read_bytes()) == csr
    find = csr.extensions.get_extension_for_class
    assert find(x509.BasicConstraints).value == x509.BasicConstraints(ca=True, path_length=0)
    assert find(x509.KeyUsage).value.key_cert_sign
    assert find(x509.SubjectKeyIdentifier).value.digest
    names = find(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://palms"]
    assert S_IMODE((folder / "issuing.key").stat().st_mode) == 0o600


def test_asking_again_is_for_the_same_key(asked):
    folder, csr = asked
    assert request_issuing(folder, "palms").public_key() == csr.public_key()


def test_what_an_institution_signed_is_the_anchor_and_issues(asked):
    folder, csr = asked
    authority = install_issuing(folder, CLINIC.sign(csr), NOW)
    assert authority.external and authority.anchors == (authority.issuing,)
    assert authority.federation == "palms"
    believed(leaf_of(authority), authority.anchors)
    assert load_authority(folder) == authority
    assert install_issuing(folder, pem_of([authority.issuing]), NOW) == authority


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"basic": x509.BasicConstraints(ca=False, path_length=None)}, "not one of a CA"),
        ({"basic": x509.BasicConstraints(ca=True, path_length=None)}, "path length is None"),
        ({"basic": x509.BasicConstraints(ca=True, path_length=1)}, "path length is 1"),
        ({"basic": None}, "basicConstraints"),
        ({"usage": key_usage(ca=False)}, "key usage"),
        ({"usage": None}, "keyUsage"),
        ({"names": None}, "names no federation"),
        (
            {
                "names": x509.SubjectAlternativeName(
                    [x509.UniformResourceIdentifier("spiffe://prints")]
                )
            },
            "prints",
        ),
        ({"subject": None}, "subjectKeyIdentifier"),
        ({"lifetime": timedelta(minutes=-1)}, "ended"),
    ],
)
def test_a_certificate_that_is_not_as_asked_is_refused_with_the_reason(asked, changes, why: str):
    folder, csr = asked
    with pytest.raises(IdentityError, match=why):
        install_issuing(folder, CLINIC.sign(csr, **changes), NOW)
    assert not (folder / "issuing.pem").exists() and not (folder / "anchors.pem").exists()


def test_a_certificate_for_another_key_is_refused(asked):
    folder, csr = asked
    with pytest.raises(KeyFileError, match="for another key"):
        install_issuing(folder, CLINIC.sign(csr, key=new_tls_key().public_key()), NOW)


def test_a_certificate_that_nobody_asked_for_is_refused(asked):
    folder, csr = asked
    (folder / "issuing.csr").unlink()
    with pytest.raises(KeyFileError):
        install_issuing(folder, CLINIC.sign(csr), NOW)


@pytest.mark.parametrize("rotate", [rotate_issuing, rotate_root])
def test_under_an_institutions_ca_there_is_no_root_to_sign_with(
    asked, rotate: Callable[[Path, float], Authority]
):
    folder, csr = asked
    install_issuing(folder, CLINIC.sign(csr), NOW)
    with pytest.raises(StateError, match="institution"):
        rotate(folder, NOW)


def test_the_next_certificate_of_an_institution_is_handed_to_by_the_one_before(asked):
    folder, csr = asked
    before = install_issuing(folder, CLINIC.sign(csr), NOW)
    again = request_issuing(folder, "palms")
    assert again.public_key() != csr.public_key()
    assert load_authority(folder) == before
    during = install_issuing(folder, CLINIC.sign(again), NOW)
    assert during.anchors == (before.issuing, during.issuing)
    assert_whole(folder, before.anchors)
    believed(leaf_of(before), during.anchors)
    with pytest.raises(StateError, match="not over"):
        request_issuing(folder, "palms")
    after = retire_anchor(folder)
    assert after.anchors == (during.issuing,)
    assert_whole(folder, before.anchors)


def test_an_institution_that_signs_the_same_key_anew_is_followed(asked):
    folder, csr = asked
    before = install_issuing(folder, CLINIC.sign(csr), NOW)
    install_issuing(folder, CLINIC.sign(csr, lifetime=timedelta(days=700)), NOW)
    assert len(assert_whole(folder, before.anchors).anchors) == 2


def test_an_installation_that_is_cut_off_anywhere_can_be_run_again(asked, tmp_path: Path):
    folder, csr = asked
    pem = CLINIC.sign(csr)
    for place in crashes(folder, lambda one: install_issuing(one, pem, NOW), tmp_path / "first"):
        done = install_issuing(place, pem, NOW)
        assert_whole(place, done.anchors)
    before = install_issuing(folder, pem, NOW)
    later = CLINIC.sign(request_issuing(folder, "palms"))
    points = 0
    for place in crashes(folder, lambda one: install_issuing(one, later, NOW), tmp_path / "next"):
        points += 1
        assert_whole(place, before.anchors)
        install_issuing(place, later, NOW)
        assert len(assert_whole(place, before.anchors).anchors) == 2
        assert not list(place.glob("*.next.key"))
    assert points >= 6


def test_a_bundle_of_a_cut_off_rotation_never_has_an_anchor_without_its_handover(
    folder: Path, tmp_path: Path
):
    pinned = load_authority(folder).anchors
    for place in crashes(folder, lambda one: rotate_root(one, NOW), tmp_path):
        trust: TrustBundle = load_trust(place)
        assert accept_trust(pinned, trust, "palms", NOW) == trust.anchors
