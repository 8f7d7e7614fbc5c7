"""Every way of dialling in without a valid certificate of the right CA and role, against a server
that runs: each is refused with the right status, reaches no handler, and hurts nobody else."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedpalm.errors import FedPalmError, IdentityError, UnavailableError, WrongRoleError
from fedpalm.pki.authority import load_authority
from fedpalm.pki.bundle import TlsIdentity, load_tls_identity, pem_of
from fedpalm.pki.identity import Identity, Role, coordinator_dns_name
from fedpalm.pki.keys import new_tls_key, private_key_pem
from fedpalm.transport.channel import Connection
from fedpalm.wire.v1.federation_pb2 import HelloRequest
from fedpalm.wire.v1.operator_pb2 import ListSitesRequest
from tests.support.pki import TestAuthority
from tests.support.programs import needs_openssl

from .background import wait_until
from .harness import RealFederation

FEDERATION = "palms"
PATIENCE_S = 20.0


@dataclass(frozen=True)
class RunningServer:
    """A server under test: its CA, people whom it admits, and what must not change."""

    address: str
    authority: TestAuthority
    site: TlsIdentity
    operator: TlsIdentity
    state: Callable[[], object]
    log: Path


@pytest.fixture(scope="module")
def running_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """The real coordinator process, with one admitted site."""
    federation = RealFederation(tmp_path_factory.mktemp("dialled"), ("north",), FEDERATION)
    federation.found()
    try:
        federation.serve()
        federation.enrol("north", None)
        home, now = federation.coordinator_home, time.time()
        yield RunningServer(
            address=federation.address,
            authority=TestAuthority.of(load_authority(home / "ca")),
            site=load_tls_identity(federation.site_home("north") / "tls", now=now),
            operator=load_tls_identity(home / "operator", now=now),
            state=lambda: _dump(home / "store.sqlite3"),
            log=federation.root / "coordinator.log",
        )
    finally:
        federation.stop()


def _dump(store: Path) -> list[str]:
    """Every row of the coordinator's store."""
    with closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as db:
        return list(db.iterdump())


@pytest.fixture(autouse=True)
def nothing_changes(running_server: RunningServer) -> Iterator[None]:
    """After each refusal the state is what it was, and an honest site is served."""
    before = running_server.state()
    yield
    assert running_server.state() == before
    hello(running_server, running_server.site)


@contextmanager
def logged(server: RunningServer, *words: str) -> Iterator[None]:
    """What happens inside leaves a line with these words in the coordinator's log."""
    at = server.log.stat().st_size
    yield

    def found() -> bool:
        lines = server.log.read_bytes()[at:].decode(errors="replace").splitlines()
        return any(all(word in line for word in words) for line in lines)

    wait_until(found, f"a line with {words} in the coordinator's log", PATIENCE_S)


async def _call(address: str, tls: TlsIdentity, service: str) -> Any:
    async with Connection(address, tls) as connection:
        if service == "operator":
            return await connection.unary(
                connection.operator.ListSites, ListSitesRequest(), deadline_s=PATIENCE_S
            )
        request = HelloRequest(protocol_versions=[1], site_id=tls.identity.name)
        return await connection.unary(connection.federation.Hello, request, deadline_s=PATIENCE_S)


def hello(server: RunningServer, tls: TlsIdentity) -> Any:
    """Dial in as a site; ``tls`` is made to trust the real server, whoever signed it."""
    trusting = replace(tls, ca_pem=server.site.ca_pem)
    return asyncio.run(_call(server.address, trusting, "federation"))


def list_sites(server: RunningServer, tls: TlsIdentity) -> Any:
    trusting = replace(tls, ca_pem=server.site.ca_pem)
    return asyncio.run(_call(server.address, trusting, "operator"))


def status_with(server: RunningServer, channel: Callable[[str], grpc.aio.Channel]) -> Any:
    """The bare gRPC status that a channel of one's own making gets."""

    async def call() -> Any:
        async with channel(server.address) as open_channel:
            method = open_channel.unary_unary("/fedpalm.wire.v1.Federation/Hello", None, None)
            try:
                await method(b"", timeout=PATIENCE_S)
            except grpc.aio.AioRpcError as error:
                return error.code()
        return grpc.StatusCode.OK

    return asyncio.run(call())


