"""Staying a member: renewal, trust, and what a running coordinator does when the registry changes."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from coordinator.conductor import Conductor
from coordinator.invitations import Invitations
from coordinator.registry import RENEWALS_A_DAY, Registry
from coordinator.server import listening
from coordinator.state import Coordinator
from coordinator.store import Store
from coordinator.watch import endings
from fedpalm.clock import SystemClock
from fedpalm.errors import (
    FedPalmError,
    IdentityError,
    PlanNotApprovedError,
    RefusedError,
    ResourceError,
    RevokedError,
    SenderMismatchError,
    StateError,
    UnavailableError,
)
from fedpalm.pki.bundle import TLS_CHAIN, TlsIdentity, pem_of
from fedpalm.pki.files import write_public
from fedpalm.pki.identity import Identity, Role
from fedpalm.pki.keys import SigningKey, new_signing_key, new_tls_key, private_key_pem
from fedpalm.pki.request import create_request
from fedpalm.plan import Plan
from fedpalm.transport.channel import Connection
from fedpalm.wire.membership import issued_from_wire, trust_from_wire
from fedpalm.wire.statements import to_wire
from fedpalm.wire.v1 import federation_pb2 as f
from fedpalm.wire.v1 import membership_pb2 as pb
from fedpalm.wire.v1 import operator_pb2 as o
from tests.simulation.federation import rehearsal_plan
from tests.support.agreement import answer
from tests.support.aio import in_loop
from tests.support.coordinator import DEADLINE_S, RunningCoordinator, World
from tests.support.pki import TestAuthority

SITE = "site-000"
HEEDED_S = 2.0
"""A revocation is in force within so long; the tests allow for a loaded machine."""
PATIENCE_S = 10.0


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, SITE, "site-001")


async def membership(
    hub: RunningCoordinator, member: TlsIdentity, method: str, request: Any
) -> Any:
    async with Connection(hub.address, member) as connection:
        return await connection.unary(
            getattr(connection.membership, method), request, deadline_s=DEADLINE_S
        )


class Renewal:
    """A request for a fresh TLS key, of a member or of somebody who would like to be one."""

    def __init__(self, identity: Identity, signing_key: SigningKey) -> None:
        self.identity, self.signing_key, self.tls_key = identity, signing_key, new_tls_key()

    @classmethod
    def of(cls, member: TlsIdentity) -> Renewal:
        return cls(member.identity, member.signing_key)

    @property
    def message(self) -> pb.RenewRequest:
        request = create_request(self.identity, self.tls_key, self.signing_key)
        return pb.RenewRequest(request=request.public_bytes(Encoding.PEM))

    def member(self, authority: TestAuthority, reply: pb.IssuedCertificate) -> TlsIdentity:
        chain, _ = issued_from_wire(reply)
        return authority.assemble(
            self.identity, chain[0], private_key_pem(self.tls_key), self.signing_key
        )


async def eventually(condition: Callable[[], bool], what: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.02)
    assert condition(), what


# --- renewal --------------------------------------------------------------------------------------


@in_loop
async def test_a_member_renews_and_both_certificates_are_good_until_the_overlap_has_passed(
    world: World,
) -> None:
    async with world.running() as hub:
        before = world.people[SITE]
        renewal = Renewal.of(before)
        reply = await membership(hub, before, "Renew", renewal.message)
        after = renewal.member(world.authority, reply)
        assert after.leaf.public_key() == renewal.tls_key.public_key()
        assert trust_from_wire(reply.trust) == world.authority.authority.trust
        for member in (before, after, before):
            await membership(hub, member, "FetchTrust", pb.FetchTrustRequest())
        row = hub.coordinator.registry.site(SITE)
        assert row.expires_ms == round(after.leaf.not_valid_after_utc.timestamp() * 1000)


@pytest.mark.parametrize("role", [Role.OPERATOR, Role.AUDITOR])
def test_other_members_renew_and_learn_whom_to_trust_too(tmp_path: Path, role: Role) -> None:
    @in_loop
    async def scene() -> None:
        world = World(tmp_path)
        member = world.authority.enrol(role, "olga")
        with Store.open(world.home.store) as store:
            Registry(store).certificate_issued(member.leaf, 1)
        async with world.running() as hub:
            renewal = Renewal.of(member)
            reply = await membership(hub, member, "Renew", renewal.message)
            after = renewal.member(world.authority, reply)
            trust = await membership(hub, after, "FetchTrust", pb.FetchTrustRequest())
            assert trust_from_wire(trust).anchors == world.authority.authority.anchors

    scene()


@in_loop
async def test_a_renewal_for_anything_else_than_a_fresh_key_of_oneself_is_refused(
    world: World,
) -> None:
    member = world.people[SITE]
    other = world.people["site-001"]
    same_key = Renewal.of(member)
    leaf_key = same_key.tls_key
    promoted = Identity("simulated", Role.OPERATOR, SITE)
    wrong: list[tuple[pb.RenewRequest, type[FedPalmError], str]] = [
        (Renewal.of(other).message, SenderMismatchError, "site-001"),
        (Renewal(promoted, member.signing_key).message, SenderMismatchError, "operator"),
        (Renewal(member.identity, new_signing_key()).message, RefusedError, "signing key"),
        (pb.RenewRequest(request=b"nonsense"), IdentityError, "not a certificate signing request"),
        (pb.RenewRequest(), IdentityError, "request"),
    ]
    async with world.running() as hub:
        for message, error, words in wrong:
            with pytest.raises(error, match=words):
                await membership(hub, member, "Renew", message)
        reply = await membership(hub, member, "Renew", same_key.message)
        renewed = same_key.member(world.authority, reply)
        assert renewed.leaf.public_key() == leaf_key.public_key()
        with pytest.raises(RefusedError, match="fresh TLS key"):
            await membership(hub, renewed, "Renew", same_key.message)
        rows = hub.coordinator.store.query("SELECT count(*) FROM certificates WHERE name = ?", SITE)
        assert rows == [(2,)]


@in_loop
async def test_a_lost_reply_is_asked_for_again_and_not_without_end(world: World) -> None:
    async with world.running() as hub:
        member = world.people[SITE]
        renewal = Renewal.of(member)
        replies = [
            await membership(hub, member, "Renew", renewal.message) for _ in range(RENEWALS_A_DAY)
        ]
        with pytest.raises(ResourceError, match="no more today"):
            await membership(hub, member, "Renew", renewal.message)
        last = renewal.member(world.authority, replies[-1])
        await membership(hub, last, "FetchTrust", pb.FetchTrustRequest())


@in_loop
async def test_without_the_issuing_key_a_renewal_says_so_and_names_no_file(world: World) -> None:
    async with world.running() as hub:
        member = world.people[SITE]
        (world.home.authority / "issuing.key").unlink()
        with pytest.raises(StateError, match="issuing key") as refusal:
            await membership(hub, member, "Renew", Renewal.of(member).message)
        assert str(world.home.root) not in str(refusal.value)
        assert "sites sign" in refusal.value.next_step
        await membership(hub, member, "FetchTrust", pb.FetchTrustRequest())


@in_loop
async def test_nobody_unknown_and_no_coordinator_may_renew(world: World) -> None:
    stranger = world.authority.enrol(Role.PARTICIPANT, SITE)
    # Its certificate is a server's: TLS itself refuses it as a caller's.
    hub_itself = world.authority.enrol(Role.COORDINATOR, "coordinator")
    elsewhere = TestAuthority("simulated").enrol(Role.PARTICIPANT, SITE)
    async with world.running() as hub:
        for member, error in (
            (stranger, RefusedError),
            (hub_itself, UnavailableError),
            (elsewhere, (IdentityError, UnavailableError)),
        ):
            with pytest.raises(error):
                await membership(hub, member, "Renew", Renewal.of(member).message)


def test_the_store_of_a_coordinator_that_served_holds_no_key(world: World) -> None:
    renewal = Renewal.of(world.people[SITE])

    @in_loop
    async def scene() -> None:
        async with world.running() as hub:
            await membership(hub, world.people[SITE], "Renew", renewal.message)

    scene()
    stored = b"".join(path.read_bytes() for path in world.home.root.glob("store.sqlite3*"))
    assert SITE.encode() in stored
    assert b"PRIVATE KEY" not in stored
    for key in (renewal.tls_key, renewal.signing_key):
        number = (
            key.private_bytes_raw()
            if isinstance(key, SigningKey)
            else key.private_numbers().private_value.to_bytes(32, "big")
        )
        assert number not in stored and number.hex().encode() not in stored


# --- what a running coordinator sees --------------------------------------------------------------


@in_loop
async def test_a_revocation_by_another_process_ends_open_calls_and_refuses_new_ones(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async with world.running() as hub, hub.site(SITE) as site, hub.site("site-001") as other:
        async with site.instructions() as telling, other.instructions() as still_telling:
            waiting = asyncio.create_task(anext(telling))
            unharmed = asyncio.create_task(anext(still_telling))
            sessions = hub.coordinator.driver.sessions
            await eventually(lambda: len(sessions.connected()) == 2, "both are there")
            world.revoke(SITE)
            began = time.monotonic()
            with pytest.raises(RevokedError):
                await asyncio.wait_for(waiting, PATIENCE_S)
            assert time.monotonic() - began < HEEDED_S
            with pytest.raises(RevokedError):
                await site.call("Hello", f.HelloRequest(protocol_versions=[1], site_id=SITE))
            assert sessions.connected() == {"site-001"}
            assert not unharmed.done()
            unharmed.cancel()
            await asyncio.wait({unharmed})
        assert "is revoked" in caplog.text


@in_loop
async def test_a_revocation_reaches_the_runs_whether_somebody_serves_or_not(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.revoke("site-001")
    expelled: list[str] = []
    monkeypatch.setattr(
        "coordinator.conductor.Conductor.expel", lambda _, site, reason: expelled.append(site)
    )
    async with world.running():
        assert expelled == ["site-001"]
        world.revoke(SITE)
        await eventually(lambda: expelled == ["site-001", SITE], "the second is seen")
        world.admit(SITE)
        await asyncio.sleep(0.5)
        world.revoke(SITE)
        await eventually(lambda: expelled == ["site-001", SITE, SITE], "and seen again")


async def approve(hub: RunningCoordinator, plan: Plan, *sites: str) -> str:
    async with hub.operator() as operator:
        run_id = str((await operator.submit(plan)).run_id)
    for name in sites:
        async with hub.site(name) as site:
            await site.answer(run_id, plan)
    return run_id


@in_loop
async def test_an_approval_ends_with_its_keys_even_if_nobody_serves_between_the_old_and_the_new(
    world: World,
) -> None:
    plan = rehearsal_plan(sites=2, rounds=1)
    async with world.running() as hub:
        run_id = await approve(hub, plan, SITE, "site-001")
    world.revoke(SITE)
    world.admit(SITE)
    async with world.running() as hub:
        assert hub.coordinator.conductor.answered(run_id, "approve") == ["site-001"]
        async with hub.site(SITE) as site, site.instructions() as told:
            await anext(told)
            with pytest.raises(PlanNotApprovedError):
                await site.join(run_id, plan)


@in_loop
async def test_a_clock_that_was_set_back_hides_no_revocation(world: World) -> None:
    plan, ahead_ms = rehearsal_plan(sites=2, rounds=1), round(time.time() * 1000) + 3_600_000
    with Store.open(world.home.store) as outside:
        Registry(outside).revoke(SITE, "lost", at_ms=ahead_ms, operator="olga")
    world.admit(SITE)
    async with world.running() as hub:
        run_id = await approve(hub, plan, SITE, "site-001")
        world.revoke(SITE)
        conductor = hub.coordinator.conductor
        await eventually(lambda: SITE in conductor.run(run_id).expelled, "the second one is seen")
        assert conductor.answered(run_id, "approve") == ["site-001"]


@in_loop
async def test_a_retired_trust_anchor_takes_nobody_out_of_a_run_who_has_renewed(
    world: World,
) -> None:
    plan = rehearsal_plan(sites=2, rounds=1)
    async with world.running() as hub:
        run_id = await approve(hub, plan, SITE, "site-001")
        renewal = Renewal.of(world.people[SITE])
        reply = await membership(hub, world.people[SITE], "Renew", renewal.message)
        hub.people[SITE] = renewal.member(world.authority, reply)
        async with hub.site(SITE) as site:
            await site.call("Hello", f.HelloRequest(protocol_versions=[1], site_id=SITE))
        with Store.open(world.home.store) as outside:
            ((issued_ms,),) = outside.query(
                "SELECT max(issued_ms) FROM certificates WHERE name = ?", SITE
            )
            Registry(outside).end_issued_before(issued_ms, round(time.time() * 1000))
        conductor = hub.coordinator.conductor
        await eventually(lambda: "site-001" in conductor.run(run_id).expelled, "one is left out")
        assert conductor.answered(run_id, "approve") == [SITE]
        async with hub.site(SITE) as site:
            await site.call("Hello", f.HelloRequest(protocol_versions=[1], site_id=SITE))


@in_loop
async def test_an_expulsion_that_cannot_be_stored_is_tried_again_and_the_site_waits_outside(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.watch.RETRY_S", 0.5)
    expel, tries = Conductor.expel, []

    def full_once(conductor: Conductor, site: str, reason: str) -> None:
        tries.append(site)
        if len(tries) == 1:
            raise ResourceError("the disk is full")
        expel(conductor, site, reason)

    monkeypatch.setattr(Conductor, "expel", full_once)
    async with world.running() as hub:
        world.admit(SITE)
        await eventually(lambda: tries == [SITE], "the first try")
        async with hub.site(SITE) as site:
            hello = f.HelloRequest(protocol_versions=[1], site_id=SITE)
            with pytest.raises(UnavailableError, match="still in the runs"):
                await site.call("Hello", hello)
            await eventually(lambda: tries == [SITE, SITE], "the second try")
            await site.call("Hello", hello)


@in_loop
async def test_what_a_revoked_key_signs_after_the_revocation_counts_for_nothing(
    world: World,
) -> None:
    plan, old = rehearsal_plan(sites=2, rounds=1), world.people[SITE]
    async with world.running() as hub:
        run_id = await approve(hub, plan)
        world.revoke(SITE)
        hub.people[SITE] = world.admit(SITE)
        registry = hub.coordinator.registry
        await eventually(lambda: not registry.new_breaks(), "the new keys may call")
        async with hub.site(SITE) as site:
            stale = f.AnswerPlanRequest(
                run_id=run_id, site_id=SITE, answer=to_wire(answer(old, run_id, plan))
            )
            with pytest.raises(IdentityError, match="not that of site"):
                await site.call("AnswerPlan", stale)
            assert hub.coordinator.conductor.answered(run_id, "approve") == []
            await site.answer(run_id, plan)
        assert hub.coordinator.conductor.answered(run_id, "approve") == [SITE]


@in_loop
async def test_the_newcomers_port_opens_with_an_invitation_and_closes_with_its_end(
    world: World,
) -> None:
    def answers() -> bool:
        host, _, port = world.home.enrol_listen.read_text().strip().rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except ConnectionRefusedError:
            return False
        return True

    async with world.running():
        assert not answers()
        with Store.open(world.home.store) as outside:
            invitations, now_ms = Invitations(outside), round(time.time() * 1000)

            def invite(site: str, seconds: float) -> None:
                invitations.invite(
                    secrets.token_hex(16),
                    site,
                    secrets.token_bytes(32),
                    created_ms=now_ms,
                    expires_ms=round((time.time() + seconds) * 1000),
                    operator="olga",
                )

            invite("birch", 3600)
            await eventually(answers, "open")
            invitations.cancel("birch", at_ms=now_ms, operator="olga")
            await eventually(lambda: not answers(), "closed")
            invite("clove", 1.5)
            await eventually(answers, "open again")
            await eventually(lambda: not answers(), "closed by its expiry")


@in_loop
async def test_a_coordinator_takes_up_its_own_renewed_certificate_while_it_serves(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with world.running() as hub:
        present = world.identity.current
        request = create_request(present.identity, _tls_key(world), present.signing_key)
        authority = world.authority.authority
        leaf = authority.issue(request, present.identity, now=time.time())
        write_public(world.home.tls / TLS_CHAIN, pem_of(authority.chain(leaf)))
        await eventually(lambda: "new connections use certificate" in caplog.text, "taken up")
        async with hub.operator() as operator:
            await operator.call("ListRuns", o.ListRunsRequest())


def _tls_key(world: World) -> Any:
    return load_pem_private_key(world.identity.current.key_pem, password=None)


def test_a_watch_that_fails_ends_the_coordinator_with_its_error(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    @in_loop
    async def scene() -> None:
        failed = asyncio.Event()
        with Store.open(world.home.store) as store:
            coordinator = Coordinator.build(
                world.home, world.settings, world.identity, store, SystemClock()
            )
            async with listening(coordinator, world.home, failed=failed.set):

                def broken(_: Store) -> int:
                    raise OSError("the disk is gone")

                monkeypatch.setattr(Store, "outside_changes", broken)
                await asyncio.wait_for(failed.wait(), PATIENCE_S)

    with pytest.raises(OSError, match="the disk is gone"):
        scene()


# --- reminders ------------------------------------------------------------------------------------


def test_what_ends_soon_is_named_with_the_command_that_helps(world: World) -> None:
    now = time.time()
    assert endings(world.home, now) == []
    short = world.authority.enrol(Role.OPERATOR, "olga", lifetime=timedelta(days=13))
    world.home.operator.mkdir()
    write_public(world.home.operator / TLS_CHAIN, short.chain_pem)
    (line,) = endings(world.home, now)
    assert "the operator's certificate ends in 12 days" in line and "renew" in line
    lines = endings(world.home, now + timedelta(days=29).total_seconds())
    assert len(lines) == 2 and "the operator's certificate has ended" in lines[1]
    (world.home.operator / TLS_CHAIN).write_bytes(b"damaged")
    (line,) = endings(world.home, now)
    assert "cannot be read" in line
    (world.home.operator / TLS_CHAIN).unlink()
    ca_end = world.authority.authority.issuing.not_valid_after_utc.timestamp()
    *_, line = endings(world.home, ca_end - timedelta(days=28, minutes=1).total_seconds())
    assert "the issuing CA ends in 28 days" in line and "ca rotate" in line
