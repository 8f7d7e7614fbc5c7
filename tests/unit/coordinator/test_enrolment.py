"""Invitations, the port where they are brought, and who gets in by them."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from coordinator.enrolment import EnrolmentListener, EnrolmentService, addresses
from coordinator.invitations import (
    ASK_AFTER_MS,
    STAY_MS,
    InvitationRefusedError,
    InvitationRow,
    Invitations,
)
from coordinator.registry import Registry
from coordinator.store import Store
from fedpalm.clock import SystemClock
from fedpalm.errors import (
    FedPalmError,
    IdentityError,
    InvitationError,
    NotFoundError,
    RefusedError,
    StateError,
    UnavailableError,
)
from fedpalm.pki.bundle import pem_of
from fedpalm.pki.fingerprint import fingerprint
from fedpalm.pki.identity import Identity, Role
from fedpalm.pki.keys import SigningKey, TlsKey, new_signing_key, new_tls_key
from fedpalm.pki.request import create_request, parse_request
from fedpalm.transport.channel import EnrolmentConnection
from fedpalm.transport.peer import Peer
from fedpalm.wire.membership import issued_from_wire
from fedpalm.wire.v1 import membership_pb2 as pb
from tests.support.aio import in_loop
from tests.support.pki import TestAuthority
from tests.support.servicer import live_identity

NOW_MS = 1_700_000_000_000
HOUR_MS = 3_600_000
WORDS = "the invitation cannot be used: it is unknown, used, over, or for another name"


@dataclass
class Newcomer:
    """Keys that ask for a name."""

    identity: Identity
    tls_key: TlsKey
    signing_key: SigningKey
    request: bytes

    @classmethod
    def named(cls, name: str, role: Role = Role.PARTICIPANT, federation: str = "trial") -> Newcomer:
        identity = Identity(federation, role, name)
        tls_key, signing_key = new_tls_key(), new_signing_key()
        request = create_request(identity, tls_key, signing_key)
        return cls(identity, tls_key, signing_key, request.public_bytes(Encoding.PEM))


@dataclass
class Invited:
    """An open invitation as the site holds it."""

    invitation_id: str
    token: bytes


class Desk:
    """Invitations of a store, and an operator who decides."""

    def __init__(self, store: Store, ca: TestAuthority) -> None:
        self.invitations, self.registry, self.ca = Invitations(store), Registry(store), ca

    def invite(self, site: str, at_ms: int = NOW_MS, hours: float = 72) -> Invited:
        made = Invited(secrets.token_hex(16), secrets.token_bytes(32))
        self.invitations.invite(
            made.invitation_id,
            site,
            made.token,
            created_ms=at_ms,
            expires_ms=at_ms + round(hours * HOUR_MS),
            operator="olga",
        )
        return made

    def claim(
        self, invited: Invited, newcomer: Newcomer, at_ms: int = NOW_MS + 1
    ) -> tuple[InvitationRow, bool]:
        return self.invitations.claim(
            invited.invitation_id, invited.token, newcomer.request, newcomer.identity, at_ms
        )

    def approve(self, site: str, at_ms: int = NOW_MS + 2) -> Peer:
        """The new member as it would call."""
        return self.approve_seen(self.invitations.waiting_for(site, at_ms), at_ms)

    def approve_seen(self, seen: InvitationRow, at_ms: int = NOW_MS + 2) -> Peer:
        identity = Identity("trial", Role.PARTICIPANT, seen.site)
        assert seen.request is not None
        authority = self.ca.authority
        leaf = authority.issue(parse_request(seen.request), identity, now=time.time())
        self.invitations.approve(
            seen, leaf, pem_of(authority.chain(leaf)), at_ms=at_ms, operator="olga"
        )
        # A running coordinator hears of it at once.
        self.registry.breaks_carried(seen.site, self.registry.breaks(seen.site) or 0)
        return Peer(identity, fingerprint(leaf), leaf.not_valid_after_utc.timestamp())


@pytest.fixture(scope="module")
def ca() -> TestAuthority:
    return TestAuthority("trial")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store.sqlite3") as store:
        yield store


@pytest.fixture
def desk(store: Store, ca: TestAuthority) -> Desk:
    return Desk(store, ca)


def refused(desk: Desk, invited: Invited, newcomer: Newcomer, at_ms: int = NOW_MS + 1) -> str:
    """The log's reason of a refusal whose words are those of all others."""
    with pytest.raises(InvitationRefusedError) as refusal:
        desk.claim(invited, newcomer, at_ms)
    error = refusal.value
    assert (error.what, error.code) == (WORDS, InvitationError.code)
    assert error.why not in str(error)
    return error.why