def leaf(
    server: RunningServer,
    *names: str,
    signer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None = None,
    starts_in: timedelta = timedelta(minutes=-5),
    usage: x509.ObjectIdentifier = ExtendedKeyUsageOID.CLIENT_AUTH,
) -> TlsIdentity:
    """A certificate that our CA's tools refuse to issue: any SAN URIs, any dates, any signer."""
    key = new_tls_key()
    authority = server.authority.authority
    issuer, issuer_key = signer or (authority.issuing, authority.issuing_key)
    start = datetime.now(UTC) + starts_in
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "somebody")]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    )
    if names:
        uris = [x509.UniformResourceIdentifier(name) for name in names]
        builder = builder.add_extension(x509.SubjectAlternativeName(uris), critical=False)
    signed = builder.sign(issuer_key, hashes.SHA256())
    identity = Identity(FEDERATION, Role.PARTICIPANT, "north")
    return server.authority.assemble(identity, signed, private_key_pem(key))


# --- no TLS, or not ours ---------------------------------------------------------------------------


def test_plaintext_is_refused(running_server: RunningServer) -> None:
    with logged(running_server, "Handshake failed", "WRONG_VERSION_NUMBER"):
        status = status_with(running_server, grpc.aio.insecure_channel)
    assert status is grpc.StatusCode.UNAVAILABLE


def _openssl(server: RunningServer, folder: Path, version: str) -> subprocess.CompletedProcess[str]:
    files = {
        "key": server.site.key_pem,
        "cert": pem_of([server.site.leaf]),
        "cert_chain": pem_of(server.site.chain[1:]),
        "CAfile": server.site.ca_pem,
    }
    arguments = ["openssl", "s_client", version, "-alpn", "h2", "-connect", server.address]
    for option, content in files.items():
        path = folder / option
        path.write_bytes(content)
        path.chmod(0o600)
        arguments += [f"-{option}", str(path)]
    return subprocess.run(
        arguments,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",  # What follows the handshake is HTTP/2.
        timeout=PATIENCE_S,
    )


@needs_openssl
def test_tls_1_2_is_refused_even_with_a_good_certificate(
    running_server: RunningServer, tmp_path: Path
) -> None:
    with logged(running_server, "Handshake failed", "NO_SHARED_CIPHER"):
        done = _openssl(running_server, tmp_path, "-tls1_2")
    assert done.returncode != 0
    assert "Cipher is (NONE)" in done.stdout


@needs_openssl
def test_the_same_client_gets_a_tls_1_3_handshake(
    running_server: RunningServer, tmp_path: Path
) -> None:
    done = _openssl(running_server, tmp_path, "-tls1_3")
    assert done.returncode == 0, done.stderr
    assert "New, TLSv1.3" in done.stdout and "Verify return code: 0 (ok)" in done.stdout


def test_without_a_certificate_nobody_is_served(running_server: RunningServer) -> None:
    def anonymous(address: str) -> grpc.aio.Channel:
        name = ("grpc.ssl_target_name_override", coordinator_dns_name(FEDERATION))
        credentials = grpc.ssl_channel_credentials(running_server.site.ca_pem)
        return grpc.aio.secure_channel(address, credentials, options=[name])

    with logged(running_server, "Handshake failed", "PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        assert status_with(running_server, anonymous) is grpc.StatusCode.UNAVAILABLE


# --- certificates that do not lead to the CA, or not now: refused in the handshake ------------------


def _self_signed(server: RunningServer) -> TlsIdentity:
    key = new_tls_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "north")])
    start = datetime.now(UTC) - timedelta(minutes=5)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(server.site.identity.uri)]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    made = server.authority.assemble(server.site.identity, certificate, private_key_pem(key))
    return replace(made, chain_pem=pem_of([certificate]))


def _of_another_ca(server: RunningServer) -> TlsIdentity:
    return TestAuthority(FEDERATION).enrol(Role.PARTICIPANT, "north")


def _expired(server: RunningServer) -> TlsIdentity:
    return server.authority.enrol(
        Role.PARTICIPANT, "north", now=time.time() - 40 * 86400, lifetime=timedelta(days=30)
    )


