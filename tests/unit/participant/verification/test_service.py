"""The service over real mutual TLS: who is let in, what they are told, and what limits hold."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from fedpalm.errors import (
    DataError,
    FedPalmError,
    IdentityError,
    IntegrityError,
    LockedOutError,
    MessageTooLargeError,
    NotFoundError,
    PolicyError,
    ProtocolError,
    ResourceError,
    RevokedError,
    TooManyAttemptsError,
    UnavailableError,
)
from fedpalm.pki.bundle import TlsIdentity, load_tls_identity
from fedpalm.pki.identity import Role
from fedpalm.transport.verification import VerificationConnection
from fedpalm.wire.v1.verification_pb2 import (
    DescribeVerifierRequest,
    EnrolSubjectHeader,
    EnrolSubjectRequest,
    IdentifyRequest,
    VerifyRequest,
)
from fedpalm.wire.v1.verification_pb2_grpc import VerificationStub
from participant.verification.applications import Applications
from participant.verification.service import build_service, serve
from tests.support.aio import in_loop
from tests.support.pki import TestAuthority
from tests.support.verification import VerifyingSite, palm, palm_file

ANNA, BERT = 100, 101
DEADLINE_S = 20.0


@asynccontextmanager
async def serving(site: VerifyingSite) -> AsyncIterator[str]:
    gated = build_service(site.config, site.store, site.verifier, "127.0.0.1:0")
    await gated.start()
    try:
        yield f"127.0.0.1:{gated.port}"
    finally:
        await gated.stop(None)


def application(site: VerifyingSite, name: str = "door") -> TlsIdentity:
    folder = site.home.path.parent / f"{site.config.site}-{name}-{time.monotonic_ns()}"
    Applications(site.config, site.store).allow(name, folder)
    return load_tls_identity(folder, now=time.time())


async def verified(address: str, tls: TlsIdentity, subject: str, image: bytes):
    async with VerificationConnection(address, tls) as connection:
        request = VerifyRequest(subject=subject, image=image)
        return await connection.unary(
            connection.verification.Verify, request, deadline_s=DEADLINE_S
        )


async def described(address: str, tls: TlsIdentity):
    async with VerificationConnection(address, tls) as connection:
        return await connection.unary(
            connection.verification.DescribeVerifier,
            DescribeVerifierRequest(),
            deadline_s=DEADLINE_S,
        )


@pytest.fixture
def image(tmp_path: Path) -> Callable[[int, int], bytes]:
    return lambda person, touch: palm_file(tmp_path, person, touch).read_bytes()


@in_loop
async def test_an_application_verifies_and_identifies(ready: VerifyingSite, image):
    ready.verifier.enrol("Anna Åkesson", [palm(ANNA, 0), palm(ANNA, 1)])
    tls = application(ready)
    async with serving(ready) as address:
        good = await verified(address, tls, "Anna Åkesson", image(ANNA, 5))
        assert good.match and good.score >= good.threshold and good.mode == "open"
        assert good.model_hash.hex() == ready.verifier.model_id.hash
        bad = await verified(address, tls, "Anna Åkesson", image(BERT, 5))
        assert not bad.match and not bad.HasField("score")
        async with VerificationConnection(address, tls) as connection:
            call = connection.verification.Identify
            request = IdentifyRequest(image=image(ANNA, 6))
            who = await connection.unary(call, request, deadline_s=DEADLINE_S)
            assert (who.subject, who.comparisons) == ("Anna Åkesson", 1)
            request = IdentifyRequest(image=image(BERT, 6))
            who = await connection.unary(call, request, deadline_s=DEADLINE_S)
            assert who.subject == "" and not who.HasField("score")
        about = await described(address, tls)
        assert [(one.mode, one.against) for one in about.modes] == [
            ("closed", "random"),
            ("open", "random"),
        ]
        assert (about.site, about.run_id, about.enrolment) == ("north", "toy-1", False)
    rows = ready.store.rows("SELECT kind, caller, outcome FROM verification_attempts ORDER BY seq")
    assert [tuple(row) for row in rows] == [
        ("verify", "door", "match"),
        ("verify", "door", "non_match"),
        ("identify", "door", "match"),
        ("identify", "door", "non_match"),
    ]


@in_loop
async def test_a_stranger_gets_no_answer(ready: VerifyingSite):
    """No certificate; another CA of the same name; another site's; the site's own; a forged name."""
    ready.verifier.enrol("anna", [palm(ANNA)])
    known = application(ready)
    domain = known.identity.federation
    other = VerifyingSite(ready.world, "west")
    elsewhere = application(other)
    other.store.close()
    strangers = {
        "another CA of the same name": TestAuthority(domain).enrol(Role.APPLICATION, "door"),
        "another site's application": elsewhere,
        "the site itself": ready.desk.identity,
        "a role that may not call": TestAuthority(domain).enrol(Role.PARTICIPANT, "door"),
    }
    async with serving(ready) as address:
        for who, tls in strangers.items():
            # They may even know whom to trust: it is they who are refused.
            posing = replace(tls, ca_pem=known.ca_pem, identity=known.identity)
            with pytest.raises((UnavailableError, IdentityError)):
                await described(address, posing)
            assert who
        credentials = grpc.ssl_channel_credentials(known.ca_pem)
        options = (("grpc.ssl_target_name_override", f"verifier.{domain}.fedpalm.internal"),)
        async with grpc.aio.secure_channel(address, credentials, options=options) as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await VerificationStub(channel).DescribeVerifier(
                    DescribeVerifierRequest(), timeout=DEADLINE_S
                )
        async with grpc.aio.insecure_channel(address) as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await VerificationStub(channel).DescribeVerifier(
                    DescribeVerifierRequest(), timeout=DEADLINE_S
                )
        assert (await described(address, known)).site == "north"
    assert ready.store.rows("SELECT * FROM verification_attempts") == []


@in_loop
async def test_a_certificate_that_is_in_no_list_or_revoked_is_refused(ready: VerifyingSite):
    door, gate = application(ready), application(ready, "gate")
    applications = Applications(ready.config, ready.store)
    async with serving(ready) as address:
        assert (await described(address, door)).site == "north"
        assert applications.revoke("door") == 1
        with pytest.raises(RevokedError):
            await described(address, door)
        assert (await described(address, gate)).site == "north"
        with ready.store.transaction() as db:
            db.execute("DELETE FROM applications WHERE name = 'gate'")
        with pytest.raises(RevokedError):
            await described(address, gate)
        # Allowed anew it has another certificate; the old one stays what it was.
        again = application(ready)
        assert (await described(address, again)).site == "north"
        with pytest.raises(RevokedError):
            await described(address, door)


@in_loop
async def test_an_application_trusts_no_other_service(ready: VerifyingSite):
    tls = application(ready)
    other = VerifyingSite(ready.world, "west")
    other.train()
    async with serving(other) as address:
        with pytest.raises(IdentityError):
            await described(address, tls)
    other.store.close()


@in_loop
async def test_the_limits_of_the_command_line_hold_for_applications_too(
    ready: VerifyingSite, image
):
    ready.set(max_failures=2, application_attempts_per_minute=4)
    ready.verifier.enrol("anna", [palm(ANNA)])
    door, gate = application(ready), application(ready, "gate")
    async with serving(ready) as address:
        for _ in range(2):
            assert not (await verified(address, door, "anna", image(BERT, 5))).match
        for tls in (door, gate):
            with pytest.raises(LockedOutError):
                await verified(address, tls, "anna", image(ANNA, 5))
        with pytest.raises(NotFoundError):
            await verified(address, door, "nobody", image(ANNA, 5))
        with pytest.raises(DataError):
            await _identified(address, door, b"no image")
        with pytest.raises(TooManyAttemptsError):
            await _identified(address, door, image(ANNA, 5))
        assert (await _identified(address, gate, image(BERT, 5))).subject == ""


async def _identified(address: str, tls: TlsIdentity, image: bytes):
    async with VerificationConnection(address, tls) as connection:
        call, request = connection.verification.Identify, IdentifyRequest(image=image)
        return await connection.unary(call, request, deadline_s=DEADLINE_S)


@in_loop
async def test_what_is_too_large_is_not_looked_at(ready: VerifyingSite):
    tls = application(ready)
    async with serving(ready) as address:
        for size in (1024 * 1024 + 1, 3 * 1024 * 1024):
            with pytest.raises((MessageTooLargeError, ResourceError)):
                await verified(address, tls, "anna", bytes(size))
        with pytest.raises(MessageTooLargeError):
            await verified(address, tls, "x" * 401, b"")
    assert ready.store.rows("SELECT * FROM verification_attempts") == []


async def _enrolled(address: str, tls: TlsIdentity, *parts: EnrolSubjectRequest):
    async def sent() -> AsyncIterator[EnrolSubjectRequest]:
        for part in parts:
            yield part

    async with VerificationConnection(address, tls) as connection:
        call = connection.verification.EnrolSubject
        return await connection.upload(call, sent(), deadline_s=DEADLINE_S)


def _parts(subject: str, *images: bytes) -> list[EnrolSubjectRequest]:
    header = EnrolSubjectRequest(header=EnrolSubjectHeader(subject=subject))
    return [header, *(EnrolSubjectRequest(image=one) for one in images)]


@in_loop
async def test_applications_enrol_only_where_the_site_lets_them(ready: VerifyingSite, image):
    tls, parts = application(ready), _parts("anna", image(ANNA, 0), image(ANNA, 1))
    async with serving(ready) as address:
        with pytest.raises(PolicyError):
            await _enrolled(address, tls, *parts)
    assert list(ready.verifier.gallery.all()) == []
    ready.set(remote_enrolment=True)
    async with serving(ready) as address:
        done = await _enrolled(address, tls, *parts)
        assert (done.images, done.mode) == (2, "open")
        assert (await verified(address, tls, "anna", image(ANNA, 5))).match
        for wrong in ([parts[1]], [parts[0], parts[0]], _parts("", image(ANNA, 0)), []):
            with pytest.raises((ProtocolError, DataError)):
                await _enrolled(address, tls, *wrong)
        # An application replaces nobody, and is not told whom somebody resembles.
        with pytest.raises(FedPalmError, match="enrolled already"):
            await _enrolled(address, tls, *_parts("anna", image(BERT, 0)))
        again = await _enrolled(address, tls, *_parts("annabel", image(ANNA, 2)))
        assert not any("anna" in warning for warning in again.warnings)


@in_loop
async def test_it_serves_until_it_is_told_to_stop(ready: VerifyingSite):
    tls, stop, ports = application(ready), asyncio.Event(), asyncio.Queue[int]()
    task = asyncio.create_task(
        serve(
            *(ready.config, ready.store, ready.verifier, "127.0.0.1:0", stop),
            ports.put_nowait,
        )
    )
    port = await ports.get()
    assert (await described(f"127.0.0.1:{port}", tls)).site == "north"
    stop.set()
    await task
    with pytest.raises(UnavailableError):
        await described(f"127.0.0.1:{port}", tls)


@in_loop
async def test_a_taken_port_is_found_before_the_model_is_loaded(ready: VerifyingSite, monkeypatch):
    monkeypatch.setattr(ready.verifier, "load", lambda: pytest.fail("the model was loaded"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UnavailableError, match="cannot listen"):
            await serve(
                *(ready.config, ready.store, ready.verifier, address, asyncio.Event()), print
            )


@in_loop
async def test_a_model_that_cannot_be_loaded_ends_the_service(ready: VerifyingSite, monkeypatch):
    def damaged():
        raise IntegrityError("the model is damaged")

    monkeypatch.setattr(ready.verifier, "load", damaged)
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(IntegrityError):
        await serve(*(ready.config, ready.store, ready.verifier, address, asyncio.Event()), print)


def test_a_service_listens_on_this_machine_alone_unless_it_is_told_otherwise(site: VerifyingSite):
    assert site.verifier.settings.listen == "127.0.0.1:7445"


def test_the_services_own_certificate_is_renewed_in_time(site: VerifyingSite):
    applications = Applications(site.config, site.store)
    applications.renew_server()

    def leaf():
        folder = applications.server_folder
        return load_tls_identity(folder, now=site.clock.now()).leaf

    first = leaf()
    applications.renew_server()
    assert leaf() == first
    site.clock.advance(61 * 86400)
    applications.renew_server()
    second = leaf()
    assert second != first and second.public_key() != first.public_key()
    # It may have ended before anybody looked.
    site.clock.advance(200 * 86400)
    applications.renew_server()
    assert leaf() != second