# --- invitations ----------------------------------------------------------------------------------


def test_an_invitation_is_claimed_once_decided_once_and_answered_as_often_as_asked(
    desk: Desk,
) -> None:
    invited, amber = desk.invite("amber"), Newcomer.named("amber")
    row, claimed = desk.claim(invited, amber)
    assert (row.state, claimed) == ("claimed", True)
    again, claimed = desk.claim(invited, amber, NOW_MS + 5)
    assert (again, claimed) == (row, False)
    member = desk.approve("amber")
    desk.registry.authorise(member, NOW_MS + 3)
    answers = [desk.claim(invited, amber, NOW_MS + 10 + n)[0] for n in range(3)]
    assert {answer.chain for answer in answers} == {answers[0].chain}
    assert answers[0].state == "issued" and answers[0].chain is not None


def test_a_token_cannot_be_guessed_replayed_or_used_for_another_name(desk: Desk) -> None:
    invited, amber = desk.invite("amber"), Newcomer.named("amber")
    guess = Invited(invited.invitation_id, secrets.token_bytes(32))
    assert refused(desk, guess, amber) == "the token is wrong"
    unknown = Invited(secrets.token_hex(16), invited.token)
    assert refused(desk, unknown, amber) == "no such invitation"
    assert "birch" in refused(desk, invited, Newcomer.named("birch"))
    assert "operator" in refused(desk, invited, Newcomer.named("amber", Role.OPERATOR))
    assert [row.state for row in desk.invitations.all()] == ["open"]
    desk.claim(invited, amber)
    thief = Newcomer.named("amber")
    assert "another request already" in refused(desk, invited, thief)
    desk.approve("amber")
    assert "another request already" in refused(desk, invited, thief)
    assert refused(desk, guess, amber) == "the token is wrong"
    assert desk.registry.active_sites() == {"amber"}


def test_an_invitation_that_has_ended_lets_nobody_in(desk: Desk) -> None:
    amber = Newcomer.named("amber")
    expired = desk.invite("amber", hours=1)
    assert "over (open)" in refused(desk, expired, amber, NOW_MS + HOUR_MS)
    replaced = desk.invite("amber")
    desk.invite("amber")
    assert "over (cancelled)" in refused(desk, replaced, amber)
    cancelled = desk.invite("birch")
    desk.invitations.cancel("birch", at_ms=NOW_MS, operator="olga")
    assert "over (cancelled)" in refused(desk, cancelled, Newcomer.named("birch"))
    with pytest.raises(NotFoundError):
        desk.invitations.cancel("birch", at_ms=NOW_MS, operator="olga")
    assert desk.registry.sites() == []


def test_a_claim_that_nobody_decided_about_ends_with_its_invitation(desk: Desk) -> None:
    invited, amber = desk.invite("amber", hours=1), Newcomer.named("amber")
    desk.claim(invited, amber)
    seen = desk.invitations.waiting_for("amber", NOW_MS + 2)
    with pytest.raises(NotFoundError):
        desk.invitations.waiting_for("amber", NOW_MS + HOUR_MS)
    with pytest.raises(StateError, match="ended"):
        desk.approve_seen(seen, NOW_MS + HOUR_MS)
    assert "over (claimed)" in refused(desk, invited, amber, NOW_MS + HOUR_MS)
    assert desk.registry.sites() == []


def test_of_two_requests_at_once_one_wins_and_the_other_is_told_nothing(
    desk: Desk, ca: TestAuthority, tmp_path: Path
) -> None:
    invited, first, second = desk.invite("amber"), Newcomer.named("amber"), Newcomer.named("amber")
    with Store.open(tmp_path / "store.sqlite3") as beside:
        other = Desk(beside, ca)
        _, claimed = other.claim(invited, first)
        assert claimed
        assert "another request already" in refused(desk, invited, second)
    (row,) = desk.invitations.waiting(NOW_MS + 2)
    assert row.request == first.request


