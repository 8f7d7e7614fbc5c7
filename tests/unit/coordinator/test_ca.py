"""The CA of a home and its own identities: founding, rotation, an institution's CA, renewal."""

from __future__ import annotations

import asyncio
import json
import time
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from coordinator.cli import main
from coordinator.config import Home
from coordinator.own import renew_own, sites_behind
from coordinator.registry import Registry
from coordinator.store import Store
from fedpalm.clock import SystemClock
from fedpalm.errors import ConfigError, KeyFileError, RefusedError, StateError
from fedpalm.pki.authority import load_authority, load_trust
from fedpalm.pki.bundle import TlsIdentity, load_tls_identity, pem_of, read_certificates
from fedpalm.pki.custody import rotate_root
from fedpalm.pki.fingerprint import fingerprint
from fedpalm.pki.identity import Identity, Role, coordinator_dns_name, identity_of
from fedpalm.pki.keys import new_signing_key, new_tls_key
from fedpalm.pki.live import LiveIdentity
from fedpalm.pki.profile import key_usage
from fedpalm.pki.request import create_request
from fedpalm.pki.signing import at_time
from fedpalm.transport.peer import Peer
from tests.support.pki import TestAuthority

FIXED = coordinator_dns_name("trial")


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(one) for one in arguments])


def answer(*arguments: str | Path) -> dict[str, Any]:
    done = invoke(*arguments, "--json")
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def error(*arguments: str | Path) -> tuple[int, dict[str, str]]:
    done = invoke(*arguments, "--json")
    assert done.exit_code != 0, done.output
    found: dict[str, str] = json.loads(done.stdout)["error"]
    return done.exit_code, found


def init(folder: Path, *more: str) -> Home:
    answer("init", "--home", folder, "--federation", "trial", *more)
    return Home(folder)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return init(tmp_path / "home", "--dns", "hub.example", "--ip", "192.0.2.7")


def own(home: Home) -> tuple[TlsIdentity, TlsIdentity]:
    now = time.time()
    return load_tls_identity(home.tls, now=now), load_tls_identity(home.operator, now=now)


def registered(home: Home) -> set[str]:
    with Store.open(home.store) as store:
        return {mark for (mark,) in store.query("SELECT fingerprint FROM certificates")}


def names(leaf: x509.Certificate) -> x509.SubjectAlternativeName:
    return leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value


def admit(home: Home, site: str, *, called: bool = True) -> TlsIdentity:
    """A member under the CA of now; one that has called since, if ``called``."""
    member = TestAuthority.of(load_authority(home.authority)).enrol(Role.PARTICIPANT, site)
    now_ms = round(time.time() * 1000)
    with Store.open(home.store) as store:
        registry = Registry(store)
        registry.admit(
            member.leaf, breaks=registry.breaks(site), at_ms=now_ms, operator="operator",
            action="approve",
        )  # fmt: skip
        registry.breaks_carried(site, registry.breaks(site) or 0)
        if called:
            peer = Peer(
                member.identity,
                fingerprint(member.leaf),
                member.leaf.not_valid_after_utc.timestamp(),
            )
            registry.authorise(peer, now_ms)
    return member


# --- founding ----------------------------------------------------------------------------------------


