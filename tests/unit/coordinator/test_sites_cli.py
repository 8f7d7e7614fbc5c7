"""Invitations and members from the operator's command line, with no coordinator running."""

from __future__ import annotations

import json
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.serialization import Encoding

from coordinator.cli import main
from coordinator.config import Home
from coordinator.invitations import Invitations
from coordinator.registry import Registry
from coordinator.store import Store
from fedpalm.errors import (
    ConfigError,
    IdentityError,
    KeyFileError,
    NotFoundError,
    RefusedError,
    StateError,
)
from fedpalm.pki.bundle import (
    TlsIdentity,
    begin_renewal,
    chain_from_pem,
    create_keys,
    install_certificates,
    pem_of,
)
from fedpalm.pki.fingerprint import fingerprint
from fedpalm.pki.identity import Identity, Role
from fedpalm.pki.invitation import Invitation, read_invitation, token_hash
from fedpalm.pki.request import create_request, parse_request
from fedpalm.transport.peer import Peer


def invoke(*arguments: str | Path, answer: str | None = None) -> Result:
    return CliRunner().invoke(main, [str(one) for one in arguments], input=answer)


def done(*arguments: str | Path) -> dict[str, Any]:
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def error(result: Result) -> dict[str, str]:
    found: dict[str, str] = json.loads(result.stdout)["error"]
    return found


@pytest.fixture
def home(tmp_path: Path) -> Home:
    done("init", "--home", tmp_path / "home", "--federation", "trial")
    return Home(tmp_path / "home")


class Place:
    """A site's folder with its keys and its request."""

    def __init__(
        self,
        folder: Path,
        name: str,
        role: Role = Role.PARTICIPANT,
        federation: str = "trial",
    ) -> None:
        self.folder, self.identity = folder, Identity(federation, role, name)
        self.path = folder / "request.pem"
        self.ask(create_request(self.identity, *create_keys(folder)).public_bytes(Encoding.PEM))

    def ask(self, pem: bytes) -> None:
        self.pem = pem
        self.path.write_bytes(pem)

    @property
    def fingerprint(self) -> str:
        return fingerprint(parse_request(self.pem))

    def install(self, bundle: Path) -> TlsIdentity:
        leaf, issuing, *anchors = chain_from_pem(bundle.read_bytes(), "bundle")
        return install_certificates(self.folder, (leaf, issuing), anchors, now=time.time())


def claim(home: Home, invitation: Invitation, place: Place) -> None:
    """What the newcomers' port does with a request that comes."""
    with Store.open(home.store) as store:
        Invitations(store).claim(
            invitation.invitation_id,
            invitation.token,
            place.pem,
            place.identity,
            round(time.time() * 1000),
        )


def invited(home: Home, folder: Path, *sites: str) -> list[Invitation]:
    done("invite", *sites, "--home", home.root, "--out", folder)
    return [read_invitation(folder / f"{site}.invitation") for site in sites]


def authorise(home: Home, member: TlsIdentity) -> None:
    peer = Peer(member.identity, fingerprint(member.leaf), 0.0)
    with Store.open(home.store) as store:
        Registry(store).authorise(peer, round(time.time() * 1000))


# --- invite ---------------------------------------------------------------------------------------


def test_an_invitation_says_where_to_call_and_whom_to_trust_and_only_its_owner_can_read_it(
    home: Home, tmp_path: Path
) -> None:
    shown = done("invite", "amber", "birch", "--home", home.root, "--out", tmp_path, "--hours", "2")
    assert [row["site"] for row in shown["invitations"]] == ["amber", "birch"]
    path = tmp_path / "amber.invitation"
    assert path.stat().st_mode & 0o777 == 0o600
    found = read_invitation(path)
    assert (found.federation, found.site) == ("trial", "amber")
    assert found.coordinator_address == "127.0.0.1:7443"
    assert found.enrol_address == "127.0.0.1:7444"
    assert pem_of(found.anchors) == (home.tls / "ca.pem").read_bytes()
    assert abs(found.expires_ms / 1000 - time.time() - 7200) < 60
    assert found.token != read_invitation(tmp_path / "birch.invitation").token


def test_the_token_is_in_the_file_and_nowhere_else(home: Home, tmp_path: Path) -> None:
    result = invoke("invite", "amber", "--home", home.root, "--out", tmp_path)
    token = read_invitation(tmp_path / "amber.invitation").token
    assert token.hex() not in result.output
    with Store.open(home.store) as store:
        assert store.query("SELECT token_hash FROM invitations") == [(token_hash(token),)]
    for path in home.root.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert token not in content and token.hex().encode() not in content