def test_an_operator_who_saw_something_else_approves_nothing(
    desk: Desk, ca: TestAuthority, tmp_path: Path
) -> None:
    invited, amber = desk.invite("amber"), Newcomer.named("amber")
    desk.claim(invited, amber)
    seen = desk.invitations.waiting_for("amber", NOW_MS + 2)
    with Store.open(tmp_path / "store.sqlite3") as beside:
        Desk(beside, ca).approve("amber")
        with pytest.raises(StateError, match="changed or ended"):
            desk.approve_seen(seen)
        with pytest.raises(StateError):
            desk.invitations.reject(seen, "no", at_ms=NOW_MS + 3, operator="olga")
    assert len(desk.registry.sites()) == 1


def test_a_rejection_is_told_with_the_operators_words_and_lets_nobody_in(desk: Desk) -> None:
    invited, amber = desk.invite("amber"), Newcomer.named("amber")
    desk.claim(invited, amber)
    seen = desk.invitations.waiting_for("amber", NOW_MS + 2)
    desk.invitations.reject(seen, "not the fingerprint I heard", at_ms=NOW_MS + 2, operator="olga")
    row, _ = desk.claim(invited, amber, NOW_MS + 3)
    assert (row.state, row.reason, row.chain) == ("rejected", "not the fingerprint I heard", None)
    assert desk.registry.sites() == []


def test_a_member_that_is_invited_anew_loses_its_earlier_certificates_with_the_approval(
    desk: Desk,
) -> None:
    desk.claim(desk.invite("amber"), Newcomer.named("amber"))
    before = desk.approve("amber")
    again = desk.invite("amber")
    desk.registry.authorise(before, NOW_MS + 5)
    desk.claim(again, Newcomer.named("amber"))
    desk.registry.authorise(before, NOW_MS + 5)
    after = desk.approve("amber", NOW_MS + 6)
    with pytest.raises(RefusedError):
        desk.registry.authorise(before, NOW_MS + 6)
    desk.registry.authorise(after, NOW_MS + 6)


def test_a_revoked_site_comes_back_by_invitation_and_approval_and_not_before(desk: Desk) -> None:
    desk.claim(desk.invite("amber"), Newcomer.named("amber"))
    desk.approve("amber")
    open_before = desk.invite("amber")
    desk.registry.revoke("amber", "lost", at_ms=NOW_MS + 3, operator="olga")
    assert "over (cancelled)" in refused(desk, open_before, Newcomer.named("amber"))
    desk.claim(desk.invite("amber"), Newcomer.named("amber"))
    assert desk.registry.revoked_sites() == {"amber"}
    desk.registry.authorise(desk.approve("amber", NOW_MS + 9), NOW_MS + 9)
    assert desk.registry.active_sites() == {"amber"}


def test_the_store_holds_no_token(desk: Desk, store: Store, tmp_path: Path) -> None:
    invited, amber = desk.invite("amber"), Newcomer.named("amber")
    desk.claim(invited, amber)
    desk.approve("amber")
    store.query("PRAGMA wal_checkpoint(TRUNCATE)")
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert invited.invitation_id.encode() in stored
    for secret in (invited.token, invited.token.hex().encode(), b"PRIVATE KEY"):
        assert secret not in stored


def test_what_the_operator_decided_is_on_record(desk: Desk, store: Store) -> None:
    desk.claim(desk.invite("amber"), Newcomer.named("amber"))
    desk.approve("amber")
    desk.claim(desk.invite("birch"), Newcomer.named("birch"))
    seen = desk.invitations.waiting_for("birch", NOW_MS + 2)
    desk.invitations.reject(seen, "who?", at_ms=NOW_MS + 3, operator="olga")
    desk.invite("clove")
    desk.invitations.cancel("clove", at_ms=NOW_MS + 4, operator="olga")
    assert store.query("SELECT action, run_id FROM operator_events ORDER BY seq") == [
        ("invite", "amber"),
        ("approve", "amber"),
        ("invite", "birch"),
        ("reject", "birch"),
        ("invite", "clove"),
        ("cancel invitation", "clove"),
    ]


def test_a_newcomer_is_waited_for_as_long_as_there_is_something_to_tell(desk: Desk) -> None:
    wanted = desk.invitations.wanted
    assert not wanted(NOW_MS)
    invited, amber = desk.invite("amber", hours=1), Newcomer.named("amber")
    assert wanted(NOW_MS) and not wanted(NOW_MS + HOUR_MS)
    desk.claim(invited, amber)
    assert wanted(NOW_MS + 1)
    member = desk.approve("amber", NOW_MS + 2)
    assert wanted(NOW_MS + 2 * HOUR_MS)
    assert not wanted(NOW_MS + 2 + ASK_AFTER_MS)
    desk.claim(invited, amber, NOW_MS + 3)
    assert wanted(NOW_MS + 3 + STAY_MS - 1)
    assert not wanted(NOW_MS + 3 + STAY_MS)
    desk.registry.authorise(member, NOW_MS + 4)
    assert not wanted(NOW_MS + 5)