def test_a_founded_home_has_two_registered_identities_under_its_root(home: Home) -> None:
    coordinator, operator = own(home)
    assert coordinator.identity.role is Role.COORDINATOR
    assert operator.identity.role is Role.OPERATOR
    assert registered(home) == {fingerprint(coordinator.leaf), fingerprint(operator.leaf)}
    found = names(coordinator.leaf)
    assert found.get_values_for_type(x509.DNSName) == [FIXED, "hub.example"]
    assert [str(one) for one in found.get_values_for_type(x509.IPAddress)] == ["192.0.2.7"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], ("127.0.0.1:7443", "127.0.0.1:7444", "127.0.0.1:7443", "127.0.0.1:7444")),
        (
            ["--listen", "127.0.0.1:0"],
            ("127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"),
        ),
        (
            ["--listen", "0.0.0.0:9000", "--dns", "hub.example", "--ip", "192.0.2.7"],
            ("0.0.0.0:9000", "0.0.0.0:9001", "hub.example:9000", "hub.example:9001"),
        ),
        (
            ["--listen", "[::]:9000", "--ip", "2001:db8::7"],
            ("[::]:9000", "[::]:9001", "[2001:db8::7]:9000", "[2001:db8::7]:9001"),
        ),
        (
            ["--advertise", "nat.example:443", "--enrol-listen", "127.0.0.1:5"],
            ("127.0.0.1:7443", "127.0.0.1:5", "nat.example:443", "nat.example:5"),
        ),
        (
            ["--advertise", "nat.example:443", "--enrol-advertise", "nat.example:444"],
            ("127.0.0.1:7443", "127.0.0.1:7444", "nat.example:443", "nat.example:444"),
        ),
    ],
)
def test_init_settles_where_to_listen_and_what_to_dial(
    tmp_path: Path, options: list[str], expected: tuple[str, ...]
) -> None:
    home = init(tmp_path / "home", *options)
    values = tomllib.loads(home.config.read_text())
    keys = ("listen", "enrol_listen", "advertise", "enrol_advertise")
    assert tuple(values[key] for key in keys) == expected
    assert home.settings().advertise == expected[2]


@pytest.mark.parametrize(
    "options",
    [["--advertise", "nowhere"], ["--ip", "hub.example"], ["--enrol-listen", "a:b"]],
)
def test_init_with_an_address_that_is_none_makes_nothing(
    tmp_path: Path, options: list[str]
) -> None:
    code, _ = error("init", "--home", tmp_path / "home", "--federation", "trial", *options)
    assert code == ConfigError.exit_code
    assert not (tmp_path / "home").exists()


def test_every_private_key_of_a_home_is_its_owners_alone(home: Home) -> None:
    keys = sorted(home.root.rglob("*.key"))
    assert len(keys) == 6
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in keys)
    assert all(path.parent.stat().st_mode & 0o777 == 0o700 for path in keys)


# --- renewal -----------------------------------------------------------------------------------------


def test_renew_keeps_names_and_signing_keys_and_a_live_identity_follows(home: Home) -> None:
    before = own(home)
    live = LiveIdentity(home.tls, SystemClock())
    assert live.current.leaf == before[0].leaf
    shown = answer("renew", "--home", home.root)
    after = own(home)
    for old, new in zip(before, after, strict=True):
        assert new.identity == old.identity
        assert names(new.leaf) == names(old.leaf)
        assert new.leaf.public_key() != old.leaf.public_key()
        assert new.signing_key.public_key() == old.signing_key.public_key()
        assert fingerprint(new.leaf) in registered(home)
    assert live.current.leaf == after[0].leaf
    assert shown["coordinator"]["fingerprint"] == fingerprint(after[0].leaf)


def test_identities_that_have_expired_are_renewed_all_the_same(home: Home) -> None:
    later = time.time() + 100 * 86400
    with Store.open(home.store) as store:
        renew_own(home, load_authority(home.authority), store, later)
    assert load_tls_identity(home.tls, now=later).identity.role is Role.COORDINATOR


# --- rotation ----------------------------------------------------------------------------------------


def test_rotate_renews_the_home_under_the_new_issuing_ca(home: Home) -> None:
    before = load_authority(home.authority)
    shown = answer("ca", "rotate", "--home", home.root)
    authority = load_authority(home.authority)
    assert authority.issuing != before.issuing and authority.anchors == before.anchors
    for identity in own(home):
        assert identity.chain == (identity.leaf, authority.issuing)
        assert fingerprint(identity.leaf) in registered(home)
    assert shown["issuing"]["fingerprint"] == fingerprint(authority.issuing)