def _not_yet_valid(server: RunningServer) -> TlsIdentity:
    return leaf(server, server.site.identity.uri, starts_in=timedelta(hours=1))


def _signed_by_a_leaf(server: RunningServer) -> TlsIdentity:
    """A site that plays CA with its own key."""
    played = leaf(server, server.site.identity.uri)
    key = load_pem_private_key(played.key_pem, password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    made = leaf(server, "spiffe://palms/operator/desk", signer=(played.leaf, key))
    return replace(made, chain_pem=pem_of([made.leaf, played.leaf, *server.site.chain[1:]]))


def _coordinator_as_client(server: RunningServer) -> TlsIdentity:
    return server.authority.enrol(Role.COORDINATOR, "hub-2")


@pytest.mark.parametrize(
    ("impostor", "why"),
    [
        (_self_signed, "self signed certificate"),
        (_of_another_ca, "CERTIFICATE_VERIFY_FAILED"),
        (_expired, "certificate has expired"),
        (_not_yet_valid, "certificate is not yet valid"),
        (_signed_by_a_leaf, "CERTIFICATE_VERIFY_FAILED"),
        (_coordinator_as_client, "unsupported certificate purpose"),
    ],
)
def test_a_certificate_that_tls_does_not_accept_gets_no_connection(
    running_server: RunningServer, impostor: Callable[[RunningServer], TlsIdentity], why: str
) -> None:
    tls = impostor(running_server)
    for dial in (hello, list_sites):
        with (
            logged(running_server, "Handshake failed", why),
            pytest.raises(UnavailableError) as caught,
        ):
            dial(running_server, tls)
        assert "certificate" in str(caught.value)


# --- certificates of the CA that do not say who their bearer is: refused at the call ----------------


@pytest.mark.parametrize(
    "names",
    [
        (),
        ("spiffe://others/participant/north",),
        ("spiffe://palms/participant/north", "spiffe://palms/operator/desk"),
        ("spiffe://palms/president/north",),
        ("spiffe://palms/participant/north/extra",),
        ("https://palms/participant/north",),
    ],
    ids=["no SAN", "another federation", "two names", "unknown role", "longer path", "not SPIFFE"],
)
def test_a_certificate_that_names_nobody_here_is_unauthenticated(
    running_server: RunningServer, names: tuple[str, ...]
) -> None:
    for dial in (hello, list_sites):
        with logged(running_server, "refused", "identity"), pytest.raises(IdentityError):
            dial(running_server, leaf(running_server, *names))


# --- good certificates on the wrong service ---------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "dial"),
    [
        (Role.PARTICIPANT, list_sites),
        (Role.OPERATOR, hello),
        (Role.AUDITOR, hello),
        (Role.AUDITOR, list_sites),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_role_is_refused_on_a_service_that_is_not_its_own(
    running_server: RunningServer, role: Role, dial: Callable[[RunningServer, TlsIdentity], Any]
) -> None:
    people = {Role.PARTICIPANT: running_server.site, Role.OPERATOR: running_server.operator}
    tls = people.get(role) or running_server.authority.enrol(role, "somebody")
    with logged(running_server, "refused", "wrong_role"), pytest.raises(WrongRoleError):
        dial(running_server, tls)


def test_a_refusal_says_what_to_do_and_nothing_of_the_inside(running_server: RunningServer) -> None:
    with pytest.raises(FedPalmError) as caught:
        list_sites(running_server, running_server.site)
    text = str(caught.value)
    assert "spiffe://palms/participant/north" in text
    assert "Traceback" not in text and ".py" not in text


@pytest.mark.parametrize("name", ["south", "north"], ids=["never admitted", "other certificate"])
def test_a_certificate_of_the_ca_that_the_operator_did_not_admit_is_refused(
    running_server: RunningServer, name: str
) -> None:
    tls = running_server.authority.enrol(Role.PARTICIPANT, name)
    with (
        logged(running_server, f"refused {tls.identity}"),
        pytest.raises(FedPalmError) as caught,
    ):
        hello(running_server, tls)
    assert caught.value.grpc_status in ("PERMISSION_DENIED", "UNAUTHENTICATED")