def test_an_invitation_that_is_in_the_way_is_not_replaced_and_none_is_made(
    home: Home, tmp_path: Path
) -> None:
    (tmp_path / "birch.invitation").write_text("precious")
    result = invoke("invite", "amber", "birch", "--home", home.root, "--out", tmp_path)
    assert result.exit_code == KeyFileError.exit_code
    assert (tmp_path / "birch.invitation").read_text() == "precious"
    assert not (tmp_path / "amber.invitation").exists()
    with Store.open(home.store) as store:
        assert Invitations(store).all() == []


def test_an_invitation_that_could_not_be_written_is_not_open(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, _: Invitation) -> None:
        raise KeyFileError(f"{path}: cannot be written: no space left on device")

    monkeypatch.setattr(import_module("coordinator.cli.invite"), "write_invitation", full)
    result = invoke("invite", "amber", "--home", home.root, "--out", tmp_path)
    assert result.exit_code == KeyFileError.exit_code
    with Store.open(home.store) as store:
        assert [row.state for row in Invitations(store).all()] == ["cancelled"]


@pytest.mark.parametrize("name", ["Amber", "a/b", "../amber", "-", "a" * 64])
def test_a_name_that_is_no_site_is_not_invited(home: Home, tmp_path: Path, name: str) -> None:
    result = invoke("invite", "--home", home.root, "--out", tmp_path, "--", name)
    assert result.exit_code != 0
    assert list(tmp_path.rglob("*.invitation")) == []


def test_invitations_are_listed_and_cancelled(home: Home, tmp_path: Path) -> None:
    invited(home, tmp_path, "amber", "birch")
    done("invite", "--cancel", "amber", "--home", home.root)
    (tmp_path / "amber.invitation").unlink()
    invoke("invite", "clove", "--home", home.root, "--out", tmp_path, "--hours", "0.0000001")
    rows = done("invite", "--list", "--home", home.root)["invitations"]
    assert [(row["site"], row["state"]) for row in rows] == [
        ("amber", "cancelled"),
        ("birch", "open"),
        ("clove", "expired"),
    ]
    assert "birch" in invoke("invite", "--list", "--home", home.root).stdout
    again = invoke("invite", "--cancel", "amber", "--home", home.root)
    assert again.exit_code == NotFoundError.exit_code
    assert invoke("invite", "--home", home.root).exit_code == 2
    assert invoke("invite", "amber", "--list", "--home", home.root).exit_code == 2


def test_an_address_that_nobody_can_dial_is_not_given_out(tmp_path: Path) -> None:
    for listen, words in (("0.0.0.0:7443", "advertise"), ("127.0.0.1:0", "serve")):
        home = tmp_path / listen.replace(":", "-")
        done("init", "--home", home, "--federation", "trial", "--listen", listen)
        result = invoke("invite", "amber", "--home", home, "--out", tmp_path, "--json")
        assert result.exit_code == ConfigError.exit_code
        assert words in error(result)["next_step"]
    assert list(tmp_path.rglob("*.invitation")) == []


def test_a_folder_that_is_no_home_is_left_as_it_is(tmp_path: Path) -> None:
    for command in (("invite", "amber"), ("sites",), ("sites", "revoke", "amber", "--reason", "x")):
        result = invoke(*command, "--home", tmp_path)
        assert result.exit_code == ConfigError.exit_code
    assert list(tmp_path.iterdir()) == []


# --- approve, reject ------------------------------------------------------------------------------


def test_sites_shows_who_waits_and_approve_lets_them_in(home: Home, tmp_path: Path) -> None:
    places = {name: Place(tmp_path / name, name) for name in ("amber", "birch")}
    for invitation in invited(home, tmp_path, *places):
        claim(home, invitation, places[invitation.site])
    listed = done("sites", "--home", home.root)
    assert [(row["site"], row["request_fingerprint"]) for row in listed["waiting"]] == [
        (name, place.fingerprint) for name, place in places.items()
    ]
    assert listed["sites"] == [] and "unknown" in listed["remark"]
    assert places["amber"].fingerprint in invoke("sites", "--home", home.root).stdout
    # However the operator wrote the fingerprint down.
    spelled = [
        places["amber"].fingerprint.upper(),
        places["birch"].fingerprint.replace(" ", ":"),
    ]
    marks = [part for text in spelled for part in ("--fingerprint", text)]
    shown = done("sites", "approve", "amber", "birch", *marks, "--home", home.root)
    assert [row["site"] for row in shown["approved"]] == ["amber", "birch"]
    listed = done("sites", "--home", home.root)
    assert listed["waiting"] == []
    assert [
        (row["site"], row["state"], row["connected"], row["fingerprint"]) for row in listed["sites"]
    ] == [
        (row["site"], "active", None, row["certificate_fingerprint"]) for row in shown["approved"]
    ]
    assert not any(row["expires_soon"] for row in listed["sites"])