@pytest.mark.parametrize("more", [[], ["--root"]])
def test_rotate_says_where_the_offline_root_key_has_to_be(
    home: Home, tmp_path: Path, more: list[str]
) -> None:
    (home.authority / "root.key").rename(tmp_path / "root.key")
    before = own(home)
    code, said = error("ca", "rotate", *more, "--home", home.root)
    assert code == KeyFileError.exit_code
    assert str(home.authority / "root.key") in said["next_step"]
    assert [one.leaf for one in own(home)] == [one.leaf for one in before]
    assert answer("ca", "show", "--home", home.root)["root_key"].startswith("not here")


def test_a_new_root_is_trusted_beside_the_old_one_until_every_site_has_renewed(home: Home) -> None:
    admit(home, "amber")
    old = load_authority(home.authority)
    shown = answer("ca", "rotate", "--root", "--home", home.root)
    assert len(shown["anchors"]) == 2 and shown["not_renewed_yet"] == ["amber"]
    for identity in own(home):
        assert len(identity.anchors) == 2 and identity.anchors[0] == old.anchors[0]
    code, said = error("ca", "retire", "--home", home.root)
    assert code == RefusedError.exit_code and "amber" in said["what"]
    admit(home, "amber", called=False)
    assert error("ca", "retire", "--home", home.root)[0] == RefusedError.exit_code
    admit(home, "amber")
    assert answer("ca", "show", "--home", home.root)["not_renewed_yet"] == []
    after = answer("ca", "retire", "--home", home.root)
    assert len(after["anchors"]) == 1
    assert after["anchors"][0] == shown["anchors"][1]
    for identity in own(home):
        assert identity.anchors == load_authority(home.authority).anchors
        assert identity.past_anchors == old.anchors


def test_retire_cuts_sites_off_that_have_not_renewed_if_it_is_told_to(home: Home) -> None:
    admit(home, "amber")
    answer("ca", "rotate", "--root", "--home", home.root)
    after = answer("ca", "retire", "--cut-off", "--home", home.root)
    assert len(after["anchors"]) == 1


def test_a_site_that_was_revoked_holds_no_rotation_up(home: Home) -> None:
    admit(home, "amber")
    answer("ca", "rotate", "--root", "--home", home.root)
    with Store.open(home.store) as store:
        Registry(store).revoke("amber", "left", at_ms=1, operator="operator")
        assert sites_behind(load_authority(home.authority), store) == []
    answer("ca", "retire", "--home", home.root)


def test_a_rotation_that_ended_before_the_homes_own_certificates_is_brought_to_its_end(
    home: Home,
) -> None:
    during = rotate_root(home.authority, time.time())
    assert len(own(home)[0].anchors) == 1
    answer("ca", "rotate", "--root", "--home", home.root)
    assert load_authority(home.authority) == during
    assert all(one.anchors == during.anchors for one in own(home))
    assert error("ca", "rotate", "--root", "--home", home.root)[0] == StateError.exit_code


def test_what_was_done_to_the_ca_is_on_record(home: Home) -> None:
    answer("ca", "rotate", "--home", home.root)
    answer("ca", "rotate", "--root", "--home", home.root)
    answer("renew", "--home", home.root)
    answer("ca", "retire", "--home", home.root)
    with Store.open(home.store) as store:
        actions = [row[0] for row in store.query("SELECT action FROM operator_events ORDER BY seq")]
    assert actions == ["rotate", "new anchor", "renew", "retire"]


