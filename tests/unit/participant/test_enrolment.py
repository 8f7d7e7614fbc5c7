"""A newcomer with an invitation, and an operator in memory who decides."""

from __future__ import annotations

import hashlib
import random
import stat
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fedpalm.clock import FakeClock
from fedpalm.errors import (
    IdentityError,
    InvitationError,
    RefusedError,
    StateError,
)
from fedpalm.ledger.bodies import EntryKind
from fedpalm.pki.authority import Authority, create_authority, save_authority
from fedpalm.pki.bundle import load_tls_identity, read_certificates
from fedpalm.pki.custody import rotate_root
from fedpalm.pki.identity import Identity, Role
from fedpalm.pki.invitation import Invitation, write_invitation
from fedpalm.pki.trust import TrustBundle, accept_trust
from participant.claim import claim
from participant.cli.join import _join
from participant.config import Home, ParticipantConfig
from participant.enrolment import (
    Progress,
    check_invitation,
    install_member,
    prepare_request,
    record_certificate,
    record_request,
    request_summary,
)
from participant.log import SiteLog
from participant.store import SiteStore
from tests.support.aio import in_loop
from tests.support.enrolment import TOKEN, EnrolmentOperator, Lines, invitation_of, issue

FEDERATION = "unit"


@pytest.fixture
def authority() -> Authority:
    return create_authority(FEDERATION, time.time())[0]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(time.time())


@pytest.fixture
def invitation(authority: Authority, clock: FakeClock) -> Invitation:
    return invitation_of(authority, "north", clock.now())


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "north")
    home.make()
    home.save(CONFIG)
    return home


_URI = "spiffe://unit/participant"
CONFIG = ParticipantConfig(federation=FEDERATION, site="north", coordinator="127.0.0.1:7443")


async def ask(
    operator: EnrolmentOperator,
    invitation: Invitation,
    request: x509.CertificateSigningRequest,
    clock: FakeClock,
    report: Lines | None = None,
    *,
    wait: bool = True,
) -> tuple[tuple[x509.Certificate, ...], TrustBundle] | None:
    return await claim(
        invitation,
        request,
        operator.connect,
        report or Lines(),
        clock,
        wait=wait,
        rng=random.Random(0),
        backoff_base_s=0.001,
    )


def entries(home: Home, kind: EntryKind) -> list[dict[str, Any]]:
    store = SiteStore(home)
    log = SiteLog(store, load_tls_identity(home.tls, now=time.time()).signing_key)
    found = [dict(entry.body) for entry in log.entries() if entry.kind is kind]
    log.verify()
    store.close()
    return found


@in_loop
async def test_a_newcomer_waits_and_becomes_a_member(
    authority: Authority, clock: FakeClock, invitation: Invitation, home: Home
) -> None:
    report = Lines()
    operator = EnrolmentOperator(authority, "away", "wait", "away", "wait", "issue")
    request = prepare_request(home, CONFIG)
    record_request(home, CONFIG, request, clock)
    issued = await ask(operator, invitation, request, clock, report)
    assert issued is not None
    chain, trust = issued
    anchors = accept_trust(invitation.anchors, trust, CONFIG.federation, clock.now())
    identity = install_member(home, CONFIG, chain, anchors, clock)

    assert identity.identity == Identity(FEDERATION, Role.PARTICIPANT, "north")
    assert identity.anchors == authority.anchors
    assert len(set(operator.requests)) == 1
    assert not home.request.exists()
    for key in ("tls.key", "signing.key"):
        assert stat.S_IMODE((home.tls / key).stat().st_mode) == 0o600
    (left,) = entries(home, EntryKind.EGRESS)
    assert (left["payload"], left["recipient"]) == (
        "enrol",
        "spiffe://unit/coordinator/coordinator",
    )
    assert left["payload_hash"] == hashlib.sha256(operator.requests[0]).hexdigest()
    (certificate,) = entries(home, EntryKind.CERTIFICATE)
    assert certificate["serial"] == f"{chain[0].serial_number:x}"
    told = "\n".join(report.lines)
    assert "nobody listens there; trying again" in told
    assert TOKEN.hex() not in told


@in_loop
async def test_without_waiting_it_ends_once_the_coordinator_has_the_request(
    authority: Authority, clock: FakeClock, invitation: Invitation, home: Home
) -> None:
    operator = EnrolmentOperator(authority, "away", "wait")
    request = prepare_request(home, CONFIG)
    assert await ask(operator, invitation, request, clock, wait=False) is None
    assert len(operator.requests) == 2


@in_loop
async def test_a_rejection_is_told_in_the_operators_words(
    authority: Authority, clock: FakeClock, invitation: Invitation, home: Home
) -> None:
    operator = EnrolmentOperator(authority, "wait", "unknown\x1b[2J machine")
    with pytest.raises(RefusedError, match="did not admit north") as told:
        await ask(operator, invitation, prepare_request(home, CONFIG), clock)
    assert "unknown" in told.value.what
    assert "\x1b" not in told.value.what
    assert home.request.exists()