def test_one_wrong_fingerprint_lets_nobody_in(home: Home, tmp_path: Path) -> None:
    places = {name: Place(tmp_path / name, name) for name in ("amber", "birch")}
    for invitation in invited(home, tmp_path, *places):
        claim(home, invitation, places[invitation.site])
    swapped = [places["amber"].fingerprint, places["amber"].fingerprint]
    marks = [part for text in swapped for part in ("--fingerprint", text)]
    result = invoke("sites", "approve", "amber", "birch", *marks, "--home", home.root, "--json")
    assert result.exit_code == IdentityError.exit_code
    assert "reject birch" in error(result)["next_step"]
    too_few = invoke("sites", "approve", "amber", "birch", *marks[:2], "--home", home.root)
    assert too_few.exit_code == 2
    listed = done("sites", "--home", home.root)
    assert listed["sites"] == [] and len(listed["waiting"]) == 2


def test_without_a_fingerprint_the_operator_is_asked_and_only_a_yes_is_one(
    home: Home, tmp_path: Path
) -> None:
    place = Place(tmp_path / "amber", "amber")
    claim(home, invited(home, tmp_path, "amber")[0], place)
    command = ("sites", "approve", "amber", "--home", home.root)
    for answer in ("n\n", "\n", None):
        result = invoke(*command, answer=answer)
        assert result.exit_code == RefusedError.exit_code
        assert place.fingerprint in result.stderr.replace("\n", "")
        assert done("sites", "--home", home.root)["sites"] == []
    assert invoke(*command, answer="y\n").exit_code == 0
    assert [row["site"] for row in done("sites", "--home", home.root)["sites"]] == ["amber"]


def test_who_does_not_wait_is_neither_approved_nor_rejected(home: Home, tmp_path: Path) -> None:
    invited(home, tmp_path, "amber")
    for command in (
        ("sites", "approve", "amber", "--fingerprint", "00" * 32),
        ("sites", "reject", "amber", "--reason", "no"),
    ):
        result = invoke(*command, "--home", home.root, "--json")
        assert result.exit_code == NotFoundError.exit_code
        assert "invite" in error(result)["next_step"]


def test_a_rejected_request_is_over(home: Home, tmp_path: Path) -> None:
    place = Place(tmp_path / "amber", "amber")
    claim(home, invited(home, tmp_path, "amber")[0], place)
    shown = done("sites", "reject", "amber", "--reason", "another fingerprint", "--home", home.root)
    assert shown["request_fingerprint"] == place.fingerprint
    listed = done("sites", "--home", home.root)
    assert listed["waiting"] == listed["sites"] == []
    (row,) = done("invite", "--list", "--home", home.root)["invitations"]
    assert (row["state"], row["reason"]) == ("rejected", "another fingerprint")


def test_a_long_reason_is_cut_to_what_the_contract_can_carry(home: Home, tmp_path: Path) -> None:
    place = Place(tmp_path / "amber", "amber")
    claim(home, invited(home, tmp_path, "amber")[0], place)
    reason = "x" + "\N{GREEK SMALL LETTER PI}" * 400
    done("sites", "reject", "amber", "--reason", reason, "--home", home.root)
    (row,) = done("invite", "--list", "--home", home.root)["invitations"]
    assert row["reason"] == reason[:250]
    assert len(row["reason"].encode()) == 499


# --- sign -----------------------------------------------------------------------------------------


def test_a_signed_request_is_a_bundle_that_the_site_can_install(home: Home, tmp_path: Path) -> None:
    place, bundle = Place(tmp_path / "amber", "amber"), tmp_path / "bundle.pem"
    shown = done(
        "sites", "sign", place.path, "--out", bundle, "--home", home.root,
        "--fingerprint", place.fingerprint,
    )  # fmt: skip
    member = place.install(bundle)
    authorise(home, member)
    assert shown["certificate_fingerprint"] == fingerprint(member.leaf)
    assert shown["root_fingerprints"] == [fingerprint(one) for one in member.anchors]
    assert pem_of(member.anchors) == (home.tls / "ca.pem").read_bytes()


def test_a_renewal_that_travels_as_a_file_cuts_nobody_off(home: Home, tmp_path: Path) -> None:
    place, bundle = Place(tmp_path / "amber", "amber"), tmp_path / "bundle.pem"

    def sign() -> None:
        done(
            "sites", "sign", place.path, "--out", bundle, "--home", home.root,
            "--fingerprint", place.fingerprint,
        )  # fmt: skip

    sign()
    before = place.install(bundle)
    place.ask(begin_renewal(place.folder, before).public_bytes(Encoding.PEM))
    sign()
    authorise(home, before)
    authorise(home, place.install(bundle))
    authorise(home, before)