def _dial(server_as: TlsIdentity, client_as: TlsIdentity) -> str:
    """What a real TLS connection of gRPC comes to."""

    async def serving() -> str:
        async def reply(request: bytes, context: object) -> bytes:
            return b"ok"

        server = grpc.aio.server()
        handler = grpc.unary_unary_rpc_method_handler(reply)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("S", {"M": handler}),)
        )
        credentials = grpc.ssl_server_credentials(
            [(server_as.key_pem, server_as.chain_pem)], server_as.ca_pem, True
        )
        port = server.add_secure_port("127.0.0.1:0", credentials)
        await server.start()
        channel = grpc.aio.secure_channel(
            f"127.0.0.1:{port}",
            grpc.ssl_channel_credentials(client_as.ca_pem, client_as.key_pem, client_as.chain_pem),
            options=[("grpc.ssl_target_name_override", FIXED)],
        )
        try:
            return (await channel.unary_unary("/S/M")(b"", timeout=10)).decode()
        except grpc.aio.AioRpcError as failed:
            return failed.code().name
        finally:
            await channel.close()
            await server.stop(None)

    return asyncio.run(serving())


def _pinning(member: TlsIdentity, anchors: Sequence[x509.Certificate]) -> TlsIdentity:
    return replace(member, anchors=tuple(anchors), ca_pem=pem_of(anchors))


def test_sites_connect_before_during_and_after_a_rotation_of_the_root(home: Home) -> None:
    amber = admit(home, "amber")
    assert _dial(own(home)[0], amber) == "ok"
    answer("ca", "rotate", "--root", "--home", home.root)
    hub = own(home)[0]
    both = load_authority(home.authority).anchors
    # The site has not heard of the new root: it follows the handover in the coordinator's chain.
    assert hub.chain[1].issuer == both[1].subject and len(amber.anchors) == 1
    assert _dial(hub, amber) == "ok"
    assert _dial(hub, _pinning(amber, both)) == "ok"
    renewed = admit(home, "amber")
    assert _dial(hub, renewed) == "ok"
    answer("ca", "retire", "--home", home.root)
    hub = own(home)[0]
    assert _dial(hub, renewed) == "ok"
    assert _dial(hub, _pinning(renewed, both[1:])) == "ok"
    assert _dial(hub, _pinning(amber, both)) != "ok"


def test_people_are_shown_fingerprints_whole(home: Home) -> None:
    answer("ca", "rotate", "--root", "--home", home.root)
    text = invoke("ca", "show", "--home", home.root).output
    authority = load_authority(home.authority)
    for one in (*authority.anchors, authority.issuing):
        assert fingerprint(one) in text
    assert "{" not in text and "root.key" in text
    assert fingerprint(own(home)[0].leaf) not in text
    assert "operator" in invoke("renew", "--home", home.root).output


# --- an institution's CA -----------------------------------------------------------------------------


