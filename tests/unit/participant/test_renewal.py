"""A member's certificates over time, with a coordinator in memory that issues and hands over."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from fedpalm.clock import FakeClock
from fedpalm.errors import FedPalmError, IdentityError, RefusedError, UnavailableError
from fedpalm.ledger.bodies import EntryKind
from fedpalm.pki.authority import Authority, create_authority, save_authority
from fedpalm.pki.bundle import create_keys, install_certificates
from fedpalm.pki.custody import retire_anchor, rotate_root
from fedpalm.pki.identity import Identity, Role
from fedpalm.pki.live import LiveIdentity
from fedpalm.pki.request import create_request, parse_request
from fedpalm.pki.trust import TrustBundle
from participant.config import Home
from participant.log import SiteLog
from participant.renewal import Renewal, expiry_words, renewal_is_due
from participant.store import SiteStore
from tests.support.aio import in_loop

NORTH = Identity("unit", Role.PARTICIPANT, "north")
DAY_S = 86400.0


class Coordinator:
    """What :class:`Renewal` uses of a link."""

    def __init__(self, authority: Authority, clock: FakeClock) -> None:
        self.authority, self.clock = authority, clock
        self.trust: TrustBundle = authority.trust
        self.error: FedPalmError | None = None
        self.wrong_chain: tuple[x509.Certificate, ...] | None = None
        self.renewals = 0

    async def fetch_trust(self) -> TrustBundle:
        return self.trust

    async def renew(self, csr_pem: bytes) -> tuple[tuple[x509.Certificate, ...], TrustBundle]:
        self.renewals += 1
        if self.error is not None:
            raise self.error
        if self.wrong_chain is not None:
            return self.wrong_chain, self.trust
        leaf = self.authority.issue(parse_request(csr_pem), NORTH, now=self.clock.now())
        return (leaf, self.authority.issuing), self.trust


class Lines:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)

    def working(self, text: str) -> None:
        """Not kept."""

    def close(self) -> None:
        """Nothing is held."""


class Member:
    """A home with a fresh certificate."""

    def __init__(self, root: Path, authority: Authority | None = None) -> None:
        self.clock = FakeClock(float(int(time.time())))
        self.authority = authority or create_authority("unit", self.clock.now())[0]
        self.home = Home(root / "north")
        self.home.make()
        request = create_request(NORTH, *create_keys(self.home.tls))
        leaf = self.authority.issue(request, NORTH, now=self.clock.now())
        install_certificates(
            self.home.tls,
            (leaf, self.authority.issuing),
            self.authority.anchors,
            now=self.clock.now(),
        )
        self.live = LiveIdentity(self.home.tls, self.clock)
        self.report = Lines()
        self.coordinator = Coordinator(self.authority, self.clock)
        self.renewal = Renewal(self.home, self.live, self.clock, self.report, look_s=0.001)

    async def keep(self, patience_s: float = 5.0) -> None:
        await asyncio.wait_for(self.renewal.keep(self.coordinator), patience_s)

    async def stays(self) -> None:
        """A connection that lasts a while, with nothing to connect anew for."""
        with pytest.raises(TimeoutError):
            await self.keep(0.05)

    def logged(self) -> list[dict[str, Any]]:
        store = SiteStore(self.home, clock=self.clock)
        log = SiteLog(store, self.live.current.signing_key)
        found = [dict(e.body) for e in log.entries() if e.kind is EntryKind.CERTIFICATE]
        store.close()
        return found


@pytest.fixture
def member(tmp_path: Path) -> Member:
    return Member(tmp_path)


@in_loop
async def test_a_young_certificate_stays(member: Member) -> None:
    member.clock.advance(59 * DAY_S)
    await member.stays()
    assert member.coordinator.renewals == 0
    assert member.report.lines == []


@in_loop
async def test_in_its_last_third_a_certificate_is_renewed_and_the_connection_made_anew(
    member: Member,
) -> None:
    before = member.live.current
    member.clock.advance(61 * DAY_S)
    await member.keep()
    after = member.live.current
    assert after.leaf.public_key() != before.leaf.public_key()
    assert after.signing_key.public_key() == before.signing_key.public_key()
    assert after.leaf.not_valid_after_utc > before.leaf.not_valid_after_utc
    (logged,) = member.logged()
    assert logged["serial"] == f"{after.leaf.serial_number:x}"
    assert any("certificate renewed" in line for line in member.report.lines)
    await member.stays()
    assert member.coordinator.renewals == 1


@in_loop
async def test_a_coordinator_that_does_not_renew_stops_no_work_and_is_not_pestered(
    member: Member,
) -> None:
    member.coordinator.error = RefusedError("the issuing CA has expired")
    member.clock.advance(80 * DAY_S)
    await member.stays()
    await member.stays()
    assert member.coordinator.renewals == 1
    told = "\n".join(member.report.lines)
    assert "could not be renewed: the issuing CA has expired" in told
    assert "warning: this site's certificate ends at" in told
    assert "in 10 days" in told
    assert told.count("warning") == 1
    member.coordinator.error = None
    member.clock.advance(DAY_S)
    await member.keep()
    assert member.coordinator.renewals == 2


@in_loop
async def test_a_lost_connection_is_the_agents_to_mend(member: Member) -> None:
    member.coordinator.error = UnavailableError("gone")
    member.clock.advance(61 * DAY_S)
    with pytest.raises(UnavailableError):
        await member.keep()
    member.coordinator.error = None
    await member.keep()
    assert member.coordinator.renewals == 2


@in_loop
async def test_a_renewal_that_another_process_made_is_taken_up(member: Member) -> None:
    keeping = asyncio.create_task(member.keep())
    await asyncio.sleep(0.02)
    other = Renewal(member.home, LiveIdentity(member.home.tls, member.clock), member.clock, Lines())
    await other.renew(member.coordinator)
    await keeping
    assert member.coordinator.renewals == 1
    assert len(member.logged()) == 1


@in_loop
async def test_a_certificate_for_another_name_or_key_is_not_taken(member: Member) -> None:
    before = member.live.current
    foreign = Identity("unit", Role.PARTICIPANT, "south")
    keys = Home(member.home.path.parent / "south")
    keys.make()
    request = create_request(foreign, *create_keys(keys.tls))
    leaf = member.authority.issue(request, foreign, now=member.clock.now())
    member.coordinator.wrong_chain = (leaf, member.authority.issuing)
    with pytest.raises(IdentityError, match="not for"):
        await member.renewal.renew(member.coordinator)
    # The old leaf again: right name, but not for the fresh key that was asked for.
    member.coordinator.wrong_chain = before.chain
    with pytest.raises(IdentityError, match="fresh key"):
        await member.renewal.renew(member.coordinator)
    assert member.live.current == before
    assert LiveIdentity(member.home.tls, member.clock).current.leaf == before.leaf


@in_loop
async def test_anchors_that_no_pinned_one_vouches_for_are_not_taken(member: Member) -> None:
    before = member.live.current
    foreign = create_authority("unit", member.clock.now())[0]
    member.coordinator.trust = foreign.trust
    await member.stays()
    assert member.live.current.anchors == before.anchors
    assert any("trust anchors stay as they are" in line for line in member.report.lines)


@pytest.mark.parametrize(
    ("days", "words"), [(0, ""), (75, ""), (77, "in 13 days"), (89.5, "hours"), (91, "invitation")]
)
def test_the_end_of_a_certificate_is_told_in_time(member: Member, days: float, words: str) -> None:
    member.clock.advance(days * DAY_S)
    told = expiry_words(member.live._identity.leaf, member.clock.now())
    assert words in told
    assert bool(words) == bool(told)


@in_loop
async def test_a_replaced_root_is_taken_up_and_the_old_one_let_go(tmp_path: Path) -> None:
    ca = tmp_path / "ca"
    authority, root_key = create_authority("unit", time.time())
    save_authority(ca, authority, root_key)
    member = Member(tmp_path, authority)
    (old,) = authority.anchors

    rotated = rotate_root(ca, member.clock.now())
    (_, new) = rotated.anchors
    member.coordinator.authority, member.coordinator.trust = rotated, rotated.trust
    await member.keep()
    assert member.live.current.anchors == (old, new)
    assert renewal_is_due(member.live.current, member.clock.now())
    await member.keep()
    renewed = member.live.current
    assert not renewal_is_due(renewed, member.clock.now())
    assert member.coordinator.renewals == 1
    await member.stays()

    member.coordinator.trust = retire_anchor(ca).trust
    await member.keep()
    assert member.live.current.anchors == (new,)
    assert member.live.current.leaf == renewed.leaf
    await member.stays()