@in_loop
async def test_an_invitation_that_is_not_taken_is_asked_about_once(
    authority: Authority, clock: FakeClock, invitation: Invitation, home: Home
) -> None:
    operator = EnrolmentOperator(authority, "unknown")
    with pytest.raises(InvitationError):
        await ask(operator, invitation, prepare_request(home, CONFIG), clock)
    assert not operator.script


@in_loop
async def test_nobody_waits_for_a_coordinator_beyond_the_invitations_end(
    authority: Authority, clock: FakeClock, invitation: Invitation, home: Home
) -> None:
    operator = EnrolmentOperator(authority, "away", "away", "away")
    request = prepare_request(home, CONFIG)
    clock.advance(3601)
    with pytest.raises(InvitationError, match="expired"):
        await ask(operator, invitation, request, clock)
    assert len(operator.script) == 2


def test_an_interrupted_try_is_taken_up_with_the_same_request(home: Home) -> None:
    first = prepare_request(home, CONFIG)
    assert prepare_request(home, CONFIG) == first
    # Killed between the keys and the request: the keys stay.
    home.request.unlink()
    second = prepare_request(home, CONFIG)
    assert second.public_key() == first.public_key()
    # Killed between the keys: both are made anew, nobody has heard of the first.
    home.request.unlink()
    (home.tls / "signing.key").unlink()
    third = prepare_request(home, CONFIG)
    assert third.public_key() != first.public_key()
    summary = request_summary(home)
    assert summary is not None
    assert len(summary["fingerprint"].replace(" ", "")) == 64


def test_a_request_that_leaves_is_logged_once(home: Home, clock: FakeClock) -> None:
    request = prepare_request(home, CONFIG)
    for _ in range(2):
        record_request(home, CONFIG, request, clock)
    store = SiteStore(home)
    assert store.rows("SELECT COUNT(*) AS n FROM log")[0]["n"] == 1
    store.close()


def test_an_expired_invitation_is_refused_before_anything_is_made(
    tmp_path: Path, invitation: Invitation, clock: FakeClock
) -> None:
    place = Home(tmp_path / "nowhere")
    clock.advance(3601)
    with pytest.raises(InvitationError, match="expired"):
        check_invitation(place, invitation, clock.now())
    assert not place.path.exists()


def test_who_asked_in_time_may_come_for_the_answer_later(
    home: Home, invitation: Invitation, clock: FakeClock
) -> None:
    Progress(invitation.invitation_id, answered=False).save(home)
    clock.advance(3601)
    check_invitation(home, invitation, clock.now())


def test_another_sites_invitation_changes_nothing_in_a_home(
    home: Home, invitation: Invitation, clock: FakeClock
) -> None:
    with pytest.raises(StateError, match="home of north"):
        check_invitation(home, replace(invitation, site="west"), clock.now())


def test_an_invitation_of_another_ca_is_refused_where_one_is_pinned(
    home: Home, invitation: Invitation, authority: Authority, clock: FakeClock
) -> None:
    member(home, authority, clock)
    foreign = create_authority(FEDERATION, time.time())[0]
    check_invitation(home, invitation, clock.now())
    with pytest.raises(IdentityError, match="another CA"):
        check_invitation(home, replace(invitation, anchors=foreign.anchors), clock.now())


def member(home: Home, authority: Authority, clock: FakeClock) -> Any:
    request = prepare_request(home, CONFIG).public_bytes(Encoding.PEM)
    return install_member(
        home, CONFIG, issue(authority, request, "north"), authority.anchors, clock
    )


class Joined:
    """The ``join`` of one home, and the anchors under which it looked for the coordinator."""

    def __init__(self, home: Home, folder: Path, clock: FakeClock, patch: pytest.MonkeyPatch):
        self.home, self.folder, self.clock, self.patch = home, folder, clock, patch
        self.looked_under: list[tuple[x509.Certificate, ...]] = []

    def join(self, authority: Authority, invitation: Invitation) -> None:
        operator = EnrolmentOperator(authority, "issue")

        def connect(address: str, federation: str, anchors: tuple[x509.Certificate, ...]) -> Any:
            self.looked_under.append(anchors)
            return operator.connect()

        self.patch.setattr("fedpalm.transport.channel.EnrolmentConnection", connect)
        file = self.folder / f"{invitation.invitation_id}.invitation"
        write_invitation(file, invitation)
        _join(self.home, file, None, None, Lines(), self.clock, wait=True)

    @property
    def pinned(self) -> tuple[x509.Certificate, ...]:
        return read_certificates(self.home.tls / "ca.pem")