def signed_by_clinic(csr: x509.CertificateSigningRequest) -> bytes:
    key, now = ec.generate_private_key(ec.SECP256R1()), time.time()
    builder = (
        x509.CertificateBuilder()
        .subject_name(csr.subject)
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Clinic Root")]))
        .public_key(csr.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(at_time(now) - timedelta(hours=1))
        .not_valid_after(at_time(now) + timedelta(days=365))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage(ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(csr.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
        )
    )
    san = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return pem_of([builder.add_extension(san, critical=False).sign(key, hashes.SHA256())])


def sign_request(asked: dict[str, Any], out: Path) -> Path:
    csr = x509.load_pem_x509_csr(Path(asked["request"]).read_bytes())
    assert fingerprint(csr) == asked["request_fingerprint"]
    out.write_bytes(signed_by_clinic(csr))
    return out


def external(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path / "home"
    asked = answer(
        "init", "--home", folder, "--federation", "trial", "--external-ca",
        "--dns", "hub.example", "--listen", "0.0.0.0:9000",
    )  # fmt: skip
    return folder, asked


def test_a_federation_is_founded_under_an_institutions_ca(tmp_path: Path) -> None:
    folder, asked = external(tmp_path)
    for word in ("CA, path length 0", "spiffe://trial"):
        assert word in asked["must_be_signed_as"]
    home = Home(folder)
    assert not home.config.exists() and not (home.authority / "root.key").exists()
    for arguments in (["serve"], ["ca", "show", "--json"], ["renew", "--json"]):
        done = invoke(*arguments, "--home", folder)
        assert done.exit_code == StateError.exit_code and "ca install" in done.output
    shown = answer("ca", "install", sign_request(asked, tmp_path / "issuing.pem"), "--home", folder)
    assert shown["kind"] == "signed by an institution"
    coordinator, operator = own(home)
    assert registered(home) == {fingerprint(coordinator.leaf), fingerprint(operator.leaf)}
    assert names(coordinator.leaf).get_values_for_type(x509.DNSName) == [FIXED, "hub.example"]
    assert home.settings().advertise == "hub.example:9000"
    assert not home.founding.exists()
    assert _dial(coordinator, admit(home, "amber")) == "ok"


def test_an_init_that_waits_for_an_institution_is_not_begun_again(tmp_path: Path) -> None:
    folder, _ = external(tmp_path)
    code, said = error("init", "--home", folder, "--federation", "trial")
    assert code == StateError.exit_code and "ca install" in said["next_step"]


def test_a_certificate_for_another_key_founds_nothing(tmp_path: Path) -> None:
    folder, _ = external(tmp_path)
    other = answer("init", "--home", tmp_path / "b", "--federation", "trial", "--external-ca")
    pem = sign_request(other, tmp_path / "other.pem")
    code, said = error("ca", "install", pem, "--home", folder)
    assert code == KeyFileError.exit_code and "another key" in said["what"]
    assert not Home(folder).config.exists()


def test_the_next_issuing_ca_of_an_institution_overlaps_with_the_one_before(tmp_path: Path) -> None:
    folder, asked = external(tmp_path)
    home = Home(folder)
    answer("ca", "install", sign_request(asked, tmp_path / "1.pem"), "--home", folder)
    amber = admit(home, "amber")
    before = own(home)[0]
    again = answer("ca", "rotate", "--home", folder)
    assert own(home)[0].leaf == before.leaf
    answer("ca", "install", sign_request(again, tmp_path / "2.pem"), "--home", folder)
    hub = own(home)[0]
    # Its certificate stays: no chain leads from a new one to the anchor that sites still pin alone.
    assert hub.leaf == before.leaf and len(hub.anchors) == 2
    code, said = error("renew", "--home", folder)
    assert code == StateError.exit_code and "ca retire" in said["next_step"]
    assert _dial(hub, amber) == "ok"
    assert error("ca", "retire", "--home", folder)[0] == RefusedError.exit_code
    renewed = admit(home, "amber")
    assert _dial(hub, renewed) == "ok"
    answer("ca", "retire", "--home", folder)
    hub = own(home)[0]
    assert hub.leaf != before.leaf and len(hub.anchors) == 1
    assert _dial(hub, renewed) == "ok"


def test_a_bundle_under_an_institutions_ca_holds_each_anchor_once(tmp_path: Path) -> None:
    folder, asked = external(tmp_path)
    home = Home(folder)
    answer("ca", "install", sign_request(asked, tmp_path / "1.pem"), "--home", folder)
    again = answer("ca", "rotate", "--home", folder)
    answer("ca", "install", sign_request(again, tmp_path / "2.pem"), "--home", folder)
    amber = Identity("trial", Role.PARTICIPANT, "amber")
    csr = create_request(amber, new_tls_key(), new_signing_key())
    request, bundle = tmp_path / "request.pem", tmp_path / "amber.pem"
    request.write_bytes(csr.public_bytes(Encoding.PEM))
    answer(
        "sites", "sign", request, "--out", bundle, "--fingerprint", fingerprint(csr), "--home", folder,
    )  # fmt: skip
    leaf, *anchors = read_certificates(bundle)
    assert identity_of(leaf) == amber
    assert tuple(anchors) == load_trust(home.authority).anchors and len(anchors) == 2