# --- the port -------------------------------------------------------------------------------------


class Port:
    """The listener over a store, and newcomers who dial it."""

    def __init__(self, folder: Path, store: Store, ca: TestAuthority) -> None:
        self.desk, self.ca, self.clock = Desk(store, ca), ca, SystemClock()
        self.bound = folder / "enrol_listen"
        identity = live_identity(folder / "tls", ca.enrol(Role.COORDINATOR, "hub"))
        service = EnrolmentService(
            self.desk.invitations, "trial", lambda: ca.authority.trust, self.clock
        )
        self.listener = EnrolmentListener(identity, "127.0.0.1:0", self.bound, service, self.clock)

    @property
    def address(self) -> str:
        return self.bound.read_text().strip()

    def now_ms(self) -> int:
        return round(time.time() * 1000)

    def invite(self, site: str) -> Invited:
        return self.desk.invite(site, self.now_ms())

    async def follow(self) -> None:
        await self.listener.follow(self.desk.invitations.wanted(self.now_ms()))

    async def enrol(self, invited: Invited, request: bytes) -> pb.EnrolReply:
        message = pb.EnrolRequest(
            invitation_id=invited.invitation_id, token=invited.token, request=request
        )
        anchors = self.ca.authority.anchors
        async with EnrolmentConnection(self.address, "trial", anchors) as connection:
            return await connection.unary(connection.enrolment.Enrol, message, deadline_s=20)

    def answers(self) -> bool:
        host, _, port = self.address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except ConnectionRefusedError:
            return False
        return True


@asynccontextmanager
async def port_of(tmp_path: Path, ca: TestAuthority) -> AsyncIterator[Port]:
    with Store.open(tmp_path / "store.sqlite3") as store:
        port = Port(tmp_path, store, ca)
        try:
            yield port
        finally:
            await port.listener.close()


@in_loop
async def test_a_newcomer_gets_in_over_the_network_and_the_port_closes_behind_it(
    tmp_path: Path, ca: TestAuthority
) -> None:
    async with port_of(tmp_path, ca) as port:
        await port.follow()
        assert not port.answers()
        invited, amber = port.invite("amber"), Newcomer.named("amber")
        await port.follow()
        first = await port.enrol(invited, amber.request)
        assert first.WhichOneof("state") == "retry_after_ms" and first.retry_after_ms > 0
        member = port.desk.approve("amber", port.now_ms())
        second = await port.enrol(invited, amber.request)
        (leaf, *between), trust = issued_from_wire(second.issued)
        assert fingerprint(leaf) == member.fingerprint
        assert leaf.public_key() == amber.tls_key.public_key()
        assert between and trust.anchors == ca.authority.anchors
        port.desk.registry.authorise(member, port.now_ms())
        await port.follow()
        await port.listener.close()
        assert not port.answers()
        with pytest.raises(UnavailableError):
            await port.enrol(invited, amber.request)


