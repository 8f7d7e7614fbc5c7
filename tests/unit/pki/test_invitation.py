from __future__ import annotations

import hashlib
import json
from pathlib import Path
from stat import S_IMODE

import pytest

from fedpalm.errors import InvitationError, KeyFileError
from fedpalm.pki.invitation import (
    Invitation,
    new_invitation,
    read_invitation,
    token_hash,
    write_invitation,
)


@pytest.fixture
def invitation(federation) -> Invitation:
    return new_invitation(
        "palms",
        "north",
        enrol_address="hub.example:7444",
        coordinator_address="hub.example:7443",
        anchors=federation.authority.anchors,
        expires_ms=1_700_000_000_000,
    )


def test_an_invitation_comes_back_from_its_file(tmp_path: Path, invitation: Invitation):
    path = tmp_path / "north.invitation"
    write_invitation(path, invitation)
    assert read_invitation(path) == invitation
    assert S_IMODE(path.stat().st_mode) == 0o600
    assert [one.name for one in tmp_path.iterdir()] == ["north.invitation"]


def test_an_invitation_is_written_into_a_folder_that_others_may_see(
    tmp_path: Path, invitation: Invitation
):
    tmp_path.chmod(0o755)
    write_invitation(tmp_path / "north.invitation", invitation)


def test_an_invitation_is_never_written_over_another_file(tmp_path: Path, invitation: Invitation):
    path = tmp_path / "north.invitation"
    path.write_text("mine")
    with pytest.raises(KeyFileError, match="exists already"):
        write_invitation(path, invitation)
    assert path.read_text() == "mine"


def test_no_two_invitations_have_the_same_name_or_secret(federation, invitation: Invitation):
    other = new_invitation(
        "palms", "north", enrol_address="a:1", coordinator_address="a:2",
        anchors=federation.authority.anchors, expires_ms=1,
    )  # fmt: skip
    assert other.invitation_id != invitation.invitation_id and other.token != invitation.token
    assert len(invitation.token) == 32 and len(invitation.invitation_id) == 32


def test_the_coordinator_keeps_the_hash_of_the_secret(invitation: Invitation):
    assert token_hash(invitation.token) == hashlib.sha256(invitation.token).digest()


def test_the_secret_shows_in_no_repr(invitation: Invitation):
    assert "token" not in repr(invitation) and repr(invitation.token) not in repr(invitation)


def test_an_invitation_that_others_can_read_is_refused(tmp_path: Path, invitation: Invitation):
    path = tmp_path / "north.invitation"
    write_invitation(path, invitation)
    path.chmod(0o644)
    with pytest.raises(KeyFileError, match="this invitation") as caught:
        read_invitation(path)
    assert f"chmod 600 {path}" in caught.value.next_step


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("kind", "fedpalm invitation v2"),
        ("federation", "The Palms"),
        ("federation", "prints"),
        ("site", "../north"),
        ("invitation_id", "00"),
        ("token", "00"),
        ("token", "zz" * 32),
        ("enrol_address", "hub.example"),
        ("enrol_address", "hub example:1"),
        ("coordinator_address", ""),
        ("anchors", ""),
        ("anchors", "-----BEGIN CERTIFICATE-----\n"),
        ("expires_ms", -1),
        ("expires_ms", "1"),
        ("more", 1),
        ("site", None),
    ],
)
def test_a_file_that_is_changed_is_refused_without_a_word_of_its_secret(
    tmp_path: Path, invitation: Invitation, key: str, value: object
):
    path = tmp_path / "north.invitation"
    write_invitation(path, invitation)
    values = json.loads(path.read_text())
    secret = values["token"]
    path.write_text(json.dumps(values | {key: value}))
    with pytest.raises(InvitationError, match="not an invitation") as caught:
        read_invitation(path)
    assert secret not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff\xfe", b"[" * 50_000])
def test_a_file_that_is_no_invitation_is_refused_by_name(tmp_path: Path, content: bytes):
    path = tmp_path / "north.invitation"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(InvitationError, match=r"north\.invitation"):
        read_invitation(path)


def test_a_missing_invitation_is_named(tmp_path: Path):
    with pytest.raises(KeyFileError, match=r"north\.invitation"):
        read_invitation(tmp_path / "north.invitation")


def test_too_many_anchors_are_refused(tmp_path: Path, federation, invitation: Invitation):
    many = new_invitation(
        "palms", "north", enrol_address="a:1", coordinator_address="a:2",
        anchors=federation.authority.anchors * 5, expires_ms=1,
    )  # fmt: skip
    write_invitation(tmp_path / "many", many)
    with pytest.raises(InvitationError, match="trust anchors"):
        read_invitation(tmp_path / "many")