@pytest.fixture
def joined(
    tmp_path: Path,
    authority: Authority,
    invitation: Invitation,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> Joined:
    made = Joined(Home(tmp_path / "member"), tmp_path, clock, monkeypatch)
    made.join(authority, invitation)
    return made


def test_a_forged_invitation_changes_nothing_of_what_a_member_trusts(
    joined: Joined, authority: Authority, invitation: Invitation
) -> None:
    evil = create_authority(FEDERATION, time.time())[0]
    forged = replace(
        invitation,
        invitation_id="cd" * 16,
        anchors=(authority.anchors[0], evil.anchors[0]),
        coordinator_address="6.6.6.6:7443",
    )
    with pytest.raises(IdentityError, match="no anchor of this site has certified"):
        joined.join(evil, forged)
    assert joined.looked_under == [authority.anchors] * 2
    assert joined.pinned == authority.anchors
    assert joined.home.load().coordinator == invitation.coordinator_address
    assert load_tls_identity(joined.home.tls, now=joined.clock.now()).chain[1] == authority.issuing


def test_a_member_that_is_invited_anew_learns_the_coordinators_new_address_in_the_end(
    joined: Joined, authority: Authority, invitation: Invitation
) -> None:
    moved = replace(invitation, invitation_id="cd" * 16, coordinator_address="10.0.0.7:7443")
    joined.join(authority, moved)
    assert joined.home.load().coordinator == "10.0.0.7:7443"


def test_a_new_root_reaches_an_invited_member_by_its_handover(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, root_key = create_authority(FEDERATION, clock.now())
    save_authority(tmp_path / "ca", first, root_key)
    made = Joined(Home(tmp_path / "member"), tmp_path, clock, monkeypatch)
    made.join(first, invitation_of(first, "north", clock.now()))
    rotated = rotate_root(tmp_path / "ca", clock.now())
    again = replace(invitation_of(rotated, "north", clock.now()), invitation_id="cd" * 16)
    made.join(rotated, again)
    assert made.pinned == rotated.anchors and len(made.pinned) == 2


def test_a_certificate_for_somebody_else_is_not_installed(
    home: Home, tmp_path: Path, authority: Authority, clock: FakeClock
) -> None:
    prepare_request(home, CONFIG)
    other = Home(tmp_path / "west")
    other.make()
    config = CONFIG.model_copy(update={"site": "west"})
    west = prepare_request(other, config).public_bytes(Encoding.PEM)
    with pytest.raises(IdentityError, match="is for"):
        install_member(home, CONFIG, issue(authority, west, "west"), authority.anchors, clock)
    twin = Home(tmp_path / "twin")
    twin.make()
    keys_of_twin = prepare_request(twin, CONFIG).public_bytes(Encoding.PEM)
    with pytest.raises(IdentityError):
        install_member(
            home, CONFIG, issue(authority, keys_of_twin, "north"), authority.anchors, clock
        )
    with pytest.raises(IdentityError, match="nobody"):
        install_member(home, CONFIG, (), authority.anchors, clock)
    assert not (home.tls / "tls.pem").exists()


def test_a_certificate_of_another_ca_is_not_installed(
    home: Home, authority: Authority, clock: FakeClock
) -> None:
    request = prepare_request(home, CONFIG).public_bytes(Encoding.PEM)
    foreign = create_authority(FEDERATION, time.time())[0]
    with pytest.raises(IdentityError):
        install_member(home, CONFIG, issue(foreign, request, "north"), authority.anchors, clock)
    assert not (home.tls / "tls.pem").exists()


def test_a_member_asks_anew_with_a_fresh_tls_key_and_its_own_signing_key(
    home: Home, authority: Authority, clock: FakeClock
) -> None:
    before = member(home, authority, clock)
    after = member(home, authority, clock)
    assert after.leaf.public_key() != before.leaf.public_key()
    assert after.signing_key.public_key() == before.signing_key.public_key()
    assert len(entries(home, EntryKind.CERTIFICATE)) == 2


def test_a_member_whose_certificate_has_ended_can_still_ask(home: Home, clock: FakeClock) -> None:
    past = FakeClock(time.time() - 200 * 86400)
    authority = create_authority(FEDERATION, past.now())[0]
    request = prepare_request(home, CONFIG)
    leaf = authority.issue(request, Identity.from_uri(f"{_URI}/north"), now=past.now())
    install_member(home, CONFIG, (leaf, authority.issuing), authority.anchors, past)
    with pytest.raises(IdentityError, match="expired"):
        load_tls_identity(home.tls, now=time.time())
    assert member(home, authority, clock).leaf.not_valid_after_utc.timestamp() > time.time()


def test_the_same_certificate_is_logged_once(
    home: Home, authority: Authority, clock: FakeClock
) -> None:
    identity = member(home, authority, clock)
    store = SiteStore(home, clock=clock)
    log = SiteLog(store, identity.signing_key)
    assert not record_certificate(store, log, identity)
    store.close()