def test_a_site_that_is_revoked_while_the_question_is_open_is_not_signed_in_again(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, bundle = Place(tmp_path / "amber", "amber"), tmp_path / "bundle.pem"
    sign = ("sites", "sign", place.path, "--out", bundle, "--home", home.root)
    assert invoke(*sign, answer="y\n").exit_code == 0
    bundle.unlink()

    def meanwhile(site: str, mark: str) -> None:
        done("sites", "revoke", site, "--reason", "stolen", "--home", home.root)

    # By its module: the name coordinator.cli.sites is that of the command.
    monkeypatch.setattr(sys.modules["coordinator.cli.sites"], "confirm_fingerprint", meanwhile)
    result = invoke(*sign, "--json")
    assert result.exit_code == StateError.exit_code
    assert "since it was looked at" in error(result)["what"]
    assert done("sites", "--home", home.root)["sites"][0]["state"] == "revoked"
    assert not bundle.exists()


@pytest.mark.parametrize(
    ("federation", "role"), [("other", Role.PARTICIPANT), ("trial", Role.OPERATOR)]
)
def test_a_request_of_another_federation_or_role_is_not_signed(
    home: Home, tmp_path: Path, federation: str, role: Role
) -> None:
    place = Place(tmp_path / "site", "amber", role, federation)
    bundle = tmp_path / "bundle.pem"
    result = invoke(
        "sites", "sign", place.path, "--home", home.root, "--out", bundle,
        "--fingerprint", place.fingerprint,
    )  # fmt: skip
    assert result.exit_code == IdentityError.exit_code
    assert not bundle.exists()
    with Store.open(home.store) as store:
        assert Registry(store).sites() == []


def test_a_request_with_another_fingerprint_than_the_site_shows_is_not_signed(
    home: Home, tmp_path: Path
) -> None:
    place, bundle = Place(tmp_path / "amber", "amber"), tmp_path / "bundle.pem"
    for mark in ("00" * 32, place.fingerprint[:-1], ""):
        result = invoke(
            "sites", "sign", place.path, "--home", home.root, "--out", bundle, "--fingerprint", mark
        )
        assert result.exit_code == IdentityError.exit_code
    assert not bundle.exists()


# --- revoke ---------------------------------------------------------------------------------------


def test_a_revoked_site_is_out_shown_as_such_and_comes_back_by_invitation(
    home: Home, tmp_path: Path
) -> None:
    place, bundle = Place(tmp_path / "amber", "amber"), tmp_path / "bundle.pem"
    done(
        "sites", "sign", place.path, "--out", bundle, "--home", home.root,
        "--fingerprint", place.fingerprint,
    )  # fmt: skip
    member = place.install(bundle)
    done("sites", "revoke", "amber", "--reason", "left the study", "--home", home.root)
    with pytest.raises(RefusedError):
        authorise(home, member)
    (row,) = done("sites", "--home", home.root)["sites"]
    assert (row["state"], row["reason"]) == ("revoked", "left the study")
    again = invoke("sites", "revoke", "amber", "--reason", "x", "--home", home.root)
    assert again.exit_code == StateError.exit_code
    unknown = invoke("sites", "revoke", "birch", "--reason", "x", "--home", home.root)
    assert unknown.exit_code == NotFoundError.exit_code
    back = Place(tmp_path / "again", "amber")
    claim(home, invited(home, tmp_path, "amber")[0], back)
    done("sites", "approve", "amber", "--fingerprint", back.fingerprint, "--home", home.root)
    (row,) = done("sites", "--home", home.root)["sites"]
    assert (row["state"], row["reason"]) == ("active", "")
    with pytest.raises(RefusedError):
        authorise(home, member)


def test_a_certificate_that_ends_soon_is_marked(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(tmp_path / "amber", "amber")
    done(
        "sites", "sign", place.path, "--out", tmp_path / "b", "--home", home.root,
        "--fingerprint", place.fingerprint,
    )  # fmt: skip
    later = time.time() + 77 * 86400
    module = import_module("coordinator.cli.sites")
    monkeypatch.setattr(module, "now_ms", lambda: round(later * 1000))
    (row,) = done("sites", "--home", home.root)["sites"]
    assert row["expires_soon"]
    assert "soon" in invoke("sites", "--home", home.root).stdout


def test_what_was_done_here_carries_the_operators_name(home: Home, tmp_path: Path) -> None:
    claim(home, invited(home, tmp_path, "amber")[0], place := Place(tmp_path / "amber", "amber"))
    done("sites", "approve", "amber", "--fingerprint", place.fingerprint, "--home", home.root)
    done("sites", "revoke", "amber", "--reason", "test", "--home", home.root)
    with Store.open(home.store) as store:
        rows = store.query("SELECT operator, action, run_id FROM operator_events ORDER BY seq")
    assert rows == [
        ("operator", "invite", "amber"),
        ("operator", "approve", "amber"),
        ("operator", "revoke", "amber"),
    ]