@in_loop
async def test_every_refusal_over_the_network_reads_the_same_and_only_the_log_knows_why(
    tmp_path: Path, ca: TestAuthority, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with port_of(tmp_path, ca) as port:
        used, amber = port.invite("amber"), Newcomer.named("amber")
        birch = port.invite("birch")
        port.invite("birch")
        await port.follow()
        await port.enrol(used, amber.request)
        attempts = {
            "no such invitation": (Invited("00" * 16, used.token), amber.request),
            "the token is wrong": (Invited(used.invitation_id, bytes(32)), amber.request),
            "another request already": (used, Newcomer.named("amber").request),
            "and the request is": (used, Newcomer.named("clove").request),
            "over (cancelled)": (birch, Newcomer.named("birch").request),
            "request is for spiffe://other": (
                used,
                Newcomer.named("amber", federation="other").request,
            ),
        }
        said = set()
        for why, (invited, request) in attempts.items():
            caplog.clear()
            with pytest.raises(InvitationError) as refusal:
                await port.enrol(invited, request)
            said.add(str(refusal.value))
            assert why in caplog.text
            assert invited.token.hex() not in caplog.text and repr(invited.token) not in caplog.text
        assert len(said) == 1
        assert port.desk.registry.sites() == []


@in_loop
async def test_a_request_that_proves_nothing_claims_nothing(
    tmp_path: Path, ca: TestAuthority
) -> None:
    async with port_of(tmp_path, ca) as port:
        invited = port.invite("amber")
        await port.follow()
        amber, other = Newcomer.named("amber"), Newcomer.named("amber")
        broken = bytearray(amber.request)
        broken[400] ^= 1
        for request in (b"", b"not a request", bytes(broken), other.request[:-200]):
            with pytest.raises(IdentityError):
                await port.enrol(invited, request)
        with pytest.raises(FedPalmError):
            await port.enrol(Invited(invited.invitation_id, b"short"), amber.request)
        assert [row.state for row in port.desk.invitations.all()] == ["open"]


@in_loop
async def test_a_crash_between_approval_and_answer_loses_nothing(
    tmp_path: Path, ca: TestAuthority
) -> None:
    amber = Newcomer.named("amber")
    async with port_of(tmp_path, ca) as port:
        invited = port.invite("amber")
        await port.follow()
        await port.enrol(invited, amber.request)
        before = port.address
    with Store.open(tmp_path / "store.sqlite3") as beside:
        member = Desk(beside, ca).approve("amber", round(time.time() * 1000))
    async with port_of(tmp_path, ca) as port:
        await port.follow()
        assert port.address == before
        (leaf, *_), _ = issued_from_wire((await port.enrol(invited, amber.request)).issued)
        assert fingerprint(leaf) == member.fingerprint


@in_loop
async def test_two_newcomers_at_once_one_of_whom_has_the_invitation(
    tmp_path: Path, ca: TestAuthority
) -> None:
    async with port_of(tmp_path, ca) as port:
        invited = port.invite("amber")
        await port.follow()
        requests = [Newcomer.named("amber").request for _ in range(4)]
        results = await asyncio.gather(
            *(port.enrol(invited, one) for one in requests), return_exceptions=True
        )
        winners = [one for one in results if isinstance(one, pb.EnrolReply)]
        assert len(winners) == 1
        assert {type(one) for one in results if one is not winners[0]} == {InvitationError}


@in_loop
async def test_a_newcomer_who_holds_its_call_open_delays_neither_the_watch_nor_the_next_one(
    tmp_path: Path, ca: TestAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, held = asyncio.Event(), asyncio.Event()

    async def slow(*_: object) -> pb.EnrolReply:
        entered.set()
        await held.wait()
        return pb.EnrolReply(retry_after_ms=1)

    monkeypatch.setattr(EnrolmentService, "Enrol", slow)
    async with port_of(tmp_path, ca) as port:
        invited = port.invite("amber")
        await port.follow()
        before = port.address
        call = asyncio.create_task(port.enrol(invited, Newcomer.named("amber").request))
        await entered.wait()
        port.desk.invitations.cancel("amber", at_ms=port.now_ms(), operator="olga")
        async with asyncio.timeout(1):
            await port.follow()
        assert not port.listener.is_open
        port.invite("birch")
        async with asyncio.timeout(1):
            await port.follow()
        assert not port.listener.is_open
        held.set()
        assert (await call).retry_after_ms == 1
        async with asyncio.timeout(20):
            while not port.listener.is_open:
                await asyncio.sleep(0.05)
                await port.follow()
        assert port.address == before and port.answers()


@in_loop
async def test_an_address_that_is_taken_is_tried_again_and_stops_nothing(
    tmp_path: Path, ca: TestAuthority, caplog: pytest.LogCaptureFixture
) -> None:
    async with port_of(tmp_path, ca) as port:
        port.invite("amber")
        with socket.socket() as squatter:
            host, _, number = port.address.rpartition(":")
            squatter.bind((host, int(number)))
            squatter.listen()
            # The port that invitations name is taken: another one is better than none.
            await port.follow()
        assert port.listener.is_open
        assert not port.address.endswith(f":{number}")
        assert "invitations that name this one lead nowhere" in caplog.text


def test_port_0_is_chosen_once_and_a_named_one_is_always_that(tmp_path: Path) -> None:
    bound = tmp_path / "listen"
    assert addresses("127.0.0.1:0", bound) == ["127.0.0.1:0"]
    bound.write_text("127.0.0.1:5000\n")
    assert addresses("127.0.0.1:0", bound) == ["127.0.0.1:5000", "127.0.0.1:0"]
    assert addresses("127.0.0.1:7443", bound) == ["127.0.0.1:7443"]
